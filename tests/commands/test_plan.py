"""genlab plan compared with training, and trainer.batch_size=auto."""

from __future__ import annotations

import gc
import mmap
from statistics import median
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.ddp_processes import start_ranks, wait_for
from helpers.recipes import FAST_OVERRIDES, FLAGSHIPS, build_training_objects, states_equal

from genlab.builders import factory
from genlab.commands import plan as planning
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.runs.run_folder import RunFolder
from genlab.training import auto_batch_size
from genlab.training.auto_batch_size import (
    BatchSizeTrials,
    choose_batch_size,
    find_batch_size,
    time_training_steps,
)

TINY = (
    "device=cpu",
    "trainer.batch_size=8",
    "trainer.grad_accum_steps=2",
    "trainer.shard_statistics=true",  # of dcgan
    "trainer.ema_decay=0.9",
    "trainer.preview_every=0",
    "trainer.steps=3",
    "trainer.save_every=1",
    "out=run",
)


@pytest.fixture
def short_measurements(monkeypatch):
    """Measure as few steps as possible."""
    monkeypatch.setattr(planning, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(auto_batch_size, "MIN_BLOCK_S", 0.0)


def size_mb(tensors) -> float:
    """Return the size of the tensors among some values, in MB."""
    found = [t for t in tensors if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in found) / 2**20


# --- the plan -------------------------------------------------------------------------------------


SMALLER = {
    "realnvp": ("model.num_blocks=1", "model.channels=8"),
    "dcgan": ("model.width=16",),
    "gan": ("model.hidden=[200]",),
}


@pytest.mark.parametrize("recipe", FLAGSHIPS)
def test_plan_predicts_what_training_takes(
    recipe, short_measurements, genlab, monkeypatch, tmp_path
):
    numbers, real = {}, planning.plan
    monkeypatch.setattr(planning, "plan", lambda *a, **how: numbers.update(real(*a, **how)))
    size = () if recipe.endswith("_points") else ("preprocess.size=16",)
    given = (f"model={recipe}", *SMALLER.get(recipe, ()), *size, *TINY)
    planned = genlab("plan", *given)
    assert planned.code == 0 and planned.err == "", planned.err
    assert list(tmp_path.iterdir()) == [], "plan writes no files"
    trained = genlab("train", *given)
    assert trained.code == 0, trained.err
    run = RunFolder(tmp_path / "run")
    files = run.checkpoint_files()
    assert numbers["checkpoint_mb"] == pytest.approx(files[-1].stat().st_size / 2**20, rel=0.02)
    assert numbers["disk_mb"] == pytest.approx((len(files) + 1) * numbers["checkpoint_mb"])
    state = run.load_checkpoint()
    model = build_training_objects(*given)[2].model
    assert (
        numbers["weights_mb"]
        == numbers["ema_mb"]
        == size_mb([*model.parameters(), *model.buffers()])
    )
    moments = (
        s
        for opt in state["optimizers"].values()
        for one in opt["state"].values()
        for s in one.values()
    )
    assert numbers["optimizer_mb"] == pytest.approx(size_mb(moments))
    n = sum(p.numel() for p in model.parameters())
    assert numbers["parameters"] == n and f"{n:,} parameters, exact" in planned.out
    assert numbers["gradients_mb"] == pytest.approx(4 * n / 2**20)
    assert numbers["step_seconds"] > 0 and numbers["training_seconds"] == pytest.approx(
        3 * numbers["step_seconds"]
    )


def test_planned_rate_is_near_that_of_a_run(genlab, tmp_path, monkeypatch):
    numbers, real = {}, planning.plan
    monkeypatch.setattr(planning, "plan", lambda *a, **how: numbers.update(real(*a, **how)))
    given = ("model=vae", "device=cpu", "trainer.preview_every=0", "trainer.steps=200", "out=run")
    assert genlab("plan", *given).code == 0 and genlab("train", *given).code == 0
    log = RunFolder(tmp_path / "run").read_log()
    rates = [line["items_per_s"] for line in log if "items_per_s" in line]
    assert 1 / 4 < numbers["items_per_s"] / median(rates) < 4, "other processes may use the machine"


def test_plan_counts_previews_and_evaluations_and_warns_of_a_full_disk(
    short_measurements, genlab, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    given = (
        "model=vae",
        "model.hidden=[8]",
        "device=cpu",
        "trainer.steps=1000",
        "trainer.max_minutes=100",
    )
    looks = (
        "trainer.preview_every=300",
        "trainer.evaluate_every=400",
        "trainer.monitor=nll_elbo",
        "evaluate.n=10",
        "evaluate.metrics=[likelihood]",
        "evaluate.iwae_samples=2",
    )
    said = genlab("plan", *given, *looks)
    assert said.code == 0, said.err
    assert (
        "4 previews" in said.out
        and "2 evaluations" in said.out
        and "1 kept + best.pt + one while" in said.out
    )
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda place: full)
    assert "warning: the checkpoints need" in genlab("plan", *given, "trainer.preview_every=0").err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("model=rbm", "dataset=ring"), "RBM requires"),
        (
            ("model=vae", "trainer.batch_size=9", "trainer.grad_accum_steps=2"),
            "cannot be cut into 2 equal parts",
        ),
        (("model=vae", "trainer.monitor=fid", "trainer.evaluate_every=5"), "fid"),
        (("model=vae", "trainer.batch_size=many"), "trainer.batch_size=many"),
    ],
)
def test_plan_refuses_what_training_refuses(given, words, genlab, tmp_path):
    refusal = genlab("plan", *given, "device=cpu").error
    assert words in refusal and refusal == genlab("train", *given, "device=cpu").error
    assert list(tmp_path.iterdir()) == []


