"""hydra/sweeper=optuna: search spaces, results, resuming after a kill, pruning."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fake_trials import fake_launch, quadratic_loss
from helpers.optuna_trials import LR_RANGE, SEARCH_COMMAND, read_trials
from helpers.recipes import CONFIGS, build_training_objects
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from genlab.abilities import Estimate
from genlab.commands.train import refuse_failing_training_options
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.sweeps.file_locks import hold_file_lock
from genlab.sweeps.hydra_launchers import SweepLauncher
from genlab.sweeps.job_state import read_state, run_and_record_job
from genlab.sweeps.optuna_study import SearchGoal, SearchOptions, Study, stop_callback
from genlab.sweeps.optuna_sweeper import group_into_launch_ranges
from genlab.sweeps.search_space import SearchSpace
from genlab.sweeps.sweep_folder import SweepFolder

OPTUNA = ("train", "-m", "hydra/sweeper=optuna", "hydra.sweep.dir=s")
LOSSES = "hydra.sweeper.objective=loss"


def make_space(*overrides: str) -> SearchSpace:
    return SearchSpace.from_overrides(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.fixture
def use_fake_jobs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`use_fake_jobs(work)`: the jobs of the test's sweeps call `work`."""
    return lambda *args: monkeypatch.setattr(SweepLauncher, "launch", fake_launch(*args))


# --- search spaces --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "values"),
    [
        ("a=choice(8,16,32)", CategoricalDistribution(["8", "16", "32"]), ["8", "16", "32"]),
        ("a=vae,gan", CategoricalDistribution(["vae", "gan"]), ["vae", "gan"]),
        ("a='x y',b", CategoricalDistribution(["'x y'", "b"]), ["'x y'", "b"]),
        ("a=[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"]), ["[1,2]", "[3]"]),
        ("a=null,1e-3", CategoricalDistribution(["null", "0.001"]), ["null", "0.001"]),
        ("a=shuffle(1,2,1)", CategoricalDistribution(["1", "2"]), ["1", "2"]),
        ("a=range(1,10)", IntDistribution(1, 9), [*range(1, 10)]),
        ("a=range(1,10,4)", IntDistribution(1, 9, step=4), [1, 5, 9]),
        ("a=range(10,1,-3)", IntDistribution(4, 10, step=3), [4, 7, 10]),
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25), [0, 0.25, 0.5, 0.75]),
        (
            "a=range(0,0.7,0.1)",
            FloatDistribution(0, 0.6, step=0.1),
            [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        ),
        ("a=tag(log,range(1,100))", IntDistribution(1, 99, log=True), [*range(1, 100)]),
        ("a=interval(1,5)", FloatDistribution(1, 5), None),
        ("a=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True), None),
        ("a=int(interval(1,5))", IntDistribution(1, 5), [1, 2, 3, 4, 5]),
        ("+a@b=tag(log,int(interval(8,10)))", IntDistribution(8, 10, log=True), [8, 9, 10]),
    ],
)
def test_overrides_become_distributions(text, expected, values):
    """A grid has the values that a basic sweep would run."""
    found = make_space("seed=3", text, "~b")
    key = text.partition("=")[0]
    assert found.distributions == {key: expected}
    drawn = expected.high if values is None else values[-1]
    assert found.job_overrides({key: drawn}) == ["seed=3", f"{key}={drawn}", "~b"]
    (override,) = OverridesParser.create().parse_overrides([text])
    if values is None:
        with pytest.raises(UserError, match="an interval has infinitely many values"):
            found.grid_values()
    else:
        assert found.grid_values() == {key: values}
        assert not override.is_discrete_sweep() or {str(v) for v in found.grid_values()[key]} == {
            *override.sweep_string_iterator()
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=3", "nothing to search"),
        ("a=tag(lg,interval(1,2))", "unknown tag 'lg' (did you mean 'log'?)"),
        ("a=tag(log,choice(1,2))", "the tag log needs an interval or a range"),
        ("a=tag(log,range(1,9,2))", "a=tag(log,range(1,9,2)): "),
        ("a=tag(log,interval(0,1))", "a=tag(log,interval(0,1)): "),
        ("a=interval(5,1)", "low=5.0, high=1.0"),
        ("a=range(3,3)", "a range from 3 to 3 is empty"),
    ],
)
def test_invalid_spaces_are_refused(text, message):
    with pytest.raises(UserError) as refusal:
        make_space(text)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_last_override_of_a_key_counts():
    """A typed override replaces the params of a file."""
    assert make_space("a=range(3)", "b=1", "a=7,8").distributions == {
        "a": CategoricalDistribution(["7", "8"])
    }


