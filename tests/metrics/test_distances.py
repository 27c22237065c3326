"""Measures that hold one set of items against another, against closed forms, other libraries and hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch

from genlab.data.toy_distributions import Ring
from genlab.errors import UserError
from genlab.metrics import (
    Row,
    Settings,
    classifier_metrics,
    memorization,
    mode_coverage,
    precision_recall,
    sliced_wasserstein,
)
from genlab.metrics.context import Subject
from genlab.spec import Batch, Spec

POINTS = Spec((2,), kind="points", levels=0)
IMAGES = Spec((1, 8, 8), classes=4, range=(0.0, 1.0))


class Held:
    """A dataset of given items."""

    name = "held"

    def __init__(self, spec: Spec, **splits: Batch) -> None:
        self.spec, self.splits = spec, splits

    def size(self, split):
        return len(self.splits[split]) if split in self.splits else 0

    def take(self, split, n=None, *, seed=0, device="cpu"):
        batch = self.splits[split]
        return Batch(batch.x[:n], None if batch.y is None else batch.y[:n])

    shown = take


def images(y: torch.Tensor) -> torch.Tensor:
    """Return noisy images uint8 (N, 1, 8, 8) whose class is the quarter that is bright."""
    x = 60 * torch.rand(len(y), 1, 2, 4, 2, 4)
    x[torch.arange(len(y)), :, y // 2, :, y % 2] += 150
    return x.reshape(-1, 1, 8, 8).to(torch.uint8)


def labelled(n: int) -> Batch:
    y = torch.arange(n) % 4
    return Batch(images(y), y)


def subject(dataset: Held, x: torch.Tensor, y: torch.Tensor | None = None, **settings) -> Subject:
    return Subject(dataset, Settings(n=len(x), **settings), samples=Batch(x, y))


def spread(draw, n: int) -> tuple[torch.Tensor, float, float]:
    """Return n values, their deviation, and the root mean square of the errors that were said with them."""
    found = torch.tensor([draw(i) for i in range(n)], dtype=torch.float64)
    return found[:, 0], found[:, 0].std().item(), found[:, 1].square().mean().sqrt().item()


def near(values: torch.Tensor, expected: float) -> bool:
    """Whether the mean of replicates is the expected one, within 4 of its standard errors."""
    return abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))


# --- precision and recall, density and coverage ----------------------------------------------------------------------


def test_manifold_by_hand():
    """The radii of the real items are 1, 1, 2, 4, those of the fake ones 6.5, 3, 3, 6.5."""
    real, fake = (
        torch.tensor([[0.0], [1.0], [3.0], [7.0]]),
        torch.tensor([[1.5], [9.0], [12.0], [-5.0]]),
    )
    assert precision_recall.manifold(real, fake, k=1, k_density=1) == (0.5, 1.0, 0.75, 0.75)


@pytest.mark.parametrize("d", [2, 64, 784])
def test_manifold_of_equal_far_and_collapsed_sets(d, monkeypatch):
    monkeypatch.setattr(precision_recall, "BLOCK", 100 * 128)  # so that there are several
    x = torch.randn(300, d)
    assert precision_recall.manifold(x, x) == (1, 1, pytest.approx(6 / 5), 1), (
        "each item is in its own ball and those of 5 others"
    )
    assert precision_recall.manifold(x, x + 100) == (0, 0, 0, 0)
    one = x[:1].expand(300, -1)
    assert precision_recall.manifold(x, one)[:2] == (1, 1 / 300), (
        "copies of one real item: all precise, one item recalled"
    )
    with pytest.raises(UserError, match="need more than 5 items in each set, not 300 and 5"):
        precision_recall.manifold(x, x[:5])


def test_manifold_is_torch_fidelity_s():
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    for shift in (0.0, 0.3, 1.0):
        real, fake = torch.randn(300, 8).double(), shift + torch.randn(200, 8).double()
        options = {
            "prc_neighborhood": 3,
            "prc_batch_size": 100,
            "save_cpu_ram": False,
            "verbose": False,
        }
        theirs = prc.prc_features_to_metric(fake, real, **options)
        ours = precision_recall.manifold(real, fake)
        assert ours[:2] == pytest.approx(
            (theirs["precision"], theirs["recall"]), abs=1e-6
        )  # theirs are single precision


def test_density_and_coverage_of_one_law():
    """Their expectations are exact for any continuous law and any numbers of items (Naeem et al. 2020)."""
    n, m, k = 40, 60, 5
    found = [precision_recall.manifold(torch.randn(n, 3), torch.randn(m, 3)) for _ in range(200)]
    density, coverage = (
        torch.tensor([getattr(f, name) for f in found]) for name in ("density", "coverage")
    )
    missed = math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert near(density, 1) and near(coverage, 1 - missed)


def test_manifold_errors_are_the_spread():
    draws = [(torch.randn(300, 4), 0.5 + torch.randn(300, 4)) for _ in range(40)]
    values = torch.tensor([precision_recall.manifold(*draw) for draw in draws])
    said = torch.tensor([precision_recall.errors(*draw) for draw in draws]).square().mean(0).sqrt()
    assert said == pytest.approx(
        values.std(0), rel=0.4
    )  # the parts are smaller sets: not the same number exactly
    assert precision_recall.errors(*(x[:50] for x in draws[0])) == [None] * 4


# --- sliced Wasserstein ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "shift", "s"), [(1, 1.0, 1.0), (3, 1.0, 2.0), (20, 0.5, 0.5)])
def test_sliced_wasserstein_of_two_gaussians(d, shift, s):
    """SW₂² of N(0, I) and N(μ, s² I) is |μ|²/D + (1 − s)²."""
    value, error = sliced_wasserstein.sliced_wasserstein(
        torch.randn(4000, d), shift + s * torch.randn(3000, d)
    )
    assert abs(value - math.sqrt(shift**2 + (1 - s) ** 2)) < 4 * error and error < 0.05 * value


def test_sliced_wasserstein_is_exact_on_a_line():
    from scipy.optimize import linear_sum_assignment

    x, y = torch.randn(6, 1).double(), torch.randn(4, 1).double()
    cost = torch.cdist(x.repeat_interleave(2, 0), y.repeat_interleave(3, 0)).square()
    exact = math.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert sliced_wasserstein.sliced_wasserstein(x, y)[0] == pytest.approx(exact, rel=1e-12)
    assert sliced_wasserstein.sliced_wasserstein(x, x + 3)[0] == pytest.approx(3, rel=1e-12)
    assert sliced_wasserstein.sliced_wasserstein(x, x.flip(0)) == (0, 0)


@pytest.mark.parametrize("d", [1, 5])
def test_sliced_wasserstein_error_is_the_spread(d):
    draw = lambda i: sliced_wasserstein.sliced_wasserstein(
        torch.randn(300, d), 1 + 2 * torch.randn(200, d), directions=32, seed=i
    )  # noqa: E731
    _, true, said = spread(draw, 150)
    assert said == pytest.approx(true, rel=0.2)


# --- modes of a mixture ----------------------------------------------------------------------------------------------


def test_mode_kl():
    centers = 10 * torch.eye(4)
    at = lambda *counts: centers.repeat_interleave(torch.tensor(counts), 0)  # noqa: E731
    assert mode_coverage.mode_kl(at(5, 5, 5, 5), centers) == (0, pytest.approx(0.08, abs=0.08))
    assert mode_coverage.mode_kl(at(9, 0, 0, 0), centers) == (pytest.approx(math.log(4)), 0)
    assert mode_coverage.mode_kl(at(6, 2, 0, 0), centers)[0] == pytest.approx(
        0.75 * math.log(3) + 0.25 * math.log(1)
    )
    assert mode_coverage.mode_kl(at(6, 2, 0, 0), centers, torch.tensor([0.75, 0.25, 0, 0]))[0] == 0
    even = lambda i: mode_coverage.mode_kl(centers[torch.randint(4, (200,))], centers)  # noqa: E731
    assert near(spread(even, 200)[0], 3 / (2 * 200)), "the bias (M − 1)/(2N)"
    w = torch.tensor([0.6, 0.2, 0.1, 0.1])
    uneven = lambda i: mode_coverage.mode_kl(
        centers[torch.multinomial(w, 300, replacement=True)], centers, seed=i
    )  # noqa: E731
    _, true, said = spread(uneven, 200)
    assert said == pytest.approx(true, rel=0.2)


# --- memorisation ----------------------------------------------------------------------------------------------------


def test_nearest_by_hand():
    train = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    distance, index = memorization.nearest(
        torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 5.0]]), train
    )
    assert index.tolist() == [0, 2, 2]
    assert distance.tolist() == pytest.approx([1, math.sqrt(10), 0])


def test_nearest_is_the_nearest(monkeypatch):
    monkeypatch.setattr(precision_recall, "BLOCK", 1)
    x, train = 100 + torch.rand(300, 50), 100 + torch.rand(500, 50)
    train[7] = x[200]
    train[8] = x[200] + 1e-4  # single precision would not tell them apart
    distance, index = memorization.nearest(x, train)
    all_of_them = torch.cdist(
        x.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    assert torch.allclose(distance, all_of_them.values, atol=1e-12) and torch.equal(
        index, all_of_them.indices
    )
    assert distance[200] == 0


def test_nearer_is_mann_whitney_s():
    from scipy.stats import mannwhitneyu

    a, b = torch.randint(20, (70,)).double(), torch.randint(5, 25, (50,)).double()  # with ties
    assert memorization.nearer(a, b)[0] == pytest.approx(mannwhitneyu(b, a).statistic / (70 * 50))
    assert memorization.nearer(torch.zeros(5), torch.ones(4)) == (1, 0)
    fresh = lambda shift: lambda i: memorization.nearer(torch.randn(80), shift + torch.randn(60))  # noqa: E731
    for shift, exact in ((0.0, 0.5), (1.0, 0.5 * (1 + math.erf(0.5)))):  # Φ(shift/√2)
        values, true, said = spread(fresh(shift), 200)
        assert near(values, exact) and said == pytest.approx(true, rel=0.15)


def test_memorisation_tells_a_copier_from_fresh_draws():
    train, test = Batch(torch.randn(2000, 2)), Batch(torch.randn(1000, 2))
    data = Held(POINTS, train=train, test=test)
    distance, copying = memorization.measure(subject(data, train.x[:400]))
    assert (distance.value, copying.value, copying.error) == (0, 1, 0)
    assert distance.floor > 0.02 and copying.floor == pytest.approx(0.5, abs=0.08)
    distance, copying = memorization.measure(subject(data, torch.randn(400, 2)))
    assert (
        abs(distance.value - distance.floor) < 6 * distance.error
        and abs(copying.value - 0.5) < 4 * copying.error
    )
    assert distance.conditions["train"] == 2000 and distance.better == copying.better == "neither"


@pytest.mark.parametrize("space", ["pixels", None])
def test_pairs_are_what_was_shown(space, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    train = labelled(40)
    data = Held(IMAGES, train=train, test=labelled(20))
    samples = train.x[[5, 3, 9, 20]].float() / 255
    drawn, found = memorization.pairs(subject(data, samples, features=("pixels",)), 3, space=space)
    assert drawn.dtype == found.dtype == torch.uint8
    assert torch.equal(drawn, train.x[[5, 3, 9]]) and torch.equal(found, drawn)


# --- classes ---------------------------------------------------------------------------------------------------------


class Reads:
    """Gives an image the class that its brightness is; stands for a trained classifier that is never wrong."""

    name, key, conditions = "classifier", "reads", {"features": "classifier"}

    def __init__(self, *unused) -> None: ...

    def __call__(self, x):
        logits = torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).float()
        assert x.shape[1] == 1
        return logits, logits


@pytest.fixture
def reads(monkeypatch, tmp_path):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    monkeypatch.setattr("genlab.metrics.context.features.spaces", lambda: {"classifier": Reads})


def written(y: torch.Tensor) -> torch.Tensor:
    """Return images uint8 (N, C, 8, 8) of which `Reads` reads the classes y (N, C)."""
    return y[:, :, None, None].expand(-1, -1, 8, 8).to(torch.uint8)


def test_class_kl():
    k, y = 4, torch.arange(80)[:, None] % 4
    assert classifier_metrics.class_kl(y, y, k)[0] == 0
    assert classifier_metrics.class_kl(y % 2, y, k)[0] == pytest.approx(math.log(2))
    assert math.isfinite(classifier_metrics.class_kl(y, y % 2, k)[0])
    stacked = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert classifier_metrics.class_kl(stacked, stacked, k)[0] == pytest.approx(0, abs=1e-12)
    assert classifier_metrics.class_kl(stacked[:5], stacked, k)[0] == pytest.approx(
        math.log(64 / 5)
    )
    uneven = torch.tensor(
        [[0, 0], [0, 1], [2, 1]]
    )  # the law of real items is the product of their channels'
    assert torch.equal(
        classifier_metrics.counts(uneven, 3), torch.tensor([1, 0, 0, 1, 0, 1, 0, 0, 0]).double()
    )
    first, second = torch.tensor([2, 0.5, 1]) / 3.5, torch.tensor([1, 2, 0.5]) / 3.5
    assert torch.allclose(
        classifier_metrics.law(uneven, 3), torch.outer(second, first).flatten().double()
    )
    w = torch.tensor([0.6, 0.2, 0.1, 0.1])
    pick = lambda n: torch.multinomial(w, n, replacement=True)[:, None]  # noqa: E731
    _, true, said = spread(
        lambda i: classifier_metrics.class_kl(pick(300), torch.randint(4, (400, 1)), 4, seed=i), 40
    )
    assert said == pytest.approx(true, rel=0.4)


@pytest.mark.parametrize("parts", [1, 3])
def test_class_modes(parts, reads):
    y = torch.cartesian_prod(*[torch.arange(4)] * parts).reshape(-1, parts).repeat(4, 1)
    data = Held(Spec((parts, 8, 8), classes=4, range=(0.0, 1.0)), test=Batch(written(y), y[:, 0]))
    data.stacked = parts > 1
    half = 4**parts // 2
    found, kl = classifier_metrics.class_modes(
        subject(data, written(y[:half].repeat(8, 1)).float() / 255)
    )
    assert (found.value, found.unit) == (half, f"of {4**parts}") and kl.value == pytest.approx(
        math.log(2)
    )
    assert (found.floor, kl.floor) == (4**parts, pytest.approx(0, abs=1e-12))
    assert (
        classifier_metrics.class_modes_rows(subject(data, y))
        == ["class_modes", "class_kl"]
        == [found.name, kl.name]
    )
    assert classifier_metrics.class_accuracy_rows(subject(data, y, y)) == (
        ["class_accuracy"] if parts == 1 else []
    )


def test_class_accuracy(reads):
    y = torch.arange(100) % 4
    data = Held(IMAGES, test=Batch(written(y[:, None]), y))
    asked = torch.where(torch.arange(100) < 36, (y + 1) % 4, y)
    (row,) = classifier_metrics.class_accuracy(
        subject(data, written(y[:, None]).float() / 255, asked)
    )
    assert (row.value, row.floor) == (0.64, 1) and row.error == pytest.approx(
        math.sqrt(0.64 * 0.36 / 100)
    )
    assert classifier_metrics.class_accuracy_rows(subject(data, y)) == [], (
        "without classes asked for"
    )


def test_train_on_generated(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier_metrics, "IMAGES", 2500)
    data = Held(IMAGES, train=labelled(200), test=labelled(100))
    assert classifier_metrics.train_on_generated_rows(subject(data, data.splits["train"].x)) == []
    good = labelled(200)
    (row,) = classifier_metrics.train_on_generated(subject(data, good.x / 255, good.y))
    assert row.value > 0.97 and row.floor > 0.97
    (row,) = classifier_metrics.train_on_generated(subject(data, good.x / 255, (good.y + 1) % 4))
    assert row.value < 0.03 and row.floor > 0.97, "it learns what it is told"


# --- as measures -----------------------------------------------------------------------------------------------------


def test_rows_are_those_that_were_named():
    ring = Ring()
    generator = torch.Generator().manual_seed(0)
    data = Held(
        POINTS,
        **{name: Batch(ring.sample(400, generator)[0].float()) for name in ("train", "test")},
    )
    data.centers, data.std, data.law = ring.centers, ring.std, ring
    drawn = ring.sample(200, generator)[0].float()
    found: dict[str, Row] = {}
    for module in (precision_recall, sliced_wasserstein, memorization, mode_coverage):
        rows = module.measure(subject(data, drawn))
        assert [row.name for row in rows] == module.rows(subject(data, drawn))
        found |= {row.name: row for row in rows}
    assert all(
        row.tag == "estimate" and row.floor is not None and row.conditions["seed"] == 0
        for row in found.values()
    )
    assert found["modes"].floor == found["modes"].value == 8 and found["high_quality"].value > 0.95
    assert found["sliced_wasserstein_coordinates"].value == pytest.approx(0.2, abs=0.2)
    assert found["precision_coordinates"].value > 0.9 and found["mode_kl"].value < 0.06
    for fits in (
        classifier_metrics.class_modes_rows,
        classifier_metrics.class_accuracy_rows,
        classifier_metrics.train_on_generated_rows,
    ):
        assert fits(subject(data, drawn)) == [], "points have no pictures to judge"
