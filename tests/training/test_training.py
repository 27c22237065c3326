"""The training loop, on models small enough to know the answer."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial

import pytest
import torch
import yaml
from helpers.recipes import CONFIGS, states_equal
from torch import nn

from genlab.abilities import Estimate
from genlab.config.recipes import fastest_experiment
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.runs.run_folder import RunFolder
from genlab.seeding import derive_seed
from genlab.spec import Batch
from genlab.training import loop
from genlab.training.logger import DivergedError
from genlab.training.loop import fit
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer

SGD = partial(torch.optim.SGD, lr=0.1)


class Quadratic(GenerativeModel):
    """E (w − x)² / 2: its gradient is w − mean(x)."""

    def __init__(self, *, broken_at: int = -1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))
        self.broken_at, self.calls = broken_at, 0

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.calls += 1
        loss = 0.5 * (self.w - batch.x).square().mean()
        return {"loss": loss * (math.nan if self.calls == self.broken_at else 1), "fit": loss}


class TwoLayers(GenerativeModel):
    """A linear network of two layers that learns to output 3."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(batch.x) - 3).square().mean()}


class Ones:
    """Batches of ones; y is the number of the joint batch."""

    def batches(self, split, batch_size, *, seed, start, shard, num_shards, device):
        k = start
        while True:
            for _ in shard:
                n = batch_size // num_shards
                yield Batch(torch.ones(n, 1), torch.full((n,), k))
            k += 1


def make_trainer(model=None, **options) -> Trainer:
    defaults = {"steps": 10, "batch_size": 8, "log_every": 5}
    return Trainer(model or Quadratic(), SGD, TrainerOptions(**defaults | options))


def make_folder(path) -> RunFolder:
    return RunFolder.create(path, config="", metadata={})


def test_gradient_descent_matches_the_closed_form(tmp_path):
    t, run = make_trainer(), make_folder(tmp_path / "run")
    assert fit(t, Ones(), run=run) == "steps"
    assert t.model.w.item() == pytest.approx(1 + 0.9**10, abs=1e-6)
    lines = run.read_log()
    assert [line["step"] for line in lines] == [5, 10]
    by_hand = [0.5 * 0.9 ** (2 * i) for i in range(5)]
    assert lines[0]["loss"] == pytest.approx(sum(by_hand) / 5, rel=1e-5)


