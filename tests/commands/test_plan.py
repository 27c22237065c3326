"""genlab plan against what training then does; and trainer.batch_size=auto, which measures in the same way."""

from __future__ import annotations

import gc
import mmap
from statistics import median
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.ddp_processes import ended, start
from helpers.recipes import FLAGSHIPS, SMALL, built, same

from genlab.builders import factory
from genlab.commands import plan as planning
from genlab.distributed.process_group import Ranks
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.training import auto_batch_size
from genlab.training.auto_batch_size import Trials, climb, settle, timed

TINY = ("device=cpu", "prepare.size=16", "trainer.batch_size=8", "trainer.accumulate=2", "trainer.ema=0.9",
        "trainer.preview_every=0", "trainer.steps=3", "trainer.save_every=1", "out=run")  # fmt: skip


@pytest.fixture
def hurried(monkeypatch):
    """Measure as little as can be measured."""
    monkeypatch.setattr(planning, "STEPS_FOR", 0.0)
    monkeypatch.setattr(auto_batch_size, "BLOCK", 0.0)


# --- the plan ---------------------------------------------------------------------------------------------------------


SMALLER = {
    "realnvp": ("model.blocks=1", "model.channels=8"),
    "dcgan": ("model.width=16",),
    "gan": ("model.hidden=[200]",),
}


@pytest.mark.parametrize("recipe", FLAGSHIPS)
def test_what_is_planned_is_what_training_takes(recipe, hurried, genlab, monkeypatch, tmp_path):
    numbers, real = {}, planning.plan
    monkeypatch.setattr(planning, "plan", lambda *a, **how: numbers.update(real(*a, **how)))
    given = (f"model={recipe}", *SMALLER.get(recipe, ()), *TINY)
    planned = genlab("plan", *given)
    assert planned.code == 0 and planned.err == "", planned.err
    assert list(tmp_path.iterdir()) == [], "it writes nothing"
    trained = genlab("train", *given)
    assert trained.code == 0, trained.err
    run = RunFolder(tmp_path / "run")
    files = run.steps()
    assert numbers["checkpoint_mb"] == pytest.approx(files[-1].stat().st_size / 2**20, rel=0.02)
    assert numbers["disk_mb"] == pytest.approx((len(files) + 1) * numbers["checkpoint_mb"])
    state = run.load()
    count = lambda tensors: (
        sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)) / 2**20
    )  # noqa: E731
    model = built(*given)[2].model
    assert (
        numbers["weights_mb"] == numbers["ema_mb"] == count([*model.parameters(), *model.buffers()])
    )
    moments = (
        s
        for opt in state["optimizers"].values()
        for one in opt["state"].values()
        for s in one.values()
    )
    assert numbers["optimizer_mb"] == pytest.approx(count(moments))
    n = sum(p.numel() for p in model.parameters())
    assert numbers["parameters"] == n and f"{n:,} parameters, exact" in planned.out
    assert numbers["gradients_mb"] == pytest.approx(4 * n / 2**20)
    assert numbers["step_seconds"] > 0 and numbers["training_seconds"] == pytest.approx(
        3 * numbers["step_seconds"]
    )


def test_the_rate_is_about_that_of_a_run(genlab, tmp_path, monkeypatch):
    numbers, real = {}, planning.plan
    monkeypatch.setattr(planning, "plan", lambda *a, **how: numbers.update(real(*a, **how)))
    given = ("model=vae", "device=cpu", "trainer.preview_every=0", "trainer.steps=200", "out=run")
    assert genlab("plan", *given).code == 0 and genlab("train", *given).code == 0
    rates = [line["items_per_s"] for line in RunFolder(tmp_path / "run").history()]
    assert 1 / 4 < numbers["items_per_s"] / median(rates) < 4, (
        "other processes may share the machine"
    )


