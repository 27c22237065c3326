"""Each diffusion objective has its minimum at the optimal denoiser of a known mixture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.kinds import first_of_each_kind
from helpers.recipes import build_training_objects

from genlab.spec import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_diffusion as script

NUM_BATCHES, BATCH_SIZE = 60, 2000


def build_untrained(objective: str, distribution: str = "ring"):
    """Return (model, distribution) as the script trains them, in float64 and untrained."""
    options = (*script.OBJECTIVES[objective], *script.DISTRIBUTIONS[distribution])
    _, dataset, trainer = build_training_objects(*options, "device=cpu", "out=unused")
    return trainer.model.double(), dataset.distribution


class AffineOutput(torch.nn.Module):
    """A network whose output is `scale` times that of another, plus `shift`."""

    def __init__(self, network: torch.nn.Module, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, x, t, y=None):
        return self.scale * self.network(x, t, y) + self.shift


def losses_of(model, network, distribution) -> torch.Tensor:
    """Return the losses (NUM_BATCHES,) of a model with another network, on the same draws."""
    generator, losses = torch.Generator().manual_seed(0), []
    torch.manual_seed(1)  # not 0: with the same seed the noise would equal the points
    with torch.no_grad(), script.use_network_temporarily(model, network):
        for _ in range(NUM_BATCHES):
            loss = model.loss(Batch(distribution.sample(BATCH_SIZE, generator)[0]))
            losses.append(loss.get("simple", loss["loss"]))
    return torch.stack(losses)


@pytest.mark.parametrize(
    "objective", first_of_each_kind(script.OBJECTIVES, lambda name: script.OBJECTIVES[name][0])
)
def test_optimal_network_minimizes_the_objective(objective):
    """The loss has zero slope at the optimal network, in the scale and the mean of its output."""
    model, distribution = build_untrained(objective)
    optimal = script.OptimalNetwork(model, distribution.centers, distribution.std)
    h = 0.05
    minimum = losses_of(model, optimal, distribution).mean()
    for parameter, center in (("scale", 1.0), ("shift", 0.0)):

        def losses_at(offset: float, parameter=parameter, center=center) -> torch.Tensor:
            network = AffineOutput(optimal, **{parameter: center + offset})
            return losses_of(model, network, distribution)

        up, down = losses_at(h), losses_at(-h)
        slope = (up - down) / (2 * h)
        assert abs(slope.mean()) < 4 * slope.std() / NUM_BATCHES**0.5, parameter
        assert up.mean() > minimum and down.mean() > minimum, parameter
        slope_beside = (losses_at(2 * h) - minimum) / (2 * h)
        assert slope_beside.mean() > 4 * slope.std() / NUM_BATCHES**0.5, parameter


@pytest.mark.parametrize("objective", ["ε", "v", "flow matching"])
def test_bound_and_ode_of_optimal_network_equal_the_density(objective):
    """On the ring of eight Gaussians, both are within 0.02 nats of the exact log-density."""
    model, distribution = build_untrained(objective)
    model.network = script.OptimalNetwork(model, distribution.centers, distribution.std)
    x = distribution.sample(1500, torch.Generator().manual_seed(3))[0]
    exact = distribution.log_prob(x)
    torch.manual_seed(0)
    assert abs((exact - model.ode_log_prob(x, steps=100, num_probes=2)).mean()) < 0.02
    bound = torch.stack([model.elbo(x, num_terms=100) for _ in range(6)]).mean(0)
    gap = exact - bound
    assert -0.02 < gap.mean() < 0.02 + 3 * gap.std() / len(x) ** 0.5


@pytest.mark.parametrize("distribution", script.DISTRIBUTIONS)
@pytest.mark.parametrize("objective", script.OBJECTIVES)
def test_commands_of_the_script_compose(objective, distribution):
    assert build_untrained(objective, distribution)[0].spec.shape == (2,)


def test_page_is_the_one_that_the_script_writes():
    rows = json.loads(script.OUT.read_text())
    assert script.OUT.with_suffix(".md").read_text() == script.format_markdown_page(rows)
    on_ring = {row["objective"] for row in rows if row["distribution"] == "ring"}
    assert on_ring == set(script.OBJECTIVES)
