"""Reflow: pairs of the teacher's ODE, exactness at the optimum, and self-contained runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.cli_runner import run_here
from helpers.recipes import build_training_objects, states_equal
from torch import nn

from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.models.diffusion.rectified_flow import RectifiedFlow
from genlab.spec import Batch, DataSpec

POINTS = DataSpec((3,), kind="points", levels=0, num_classes=2, range=(-10.0, 10.0))
S = 0.3  # standard deviation of the data


class IndependentVelocity(nn.Module):
    """The velocity E[ε − x_0 | x_t] of N(0, S²) on straight paths with independent ends.

    Var x_t = (1 − t)² S² + t².
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, y=None):
        t = (t / 1000).view(-1, 1)
        return self.scale * x * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)


class PairedVelocity(nn.Module):
    """The velocity of pairs (z, S z): x_t = ((1 − t) S + t) z, and ε − x_0 = (1 − S) z."""

    def forward(self, x, t, y=None):
        t = (t / 1000).view(-1, 1)
        return x * (1 - S) / ((1 - t) * S + t)


def make_teacher(spec: DataSpec) -> FlowMatching:
    return FlowMatching(spec, backbone=lambda *_, **__: IndependentVelocity())


@pytest.mark.parametrize(
    ("solver", "tolerance"), [("heun", 1e-3), ("euler", 3e-2), ("ddim", 3e-2), ("dpm_solver", 2e-3)]
)
def test_teacher_samples_are_the_ends_of_the_teacher_ode(solver, tolerance):
    model = RectifiedFlow(POINTS, teacher=make_teacher, solver=solver, solver_steps=100)
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.teacher_samples(z), S * z, rtol=tolerance, atol=0)


def test_optimal_network_has_zero_loss_and_exact_single_step():
    model = RectifiedFlow(POINTS, teacher=make_teacher)
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(S * z, cond=z)
    torch.manual_seed(0)
    assert model.loss(batch)["loss"] > 0.01  # the teacher's velocity belongs to other pairs
    model.network = PairedVelocity()
    assert model.loss(batch)["loss"] < 1e-20
    levels = model.noise_levels(1)
    torch.testing.assert_close(
        model.make_sampler("euler")(model.make_denoiser(), z, levels), S * z, rtol=1e-12, atol=1e-12
    )
    # the noise of an item that the teacher did not produce comes from the backward ODE
    torch.testing.assert_close(model.paired_noise(Batch(S * z)), z, rtol=1e-2, atol=1e-3)


TEACHER = (
    "model=flow_matching",
    "backbone=unet_small",
    "model.backbone.channels=8",
    "model.conditional=true",
    "trainer.steps=2",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
)
TRAIN = (
    "model=rectified_flow",
    "dataset=digits",
    f"teacher.train={list(TEACHER)}",
    "trainer.num_pairs=300",
    "trainer.batch_size=8",
    "model.solver_steps=3",
    "device=cpu",
)


def test_student_starts_from_the_teacher_and_does_not_change_it():
    _, dataset, trainer = build_training_objects(*TRAIN, "out=unused")
    model = trainer.model
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    batches = trainer.train_batches(dataset)
    batch = next(batches)
    assert states_equal(model.network.state_dict(), model.teacher.network.state_dict())
    assert states_equal(trainer.ema.model.network.state_dict(), model.teacher.network.state_dict())
    assert batch.cond.shape == batch.x.shape and len(batch.y) == 8
    torch.testing.assert_close(
        model.teacher_samples(batch.cond, batch.y), batch.x, rtol=1e-3, atol=1e-4
    )
    for _ in range(2):
        trainer.train_step(batches)
    assert (
        states_equal(before, dict(model.teacher.state_dict()))
        and not model.train().teacher.training
    )
    assert not states_equal(
        dict(model.network.state_dict()), dict(model.teacher.network.state_dict())
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "teacher.run"),
        ({"teacher": DDPM}, "not straight lines"),
        ({"teacher": make_teacher, "solver": "ancestral"}, "deterministically"),
    ],
)
def test_error_names_the_fix(options, words):
    with pytest.raises(UserError, match=words):
        RectifiedFlow(POINTS, **options)


def test_one_command_trains_both_and_the_run_is_self_contained(tmp_path):
    train = (*TRAIN, "trainer.preview_every=0")
    done = run_here("train", *train, "trainer.steps=3", "out=run", cwd=tmp_path)
    assert done.code == 0, done.error
    teacher = next((tmp_path / "outputs/parts").glob("[!.]*"))
    again = run_here(
        "train", *train, f"teacher.run={teacher}", "trainer.steps=5", "out=whole", cwd=tmp_path
    )
    assert again.code == 0, again.error
    shutil.rmtree(tmp_path / "outputs")
    assert run_here("sample", "run=run", "n=4", "device=cpu", cwd=tmp_path).code == 0
    resumed = run_here("train", "resume=run", "trainer.steps=5", cwd=tmp_path)
    assert resumed.code == 0, resumed.error
    states = [
        torch.load(tmp_path / run / "checkpoints/step_000000005.pt", weights_only=True)
        for run in ("run", "whole")
    ]
    assert states_equal(states[0]["model"], states[1]["model"])


def test_signal_stops_the_production_of_pairs_at_once(train_run, tmp_path):
    """Before the first step there is nothing to save, so the process stops at once."""
    teacher = train_run("model=flow_points", "dataset.n=500", "model.backbone.hidden=[16]")
    words = (
        "model=rectified_flow",
        f"teacher.run={teacher}",
        "dataset=ring",
        "trainer.num_pairs=2000000",
        "device=cpu",
        "out=run",
    )
    command = [sys.executable, "-m", "genlab", "train", *words]
    how = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "env": {**os.environ, "PYTHONUNBUFFERED": "1"},
    }
    with subprocess.Popen(command, cwd=tmp_path, **how) as process:
        try:
            assert any("trains on" in line for line in process.stdout)
            time.sleep(3)  # producing pairs takes minutes
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) != 0
        finally:
            process.kill()
