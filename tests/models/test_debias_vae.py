"""The debiasing VAE: weights against the formula, and batches that become balanced."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.recipes import build_training_objects, states_equal

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae.debias_trainer import DebiasTrainer, draw_weighted_indices
from genlab.models.vae.debias_vae import DebiasVAE, resampling_weights
from genlab.models.vae.vae import gaussian_kl
from genlab.spec import Batch, DataSpec

DIGITS = DataSpec((1, 8, 8), num_classes=10, levels=2, range=(0.0, 1.0))
OVERRIDES = (
    "model=debias_vae",
    "device=cpu",
    "out=unused",
    "trainer.batch_size=64",
    "model.network=mlp",
    "model.hidden=[64]",
    "optimizer.lr=2e-3",
)


@pytest.mark.parametrize("num_bins, alpha", [(10, 0.01), (3, 1.0), (25, 1e-4)])
def test_resampling_weights_match_the_formula_of_the_paper(num_bins, alpha):
    z = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.ones(200)
    for i in range(3):
        density, edges = np.histogram(z[:, i].numpy(), bins=num_bins, density=True)
        at = np.digitize(z[:, i].numpy(), edges[1:-1])
        expected /= density[at] + alpha
    torch.testing.assert_close(
        resampling_weights(z, num_bins=num_bins, alpha=alpha),
        torch.from_numpy(expected / expected.sum()),
    )


def test_large_alpha_or_equal_codes_give_uniform_weights():
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    uniform = torch.full((50,), 0.02, dtype=torch.float64)
    torch.testing.assert_close(
        resampling_weights(z, num_bins=5, alpha=1e9), uniform, atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        resampling_weights(torch.ones(50, 4), num_bins=5, alpha=0.1), uniform, atol=1e-9, rtol=0
    )


def test_items_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    shares = draw_weighted_indices(weights, 100_000, seed=1).bincount(minlength=4) / 100_000
    torch.testing.assert_close(shares.double(), weights, atol=5 * 0.0016, rtol=0)
    assert torch.equal(
        draw_weighted_indices(weights, 9, seed=1), draw_weighted_indices(weights, 9, seed=1)
    )


@pytest.mark.parametrize("c", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0)])
def test_loss_is_the_weighted_sum_of_its_parts(c):
    torch.manual_seed(0)
    names = ("classification_weight", "reconstruction_weight", "kl_weight")
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


def test_rejects_data_without_labels():
    with pytest.raises(UserError, match="model=vae"):
        DebiasVAE(DataSpec((1, 8, 8), levels=2, range=(0.0, 1.0)))


def test_resume_between_two_weight_updates_is_bit_exact():
    overrides = (
        *OVERRIDES,
        "model.latent=3",
        "trainer.resample_after=2",
        "trainer.resample_every=4",
    )
    _, dataset, whole = build_training_objects(*overrides)
    batches = whole.train_batches(dataset)
    for _ in range(9):
        whole.train_step(batches)
        if whole.global_step == 4:
            file = BytesIO()
            torch.save(whole.state_dict(), file)
            file.seek(0)
    _, dataset, second = build_training_objects(*overrides)
    torch.manual_seed(123)
    second.load_state_dict(torch.load(file, weights_only=True))
    batches = second.train_batches(dataset)
    for _ in range(5):
        second.train_step(batches)
    assert second.item_weights.max() > 2 * second.item_weights.mean(), "the weights were updated"
    a, b = whole.state_dict(), second.state_dict()
    assert [key for key in a if key != "seconds" and not states_equal(a[key], b[key])] == []


@pytest.mark.parametrize("many, rare", [(3, 6), (0, 1)])
def test_batches_of_a_biased_set_become_more_balanced(many, rare):
    """A class that makes up about 1 in 20 items is drawn several times as often.

    The classification loss is left out (c1 = 0), so that only the images distinguish the classes.
    """
    biased = (f"dataset.classes=[{many},{rare}]", f"dataset.class_fraction={{{rare}:0.05}}")
    options = (
        "model.classification_weight=0",
        "trainer.alpha=1",
        *biased,
        "trainer.resample_after=300",
        "trainer.resample_every=25",
    )
    _, dataset, trainer = build_training_objects(*OVERRIDES, *options)
    y = dataset.raw_items_and_labels("train")[1]
    batches = trainer.train_batches(dataset)
    logs = [trainer.train_step(batches) for _ in range(400)]
    assert trainer.rarest_class == rare
    share = lambda part: torch.stack([log["share/rarest"] for log in part]).mean().item()  # noqa: E731
    before, after = share(logs[:300]), share(logs[300:])
    assert before == pytest.approx((y == rare).double().mean().item(), abs=0.01)
    assert 2.5 * before < after < 0.65
    assert logs[-1]["classes/effective"] > logs[0]["classes/effective"] + 0.2
    assert logs[-1]["items/effective"] > 10, "a few items must not take all the weight"


@pytest.mark.parametrize("keep, counts", [("{1:0.5,3:0}", {1: 0.5, 3: 0.0}), ("null", {})])
def test_class_fraction_applies_to_training_and_validation_only(keep, counts):
    _, plain, _ = build_training_objects("model=vae", "device=cpu", "out=unused")
    _, dataset, _ = build_training_objects(
        "model=vae", f"dataset.class_fraction={keep}", "device=cpu", "out=unused"
    )
    for split in ("train", "validation", "test"):
        whole, kept = (
            d.raw_items_and_labels(split)[1].bincount(minlength=10) for d in (plain, dataset)
        )
        for c in range(10):
            share = counts.get(c, 1.0) if split != "test" else 1.0
            assert kept[c] == round(share * int(whole[c]))
    with pytest.raises(UserError, match="class_fraction=12: no such class"):
        build_training_objects(
            "model=vae", "dataset.class_fraction={12:0.5}", "device=cpu", "out=unused"
        )


def test_a_handful_of_effective_items_is_noted_once():
    trainer = object.__new__(DebiasTrainer)
    trainer.has_noted_few_items = False
    trainer.labels, trainer.options = torch.zeros(500), DebiasTrainer.Options(steps=1, alpha=0.01)
    trainer.model = SimpleNamespace(latent=8)
    assert trainer.diagnose({}) == trainer.diagnose({"items/effective": 40.0}) == []
    (note,) = trainer.diagnose({"items/effective": 4.2})
    assert "4.2 effective items of 500" in note
    assert "trainer.alpha=0.1 or model.latent=4" in note
    assert trainer.diagnose({"items/effective": 4.2}) == []
