"""Sweeps: a folder with a plan and states; jobs that are processes of this machine, and die; what is said of them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.cli_runner import REPOSITORY, run_here, run_process
from helpers.kill_harness import differences, outcome
from helpers.recipes import CONFIGS, built
from helpers.sweep_model import MINE, brief, states, write_model
from hydra.plugins.sweeper import Sweeper

from genlab.cli.hydra_args import sweep_name
from genlab.errors import UserError
from genlab.signals import Signals, Stopped
from genlab.sweeps import file_locks, hydra_launchers, job_monitor, squeue, sweep_folder
from genlab.sweeps.sweep_folder import Job, State, SweepFolder

SWEEPS = [
    p
    for p in sorted((CONFIGS / "experiment" / "sweep").glob("*.yaml"))
    if "optuna" not in p.read_text()
]
LAUNCHERS = sorted((CONFIGS / "hydra" / "launcher").glob("*.yaml"))
TEXTS = [path.read_text() for path in (REPOSITORY / "README.md", *LAUNCHERS)]
COMMANDS = sorted(
    {
        c.strip()
        for text in TEXTS
        for c in re.findall(r"genlab train -m [^`\n#]*", text)
        if "launcher" in c
    }
)

# --- the folder ---------------------------------------------------------------------------------------------------------


def test_a_plan_grows_and_refuses_another_sweep(tmp_path):
    sweep = SweepFolder(tmp_path / "s")
    first = sweep.extend(
        ["train", "-m", "a=1,2"], 0, [["a=1", "device=cpu"], ["a=2", "device=cpu"]]
    )
    sweep.extend(["train", "-m", "a=3"], 2, [["a=3"]])
    with (
        file_locks.hold(tmp_path / "lock"),
        pytest.raises(UserError, match="another process is at work"),
    ):
        file_locks.hold(tmp_path / "lock", patience=0).__enter__()
    assert [job.folder.name for job in first] == ["0", "1"] and len(sweep.jobs()) == 3
    assert sweep_folder.own_options(sweep.jobs()) == [["a=1"], ["a=2"], ["a=3"]]
    (again,) = sweep.extend(
        ["train", "-m", "device=cuda"], 1, [["a=2", "device=cuda"]]
    )  # where it runs is not what it does
    assert again.overrides == ("a=2", "device=cuda") and sweep.plan()["command"] == [
        "train",
        "-m",
        "device=cuda",
    ]
    assert [job.overrides[0] for job in sweep.jobs()] == ["a=1", "a=2", "a=3"]
    with pytest.raises(UserError, match="holds another sweep: its job 1 is a=2 .* would be a=5"):
        sweep.extend([], 1, [["a=5"]])
    (sweep.path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="plan.json is unreadable"):
        sweep.jobs()
    with pytest.raises(UserError, match="is no sweep"):
        SweepFolder.find(tmp_path)


def fails(error: BaseException):
    def work():
        raise error

    return work


def test_a_job_says_how_it_ended(tmp_path):
    cases = [
        (ValueError("one\ntwo"), "failed", "ValueError: one\ntwo"),
        (UserError("a=3: too much"), "failed", "a=3: too much"),
        (Stopped("SIGTERM: saved", "SIGTERM"), "stopped", "SIGTERM: saved"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(-1), "stopped", ""),
    ]
    for starts, (error, status, said) in enumerate(cases, 1):
        with pytest.raises(type(error)):
            sweep_folder.run(tmp_path, fails(error))
        state = sweep_folder.read(tmp_path)
        assert (state.status, state.starts, state.pid) == (status, starts, os.getpid())
        assert state.error.endswith(said) and len(state.error.splitlines()) <= sweep_folder.LINES
    assert sweep_folder.run(tmp_path, lambda: {"loss": 1.5}) == {"loss": 1.5}
    assert sweep_folder.run(tmp_path, fails(AssertionError("it was done"))) == {"loss": 1.5}
    (tmp_path / "state.json").write_text('{"nonsense": 1}')
    with pytest.raises(UserError, match=r"state.json is unreadable"):
        sweep_folder.read(tmp_path)


def test_a_job_is_lost_when_its_process_is_and_has_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_folder, "PATIENCE", 0.1)
    job = Job(0, (), tmp_path)

    def work():
        assert job.state.status == "running"
        with pytest.raises(UserError, match="another process is at work in"):
            sweep_folder.run(tmp_path, dict)
        assert sweep_folder.read(tmp_path).starts == 1, "who comes second says nothing"

    sweep_folder.run(tmp_path, work)
    sweep_folder.write(
        tmp_path, State("running", host=sweep_folder.socket.gethostname(), pid=os.getpid())
    )  # a pid may be another's by now
    assert job.state.status == "lost"
    with open(tmp_path / ".job.lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert job.state.status == "running"
    monkeypatch.setattr(file_locks, "disk", lambda path: "nfs")
    sweep_folder.write(tmp_path, State("running", host="elsewhere"))
    assert job.state.status == "running"


@pytest.mark.parametrize(
    "kind, status",
    [
        ("ext4", "lost"),
        ("overlay", "lost"),
        ("nfs4", "running"),
        ("lustre", "running"),
        ("", "running"),
    ],
)
def test_a_free_lock_says_that_a_job_is_gone_whatever_its_machine_was_called(
    kind, status, tmp_path, monkeypatch
):
    """A container has a new name at each start: on a disk of this machine's own the lock is all that counts."""
    mounts = tmp_path / "mounts"
    lines = [
        "1 0 8:1 / / rw shared:1 - btrfs /dev/sda rw",
        f"2 1 0:9 / {tmp_path}/a\\040b rw,noatime - {kind} here rw",
    ]
    mounts.write_text("\n".join(lines) if kind else "")
    monkeypatch.setattr(file_locks, "MOUNTS", mounts if kind else tmp_path / "none")
    job = Job(0, (), tmp_path / "a b" / "0")
    sweep_folder.write(job.folder, State("running", host="elsewhere"))
    assert file_locks.disk(job.folder) == kind and job.state.status == status
    with open(job.folder / ".job.lock", "w") as handle:
        assert job.state.status == status
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert job.state.status == "running", "seen to be held, wherever"