# --- searches -------------------------------------------------------------------------------------


def test_search_runs_trials_as_jobs(genlab, use_fake_jobs, tmp_path):
    """Trials are drawn two at a time; results and failures are recorded; the best is printed."""
    batches: list[list[int]] = []
    use_fake_jobs(quadratic_loss, batches)
    result = genlab(
        *OPTUNA, LR_RANGE, "seed=7", LOSSES, "hydra.sweeper.n_trials=25", "hydra.sweeper.n_jobs=2"
    )
    assert result.code == 0, result.err  # trials may fail
    assert batches == [[*range(i, min(25, i + 2))] for i in range(0, 25, 2)]
    jobs, trials = SweepFolder.open(tmp_path / "s").jobs(), read_trials(tmp_path / "s")
    assert len(jobs) == len(trials) == 25
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    for job, trial in zip(jobs, trials, strict=True):
        assert job.overrides == (f"optimizer.lr={trial.params['optimizer.lr']}", "seed=7")
        state = read_state(job.folder)
        assert state.starts == 1
        assert (state.status, trial.state) in {
            ("done", TrialState.COMPLETE),
            ("failed", TrialState.FAIL),
        }
        assert trial.values == (None if state.status == "failed" else [state.result["loss"]])
    best = min((t for t in trials if t.values), key=lambda t: t.value)
    assert 0.005 < best.params["optimizer.lr"] < 0.02
    row = result.out.splitlines()[-2].split()
    assert row == [
        str(best.number),
        f"{best.value:.6g}",
        f"{best.params['optimizer.lr']:.6g}",
        f"s/{best.number}",
    ]
    assert (
        "diverged" not in result.out
        and f"failed (step 7: loss is nan at {trials[0].params}" not in result.err
    )
    assert f"25 trials: {sum(bool(t.values) for t in trials)} complete" in result.out


def test_search_from_experiment_file(genlab, use_fake_jobs, tmp_path):
    """A file may define the space and the sampler; a grid ends with its last combination."""
    group = tmp_path / "mine" / "experiment"
    group.mkdir(parents=True)
    (group / "search.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /hydra/sweeper: optuna}]\n"
        "hydra: {sweeper: {objective: loss, sampler: grid, params: "
        "{optimizer.lr: 'range(0.01,0.04,0.01)', seed: '1,2'}}}\n"
    )
    use_fake_jobs(quadratic_loss)
    result = genlab(
        "train",
        "-m",
        "--config-dir",
        "mine",
        "experiment=search",
        "hydra.sweep.dir=s",
        "+model.depth=5",
    )
    assert result.code == 0, result.err
    jobs = [job.overrides for job in SweepFolder.open(tmp_path / "s").jobs()]
    rates = ("0.01", "0.02", "0.03")
    assert jobs == [
        (f"optimizer.lr={r}", f"seed={i}", "experiment=search", "+model.depth=5")
        for r in rates
        for i in (1, 2)
    ]


def test_search_with_several_objectives(genlab, use_fake_jobs, tmp_path):
    """The trials of the Pareto front are printed."""
    use_fake_jobs(quadratic_loss)
    more = (
        "hydra.sweeper.objective=[loss,cost]",
        "hydra.sweeper.direction=[minimize,maximize]",
        "hydra.sweeper.sampler=nsgaii",
    )
    result = genlab(*OPTUNA, LR_RANGE, *more, "hydra.sweeper.n_trials=15")
    assert result.code == 0, result.err
    ended = {t.number: t.values for t in read_trials(tmp_path / "s") if t.values}
    beaten = lambda a: any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in ended.values())  # noqa: E731
    shown = [
        line.split()[0]
        for line in result.out.splitlines()
        if line.rstrip().endswith(tuple(f" s/{n}" for n in ended))
    ]
    assert 1 < len(shown) < len(ended)
    assert {int(n) for n in shown} == {n for n, values in ended.items() if not beaten(values)}