@pytest.mark.parametrize("grad_accum_steps", [2, 4])
def test_gradient_accumulation_equals_the_joint_batch(grad_accum_steps):
    whole, parts = make_trainer(), make_trainer(grad_accum_steps=grad_accum_steps)
    fit(whole, Ones())
    fit(parts, Ones())
    assert parts.model.w.item() == pytest.approx(whole.model.w.item(), rel=1e-6)
    assert whole.batches_consumed == parts.batches_consumed == 10


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("milestones", [(), (40, 70)])
def test_learning_rate_schedules(schedule, milestones):
    t = make_trainer(steps=100, lr_warmup_steps=10, lr_schedule=schedule, lr_milestones=milestones)
    rates = []
    for t.global_step in range(100):
        t.update_lr()
        rates.append(t.optimizers["model"].param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([0.1 * (i + 1) / 10 for i in range(10)])
    for i in range(10, 100):
        progress = (i - 10) / 90
        expected = {
            "constant": 1,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[schedule]
        factors = [0.1 for step in milestones if i >= step]
        assert rates[i] == pytest.approx(0.1 * expected * math.prod(factors), rel=1e-9)


def test_ema_matches_the_recursion():
    t = make_trainer(ema_decay=0.9)
    mean, w = 2.0, 2.0
    batches = t.train_batches(Ones())
    for step in range(30):
        t.train_step(batches)
        w = 1 + (w - 1) * 0.9
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * w
        assert t.ema.model.w.item() == pytest.approx(mean, rel=1e-5)


def test_grad_clip_bounds_the_update():
    t = make_trainer(grad_clip=0.25)
    t.train_step(t.train_batches(Ones()))
    assert t.model.w.item() == pytest.approx(2 - 0.1 * 0.25, rel=1e-4)


def test_a_nan_loss_stops_the_run(tmp_path):
    t, run = (
        make_trainer(Quadratic(broken_at=8), save_every=3, steps=20),
        make_folder(tmp_path / "run"),
    )
    with pytest.raises(
        DivergedError, match=r"step 8: loss is nan; the last good checkpoint is .*step_000000006.pt"
    ):
        fit(t, Ones(), run=run)
    assert torch.isfinite(run.load_checkpoint()["model"]["w"])


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    t, run = make_trainer(save_every=1, steps=20), make_folder(tmp_path / "run")
    t.model.w.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(
        DivergedError, match="w contain values that are not finite; there is no checkpoint yet"
    ):
        fit(t, Ones(), run=run)
    assert run.checkpoint_files() == []


def test_only_the_last_checkpoints_are_kept(tmp_path):
    t, run = make_trainer(save_every=2, keep_checkpoints=2), make_folder(tmp_path / "run")
    fit(t, Ones(), run=run)
    names = [p.name for p in run.checkpoint_files()]
    assert names == ["step_000000008.pt", "step_000000010.pt"]


def test_max_minutes_ends_the_run_with_a_checkpoint(tmp_path):
    t, run = make_trainer(steps=10**9, max_minutes=0.2 / 60), make_folder(tmp_path / "run")
    assert fit(t, Ones(), run=run) == "time"
    assert run.load_checkpoint()["step"] == t.global_step > 0
    again = make_trainer(steps=10**9, max_minutes=0.2 / 60)
    again.load_state_dict(run.load_checkpoint())
    # the time before the resume counts, and no data is prepared
    assert fit(again, None, run=run) == "time" and again.global_step == t.global_step


@pytest.mark.parametrize("stop_step", [None, 6, 10])
def test_stop_callback_may_end_the_run(tmp_path, stop_step):
    """It ends the run with a checkpoint; at the last step the run is complete anyway."""
    received = []

    def stop_callback(step, evaluation):
        received.append((step, evaluation["error"][0].value))
        return "pruned" if step == stop_step else None

    t, run = make_trainer(evaluate_every=2, save_every=4), make_folder(tmp_path / "run")
    stop_reason = fit(
        t,
        Ones(),
        run=run,
        evaluate=lambda model: {"error": (Estimate(t.global_step / 2, None, "exact"), False)},
        stop_callback=stop_callback,
    )
    assert stop_reason == ("pruned" if stop_step == 6 else "steps")
    assert received == [(step, step / 2) for step in range(2, (stop_step or 10) + 1, 2)]
    assert run.load_checkpoint()["step"] == t.global_step == (stop_step or 10)


def test_best_checkpoint_and_patience(tmp_path):
    scores = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    t, run = (
        make_trainer(steps=100, evaluate_every=2, monitor="error", patience=2),
        make_folder(tmp_path / "run"),
    )
    stop_reason = fit(
        t,
        Ones(),
        run=run,
        evaluate=lambda model: {"error": (Estimate(next(scores), None, "exact"), False)},
    )
    assert stop_reason == "patience" and t.global_step == 8
    assert run.load_checkpoint(run.checkpoints / "best.pt")["step"] == 4
    assert [line["evaluation"]["error"] for line in run.read_log() if "evaluation" in line] == [
        3.0,
        1.0,
        2.0,
        2.0,
    ]


# --- runs that end between two logged steps -------------------------------------------------------


def stop_by_signal(step: int, _evaluation: object) -> str | None:
    """Send this process SIGTERM after step 6."""
    if step == 6:
        os.kill(os.getpid(), signal.SIGTERM)
    return None


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, KeyError])
def test_a_failed_evaluation_leaves_a_checkpoint(tmp_path, error):
    run = RunFolder.create(tmp_path / "run", config="", metadata={})

    def fail(model):
        raise error("no")

    trainer = make_trainer(evaluate_every=3, save_every=100)
    with pytest.raises(error):
        fit(trainer, Ones(), run=run, evaluate=fail)
    assert run.load_checkpoint()["step"] == 3


