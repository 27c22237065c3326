"""Measures against what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from genlab.abilities import Estimate
from genlab.errors import UserError
from genlab.metrics import (
    Settings,
    energy_distance,
    likelihood,
    measure,
    metrics_for,
    mode_coverage,
)
from genlab.metrics.context import Subject
from genlab.spec import Batch, Spec


class Held:
    """A dataset of given items."""

    name = "held"

    def __init__(self, x: torch.Tensor, spec: Spec) -> None:
        self.x, self.spec = x, spec

    def size(self, split):
        return len(self.x)

    def take(self, split, n=None, *, seed=0, device="cpu"):
        return Batch(self.x[:n])


class Normal(torch.nn.Module):
    """N(0, s²) in each dimension, with every way of telling its likelihood."""

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


POINTS = Spec((2,), kind="points", levels=0)


def subject(model, dataset, **settings) -> Subject:
    return Subject(dataset, Settings(**settings), model=model)


def test_energy_distance_of_two_normals():
    """In one dimension 2 E|X−Y| − E|X−X'| − E|Y−Y'| of N(0, 1) and N(m, 1) is a closed form (folded normals)."""
    m = 1.5
    folded = lambda mu, s: (
        s * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * s**2))
        + mu * math.erf(mu / (s * math.sqrt(2)))
    )  # noqa: E731
    exact = 2 * folded(m, math.sqrt(2)) - 2 * folded(0, math.sqrt(2))
    torch.manual_seed(0)
    value, error = energy_distance.energy_distance(torch.randn(3000, 1), m + torch.randn(3000, 1))
    assert abs(value - exact) < 4 * error and error < 0.1 * exact
    values = [
        energy_distance.energy_distance(torch.randn(60, 1), torch.randn(60, 1))[0]
        for _ in range(200)
    ]
    mean = torch.tensor(values)
    assert abs(mean.mean()) < 4 * mean.std() / math.sqrt(200), (
        "without bias: 0 in the mean for equal laws"
    )


def test_energy_distance_bootstrap_error_is_the_spread():
    torch.manual_seed(0)
    pairs = [
        energy_distance.energy_distance(torch.randn(200, 2), 1 + torch.randn(200, 2))
        for _ in range(100)
    ]
    spread = torch.tensor([value for value, _ in pairs]).std()
    said = torch.tensor([error for _, error in pairs]).mean()
    assert said == pytest.approx(spread.item(), rel=0.25)


def test_modes_counts_what_lies_within_three_deviations():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.tensor([[0.29, 0.0], [0.0, 0.31], [10.0, 0.1], [5.0, 5.0]])
    assert mode_coverage.count_modes(x, centers, 0.1) == (2, 0.5)


def test_likelihood_of_an_energy_model_is_minus_energy_minus_log_z():
    torch.manual_seed(0)
    x = 0.5 * torch.randn(20_000, 2)
    (row,) = likelihood.measure(subject(Normal(0.5), Held(x, POINTS), n=len(x)))
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    assert (row.name, row.tag, row.unit) == ("nll", "estimate", "nats")
    assert abs(row.value - entropy) < 4 * row.error
    assert row.error == pytest.approx(math.hypot(1 / math.sqrt(20_000), 0.01), rel=0.05), (
        "data and log Z together"
    )


class StandardNormal(Held):
    """Points of N(0, I) in the plane, which know their density."""

    entropy = math.log(2 * math.pi * math.e)

    def log_prob(self, x):
        return -0.5 * x.square().sum(1) - math.log(2 * math.pi)


def test_the_gap_to_the_entropy_is_the_divergence_of_two_normals():
    """KL(N(0, I) ‖ N(0, s² I)) = d (log s + 1/(2 s²) − 1/2); with the law's density known, the draw's noise cancels."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 2)
    nll, gap = likelihood.measure(subject(Normal(0.9), StandardNormal(x, POINTS), n=len(x)))
    exact = 2 * (math.log(0.9) + 1 / (2 * 0.9**2) - 0.5)
    assert (nll.name, gap.name, gap.conditions["entropy"]) == ("nll", "nll_gap", 2.8379)
    assert abs(gap.value - exact) < 3 * math.hypot(gap.error, 0.01) and gap.error < nll.error


def test_bits_per_dim():
    bits = Spec((1, 2, 2), levels=256, range=(0.0, 1.0))
    assert bits.bits_per_dim(-4 * math.log(256)) == pytest.approx(8)
    spread = Spec((1, 2, 2), levels=256, range=(-1.0, 1.0), dequantised=True)
    uniform = -4 * math.log(2)  # log density of the uniform law on (−1, 1)⁴
    assert spread.bits_per_dim(uniform) == pytest.approx(8)
    assert POINTS.bits_per_dim(0.0) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["likelyhood"], "did you mean 'likelihood'"),
        (["modes"], "modes does not fit: held is not data that it can judge"),
        (["elbo"], "Normal has no elbo; models that have it: vae"),
    ],
)
def test_a_measure_that_does_not_fit_is_refused(names, words):
    data = Held(torch.randn(9, 2), POINTS)
    with pytest.raises(UserError, match=words):
        measure(subject(Normal(1), data), names, able=lambda verb: ["vae"])
    assert list(metrics_for(subject(Normal(1), data), "training")) == [
        "likelihood",
        "energy_distance",
    ]


def test_energy_distance_has_the_floor_of_two_halves():
    torch.manual_seed(0)
    (row,) = energy_distance.measure(subject(Normal(1), Held(torch.randn(600, 2), POINTS), n=600))
    assert row.conditions["n"] == 600 and row.conditions["floor"] == "300 against 300"
    assert abs(row.value) < 4 * row.error and abs(row.floor) < 8 * row.error