def test_plan_refuses_resume(genlab):
    assert "without resume=" in genlab("plan", "resume=latest").error


class Stepwise(GenerativeModel):
    """A sampler with its own clock: 1,000 steps of 1 ms, plus 1 ms for each 8 samples."""

    now = 0.0
    step_by_step = True

    def sample(self, n, y=None, *, steps=None):
        self.now += (steps or 1000) * 1e-3 * (1 + n / 8)
        return torch.zeros(n)


class Endless(GenerativeModel):
    def sample(self, n, y=None):
        planning.time.sleep(600)


def test_slow_preview_is_estimated_or_interrupted(monkeypatch):
    monkeypatch.setattr(planning, "TIME_LIMIT_S", 0.1)
    assert planning.sampling_seconds_and_source(Endless(), 64) == (
        None,
        "64 samples were interrupted",
    )
    model = Stepwise()
    clock = SimpleNamespace(perf_counter=lambda: model.now)
    monkeypatch.setattr(planning, "time", clock)
    monkeypatch.setattr(planning, "TIME_LIMIT_S", 10.0)
    seconds, how = planning.sampling_seconds_and_source(model, 64)
    assert (
        seconds == pytest.approx(9)
        and how == "estimate: one sample took 1.12 s, and 64 in 4 steps 8.0 times one"
    )
    seconds, how = planning.sampling_seconds_and_source(model, 8)
    assert seconds == pytest.approx(2) and how == "measured, 8 samples"


# --- what a step takes ----------------------------------------------------------------------------


def test_step_time_is_measured(monkeypatch):
    """The loss waits 10 ms, so a step of two shards takes at least 20 ms."""
    _, dataset, trainer = build_training_objects(
        "model=vae",
        "model.hidden=[4]",
        *FAST_OVERRIDES,
        "trainer.grad_accum_steps=2",
        "trainer.lr_warmup_steps=3",
    )
    loss = trainer.model.loss
    trainer.model.loss = lambda batch: [planning.time.sleep(0.01), loss(batch)][1]
    before = [p.clone() for p in trainer.model.parameters()]
    trial = time_training_steps(trainer, dataset, seconds=0.1)
    assert min(trial.times) >= 0.02 and trial.items_per_s <= 8 / 0.02
    assert trial.steps_per_block <= 2, "blocks last 50 ms"
    assert all(map(torch.equal, before, trainer.model.parameters()))
    steps = trainer.global_step
    monkeypatch.setattr(auto_batch_size, "SLOW_STEP_S", 0.01)
    assert len(time_training_steps(trainer, dataset, seconds=0.005).times) == 1
    assert trainer.global_step == steps + 1, "a slow step is the only one"


def allocate(size: int) -> torch.Tensor:
    """Return this many bytes on new pages; malloc may return pages that are already resident."""
    return torch.frombuffer(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
    ).fill_(1)


def test_peak_memory_is_that_of_the_trial():
    device = build_training_objects("model=vae", *FAST_OVERRIDES)[2].device
    allocate(2**29)
    auto_batch_size.reset_peak_memory(device)
    before = auto_batch_size.used_memory_bytes(device)
    if auto_batch_size.peak_memory(device) > before + 2**28:
        pytest.skip("this system cannot reset a process's peak")
    allocate(2**28)
    assert auto_batch_size.peak_memory(device) - before == pytest.approx(2**28, rel=0.05)


# --- auto -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "shards", "most", "chosen", "end"),
    [
        (lambda n: min(n, 64), 1, 4096, 64, "128 is not faster"),
        (lambda n: n, 1, 300, 256, "300 is the largest size"),
        (lambda n: n if n < 100 else None, 1, 4096, 64, "128 does not fit"),
        (lambda n: n if n < 4 else None, 1, 4096, 2, "4 does not fit"),
        (lambda n: 100 - n / 50, 1, 4096, 8, "16 is not faster"),
        (lambda n: min(n, 20), 3, 4096, 24, "48 is not faster"),  # a multiple of the shards
        (lambda n: n, 6, 6, 6, "6 is the largest"),
        (
            lambda n: {8: 100, 16: 104}.get(n, 0),
            1,
            64,
            8,
            "16 is not faster",
        ),  # within 5 %: the smaller
    ],
)
def test_batch_size_rule(rate, shards, most, chosen, end):
    def fitting(n):
        if n == 4 and rate(n) is None:
            return None
        return rate(n)

    size, why = choose_batch_size(fitting, num_shards=shards, max_size=most)
    assert size == chosen and end in why and f"trainer.batch_size={chosen}:" in why