def test_a_due_checkpoint_is_written_before_the_evaluation(tmp_path):
    run = RunFolder.create(tmp_path / "run", config="", metadata={})
    found = []

    def evaluate(model):
        found.append([path.name for path in run.checkpoint_files()])
        return {"score": (Estimate(0.0, None, "exact"), False)}

    trainer = make_trainer(steps=4, evaluate_every=2, save_every=2, monitor="score")
    fit(trainer, Ones(), run=run, evaluate=evaluate)
    assert found == [["step_000000002.pt"], ["step_000000002.pt", "step_000000004.pt"]]
    assert run.load_checkpoint()["best"]["since"] == 1, "with what the evaluation decided"


def test_a_monitored_metric_that_cannot_be_measured_ends_nothing(tmp_path):
    run = RunFolder.create(tmp_path / "run", config="", metadata={})
    options = {"steps": 4, "evaluate_every": 2, "monitor": "score", "patience": 1}
    assert fit(make_trainer(**options), Ones(), run=run, evaluate=lambda model: {}) == "steps"
    assert "score could not be measured" in run.stats.read_text()


@pytest.mark.parametrize("ending", ["time", "patience", "pruned", "SIGTERM"])
def test_a_run_that_ends_between_two_logged_steps_logs_its_last_step(tmp_path, ending, capsys):
    """The resumed run has the log of one that was never interrupted."""
    whole, part = make_folder(tmp_path / "whole"), make_folder(tmp_path / "part")
    fit(make_trainer(), Ones(), run=whole)
    options = {"evaluate_every": 2}
    if ending == "patience":
        options |= {"monitor": "error", "patience": 2}
    t = make_trainer(**options)
    if ending == "time":
        t.options.max_minutes = 1e-9
    stops = {"pruned": lambda step, _: "pruned" if step == 6 else None, "SIGTERM": stop_by_signal}
    end = fit(
        t,
        Ones(),
        run=part,
        evaluate=lambda _: {"error": (Estimate(1.0, None, "exact"), False)},
        stop_callback=stops.get(ending),
    )
    last_step = 1 if ending == "time" else 6
    assert end == ending and t.global_step == last_step
    lines = [line for line in part.read_log() if "loss" in line]
    first = 1 if last_step == 1 else 6  # the mean is of the steps since the last logged one
    expected = [0.5 * 0.9 ** (2 * i) for i in range(first - 1, last_step)]
    assert lines[-1]["step"] == last_step and lines[-1]["partial"]
    assert lines[-1]["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert f"step {last_step}/10" in capsys.readouterr().err
    assert "partial" not in part.final_metrics() and "loss" in lines[-1]
    resumed = make_trainer()
    resumed.load_state_dict(part.load_checkpoint())
    fit(resumed, Ones(), run=part)
    logs = [[(k["step"], k["loss"]) for k in r.read_log() if "loss" in k] for r in (whole, part)]
    assert logs[0] == logs[1]


def test_a_resume_without_a_step_keeps_the_last_line(tmp_path):
    t, run = make_trainer(max_minutes=1e-9), make_folder(tmp_path / "run")
    assert fit(t, Ones(), run=run) == "time"
    again = make_trainer(max_minutes=1e-9)
    again.load_state_dict(run.load_checkpoint())
    run.discard_records_after(again.global_step)  # as a resume does
    assert fit(again, Ones(), run=run) == "time"
    assert [line["step"] for line in run.read_log()] == [1]


def test_a_run_that_diverges_logs_the_steps_before(tmp_path):
    """Though none of them was due to be logged; a resume from a checkpoint drops them."""
    t, run = make_trainer(Quadratic(broken_at=4), save_every=2), make_folder(tmp_path / "run")
    with pytest.raises(DivergedError, match="step 4"):
        fit(t, Ones(), run=run)
    assert [line["step"] for line in run.read_log()] == [3]
    resumed = make_trainer()
    resumed.load_state_dict(run.load_checkpoint())
    run.discard_records_after(resumed.global_step)
    fit(resumed, Ones(), run=run)
    assert [line["step"] for line in run.read_log()] == [5, 10]


# --- what a training says about its duration ------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("dcgan", {}, ("10,000,000 steps: about", "experiment=dcgan_", "genlab plan model=dcgan`")),
        ("dcgan", {"max_minutes": 100}, ("trainer.max_minutes: about 100 minutes on this CPU",)),
        ("vae", {}, ("steps: about", "genlab plan model=vae`")),
        ("dcgan", {"steps": 100}, ()),
        ("dcgan", {"max_minutes": 59}, ()),
    ],
)
def test_a_long_training_is_announced(tmp_path, monkeypatch, capsys, model, options, told):
    metadata = {"choices": {"model": model}, "command": ["genlab", "train", f"model={model}"]}
    run = RunFolder.create(tmp_path / "run", config="", metadata=metadata)
    monkeypatch.setattr(loop, "ANNOUNCE_AFTER_S", 0.0)

    def slow_step(self, batches):
        time.sleep(0.002)
        if self.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return Trainer.train_step(self, batches)

    t = make_trainer(**{"steps": 10**7, **options})
    monkeypatch.setattr(t, "train_step", partial(slow_step, t))
    assert fit(t, Ones(), run=run) == "SIGTERM"
    lines = [line for line in capsys.readouterr().err.splitlines() if "about" in line]
    assert len(lines) == bool(told)
    for part in told:
        assert part in lines[0]


