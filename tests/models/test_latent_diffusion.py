"""Diffusion in the codes of an autoencoder: what is encoded, how it is scaled, and that a run needs no other folder."""

from __future__ import annotations

import inspect
import re
import shutil

import pytest
import torch
from helpers.cli_runner import run_here
from helpers.recipes import CONFIGS, built, small, typed
from omegaconf import OmegaConf

from genlab.builders import factory
from genlab.config.instantiate import locate
from genlab.config.recipes import recipes
from genlab.errors import UserError
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.latent_diffusion import LatentDiffusion
from genlab.runs.run_folder import RunFolder
from genlab.spec import Batch, Spec

MODELS = {
    r.name: locate({"_target_": r.target}, r.name)
    for r in recipes()
    if {"encode", "decode"} <= r.abilities()
}
SLOW = [
    name for name, of in MODELS.items() if "steps" in inspect.signature(of.encode).parameters
]  # hundreds of evaluations
CODECS = [name for name in MODELS if name not in SLOW]
SMALL = (
    "experiment=ldm_mnist",
    "dataset=digits",
    "prepare.size=16",
    "device=cpu",
    "out=unused",
    "trainer.batch_size=8",
)
LINEAR = Spec((2, 8, 8), classes=4)


class Halves(torch.nn.Module):
    """A codec whose code is an image's even columns, times three and plus one, and which loses the odd ones."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def encode(self, x):
        return x[..., ::2] * self.scale + 1

    def decode(self, z):
        return ((z - 1) / self.scale).repeat_interleave(2, -1)


def model(**options) -> LatentDiffusion:
    torch.manual_seed(0)
    return LatentDiffusion(
        LINEAR, codec=Halves, diffusion=lambda spec: EDM(spec, backbone=tiny, **options)
    )


def tiny(shape, *, outputs, classes):
    return Probe(shape)


class Probe(torch.nn.Module):
    """A network that remembers what it saw, and answers 0."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, y=None):
        self.seen = x
        return self.zero * x


def test_codes_have_unit_variance_and_are_decoded_from_what_was_encoded():
    ldm, x = model(), torch.randn(2000, 2, 8, 8) * 0.4 + 0.2
    codes = ldm.codec.encode(x)
    ldm.standardise(codes)
    scaled = (codes - ldm.mean) / ldm.std
    assert scaled.mean().abs() < 1e-5 and scaled.std().item() == pytest.approx(1, abs=1e-5)
    # a sampler that gives the codes of x gives x's even columns
    ldm.inner.sample = lambda n, y, **how: scaled[:n]
    torch.testing.assert_close(
        ldm.sample(5), x[:5, :, :, ::2].repeat_interleave(2, -1), atol=1e-5, rtol=1e-5
    )
    assert torch.isfinite(ldm.loss(Batch(x[:9]))["loss"])


def test_the_codec_stays_as_it_is():
    ldm = model().train()
    assert not ldm.codec.training and ldm.inner.training
    assert not any(p.requires_grad for p in ldm.codec.parameters())
    ldm.loss(Batch(torch.randn(4, 2, 8, 8)))["loss"].backward()
    assert ldm.inner.network.zero.grad is not None


def test_it_is_asked_through_its_codes():
    """A network that answers 0 is EDM's best denoiser of N(0, σ_data²): its ODE is known, and goes there and back."""
    ldm, x = model().double(), torch.randn(6, 2, 8, 8, dtype=torch.float64)
    ldm.standardise(ldm.codec.encode(x))
    z = ldm.encode(x)
    assert z.shape == (6, 2, 8, 4) == ldm.prior(6).shape
    scaled = (ldm.codec.encode(x) - ldm.mean) / ldm.std
    torch.testing.assert_close(z, scaled / 0.5, rtol=0.01, atol=0)  # σ_data: to unit variance
    even = x[..., ::2].repeat_interleave(2, -1)
    torch.testing.assert_close(ldm.decode(z), even, rtol=0.01, atol=0.01)
    torch.testing.assert_close(ldm.edit(x, 0.0), even)
    assert ldm.noise_error(x, terms=3).shape == (6,)


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory):
    """`codec_run("vae")`: the folder of an untrained run of the recipe."""

    def make(recipe: str):
        config, dataset, trainer = built(*small(recipe))
        info = {"model": recipe, "spec": dataset.spec.to_json(), "choices": {}}
        run = RunFolder.create(
            tmp_path_factory.mktemp("codec") / recipe, config=OmegaConf.to_yaml(config), info=info
        )
        run.save(trainer.state(), keep=1)
        return run.path, dataset, trainer.model

    return make


def assembled(path, recipe: str, *more: str):
    """Return what `genlab train model=ldm codec.run=<path>` makes, on the recipe's own data set."""
    own = re.search(r"override /dataset: (\w+)", (CONFIGS / f"model/{recipe}.yaml").read_text())
    data = (f"dataset={own[1]}",) if own else ()
    return factory.assemble(typed(*small("ldm"), *data, f"codec.run={path}", *more))


