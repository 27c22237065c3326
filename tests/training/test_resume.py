"""A resumed run is the undisturbed run, and what is deleted while it trains is not lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from training.test_training import Ones, Quadratic, make_trainer

from genlab.abilities import Estimate
from genlab.models.gan.trainer import REPORT_AFTER_INTERVALS
from genlab.models.vae.trainer import VAETrainer
from genlab.runs.folder_guard import FolderTakenError
from genlab.runs.rewind import rewind_run_folder
from genlab.runs.run_folder import RunFolder
from genlab.training.logger import has_hyperparameters
from genlab.training.loop import fit, has_missing_outputs, reason_for_end
from genlab.training.trainer import Trainer

SCORES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0, 10: 0.5}
MONITORED = {"steps": 10, "evaluate_every": 2, "monitor": "error", "save_every": 2}


class Killed(BaseException):
    pass


def start_run(path: Path) -> RunFolder:
    return RunFolder.create(path, config="seed: 0\n", metadata={"model": "mine"})


def load(run: RunFolder, checkpoint: Path | None = None, **options: object) -> Trainer:
    """Return a trainer in the state of a run, and the run's folder as of its step."""
    trainer = make_trainer(**options)
    trainer.load_state_dict(run.load_checkpoint(checkpoint))
    rewind_run_folder(run, trainer.global_step, trainer.best)
    return trainer


def train(trainer: Trainer, run: RunFolder, **options: object) -> str:
    """Train with the scores above, and pictures that say their step."""

    def evaluate(model: object) -> dict:
        return {"error": (Estimate(SCORES[trainer.global_step], None, "exact"), False)}

    def preview(model: object) -> np.ndarray:
        path = run.preview_path(trainer.global_step)
        path.write_text(str(trainer.global_step))
        return np.zeros((2, 2, 3), np.uint8)

    return fit(trainer, Ones(), run=run, **{"evaluate": evaluate, "preview": preview} | options)


def at_step(trainer: Trainer, step: int, act: Callable[[], object]) -> Trainer:
    """Act after a step of a trainer."""

    def train_step(batches):
        losses = Trainer.train_step(trainer, batches)
        if trainer.global_step == step:
            act()
        return losses

    trainer.train_step = train_step
    return trainer


def evaluations(run: RunFolder) -> list[tuple[int, float]]:
    return [(r["step"], r["evaluation"]["error"]) for r in run.read_log() if "evaluation" in r]


# --- the end of a run -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4, 10])
@pytest.mark.parametrize("moment", ["evaluate", "best", "save"])
def test_an_evaluation_that_a_kill_prevented_is_made_by_the_resume(tmp_path, step, moment):
    """Killed before the evaluation, before best.pt, or before the checkpoint that knows of it."""
    whole, part = start_run(tmp_path / "whole"), start_run(tmp_path / "part")
    assert train(make_trainer(**MONITORED), whole) == "steps"
    trainer = make_trainer(**MONITORED)

    class KilledFolder(RunFolder):
        def save_checkpoint(self, state, *, keep, best=False):
            is_known = trainer.best is not None and trainer.evaluated_step == step
            if is_known and moment == ("best" if best else "save"):
                raise Killed
            return super().save_checkpoint(state, keep=keep, best=best)

    def evaluate(model):
        if moment == "evaluate" and trainer.global_step == step:
            raise Killed
        return {"error": (Estimate(SCORES[trainer.global_step], None, "exact"), False)}

    with pytest.raises(Killed):
        train(trainer, KilledFolder(part.path), evaluate=evaluate)
    assert part.load_checkpoint()["step"] == step, "it was saved before the evaluation"
    resumed = load(part, **MONITORED)
    assert has_missing_outputs(resumed, part, has_previews=True, has_evaluations=True)
    assert train(resumed, part) == "steps"
    assert evaluations(part) == evaluations(whole) == list(SCORES.items())
    for name in ("best.pt", "step_000000010.pt"):
        a, b = (r.load_checkpoint(r.checkpoints / name) for r in (whole, part))
        assert (a["step"], a["best"], a["model"]) == (b["step"], b["best"], b["model"])
    done = load(part, **MONITORED)
    assert not has_missing_outputs(done, part, has_previews=True, has_evaluations=True)


