"""The loop itself, on models small enough to know the answer."""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
from dataclasses import fields
from functools import partial

import pytest
import torch
import yaml
from helpers.recipes import CONFIGS, same
from torch import nn

from genlab.abilities import Estimate
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.seeding import mix
from genlab.spec import Batch
from genlab.training.logger import Diverged
from genlab.training.options import Options
from genlab.training.trainer import Trainer

SGD = partial(torch.optim.SGD, lr=0.1)


class Line(nn.Module):
    """E (w − x)² / 2: its gradient is w − mean(x)."""

    def __init__(self, *, broken_at: int = -1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))
        self.broken_at, self.calls = broken_at, 0

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.calls += 1
        loss = 0.5 * (self.w - batch.x).square().mean()
        return {"loss": loss * (math.nan if self.calls == self.broken_at else 1), "fit": loss}


class Ones:
    """Batches of ones, joint batch k marked by its number in y."""

    def batches(self, split, batch_size, *, seed, start, shard, shards, device):
        k = start
        while True:
            for _ in shard:
                yield Batch(
                    torch.ones(batch_size // shards, 1), torch.full((batch_size // shards,), k)
                )
            k += 1


def trainer(model=None, **options) -> Trainer:
    return Trainer(
        model or Line(), SGD, Options(**{"steps": 10, "batch_size": 8, "log_every": 5, **options})
    )


def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config="", info={})


