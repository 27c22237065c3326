"""Tests of every recipe of every family; new files in configs/model/ are found automatically."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from helpers.kinds import first_of_each_kind
from helpers.recipes import (
    CONFIGS,
    QUICK_FIRST,
    build_training_objects,
    compose_config,
    conditional_kind,
    model_class,
    small_overrides,
    states_equal,
    trainer_name,
)

from genlab.abilities import Estimate, abilities
from genlab.builders import factory
from genlab.builders.pretrained import PART_NAMES, pretrained_part_name
from genlab.data.captions import caption_spec
from genlab.runs.run_folder import RunFolder
from genlab.spec import DataSpec

STEPS = 3


def each_recipe(kind: Callable[[str], str] = str):
    """Run a test for each recipe; one process runs all tests of a recipe and reuses its model.

    Of the recipes of one kind, all but the first are slow tests.
    """
    return pytest.mark.parametrize(
        "recipe",
        first_of_each_kind(QUICK_FIRST, kind, marks=lambda r: [pytest.mark.xdist_group(r)]),
    )


# the tests of a recipe run in sequence, and all models together would take many gigabytes
@lru_cache(maxsize=2)
def trained(recipe: str):
    """Return (dataset, trainer) after STEPS steps."""
    _, dataset, trainer = build_training_objects(*small_overrides(recipe))
    advance(trainer, dataset, STEPS)
    return dataset, trainer


def advance(trainer, dataset, steps: int) -> None:
    batches = trainer.train_batches(dataset)
    for _ in range(steps):
        trainer.train_step(batches)


def image(side: int, **facts) -> DataSpec:
    return DataSpec((3, side, side), **facts)


def pair(side: int, source_side: int) -> DataSpec:
    return image(side, source=image(source_side))


SERIES = DataSpec((20, 1), "series", levels=0, source=DataSpec((30, 1), "series", levels=0))


# the census table, with the categories of each column
ADULT = DataSpec(
    (14,),
    "table",
    num_classes=2,
    levels=0,
    categories=(0, 9, 0, 16, 0, 7, 15, 6, 5, 2, 0, 0, 0, 42),
)

# Of a recipe: the data, the part of the model that is counted, and the count as the header says it.
PARAMETER_COUNTS = {
    "csdi": (SERIES, "", "0.3 M"),
    "cyclegan": (pair(256, 256), "generator.G", "11.4 M"),
    "ddpm": (image(32), "", "35.7 M"),
    "dit": (image(32, num_classes=10), "", "32.5 M"),
    "edm": (image(32), "", "53.6 M"),
    "flow_matching": (image(32), "", "35.7 M"),
    "glow": (image(32, dequantized=True), "", "44.8 M"),
    "improved_ddpm": (image(32), "", "52.5 M"),
    "pix2pix": (pair(256, 256), "generator", "54.4 M"),
    "pixelcnn_pp": (image(32), "", "53.6 M"),
    "progan": (image(1024), "generator", "23.1 M"),
    "srresnet": (pair(96, 24), "generator", "1.5 M"),
    "stylegan2": (image(1024), "discriminator", "29.0 M"),
    "tabddpm": (ADULT, "", "3.8 M"),
    "tvae": (ADULT, "", "0.1 M"),
    "text_gan": (image(64, source=caption_spec(64)), "generator", "14.8 M"),
    "unit": (pair(256, 256), "generator", "18.6 M"),
}


@pytest.mark.parametrize("recipe", PARAMETER_COUNTS)
def test_a_header_has_the_number_of_parameters_of_its_networks(recipe):
    spec, part, said = PARAMETER_COUNTS[recipe]
    with torch.device("meta"):
        model = factory.make_model(compose_config(f"model={recipe}", "out=unused"), spec)
    count = sum(p.numel() for p in model.get_submodule(part).parameters())
    assert f"{count / 1e6:.1f} M" == said
    header = (CONFIGS / "model" / f"{recipe}.yaml").read_text().partition("defaults:")[0]
    assert said in " ".join(header.replace("\n#", " ").split())


@each_recipe(model_class)
def test_resumes_bit_for_bit_from_its_file(recipe, tmp_path):
    dataset, undisturbed = trained(recipe)
    overrides = small_overrides(recipe)
    _, _, first = build_training_objects(*overrides)
    advance(first, dataset, 1)
    run = RunFolder.create(tmp_path / "run", config="", metadata={})
    run.save_checkpoint(first.state_dict(), keep=3)
    del first
    _, _, second = build_training_objects(*overrides)
    torch.manual_seed(12345)  # a new process has another random state
    second.load_state_dict(run.load_checkpoint())
    advance(second, dataset, STEPS - 1)
    a, b = undisturbed.state_dict(), second.state_dict()
    assert [key for key in a if key != "seconds" and not states_equal(a[key], b[key])] == []


@each_recipe()
def test_every_parameter_gets_a_gradient(recipe):
    _, trainer = trained(recipe)
    if not trainer.optimizers:
        # a closed-form fit must set every parameter; a single number may be right already
        start = dict(build_training_objects(*small_overrides(recipe))[2].model.named_parameters())
        unchanged = [
            name
            for name, p in trainer.model.named_parameters()
            if p.numel() > 1 and torch.equal(p, start[name])
        ]
        assert not unchanged and not any(p.requires_grad for p in start.values())
        return
    reached = parameters_with_gradient(trainer.model)
    # each stage trains its own parameters
    resolution_starts = getattr(trainer, "resolution_starts", ())
    if starts := resolution_starts or getattr(trainer.options, "stage_starts", ()):
        _, dataset, trainer = build_training_objects(*small_overrides(recipe))
        reached = set()
        for start in starts:
            trainer.global_step = start
            advance(trainer, dataset, 1)
            reached |= parameters_with_gradient(trainer.model)
    trainable = {
        id(p) for opt in trainer.optimizers.values() for g in opt.param_groups for p in g["params"]
    }
    for name, p in trainer.model.named_parameters():
        if name.partition(".")[0] in PART_NAMES:  # pretrained
            assert not p.requires_grad and id(p) not in trainable
            continue
        assert id(p) in trainable, f"no optimizer has {name}"
        assert name in reached, name


def parameters_with_gradient(model) -> set[str]:
    """Return the names of the parameters with a nonzero gradient; gradients must be finite."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    return {name for name, grad in grads.items() if grad.abs().max() > 0}