def test_a_last_picture_that_a_kill_prevented_is_made_by_the_resume(tmp_path):
    run = start_run(tmp_path / "run")
    train(make_trainer(preview_every=4), run)
    assert [p.name[-6:] for p in run.preview_files()] == ["04.png", "08.png", "10.png"]
    assert has_hyperparameters(run, 10) and not has_hyperparameters(run, 8)
    run.preview_path(10).unlink()
    resumed = load(run, preview_every=4)
    events = set(run.tensorboard.iterdir())
    assert train(resumed, run) == "steps" and run.preview_path(10).exists()
    assert len(set(run.tensorboard.iterdir()) - events) == 1, "no second table of hyperparameters"
    files = sorted(run.path.rglob("*"))
    assert train(load(run, preview_every=4), run) == "steps"
    assert sorted(run.path.rglob("*")) == files, "nothing is written for a run that is complete"


@pytest.mark.parametrize("options", [{"patience": 2}, {"max_minutes": 1e-9}, {}])
@pytest.mark.parametrize("signal_at", [None, "save"])
def test_a_run_that_has_ended_makes_no_further_step(tmp_path, options, signal_at):
    """Nor does a signal in its last save tell it to continue, or call a launcher's handler."""
    run, received = start_run(tmp_path / "run"), []
    options = MONITORED | {"steps": 10} | options
    trainer = make_trainer(**options)

    class SignalledFolder(RunFolder):
        def save_checkpoint(self, state, **keywords):
            if signal_at and reason_for_end(trainer):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().save_checkpoint(state, **keywords)

    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        reason = train(trainer, SignalledFolder(run.path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert reason == (
        "patience" if "patience" in options else "time" if "max_minutes" in options else "steps"
    )
    assert received == []
    for _ in range(2):
        again = load(run, **options)
        step = again.global_step
        assert train(again, run) == reason and again.global_step == step
    more = load(run, **options | {"steps": 12, "patience": 0, "max_minutes": None})
    assert reason_for_end(more) is None


def test_diagnoses_count_over_a_resume():
    from helpers.recipes import build_training_objects

    _, _, trainer = build_training_objects(
        "model=gan", "trainer.batch_size=8", "device=cpu", "out=x"
    )
    means = {"d_advantage": 1.0, "diversity_ratio": 1.0}
    for _ in range(REPORT_AFTER_INTERVALS - 1):
        assert trainer.diagnose(means) == []
    _, _, other = build_training_objects("model=gan", "trainer.batch_size=8", "device=cpu", "out=x")
    other.load_state_dict(trainer.state_dict())
    assert len(other.diagnose(means)) == 1


# --- back to an earlier step ----------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 8])
def test_going_back_keeps_what_is_later_aside_and_says_so(tmp_path, step):
    run = start_run(tmp_path / "run")
    options = MONITORED | {"keep_checkpoints": 9, "preview_every": 2}
    train(make_trainer(**options), run)
    log = run.stats.read_bytes()
    trainer = make_trainer(**options)
    trainer.load_state_dict(run.load_checkpoint(run.checkpoint_path(step)))
    said = rewind_run_folder(run, step, trainer.best)
    assert f"back to step {step}" in said[0] and "best.pt is of step 10" in said[1]
    assert [int(p.stem[5:]) for p in run.checkpoint_files()] == list(range(2, step + 1, 2))
    assert [int(p.stem[5:]) for p in run.preview_files()] == list(range(2, step + 1, 2))
    assert run.load_checkpoint(run.best_checkpoint)["step"] == trainer.best["step"] == min(step, 4)
    assert (run.path / "stats.jsonl.aside").read_bytes() == log
    assert {r["step"] for r in run.read_log()} <= set(range(step + 1))
    aside = {p.name for p in run.checkpoints.glob("*.aside*")}
    assert {"best.pt.aside", "step_000000010.pt.aside"} <= aside
    train(trainer, run)
    assert run.stats.read_bytes().count(b"\n") == log.count(b"\n")
    # a second time loses nothing of the first
    trainer.load_state_dict(run.load_checkpoint(run.checkpoint_path(step)))
    rewind_run_folder(run, step, trainer.best)
    assert {p.name for p in run.checkpoints.glob("*.aside2")} == {f"{n[:-6]}.aside2" for n in aside}


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path):
    run = start_run(tmp_path / "run")
    train(make_trainer(**MONITORED, keep_checkpoints=2), run)  # those of 8 and 10
    trainer = make_trainer(**MONITORED)
    trainer.load_state_dict(run.load_checkpoint(run.checkpoint_path(8)))
    said = rewind_run_folder(run, 8, trainer.best)
    assert "at step 4, of which there is no checkpoint any more" in said[1]
    assert not run.best_checkpoint.exists()


def test_a_resume_after_a_kill_sets_nothing_aside(tmp_path):
    run = start_run(tmp_path / "run")
    train(make_trainer(**MONITORED, preview_every=2), run)
    run.checkpoint_path(10).unlink()
    assert rewind_run_folder(run, 8, run.load_checkpoint(run.checkpoint_path(8))["best"]) != []
    assert [p.name for p in run.path.rglob("*.aside*")] == ["best.pt.aside"]
    assert not run.preview_path(10).exists(), "it is made again"


# --- files that are deleted while a run trains ----------------------------------------------------

DELETIONS: dict[str, Callable[[RunFolder], object]] = {
    "config.yaml": lambda run: (run.path / "config.yaml").unlink(),
    "run.json": lambda run: (run.path / "run.json").unlink(),
    ".lock": lambda run: (run.path / ".lock").unlink(),
    "stats.jsonl": lambda run: run.stats.unlink(),
    "checkpoints": lambda run: shutil.rmtree(run.checkpoints),
    "tensorboard": lambda run: shutil.rmtree(run.tensorboard),
    "folder": lambda run: shutil.rmtree(run.path),
    "moved": lambda run: run.path.rename(run.path.with_name("elsewhere")),
}


@pytest.mark.parametrize("what", DELETIONS)
@pytest.mark.parametrize("step", [3, 10])
def test_what_is_deleted_while_training_is_written_again(tmp_path, capsys, what, step):
    run = start_run(tmp_path / "run")
    with run.lock():
        trainer = at_step(make_trainer(log_every=2), step, partial(DELETIONS[what], run))
        assert train(trainer, run, evaluate=None) == "steps"
        assert "was deleted" in capsys.readouterr().err
    assert json.loads((run.path / "run.json").read_text())["model"] == "mine"
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"
    assert [r["step"] for r in run.read_log()] == [2, 4, 6, 8, 10]
    assert run.load_checkpoint()["step"] == 10
    assert not (what == ".lock" and run.is_lock_gone())


def test_a_checkpoint_that_is_deleted_at_the_end_is_written_again(tmp_path):
    run = start_run(tmp_path / "run")

    def preview(model):
        run.checkpoint_path(10).unlink(missing_ok=True)
        return np.zeros((2, 2, 3), np.uint8)

    train(make_trainer(), run, preview=preview, evaluate=None)
    assert run.load_checkpoint()["step"] == 10


def test_a_run_whose_folder_is_deleted_is_usable(genlab, tmp_path, monkeypatch):
    step = VAETrainer.step

    def delete_and_step(self, batches):
        if self.global_step == 3:
            shutil.rmtree(tmp_path / "run")
        return step(self, batches)

    monkeypatch.setattr(VAETrainer, "step", delete_and_step)
    options = ("model.hidden=[4]", "trainer.steps=5", "trainer.batch_size=8", "device=cpu")
    result = genlab("train", *options, "out=run")
    assert result.code == 0 and "run was deleted while training" in result.err
    assert genlab("sample", "run=run", "n=2", "device=cpu").code == 0
    assert "is done" in genlab("train", "resume=run").out


@pytest.mark.parametrize("other", ["resume", "new"])
def test_a_folder_that_another_process_took_is_left_alone(tmp_path, other):
    """The training ends with an error, and is saved beside the folder that it lost."""
    run = start_run(tmp_path / "run")
    taken: list[object] = []

    def take() -> None:
        if other == "resume":
            (run.path / ".lock").unlink()
            taken.append(RunFolder(run.path).lock())
        else:
            shutil.rmtree(run.path)
            RunFolder.create(run.path, config="seed: 1\n", metadata={"model": "other"})

    with (
        run.lock(),
        pytest.raises(FolderTakenError, match=r"saved at step 5.*resume=.*run-2`") as e,
    ):
        train(at_step(make_trainer(), 5, take), run, evaluate=None)
    assert e.value.exit_code == 1
    config = "seed: 0\n" if other == "resume" else "seed: 1\n"
    assert (run.path / "config.yaml").read_text() == config and not run.checkpoint_files()
    saved = RunFolder(tmp_path / "run-2")
    again = load(saved)
    assert again.global_step == 5 and train(again, saved, evaluate=None) == "steps"
    whole = make_trainer()
    fit(whole, Ones())
    assert torch.equal(again.model.w, whole.model.w)
    assert isinstance(again.model, Quadratic)
