"""hydra/sweeper=optuna: what may be tried, what the study is told, going on after a kill, ending bad trials early."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fake_trials import bowl, launch_by
from helpers.optuna_trials import RATE, TRAINS, told_in
from helpers.recipes import CONFIGS, built
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from genlab.abilities import Estimate
from genlab.commands.train import check
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.sweeps.file_locks import hold
from genlab.sweeps.hydra_launchers import Jobs
from genlab.sweeps.optuna_study import Goal, Search, Study, verdict
from genlab.sweeps.optuna_sweeper import spans
from genlab.sweeps.search_space import Space
from genlab.sweeps.sweep_folder import SweepFolder, read, run

OPTUNA = ("train", "-m", "hydra/sweeper=optuna", "hydra.sweep.dir=s")
LOSSES = "hydra.sweeper.objective=loss"


def space(*overrides: str) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`works(work)`: the jobs of the test's sweeps do that."""
    return lambda *how: monkeypatch.setattr(Jobs, "launch", launch_by(*how))


# --- what may be tried ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected", "values"), [
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
    ("a=range(0,0.7,0.1)", FloatDistribution(0, 0.6, step=0.1), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    ("a=tag(log,range(1,100))", IntDistribution(1, 99, log=True), [*range(1, 100)]),
    ("a=interval(1,5)", FloatDistribution(1, 5), None),
    ("a=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True), None),
    ("a=int(interval(1,5))", IntDistribution(1, 5), [1, 2, 3, 4, 5]),
    ("+a@b=tag(log,int(interval(8,10)))", IntDistribution(8, 10, log=True), [8, 9, 10]),
])  # fmt: skip
def test_spaces(text, expected, values):
    """Hydra's sweep grammar as optuna's distributions; a grid has the values that a basic sweep would run."""
    found = space("seed=3", text, "~b")
    key = text.partition("=")[0]
    assert found.searched == {key: expected}
    drawn = expected.high if values is None else values[-1]
    assert found.overrides({key: drawn}) == ["seed=3", f"{key}={drawn}", "~b"]
    (override,) = OverridesParser.create().parse_overrides([text])
    if values is None:
        with pytest.raises(UserError, match="an interval has no end of values"):
            found.grid()
    else:
        assert found.grid() == {key: values}
        assert not override.is_discrete_sweep() or {str(v) for v in found.grid()[key]} == {
            *override.sweep_string_iterator()
        }


@pytest.mark.parametrize(("text", "said"), [
    ("a=3", "nothing to search"),
    ("a=tag(lg,interval(1,2))", "there is no tag 'lg' (did you mean 'log'?)"),
    ("a=tag(log,choice(1,2))", "the tag log goes with an interval or a range"),
    ("a=tag(log,range(1,9,2))", "a=tag(log,range(1,9,2)): "),
    ("a=tag(log,interval(0,1))", "a=tag(log,interval(0,1)): "),
    ("a=interval(5,1)", "low=5.0, high=1.0"),
    ("a=range(3,3)", "a range from 3 to 3 has no value in it"),
])  # fmt: skip
def test_spaces_refused(text, said):
    with pytest.raises(UserError) as refused:
        space(text)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_last_of_a_key_counts():
    """What is typed replaces what params in a file say of the same key."""
    assert space("a=range(3)", "b=1", "a=7,8").searched == {
        "a": CategoricalDistribution(["7", "8"])
    }


# --- a search ---------------------------------------------------------------------------------------------------------


def test_a_search(genlab, works, tmp_path):
    """Trials are jobs of the sweep, drawn two at a time; each result is told, a failure too, and the best is shown."""
    batches: list[list[int]] = []
    works(bowl, batches)
    result = genlab(
        *OPTUNA, RATE, "seed=7", LOSSES, "hydra.sweeper.n_trials=25", "hydra.sweeper.n_jobs=2"
    )
    assert result.code == 0, result.err  # trials may fail
    assert batches == [[*range(i, min(25, i + 2))] for i in range(0, 25, 2)]
    jobs, told = SweepFolder.find(tmp_path / "s").jobs(), told_in(tmp_path / "s")
    assert len(jobs) == len(told) == 25
    assert {t.state for t in told} == {TrialState.COMPLETE, TrialState.FAIL}
    for job, trial in zip(jobs, told, strict=True):
        assert job.overrides == (f"optimizer.lr={trial.params['optimizer.lr']}", "seed=7")
        state = read(job.folder)
        assert state.starts == 1
        assert (state.status, trial.state) in {
            ("done", TrialState.COMPLETE),
            ("failed", TrialState.FAIL),
        }
        assert trial.values == (None if state.status == "failed" else [state.result["loss"]])
    best = min((t for t in told if t.values), key=lambda t: t.value)
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
        and f"failed (step 7: loss is nan at {told[0].params}" not in result.err
    )
    assert f"25 trials: {sum(bool(t.values) for t in told)} complete" in result.out