def test_search_with_more_trials_continues(genlab, use_fake_jobs, tmp_path):
    """The same command with more trials runs only those; with as many it prints the result."""
    use_fake_jobs(quadratic_loss)
    for n, started in ((5, 0), (8, 5), (8, 8)):
        result = genlab(*OPTUNA, LR_RANGE, LOSSES, f"hydra.sweeper.n_trials={n}")
        assert result.code == 0, result.err
        assert f" {started} started" in result.out and f"{n} trials: " in result.out
    assert [read_state(job.folder).starts for job in SweepFolder.open(tmp_path / "s").jobs()] == [
        1
    ] * 8


KILLED = """
import os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv.pop(1))]
dies = int(sys.argv.pop(1))
from helpers import fake_trials
from genlab.sweeps.hydra_launchers import SweepLauncher
def work(overrides, number):
    if number == dies:
        os.kill(os.getpid(), 9)
    return fake_trials.quadratic_loss(overrides, number)
SweepLauncher.launch = fake_trials.fake_launch(work)
from genlab.cli.main import main
main()
"""


def test_killed_search_resumes(genlab, use_fake_jobs, tmp_path):
    """After a kill in the middle of a batch only the running trial runs again, in its folder."""
    words = (*OPTUNA, LR_RANGE, LOSSES, "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4")
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), "5", *words]
    assert (
        subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == -signal.SIGKILL
    )
    assert [t.state.name for t in read_trials(tmp_path / "s")] == ["COMPLETE"] * 4 + ["RUNNING"] * 4
    use_fake_jobs(quadratic_loss)
    result = genlab(*words)
    assert result.code == 0, result.err
    trials = read_trials(tmp_path / "s")
    assert [t.state.is_finished() for t in trials] == [True] * 8
    assert [read_state(tmp_path / "s" / str(n)).starts for n in range(8)] == [
        1,
        1,
        1,
        1,
        1,
        2,
        1,
        1,
    ]


def test_interrupted_search_resumes(genlab, use_fake_jobs, tmp_path):
    """A trial that a signal ended stays running, and the same command resumes it."""

    def interrupt(overrides, number):
        raise KeyboardInterrupt

    def launch(self, job_overrides, initial_job_idx):
        try:
            fake_launch(interrupt)(self, job_overrides, initial_job_idx)
        except KeyboardInterrupt:
            return

    words = (*OPTUNA, LR_RANGE, LOSSES, "hydra.sweeper.n_trials=2")
    use_fake_jobs(quadratic_loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepLauncher, "launch", launch)
        assert "(0 is stopped); resume it with `genlab sweep resume s`" in genlab(*words).error
    assert [t.state.name for t in read_trials(tmp_path / "s")] == ["RUNNING"]
    assert genlab(*words).code == 0
    assert [read_state(tmp_path / "s" / str(n)).starts for n in range(2)] == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "set trainer.monitor and trainer.evaluate_every, or hydra.sweeper.objective"),
        (
            ["hydra.sweeper.objective=los"],
            "job 0 has no 'los' (did you mean 'loss'?); it has loss, cost",
        ),
        ([LOSSES, "hydra.sweeper.sampler=grid"], "an interval has infinitely many values"),
        ([LOSSES, "hydra.sweeper.pruner=median"], "needs evaluations: set trainer.evaluate_every"),
        ([LOSSES, "hydra.sweeper.direction=minimise"], "should be 'minimize' or 'maximize'"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: input should be greater than 0"),
        (["hydra.sweeper.n_trails=3"], "did you mean 'n_trials'?"),
        (
            [LOSSES, "hydra/launcher=basic"],
            "needs a launcher of genlab, which records each job's state",
        ),
        ([LOSSES, "model=choice(vae,no)"], "model=no does not exist"),
        ([LOSSES, "model.latnet=3"], "did you mean 'latent'?"),
    ],
)
def test_invalid_options_are_refused(genlab, use_fake_jobs, tmp_path, options, message):
    use_fake_jobs(quadratic_loss)
    assert message in genlab(*OPTUNA, LR_RANGE, "hydra.sweeper.n_jobs=3", *options).error
    assert (tmp_path / "s" / "plan.json").exists() == ("los" in message)


