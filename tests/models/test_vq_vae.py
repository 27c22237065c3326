"""The VQ-VAE's codebook against its definitions: nearest vectors, straight-through gradient, running means, revival."""

from __future__ import annotations

import pytest
import torch
from helpers.recipes import SMALL, built

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae.vq_vae import VQVAE, perplexity
from genlab.spec import Spec

IMAGE = Spec((1, 8, 8))


def build(spec: Spec = IMAGE, **options) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(spec, **({"channels": 6, "codes": 7, "latent": 3} | options)).double()


def test_a_code_is_the_nearest_vector():
    model, z = build(), torch.randn(4, 3, 2, 5, dtype=torch.float64)
    distances = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), model.codebook)  # (40, 7)
    assert torch.equal(model.nearest(z).flatten(), distances.argmin(1))
    assert torch.equal(model.quantise(z)[1], model.nearest(z))
    torch.testing.assert_close(model.quantise(z)[0], model.lookup(model.nearest(z)))
    assert torch.equal(model.nearest(model.lookup(model.nearest(z))), model.nearest(z)), (
        "a vector is its own code"
    )


def test_the_gradient_passes_straight_through():
    """∂z_q/∂z_e is the identity, and the commitment alone moves z_e toward its vector, with weight 2 beta / values."""
    model, z = build(), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: model.quantise(z)[0], z).reshape(12, 12)
    torch.testing.assert_close(jacobian, torch.eye(12, dtype=torch.float64), atol=0, rtol=0)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    model.encoder, model.decoder = torch.nn.Identity(), torch.nn.Identity()
    model.codebook = torch.randn(7, 1, dtype=torch.float64)
    x.requires_grad_()
    losses, _, _ = model.objective(x)
    z_q = model.lookup(model.nearest(x)).detach()
    # x is also the target here: through z_q the reconstruction's gradient arrives as that of z_q alone, and cancels
    (found,) = torch.autograd.grad(losses["loss"], x)
    torch.testing.assert_close(
        found, model.beta * 2 * (x.detach() - z_q) / x.numel(), atol=1e-15, rtol=1e-12
    )


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_a_vector_is_the_running_mean_of_what_it_was_given(decay):
    model = build(decay=decay, dead=1e-30)
    n0, m0 = torch.rand(7, dtype=torch.float64) + 1, torch.randn(7, 3, dtype=torch.float64)
    model.counts.copy_(n0), model.sums.copy_(m0)
    given = [(torch.randn(30, 3, dtype=torch.float64), torch.arange(30) % 7) for _ in range(5)]
    for vectors, index in given:
        model.update(*model.statistics(vectors, index), vectors)
    ages = [
        decay ** (4 - t) * (1 - decay) for t in range(5)
    ]  # the weight of update t in the closed form
    for k in range(7):
        count = decay**5 * n0[k] + sum(
            w * (i == k).sum().double() for w, (_, i) in zip(ages, given, strict=True)
        )
        total = decay**5 * m0[k] + sum(
            w * v[i == k].sum(0) for w, (v, i) in zip(ages, given, strict=True)
        )
        torch.testing.assert_close(model.counts[k], count, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(model.codebook[k], total / count, atol=1e-12, rtol=1e-12)


def test_a_dead_code_starts_anew_at_a_vector_of_the_batch_and_no_other_does():
    model = build(codes=4, decay=0.9, dead=0.1)
    model.counts.copy_(torch.tensor([10.0, 10, 1.2, 10]))
    (
        model.codebook.copy_(torch.randn(4, 3)),
        model.sums.copy_(model.codebook * model.counts[:, None]),
    )
    before = model.codebook.clone()
    vectors = torch.randn(40, 3, dtype=torch.float64)
    n = torch.tensor(
        [10.0, 30, 0, 0], dtype=torch.float64
    )  # fair share 10: dead below 1; code 2 falls to 1.08, then 0.97
    assert [int(model.update(n, n[:, None] * before, vectors)) for _ in range(2)] == [0, 1]
    assert (
        torch.isclose(vectors, model.codebook[2], rtol=1e-12).all(1).any() and model.counts[2] == 2
    )
    torch.testing.assert_close(model.codebook[[0, 1, 3]], before[[0, 1, 3]], atol=1e-12, rtol=0)


def test_a_new_codebook_is_drawn_from_its_first_batch():
    model, vectors = build(codes=200), torch.randn(50, 3, dtype=torch.float64)
    assert (
        model.update(*model.statistics(vectors, torch.zeros(50, dtype=torch.long)), vectors) >= 199
    )
    assert (torch.isclose(model.codebook[1:, None], vectors, rtol=1e-12).all(2).sum(1) == 1).all()


@pytest.mark.parametrize(
    "n, expected", [([5, 0, 0, 0], 1), ([3, 3, 3, 3], 4), ([2, 2, 0, 0], 2), ([4, 2, 2, 0], 2**1.5)]
)
def test_perplexity_is_exact(n, expected):
    assert perplexity(torch.tensor(n, dtype=torch.float64)).item() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (2, 4, 7)])
