"""M2 against sums over a tiny model, and its trainer with few labels."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from helpers.recipes import FAST_OVERRIDES, build_training_objects
from torch.distributions import Categorical, Normal, kl_divergence

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae.m2 import M2
from genlab.models.vae.m2_trainer import class_balanced_indices
from genlab.spec import Batch, DataSpec

TINY = DataSpec((2, 2), kind="points", num_classes=3, levels=2, range=(0.0, 1.0))  # 16 items in all


def build(spec: DataSpec = TINY, **options) -> M2:
    torch.manual_seed(0)
    model = M2(spec, **({"hidden": (6,), "latent": 1} | options)).double()
    # move the parameters away from the initialization, where the classes differ little
    with torch.no_grad():
        for p in (*model.decoder.parameters(), *model.classifier.parameters()):
            p.add_(0.5 * torch.randn_like(p))
        # a broad q(z|x,y), so that few samples estimate an integral well
        model.encoder[-1][-1].bias[model.latent :] = 1.0
    return model


def all_items() -> torch.Tensor:
    """Return all 16 items of TINY, (16, 2, 2)."""
    return torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).unflatten(
        1, (2, 2)
    )


def exact_log_prob(model: M2, x: torch.Tensor) -> torch.Tensor:
    """Return log p(x|y) (classes, B), with z summed over a grid."""
    z = torch.linspace(-9, 9, 3601, dtype=torch.float64)[:, None]
    found = []
    for y in range(model.num_classes):
        p = model.decoder(model.join_class_and_latent(torch.full((len(z),), y), z)).sigmoid()[
            :, None
        ]  # (3601, 1, D)
        log_p = torch.where(x.flatten(1) == 1, p, 1 - p).log().sum(-1) + Normal(0.0, 1.0).log_prob(
            z
        )  # (3601, B)
        found.append(log_p.logsumexp(0) + math.log(z[1] - z[0]))
    return torch.stack(found)


@torch.no_grad()
def test_bounds_are_below_the_exact_probability():
    model, x = build(), all_items()
    given = exact_log_prob(model, x)  # log p(x|y)
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
def test_bound_is_exact_at_the_true_posterior():
    """If the decoder ignores z, p(z|x,y) = p(z), and with q(y|x) = p(y|x) the bound is exact."""
    model, x = build(), all_items()
    model.decoder[0].weight[:, model.num_classes :] = 0
    model.encoder[-1][-1].weight.zero_()
    model.encoder[-1][-1].bias.zero_()
    log_p = exact_log_prob(model, x)  # (classes, B)
    model.classify = lambda x: log_p.T.log_softmax(1)
    torch.testing.assert_close(model.elbo(x), (log_p - math.log(3)).logsumexp(0), atol=1e-7, rtol=0)
    y = torch.arange(16) % 3
    torch.testing.assert_close(model.elbo(x, y), log_p[y, torch.arange(16)], atol=1e-7, rtol=0)


@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_unlabeled_elbo_is_the_sum_over_classes(hidden):
    """Equation 7, one class at a time, with the same noise for every class."""
    model, x = build(hidden=hidden, latent=2), all_items()
    torch.manual_seed(1)
    found = model.unlabeled_elbo(x)
    torch.manual_seed(1)
    noise = torch.randn(16, 2, dtype=torch.float64)
    q = Categorical(logits=model.classifier(x.flatten(1)))
    total = q.entropy()
    for y in range(3):
        mean, log_var = model.posterior(x, torch.full((16,), y))
        r = Normal(mean, (0.5 * log_var).exp())
        z = mean + r.stddev * noise
        log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
            model.decoder(model.join_class_and_latent(torch.full((16,), y), z)),
            x.flatten(1),
            reduction="none",
        ).sum(1)
        kl = kl_divergence(r, Normal(torch.zeros_like(mean), 1.0)).sum(1)
        total = total + q.probs[:, y] * (log_p + math.log(1 / 3) - kl)
    torch.testing.assert_close(found, total, atol=1e-12, rtol=0)


@pytest.mark.parametrize("known, labeled_weight", [(16, None), (0, None), (6, None), (6, 0.01)])
def test_loss_matches_the_paper(known, labeled_weight):
    model, x = build(alpha=0.7), all_items()
    y = torch.where(torch.arange(16) < known, torch.arange(16) % 3, -1)
    torch.manual_seed(2)
    losses = model.loss(Batch(x, y), labeled_weight)
    torch.manual_seed(2)
    weight, expected = (known / 16 if labeled_weight is None else labeled_weight), 0.0
    if known:
        expected = -weight * model.labeled_elbo(x[:known], y[:known]).mean()
        expected = expected - 0.7 * model.classify(x[:known])[torch.arange(known), y[:known]].mean()
    if known < 16:
        expected = expected - (1 - weight) * model.unlabeled_elbo(x[known:]).mean()
    torch.testing.assert_close(losses["loss"], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [(), (3, 4)])
@pytest.mark.parametrize("detach", [True, False])
def test_detach_classifier_stops_the_gradient_of_unlabeled_items(detach, channels):
    model = build(DataSpec((1, 8, 8), num_classes=3, levels=2, range=(0.0, 1.0)), channels=channels)
    x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5, dtype=torch.float64))
    model.loss(Batch(x, torch.full((5,), -1)), 0.5, detach_classifier=detach)["loss"].backward()
    assert all((p.grad is None) == detach for p in model.classifier.parameters())
    assert all(p.grad.any() for p in (*model.encoder.parameters(), *model.decoder.parameters()))


@pytest.mark.parametrize("steps, expected", [(2, [True, True, False]), (0, [False] * 3)])
def test_classifier_is_detached_during_the_warmup(steps, expected):
    _, dataset, trainer = build_training_objects(
        "model=m2", *FAST_OVERRIDES, f"trainer.classifier_warmup_steps={steps}"
    )
    loss, seen = trainer.model.loss, []

    def recorded_loss(batch, labeled_weight, *, detach_classifier):
        seen.append(detach_classifier)
        return loss(batch, labeled_weight, detach_classifier=detach_classifier)

    trainer.model.loss = recorded_loss
    batches = trainer.train_batches(dataset)
    for _ in expected:
        trainer.train_step(batches)
    assert seen == expected


def test_abilities_and_codes():
    spec = DataSpec((1, 8, 8), num_classes=10, levels=2, range=(0.0, 1.0))
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
        drawn, model.decode(model.join_class_and_latent(y, torch.randn(3, 4, dtype=torch.float64)))
    )
    assert model.encode(x).shape == (5, 14) and model.decode(model.encode(x)).shape == x.shape


@pytest.mark.parametrize(
    "spec, options, fix",
    [
        (DataSpec((1, 8, 8), levels=2, range=(0.0, 1.0)), {}, "model=vae"),
        (DataSpec((1, 8, 8), num_classes=10, range=(0.0, 1.0)), {}, "preprocess.binarize=dynamic"),
        (TINY, {"hidden": ()}, "model.hidden"),
        (TINY, {"channels": (8,)}, r"model.channels=\[\]"),
        (
            DataSpec((1, 2, 2), num_classes=3, levels=2, range=(0.0, 1.0)),
            {"channels": (8, 8)},
            r"model.channels=\[\]",
        ),
    ],
)
def test_rejects_data_that_does_not_fit(spec, options, fix):
    with pytest.raises(UserError, match=fix):
        build(spec, **options)


# --- few labels -----------------------------------------------------------------------------------


def test_labeled_items_are_balanced_and_seeded():
    y = torch.randint(4, (500,), generator=torch.Generator().manual_seed(0))
    chosen = class_balanced_indices(y, 40, 0)
    assert y[chosen].bincount().tolist() == [10] * 4 and len(chosen.unique()) == 40
    assert torch.equal(chosen, class_balanced_indices(y, 40, 0)) and not torch.equal(
        chosen, class_balanced_indices(y, 40, 1)
    )
    for n, message in ((42, "multiple"), (1000, "class")):
        with pytest.raises(UserError, match=message):
            class_balanced_indices(y, n, 0)


@pytest.mark.parametrize("shards", [1, 2])
def test_batches_contain_only_the_chosen_labels(shards):
    options = (
        "trainer.num_labeled=20",
        "trainer.labeled_batch_size=10",
        "preprocess.binarize=threshold",
        f"trainer.grad_accum_steps={shards}",
    )
    _, dataset, trainer = build_training_objects("model=m2", *FAST_OVERRIDES, *options)
    x, y = dataset.raw_items_and_labels("train")
    known = class_balanced_indices(y, 20, 0)
    images = {tuple(x[i].gt(8).flatten().tolist()): int(y[i]) for i in known}
    batches, seen = trainer.train_batches(dataset), set()
    for _ in range(20):
        parts = [next(batches) for _ in range(shards)]
        labels = torch.cat([b.y for b in parts])
        assert (labels == -1).sum() == 8 and (labels >= 0).sum() == 10
        for image, label in zip(torch.cat([b.x for b in parts]), labels.tolist(), strict=True):
            if label >= 0:
                key = tuple(image.gt(0.5).flatten().tolist())
                assert images[key] == label
                seen.add(key)
    assert len(seen) == len(images), "every labeled item must appear"


@pytest.mark.parametrize(
    "option, message",
    [
        ("trainer.labeled_batch_size=200", "trainer.num_labeled=100"),
        ("trainer.num_labeled=101", "multiple"),
    ],
)
def test_rejects_more_labels_than_there_are(option, message):
    _, dataset, trainer = build_training_objects("model=m2", *FAST_OVERRIDES, option)
    with pytest.raises(UserError, match=message):
        trainer.train_batches(dataset)


@pytest.mark.slow
def test_unlabeled_items_reduce_the_error():
    """With 50 labels on the digits the error is lower than without unlabeled items."""
    error = {}
    common = (
        "model=m2",
        "device=cpu",
        "out=unused",
        "trainer.num_labeled=50",
        "trainer.labeled_batch_size=50",
        "optimizer.lr=2e-3",
        "model.hidden=[100]",
        "model.latent=5",
        "model.dropout=0",
        "trainer.labeled_weight=null",
        "trainer.classifier_warmup_steps=0",
    )
    settings = {
        "all": ("model.alpha=1",),
        "labeled only": ("trainer.batch_size=1", "model.alpha=100"),
    }
    for name, options in settings.items():
        _, dataset, trainer = build_training_objects(*common, *options)
        batches = trainer.train_batches(dataset)
        for _ in range(1500):
            trainer.train_step(batches)
        held = dataset.head("test")
        error[name] = (
            (trainer.eval_model().classify(held.x).argmax(1) != held.y).float().mean().item()
        )
    assert error["all"] < 0.8 * error["labeled only"], error
