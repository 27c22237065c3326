"""The registry of metrics, likelihoods and the energy distance, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from genlab.abilities import Estimate
from genlab.data.dataset import Dataset, Split
from genlab.errors import UserError
from genlab.metrics import energy_distance, likelihood, mode_coverage
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import applicable_metrics, measure, measure_metrics
from genlab.model import GenerativeModel
from genlab.spec import Batch, DataSpec


class GivenItems(Dataset):
    """A dataset of given items."""

    name = "held"

    def __init__(self, x: torch.Tensor, spec: DataSpec) -> None:
        self.x, self.spec = x, spec

    def size(self, split):
        return len(self.x) if split != "train" else 0

    def head(self, split, n=None, *, seed=0, device="cpu"):
        return Batch(self.x[:n])


class Normal(GenerativeModel):
    """N(0, s²) in each dimension, as an energy-based model."""

    def __init__(self, s: float, d: int = 2) -> None:
        super().__init__()
        self.s = torch.nn.Parameter(torch.tensor(float(s)))
        self.d = d

    def energy(self, x):
        return 0.5 * (x / self.s).square().sum(1)

    def log_partition(self):
        return Estimate(self.d * (math.log(self.s) + 0.5 * math.log(2 * math.pi)), 0.01, "estimate")

    def sample(self, n, y=None):
        return self.s * torch.randn(n, self.d)


POINTS = DataSpec((2,), kind="points", levels=0)


def make_context(model, dataset, **settings) -> MetricContext:
    return MetricContext(dataset, Settings(**settings), model=model)


def test_energy_distance_of_two_normals():
    """In one dimension that of N(0, 1) and N(m, 1) has a closed form (folded normals)."""
    m = 1.5

    def folded_mean(mu: float, s: float) -> float:
        tail = s * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * s**2))
        return tail + mu * math.erf(mu / (s * math.sqrt(2)))

    exact = 2 * folded_mean(m, math.sqrt(2)) - 2 * folded_mean(0, math.sqrt(2))
    torch.manual_seed(0)
    value, error = energy_distance.energy_distance_and_error(
        torch.randn(3000, 1), m + torch.randn(3000, 1)
    )
    assert abs(value - exact) < 4 * error and error < 0.1 * exact
    values = [
        energy_distance.energy_distance_and_error(torch.randn(60, 1), torch.randn(60, 1))[0]
        for _ in range(200)
    ]
    mean = torch.tensor(values)
    assert abs(mean.mean()) < 4 * mean.std() / math.sqrt(200), (
        "unbiased: 0 on average for equal distributions"
    )


@pytest.mark.parametrize("shift", [1.0, 0.0])
def test_energy_distance_error_is_the_standard_deviation(shift):
    """Also between equal distributions, where a bootstrap is 1.7 times too wide."""
    torch.manual_seed(0)
    pairs = [
        energy_distance.energy_distance_and_error(torch.randn(150, 5), shift + torch.randn(200, 5))
        for _ in range(100)
    ]
    spread = torch.tensor([value for value, _ in pairs]).std()
    stated = torch.tensor([error for _, error in pairs]).mean()
    assert stated == pytest.approx(spread.item(), rel=0.25)


class BoundWithPartition(Normal):
    """A model of binary data whose bounds need log Z, known exactly or by a few chains."""

    def __init__(self, log_z: Estimate) -> None:
        super().__init__(1.0)
        self.log_z = log_z

    energy = None

    def log_partition(self):
        return self.log_z

    def elbo(self, x, y=None, *, num_terms=None):
        return -x.sum(1) - self.log_z.value

    def iwae(self, x, num_samples, y=None):
        return 0.1 - x.sum(1) - self.log_z.value


@pytest.mark.parametrize(
    ("log_z", "tag"),
    [
        (Estimate(1.0, None, "exact"), "bound"),
        (Estimate(1.0, 0.5, "estimate", "few chains", 3.21), "estimate"),
    ],
)
def test_a_bound_that_contains_an_estimate_is_an_estimate(log_z, tag):
    data = GivenItems(torch.ones(30, 2), DataSpec((2,), kind="points", levels=2, range=(0, 1)))
    rows = likelihood.measure(make_context(BoundWithPartition(log_z), data, n=30))
    assert [row.name for row in rows] == ["nll_elbo", "nll_iwae", "bits_per_dim"]
    assert {row.tag for row in rows} == {tag}
    assert [row.note for row in rows] == [log_z.note, "", ""]
    assert rows[0].error == pytest.approx(log_z.error or 0.0, abs=1e-6)
    effective = "3.21 effective" if log_z.effective_chains else None
    assert rows[0].conditions.get("log Z chains") == effective


def test_count_modes_counts_samples_within_three_deviations():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.tensor([[0.29, 0.0], [0.0, 0.31], [10.0, 0.1], [5.0, 5.0]])
    assert mode_coverage.count_modes_and_fraction_near(x, centers, 0.1) == (2, 0.5)


def test_likelihood_of_an_energy_model_is_minus_energy_minus_log_z():
    torch.manual_seed(0)
    x = 0.5 * torch.randn(20_000, 2)
    (row,) = likelihood.measure(make_context(Normal(0.5), GivenItems(x, POINTS), n=len(x)))
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    assert (row.name, row.tag, row.unit) == ("nll", "estimate", "nats")
    assert abs(row.value - entropy) < 4 * row.error
    assert row.error == pytest.approx(math.hypot(1 / math.sqrt(20_000), 0.01), rel=0.05), (
        "the errors of data and log Z together"
    )


class StandardNormal(GivenItems):
    """Points of N(0, I) in the plane, with their density."""

    entropy = math.log(2 * math.pi * math.e)

    def log_prob(self, x):
        return -0.5 * x.square().sum(1) - math.log(2 * math.pi)


def test_kl_to_truth_is_the_divergence_of_two_normals():
    """KL(N(0, I) ‖ N(0, s² I)) = d (log s + 1/(2 s²) − 1/2).

    The density of the data is known, so the noise of the choice of items cancels.
    """
    torch.manual_seed(0)
    x = torch.randn(20_000, 2)
    nll, gap = likelihood.measure(make_context(Normal(0.9), StandardNormal(x, POINTS), n=len(x)))
    exact = 2 * (math.log(0.9) + 1 / (2 * 0.9**2) - 0.5)
    assert (nll.name, gap.name, gap.conditions["entropy"]) == ("nll", "kl_to_truth", 2.8379)
    assert abs(gap.value - exact) < 3 * math.hypot(gap.error, 0.01) and gap.error < nll.error


def test_bits_per_dim():
    bits = DataSpec((1, 2, 2), levels=256, range=(0.0, 1.0))
    assert bits.bits_per_dim(-4 * math.log(256)) == pytest.approx(8)
    spread = DataSpec((1, 2, 2), levels=256, range=(-1.0, 1.0), dequantized=True)
    uniform = -4 * math.log(2)  # log density of the uniform distribution on (−1, 1)⁴
    assert spread.bits_per_dim(uniform) == pytest.approx(8)
    assert POINTS.bits_per_dim(0.0) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["likelyhood"], "did you mean 'likelihood'"),
        (
            ["mode_coverage"],
            "mode_coverage does not apply: it is not defined for Normal on held, but for mixtures",
        ),
        (["cluster_purity"], "Normal does not support encode"),
        (["elbo"], "Normal does not support `elbo`; models that do: vae"),
    ],
)
def test_metrics_that_do_not_apply_are_refused(names, words):
    data = GivenItems(torch.randn(9, 2), POINTS)
    with pytest.raises(UserError, match=words):
        measure(make_context(Normal(1), data), names, list_models=lambda verb: ["vae"])
    assert list(applicable_metrics(make_context(Normal(1), data), "training")) == [
        "likelihood",
        "energy_distance",
    ]


def test_energy_distance_of_two_real_halves():
    torch.manual_seed(0)
    (row,) = energy_distance.measure(
        make_context(Normal(1), GivenItems(torch.randn(600, 2), POINTS), n=600)
    )
    assert row.conditions["n"] == 600 and row.conditions["real_vs_real"] == "300 against 300"
    assert abs(row.value) < 4 * row.error and abs(row.real_vs_real) < 8 * row.error


class DrawnPoints(Dataset):
    """Normal points in the plane, n of them held out."""

    name = "drawn"

    def __init__(self, n: int) -> None:
        torch.manual_seed(1)
        self.set_splits(
            POINTS, {"train": Split(torch.randn(20, 2)), "test": Split(torch.randn(n, 2))}
        )


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 6, 12, 20])
@pytest.mark.filterwarnings("error")
def test_a_metric_that_needs_more_items_does_not_cancel_the_others(n):
    """Every number is finite, and what is missing has its reason."""
    context = make_context(Normal(1.0), DrawnPoints(n), n=max(n, 4))
    found = measure_metrics(context)
    assert {*found.rows, *found.skipped} == set(applicable_metrics(context))
    for row in (row for rows in found.rows.values() for row in rows):
        numbers = (row.value, row.error, row.real_vs_real)
        assert all(number is None or math.isfinite(number) for number in numbers), row
    expected = {0: len(applicable_metrics(context)) - 1, 1: 7, 20: 0, 12: 0, 6: 0}
    assert len(found.skipped) == expected.get(n, 1)
    if 1 < n < 6:
        assert found.skipped["prdc"].startswith("it requires at least 6 held-out items, but ")


def test_failed_linear_algebra_leaves_out_one_metric(monkeypatch):
    def fail(*args):
        raise torch.linalg.LinAlgError("linalg.eigh: failed to converge\nmore")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    found = measure_metrics(make_context(Normal(1.0), DrawnPoints(20), n=20), ["frechet", "kid"])
    assert "failed to converge" in found.skipped["frechet"] and "kid" in found.rows


class NamedImages(Dataset):
    """Random images with labels."""

    name = "named"

    def __init__(self) -> None:
        spec = DataSpec((1, 4, 4), num_classes=2, range=(0.0, 1.0))
        x, y = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8), torch.arange(30) % 2
        self.set_splits(spec, {split: Split(x, y) for split in ("train", "test")})


class NoiseImages(Normal):
    def sample(self, n, y=None):
        return torch.rand(n, 1, 4, 4)


@pytest.mark.parametrize(
    ("features", "has_classifier"), [(None, True), (("pixels",), False), (("classifier",), True)]
)
def test_other_feature_spaces_need_no_classifier(features, has_classifier):
    context = make_context(NoiseImages(1.0), NamedImages(), n=30, features=features)
    metrics = applicable_metrics(context)
    assert ("class_coverage" in metrics) == has_classifier
    assert "class_coverage" in applicable_metrics(context, "on_request"), "if it is named"
    assert "frechet" in metrics
