"""The debiasing VAE: its weights against the formula, and batches that move toward balance."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from helpers.recipes import built, same

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae.debias_trainer import draw
from genlab.models.vae.debias_vae import DebiasVAE, resampling
from genlab.models.vae.vae import gaussian_kl
from genlab.spec import Batch, Spec

DIGITS = Spec((1, 8, 8), classes=10, levels=2, range=(0.0, 1.0))
OVERRIDES = ("model=debias_vae", "device=cpu", "out=unused", "trainer.batch_size=64", "model.network=mlp",
             "model.hidden=[64]", "optimizer.lr=2e-3")  # fmt: skip


@pytest.mark.parametrize("bins, alpha", [(10, 0.01), (3, 1.0), (25, 1e-4)])
def test_the_weights_are_the_paper_s_formula(bins, alpha):
    z = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.ones(200)
    for i in range(3):
        density, edges = np.histogram(z[:, i].numpy(), bins=bins, density=True)
        at = np.digitize(z[:, i].numpy(), edges[1:-1])
        expected /= density[at] + alpha
    torch.testing.assert_close(
        resampling(z, bins=bins, alpha=alpha), torch.from_numpy(expected / expected.sum())
    )


def test_a_large_alpha_and_codes_all_alike_give_uniform_weights():
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    uniform = torch.full((50,), 0.02, dtype=torch.float64)
    torch.testing.assert_close(resampling(z, bins=5, alpha=1e9), uniform, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        resampling(torch.ones(50, 4), bins=5, alpha=0.1), uniform, atol=1e-9, rtol=0
    )


def test_items_are_drawn_with_their_weights():
    weights = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    shares = draw(weights, 100_000, seed=1).bincount(minlength=4) / 100_000
    torch.testing.assert_close(shares.double(), weights, atol=5 * 0.0016, rtol=0)
    assert torch.equal(draw(weights, 9, seed=1), draw(weights, 9, seed=1))


@pytest.mark.parametrize("c", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0)])
def test_the_loss_is_the_weighted_sum_of_its_parts(c):
    torch.manual_seed(0)
    names = ("classification", "reconstruction", "regularisation")
    model = DebiasVAE(DIGITS, hidden=(4, 6), latent=3, **dict(zip(names, c, strict=True))).double()
    x = torch.bernoulli(torch.full((6, 1, 8, 8), 0.4, dtype=torch.float64))
    y = torch.arange(6)
    torch.manual_seed(1)
    losses = model.loss(Batch(x, y))
    torch.manual_seed(1)
    bound, rate = model.elbo(x).mean(), gaussian_kl(*model.posterior(x)).mean()
    error = -model.classify(x)[torch.arange(6), y].mean()
    torch.testing.assert_close(losses["loss"], c[0] * error + c[1] * -(bound + rate) + c[2] * rate)
    assert "classify" in abilities(model)


def test_refuses_data_without_classes():
    with pytest.raises(UserError, match="model=vae"):
        DebiasVAE(Spec((1, 8, 8), levels=2, range=(0.0, 1.0)))


def test_resumes_bit_for_bit_between_two_encodings():
    overrides = (*OVERRIDES, "model.latent=3", "trainer.wait=2", "trainer.refresh=4")
    _, dataset, whole = built(*overrides)
    batches = whole.stream(dataset)
    for _ in range(9):
        whole.advance(batches)
        if whole.at == 4:
            file = BytesIO()
            torch.save(whole.state(), file)
            file.seek(0)
    _, dataset, second = built(*overrides)
    torch.manual_seed(123)
    second.load(torch.load(file, weights_only=True))
    batches = second.stream(dataset)
    for _ in range(5):
        second.advance(batches)
    assert second.weights.max() > 2 * second.weights.mean(), "the weights were set"
    a, b = whole.state(), second.state()
    assert [key for key in a if key != "seconds" and not same(a[key], b[key])] == []


@pytest.mark.parametrize("many, rare", [(3, 6), (0, 1)])
def test_batches_of_a_biased_set_move_toward_balance(many, rare):
    """Two groups, one of them 1 in 20 or so: with no label of that, it is drawn several times as often, and each item too.

    The classification's labels are left out (c1 = 0), so that nothing but the images can tell the groups apart.
    """
    biased = (f"dataset.only=[{many},{rare}]", f"dataset.keep={{{rare}:0.05}}")
    options = (
        "model.classification=0",
        "trainer.alpha=1",
        *biased,
        "trainer.wait=300",
        "trainer.refresh=25",
    )
    _, dataset, trainer = built(*OVERRIDES, *options)
    y = dataset.arrays("train")[1]
    batches = trainer.stream(dataset)
    logs = [trainer.advance(batches) for _ in range(400)]
    assert trainer.rarest == rare
    share = lambda part: torch.stack([log["share/rarest"] for log in part]).mean().item()  # noqa: E731
    before, after = share(logs[:300]), share(logs[300:])
    assert before == pytest.approx((y == rare).double().mean().item(), abs=0.01)
    assert 2.5 * before < after < 0.65
    assert logs[-1]["classes/effective"] > logs[0]["classes/effective"] + 0.2
    assert logs[-1]["items/effective"] > 10, "no handful of items takes all the weight"


@pytest.mark.parametrize("keep, counts", [("{1:0.5,3:0}", {1: 0.5, 3: 0.0}), ("null", {})])
def test_keep_makes_a_class_rare_in_training_alone(keep, counts):
    _, plain, _ = built("model=vae", "device=cpu", "out=unused")
    _, dataset, _ = built("model=vae", f"dataset.keep={keep}", "device=cpu", "out=unused")
    for split in ("train", "validation", "test"):
        whole, kept = (d.arrays(split)[1].bincount(minlength=10) for d in (plain, dataset))
        for c in range(10):
            share = counts.get(c, 1.0) if split != "test" else 1.0
            assert kept[c] == round(share * int(whole[c]))
    with pytest.raises(UserError, match="not 12"):
        built("model=vae", "dataset.keep={12:0.5}", "device=cpu", "out=unused")