def test_experiments_that_a_slow_recipe_points_to():
    """The fastest by what its header says, of the recipe itself or of its class."""
    assert fastest_experiment("dcgan").model == "dcgan"
    assert fastest_experiment("dcgan", other_than=fastest_experiment("dcgan").name).minutes > 2
    assert fastest_experiment("gpt_text").duration == "about two minutes"
    assert fastest_experiment("ddpm").model in ("ddpm_small", "ddpm_points")
    assert fastest_experiment("kmeans") is None and fastest_experiment("mine") is None


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kill_step", [1, 4, 5, 7])
def test_resume_after_a_kill_gives_the_same_log_and_state(tmp_path, kill_step):
    """Killed after a checkpoint, maybe between two logged steps, with an incomplete log line."""
    whole, part = make_folder(tmp_path / "whole"), make_folder(tmp_path / "part")
    uninterrupted = make_trainer(steps=20)
    fit(uninterrupted, Ones(), run=whole)

    class KillAfterSave(RunFolder):
        def save_checkpoint(self, state, **options):
            super().save_checkpoint(state, **options)
            raise Killed

    with pytest.raises(Killed):
        fit(make_trainer(steps=20, save_every=kill_step), Ones(), run=KillAfterSave(part.path))
    with open(part.stats, "a") as f:
        f.write('{"step": 3, "lo')
    resumed = make_trainer(steps=20)
    resumed.load_state_dict(part.load_checkpoint())
    part.discard_records_after(resumed.global_step)
    fit(resumed, Ones(), run=part)
    a, b = uninterrupted.state_dict(), resumed.state_dict()
    assert [key for key in a if key != "seconds" and not states_equal(a[key], b[key])] == []
    logs = [
        [(line["step"], line["loss"], line["fit"]) for line in run.read_log()]
        for run in (whole, part)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused_and_the_one_before_named(tmp_path, fraction):
    t, run = make_trainer(save_every=5), make_folder(tmp_path / "run")
    fit(t, Ones(), run=run)
    last = run.checkpoint_files()[-1]
    data = last.read_bytes()
    last.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(
        UserError,
        match="step_000000010.pt is truncated or unreadable.*the one before it is .*000005",
    ):
        run.load_checkpoint(last)


def test_a_second_process_cannot_train_in_the_same_folder(tmp_path):
    run = make_folder(tmp_path / "run")
    lock_file = run.lock()
    with pytest.raises(UserError, match="another process is training"):
        RunFolder(run.path).lock()
    lock_file.close()
    RunFolder(run.path).lock().close()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_training_works_in_every_precision(precision):
    model = TwoLayers()
    t = Trainer(
        model,
        SGD,
        TrainerOptions(steps=30, batch_size=8),
        device=Device(name="cpu", precision=precision, channels_last=False),
    )
    first = model.loss(t.device.to_device(next(t.train_batches(Ones()))))["loss"].item()
    fit(t, Ones())
    last = model.loss(t.device.to_device(next(t.train_batches(Ones()))))["loss"].item()
    assert last < 0.1 * first
    assert next(model.parameters()).dtype == (
        torch.float64 if precision == "fp64" else torch.float32
    )


def test_seeds_differ_in_every_part():
    seeds = {
        derive_seed(a, b, c, d) & 0xFFFFFFFF
        for a in range(3)
        for b in range(40)
        for c in range(3)
        for d in range(8)
    }
    assert len(seeds) == 3 * 40 * 3 * 8


def test_train_yaml_lists_every_option_with_its_default():
    shown = yaml.safe_load((CONFIGS / "train.yaml").read_text())["trainer"]
    assert shown.pop("name") == "vae"
    defaults = {f.name: f.default for f in fields(TrainerOptions)} | {"lr_milestones": []}
    assert shown == defaults and TrainerOptions().lr_milestones == ()


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "mps"])
def test_every_device_file_lists_every_option_with_its_default(name):
    shown = yaml.safe_load((CONFIGS / "device" / f"{name}.yaml").read_text())
    assert shown.pop("name") == name
    assert shown == {f.name: f.default for f in fields(Device) if f.name != "name"}