def test_descends_as_by_hand(tmp_path):
    t, run = trainer(), folder(tmp_path)
    assert t.fit(Ones(), run) == "steps"
    assert t.model.w.item() == pytest.approx(1 + 0.9**10, abs=1e-6)
    lines = run.history()
    assert [line["step"] for line in lines] == [5, 10]
    by_hand = [0.5 * 0.9 ** (2 * i) for i in range(5)]
    assert lines[0]["loss"] == pytest.approx(sum(by_hand) / 5, rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_shards_are_the_joint_batch(accumulate):
    whole, parts = trainer(), trainer(accumulate=accumulate)
    whole.fit(Ones()), parts.fit(Ones())
    assert parts.model.w.item() == pytest.approx(whole.model.w.item(), rel=1e-6)
    assert whole.pulled == parts.pulled == 10


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("drops", [(), (40, 70)])
def test_learning_rates(schedule, drops):
    t = trainer(steps=100, warmup=10, schedule=schedule, drops=drops)
    rates = []
    for t.at in range(100):
        t.set_rates()
        rates.append(t.optimizers["model"].param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([0.1 * (i + 1) / 10 for i in range(10)])
    for i in range(10, 100):
        share = (i - 10) / 90
        expected = {
            "constant": 1,
            "linear": 1 - share,
            "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        }[schedule]
        tenths = [0.1 for step in drops if i >= step]
        assert rates[i] == pytest.approx(0.1 * expected * math.prod(tenths), rel=1e-9)


def test_ema_is_the_running_mean():
    t = trainer(ema=0.9)
    mean, w = 2.0, 2.0
    batches = t.stream(Ones())
    for at in range(30):
        t.advance(batches)
        w = 1 + (w - 1) * 0.9
        decay = min(0.9, (1 + at) / (10 + at))
        mean = decay * mean + (1 - decay) * w
        assert t.ema.model.w.item() == pytest.approx(mean, rel=1e-5)


def test_clip_bounds_the_step():
    t = trainer(clip=0.25)
    t.advance(t.stream(Ones()))
    assert t.model.w.item() == pytest.approx(2 - 0.1 * 0.25, rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    t, run = trainer(Line(broken_at=8), save_every=3, steps=20), folder(tmp_path)
    with pytest.raises(
        Diverged, match=r"step 8: loss is nan; the last good checkpoint is .*step_000000006.pt"
    ):
        t.fit(Ones(), run)
    assert torch.isfinite(run.load()["model"]["w"])


def test_a_weight_that_is_no_number_is_never_saved(tmp_path):
    t, run = trainer(save_every=1, steps=20), folder(tmp_path)
    t.model.w.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(
        Diverged, match="w hold values that are not finite; there is no checkpoint yet"
    ):
        t.fit(Ones(), run)
    assert run.steps() == []


def test_keeps_the_last_checkpoints(tmp_path):
    t, run = trainer(save_every=2, keep=2), folder(tmp_path)
    t.fit(Ones(), run)
    assert [p.name for p in run.checkpoints.iterdir()] and [p.name for p in run.steps()] == [
        "step_000000008.pt", "step_000000010.pt",
    ]  # fmt: skip


def test_ends_after_max_time_with_a_checkpoint(tmp_path):
    t, run = trainer(steps=10**9, max_time=0.2 / 60), folder(tmp_path)
    assert t.fit(Ones(), run) == "time"
    assert run.load()["step"] == t.at > 0
    again = trainer(steps=10**9, max_time=0.2 / 60)
    again.load(run.load())
    assert again.fit(None, run) == "time" and again.at == t.at, (
        "the time of earlier starts counts; nothing is made for no step"
    )


@pytest.mark.parametrize("ends", [None, 6, 10])
def test_a_verdict_may_end_the_run(tmp_path, ends):
    """It hears each evaluation and ends the run there, saved, so that it could go on; at the last step the run is whole."""
    heard = []

    def verdict(step, measures):
        heard.append((step, measures["error"][0].value))
        return "pruned" if step == ends else None

    t, run = trainer(evaluate_every=2, save_every=4), folder(tmp_path)
    ended = t.fit(
        Ones(),
        run,
        evaluate=lambda model: {"error": (Estimate(t.at / 2, None, "exact"), False)},
        verdict=verdict,
    )
    assert ended == ("pruned" if ends == 6 else "steps")
    assert heard == [(step, step / 2) for step in range(2, (ends or 10) + 1, 2)]
    assert run.load()["step"] == t.at == (ends or 10)


def test_best_checkpoint_and_patience(tmp_path):
    scores = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    t, run = trainer(steps=100, evaluate_every=2, monitor="error", patience=2), folder(tmp_path)
    ended = t.fit(
        Ones(),
        run,
        evaluate=lambda model: {"error": (Estimate(next(scores), None, "exact"), False)},
    )
    assert ended == "patience" and t.at == 8
    assert run.load(run.checkpoints / "best.pt")["step"] == 4
    assert [line["evaluation"]["error"] for line in run.history() if "evaluation" in line] == [
        3.0,
        1.0,
        2.0,
        2.0,
    ]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_a_killed_run_goes_on_with_the_same_log_and_state(tmp_path, stop):
    """Killed after a checkpoint, which may lie between two logged steps, and with a line of the log half written."""
    whole, part = (
        RunFolder.create(tmp_path / name, config="", info={}) for name in ("whole", "part")
    )
    undisturbed = trainer(steps=20)
    undisturbed.fit(Ones(), whole)

    class Kills(RunFolder):
        def save(self, state, **how):
            super().save(state, **how)
            raise Killed

    with pytest.raises(Killed):
        trainer(steps=20, save_every=stop).fit(Ones(), Kills(part.path))
    with open(part.stats, "a") as f:
        f.write('{"step": 3, "lo')
    second = trainer(steps=20)
    second.load(part.load())
    part.forget_after(second.at)
    second.fit(Ones(), part)
    a, b = undisturbed.state(), second.state()
    assert [key for key in a if key != "seconds" and not same(a[key], b[key])] == []
    losses = lambda run: [(line["step"], line["loss"], line["fit"]) for line in run.history()]  # noqa: E731
    assert losses(whole) == losses(part)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_that_was_asked_for_is_refused_and_the_one_before_named(
    tmp_path, share
):
    t, run = trainer(save_every=5), folder(tmp_path)
    t.fit(Ones(), run)
    last = run.steps()[-1]
    data = last.read_bytes()
    last.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        UserError,
        match="step_000000010.pt is truncated or unreadable.*the one before it is .*000005",
    ):
        run.load(last)


def test_a_second_process_is_refused(tmp_path):
    run = folder(tmp_path)
    held = run.lock()
    with pytest.raises(UserError, match="another process is training"):
        RunFolder(run.path).lock()
    held.close()
    RunFolder(run.path).lock().close()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_every_precision_descends(precision):
    model = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    model.loss = lambda batch: {"loss": (model(batch.x) - 3).square().mean()}
    t = Trainer(
        model,
        SGD,
        Options(steps=30, batch_size=8),
        device=Device(name="cpu", precision=precision, channels_last=False),
    )
    first = model.loss(t.device.ready(next(t.stream(Ones()))))["loss"].item()
    t.fit(Ones())
    assert model.loss(t.device.ready(next(t.stream(Ones()))))["loss"].item() < 0.1 * first
    assert next(model.parameters()).dtype == (
        torch.float64 if precision == "fp64" else torch.float32
    )


def test_seeds_differ_in_every_part():
    seeds = {
        mix(a, b, c, d) & 0xFFFFFFFF
        for a in range(3)
        for b in range(40)
        for c in range(3)
        for d in range(8)
    }
    assert len(seeds) == 3 * 40 * 3 * 8


def test_the_yaml_shows_every_option_with_its_default():
    shown = yaml.safe_load((CONFIGS / "train.yaml").read_text())["trainer"]
    assert shown.pop("name") == "vae"
    as_yaml = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    assert shown == {f.name: as_yaml(f.default) for f in fields(Options)}


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "mps"])
def test_every_device_file_shows_every_option_with_its_default(name):
    shown = yaml.safe_load((CONFIGS / "device" / f"{name}.yaml").read_text())
    assert shown.pop("name") == name
    assert shown == {f.name: f.default for f in fields(Device) if f.name != "name"}


def test_stats_are_json_without_nan(tmp_path):
    t, run = trainer(), folder(tmp_path)
    t.fit(Ones(), run)
    for line in run.stats.read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(c))