def test_a_file_of_a_search(genlab, works, tmp_path):
    """The space, the sampler and the pruner may stand in a file; a grid ends with its last combination."""
    group = tmp_path / "mine" / "experiment"
    group.mkdir(parents=True)
    (group / "search.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /hydra/sweeper: optuna}]\n"
        "hydra: {sweeper: {objective: loss, sampler: grid, params: {optimizer.lr: 'range(0.01,0.04,0.01)', seed: '1,2'}}}\n"
    )
    works(bowl)
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
    jobs = [job.overrides for job in SweepFolder.find(tmp_path / "s").jobs()]
    rates = ("0.01", "0.02", "0.03")
    assert jobs == [
        (f"optimizer.lr={r}", f"seed={i}", "experiment=search", "+model.depth=5")
        for r in rates
        for i in (1, 2)
    ]


def test_several_objectives(genlab, works, tmp_path):
    """The trials shown are those that no other beats in all objectives."""
    works(bowl)
    more = (
        "hydra.sweeper.objective=[loss,cost]",
        "hydra.sweeper.direction=[minimize,maximize]",
        "hydra.sweeper.sampler=nsgaii",
    )
    result = genlab(*OPTUNA, RATE, *more, "hydra.sweeper.n_trials=15")
    assert result.code == 0, result.err
    ended = {t.number: t.values for t in told_in(tmp_path / "s") if t.values}
    beaten = lambda a: any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in ended.values())  # noqa: E731
    shown = [
        line.split()[0]
        for line in result.out.splitlines()
        if line.rstrip().endswith(tuple(f" s/{n}" for n in ended))
    ]
    assert 1 < len(shown) < len(ended)
    assert {int(n) for n in shown} == {n for n, values in ended.items() if not beaten(values)}


def test_a_search_goes_on(genlab, works, tmp_path):
    """The same command with more trials runs nothing again, and with as many shows what was found."""
    works(bowl)
    for n, begun in ((5, 0), (8, 5), (8, 8)):
        result = genlab(*OPTUNA, RATE, LOSSES, f"hydra.sweeper.n_trials={n}")
        assert result.code == 0, result.err
        assert f" {begun} begun" in result.out and f"{n} trials: " in result.out
    assert [read(job.folder).starts for job in SweepFolder.find(tmp_path / "s").jobs()] == [1] * 8


KILLED = """
import os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv.pop(1))]
dies = int(sys.argv.pop(1))
from helpers import fake_trials
from genlab.sweeps.hydra_launchers import Jobs
def work(overrides, number):
    if number == dies:
        os.kill(os.getpid(), 9)
    return fake_trials.bowl(overrides, number)
Jobs.launch = fake_trials.launch_by(work)
from genlab.cli.main import main
main()
"""


def test_a_killed_search(genlab, works, tmp_path):
    """Killed with -9 in the middle of a batch: the trial that was begun is run again in its folder, and no other."""
    asked = (*OPTUNA, RATE, LOSSES, "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4")
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), "5", *asked]
    assert (
        subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == -signal.SIGKILL
    )
    assert [t.state.name for t in told_in(tmp_path / "s")] == ["COMPLETE"] * 4 + ["RUNNING"] * 4
    works(bowl)
    result = genlab(*asked)
    assert result.code == 0, result.err
    told = told_in(tmp_path / "s")
    assert [t.state.is_finished() for t in told] == [True] * 8
    assert [read(tmp_path / "s" / str(n)).starts for n in range(8)] == [1, 1, 1, 1, 1, 2, 1, 1]


