"""M2 against a model small enough to be summed out, and the rule that hides all but a few labels."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from helpers.recipes import SMALL, built
from torch.distributions import Categorical, Normal, kl_divergence

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae.m2 import M2
from genlab.models.vae.m2_trainer import balanced
from genlab.spec import Batch, Spec

TINY = Spec((2, 2), kind="points", classes=3, levels=2, range=(0.0, 1.0))  # 16 items in all


def build(spec: Spec = TINY, **options) -> M2:
    torch.manual_seed(0)
    model = M2(spec, **({"hidden": (6,), "latent": 1} | options)).double()
    with torch.no_grad():  # away from the start, where the classes differ little
        for p in (*model.decoder.parameters(), *model.classifier.parameters()):
            p.add_(0.5 * torch.randn_like(p))
        model.encoder[-1][-1].bias[model.latent :] = (
            1.0  # a broad q(z|x,y): few draws tell an integral
        )
    return model


def everything() -> torch.Tensor:
    """Return all items of TINY: (16, 2, 2)."""
    return torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).unflatten(
        1, (2, 2)
    )


def exact(model: M2, x: torch.Tensor) -> torch.Tensor:
    """Return log p(x|y) (classes, B), z summed over a grid."""
    z = torch.linspace(-9, 9, 3601, dtype=torch.float64)[:, None]
    found = []
    for y in range(model.classes):
        p = model.decoder(model.code(torch.full((len(z),), y), z)).sigmoid()[
            :, None
        ]  # (3601, 1, D)
        log_p = torch.where(x.flatten(1) == 1, p, 1 - p).log().sum(-1) + Normal(0.0, 1.0).log_prob(
            z
        )  # (3601, B)
        found.append(log_p.logsumexp(0) + math.log(z[1] - z[0]))
    return torch.stack(found)


@torch.no_grad()
def test_every_bound_is_below_the_exact_probability_of_a_tiny_model():
    model, x = build(), everything()
    given = exact(model, x)  # log p(x|y)
    marginal = (given - math.log(3)).logsumexp(0)
    torch.testing.assert_close(
        marginal.exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-9, rtol=0
    )
    mean = lambda bound: torch.stack([bound() for _ in range(2000)]).mean(0)  # noqa: E731
    elbo = mean(lambda: model.elbo(x))
    assert (elbo < marginal + 0.01).all() and (elbo < marginal - 0.01).any()
    for y in range(3):
        assert (mean(lambda y=y: model.elbo(x, torch.full((16,), y))) < given[y] + 0.01).all()
    tight = model.iwae(x, 20_000)
    torch.testing.assert_close(tight, marginal, atol=0.03, rtol=0)
    assert (elbo < tight + 0.01).all()


@torch.no_grad()
def test_at_the_true_posterior_the_bound_is_exact():
    """A decoder deaf to z has the posterior p(z|x,y) = p(z); with q(y|x) = p(y|x) the bound has no gap, for every draw."""
    model, x = build(), everything()
    model.decoder[0].weight[:, model.classes :] = 0
    model.encoder[-1][-1].weight.zero_(), model.encoder[-1][-1].bias.zero_()
    log_p = exact(model, x)  # (classes, B)
    model.classify = lambda x: log_p.T.log_softmax(1)
    torch.testing.assert_close(model.elbo(x), (log_p - math.log(3)).logsumexp(0), atol=1e-7, rtol=0)
    y = torch.arange(16) % 3
    torch.testing.assert_close(model.elbo(x, y), log_p[y, torch.arange(16)], atol=1e-7, rtol=0)


@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_the_marginal_bound_is_the_sum_over_classes(hidden):
    """Equation 7, one class at a time, with the same noise for every class."""
    model, x = build(hidden=hidden, latent=2), everything()
    torch.manual_seed(1)
    found = model.marginal_bound(x)
    torch.manual_seed(1)
    noise = torch.randn(16, 2, dtype=torch.float64)
    q = Categorical(logits=model.classifier(x.flatten(1)))
    total = q.entropy()
    for y in range(3):
        mean, log_var = model.posterior(x, torch.full((16,), y))
        r = Normal(mean, (0.5 * log_var).exp())
        z = mean + r.stddev * noise
        log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
            model.decoder(model.code(torch.full((16,), y), z)), x.flatten(1), reduction="none"
        ).sum(1)
        kl = kl_divergence(r, Normal(torch.zeros_like(mean), 1.0)).sum(1)
        total = total + q.probs[:, y] * (log_p + math.log(1 / 3) - kl)
    torch.testing.assert_close(found, total, atol=1e-12, rtol=0)


@pytest.mark.parametrize("known, share", [(16, None), (0, None), (6, None), (6, 0.01)])
def test_the_loss_is_the_paper_s_of_labelled_and_unlabelled_items(known, share):
    model, x = build(alpha=0.7), everything()
    y = torch.where(torch.arange(16) < known, torch.arange(16) % 3, -1)
    torch.manual_seed(2)
    losses = model.loss(Batch(x, y), share)
    torch.manual_seed(2)
    weight, expected = (known / 16 if share is None else share), 0.0
    if known:
        expected = -weight * model.joint_bound(x[:known], y[:known]).mean()
        expected = expected - 0.7 * model.classify(x[:known])[torch.arange(known), y[:known]].mean()
    if known < 16:
        expected = expected - (1 - weight) * model.marginal_bound(x[known:]).mean()
    torch.testing.assert_close(losses["loss"], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [(), (3, 4)])
@pytest.mark.parametrize("hold", [True, False])
def test_held_the_unlabelled_items_leave_the_classifier_alone_and_teach_the_rest(hold, channels):
    model = build(Spec((1, 8, 8), classes=3, levels=2, range=(0.0, 1.0)), channels=channels)
    x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5, dtype=torch.float64))
    model.loss(Batch(x, torch.full((5,), -1)), 0.5, hold=hold)["loss"].backward()
    assert all((p.grad is None) == hold for p in model.classifier.parameters())
    assert all(p.grad.any() for p in (*model.encoder.parameters(), *model.decoder.parameters()))


@pytest.mark.parametrize("hold, taught", [(2, [True, True, False]), (0, [False] * 3)])
def test_the_rule_holds_for_the_first_steps(hold, taught):
    _, dataset, trainer = built("model=m2", *SMALL, f"trainer.hold={hold}")
    loss, held = trainer.model.loss, []
    trainer.model.loss = lambda batch, share, *, hold: (
        held.append(hold) or loss(batch, share, hold=hold)
    )
    batches = trainer.stream(dataset)
    for _ in taught:
        trainer.advance(batches)
    assert held == taught


def test_abilities_and_classes():
    spec = Spec((1, 8, 8), classes=10, levels=2, range=(0.0, 1.0))
    model = build(spec, latent=4)
    x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5, dtype=torch.float64))
    assert abilities(model) == {
        "sample",
        "encode",
        "decode",
        "prior",
        "posterior",
        "elbo",
        "iwae",
        "classify",
    }
    torch.testing.assert_close(model.classify(x).exp().sum(1), torch.ones(5, dtype=torch.float64))
    y = torch.tensor([3, 3, 9])
    assert torch.equal(model.prior(3, y)[:, :10].argmax(1), y)
    torch.manual_seed(1)
    drawn = model.sample(3, y)
    torch.manual_seed(1)
    torch.testing.assert_close(
        drawn, model.decode(model.code(y, torch.randn(3, 4, dtype=torch.float64)))
    )
    assert model.encode(x).shape == (5, 14) and model.decode(model.encode(x)).shape == x.shape


@pytest.mark.parametrize(
    "spec, options, mend",
    [
        (Spec((1, 8, 8), levels=2, range=(0.0, 1.0)), {}, "model=vae"),
        (Spec((1, 8, 8), classes=10, range=(0.0, 1.0)), {}, "dataset.binarize=dynamic"),
        (TINY, {"hidden": ()}, "model.hidden"),
        (TINY, {"channels": (8,)}, r"model.channels=\[\]"),
        (
            Spec((1, 2, 2), classes=3, levels=2, range=(0.0, 1.0)),
            {"channels": (8, 8)},
            r"model.channels=\[\]",
        ),
    ],
)
def test_refuses_data_that_does_not_fit(spec, options, mend):
    with pytest.raises(UserError, match=mend):
        build(spec, **options)


# --- few labels ------------------------------------------------------------------------------------------------------


def test_labels_are_balanced_and_seeded():
    y = torch.randint(4, (500,), generator=torch.Generator().manual_seed(0))
    chosen = balanced(y, 40, 0)
    assert y[chosen].bincount().tolist() == [10] * 4 and len(chosen.unique()) == 40
    assert torch.equal(chosen, balanced(y, 40, 0)) and not torch.equal(chosen, balanced(y, 40, 1))
    for n, mend in ((42, "multiple"), (1000, "class")):
        with pytest.raises(UserError, match=mend):
            balanced(y, n, 0)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_step_sees_the_chosen_labels_alone(shards):
    options = (
        "trainer.labels=20",
        "trainer.labelled=10",
        "prepare.binarize=threshold",
        f"trainer.accumulate={shards}",
    )
    _, dataset, trainer = built("model=m2", *SMALL, *options)
    x, y = dataset.arrays("train")
    known = balanced(y, 20, 0)
    images = {tuple(x[i].gt(8).flatten().tolist()): int(y[i]) for i in known}
    batches, seen = trainer.stream(dataset), set()
    for _ in range(20):
        parts = [next(batches) for _ in range(shards)]
        labels = torch.cat([b.y for b in parts])
        assert (labels == -1).sum() == 8 and (labels >= 0).sum() == 10
        for image, label in zip(torch.cat([b.x for b in parts]), labels.tolist(), strict=True):
            if label >= 0:
                key = tuple(image.gt(0.5).flatten().tolist())
                assert images[key] == label
                seen.add(key)
    assert len(seen) == len(images), "all of them come up"


@pytest.mark.parametrize(
    "option, mend",
    [("trainer.labelled=200", "trainer.labels=100"), ("trainer.labels=101", "multiple")],
)
def test_refuses_labels_that_are_not_there(option, mend):
    _, dataset, trainer = built("model=m2", *SMALL, option)
    with pytest.raises(UserError, match=mend):
        trainer.stream(dataset)


@pytest.mark.slow
def test_unlabelled_items_teach_it():
    """With 50 labels on the digits: fewer errors than the same network that sees the labelled ones alone."""
    error = {}
    common = ("model=m2", "device=cpu", "out=unused", "trainer.labels=50", "trainer.labelled=50", "optimizer.lr=2e-3",
              "model.hidden=[100]", "model.latent=5", "model.dropout=0", "trainer.share=null")  # fmt: skip
    settings = {
        "all": ("model.alpha=1",),
        "labelled alone": ("trainer.batch_size=1", "model.alpha=100"),
    }
    for name, options in settings.items():
        _, dataset, trainer = built(*common, *options)
        batches = trainer.stream(dataset)
        for _ in range(1500):
            trainer.advance(batches)
        held = dataset.take("test")
        error[name] = (trainer.sampler().classify(held.x).argmax(1) != held.y).float().mean().item()
    assert error["all"] < 0.8 * error["labelled alone"], error
