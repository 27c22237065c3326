"""The VQ-VAE's codebook: nearest vectors, straight-through gradient, updates, restarts."""

from __future__ import annotations

import pytest
import torch
from helpers.recipes import FAST_OVERRIDES, build_training_objects

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae.vq_vae import VQVAE, codebook_perplexity
from genlab.spec import DataSpec

IMAGE = DataSpec((1, 8, 8))


def build(spec: DataSpec = IMAGE, **options) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(spec, **({"channels": 6, "num_codes": 7, "latent": 3} | options)).double()


def test_code_is_the_nearest_vector():
    model, z = build(), torch.randn(4, 3, 2, 5, dtype=torch.float64)
    distances = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), model.codebook)  # (40, 7)
    assert torch.equal(model.nearest_indices(z).flatten(), distances.argmin(1))
    assert torch.equal(model.quantize(z)[1], model.nearest_indices(z))
    torch.testing.assert_close(
        model.quantize(z)[0], model.codebook_vectors(model.nearest_indices(z))
    )
    assert torch.equal(
        model.nearest_indices(model.codebook_vectors(model.nearest_indices(z))),
        model.nearest_indices(z),
    ), "a codebook vector must map to itself"


def test_gradient_is_straight_through():
    """∂z_q/∂z_e is the identity, and only the commitment loss moves z_e toward its vector."""
    model, z = build(), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: model.quantize(z)[0], z).reshape(12, 12)
    torch.testing.assert_close(jacobian, torch.eye(12, dtype=torch.float64), atol=0, rtol=0)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    model.encoder, model.decoder = torch.nn.Identity(), torch.nn.Identity()
    model.codebook = torch.randn(7, 1, dtype=torch.float64)
    x.requires_grad_()
    losses, _, _ = model.losses_and_assignments(x)
    z_q = model.codebook_vectors(model.nearest_indices(x)).detach()
    # x is also the target here, so the gradient of the reconstruction through z_q cancels
    (found,) = torch.autograd.grad(losses["loss"], x)
    torch.testing.assert_close(
        found, model.beta * 2 * (x.detach() - z_q) / x.numel(), atol=1e-15, rtol=1e-12
    )


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_codebook_vector_is_the_moving_average_of_its_vectors(decay):
    model = build(codebook_decay=decay, dead_code_threshold=1e-30)
    n0, m0 = torch.rand(7, dtype=torch.float64) + 1, torch.randn(7, 3, dtype=torch.float64)
    model.counts.copy_(n0)
    model.sums.copy_(m0)
    given = [(torch.randn(30, 3, dtype=torch.float64), torch.arange(30) % 7) for _ in range(5)]
    for vectors, index in given:
        model.update_codebook(*model.code_counts_and_sums(vectors, index), vectors)
    # the weight of update t in the closed form
    weights = [decay ** (4 - t) * (1 - decay) for t in range(5)]
    for k in range(7):
        count = decay**5 * n0[k] + sum(
            w * (i == k).sum().double() for w, (_, i) in zip(weights, given, strict=True)
        )
        total = decay**5 * m0[k] + sum(
            w * v[i == k].sum(0) for w, (v, i) in zip(weights, given, strict=True)
        )
        torch.testing.assert_close(model.counts[k], count, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(model.codebook[k], total / count, atol=1e-12, rtol=1e-12)


def test_only_dead_codes_restart_at_vectors_of_the_batch():
    model = build(num_codes=4, codebook_decay=0.9, dead_code_threshold=0.1)
    model.counts.copy_(torch.tensor([10.0, 10, 1.2, 10]))
    model.codebook.copy_(torch.randn(4, 3))
    model.sums.copy_(model.codebook * model.counts[:, None])
    before = model.codebook.clone()
    vectors = torch.randn(40, 3, dtype=torch.float64)
    # uniform use is 10, so a code is dead below 1; code 2 falls to 1.08, then to 0.97
    n = torch.tensor([10.0, 30, 0, 0], dtype=torch.float64)
    assert [int(model.update_codebook(n, n[:, None] * before, vectors)) for _ in range(2)] == [0, 1]
    assert (
        torch.isclose(vectors, model.codebook[2], rtol=1e-12).all(1).any() and model.counts[2] == 2
    )
    torch.testing.assert_close(model.codebook[[0, 1, 3]], before[[0, 1, 3]], atol=1e-12, rtol=0)


def test_first_update_draws_the_codebook_from_the_batch():
    model, vectors = build(num_codes=200), torch.randn(50, 3, dtype=torch.float64)
    assert (
        model.update_codebook(
            *model.code_counts_and_sums(vectors, torch.zeros(50, dtype=torch.long)), vectors
        )
        >= 199
    )
    assert (torch.isclose(model.codebook[1:, None], vectors, rtol=1e-12).all(2).sum(1) == 1).all()


@pytest.mark.parametrize(
    "n, expected", [([5, 0, 0, 0], 1), ([3, 3, 3, 3], 4), ([2, 2, 0, 0], 2), ([4, 2, 2, 0], 2**1.5)]
)
def test_perplexity_is_exact(n, expected):
    assert codebook_perplexity(torch.tensor(n, dtype=torch.float64)).item() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (2, 4, 7)])