def test_a_signal_ends_the_search(genlab, works, tmp_path):
    """A trial that a signal ended stays begun, and the same command goes on with it; so does one whose process is gone."""

    def ended(overrides, number):
        raise KeyboardInterrupt

    def launch(self, job_overrides, initial_job_idx):
        try:
            launch_by(ended)(self, job_overrides, initial_job_idx)
        except KeyboardInterrupt:
            return

    asked = (*OPTUNA, RATE, LOSSES, "hydra.sweeper.n_trials=2")
    works(bowl)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "launch", launch)
        assert "(0 is stopped); go on with `genlab sweep resume s`" in genlab(*asked).error
    assert [t.state.name for t in told_in(tmp_path / "s")] == ["RUNNING"]
    assert genlab(*asked).code == 0
    assert [read(tmp_path / "s" / str(n)).starts for n in range(2)] == [2, 1]


@pytest.mark.parametrize(("options", "said"), [
    ([], "set trainer.monitor and trainer.evaluate_every, or hydra.sweeper.objective"),
    (["hydra.sweeper.objective=los"], "job 0 has no 'los' (did you mean 'loss'?); it has loss, cost"),
    ([LOSSES, "hydra.sweeper.sampler=grid"], "an interval has no end of values"),
    ([LOSSES, "hydra.sweeper.pruner=median"], "needs evaluations to judge by: set trainer.evaluate_every"),
    ([LOSSES, "hydra.sweeper.direction=minimise"], "should be 'minimize' or 'maximize'"),
    (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: input should be greater than 0"),
    (["hydra.sweeper.n_trails=3"], "did you mean 'n_trials'?"),
    ([LOSSES, "hydra/launcher=basic"], "needs a launcher of genlab's, which keeps each job's state"),
    ([LOSSES, "model=choice(vae,no)"], "there is no such model"),
    ([LOSSES, "model.latnet=3"], "did you mean 'latent'?"),
])  # fmt: skip
def test_refusals(genlab, works, tmp_path, options, said):
    works(bowl)
    assert said in genlab(*OPTUNA, RATE, "hydra.sweeper.n_jobs=3", *options).error
    assert (tmp_path / "s" / "plan.json").exists() == ("los" in said)


def test_one_search_at_a_time(genlab, works, tmp_path):
    works(bowl)
    (tmp_path / "s").mkdir()
    with hold(tmp_path / "s" / ".search.lock"):
        assert "another process is at work in s" in genlab(*OPTUNA, RATE, LOSSES).error


def test_without_optuna(genlab, monkeypatch):
    """The line says what to install."""
    for name in [
        name for name in sys.modules if name == "optuna" or name.startswith("genlab.sweeps.s")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'genlab[optuna]'" in genlab(*OPTUNA, RATE).error


def test_spans():
    """One launch covers what is done between two of its jobs, and nothing that failed."""
    assert spans([4, 7, 5], {6}) == [range(4, 8)]
    assert spans([4, 7, 5], set()) == [range(4, 6), range(7, 8)]


# --- the file and the pruning -----------------------------------------------------------------------------------------

LOSS = Goal(("loss",), ("minimize",))
MEDIAN = {"name": "median", "n_startup_trials": 2}


def study(folder: Path, *overrides: str, goal: Goal = LOSS, **search: object) -> Study:
    return Study(
        folder, space(*(overrides or [RATE])), goal, search=Search(**search), rungs=(10, 100)
    )


@pytest.mark.parametrize(
    "sampler",
    ["tpe", {"name": "tpe", "n_startup_trials": 2, "group": False}, "gp", "random", "nsgaii"],
)
def test_a_study_goes_on_as_it_would_have(tmp_path, sampler):
    """Opened anew, it draws what it would have drawn: not its first trials again, and not others."""
    drawn = {}
    for name, openings in (("whole", [10]), ("parts", [4, 1, 5])):
        for n in openings:
            one = study(tmp_path / name, RATE, "model.latent=range(2,90)", sampler=sampler)
            for _ in range(n):
                trial = one.ask()
                one.tell(trial.number, {"loss": abs(trial.params["optimizer.lr"] - 0.01)}, "job")
        drawn[name] = [tuple(t.params.values()) for t in one.trials()]
    assert drawn["parts"] == drawn["whole"] and len(set(drawn["whole"])) == 10


@pytest.mark.parametrize(("search", "said"), [
    ({"sampler": "tp"}, "no such sampler (did you mean 'tpe'?); there are tpe, gp"),
    ({"sampler": {"name": "tpe", "n_startup": 3}}, "hydra.sweeper.sampler.n_startup' (did you mean 'n_startup_trials'?)"),
    ({"sampler": {"name": "tpe", "n_startup_trials": "x"}}, "hydra.sweeper.sampler.n_startup_trials=x: "),
    ({"pruner": "medium"}, "no such pruner (did you mean 'median'?); there are none, median"),
    ({"pruner": "percentile"}, "hydra.sweeper.pruner: PercentilePruner"),
    ({"pruner": {"name": "percentile", "percentile": 300}}, "between 0 and 100"),
])  # fmt: skip
def test_rules_refused(tmp_path, search, said):
    with pytest.raises(UserError) as refused:
        study(tmp_path, **search)
    assert said in str(refused.value)


@pytest.mark.parametrize(("search", "said"), [
    ({}, "needs a number to search by"),
    ({"objective": ["a", "b"]}, "each objective needs its own direction"),
    ({"objective": ["a", "b"], "direction": ["minimize", "maximize"], "pruner": "median"}, "pruner goes with one objective"),
])  # fmt: skip
def test_goals_refused(search, said):
    with pytest.raises(UserError, match=said):
        Search(**search).goal(None, 10)


def test_one_search_a_folder(tmp_path):
    """Another space, other fixed options, another direction are refused; another name of the objective until a trial counted."""
    study(tmp_path, RATE, "seed=1", goal=Goal(("los",), ("minimize",))).ask()
    one = study(tmp_path, "seed=1", RATE)
    one.tell(0, {"loss": 1.0}, "job 0")
    for overrides, goal in (
        ([RATE], LOSS),
        ([RATE, "seed=2"], LOSS),
        (["optimizer.lr=interval(1e-4,1e-1)", "seed=1"], LOSS),
        ([RATE, "seed=1"], Goal(("los",), ("minimize",))),
        ([RATE, "seed=1"], Goal(("loss",), ("maximize",))),
    ):
        with pytest.raises(UserError, match=r"give another hydra\.sweep\.dir="):
            study(tmp_path, *overrides, goal=goal)


def test_a_torn_journal(tmp_path):
    """A line that was cut short at the end was told to nobody, and is dropped; damage elsewhere is refused."""
    one = study(tmp_path)
    one.tell(one.ask().number, {"loss": 1.0}, "job 0")
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        path.write_bytes(whole + whole.splitlines()[-1][:cut])
        assert [t.value for t in study(tmp_path).trials()] == [1.0]
        assert path.read_bytes() == whole
    path.write_bytes(b"{not json\n" + whole)
    with pytest.raises(UserError, match=r"study\.journal is unreadable"):
        study(tmp_path)


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_trial_half_drawn(tmp_path, sampler):
    """A trial that a kill left with some of its values is drawn to the end, the others kept."""
    both = ("a=range(2,5)", "b=vae,gan")
    one = study(tmp_path, *both, sampler=sampler)
    whole = one.ask()
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # the last thing that was drawn
    assert [*study(tmp_path, *both, sampler=sampler).trials()[0].params] == ["a", "b"]
    for drawn in (lines[:-1], lines[:-2]):
        path.write_bytes(b"".join(drawn))
        (trial,) = study(tmp_path, *both, sampler=sampler).trials()
        assert trial.params["a"] == whole.params["a"] and trial.params["b"] in ("vae", "gan")


def test_what_is_no_number_fails(tmp_path):
    one = study(tmp_path)
    for value in (math.nan, math.inf, 2.0):
        one.tell(one.ask().number, {"loss": value}, "job")
    assert [t.state.name for t in one.trials()] == ["FAIL", "FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    "pruner", [MEDIAN, {**MEDIAN, "name": "percentile", "percentile": 50.0}, "halving", "hyperband"]
)
def test_pruning(tmp_path, pruner):
    """Of trials that fall evenly from where they start, the worse are ended, and the best never."""
    one = study(tmp_path, pruner=pruner)
    ended: dict[int, str] = {}
    for start in (5, 3, 4, 9, 2, 8, 7, 1, 6):
        number = one.ask().number
        judged = verdict(tmp_path, number, LOSS, search=Search(pruner=pruner), rungs=(10, 100))
        for step in range(10, 101, 10):
            loss = start - step / 1000
            if judged(step, {"loss": (Estimate(loss, None, "exact"), False)}):
                ended[start] = one.tell(number, {"loss": loss, "pruned": float(step)}, "job")
                break
        else:
            one.tell(number, {"loss": loss}, "job")
        assert judged(110, {"loss": (Estimate(99.0, None, "exact"), False)}) is None, (
            "a trial that was told is left alone"
        )
    assert ended and not {1, 2} & set(ended)
    assert all(said.startswith("pruned at step") for said in ended.values())
    assert [t.state.name for t in one.trials()].count("PRUNED") == len(ended)
    assert one.best()[0].value == 0.9


def test_pruning_refused(tmp_path):
    """A metric that is not evaluated, and a search that goes the wrong way, are said at the first evaluation."""
    number = study(tmp_path, pruner="median").ask().number
    judged = verdict(tmp_path, number, LOSS, search=Search(pruner="median"), rungs=(10, 100))
    with pytest.raises(
        UserError, match=r"objective=loss is not evaluated \(did you mean 'los'\?\); there are los"
    ):
        judged(10, {"los": (Estimate(1.0, None, "exact"), False)})
    with pytest.raises(UserError, match="direction=minimize: of loss more is better"):
        judged(10, {"loss": (Estimate(1.0, None, "exact"), True)})


# --- real trainings -----------------------------------------------------------------------------------------------------


READY = [
    p
    for p in sorted((CONFIGS / "experiment" / "sweep").glob("*.yaml"))
    if "/hydra/sweeper: optuna" in p.read_text()
]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_search_is_what_its_header_says(path, genlab, works, tmp_path):
    """Its command draws as many trials as it says; first and last of them build a model that its objective fits."""
    text = " ".join(
        line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")
    )
    command = re.search(rf"genlab train -m experiment=sweep/{path.stem}\b", text).group()
    works(lambda overrides, number: {"nll_elbo": float(overrides["optimizer.lr"])})
    result = genlab(*command.split()[1:])
    assert result.code == 0, result.err
    jobs = SweepFolder.find(tmp_path / "outputs" / "sweeps" / path.stem).jobs()
    assert f"{len(jobs)} trials" in text and len({job.overrides for job in jobs}) == len(jobs)
    for job in (jobs[0], jobs[-1]):
        config, dataset, trainer = built(*job.overrides, "device=cpu", "out=unused")
        check(trainer, dataset, config)


def here(self, job_overrides, initial_job_idx):
    """Train one job after another in this process, which has torch imported, as Hydra's own launcher does."""
    basic = Plugins.instance().class_name_to_class[
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    ]
    for job in SweepFolder(Path(self.config.hydra.sweep.dir)).extend(
        ["train"], initial_job_idx, job_overrides
    ):
        run(
            job.folder,
            lambda job=job: basic.launch(self, [job.overrides], job.number)[0].return_value,
        )


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pruned_trainings(genlab, monkeypatch, tmp_path, processes):
    """Of real trainings the worse end early: saved, done, pruned in the study; the command again repeats none of them."""
    asked = (
        *TRAINS,
        "hydra.sweep.dir=s",
        "hydra.sweeper.pruner={name:median,n_startup_trials:2}",
        "hydra.sweeper.n_trials=6",
    )
    asked += (
        "trainer.steps=60",
        "trainer.evaluate_every=20",
        "hydra.launcher.n=2",
        "hydra.sweeper.sampler=random",
    )
    if not processes:
        monkeypatch.setattr(Jobs, "launch", here)
    result = genlab(*asked)
    assert result.code == 0, result.err
    told = told_in(tmp_path / "s")
    assert {t.state for t in told} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in told:
        folder = tmp_path / "s" / str(trial.number)
        state, lines = read(folder), RunFolder(folder).history()
        values = [line["evaluation"]["nll_elbo"] for line in lines if "evaluation" in line]
        assert state.status == "done" and state.starts == 1
        assert dict(enumerate(values)) == {
            step // 20 - 1: value for step, value in trial.intermediate_values.items()
        }
        assert state.result["nll_elbo"] == min(values)
        pruned = trial.state is TrialState.PRUNED
        assert (
            RunFolder(folder).load()["step"]
            == (state.result["pruned"] if pruned else 60)
            == 20 * len(values)
        )
        assert trial.value == (values[-1] if pruned else min(values))
    assert "done, pruned" in genlab("sweep", "status", "s").out
    again = genlab(*asked)
    if processes:
        assert "learns from what failed" in genlab("sweep", "rerun", "s").error
        again = genlab("sweep", "resume", "s")
    assert (
        again.code == 0
        and "trial 0" not in again.out
        and f"{min(t.value for t in told):.6g}" in again.out
    )
    assert [read(tmp_path / "s" / str(n)).starts for n in range(6)] == [1] * 6
