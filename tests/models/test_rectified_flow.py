"""Reflow: the pairs are the teacher's ODE's, at its optimum one step is exact, and a run stands alone."""

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
from helpers.recipes import built, same
from torch import nn

from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.models.diffusion.rectified_flow import RectifiedFlow
from genlab.spec import Batch, Spec

POINTS = Spec((3,), kind="points", levels=0, classes=2, range=(-10.0, 10.0))
S = 0.3  # standard deviation of the data


class Independent(nn.Module):
    """The velocity E[ε − x_0 | x_t] of N(0, S²) on straight paths whose ends are independent: Var x_t = (1 − t)² S² + t²."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, y=None):
        t = (t / 1000).view(-1, 1)
        return self.scale * x * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)


class Paired(nn.Module):
    """The velocity of pairs (z, S z): x_t = ((1 − t) S + t) z, and ε − x_0 = (1 − S) z."""

    def forward(self, x, t, y=None):
        t = (t / 1000).view(-1, 1)
        return x * (1 - S) / ((1 - t) * S + t)


def teacher(spec: Spec) -> FlowMatching:
    return FlowMatching(spec, backbone=lambda *_, **__: Independent())


@pytest.mark.parametrize(
    ("solver", "tolerance"), [("heun", 1e-3), ("euler", 3e-2), ("ddim", 3e-2), ("dpm_solver", 2e-3)]
)
def test_pairs_are_the_ends_of_the_teachers_ode(solver, tolerance):
    model = RectifiedFlow(POINTS, teacher=teacher, solver=solver, solver_steps=100)
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.led(z), S * z, rtol=tolerance, atol=0)


def test_at_the_optimum_the_loss_is_0_and_one_step_of_euler_exact():
    model = RectifiedFlow(POINTS, teacher=teacher)
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(S * z, cond=z)
    torch.manual_seed(0)
    assert model.loss(batch)["loss"] > 0.01  # the teacher's own velocity is that of other pairs
    model.network = Paired()
    assert model.loss(batch)["loss"] < 1e-20
    levels = model.levels(1)
    torch.testing.assert_close(
        model.sampler("euler")(model.denoiser(), z, levels), S * z, rtol=1e-12, atol=1e-12
    )
    # an item that no teacher made is led back to its noise
    torch.testing.assert_close(model.noise(Batch(S * z)), z, rtol=1e-2, atol=1e-3)


TEACHER = ("model=flow_matching", "backbone=unet_small", "model.backbone.channels=8", "model.conditional=true", "trainer.steps=2",
           "trainer.batch_size=8", "trainer.preview_every=0")  # fmt: skip
TRAIN = ("model=rectified_flow", "dataset=digits", f"teacher.train={list(TEACHER)}", "trainer.pairs=300", "trainer.batch_size=8",
         "model.solver_steps=3", "device=cpu")  # fmt: skip


def test_a_student_begins_as_its_teacher_and_leaves_it_as_it_is():
    _, dataset, trainer = built(*TRAIN, "out=unused")
    model = trainer.model
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    batches = trainer.stream(dataset)
    batch = next(batches)
    assert same(model.network.state_dict(), model.teacher.network.state_dict())
    assert same(trainer.ema.model.network.state_dict(), model.teacher.network.state_dict())
    assert batch.cond.shape == batch.x.shape and len(batch.y) == 8
    torch.testing.assert_close(model.led(batch.cond, batch.y), batch.x, rtol=1e-3, atol=1e-4)
    for _ in range(2):
        trainer.advance(batches)
    assert same(before, dict(model.teacher.state_dict())) and not model.train().teacher.training
    assert not same(dict(model.network.state_dict()), dict(model.teacher.network.state_dict()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "teacher.run"),
        ({"teacher": DDPM}, "no straight lines"),
        ({"teacher": teacher, "solver": "ancestral"}, "no pairs"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UserError, match=words):
        RectifiedFlow(POINTS, **options)


def test_one_command_trains_both_and_the_run_stands_alone(tmp_path):
    train = (*TRAIN, "trainer.preview_every=0")
    done = run_here("train", *train, "trainer.steps=3", "out=run", cwd=tmp_path)
    assert done.code == 0, done.error
    teacher = next((tmp_path / "outputs/parts").glob("*"))
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
    assert same(states[0]["model"], states[1]["model"])


def test_a_signal_ends_the_making_of_pairs_at_once(trained, tmp_path):
    """Before the first step there is nothing to save: who asks for the end does not wait until all pairs are made."""
    teacher = trained("model=flow_points", "dataset.n=500", "model.backbone.hidden=[16]")
    words = (
        "model=rectified_flow",
        f"teacher.run={teacher}",
        "dataset=ring",
        "trainer.pairs=2000000",
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
            time.sleep(3)  # it makes pairs, for minutes
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) != 0
        finally:
            process.kill()
