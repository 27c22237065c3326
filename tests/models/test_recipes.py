"""What every recipe owes, whichever family it is of: a new file in configs/model/ is tested with no edit here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from helpers.recipes import RECIPES, built, composed, same, small

from genlab.abilities import Estimate, abilities
from genlab.builders.pretrained import PARTS, part_of
from genlab.runs.run_folder import RunFolder

STEPS = 3


def each():
    """Run a test for each recipe, a recipe's tests in one process, so that they share its training."""
    return pytest.mark.parametrize(
        "recipe", [pytest.param(r, marks=pytest.mark.xdist_group(r)) for r in RECIPES]
    )


@lru_cache(
    maxsize=2
)  # a recipe's tests come one after another; all models at once were many gigabytes
def trained(recipe: str):
    """Return (dataset, trainer) after STEPS steps."""
    _, dataset, trainer = built(*small(recipe))
    advance(trainer, dataset, STEPS)
    return dataset, trainer


def advance(trainer, dataset, steps: int) -> None:
    batches = trainer.stream(dataset)
    for _ in range(steps):
        trainer.advance(batches)


@each()
def test_resumes_bit_for_bit_from_its_file(recipe, tmp_path):
    dataset, undisturbed = trained(recipe)
    overrides = small(recipe)
    _, _, first = built(*overrides)
    advance(first, dataset, 1)
    run = RunFolder.create(tmp_path / "run", config="", info={})
    run.save(first.state(), keep=3)
    del first
    _, _, second = built(*overrides)
    torch.manual_seed(12345)  # what a new process would have: another random state
    second.load(run.load())
    advance(second, dataset, STEPS - 1)
    a, b = undisturbed.state(), second.state()
    assert [key for key in a if key != "seconds" and not same(a[key], b[key])] == []


@each()
def test_gradients_reach_every_parameter(recipe):
    _, trainer = trained(recipe)
    if not trainer.optimizers:  # a fit in closed form: it must have set every parameter; a single number may be right already
        start = dict(built(*small(recipe))[2].model.named_parameters())
        same_ = [
            name
            for name, p in trainer.model.named_parameters()
            if p.numel() > 1 and torch.equal(p, start[name])
        ]
        assert not same_ and not any(p.requires_grad for p in start.values())
        return
    reached = moved(trainer.model)
    if starts := getattr(
        trainer, "starts", getattr(trainer.options, "starts", ())
    ):  # stages, each trains parameters of its own
        _, dataset, trainer = built(*small(recipe))
        reached = set()
        for start in starts:
            trainer.at = start
            advance(trainer, dataset, 1)
            reached |= moved(trainer.model)
    trainable = {
        id(p) for opt in trainer.optimizers.values() for g in opt.param_groups for p in g["params"]
    }
    for name, p in trainer.model.named_parameters():
        if name.partition(".")[0] in PARTS:  # trained before
            assert not p.requires_grad and id(p) not in trainable
            continue
        assert id(p) in trainable, f"no optimizer has {name}"
        assert name in reached, name


def moved(model) -> set[str]:
    """Return the names of the parameters that have a gradient; it must be finite."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    return {name for name, grad in grads.items() if grad.abs().max() > 0}


@each()
def test_same_seed_same_samples(recipe):
    dataset, trainer = trained(recipe)
    model = trainer.sampler()
    if "sample" not in abilities(model):
        pytest.skip(f"{recipe} is no distribution")
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


@each()
def test_every_sampler_it_names_samples(recipe):
    dataset, trainer = trained(recipe)
    model = trainer.sampler()
    for name in getattr(model, "samplers", ()):
        assert model.sample(2, sampler=name, steps=3).shape == (2, *dataset.spec.shape)


@each()
def test_every_ability_keeps_its_contract(recipe):
    dataset, trainer = trained(recipe)
    with torch.no_grad():
        check_abilities(dataset, trainer)


def check_abilities(dataset, trainer) -> None:
    model = trainer.sampler()
    has = abilities(model)
    batch = trainer.device.ready(dataset.take("validation", 3))
    x, y = batch.x, batch.y
    assert has & {"sample", "encode", "translate"}, "there is nothing that it can be asked"
    if "translate" in has:
        check_translation(model, batch, dataset.spec)
    if "encode" in has:
        z = model.encode(x, **few(model.encode))
        assert len(z) == 3 and torch.equal(z, model.encode(x, **few(model.encode))), (
            "a code has no noise"
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
        if hasattr(part, "temperatures"):
            part.temperatures = 50  # of annealed importance sampling: many are precise and slow
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


def few(verb: Callable[..., object]) -> dict[str, int]:
    """Return the options of an ability that make it fast: few steps on a path, few terms of a bound."""
    takes = inspect.signature(verb).parameters
    return {name: 4 for name in ("steps", "terms") if name in takes}


def check_translation(model, batch, spec) -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(0)  # a translator may draw
        made.append(model.translate(batch.cond))
    assert made[0].shape == batch.x.shape and torch.isfinite(made[0]).all() and torch.equal(*made)
    low, high = spec.range
    assert made[0].min() >= low - 1e-4 and made[0].max() <= high + 1e-4
    multiple = getattr(model, "multiple", 1)
    assert isinstance(multiple, int) and multiple >= 0
    if multiple and spec.kind == "image":  # sources of other sizes are padded to a multiple
        height, width = (side + 2 * multiple - side % multiple for side in batch.cond.shape[-2:])
        larger = model.translate(
            batch.cond.new_zeros(2, batch.cond.shape[1], height, width + multiple)
        )
        times = spec.shape[-1] // spec.source.shape[-1]
        assert larger.shape == (2, spec.shape[0], height * times, (width + multiple) * times)


def conditional(config: dict) -> str:
    """Return the override that makes a recipe's model conditional, by itself or by the part that it takes its conditions from."""
    model = config["model"]
    if "conditional" in model or "diffusion" in model:
        return f"model.{'' if 'conditional' in model else 'diffusion.'}conditional=true"
    name = part_of(config)
    return f"{name}.train={[*config[name]['train'], 'model.conditional=true']}"


@each()
def test_conditional_form_draws_the_class_asked_for(recipe):
    dataset, trainer = trained(recipe)
    if not hasattr(trainer.model, "conditional"):
        pytest.skip(f"{recipe} has no conditional form")
    if not dataset.spec.classes:
        pytest.skip(f"{recipe}'s data has no classes")
    if getattr(trainer.model, "prompted", False):
        pytest.skip(f"{recipe} is told captions in the place of classes")
    option = () if trainer.model.conditional else (conditional(composed(*small(recipe))),)
    _, dataset, trainer = built(*small(recipe), *option)
    advance(trainer, dataset, 1)
    model = trainer.sampler()
    options = few(model.sample)
    y = torch.tensor([3, 7])
    assert model.sample(2, y, **options).shape == (2, *dataset.spec.shape)
    assert model.sample(2, **options).shape == (2, *dataset.spec.shape)
