"""Diffusion in the codes of an autoencoder: what is encoded, how it is scaled, and that a run needs no other folder."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import run_here
from recipes import built

from genlab.errors import UserError
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.latent import LatentDiffusion
from genlab.spec import Batch, Spec

SMALL = ("experiment=ldm_mnist", "dataset=digits", "prepare.size=16", "device=cpu", "out=unused", "trainer.batch_size=8")
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
    return LatentDiffusion(LINEAR, codec=Halves, diffusion=lambda spec: EDM(spec, backbone=tiny, **options))


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
    torch.testing.assert_close(ldm.sample(5), x[:5, :, :, ::2].repeat_interleave(2, -1), atol=1e-5, rtol=1e-5)
    assert torch.isfinite(ldm.loss(Batch(x[:9]))["loss"])


def test_the_codec_stays_as_it_is():
    ldm = model().train()
    assert not ldm.codec.training and ldm.inner.training
    assert not any(p.requires_grad for p in ldm.codec.parameters())
    ldm.loss(Batch(torch.randn(4, 2, 8, 8)))["loss"].backward()
    assert ldm.inner.network.zero.grad is not None


def test_a_batch_of_the_trainer_is_codes_made_once():
    _, dataset, trainer = built(*SMALL)
    codes = trainer.model.codec.encode(dataset.take("train", 32).x)
    calls, encode = [], trainer.model.codec.encode
    trainer.model.codec.encode = lambda x: calls.append(len(x)) or encode(x)
    batches = trainer.stream(dataset)
    assert sum(calls) == dataset.size("train")
    batch = next(batches)
    assert batch.x.shape[1:] == codes.shape[1:] and batch.y is not None and sum(calls) == dataset.size("train")
    assert trainer.model.std != 1
    before = {k: v.clone() for k, v in trainer.model.codec.state_dict().items()}
    for _ in range(2):
        trainer.advance(batches)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.codec.state_dict().items())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: LatentDiffusion(LINEAR, diffusion=EDM), "codec.run"),
        (lambda: LatentDiffusion(LINEAR, codec=lambda spec: torch.nn.Linear(2, 2), diffusion=EDM), "encode and decode"),
        (lambda: LatentDiffusion(LINEAR, codec=Halves, diffusion=lambda spec: torch.nn.Identity()), "no diffusion model"),
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
    mine = next((tmp_path / "outputs/codecs").glob("*"))
    wrong = run_here("train", *train, "prepare.size=8", f"codec.run={mine}", "out=wrong", cwd=tmp_path)
    assert wrong.code and "prepare=" in wrong.error
    shutil.rmtree(tmp_path / "outputs")
    assert run_here("sample", "run=run", "n=4", "device=cpu", cwd=tmp_path).code == 0
    resumed = run_here("train", "resume=run", "trainer.steps=5", cwd=tmp_path)
    assert resumed.code == 0, resumed.error