def test_only_one_process_searches(genlab, use_fake_jobs, tmp_path):
    use_fake_jobs(quadratic_loss)
    (tmp_path / "s").mkdir()
    with hold_file_lock(tmp_path / "s" / ".search.lock"):
        assert "another process is at work in s" in genlab(*OPTUNA, LR_RANGE, LOSSES).error


def test_missing_optuna_is_reported(genlab, monkeypatch):
    """The error says what to install."""
    for name in [
        name for name in sys.modules if name == "optuna" or name == "genlab.sweeps.optuna_study"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'genlab[optuna]'" in genlab(*OPTUNA, LR_RANGE).error


def test_launch_ranges():
    """A range may contain jobs that are done, but no jobs that failed."""
    assert group_into_launch_ranges([4, 7, 5], {6}) == [range(4, 8)]
    assert group_into_launch_ranges([4, 7, 5], set()) == [range(4, 6), range(7, 8)]


# --- the study and pruning ------------------------------------------------------------------------

LOSS = SearchGoal(("loss",), ("minimize",))
MEDIAN = {"name": "median", "n_startup_trials": 2}


def make_study(folder: Path, *overrides: str, goal: SearchGoal = LOSS, **search: object) -> Study:
    return Study(
        folder,
        make_space(*(overrides or [LR_RANGE])),
        goal,
        search=SearchOptions(**search),
        eval_steps=(10, 100),
    )


@pytest.mark.parametrize(
    "sampler",
    ["tpe", {"name": "tpe", "n_startup_trials": 2, "group": False}, "gp", "random", "nsgaii"],
)
def test_reopened_study_draws_the_same_trials(tmp_path, sampler):
    """It neither repeats its first trials nor draws others."""
    drawn = {}
    for name, openings in (("whole", [10]), ("parts", [4, 1, 5])):
        for n in openings:
            one = make_study(tmp_path / name, LR_RANGE, "model.latent=range(2,90)", sampler=sampler)
            for _ in range(n):
                trial = one.ask()
                one.tell(trial.number, {"loss": abs(trial.params["optimizer.lr"] - 0.01)}, "job")
        drawn[name] = [tuple(t.params.values()) for t in one.trials()]
    assert drawn["parts"] == drawn["whole"] and len(set(drawn["whole"])) == 10


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"sampler": "tp"}, "no such sampler (did you mean 'tpe'?); there are tpe, gp"),
        (
            {"sampler": {"name": "tpe", "n_startup": 3}},
            "hydra.sweeper.sampler.n_startup' (did you mean 'n_startup_trials'?)",
        ),
        (
            {"sampler": {"name": "tpe", "n_startup_trials": "x"}},
            "hydra.sweeper.sampler.n_startup_trials=x: ",
        ),
        ({"pruner": "medium"}, "no such pruner (did you mean 'median'?); there are none, median"),
        ({"pruner": "percentile"}, "hydra.sweeper.pruner: PercentilePruner"),
        ({"pruner": {"name": "percentile", "percentile": 300}}, "between 0 and 100"),
    ],
)
def test_invalid_samplers_and_pruners_are_refused(tmp_path, search, message):
    with pytest.raises(UserError) as refusal:
        make_study(tmp_path, **search)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, "needs an objective"),
        ({"objective": ["a", "b"]}, "each objective needs its own direction"),
        (
            {"objective": ["a", "b"], "direction": ["minimize", "maximize"], "pruner": "median"},
            "pruner needs a single objective",
        ),
    ],
)
def test_invalid_goals_are_refused(search, message):
    with pytest.raises(UserError, match=message):
        SearchOptions(**search).make_goal(None, 10)


