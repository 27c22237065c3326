"""Metrics that compare two sets of items, against closed forms and other libraries."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from genlab.data.dataset import Dataset
from genlab.data.toy_distributions import Ring
from genlab.errors import UserError
from genlab.metrics import (
    classifier_metrics,
    features,
    memorization,
    mode_coverage,
    precision_recall,
    sliced_wasserstein,
)
from genlab.metrics.base import Row, Settings
from genlab.metrics.context import MetricContext
from genlab.spec import Batch, DataSpec

POINTS = DataSpec((2,), kind="points", levels=0)
IMAGES = DataSpec((1, 8, 8), num_classes=4, range=(0.0, 1.0))


class GivenItems(Dataset):
    """A dataset of given items."""

    name = "held"

    def __init__(self, spec: DataSpec, **splits: Batch) -> None:
        self.spec, self.splits = spec, splits

    def size(self, split):
        return len(self.splits[split]) if split in self.splits else 0

    def head(self, split, n=None, *, seed=0, device="cpu"):
        batch = self.splits[split]
        return Batch(batch.x[:n], None if batch.y is None else batch.y[:n])

    head_as_uint8_images = head

    def head_indices(self, split, n=None, *, seed=0):
        return torch.arange(self.size(split))[:n]

    def items_like_samples(self, split, index, *, seed=0, augment=True):
        batch = self.splits[split]
        return Batch(batch.x[index], None if batch.y is None else batch.y[index])


def quarter_images(y: torch.Tensor) -> torch.Tensor:
    """Return noisy images uint8 (N, 1, 8, 8) whose class is the quarter that is bright."""
    x = 60 * torch.rand(len(y), 1, 2, 4, 2, 4)
    x[torch.arange(len(y)), :, y // 2, :, y % 2] += 150
    return x.reshape(-1, 1, 8, 8).to(torch.uint8)


def labeled_images(n: int) -> Batch:
    y = torch.arange(n) % 4
    return Batch(quarter_images(y), y)


def make_context(
    dataset: GivenItems, x: torch.Tensor, y: torch.Tensor | None = None, **settings
) -> MetricContext:
    return MetricContext(dataset, Settings(n=len(x), **settings), samples=Batch(x, y))


def replicate(draw, n: int) -> tuple[torch.Tensor, float, float]:
    """Return n values, their standard deviation, and the RMS of their stated errors."""
    found = torch.tensor([draw(i) for i in range(n)], dtype=torch.float64)
    return found[:, 0], found[:, 0].std().item(), found[:, 1].square().mean().sqrt().item()


def is_close(values: torch.Tensor, expected: float) -> bool:
    """Whether the mean of replicates is the expected one, within 4 standard errors."""
    return abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))


# --- precision and recall, density and coverage ---------------------------------------------------


def test_prdc_by_hand():
    """The radii of the real items are 1, 1, 2, 4, those of the fake ones 6.5, 3, 3, 6.5."""
    real, fake = (
        torch.tensor([[0.0], [1.0], [3.0], [7.0]]),
        torch.tensor([[1.5], [9.0], [12.0], [-5.0]]),
    )
    assert precision_recall.prdc(real, fake, k=1, k_density=1) == (0.5, 1.0, 0.75, 0.75)


@pytest.mark.parametrize("d", [2, 64, 784])
def test_prdc_of_equal_distant_and_collapsed_sets(d, monkeypatch):
    monkeypatch.setattr(precision_recall, "MAX_BLOCK_DISTANCES", 100 * 128)  # several blocks
    x = torch.randn(300, d)
    assert precision_recall.prdc(x, x) == (1, 1, pytest.approx(6 / 5), 1), (
        "each item is in its own ball and those of 5 others"
    )
    assert precision_recall.prdc(x, x + 100) == (0, 0, 0, 0)
    one = x[:1].expand(300, -1)
    assert precision_recall.prdc(x, one)[:2] == (1, 1 / 300), (
        "copies of one real item: precision 1, and a single item is recalled"
    )
    with pytest.raises(UserError, match="require more than 5 items in each set, not 300 and 5"):
        precision_recall.prdc(x, x[:5])


def test_precision_and_recall_equal_torch_fidelity():
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
        ours = precision_recall.prdc(real, fake)
        assert ours[:2] == pytest.approx(
            (theirs["precision"], theirs["recall"]), abs=1e-6
        )  # theirs are single precision


def test_density_and_coverage_of_equal_distributions():
    """Their expectations are known for any continuous distribution (Naeem et al. 2020)."""
    n, m, k = 40, 60, 5
    found = [precision_recall.prdc(torch.randn(n, 3), torch.randn(m, 3)) for _ in range(200)]
    density, coverage = (
        torch.tensor([getattr(f, name) for f in found]) for name in ("density", "coverage")
    )
    missed = math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert is_close(density, 1) and is_close(coverage, 1 - missed)


def test_manifold_errors_are_the_replicate():
    draws = [(torch.randn(300, 4), 0.5 + torch.randn(300, 4)) for _ in range(40)]
    values = torch.tensor([precision_recall.prdc(*draw) for draw in draws])
    stated = (
        torch.tensor([precision_recall.prdc_standard_errors(*draw) for draw in draws])
        .square()
        .mean(0)
        .sqrt()
    )
    assert stated == pytest.approx(
        values.std(0), rel=0.4
    )  # the parts are smaller sets, so the numbers differ a little
    assert precision_recall.prdc_standard_errors(*(x[:50] for x in draws[0])) == [None] * 4


# --- sliced Wasserstein ---------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "shift", "s"), [(1, 1.0, 1.0), (3, 1.0, 2.0), (20, 0.5, 0.5)])
def test_sliced_wasserstein_of_two_gaussians(d, shift, s):
    """SW₂² of N(0, I) and N(μ, s² I) is |μ|²/D + (1 − s)²."""
    value, error = sliced_wasserstein.sliced_wasserstein_and_error(
        torch.randn(4000, d), shift + s * torch.randn(3000, d)
    )
    assert abs(value - math.sqrt(shift**2 + (1 - s) ** 2)) < 4 * error and error < 0.05 * value


def test_sliced_wasserstein_is_exact_on_a_line():
    from scipy.optimize import linear_sum_assignment

    x, y = torch.randn(6, 1).double(), torch.randn(4, 1).double()
    cost = torch.cdist(x.repeat_interleave(2, 0), y.repeat_interleave(3, 0)).square()
    exact = math.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert sliced_wasserstein.sliced_wasserstein_and_error(x, y)[0] == pytest.approx(
        exact, rel=1e-12
    )
    assert sliced_wasserstein.sliced_wasserstein_and_error(x, x + 3)[0] == pytest.approx(
        3, rel=1e-12
    )
    assert sliced_wasserstein.sliced_wasserstein_and_error(x, x.flip(0)) == (0, 0)


@pytest.mark.parametrize("d", [1, 5])
def test_sliced_wasserstein_error_is_the_replicate(d):

    def draw(i: int) -> tuple[float, float]:
        x, y = torch.randn(300, d), 1 + 2 * torch.randn(200, d)
        return sliced_wasserstein.sliced_wasserstein_and_error(x, y, directions=32, seed=i)

    _, true, stated = replicate(draw, 150)
    assert stated == pytest.approx(true, rel=0.2)


# --- modes of a mixture ---------------------------------------------------------------------------


def test_mode_kl():
    centers = 10 * torch.eye(4)

    def at(*counts: int) -> torch.Tensor:
        return centers.repeat_interleave(torch.tensor(counts), 0)

    assert mode_coverage.mode_frequency_kl_and_error(at(5, 5, 5, 5), centers) == (
        0,
        pytest.approx(0.08, abs=0.08),
    )
    assert mode_coverage.mode_frequency_kl_and_error(at(9, 0, 0, 0), centers) == (
        pytest.approx(math.log(4)),
        0,
    )
    assert mode_coverage.mode_frequency_kl_and_error(at(6, 2, 0, 0), centers)[0] == pytest.approx(
        0.75 * math.log(3) + 0.25 * math.log(1)
    )
    assert (
        mode_coverage.mode_frequency_kl_and_error(
            at(6, 2, 0, 0), centers, torch.tensor([0.75, 0.25, 0, 0])
        )[0]
        == 0
    )

    def even(i: int) -> tuple[float, float]:
        return mode_coverage.mode_frequency_kl_and_error(centers[torch.randint(4, (200,))], centers)

    assert is_close(replicate(even, 200)[0], 3 / (2 * 200)), "the bias (M − 1)/(2N)"
    w = torch.tensor([0.6, 0.2, 0.1, 0.1])

    def uneven(i: int) -> tuple[float, float]:
        x = centers[torch.multinomial(w, 300, replacement=True)]
        return mode_coverage.mode_frequency_kl_and_error(x, centers, seed=i)

    _, true, stated = replicate(uneven, 200)
    assert stated == pytest.approx(true, rel=0.2)


# --- memorization ---------------------------------------------------------------------------------


def test_nearest_neighbors_by_hand():
    train = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    distance, index = memorization.nearest_train_distances_and_indices(
        torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 5.0]]), train
    )
    assert index.tolist() == [0, 2, 2]
    assert distance.tolist() == pytest.approx([1, math.sqrt(10), 0])


def test_nearest_neighbors_are_exact(monkeypatch):
    monkeypatch.setattr(precision_recall, "MAX_BLOCK_DISTANCES", 1)
    x, train = 100 + torch.rand(300, 50), 100 + torch.rand(500, 50)
    train[7] = x[200]
    train[8] = x[200] + 1e-4  # equal in single precision
    distance, index = memorization.nearest_train_distances_and_indices(x, train)
    exhaustive = torch.cdist(
        x.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    assert torch.allclose(distance, exhaustive.values, atol=1e-12) and torch.equal(
        index, exhaustive.indices
    )
    assert distance[200] == 0


def test_copying_probability_is_the_mann_whitney_statistic():
    from scipy.stats import mannwhitneyu

    a, b = torch.randint(20, (70,)).double(), torch.randint(5, 25, (50,)).double()  # with ties
    assert memorization.copying_probability_and_error(a, b)[0] == pytest.approx(
        mannwhitneyu(b, a).statistic / (70 * 50)
    )
    assert memorization.copying_probability_and_error(torch.zeros(5), torch.ones(4)) == (1, 0)

    def draw(shift: float, i: int) -> tuple[float, float]:
        return memorization.copying_probability_and_error(torch.randn(80), shift + torch.randn(60))

    for shift, exact in ((0.0, 0.5), (1.0, 0.5 * (1 + math.erf(0.5)))):  # Φ(shift/√2)
        values, true, stated = replicate(partial(draw, shift), 200)
        assert is_close(values, exact) and stated == pytest.approx(true, rel=0.15)


def test_memorization_separates_copies_from_new_samples():
    train, test = Batch(torch.randn(2000, 2)), Batch(torch.randn(1000, 2))
    data = GivenItems(POINTS, train=train, test=test)
    distance, copying = memorization.measure(make_context(data, train.x[:400]))
    assert (distance.value, copying.value, copying.error) == (0, 1, 0)
    assert distance.real_vs_real > 0.02 and copying.real_vs_real == pytest.approx(0.5, abs=0.08)
    distance, copying = memorization.measure(make_context(data, torch.randn(400, 2)))
    assert (
        abs(distance.value - distance.real_vs_real) < 6 * distance.error
        and abs(copying.value - 0.5) < 4 * copying.error
    )
    assert distance.conditions["train"] == 2000 and distance.better == copying.better == "neither"


@pytest.mark.parametrize("space", ["pixels", None])
def test_nearest_pairs_of_copies_are_the_originals(space, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    train = labeled_images(40)
    data = GivenItems(IMAGES, train=train, test=labeled_images(20))
    samples = train.x[[5, 3, 9, 20]].float() / 255
    drawn, found = memorization.samples_and_nearest_train_items(
        make_context(data, samples, features=("pixels",)), 3, space=space
    )
    assert drawn.dtype == found.dtype == torch.uint8
    assert torch.equal(drawn, train.x[[5, 3, 9]]) and torch.equal(found, drawn)


# --- classes --------------------------------------------------------------------------------------


class BrightnessClassifier:
    """A perfect classifier of images whose class is their brightness."""

    name, key, conditions = "classifier", "brightness", {"features": "classifier"}

    def __init__(self, *unused) -> None: ...

    def __call__(self, x):
        logits = torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).float()
        assert x.shape[1] == 1
        return logits, logits


@pytest.fixture
def brightness_classifier(monkeypatch, tmp_path):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    monkeypatch.setitem(features.EXTRACTORS, "classifier", BrightnessClassifier)


def brightness_images(y: torch.Tensor) -> torch.Tensor:
    """Return images uint8 (N, C, 8, 8) with the brightness y (N, C)."""
    return y[:, :, None, None].expand(-1, -1, 8, 8).to(torch.uint8)


def test_class_kl():
    k, y = 4, torch.arange(80)[:, None] % 4
    assert classifier_metrics.class_frequency_kl_and_error(y, y, k)[0] == 0
    assert classifier_metrics.class_frequency_kl_and_error(y % 2, y, k)[0] == pytest.approx(
        math.log(2)
    )
    assert math.isfinite(classifier_metrics.class_frequency_kl_and_error(y, y % 2, k)[0])
    stacked = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert classifier_metrics.class_frequency_kl_and_error(stacked, stacked, k)[0] == pytest.approx(
        0, abs=1e-12
    )
    assert classifier_metrics.class_frequency_kl_and_error(stacked[:5], stacked, k)[
        0
    ] == pytest.approx(math.log(64 / 5))
    uneven = torch.tensor(
        [[0, 0], [0, 1], [2, 1]]
    )  # the distribution of real items is the product of their channels'
    assert torch.equal(
        classifier_metrics.count_class_combinations(uneven, 3),
        torch.tensor([1, 0, 0, 1, 0, 1, 0, 0, 0]).double(),
    )
    first, second = torch.tensor([2, 0.5, 1]) / 3.5, torch.tensor([1, 2, 0.5]) / 3.5
    assert torch.allclose(
        classifier_metrics.independent_combination_probs(uneven, 3),
        torch.outer(second, first).flatten().double(),
    )
    w = torch.tensor([0.6, 0.2, 0.1, 0.1])

    def pick(n: int) -> torch.Tensor:
        return torch.multinomial(w, n, replacement=True)[:, None]

    _, true, stated = replicate(
        lambda i: classifier_metrics.class_frequency_kl_and_error(
            pick(300), torch.randint(4, (400, 1)), 4, seed=i
        ),
        40,
    )
    assert stated == pytest.approx(true, rel=0.4)


@pytest.mark.parametrize("parts", [1, 3])
def test_class_coverage(parts, brightness_classifier):
    y = torch.cartesian_prod(*[torch.arange(4)] * parts).reshape(-1, parts).repeat(4, 1)
    data = GivenItems(
        DataSpec((parts, 8, 8), num_classes=4, range=(0.0, 1.0)),
        test=Batch(brightness_images(y), y[:, 0]),
    )
    data.stacked = parts > 1
    half = 4**parts // 2
    found, kl = classifier_metrics.measure_class_coverage(
        make_context(data, brightness_images(y[:half].repeat(8, 1)).float() / 255)
    )
    assert (found.value, found.unit) == (half, f"of {4**parts}") and kl.value == pytest.approx(
        math.log(2)
    )
    assert (found.real_vs_real, kl.real_vs_real) == (4**parts, pytest.approx(0, abs=1e-12))
    assert (
        classifier_metrics.class_coverage_row_names(make_context(data, y))
        == ["class_mode_count", "class_kl"]
        == [found.name, kl.name]
    )
    assert classifier_metrics.class_accuracy_row_names(make_context(data, y, y)) == (
        ["class_accuracy"] if parts == 1 else []
    )


def test_class_accuracy(brightness_classifier):
    y = torch.arange(100) % 4
    data = GivenItems(IMAGES, test=Batch(brightness_images(y[:, None]), y))
    asked = torch.where(torch.arange(100) < 36, (y + 1) % 4, y)
    (row,) = classifier_metrics.measure_class_accuracy(
        make_context(data, brightness_images(y[:, None]).float() / 255, asked)
    )
    assert (row.value, row.real_vs_real) == (0.64, 1) and row.error == pytest.approx(
        math.sqrt(0.64 * 0.36 / 100)
    )
    assert classifier_metrics.class_accuracy_row_names(make_context(data, y)) == [], (
        "samples without classes"
    )


def test_classification_accuracy_score(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier_metrics, "CAS_IMAGES_SEEN", 2500)
    data = GivenItems(IMAGES, train=labeled_images(200), test=labeled_images(100))
    assert (
        classifier_metrics.classification_accuracy_score_row_names(
            make_context(data, data.splits["train"].x)
        )
        == []
    )
    good = labeled_images(200)
    (row,) = classifier_metrics.measure_classification_accuracy_score(
        make_context(data, good.x / 255, good.y)
    )
    assert row.value > 0.97 and row.real_vs_real > 0.97
    (row,) = classifier_metrics.measure_classification_accuracy_score(
        make_context(data, good.x / 255, (good.y + 1) % 4)
    )
    assert row.value < 0.03 and row.real_vs_real > 0.97, "it learns the wrong labels"


# --- rows -----------------------------------------------------------------------------------------


def test_metrics_give_the_rows_that_they_name():
    ring = Ring()
    generator = torch.Generator().manual_seed(0)
    data = GivenItems(
        POINTS,
        **{name: Batch(ring.sample(400, generator)[0].float()) for name in ("train", "test")},
    )
    data.centers, data.std, data.log_weights = ring.centers, ring.std, ring.log_weights
    drawn = ring.sample(200, generator)[0].float()
    found: dict[str, Row] = {}
    for module in (precision_recall, sliced_wasserstein, memorization, mode_coverage):
        rows = module.measure(make_context(data, drawn))
        assert [row.name for row in rows] == module.row_names(make_context(data, drawn))
        found |= {row.name: row for row in rows}
    assert all(
        row.tag == "estimate" and row.real_vs_real is not None and row.conditions["seed"] == 0
        for row in found.values()
    )
    assert (
        found["mode_count"].real_vs_real == found["mode_count"].value == 8
        and found["high_quality"].value > 0.95
    )
    assert found["sliced_wasserstein_coordinates"].value == pytest.approx(0.2, abs=0.2)
    assert found["precision_coordinates"].value > 0.9 and found["mode_kl"].value < 0.06
    for row_names in (
        classifier_metrics.class_coverage_row_names,
        classifier_metrics.class_accuracy_row_names,
        classifier_metrics.classification_accuracy_score_row_names,
    ):
        assert row_names(make_context(data, drawn)) == [], "points are not images"