def test_what_another_machine_holds_by_nfs_is_seen_by_the_one_that_has_the_disk(tmp_path):
    """There a lock of flock's, taken through NFS, is one of lockf's."""
    sweep_folder.write(tmp_path, State("running", host="elsewhere"))
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / ".job.lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n" and file_locks.held(
            tmp_path, sweep_folder.read(tmp_path).host
        )
        other.communicate("\n")
    assert not file_locks.held(tmp_path, sweep_folder.read(tmp_path).host)


class Nowhere:
    """A machine that does a job's work at once, and has started none before."""

    def room(self, running: int) -> int:
        return 1 - running

    def start(self, jobs) -> None:
        for job in jobs:
            sweep_folder.run(job.folder, lambda: 1.0)

    def ended(self, job) -> None:
        return None

    def interrupt(self, jobs) -> str:
        return "ended"


@pytest.mark.parametrize(("at_first", "again"), [("COMPLETING", True), ("RUNNING", False)])
def test_a_job_that_was_cancelled_before_the_command_goes_on(
    at_first, again, tmp_path, monkeypatch
):
    """A scheduler takes a while to end what it was told to cancel; who cancels a job of this command does not want it again."""
    asked = iter([at_first])
    monkeypatch.setattr(squeue, "ask", lambda ids: {"7_0": next(asked, "CANCELLED")})
    monkeypatch.setattr(job_monitor, "ASK", (0.05, 0.05))
    job = Job(0, ("seed=0",), tmp_path / "0")
    sweep_folder.write(job.folder, State("stopped", slurm="7_0", starts=1))
    sweep_folder.note_submitted(job.folder, "7_0")
    job_monitor.watch([job], Nowhere(), names={0: "job 0 seed=0"}, tries=3)
    assert sweep_folder.read(job.folder).status == ("done" if again else "stopped")