def test_folder_holds_one_search(tmp_path):
    """Another space, other fixed options and another direction are refused.

    The objective's name may change until a trial counted.
    """
    make_study(tmp_path, LR_RANGE, "seed=1", goal=SearchGoal(("los",), ("minimize",))).ask()
    one = make_study(tmp_path, "seed=1", LR_RANGE)
    one.tell(0, {"loss": 1.0}, "job 0")
    for overrides, goal in (
        ([LR_RANGE], LOSS),
        ([LR_RANGE, "seed=2"], LOSS),
        (["optimizer.lr=interval(1e-4,1e-1)", "seed=1"], LOSS),
        ([LR_RANGE, "seed=1"], SearchGoal(("los",), ("minimize",))),
        ([LR_RANGE, "seed=1"], SearchGoal(("loss",), ("maximize",))),
    ):
        with pytest.raises(UserError, match=r"give another hydra\.sweep\.dir="):
            make_study(tmp_path, *overrides, goal=goal)


def test_torn_journal_is_repaired(tmp_path):
    """An incomplete last line was never used, and is dropped; other damage is refused."""
    one = make_study(tmp_path)
    one.tell(one.ask().number, {"loss": 1.0}, "job 0")
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        path.write_bytes(whole + whole.splitlines()[-1][:cut])
        assert [t.value for t in make_study(tmp_path).trials()] == [1.0]
        assert path.read_bytes() == whole
    path.write_bytes(b"{not json\n" + whole)
    with pytest.raises(UserError, match=r"study\.journal is unreadable"):
        make_study(tmp_path)


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_incomplete_trial_is_completed(tmp_path, sampler):
    """A trial that a kill left with some of its values keeps these."""
    both = ("a=range(2,5)", "b=vae,gan")
    one = make_study(tmp_path, *both, sampler=sampler)
    whole = one.ask()
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # without the last value
    assert [*make_study(tmp_path, *both, sampler=sampler).trials()[0].params] == ["a", "b"]
    for drawn in (lines[:-1], lines[:-2]):
        path.write_bytes(b"".join(drawn))
        (trial,) = make_study(tmp_path, *both, sampler=sampler).trials()
        assert trial.params["a"] == whole.params["a"] and trial.params["b"] in ("vae", "gan")


def test_trials_with_nan_or_inf_fail(tmp_path):
    one = make_study(tmp_path)
    for value in (math.nan, math.inf, 2.0):
        one.tell(one.ask().number, {"loss": value}, "job")
    assert [t.state.name for t in one.trials()] == ["FAIL", "FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    "pruner", [MEDIAN, {**MEDIAN, "name": "percentile", "percentile": 50.0}, "halving", "hyperband"]
)
def test_pruning_ends_bad_trials(tmp_path, pruner):
    """Of trials whose losses fall evenly from different starts, the best are never ended."""
    one = make_study(tmp_path, pruner=pruner)
    ended: dict[int, str] = {}
    for start in (5, 3, 4, 9, 2, 8, 7, 1, 6):
        number = one.ask().number
        stop_reason = stop_callback(
            tmp_path, number, LOSS, search=SearchOptions(pruner=pruner), eval_steps=(10, 100)
        )
        for step in range(10, 101, 10):
            loss = start - step / 1000
            if stop_reason(step, {"loss": (Estimate(loss, None, "exact"), False)}):
                ended[start] = one.tell(number, {"loss": loss, "pruned": float(step)}, "job")
                break
        else:
            one.tell(number, {"loss": loss}, "job")
        assert stop_reason(110, {"loss": (Estimate(99.0, None, "exact"), False)}) is None, (
            "a finished trial does not change"
        )
    assert ended and not {1, 2} & set(ended)
    assert all(said.startswith("pruned at step") for said in ended.values())
    assert [t.state.name for t in one.trials()].count("PRUNED") == len(ended)
    assert one.best_trials()[0].value == 0.9