def test_error_if_no_batch_fits():
    with pytest.raises(UserError, match="not even a batch of 2 fits"):
        choose_batch_size(lambda n: None, num_shards=2, max_size=64)


def test_trial_out_of_memory_does_not_fit(monkeypatch):
    _, dataset, trainer = build_training_objects("model=vae", "model.hidden=[4]", *FAST_OVERRIDES)

    def make(n):
        if n > 8:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return build_training_objects(
            "model=vae", "model.hidden=[4]", *FAST_OVERRIDES, f"trainer.batch_size={n}"
        )[2]

    trials = BatchSizeTrials(make, dataset, trainer.device, processes=1)
    assert trials(16) is None and trials(8) > 0
    trials.last_fit = 8, trials.memory_limit
    assert trials(8) is None, (
        "a size is skipped if the memory of the last one predicts that it does not fit"
    )
    trials.last_fit, trials.memory_limit = None, 0
    assert trials(8) is None, "its peak was too high"
    with pytest.raises(RuntimeError, match="of genlab's own"):
        monkeypatch.setattr(
            trials,
            "make_trainer",
            lambda n: exec('raise RuntimeError("an error of genlab\'s own")'),
        )
        trials(8)


@pytest.mark.parametrize("recipe", ["vae", "gan", "rbm"])
def test_auto_batch_size_equals_the_run_with_that_size(
    recipe, short_measurements, genlab, tmp_path, monkeypatch
):
    monkeypatch.setattr(auto_batch_size, "MAX_BATCH_SIZE", 32)
    given = (
        f"model={recipe}",
        "device=cpu",
        "trainer.steps=3",
        "trainer.preview_every=0",
        "trainer.grad_accum_steps=2",
    )
    chose = genlab("train", *given, "trainer.batch_size=auto", "out=auto")
    assert chose.code == 0, chose.err
    n = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["trainer"]["batch_size"]
    assert (
        n in (16, 32)
        and f"trainer.batch_size={n}: the smallest within 5 %" in chose.err.splitlines()[0]
    )
    assert genlab("train", *given, f"trainer.batch_size={n}", "out=number").code == 0
    a, b = (RunFolder(tmp_path / name).load_checkpoint() for name in ("auto", "number"))
    assert [
        key
        for key in a
        if key not in ("seconds", "unlogged_losses") and not states_equal(a[key], b[key])
    ] == []
    assert [{**x} for x in a["unlogged_losses"]] == [{**x} for x in b["unlogged_losses"]]
    more = genlab("train", "resume=auto", "trainer.steps=4", "trainer.batch_size=auto")
    assert more.code == 0 and "trainer.batch_size" not in more.err, more.err
    assert RunFolder(tmp_path / "auto").load_checkpoint()["step"] == 4


def test_finding_the_batch_size_keeps_the_random_state(short_measurements, monkeypatch):
    monkeypatch.setattr(auto_batch_size, "MAX_BATCH_SIZE", 16)
    config, dataset, trainer = build_training_objects("model=rbm", *FAST_OVERRIDES)
    made = []

    def make(n, ranks: ProcessGroup):
        other = factory.make_trainer(
            {**config, "trainer": {**config["trainer"], "batch_size": n}},
            factory.make_model(config, dataset.spec),
            trainer.device,
            ranks,
        )
        made.append(n)
        return other

    first = next(trainer.train_batches(dataset)).x
    state = torch.get_rng_state()
    find_batch_size(make, dataset, device=trainer.device, grad_accum_steps=1)
    assert torch.equal(torch.get_rng_state(), state) and made == [8, 16]
    assert torch.equal(next(trainer.train_batches(dataset)).x, first)
    gc.collect()


@pytest.mark.slow
def test_auto_batch_size_in_two_processes(tmp_path):
    words = (
        "-m",
        "genlab",
        "train",
        "trainer.batch_size=auto",
        "trainer.steps=2",
        "device=cpu",
        "out=run",
    )
    assert [code for code, _, _ in wait_for(start_ranks(2, *words, cwd=tmp_path), within=300)] == [
        0,
        0,
    ]
    n = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["batch_size"]
    assert n in {2**i for i in range(4, 11)}, "each process has at least 8 items"


def test_trainer_refuses_auto():
    with pytest.raises(UserError, match="needs a number"):
        build_training_objects("model=vae", "device=cpu", "out=unused", "trainer.batch_size=auto")