@pytest.mark.parametrize("recipe", CODECS)
def test_whatever_encodes_and_decodes_is_a_codec(recipe, codec_run):
    path, theirs, codec = codec_run(recipe)
    config, dataset, trainer = assembled(path, recipe)
    ldm, x = trainer.model, dataset.take("train", 4).x
    assert dataset.spec == theirs.spec and torch.equal(x, theirs.take("train", 4).x)
    assert all(torch.equal(v, ldm.codec.state_dict()[k]) for k, v in codec.state_dict().items())
    assert (
        list(config["prepare"]) == list(typed(*small("ldm"))["prepare"])
        and config["prepare"]["range"] is not None
    )
    ldm.loss(Batch(x, torch.zeros(4, dtype=torch.long)))["loss"].backward()
    assert any(p.grad is not None for p in ldm.inner.parameters())
    assert ldm.sample(2, steps=2).shape == (2, *dataset.spec.shape)


def test_the_data_is_prepared_as_it_was_for_the_codec_or_refused(codec_run):
    path, theirs, _ = codec_run("vae")
    _, dataset, _ = assembled(
        path, "vae", "prepare.range=[0,1]", "prepare.binarize=threshold", "prepare.size=8"
    )
    assert (
        dataset.spec == theirs.spec and dataset.binarize == "threshold"
    )  # what is asked for and fits stays
    for asked, said in {
        "prepare.range=[-1,1]": r"in \[0, 1\], binary, and this data is image of shape \[1, 8, 8\] in \[-1, 1\], binary",
        "prepare.binarize=none": r"in \[0, 1\]; leave prepare= out",
        "prepare.size=16": r"\[1, 16, 16\]",
    }.items():
        with pytest.raises(UserError, match=said):
            assembled(path, "vae", asked)


def test_mirrored_items_have_codes_of_their_own():
    _, dataset, trainer = built(*SMALL, "prepare.flip=true")
    codec, x, y = trainer.model.codec, *dataset.arrays("train")
    codes = dataset.mapped("train", codec.encode)
    z, of = codes.arrays("train")
    n = dataset.size("train")
    assert (
        dataset.prepare.flip and codes.size("train") == 2 * n and torch.equal(of, torch.cat([y, y]))
    )
    prepared = dataset.prepare(x[:5], torch.Generator())
    torch.testing.assert_close(z[:5], codec.encode(prepared).detach())
    torch.testing.assert_close(z[n : n + 5], codec.encode(prepared.flip(-1)).detach())
    held = dataset.mapped("validation", codec.encode)  # nothing that is measured is mirrored
    assert held.size("validation") == dataset.size("validation")


def test_a_batch_of_the_trainer_is_codes_made_once():
    _, dataset, trainer = built(*SMALL)
    codes = trainer.model.codec.encode(dataset.take("train", 32).x)
    calls, encode = [], trainer.model.codec.encode
    trainer.model.codec.encode = lambda x: calls.append(len(x)) or encode(x)
    batches = trainer.stream(dataset)
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
        trainer.advance(batches)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.codec.state_dict().items())


def test_codes_are_those_of_the_codec_that_a_checkpoint_brings():
    """A trainer is checked, and asked for a stream, before it takes over the state of the run that goes on."""
    (_, dataset, before), (_, _, after) = built(*SMALL), built(*SMALL)
    with torch.no_grad():
        for p in before.model.codec.parameters():
            p.mul_(1.5)
    before.stream(dataset)
    after.stream(dataset)
    after.load(before.state())
    torch.testing.assert_close(
        next(after.stream(dataset)).x, next(before.stream(dataset)).x, rtol=0, atol=0
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
                LINEAR, codec=Halves, diffusion=lambda spec: torch.nn.Identity()
            ),
            "no diffusion model",
        ),
    ],
)
def test_refusals(act, words):
    with pytest.raises(UserError, match=words):
        act()


def test_one_command_trains_both_and_the_run_stands_alone(tmp_path):
    train = ("experiment=ldm_mnist", "dataset=digits", "prepare.size=16", "trainer.steps=3", "trainer.batch_size=8", "device=cpu",
             "trainer.preview_every=0", "model.diffusion.timesteps=10",
             "codec.train=['experiment=vq_vae_mnist','trainer.steps=2','model.latent=4','trainer.preview_every=0']")  # fmt: skip
    done = run_here("train", *train, "out=run", cwd=tmp_path)
    assert done.code == 0, done.error
    again = run_here("train", *train, "out=other", cwd=tmp_path)  # the codec is there
    assert again.code == 0 and "there already" in again.err
    mine = next((tmp_path / "outputs/parts").glob("*"))
    wrong = run_here(
        "train", *train, "prepare.size=8", f"codec.run={mine}", "out=wrong", cwd=tmp_path
    )
    assert wrong.code and "prepare=" in wrong.error
    bare = shutil.copytree(
        tmp_path / "run", tmp_path / "bare", ignore=shutil.ignore_patterns("step_*")
    )
    begun = run_here(
        "train", f"resume={bare}", cwd=tmp_path
    )  # it was killed before its first checkpoint
    assert begun.code == 0, begun.error
    trained, other = (RunFolder(folder).load()["model"] for folder in (mine, bare))
    assert all(torch.equal(v, other[f"codec.{k}"]) for k, v in trained.items())
    shutil.rmtree(tmp_path / "outputs")
    assert run_here("sample", "run=run", "n=4", "device=cpu", cwd=tmp_path).code == 0
    resumed = run_here("train", "resume=run", "trainer.steps=5", cwd=tmp_path)
    assert resumed.code == 0, resumed.error