def test_a_wait_for_what_cannot_be_seen_says_how_to_end_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(file_locks, "disk", lambda path: "nfs")
    monkeypatch.setattr(job_monitor, "DOUBT", 0.5)
    monkeypatch.setattr(job_monitor, "ASK", (0.2, 0.2))
    job = Job(0, ("seed=0",), tmp_path / "0")
    sweep_folder.write(job.folder, State("running", host="elsewhere", pid=12, starts=1))
    found = []

    def look() -> None:
        while "is waited for" not in (said := capsys.readouterr().err):
            found.append(said)
            time.sleep(0.1)
        found.append(said)
        time.sleep(0.5)  # it is said once
        (job.folder / "state.json").unlink()

    reader = threading.Thread(target=look)
    reader.start()
    job_monitor.watch([job], Nowhere(), names={0: "job 0 seed=0"}, tries=3)
    reader.join()
    said = "".join(found) + capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "is waited for" in line]
    assert (
        line.startswith("job 0 seed=0: ")
        and "process 12 on elsewhere" in line
        and f"delete {job.folder}/state.json" in line
    )
    assert sweep_folder.read(job.folder).status == "done"


@pytest.mark.parametrize(
    "status, own, handed, queue, expected",
    [
        ("waiting", "", "", {}, "waiting "),
        ("waiting", "", "7_1", {"7_1": "PENDING"}, "waiting 7_1"),
        (
            "waiting",
            "",
            "7_1",
            {"7_1": "RUNNING"},
            "waiting 7_1",
        ),  # its process has not said anything yet
        ("waiting", "", "7_1", {"7_1": "CANCELLED"}, "waiting "),
        ("waiting", "", "7_1", None, "waiting 7_1"),
        ("running", "7_1", "7_1", {"7_1": "RUNNING"}, "running 7_1"),
        ("running", "7_1", "7_1", {"7_1": "NODE_FAIL"}, "lost 7_1"),
        (
            "running",
            "7_1",
            "7_1",
            {"7_1": "PENDING"},
            "waiting 7_1",
        ),  # its node died, and it waits for another
        ("running", "7_1", "7_1", {}, "lost 7_1"),
        ("running", "7_1", "7_1", None, "running 7_1"),
        ("stopped", "7_1", "7_1", {"7_1": "PENDING"}, "waiting 7_1"),
        ("stopped", "7_1", "7_1", {"7_1": "COMPLETED"}, "stopped 7_1"),
        ("failed", "7_1", "7_1", {"7_1": "COMPLETING"}, "failed 7_1"),
        ("failed", "7_1", "8", {"7_1": "FAILED", "8": "PENDING"}, "waiting 8"),
        ("failed", "7_1", "8", {"8": "CANCELLED"}, "failed 7_1"),
        ("done", "7_1", "8", {"8": "PENDING"}, "done 7_1"),
    ],
)
def test_what_the_scheduler_says_counts(
    status, own, handed, queue, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(squeue, "ask", lambda ids: queue)
    if status != "waiting":
        sweep_folder.write(tmp_path, State(status, slurm=own, starts=1))
    if handed:
        sweep_folder.note_submitted(tmp_path, handed)
    state = Job(0, (), tmp_path).state
    assert f"{state.status} {state.slurm}" == expected


def test_the_same_command_has_the_same_folder_wherever_its_jobs_run():
    command = ["-m", "model=vae,rbm", "seed=range(3)"]
    name = sweep_name(command)
    assert re.fullmatch(r"model-vae-rbm-seed-range-3-[0-9a-f]{8}", name)
    for other in (
        "device=cuda",
        "device.threads=2",
        "hydra/launcher=slurm",
        "hydra.launcher.partition=x",
        "debug=true",
    ):
        assert sweep_name([*command, other]) == name, other
    for other in ("seed=1", "+devices=2", "hydra.sweeper.n=2", "model.latent=2"):
        assert sweep_name([*command, other]) != name, other
    assert len(sweep_name([*command, "x=" + 90 * "y"])) < 60


# --- signals ------------------------------------------------------------------------------------------------------------


def test_an_earlier_handler_hears_of_its_signal_when_all_is_saved(monkeypatch):
    heard = []
    before = {
        s: signal.signal(s, lambda number, frame: heard.append(number))
        for s in (signal.SIGUSR2, signal.SIGTERM)
    }
    try:
        with Signals() as signals:
            for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR2):
                os.kill(os.getpid(), number)
            assert heard == [] and signals.name == "SIGTERM"
        assert heard == [signal.SIGTERM, signal.SIGUSR2]
        with pytest.raises(ZeroDivisionError), Signals():
            os.kill(os.getpid(), signal.SIGUSR2)
            raise ZeroDivisionError
        assert len(heard) == 2, "what went wrong is not covered up"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- jobs that are processes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of four seeds on two GPUs that are not there: one trains, one fails, one is killed once, one dies always."""
    cwd = tmp_path_factory.mktemp("swept")
    write_model(cwd)
    os.environ["KILL"] = "1"
    try:
        result = run_here(
            "train",
            "-m",
            *MINE,
            "seed=range(4)",
            "hydra.launcher.gpus=[3,5]",
            "hydra.launcher.tries=2",
            cwd=cwd,
        )
    finally:
        del os.environ["KILL"]
    (sweep,) = (cwd / "outputs" / "sweeps").iterdir()
    return cwd, sweep, result


@pytest.mark.xdist_group("swept")
def test_what_one_job_does_touches_no_other(swept):
    cwd, sweep, result = swept
    assert result.code == 2 and result.err.splitlines()[-1].startswith(
        "genlab: 2 of 4 jobs failed; see `genlab sweep status"
    )
    assert brief(sweep) == [("done", 1), ("failed", 1), ("done", 2), ("lost", 2)]
    assert states(sweep)[1].error.endswith("ValueError: this seed fails\nby design")
    for line in (
        r"job 1 seed=1: failed: by design",
        r"job 2 seed=2: lost: its process is gone; it last said: .*; it is started again",
        r"job 3 seed=3: lost: its process is gone; it last said: this seed dies",
        r".*: 2 done, 1 failed, 1 lost",
    ):
        assert re.search(f"^{line}$", result.err, re.M), result.err
    assert "Traceback" not in result.err + result.out
    given = [(cwd / f"starts-{seed}").read_text().split() for seed in range(4)]
    assert {gpu for each in given for gpu in each} == {"3", "5"}
    whole = run_here("train", *MINE, "seed=2", "out=whole", cwd=cwd)
    assert whole.code == 0, whole.err
    assert differences(cwd / "whole", sweep / "2") == []
    assert states(sweep)[2].result["loss"] == outcome(cwd / "whole")[1][-1]["loss"]


@pytest.mark.xdist_group("swept")
def test_status_best_and_compare_read_the_folder(swept, genlab):
    cwd, sweep, _ = swept
    said = genlab("sweep", "status", sweep)
    assert said.code == 0, said.err
    rows = [line.split()[:6] for line in said.out.splitlines() if re.match(r" \d ", line)]
    assert [row[:3] for row in rows] == [
        [str(n), f"seed={n}", s] for n, s in enumerate(("done", "failed", "done", "lost"))
    ]
    assert rows[0][3:] == ["40", "of", "40"] and rows[3][3:] == ["20", "of", "40"]
    assert (
        "  by design" in said.out
        and "  this seed dies" in said.out
        and "4 jobs: 2 done, 1 failed, 1 lost" in said.out
    )
    assert f"genlab sweep rerun {sweep}" in said.out and f"genlab sweep resume {sweep}" in said.out

    losses = {
        n: json.loads((sweep / str(n) / "state.json").read_text())["result"]["loss"] for n in (0, 2)
    }
    assert len(ranked(genlab("sweep", "best", sweep, "n=2"))) == 2
    low, high = (
        ranked(genlab("sweep", "best", sweep, "metric=loss", f"higher={way}"))
        for way in ("false", "true")
    )
    assert low == high[::-1] and set(low) == {0, 1, 2, 3}
    assert [n for n in low if n in losses] == sorted(losses, key=losses.get)
    compared = genlab("compare", sweep, "evaluate=false", cwd=cwd)
    assert compared.code == 0 and compared.out.count("seed") >= 1, compared.err


@pytest.mark.parametrize("higher, order", [("false", [2, 1, 0, 3, 4]), ("true", [0, 1, 2, 3, 4])])
def test_what_is_not_a_number_comes_last(higher, order, genlab, tmp_path):
    values = [
        "3.5",
        "2.5",
        "-1e400",
        "NaN",
        "NaN",
    ]  # of the fourth by its log alone, of the fifth by its record
    sweep = SweepFolder(tmp_path / "s")
    for job, value in zip(
        sweep.extend([], 0, [[f"seed={n}"] for n in range(5)]), values, strict=True
    ):
        job.folder.mkdir()
        (job.folder / "stats.jsonl").write_text(f'{{"step": 1, "loss": {value}, "seconds": 1.0}}\n')
    row = {"metric": "fid", "name": "loss", "unit": "", "tag": "", "value": None, "better": "lower"}
    record = {"metrics": [row], "absent": {}, "settings": {}, "step": 1}
    (tmp_path / "s" / "4" / "metrics.json").write_text(json.dumps(record))
    said = genlab("sweep", "best", "s", "metric=loss", f"higher={higher}")
    assert ranked(said) == order and said.out.count("nan") == 2


def ranked(said) -> list[int]:
    assert said.code == 0, said.err
    return [int(line.split()[0]) for line in said.out.splitlines() if re.match(r" \d ", line)]


@pytest.mark.parametrize(
    "line, fragments",
    [
        ("sweep", ["which verb?", "status, best, rerun, resume"]),
        ("sweep statsu {}", ["'status'"]),
        ("sweep status", ["one folder"]),
        ("sweep status nowhere", ["nowhere is no sweep"]),
        ("sweep status {} n=3", ["'n'"]),
        ("sweep best {} metirc=loss", ["did you mean 'metric'"]),
        ("sweep best {} metric=lost", ["did you mean 'loss'"]),
        ("sweep best {} n=0", ["n=0"]),
        ("sweep rerun {}/../searched", ["optuna", "genlab sweep resume"]),
        ("sweep best {} higher=yes", ["higher=yes"]),
        ("train -m seed=0,1 hydra.launcher.n=0", ["hydra.launcher.n=0", "1 or more"]),
        ("train -m seed=0,1 hydra.launcher.gpus=0", ["hydra.launcher.gpus=0", "list"]),
        (
            "train -m seed=0,1 hydra.launcher.n=2 hydra.launcher.gpus=[0]",
            ["n=", "gpus=", "not both"],
        ),
        (
            "train -m seed=0,1 hydra.launcher.trise=2",
            ["'hydra.launcher.trise'", "did you mean 'tries'"],
        ),
        ("train -m seed=0,1 hydra.sweep.subdir=a", ["hydra.sweep.subdir"]),
        ("train -m seed=0,1 hydra.sweep.dir={}", ["holds another sweep", "hydra.sweep.dir="]),
        ("train -m seed=0,1 hydra/launcher=slrum", ["hydra/launcher=slrum", "'slurm'"]),
    ],
)
@pytest.mark.xdist_group("swept")
def test_refused_in_one_line(line, fragments, swept, genlab):
    SweepFolder(swept[1].parent / "searched").extend([], 0, [["a=1"]], sweeper="optuna")
    error = genlab(*shlex.split(line.format(swept[1]))).error
    assert not [fragment for fragment in fragments if fragment not in error], error


@pytest.mark.xdist_group("swept")
def test_rerun_is_for_the_failed_and_the_same_command_for_what_is_not_done(
    swept, genlab, monkeypatch
):
    cwd, sweep, _ = swept
    (cwd / "mended").touch()
    before = (sweep / "0" / "state.json").read_bytes()
    result = genlab("sweep", "rerun", sweep)  # from another folder
    assert result.code == 0 and brief(sweep) == [
        ("done", 1),
        ("done", 2),
        ("done", 2),
        ("lost", 2),
    ], result.err
    again = run_here(
        "train", "-m", *MINE, "seed=range(4)", "hydra.launcher.n=2", "debug=false", cwd=cwd
    )
    assert again.code == 0 and "3 of 4 jobs are done already" in again.err, again.err
    assert brief(sweep) == [("done", 1), ("done", 2), ("done", 2), ("done", 3)]
    assert (sweep / "0" / "state.json").read_bytes() == before
    for verb, why in (("rerun", "no job failed"), ("resume", "no job is left")):
        assert why in genlab("sweep", verb, sweep).out
    # a recipe that was edited in between is not what was begun
    (cwd / "confs" / "model" / "mine.yaml").write_text(
        (cwd / "confs/model/mine.yaml").read_text().replace("40", "50")
    )
    (sweep / "0" / "state.json").unlink()
    edited = run_here("train", "-m", *MINE, "seed=range(4)", cwd=cwd)
    assert edited.code == 2 and "was begun with trainer.steps=40, and now it is 50" in edited.err, (
        edited.err
    )


def test_ctrl_c_lets_the_jobs_save_and_the_same_command_goes_on(tmp_path):
    write_model(tmp_path)
    long = ("trainer.steps=1000000", "trainer.save_every=1000000")
    command = [sys.executable, "-m", "genlab", "train", "-m", *MINE, "seed=0,4", *long]
    launcher = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("outputs/sweeps/*/0/stats.jsonl")):
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.1)
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=60)
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert (
        launcher.returncode == 128 + signal.SIGINT
        and "the same command goes on" in err.splitlines()[-1]
    ), err
    assert "Traceback" not in err and brief(sweep) == [("stopped", 1), ("waiting", 0)]
    assert outcome(sweep / "0")[0]["step"] > 0 and "SIGINT: saved at step" in states(sweep)[0].error


@pytest.mark.slow
def test_jobs_outlive_a_launcher_that_is_killed_and_are_waited_for(tmp_path):
    write_model(tmp_path)
    command = [
        sys.executable,
        "-m",
        "genlab",
        "train",
        "-m",
        *MINE,
        "seed=0,4",
        "trainer.steps=5000",
    ]
    launcher = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("outputs/sweeps/*/0/checkpoints/*.pt")):
        assert launcher.poll() is None
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    again = run_here(*command[3:], cwd=tmp_path)
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert again.code == 0 and "job 0 seed=0: was started before, and goes on" in again.err, (
        again.err
    )
    assert brief(sweep) == [("done", 1), ("done", 1)]


@pytest.mark.gpu
def test_jobs_on_a_gpu_begin_in_forks_that_can_use_it(tmp_path):
    small = ("model=vae", "trainer.steps=20", "trainer.preview_every=0", "device=cuda")
    result = run_process("train", "-m", *small, "seed=0,1", "hydra.launcher.gpus=[0]", cwd=tmp_path)
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert result.code == 0 and brief(sweep) == [("done", 1), ("done", 1)], result.err


# --- what ships ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(monkeypatch) -> list[list[str]]:
    """The jobs that a command would run: they are kept here, and none begins."""
    found: list[list[str]] = []
    keep = lambda self, job_overrides, initial_job_idx: found.extend(map(list, job_overrides)) or []  # noqa: E731
    monkeypatch.setattr(hydra_launchers.Jobs, "launch", keep)
    every = (
        Sweeper.validate_batch_is_legal
    )  # composes every job, in seconds: here the first is enough
    monkeypatch.setattr(
        Sweeper, "validate_batch_is_legal", lambda self, batch: every(self, batch[:1])
    )
    return found


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_ready_sweep_is_what_its_header_says(path, genlab, planned):
    text = " ".join(
        line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")
    )
    if compare := re.search(rf"genlab compare experiment=sweep/{path.stem}\b", text):
        result = genlab(*compare.group().split()[1:], "--cfg", "job")
        assert result.code == 0 and "sample:" in result.out, result.err
        return
    command = re.search(rf"genlab train -m experiment=sweep/{path.stem}\b", text).group()
    result = genlab(*command.split()[1:])
    assert result.code == 0, result.err
    assert (
        f"{len(planned)} runs" in text and len({tuple(job) for job in planned}) == len(planned) > 3
    )
    left = {override for job in planned for override in job}
    while left:  # every value composes and builds, in as few jobs as show all of them
        job = max(planned, key=lambda job: len(left & set(job)))
        left -= set(job)
        built(*job, "device=cpu", "out=unused")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_for_a_launcher_composes(command, genlab, planned):
    result = genlab(*command.split()[1:])
    assert result.code == 0 and len(planned) > 1, result.err


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_composes_and_says_when_to_take_it(path, genlab):
    result = genlab(
        "train", f"hydra/launcher={path.stem}", "--cfg", "hydra", "--package", "hydra.launcher"
    )
    assert result.code == 0 and "tries: " in result.out, result.err
    text = path.read_text()
    assert text.startswith("# A sweep on") and (
        path.stem == "local" or f"hydra/launcher={path.stem} " in text + " "
    )
    if path.stem.startswith("slurm"):
        options = dict(re.findall(r"^(\w+): (\S+)$", result.out, re.M))
        assert (
            int(options["timeout_min"]) > 10
            and int(options["tasks_per_node"]) >= 1
            and int(options["max_num_timeout"]) >= 3
        )
        assert "  requeue: true" in result.out
