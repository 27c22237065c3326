"""Every objective of diffusion on a mixture whose best denoiser is known, by the script that writes docs/diffusion.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.recipes import built

from genlab.spec import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_diffusion as script

BATCHES, ROWS = 60, 2000


def model_of(objective: str, law: str = "ring"):
    """Return (model, law) as the script trains it, in float64, untrained, and with no word of the device or the folder."""
    _, dataset, trainer = built(
        *script.OBJECTIVES[objective], *script.LAWS[law], "device=cpu", "out=unused"
    )
    return trainer.model.double(), dataset.law


class Scaled(torch.nn.Module):
    """A network whose answers are `by` times another's, and moved by `shift`."""

    def __init__(self, network: torch.nn.Module, by: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.network, self.by, self.shift = network, by, shift

    def forward(self, x, t, y=None):
        return self.by * self.network(x, t, y) + self.shift


def losses(model, network, law) -> torch.Tensor:
    """Return the loss (BATCHES,) with a network in the place of the model's own, always on the same draws."""
    own, model.network = model.network, network
    generator, found = torch.Generator().manual_seed(0), []
    torch.manual_seed(1)  # another: by the same seed the noise would be the items' own
    with torch.no_grad():
        for _ in range(BATCHES):
            loss = model.loss(Batch(law.sample(ROWS, generator)[0]))
            found.append(loss.get("simple", loss["loss"]))
    model.network = own
    return torch.stack(found)


@pytest.mark.parametrize("objective", script.OBJECTIVES)
def test_the_optimum_of_every_objective_is_the_score(objective):
    """At the best denoiser the loss has no slope, neither in the size of the network's answer nor in its mean."""
    model, law = model_of(objective)
    best, h = script.Best(model, law.centers, law.std), 0.05
    at = losses(model, best, law).mean()
    for kind, middle in (("by", 1.0), ("shift", 0.0)):
        up, down = (losses(model, Scaled(best, **{kind: middle + d}), law) for d in (h, -h))
        slope = (up - down) / (2 * h)
        assert abs(slope.mean()) < 4 * slope.std() / BATCHES**0.5, kind
        assert up.mean() > at and down.mean() > at, kind
        off = (losses(model, Scaled(best, **{kind: middle + 2 * h}), law) - at) / (
            2 * h
        )  # the slope beside the optimum
        assert off.mean() > 4 * slope.std() / BATCHES**0.5, kind


@pytest.mark.parametrize("objective", ["ε", "v", "flow matching"])
def test_bound_and_ode_of_the_exact_score_are_the_density(objective):
    """Of the ring of 8, in nats: both within 0.02, and so that no law but this one fits."""
    model, law = model_of(objective)
    model.network = script.Best(model, law.centers, law.std)
    x = law.sample(1500, torch.Generator().manual_seed(3))[0]
    exact = law.log_prob(x)
    torch.manual_seed(0)
    assert abs((exact - model.ode_log_prob(x, steps=100, probes=2)).mean()) < 0.02
    bound = torch.stack([model.elbo(x, terms=100) for _ in range(6)]).mean(0)
    gap = exact - bound
    assert -0.02 < gap.mean() < 0.02 + 3 * gap.std() / len(x) ** 0.5


@pytest.mark.parametrize("law", script.LAWS)
@pytest.mark.parametrize("objective", script.OBJECTIVES)
def test_the_script_s_commands_are_composed(objective, law):
    assert model_of(objective, law)[0].spec.shape == (2,)


def test_the_page_is_that_of_the_figures():
    rows = json.loads(script.OUT.read_text())
    assert script.OUT.with_suffix(".md").read_text() == script.page(rows)
    assert {row["objective"] for row in rows if row["law"] == "ring"} == set(script.OBJECTIVES)
