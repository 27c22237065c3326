"""Latent diffusion: codecs, scaling of codes, and self-contained runs."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from helpers.cli_runner import run_here
from helpers.kinds import first_of_each_kind
from helpers.recipes import (
    CONFIGS,
    QUICK_FIRST,
    build_training_objects,
    compose_command,
    small_overrides,
    trainer_name,
)
from omegaconf import OmegaConf

from genlab.builders import factory
from genlab.config.instantiate import import_target
from genlab.config.recipes import list_recipes
from genlab.errors import UserError
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.latent_diffusion import LatentDiffusion
from genlab.runs.run_folder import RunFolder
from genlab.spec import Batch, DataSpec

MODELS = {
    r.name: import_target({"_target_": r.target}, r.name)
    for r in list_recipes()
    if {"encode", "decode"} <= r.abilities()
}
# Models whose codes take hundreds of network evaluations.
SLOW = [name for name, cls in MODELS.items() if issubclass(cls, Diffusion | LatentDiffusion)]
CODECS = [name for name in MODELS if name not in SLOW]
SMALL = (
    "experiment=ldm_mnist",
    "dataset=digits",
    "preprocess.size=16",
    "device=cpu",
    "out=unused",
    "trainer.batch_size=8",
)
LINEAR = DataSpec((2, 8, 8), num_classes=4)


class EvenColumns(torch.nn.Module):
    """A codec whose code is the even columns of an image, times three, plus one.

    The odd columns are lost.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def encode(self, x):
        return x[..., ::2] * self.scale + 1

    def decode(self, z):
        return ((z - 1) / self.scale).repeat_interleave(2, -1)


def make_ldm(**options) -> LatentDiffusion:
    torch.manual_seed(0)
    return LatentDiffusion(
        LINEAR, codec=EvenColumns, diffusion=lambda spec: EDM(spec, backbone=make_probe, **options)
    )


def make_probe(shape, *, outputs, num_classes):
    return ZeroNetwork(shape)


class ZeroNetwork(torch.nn.Module):
    """A network that stores its input and returns 0."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, y=None):
        self.seen = x
        return self.zero * x


def test_codes_are_scaled_to_unit_variance_and_back():
    ldm, x = make_ldm(), torch.randn(2000, 2, 8, 8) * 0.4 + 0.2
    codes = ldm.codec.encode(x)
    ldm.fit_code_statistics(codes)
    scaled = (codes - ldm.mean) / ldm.std
    assert scaled.mean().abs() < 1e-5 and scaled.std().item() == pytest.approx(1, abs=1e-5)
    # if the diffusion model samples the codes of x, the samples are x's even columns
    ldm.diffusion.sample = lambda n, y, **how: scaled[:n]
    torch.testing.assert_close(
        ldm.sample(5), x[:5, :, :, ::2].repeat_interleave(2, -1), atol=1e-5, rtol=1e-5
    )
    assert torch.isfinite(ldm.loss(Batch(x[:9]))["loss"])


def test_codec_is_frozen():
    ldm = make_ldm().train()
    assert not ldm.codec.training and ldm.diffusion.training
    assert not any(p.requires_grad for p in ldm.codec.parameters())
    ldm.loss(Batch(torch.randn(4, 2, 8, 8)))["loss"].backward()
    assert ldm.diffusion.network.zero.grad is not None


def test_abilities_act_on_the_codes():
    """A zero network is EDM's optimal denoiser of N(0, σ_data²), whose ODE is known."""
    ldm, x = make_ldm().double(), torch.randn(6, 2, 8, 8, dtype=torch.float64)
    ldm.fit_code_statistics(ldm.codec.encode(x))
    z = ldm.encode(x)
    assert z.shape == (6, 2, 8, 4) == ldm.prior(6).shape
    scaled = (ldm.codec.encode(x) - ldm.mean) / ldm.std
    torch.testing.assert_close(z, scaled / 0.5, rtol=0.01, atol=0)  # σ_data: to unit variance
    even = x[..., ::2].repeat_interleave(2, -1)
    torch.testing.assert_close(ldm.decode(z), even, rtol=0.01, atol=0.01)
    torch.testing.assert_close(ldm.edit(x, 0.0), even)
    assert ldm.eps_mse(x, num_terms=3).shape == (6,)


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory):
    """`codec_run("vae")`: the folder of an untrained run of the recipe."""

    def make(recipe: str):
        config, dataset, trainer = build_training_objects(*small_overrides(recipe))
        info = {"model": recipe, "spec": dataset.spec.to_json(), "choices": {}}
        run = RunFolder.create(
            tmp_path_factory.mktemp("codec") / recipe,
            config=OmegaConf.to_yaml(config),
            metadata=info,
        )
        run.save_checkpoint(trainer.state_dict(), keep=1)
        return run.path, dataset, trainer.model

    return make