@each_recipe(trainer_name)
def test_same_seed_gives_same_samples(recipe):
    dataset, trainer = trained(recipe)
    model = trainer.eval_model()
    if "sample" not in abilities(model):
        pytest.skip(f"{recipe} does not sample")
    options = few(model.sample)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.sample(3, **options))
    a, b, c = draws
    assert a.shape == (3, *dataset.spec.shape)
    assert torch.isfinite(a).all()
    assert torch.equal(a, b) and not torch.equal(a, c)
    if dataset.spec.kind == "image":
        low, high = dataset.spec.range
        assert a.min() >= low - 1e-4 and a.max() <= high + 1e-4


@each_recipe(model_class)
def test_every_sampler_of_a_model_samples(recipe):
    dataset, trainer = trained(recipe)
    model = trainer.eval_model()
    for name in model.samplers:
        assert model.sample(2, sampler=name, steps=3).shape == (2, *dataset.spec.shape)


@each_recipe()
def test_abilities_return_the_documented_shapes(recipe):
    dataset, trainer = trained(recipe)
    with torch.no_grad():
        check_abilities(dataset, trainer)


def check_abilities(dataset, trainer) -> None:
    model = trainer.eval_model()
    has = abilities(model)
    batch = trainer.device.to_device(dataset.head("validation", 3))
    x, y = batch.x, batch.y
    usable = {"sample", "encode", "translate", "forecast"}
    assert has & usable, "the model has no ability that a command uses"
    if "translate" in has:
        check_translation(model, batch, dataset.spec)
    if "forecast" in has:
        check_forecasts(model, batch)
    if "encode" in has:
        z = model.encode(x, **few(model.encode))
        assert len(z) == 3 and torch.equal(z, model.encode(x, **few(model.encode))), (
            "codes must be deterministic"
        )
        if "decode" in has:
            assert model.decode(z, **few(model.decode)).shape == x.shape
    if "posterior" in has:
        mean, log_var = model.posterior(x, y)
        assert mean.shape == log_var.shape == (3, mean.shape[1]) and torch.isfinite(mean).all()
    if "prior" in has:
        assert model.decode(model.prior(2), **few(model.decode)).shape == (2, *dataset.spec.shape)
    nats = {
        "log_prob": lambda: model.log_prob(x),
        "elbo": lambda: model.elbo(x, **few(model.elbo)),
        "iwae": lambda: model.iwae(x, 4),
        "energy": lambda: model.energy(x),
    }
    for part in model.modules():
        if hasattr(part, "num_temperatures"):
            part.num_temperatures = 50  # fewer make annealed importance sampling fast
    for verb in has & set(nats):
        value = nats[verb]()
        assert value.shape == (3,) and torch.isfinite(value).all(), verb
    if "log_partition" in has:
        z = model.log_partition()
        assert (
            isinstance(z, Estimate)
            and z.tag in ("exact", "estimate")
            and (z.error is None) == (z.tag == "exact")
        )