def test_a_cpu_takes_numbers_too_small_to_matter_as_zero():
    # a product with such a number takes a CPU many times as long: an importance-weighted step was three times as slow
    Device(name="cpu", threads=torch.get_num_threads()).prepare()
    assert (torch.full((1000,), 1e-40) * torch.ones(1000) == 0).all()


HEAP = """
import ctypes, sys, torch
from genlab.distributed.device import Device
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [(str(i), ctypes.c_size_t) for i in range(10)]})
if sys.argv[1] == "prepared":
    Device(name="cpu", threads=1).prepare()
freed = [torch.ones(5_000_000) for _ in range(6)]  # 20 MB each, as the activations of a step are
mapped = getattr(libc.mallinfo2(), "4")
del freed
print(mapped, getattr(libc.mallinfo2(), "0"))  # bytes that were mapped on their own; bytes of the heap now
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="the setting is glibc's, and 2.33 tells of it",
)
def test_a_cpu_keeps_the_memory_of_one_step_for_the_next():
    def heap(how: str) -> tuple[int, ...]:
        ended = subprocess.run(
            [sys.executable, "-c", HEAP, how], capture_output=True, text=True, check=True
        )
        return tuple(map(int, ended.stdout.split()))

    mapped, kept = heap("plain")
    assert mapped > 20e6, "what would be given back and asked for again"
    mapped, kept = heap("prepared")
    assert mapped < 20e6 and kept > 120e6


def test_compilation_reaches_the_items_of_a_list_of_modules():
    # a list has no forward of its own: compiled itself, it would change nothing
    model = nn.ModuleDict(
        {
            "stem": nn.Linear(2, 2),
            "blocks": nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.ReLU()]),
        }
    )
    Device(name="cpu", compile=True).place(model)
    compiled = {
        name for name, part in model.named_modules() if part._compiled_call_impl is not None
    }
    assert compiled == {"stem", "blocks.0", "blocks.1"}