def test_pruning_by_invalid_objective_is_refused(tmp_path):
    """A missing metric and a wrong direction are reported at the first evaluation."""
    number = make_study(tmp_path, pruner="median").ask().number
    stop_reason = stop_callback(
        tmp_path, number, LOSS, search=SearchOptions(pruner="median"), eval_steps=(10, 100)
    )
    with pytest.raises(
        UserError, match=r"objective=loss is not evaluated \(did you mean 'los'\?\); there are los"
    ):
        stop_reason(10, {"los": (Estimate(1.0, None, "exact"), False)})
    with pytest.raises(UserError, match="direction=minimize: loss is better if higher"):
        stop_reason(10, {"loss": (Estimate(1.0, None, "exact"), True)})


# --- real trainings -------------------------------------------------------------------------------


READY = [
    p
    for p in sorted((CONFIGS / "experiment" / "sweep").glob("*.yaml"))
    if "/hydra/sweeper: optuna" in p.read_text()
]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_shipped_search_matches_its_header(path, genlab, use_fake_jobs, tmp_path):
    """It draws as many trials as its header says; the first and the last of them build."""
    text = " ".join(
        line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")
    )
    command = re.search(rf"genlab train -m experiment=sweep/{path.stem}\b", text).group()
    use_fake_jobs(lambda overrides, number: {"nll_elbo": float(overrides["optimizer.lr"])})
    result = genlab(*command.split()[1:])
    assert result.code == 0, result.err
    jobs = SweepFolder.open(tmp_path / "outputs" / "sweeps" / path.stem).jobs()
    assert f"{len(jobs)} trials" in text and len({job.overrides for job in jobs}) == len(jobs)
    for job in (jobs[0], jobs[-1]):
        config, dataset, trainer = build_training_objects(
            *job.overrides, "device=cpu", "out=unused"
        )
        refuse_failing_training_options(trainer, dataset, config)


def launch_here(self, job_overrides, initial_job_idx):
    """Train the jobs one after another in this process, as Hydra's own launcher does."""
    basic = Plugins.instance().class_name_to_class[
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    ]
    for job in SweepFolder(Path(self.config.hydra.sweep.dir)).add_jobs(
        ["train"], initial_job_idx, job_overrides
    ):
        run_and_record_job(
            job.folder,
            lambda job=job: basic.launch(self, [job.overrides], job.number)[0].return_value,
        )


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_real_trainings_are_pruned(genlab, monkeypatch, tmp_path, processes):
    """Bad trainings end early: saved, done, and pruned in the study; none of them is repeated."""
    words = (
        *SEARCH_COMMAND,
        "hydra.sweep.dir=s",
        "hydra.sweeper.pruner={name:median,n_startup_trials:2}",
        "hydra.sweeper.n_trials=6",
    )
    words += (
        "trainer.steps=60",
        "trainer.evaluate_every=20",
        "hydra.launcher.n=2",
        "hydra.sweeper.sampler=random",
    )
    if not processes:
        monkeypatch.setattr(SweepLauncher, "launch", launch_here)
    result = genlab(*words)
    assert result.code == 0, result.err
    trials = read_trials(tmp_path / "s")
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        folder = tmp_path / "s" / str(trial.number)
        state, lines = read_state(folder), RunFolder(folder).read_log()
        values = [line["evaluation"]["nll_elbo"] for line in lines if "evaluation" in line]
        assert state.status == "done" and state.starts == 1
        assert dict(enumerate(values)) == {
            step // 20 - 1: value for step, value in trial.intermediate_values.items()
        }
        assert state.result["nll_elbo"] == min(values)
        pruned = trial.state is TrialState.PRUNED
        assert (
            RunFolder(folder).load_checkpoint()["step"]
            == (state.result["pruned"] if pruned else 60)
            == 20 * len(values)
        )
        assert trial.value == (values[-1] if pruned else min(values))
    assert "done, pruned" in genlab("sweep", "status", "s").out
    again = genlab(*words)
    if processes:
        assert "learns from failed trials" in genlab("sweep", "rerun", "s").error
        again = genlab("sweep", "resume", "s")
    assert (
        again.code == 0
        and "trial 0" not in again.out
        and f"{min(t.value for t in trials):.6g}" in again.out
    )
    assert [read_state(tmp_path / "s" / str(n)).starts for n in range(6)] == [1] * 6
