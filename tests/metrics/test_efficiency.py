"""What a model costs, against what is known of how each one draws."""

from __future__ import annotations

import pytest
import torch
from helpers.recipes import SMALL, built
from torch import nn

from genlab.metrics import Settings, efficiency
from genlab.metrics.context import Subject
from genlab.spec import Batch

# How often one sample makes the network run, from the algorithm that draws it.
KNOWN = [
    ("gan", {}, 1),
    ("dcgan", {}, 1),
    ("vae", {}, 1),
    ("vae_conv", {}, 1),
    ("realnvp", {}, 1),  # parametrised weights
    ("realnvp_points", {}, 1),
    ("rbm", {"steps": 7}, 14),  # W up and down in each step
    ("ddpm_points", {}, 1000),
    ("ddpm_points", {"sampler": "ddim", "steps": 10}, 10),
    ("ddpm_small", {"steps": 10}, 10),
]


@pytest.mark.parametrize(
    ("recipe", "sampler", "known"), KNOWN, ids=[f"{r}-{n}" for r, _, n in KNOWN]
)
def test_network_evaluations(recipe, sampler, known):
    _, _, trainer = built(f"model={recipe}", "prepare.size=16", *SMALL)
    assert efficiency.network_evaluations(trainer.sampler(), **sampler) == known


class Autoregressive(nn.Module):
    """Four values, each drawn by one evaluation of a network with a tied, a cast, a normalised and a compiled layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(4, 3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        )
        self.last = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.first.compile(backend="eager")

    def sample(self, n, y=None):
        x = self.first[0].weight.new_zeros(n, 4).to(self.last.weight)
        for i in range(4):
            values = self.scale * self.last(self.first(x)) / self.scale
            x = torch.cat([x[:, :i], values[:, i : i + 1], x[:, i + 1 :]], 1)
        return x


def test_evaluations_of_a_foreign_model():
    model = Autoregressive().eval()
    assert efficiency.network_evaluations(model) == 4
    assert not [m for m in model.modules() if m._forward_hooks], "the model stays as it was"


@pytest.fixture(scope="module")
def gan():
    return built(
        "model=gan", "model.hidden=[8]", "model.discriminator_hidden=[8]", "model.latent=3", *SMALL
    )


def test_rows_carry_their_conditions(gan):
    _, dataset, trainer = gan
    log = {"seconds": 12.5, "items_per_s": 400.0, "memory_mb": 300.0, "steps": 50}
    subject = Subject(dataset, Settings(n=30, batch_size=20), model=trainer.sampler(), training=log)
    found = {row.name: row for row in efficiency.measure(subject)}
    assert list(found) == efficiency.rows(subject)
    pixels = dataset.spec.dim
    assert found["parameters"].value == (3 * 8 + 8 + 8 * pixels + pixels) + (pixels * 8 + 8 + 8 + 1)
    assert (found["training_seconds"].value, found["training_seconds"].conditions) == (
        12.5,
        {"steps": 50},
    )
    assert (found["training_items_per_s"].value, found["training_items_per_s"].better) == (
        400,
        "higher",
    )
    assert (found["peak_memory"].value, found["peak_memory"].unit) == (300, "MB")
    drawing = found["sampling_seconds"]
    assert (
        drawing.value == pytest.approx(subject.draw_seconds / 30 * 1000)
        and drawing.tag == "estimate"
    )
    assert drawing.conditions == {"n": 30, "batch_size": 20, "device": "cpu, 1 threads"}
    assert (found["network_evaluations"].value, found["network_evaluations"].tag) == (1, "exact")


def test_rows_only_for_what_is_known(gan):
    _, dataset, trainer = gan
    drawn = Batch(torch.zeros(3, *dataset.spec.shape))
    assert efficiency.rows(Subject(dataset, Settings(), samples=drawn)) == []
    assert efficiency.rows(Subject(dataset, Settings(), model=trainer.sampler(), training={"seconds": 1.0})) == [
        "parameters", "training_seconds", "sampling_seconds", "network_evaluations",
    ]  # fmt: skip
    assert efficiency.rows(Subject(dataset, Settings(), model=nn.Linear(2, 2))) == ["parameters"]