def test_stats_are_valid_json_without_nan(tmp_path):
    t, run = make_trainer(), make_folder(tmp_path / "run")
    fit(t, Ones(), run=run)
    for line in run.stats.read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(c))


def test_denormal_numbers_are_flushed_to_zero_on_the_cpu():
    # a CPU multiplies denormal numbers many times slower: an IWAE step took three times as long
    Device(name="cpu", threads=torch.get_num_threads()).configure_torch()
    assert (torch.full((1000,), 1e-40) * torch.ones(1000) == 0).all()


HEAP = """
import ctypes, sys, torch
from genlab.distributed.device import Device
libc = ctypes.CDLL(None)
fields = [(str(i), ctypes.c_size_t) for i in range(10)]
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": fields})
if sys.argv[1] == "configured":
    Device(name="cpu", threads=1).configure_torch()
freed = [torch.ones(5_000_000) for _ in range(6)]  # 20 MB each, like the activations of a step
mapped = getattr(libc.mallinfo2(), "4")
del freed
print(mapped, getattr(libc.mallinfo2(), "0"))  # bytes of separate mappings; bytes of the heap now
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="requires glibc 2.33 or newer",
)
def test_freed_memory_is_kept_for_the_next_step():
    def measure_heap(mode: str) -> tuple[int, ...]:
        result = subprocess.run(
            [sys.executable, "-c", HEAP, mode], capture_output=True, text=True, check=True
        )
        return tuple(map(int, result.stdout.split()))

    mapped, kept = measure_heap("default")
    assert mapped > 20e6, "memory that would be returned to the system and requested again"
    mapped, kept = measure_heap("configured")
    assert mapped < 20e6 and kept > 120e6


def test_compile_reaches_the_items_of_a_module_list():
    # a module list is never called itself: compiling it would have no effect
    model = nn.ModuleDict(
        {
            "stem": nn.Linear(2, 2),
            "blocks": nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.ReLU()]),
        }
    )
    Device(name="cpu", compile=True).move_and_compile(model)
    compiled = {
        name for name, part in model.named_modules() if part._compiled_call_impl is not None
    }
    assert compiled == {"stem", "blocks.0", "blocks.1"}