def test_previews_evaluations_and_limits(hurried, genlab, tmp_path, monkeypatch):
    given = (
        "model=vae",
        "model.hidden=[8]",
        "device=cpu",
        "trainer.steps=1000",
        "trainer.max_time=100",
    )
    looks = ("trainer.preview_every=300", "trainer.evaluate_every=400", "trainer.monitor=nll_elbo", "evaluate.n=10",
             "evaluate.metrics=[likelihood]", "evaluate.k=2")  # fmt: skip
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
        (("model=rbm", "dataset=ring"), "RBM needs"),
        (
            ("model=vae", "trainer.batch_size=9", "trainer.accumulate=2"),
            "cannot be cut into 2 equal parts",
        ),
        (("model=vae", "trainer.monitor=fid", "trainer.evaluate_every=5"), "fid"),
        (("model=vae", "trainer.batch_size=many"), "trainer.batch_size=many"),
    ],
)
def test_a_misfit_is_refused_as_training_refuses_it(given, words, genlab, tmp_path):
    refusal = genlab("plan", *given, "device=cpu").error
    assert words in refusal and refusal == genlab("train", *given, "device=cpu").error
    assert list(tmp_path.iterdir()) == []


def test_a_resume_is_no_plan(genlab):
    assert "no resume=" in genlab("plan", "resume=latest").error


class Stepwise:
    """A sampler of 1,000 steps, each of which takes a millisecond and one more for each 8 samples, by its own clock."""

    now = 0.0

    def sample(self, n, y=None, *, steps=None):
        self.now += (steps or 1000) * 1e-3 * (1 + n / 8)
        return torch.zeros(n)


class Endless:
    def sample(self, n, y=None):
        planning.time.sleep(600)


def test_a_costly_preview_is_estimated_or_given_up(monkeypatch):
    monkeypatch.setattr(planning, "PATIENCE", 0.1)
    assert planning.drawing(Endless(), 64) == (None, "64 samples were given up")
    model = Stepwise()
    clock = SimpleNamespace(perf_counter=lambda: model.now)
    monkeypatch.setattr(planning, "time", clock)
    monkeypatch.setattr(planning, "PATIENCE", 10.0)
    seconds, how = planning.drawing(model, 64)
    assert (
        seconds == pytest.approx(9)
        and how == "estimate: one sample took 1.12 s, and 64 in 4 steps 8.0 times one"
    )
    seconds, how = planning.drawing(model, 8)
    assert seconds == pytest.approx(2) and how == "measured, 8 samples"


# --- what a step takes ------------------------------------------------------------------------------------------------


def test_timed_steps_against_a_clock(monkeypatch):
    """A model whose loss waits 10 ms: no step is timed as less than its two shards; the weights stay."""
    _, dataset, trainer = built(
        "model=vae", "model.hidden=[4]", *SMALL, "trainer.accumulate=2", "trainer.warmup=3"
    )
    loss = trainer.model.loss
    trainer.model.loss = lambda batch: [planning.time.sleep(0.01), loss(batch)][1]
    before = [p.clone() for p in trainer.model.parameters()]
    trial = timed(trainer, dataset, seconds=0.1)
    assert min(trial.times) >= 0.02 and trial.items_per_s <= 8 / 0.02
    assert trial.block <= 2, "blocks last 50 ms"
    assert all(map(torch.equal, before, trainer.model.parameters()))


def filled(size: int) -> torch.Tensor:
    """Return that many bytes on pages of their own: what malloc gives may be pages that earlier tests have left resident."""
    return torch.frombuffer(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
    ).fill_(1)


def test_peak_is_that_of_the_trial():
    device = built("model=vae", *SMALL)[2].device
    filled(2**29)
    auto_batch_size.forget_peak(device)
    before = auto_batch_size.held(device)
    if auto_batch_size.peak(device) > before + 2**28:
        pytest.skip("this system cannot reset a process's peak")
    filled(2**28)
    assert auto_batch_size.peak(device) - before == pytest.approx(2**28, rel=0.05)


# --- auto -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "shards", "most", "chosen", "end"),
    [
        (lambda n: min(n, 64), 1, 4096, 64, "128 gained too little"),
        (lambda n: n, 1, 300, 256, "300 is the most that is tried"),
        (lambda n: n if n < 100 else None, 1, 4096, 64, "128 would not fit"),
        (lambda n: n if n < 4 else None, 1, 4096, 2, "4 would not fit"),
        (lambda n: 100 - n / 50, 1, 4096, 8, "16 gained too little"),
        (lambda n: min(n, 20), 3, 4096, 24, "48 gained too little"),  # a multiple of the shards
        (lambda n: n, 6, 6, 6, "6 is the most"),
        (
            lambda n: {8: 100, 16: 104}.get(n, 0),
            1,
            64,
            8,
            "16 gained too little",
        ),  # within 5 %: the smaller
    ],
)
def test_the_rule(rate, shards, most, chosen, end):
    def fitting(n):
        if n == 4 and rate(n) is None:
            return None
        return rate(n)

    size, why = climb(fitting, shards=shards, most=most)
    assert size == chosen and end in why and f"trainer.batch_size={chosen}:" in why