def test_codec_supports_any_image_size(shape):
    spec = DataSpec(shape)
    model, x = build(spec), torch.rand(3, *shape, dtype=torch.float64)
    h, w = shape[1] // 4, shape[2] // 4
    assert abilities(model) == {"encode", "decode"}
    assert (
        model.encode_indices(x).shape == (3, h, w)
        and model.encode(x).shape == (3, 3, h, w)
        and model.grid == (h, w)
    )
    assert torch.equal(model.encode(x), model.codebook_vectors(model.encode_indices(x)))
    assert model.decode(model.encode(x)).shape == x.shape
    near = model.encode(x) + 1e-9
    assert torch.equal(model.decode(near), model.decode(model.encode(x))), (
        "decode must replace each vector by the nearest codebook vector"
    )


@pytest.mark.parametrize("spec", [DataSpec((5,), kind="points", levels=0), DataSpec((1, 3, 8))])
def test_rejects_data_that_cannot_be_halved_twice(spec):
    with pytest.raises(UserError, match="halves an image 2 times"):
        build(spec)


def test_shards_update_the_codebook_like_the_joint_batch():
    """Two shards give the counts and sums of the joint batch; `loss` changes nothing."""
    common = (
        "model=vq_vae",
        "model.channels=6",
        "model.num_codes=8",
        "model.dead_code_threshold=1e-30",
        "device.precision=fp64",
    )
    moved = {}
    for shards in (1, 2):
        _, dataset, trainer = build_training_objects(
            *common, *FAST_OVERRIDES, f"trainer.grad_accum_steps={shards}"
        )
        codebook = torch.randn(
            8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        trainer.model.codebook.copy_(codebook)
        trainer.model.sums.copy_(codebook)
        trainer.model.counts.fill_(1)
        trainer.model.loss(trainer.device.to_device(dataset.head("train", 4)))
        assert torch.equal(trainer.model.codebook, codebook)
        batches = trainer.train_batches(dataset)
        logs = [trainer.train_step(batches) for _ in range(3)]
        moved[shards] = (trainer.model.codebook, trainer.model.counts, logs[-1]["perplexity"])
        assert not torch.equal(trainer.model.codebook, codebook)
    torch.testing.assert_close(moved[1], moved[2], atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_learns_the_digits_and_uses_the_codebook():
    options = (
        "model.channels=32",
        "model.num_codes=64",
        "model.latent=8",
        "optimizer.lr=1e-3",
        "trainer.batch_size=64",
    )
    _, dataset, trainer = build_training_objects(
        "model=vq_vae", "dataset.size=16", "device=cpu", "out=unused", *options
    )
    batches = trainer.train_batches(dataset)
    logs = [trainer.train_step(batches) for _ in range(400)]
    x = dataset.head("test").x
    error = (trainer.eval_model().decode(trainer.eval_model().encode(x)) - x).square().mean().item()
    assert error < 0.25 * x.var(0).mean().item(), error
    assert logs[-1]["perplexity"] > 24