def check_forecasts(model, batch) -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(model.forecast(batch.cond, 2))
    a, b, c = results
    assert a.shape == (2, *batch.x.shape) and torch.isfinite(a).all()
    assert torch.equal(a, b) and not torch.equal(a, c)
    if "forecast_log_prob" in abilities(model):
        log_p = model.forecast_log_prob(batch.x, batch.cond)
        assert log_p.shape == (len(batch.x),) and torch.isfinite(log_p).all()


def few(verb: Callable[..., object]) -> dict[str, int]:
    """Return options that make an ability fast: few sampling steps, few terms of a bound."""
    parameters = inspect.signature(verb).parameters
    return {name: 4 for name in ("steps", "num_terms") if name in parameters}


def check_translation(model, batch, spec) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)  # a translator may be random
        results.append(model.translate(batch.cond))
    assert (
        results[0].shape == batch.x.shape
        and torch.isfinite(results[0]).all()
        and torch.equal(*results)
    )
    low, high = spec.range
    assert results[0].min() >= low - 1e-4 and results[0].max() <= high + 1e-4
    multiple = model.size_multiple
    assert isinstance(multiple, int) and multiple >= 0
    if multiple and spec.kind == "image":  # sources of other sizes are padded to a multiple
        height, width = (side + 2 * multiple - side % multiple for side in batch.cond.shape[-2:])
        larger = model.translate(
            batch.cond.new_zeros(2, batch.cond.shape[1], height, width + multiple)
        )
        times = spec.shape[-1] // spec.source.shape[-1]
        assert larger.shape == (2, spec.shape[0], height * times, (width + multiple) * times)


def conditional_override(config: dict) -> str | None:
    """Return the override that makes a recipe's model conditional; None without such a form.

    The option belongs to the model or to the pretrained part whose conditions the model takes over.
    """
    model = config["model"]
    if "conditional" in model:
        return "model.conditional=true"
    if "diffusion" in model:
        return "model.diffusion.conditional=true"
    name = pretrained_part_name(config)
    if name is None:
        return None
    return f"{name}.train={[*config[name]['train'], 'model.conditional=true']}"


@each_recipe(conditional_kind)
def test_conditional_model_samples_the_requested_classes(recipe):
    dataset, trainer = trained(recipe)
    override = conditional_override(compose_config(*small_overrides(recipe)))
    if not trainer.model.conditional and override is None:
        pytest.skip(f"{recipe} does not support labels")
    if not dataset.spec.num_classes:
        pytest.skip(f"the data of {recipe} has no classes")
    if trainer.model.text_conditional:
        pytest.skip(f"{recipe} is conditioned on captions")
    option = () if trainer.model.conditional else (override,)
    _, dataset, trainer = build_training_objects(*small_overrides(recipe), *option)
    advance(trainer, dataset, 1)
    model = trainer.eval_model()
    options = few(model.sample)
    y = torch.tensor([3, 7]) % dataset.spec.num_classes
    assert model.sample(2, y, **options).shape == (2, *dataset.spec.shape)
    assert model.sample(2, **options).shape == (2, *dataset.spec.shape)