def build_ldm(path, recipe: str, *more: str):
    """Build `genlab train model=ldm codec.run=<path>` on the dataset of the codec's recipe."""
    own = re.search(r"override /dataset: (\w+)", (CONFIGS / f"model/{recipe}.yaml").read_text())
    data = (f"dataset={own[1]}",) if own else ()
    return factory.build_dataset_and_trainer(
        compose_command(*small_overrides("ldm"), *data, f"codec.run={path}", *more)
    )


@pytest.mark.parametrize(
    "recipe", first_of_each_kind((r for r in QUICK_FIRST if r in CODECS), trainer_name)
)
def test_every_model_that_encodes_and_decodes_is_a_codec(recipe, codec_run):
    path, theirs, codec = codec_run(recipe)
    config, dataset, trainer = build_ldm(path, recipe)
    ldm, x = trainer.model, dataset.head("train", 4).x
    assert dataset.spec == theirs.spec and torch.equal(x, theirs.head("train", 4).x)
    assert all(torch.equal(v, ldm.codec.state_dict()[k]) for k, v in codec.state_dict().items())
    assert (
        list(config["preprocess"]) == list(compose_command(*small_overrides("ldm"))["preprocess"])
        and config["preprocess"]["range"] is not None
    )
    ldm.loss(Batch(x, torch.zeros(4, dtype=torch.long)))["loss"].backward()
    assert any(p.grad is not None for p in ldm.diffusion.parameters())
    assert ldm.sample(2, steps=2).shape == (2, *dataset.spec.shape)


def test_data_is_preprocessed_as_for_the_codec(codec_run):
    path, theirs, _ = codec_run("vae")
    _, dataset, _ = build_ldm(
        path, "vae", "preprocess.range=[0,1]", "preprocess.binarize=threshold", "preprocess.size=8"
    )
    assert (
        dataset.spec == theirs.spec and dataset.binarize == "threshold"
    )  # a matching option is accepted
    for override, message in {
        "preprocess.range=[-1,1]": r"in \[0, 1\], binary, but this data is image of shape "
        r"\[1, 8, 8\] in \[-1, 1\], binary",
        "preprocess.binarize=none": r"in \[0, 1\]; leave preprocess= out",
        "preprocess.size=16": r"\[1, 16, 16\]",
    }.items():
        with pytest.raises(UserError, match=message):
            build_ldm(path, "vae", override)


def test_mirrored_items_are_encoded_too():
    _, dataset, trainer = build_training_objects(*SMALL, "preprocess.flip=true")
    codec, x, y = trainer.model.codec, *dataset.raw_items_and_labels("train")
    codes = dataset.map_split("train", codec.encode)
    z, of = codes.raw_items_and_labels("train")
    n = dataset.size("train")
    assert (
        dataset.preprocess.flip
        and codes.size("train") == 2 * n
        and torch.equal(of, torch.cat([y, y]))
    )
    prepared = dataset.preprocess(x[:5], torch.Generator())
    torch.testing.assert_close(z[:5], codec.encode(prepared).detach())
    torch.testing.assert_close(z[n : n + 5], codec.encode(prepared.flip(-1)).detach())
    held = dataset.map_split("validation", codec.encode)  # evaluation data is not mirrored
    assert held.size("validation") == dataset.size("validation")