def test_it_is_a_codec_of_any_size(shape):
    spec = Spec(shape)
    model, x = build(spec), torch.rand(3, *shape, dtype=torch.float64)
    h, w = shape[1] // 4, shape[2] // 4
    assert abilities(model) == {"encode", "decode"}
    assert (
        model.indices(x).shape == (3, h, w)
        and model.encode(x).shape == (3, 3, h, w)
        and model.grid == (h, w)
    )
    assert torch.equal(model.encode(x), model.lookup(model.indices(x)))
    assert model.decode(model.encode(x)).shape == x.shape
    near = model.encode(x) + 1e-9
    assert torch.equal(model.decode(near), model.decode(model.encode(x))), (
        "what a prior gives is moved to a vector"
    )


@pytest.mark.parametrize("spec", [Spec((5,), kind="points", levels=0), Spec((1, 3, 8))])
def test_refuses_what_cannot_be_halved_twice(spec):
    with pytest.raises(UserError, match="halves an image 2 times"):
        build(spec)


def test_shards_move_the_codebook_as_the_whole_batch_does():
    """Two shards after one another give the counts and sums of the joint batch, and the loss of none moves the codebook."""
    common = (
        "model=vq_vae",
        "model.channels=6",
        "model.codes=8",
        "model.dead=1e-30",
        "device.precision=fp64",
    )
    moved = {}
    for shards in (1, 2):
        _, dataset, trainer = built(*common, *SMALL, f"trainer.accumulate={shards}")
        codebook = torch.randn(
            8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        (
            trainer.model.codebook.copy_(codebook),
            trainer.model.sums.copy_(codebook),
            trainer.model.counts.fill_(1),
        )
        trainer.model.loss(trainer.device.ready(dataset.take("train", 4)))
        assert torch.equal(trainer.model.codebook, codebook)
        batches = trainer.stream(dataset)
        logs = [trainer.advance(batches) for _ in range(3)]
        moved[shards] = (trainer.model.codebook, trainer.model.counts, logs[-1]["perplexity"])
        assert not torch.equal(trainer.model.codebook, codebook)
    torch.testing.assert_close(moved[1], moved[2], atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_it_learns_the_digits_and_uses_its_codebook():
    options = (
        "model.channels=32",
        "model.codes=64",
        "model.latent=8",
        "optimizer.lr=1e-3",
        "trainer.batch_size=64",
    )
    _, dataset, trainer = built(
        "model=vq_vae", "dataset.size=16", "device=cpu", "out=unused", *options
    )
    batches = trainer.stream(dataset)
    logs = [trainer.advance(batches) for _ in range(400)]
    x = dataset.take("test").x
    error = (trainer.sampler().decode(trainer.sampler().encode(x)) - x).square().mean().item()
    assert error < 0.25 * x.var(0).mean().item(), error
    assert logs[-1]["perplexity"] > 24