def test_nothing_fits():
    with pytest.raises(UserError, match="not even a batch of 2 fits"):
        climb(lambda n: None, shards=2, most=64)


def test_a_trial_that_runs_out_of_memory_does_not_fit(monkeypatch):
    _, dataset, trainer = built("model=vae", "model.hidden=[4]", *SMALL)

    def make(n):
        if n > 8:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return built("model=vae", "model.hidden=[4]", *SMALL, f"trainer.batch_size={n}")[2]

    trials = Trials(make, dataset, trainer.device, processes=1)
    assert trials(16) is None and trials(8) > 0
    trials.grew = 8, trials.limit
    assert trials(8) is None, "it is not tried where what the last one took says that it cannot fit"
    trials.grew, trials.limit = None, 0
    assert trials(8) is None, "its peak was too high"
    with pytest.raises(RuntimeError, match="of genlab's own"):
        monkeypatch.setattr(
            trials, "make", lambda n: exec('raise RuntimeError("an error of genlab\'s own")')
        )
        trials(8)


@pytest.mark.parametrize("recipe", ["vae", "gan", "rbm"])
def test_auto_is_the_run_with_that_number(recipe, hurried, genlab, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_batch_size, "MOST", 32)
    given = (
        f"model={recipe}",
        "device=cpu",
        "trainer.steps=3",
        "trainer.preview_every=0",
        "trainer.accumulate=2",
    )
    chose = genlab("train", *given, "trainer.batch_size=auto", "out=auto")
    assert chose.code == 0, chose.err
    n = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["trainer"]["batch_size"]
    assert (
        n in (16, 32)
        and f"trainer.batch_size={n}: the smallest within 5 %" in chose.err.splitlines()[0]
    )
    assert genlab("train", *given, f"trainer.batch_size={n}", "out=number").code == 0
    a, b = (RunFolder(tmp_path / name).load() for name in ("auto", "number"))
    assert [
        key for key in a if key not in ("seconds", "pending") and not same(a[key], b[key])
    ] == []
    assert [{**x} for x in a["pending"]] == [{**x} for x in b["pending"]]
    more = genlab("train", "resume=auto", "trainer.steps=4", "trainer.batch_size=auto")
    assert more.code == 0 and "trainer.batch_size" not in more.err, more.err
    assert RunFolder(tmp_path / "auto").load()["step"] == 4


def test_settling_leaves_no_trace(hurried, monkeypatch):
    monkeypatch.setattr(auto_batch_size, "MOST", 16)
    config, dataset, trainer = built("model=rbm", *SMALL)
    made = []

    def make(n, ranks: Ranks):
        other = factory.make_trainer(
            {**config, "trainer": {**config["trainer"], "batch_size": n}},
            factory.make_model(config, dataset.spec), trainer.device, ranks,
        )  # fmt: skip
        made.append(n)
        return other

    first = next(trainer.stream(dataset)).x
    state = torch.get_rng_state()
    settle(make, dataset, device=trainer.device, accumulate=1)
    assert torch.equal(torch.get_rng_state(), state) and made == [8, 16]
    assert torch.equal(next(trainer.stream(dataset)).x, first)
    gc.collect()


def test_auto_in_two_processes(tmp_path):
    words = (
        "-m",
        "genlab",
        "train",
        "trainer.batch_size=auto",
        "trainer.steps=2",
        "device=cpu",
        "out=run",
    )
    assert [code for code, _, _ in ended(start(2, *words, cwd=tmp_path), within=300)] == [0, 0]
    n = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["batch_size"]
    assert n in {2**i for i in range(4, 11)}, "each process has at least 8 items"


def test_a_trainer_needs_a_number():
    with pytest.raises(UserError, match="needs a number"):
        built("model=vae", "device=cpu", "out=unused", "trainer.batch_size=auto")