def test_trainer_encodes_each_item_once():
    _, dataset, trainer = build_training_objects(*SMALL)
    codes = trainer.model.codec.encode(dataset.head("train", 32).x)
    calls, encode = [], trainer.model.codec.encode
    trainer.model.codec.encode = lambda x: calls.append(len(x)) or encode(x)
    batches = trainer.train_batches(dataset)
    assert sum(calls) == dataset.size("train")
    batch = next(batches)
    assert (
        batch.x.shape[1:] == codes.shape[1:]
        and batch.y is not None
        and sum(calls) == dataset.size("train")
    )
    assert trainer.model.std != 1
    before = {k: v.clone() for k, v in trainer.model.codec.state_dict().items()}
    for _ in range(2):
        trainer.train_step(batches)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.codec.state_dict().items())


def test_codes_are_recomputed_with_the_codec_of_a_checkpoint():
    """A trainer may request batches before it loads the state of the resumed run."""
    (_, dataset, before), (_, _, after) = (
        build_training_objects(*SMALL),
        build_training_objects(*SMALL),
    )
    with torch.no_grad():
        for p in before.model.codec.parameters():
            p.mul_(1.5)
    before.train_batches(dataset)
    after.train_batches(dataset)
    after.load_state_dict(before.state_dict())
    torch.testing.assert_close(
        next(after.train_batches(dataset)).x, next(before.train_batches(dataset)).x, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: LatentDiffusion(LINEAR, diffusion=EDM), "codec.run"),
        (
            lambda: LatentDiffusion(
                LINEAR, codec=lambda spec: torch.nn.Linear(2, 2), diffusion=EDM
            ),
            "encode and decode",
        ),
        (
            lambda: LatentDiffusion(
                LINEAR, codec=EvenColumns, diffusion=lambda spec: torch.nn.Identity()
            ),
            "must be a diffusion model",
        ),
    ],
)
def test_error_names_the_fix(act, words):
    with pytest.raises(UserError, match=words):
        act()


def test_one_command_trains_both_and_the_run_is_self_contained(tmp_path):
    train = (
        "experiment=ldm_mnist",
        "dataset=digits",
        "preprocess.size=16",
        "trainer.steps=3",
        "trainer.batch_size=8",
        "device=cpu",
        "trainer.preview_every=0",
        "model.diffusion.timesteps=10",
        "model.diffusion.backbone.map_backbone.channels=16",
        "model.diffusion.backbone.map_backbone.num_blocks=1",
        "codec.train=['experiment=vq_vae_mnist','trainer.steps=2','trainer.batch_size=8',"
        "'model.latent=4','model.channels=16','model.num_blocks=1','trainer.preview_every=0']",
    )
    done = run_here("train", *train, "out=run", cwd=tmp_path)
    assert done.code == 0, done.error
    again = run_here("train", *train, "out=other", cwd=tmp_path)  # the codec exists
    assert again.code == 0 and "already trained" in again.err
    mine = next((tmp_path / "outputs/parts").glob("*"))
    wrong = run_here(
        "train", *train, "preprocess.size=8", f"codec.run={mine}", "out=wrong", cwd=tmp_path
    )
    assert wrong.code and "preprocess=" in wrong.error
    bare = shutil.copytree(
        tmp_path / "run", tmp_path / "bare", ignore=shutil.ignore_patterns("step_*")
    )
    begun = run_here(
        "train", f"resume={bare}", cwd=tmp_path
    )  # a run killed before its first checkpoint
    assert begun.code == 0, begun.error
    trained, other = (RunFolder(folder).load_checkpoint()["model"] for folder in (mine, bare))
    assert all(torch.equal(v, other[f"codec.{k}"]) for k, v in trained.items())
    shutil.rmtree(tmp_path / "outputs")
    assert run_here("sample", "run=run", "n=4", "device=cpu", cwd=tmp_path).code == 0
    resumed = run_here("train", "resume=run", "trainer.steps=5", cwd=tmp_path)
    assert resumed.code == 0, resumed.error
