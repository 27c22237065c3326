"""The cost of models, against the known cost of their sampling algorithms."""

from __future__ import annotations

import pytest
import torch
from helpers.recipes import FAST_OVERRIDES, build_training_objects
from torch import nn

from genlab.metrics import efficiency
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.spec import Batch

# Network evaluations per sample, from the sampling algorithm.
KNOWN = [
    ("gan", {}, 1),
    ("dcgan", {}, 1),
    ("vae", {}, 1),
    ("vae_conv", {}, 1),
    ("realnvp", {}, 1),  # parametrized weights
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
    _, _, trainer = build_training_objects(f"model={recipe}", "preprocess.size=16", *FAST_OVERRIDES)
    assert efficiency.count_network_evaluations(trainer.eval_model(), **sampler) == known


class Autoregressive(nn.Module):
    """Four values, each sampled by one evaluation of a network.

    It has a tied, a cast, a normalized and a compiled layer.
    """

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


def test_network_evaluations_of_a_custom_model():
    model = Autoregressive().eval()
    assert efficiency.count_network_evaluations(model) == 4
    assert not [m for m in model.modules() if m._forward_hooks], "all hooks are removed"


@pytest.fixture(scope="module")
def gan():
    return build_training_objects(
        "model=gan",
        "model.hidden=[8]",
        "model.discriminator_hidden=[8]",
        "model.latent=3",
        *FAST_OVERRIDES,
    )


def test_rows_carry_their_conditions(gan):
    _, dataset, trainer = gan
    log = {"seconds": 12.5, "items_per_s": 400.0, "memory_mb": 300.0, "steps": 50}
    context = MetricContext(
        dataset, Settings(n=30, batch_size=20), model=trainer.eval_model(), training=log
    )
    found = {row.name: row for row in efficiency.measure(context)}
    assert list(found) == efficiency.row_names(context)
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
        drawing.value == pytest.approx(context.sampling_seconds / 30 * 1000)
        and drawing.tag == "estimate"
    )
    assert drawing.conditions == {"n": 30, "batch_size": 20, "device": "cpu, 1 threads"}
    assert (found["network_evaluations"].value, found["network_evaluations"].tag) == (1, "exact")


def test_rows_depend_on_what_is_known(gan):
    _, dataset, trainer = gan
    drawn = Batch(torch.zeros(3, *dataset.spec.shape))
    assert efficiency.row_names(MetricContext(dataset, Settings(), samples=drawn)) == []
    log = {"seconds": 1.0}
    context = MetricContext(dataset, Settings(), model=trainer.eval_model(), training=log)
    assert efficiency.row_names(context) == [
        "parameters",
        "training_seconds",
        "sampling_seconds",
        "network_evaluations",
    ]
    assert efficiency.row_names(MetricContext(dataset, Settings(), model=nn.Linear(2, 2))) == [
        "parameters"
    ]
