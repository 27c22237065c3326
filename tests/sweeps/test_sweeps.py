"""Sweeps: plans and job states, jobs that are killed or fail, and the reports about them."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from helpers.cli_runner import REPOSITORY, run_here, run_process
from helpers.kill_harness import differences, final_state_and_log
from helpers.recipes import CONFIGS, build_training_objects
from helpers.sweep_model import MINE, states, status_and_starts, write_model
from helpers.terminal import too_wide
from hydra.plugins.sweeper import Sweeper

from genlab.cli.hydra_args import sweep_name
from genlab.errors import UserError
from genlab.runs.migrations import FORMAT
from genlab.signals import SignalCatcher, TrainingInterrupted
from genlab.sweeps import file_locks, hydra_launchers, job_monitor, job_state, squeue, sweep_folder
from genlab.sweeps.job_state import Job, JobState
from genlab.sweeps.launches import Launch
from genlab.sweeps.sweep_folder import SweepFolder

SWEEPS = [
    p
    for p in sorted((CONFIGS / "experiment" / "sweep").glob("*.yaml"))
    if "optuna" not in p.read_text()
]
FIXTURES = REPOSITORY / "tests" / "fixtures"
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

# --- the folder -----------------------------------------------------------------------------------


def test_plan_grows_and_refuses_another_sweep(tmp_path):
    sweep = SweepFolder(tmp_path / "s")
    first = sweep.add_jobs(
        ["train", "-m", "a=1,2"], 0, [["a=1", "device=cpu"], ["a=2", "device=cpu"]]
    )
    sweep.add_jobs(["train", "-m", "a=3"], 2, [["a=3"]])
    with (
        file_locks.hold_file_lock(tmp_path / "lock"),
        pytest.raises(UserError, match="another process is at work"),
    ):
        file_locks.hold_file_lock(tmp_path / "lock", timeout_s=0).__enter__()
    assert [job.folder.name for job in first] == ["0", "1"] and len(sweep.jobs()) == 3
    assert sweep_folder.distinguishing_overrides(sweep.jobs()) == [["a=1"], ["a=2"], ["a=3"]]
    (again,) = sweep.add_jobs(
        ["train", "-m", "device=cuda"], 1, [["a=2", "device=cuda"]]
    )  # the device does not change what is trained
    assert again.overrides == ("a=2", "device=cuda") and sweep.read_plan()["command"] == [
        "train",
        "-m",
        "device=cuda",
    ]
    assert [job.overrides[0] for job in sweep.jobs()] == ["a=1", "a=2", "a=3"]
    with pytest.raises(UserError, match="holds another sweep: its job 1 is a=2 .* would be a=5"):
        sweep.add_jobs([], 1, [["a=5"]])
    (sweep.path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="plan.json is unreadable"):
        sweep.jobs()
    with pytest.raises(UserError, match="is not a sweep"):
        SweepFolder.open(tmp_path)


def raises(error: BaseException):
    def work():
        raise error

    return work


def test_job_state_records_how_the_job_ended(tmp_path):
    cases = [
        (ValueError("one\ntwo"), "failed", "ValueError: one\ntwo"),
        (UserError("a=3: too much"), "failed", "a=3: too much"),
        (TrainingInterrupted("SIGTERM: saved", "SIGTERM"), "stopped", "SIGTERM: saved"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(-1), "stopped", ""),
    ]
    for starts, (error, status, message) in enumerate(cases, 1):
        with pytest.raises(type(error)):
            job_state.run_and_record_job(tmp_path, raises(error))
        state = job_state.read_state(tmp_path)
        assert (state.status, state.starts, state.pid) == (status, starts, os.getpid())
        assert (
            state.error.endswith(message)
            and len(state.error.splitlines()) <= job_state.MAX_ERROR_LINES
        )
    assert job_state.run_and_record_job(tmp_path, lambda: {"loss": 1.5}) == {"loss": 1.5}
    assert job_state.run_and_record_job(tmp_path, raises(AssertionError("it was done"))) == {
        "loss": 1.5
    }
    (tmp_path / "state.json").write_text('{"nonsense": 1}')
    with pytest.raises(UserError, match=r"state.json is unreadable"):
        job_state.read_state(tmp_path)


def test_job_has_one_process_and_is_lost_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(job_state, "JOB_LOCK_TIMEOUT_S", 0.1)
    job = Job(0, (), tmp_path)

    def work():
        assert job.state.status == "running"
        with pytest.raises(UserError, match="another process is at work in"):
            job_state.run_and_record_job(tmp_path, dict)
        assert job_state.read_state(tmp_path).starts == 1, (
            "a second process does not change the state"
        )

    job_state.run_and_record_job(tmp_path, work)
    job_state.write_state(
        tmp_path, JobState("running", host=job_state.socket.gethostname(), pid=os.getpid())
    )  # the pid may belong to another process by now
    assert job.state.status == "lost"
    with open(tmp_path / ".job.lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert job.state.status == "running"
    monkeypatch.setattr(file_locks, "file_system_type", lambda path: "nfs")
    job_state.write_state(tmp_path, JobState("running", host="elsewhere"))
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
def test_free_lock_on_local_disk_means_job_is_lost_whatever_the_host_name(
    kind, status, tmp_path, monkeypatch
):
    """A container has a new name at each start: on a local disk only the lock counts."""
    mounts = tmp_path / "mounts"
    lines = [
        "1 0 8:1 / / rw shared:1 - btrfs /dev/sda rw",
        f"2 1 0:9 / {tmp_path}/a\\040b rw,noatime - {kind} here rw",
    ]
    mounts.write_text("\n".join(lines) if kind else "")
    monkeypatch.setattr(file_locks, "MOUNT_TABLE", mounts if kind else tmp_path / "none")
    job = Job(0, (), tmp_path / "a b" / "0")
    job_state.write_state(job.folder, JobState("running", host="elsewhere"))
    assert file_locks.file_system_type(job.folder) == kind and job.state.status == status
    with open(job.folder / ".job.lock", "w") as handle:
        assert job.state.status == status
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert job.state.status == "running", "the lock is held, on any file system"


def test_nfs_server_sees_locks_of_its_clients(tmp_path):
    """On the server, a client's flock is a POSIX lock."""
    job_state.write_state(tmp_path, JobState("running", host="elsewhere"))
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".job.lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n" and file_locks.may_job_be_running(
            tmp_path, job_state.read_state(tmp_path).host
        )
        other.communicate("\n")
    assert not file_locks.may_job_be_running(tmp_path, job_state.read_state(tmp_path).host)


class InstantBackend:
    """A backend that does a job's work at once, and did not start any job before."""

    def max_new_jobs(self, running: int) -> int:
        return 1 - running

    def start(self, jobs) -> list[Job]:
        for job in jobs:
            job_state.run_and_record_job(job.folder, lambda: 1.0)
        return list(jobs)

    def has_ended(self, job) -> None:
        return None

    def wait(self, seconds) -> None:
        time.sleep(seconds)

    def finish(self) -> None:
        pass

    def interrupt(self, jobs, signal_name) -> str:
        return "ended"


@pytest.mark.parametrize(("first_state", "restarts"), [("COMPLETING", True), ("RUNNING", False)])
def test_only_job_cancelled_before_the_command_restarts(
    first_state, restarts, tmp_path, monkeypatch
):
    """A scheduler takes a while to end a cancelled job; one cancelled later is not wanted."""
    first = iter([first_state])
    monkeypatch.setattr(squeue, "query_slurm_states", lambda ids: {"7_0": next(first, "CANCELLED")})
    monkeypatch.setattr(job_monitor, "QUEUE_POLL_INTERVAL_S", (0.05, 0.05))
    job = Job(0, ("seed=0",), tmp_path / "0")
    job_state.write_state(job.folder, JobState("stopped", slurm="7_0", starts=1))
    job_state.record_submission(job.folder, "7_0")
    job_monitor.run_jobs([job], InstantBackend(), names={0: "job 0 seed=0"}, launch=Launch(3))
    assert job_state.read_state(job.folder).status == ("done" if restarts else "stopped")


def test_wait_for_job_on_unseen_machine_says_how_to_end_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(file_locks, "file_system_type", lambda path: "nfs")
    monkeypatch.setattr(job_monitor, "UNSEEN_JOB_NOTICE_S", 0.5)
    monkeypatch.setattr(job_monitor, "QUEUE_POLL_INTERVAL_S", (0.2, 0.2))
    job = Job(0, ("seed=0",), tmp_path / "0")
    job_state.write_state(job.folder, JobState("running", host="elsewhere", pid=12, starts=1))
    output = []

    def delete_state_after_notice() -> None:
        while "waiting for process" not in (text := capsys.readouterr().err):
            output.append(text)
            time.sleep(0.1)
        output.append(text)
        time.sleep(0.5)  # a second notice would come now
        (job.folder / "state.json").unlink()

    reader = threading.Thread(target=delete_state_after_notice)
    reader.start()
    job_monitor.run_jobs([job], InstantBackend(), names={0: "job 0 seed=0"}, launch=Launch(3))
    reader.join()
    text = "".join(output) + capsys.readouterr().err
    (line,) = [line for line in text.splitlines() if "waiting for process" in line]
    assert (
        line.startswith("job 0 seed=0: ")
        and "process 12 on elsewhere" in line
        and f"delete {job.folder}/state.json" in line
    )
    assert job_state.read_state(job.folder).status == "done"


@pytest.mark.parametrize(
    "status, slurm_id, submitted, queue, expected",
    [
        ("waiting", "", "", {}, "waiting "),
        ("waiting", "", "7_1", {"7_1": "PENDING"}, "waiting 7_1"),
        (
            "waiting",
            "",
            "7_1",
            {"7_1": "RUNNING"},
            "waiting 7_1",
        ),  # its process has not written a state yet
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
        ),  # its node died, and it is queued again
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
def test_scheduler_state_decides(
    status, slurm_id, submitted, queue, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(squeue, "query_slurm_states", lambda ids: queue)
    if status != "waiting":
        job_state.write_state(tmp_path, JobState(status, slurm=slurm_id, starts=1))
    if submitted:
        job_state.record_submission(tmp_path, submitted)
    state = Job(0, (), tmp_path).state
    assert f"{state.status} {state.slurm}" == expected


def test_sweep_name_is_independent_of_where_jobs_run():
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


# --- signals --------------------------------------------------------------------------------------


def test_an_earlier_handler_hears_of_its_signal_when_all_is_saved(monkeypatch):
    heard = []
    before = {
        s: signal.signal(s, lambda number, frame: heard.append(number))
        for s in (signal.SIGUSR2, signal.SIGTERM)
    }
    try:
        with SignalCatcher() as signals:
            for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR2):
                os.kill(os.getpid(), number)
            assert heard == [] and signals.first_signal_name == "SIGTERM"
        assert heard == [signal.SIGTERM, signal.SIGUSR2]
        with pytest.raises(ZeroDivisionError), SignalCatcher():
            os.kill(os.getpid(), signal.SIGUSR2)
            raise ZeroDivisionError
        assert len(heard) == 2, "what went wrong is not covered up"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- jobs that are processes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory):
    """A sweep of four seeds on two imaginary GPUs: trains, fails, is killed once, always dies."""
    cwd = tmp_path_factory.mktemp("finished_sweep")
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


@pytest.mark.xdist_group("finished_sweep")
def test_failing_jobs_do_not_affect_others(finished_sweep):
    cwd, sweep, result = finished_sweep
    assert result.code == 2 and result.err.splitlines()[-1].startswith(
        "genlab: 2 of 4 jobs failed; see `genlab sweep status"
    )
    assert status_and_starts(sweep) == [("done", 1), ("failed", 1), ("done", 2), ("failed", 2)]
    assert "its last output: this seed dies" in states(sweep)[3].error
    assert states(sweep)[1].error.endswith("ValueError: this seed fails\nby design")
    for line in (
        r"job 1 seed=1: failed: by design",
        r"job 2 seed=2: lost: its process is gone; its last output: .*; restarting it",
        r"job 3 seed=3: lost: its process is gone; its last output: this seed dies",
        r".*: 2 done, 2 failed",
    ):
        assert re.search(f"^{line}$", result.err, re.M), result.err
    assert "Traceback" not in result.err + result.out
    given = [(cwd / f"starts-{seed}").read_text().split() for seed in range(4)]
    assert {gpu for each in given for gpu in each} == {"3", "5"}
    whole = run_here("train", *MINE, "seed=2", "out=whole", cwd=cwd)
    assert whole.code == 0, whole.err
    assert differences(cwd / "whole", sweep / "2") == []
    assert states(sweep)[2].result["loss"] == final_state_and_log(cwd / "whole")[1][-1]["loss"]


@pytest.mark.xdist_group("finished_sweep")
def test_status_best_and_compare_read_the_folder(finished_sweep, genlab, monkeypatch):
    cwd, sweep, _ = finished_sweep
    said = genlab("sweep", "status", sweep)
    assert said.code == 0, said.err
    monkeypatch.setenv("COLUMNS", "80")
    for verb in ("status", "best"):
        assert too_wide(genlab("sweep", verb, sweep).out, 80) == []
    monkeypatch.delenv("COLUMNS")
    rows = [line.split()[:6] for line in said.out.splitlines() if re.match(r" \d ", line)]
    assert [row[:3] for row in rows] == [
        [str(n), f"seed={n}", s] for n, s in enumerate(("done", "failed", "done", "failed"))
    ]
    assert rows[0][3:] == ["40", "of", "40"] and rows[3][3:] == ["20", "of", "40"]
    assert (
        "  by design" in said.out
        and "this seed dies" in said.out
        and "4 jobs: 2 done, 2 failed" in said.out
    )
    assert f"genlab sweep rerun {sweep}" in said.out

    losses = {
        n: json.loads((sweep / str(n) / "state.json").read_text())["result"]["loss"] for n in (0, 2)
    }
    assert len(job_order(genlab("sweep", "best", sweep, "n=2"))) == 2
    low, high = (
        job_order(genlab("sweep", "best", sweep, "metric=loss", f"higher={way}"))
        for way in ("false", "true")
    )
    assert low == high[::-1] and set(low) == {0, 1, 2, 3}
    assert [n for n in low if n in losses] == sorted(losses, key=losses.get)
    compared = genlab("compare", sweep, "evaluate=false", cwd=cwd)
    assert compared.code == 0 and compared.out.count("seed") >= 1, compared.err


@pytest.mark.parametrize("higher, order", [("false", [2, 1, 0, 3, 4]), ("true", [0, 1, 2, 3, 4])])
def test_jobs_with_nan_are_ranked_last(higher, order, genlab, tmp_path):
    values = [
        "3.5",
        "2.5",
        "-1e400",
        "NaN",
        "NaN",
    ]  # the fourth in its log, the fifth in its record
    sweep = SweepFolder(tmp_path / "s")
    for job, value in zip(
        sweep.add_jobs([], 0, [[f"seed={n}"] for n in range(5)]), values, strict=True
    ):
        job.folder.mkdir()
        (job.folder / "stats.jsonl").write_text(f'{{"step": 1, "loss": {value}, "seconds": 1.0}}\n')
    row = {"metric": "fid", "name": "loss", "unit": "", "tag": "", "value": None, "better": "lower"}
    record = {"metrics": [row], "absent": {}, "settings": {}, "step": 1}
    (tmp_path / "s" / "4" / "metrics.json").write_text(json.dumps(record))
    said = genlab("sweep", "best", "s", "metric=loss", f"higher={higher}")
    assert job_order(said) == order and said.out.count("nan") == 2


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("model._target_", ["genlab.models.boltzmann.rbm.RBM", "genlab.models.vae.vae.VAE"]),
        ("model.beta", [1.0, 4.0]),
        ("model.objective", ["eps", "v"]),
        ("dataset.binarize", ["none", "dynamic"]),
        ("trainer.adversarial_weight", [0.0, 1.0]),
    ],
)
def test_best_refuses_losses_of_different_kinds(option, values, genlab, tmp_path):
    """As an RBM's energy difference and a VAE's ELBO; a width leaves the loss its meaning."""
    section, _, name = option.partition(".")
    common = {"model": {"latent": 2}, "dataset": {"root": "x"}, "trainer": {"steps": 1}}
    row = {"metric": "frechet", "name": "frechet_pixels", "unit": "", "tag": "", "better": "lower"}
    record = {"metrics": [row], "absent": {}, "settings": {}, "step": 1}

    def write(key: str, settings: list) -> None:
        for job, value in zip(jobs, settings, strict=True):
            config = {k: dict(v) for k, v in common.items()}
            config[section] |= {key: value}
            (job.folder / "config.yaml").write_text(yaml.safe_dump(config))

    jobs = SweepFolder(tmp_path / "s").add_jobs([], 0, [[f"{option}={v}"] for v in values])
    for i, job in enumerate(jobs):
        job.folder.mkdir()
        line = {"step": 1, "loss": 3.0 - i, "seconds": 1.0}
        (job.folder / "stats.jsonl").write_text(json.dumps(line) + "\n")
    write(name, values)
    error = genlab("sweep", "best", "s").error
    assert f"differ in {option}" in error and "genlab compare s" in error
    for i, job in enumerate(jobs):
        row["value"] = float(i)
        (job.folder / "metrics.json").write_text(json.dumps(record))
    assert "give metric=frechet_pixels" in genlab("sweep", "best", "s", "metric=loss").error
    for words in ((), ("metric=frechet_pixels",)):
        assert job_order(genlab("sweep", "best", "s", *words)) == [0, 1]
    write("n" if section == "dataset" else "width", [1, 2])
    assert job_order(genlab("sweep", "best", "s", "metric=loss")) == [1, 0]


def job_order(result) -> list[int]:
    """Return the numbers of the jobs that `genlab sweep best` printed, in order."""
    assert result.code == 0, result.err
    return [int(line.split()[0]) for line in result.out.splitlines() if re.match(r" \d ", line)]


@pytest.mark.parametrize(
    "line, fragments",
    [
        ("sweep", ["the verb is missing", "status, best, rerun, resume"]),
        ("sweep statsu {}", ["'status'"]),
        ("sweep status", ["one folder"]),
        ("sweep status nowhere", ["nowhere is not a sweep"]),
        ("sweep status {} n=3", ["'n'"]),
        ("sweep best {} metirc=loss", ["did you mean 'metric'"]),
        ("sweep best {} metric=lost", ["did you mean 'loss'"]),
        ("sweep best {} n=0", ["n=0"]),
        ("sweep rerun {}/../searched", ["optuna", "genlab sweep resume"]),
        ("sweep best {} higher=yes", ["higher=yes"]),
        ("train -m seed=0,1 hydra.launcher.n=0", ["hydra.launcher.n=0", "1 or more"]),
        ("train -m seed=0,1 hydra.launcher.n=true", ["hydra.launcher.n=True", "1 or more"]),
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
@pytest.mark.xdist_group("finished_sweep")
def test_errors_are_one_line(line, fragments, finished_sweep, genlab):
    SweepFolder(finished_sweep[1].parent / "searched").add_jobs([], 0, [["a=1"]], sweeper="optuna")
    error = genlab(*shlex.split(line.format(finished_sweep[1]))).error
    assert not [fragment for fragment in fragments if fragment not in error], error


@pytest.mark.xdist_group("finished_sweep")
def test_rerun_runs_failed_jobs_and_same_command_runs_unfinished_jobs(
    finished_sweep, genlab, monkeypatch
):
    cwd, sweep, _ = finished_sweep
    (cwd / "repaired").touch()
    before = (sweep / "0" / "state.json").read_bytes()
    result = genlab("sweep", "rerun", sweep)  # from another folder
    assert result.code == 0 and status_and_starts(sweep) == [
        ("done", 1),
        ("done", 2),
        ("done", 2),
        ("done", 3),
    ], result.err
    job_state.write_state(sweep / "3", JobState("lost", starts=3))
    again = run_here(
        "train", "-m", *MINE, "seed=range(4)", "hydra.launcher.n=2", "debug=false", cwd=cwd
    )
    assert again.code == 0 and "3 of 4 jobs are already done" in again.err, again.err
    assert status_and_starts(sweep) == [("done", 1), ("done", 2), ("done", 2), ("done", 4)]
    assert (sweep / "0" / "state.json").read_bytes() == before
    for verb, why in (("rerun", "no job failed"), ("resume", "no job is left")):
        assert why in genlab("sweep", verb, sweep).out
    # the recipe was edited after the job had started
    (cwd / "confs" / "model" / "mine.yaml").write_text(
        (cwd / "confs/model/mine.yaml").read_text().replace("40", "50")
    )
    (sweep / "0" / "state.json").unlink()
    edited = run_here("train", "-m", *MINE, "seed=range(4)", cwd=cwd)
    assert (
        edited.code == 2 and "was started with trainer.steps=40, but now it is 50" in edited.err
    ), edited.err


def test_ctrl_c_saves_jobs_and_same_command_resumes(tmp_path):
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
        and "run the same command again to resume" in err.splitlines()[-1]
    ), err
    assert "Traceback" not in err and status_and_starts(sweep) == [("stopped", 1), ("waiting", 0)]
    assert (
        final_state_and_log(sweep / "0")[0]["step"] > 0
        and "SIGINT: saved at step" in states(sweep)[0].error
    )


HANGING = """
import signal, subprocess, sys, time
from torch import nn
class Mine(nn.Module):
    def __init__(self, spec, *, seed: int = 0):
        super().__init__()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open("pids", "a").write(f"{__import__('os').getpid()} {child.pid} ")
        time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [0.0, 3.0])
def test_second_ctrl_c_ends_jobs_that_hang_and_leaves_no_process(pause_s, tmp_path):
    write_model(tmp_path)
    (tmp_path / "mine.py").write_text(HANGING)
    command = [sys.executable, "-m", "genlab", "train", "-m", *MINE, "seed=0,4"]
    launcher = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().split()) < 2:
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.1)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.05 + pause_s)  # a signal that is pending already is not delivered twice
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        deadline = time.monotonic() + 10
        while is_alive(pid):
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_sighup_saves_jobs(tmp_path):
    write_model(tmp_path)
    long = ("trainer.steps=1000000", "trainer.save_every=1000000")
    command = [sys.executable, "-m", "genlab", "train", "-m", *MINE, "seed=0", *long]
    launcher = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("outputs/sweeps/*/0/stats.jsonl")):
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.1)
    launcher.stderr.close()  # the terminal is gone
    launcher.send_signal(signal.SIGHUP)
    assert launcher.wait(timeout=60) == 128 + signal.SIGHUP
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert status_and_starts(sweep) == [("stopped", 1)]
    assert final_state_and_log(sweep / "0")[0]["step"] > 0


@pytest.mark.slow
def test_jobs_outlive_a_killed_launcher_and_the_next_one_waits_for_them(tmp_path):
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
    assert again.code == 0 and "job 0 seed=0: started earlier, still running" in again.err, (
        again.err
    )
    assert status_and_starts(sweep) == [("done", 1), ("done", 1)]


@pytest.mark.gpu
def test_forked_jobs_can_use_the_gpu(tmp_path):
    small = ("model=vae", "trainer.steps=20", "trainer.preview_every=0", "device=cuda")
    result = run_process("train", "-m", *small, "seed=0,1", "hydra.launcher.gpus=[0]", cwd=tmp_path)
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert result.code == 0 and status_and_starts(sweep) == [("done", 1), ("done", 1)], result.err


# --- sweeps of an older format --------------------------------------------------------------------


def test_sweep_of_format_1_is_listed_and_resumes(genlab, tmp_path):
    """Its plan has the old names of options; the jobs that remain run with the present names."""
    plan = json.loads((FIXTURES / "format_1" / "sweep" / "plan.json").read_text())
    assert "format" not in plan and "trainer.clip=1" in plan["jobs"][0]
    (tmp_path / "sweep").mkdir()
    path = tmp_path / "sweep" / "plan.json"
    path.write_text(json.dumps(plan | {"cwd": str(tmp_path)}))
    for job in SweepFolder.open(tmp_path / "sweep").jobs():
        assert {"trainer.grad_clip=1", "preprocess.binarize=threshold"} <= set(job.overrides)
    status = genlab("sweep", "status", "sweep")
    assert status.code == 0 and "2 jobs: 2 waiting" in status.out, status.err
    assert "no job failed" in genlab("sweep", "rerun", "sweep").out
    result = genlab("sweep", "resume", "sweep")
    assert result.code == 0, result.err
    assert status_and_starts(tmp_path / "sweep") == [("done", 1), ("done", 1)]
    assert json.loads(path.read_text())["format"] == FORMAT
    assert set(job_order(genlab("sweep", "best", "sweep", "metric=loss"))) == {0, 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["model=gan", "trainer.k=2"], ["model=gan", "trainer.d_steps=2"]),
        (["model=rbm", "trainer.k=2"], ["model=rbm", "trainer.cd_steps=2"]),
        (["experiment=gan_ring", "trainer.k=2,5"], ["experiment=gan_ring", "trainer.d_steps=2,5"]),
        (["+regulariser=none,spectral"], ["+regularizer=none,spectral_norm"]),
        (
            ["dataset=pairs", "dataset@dataset.of=cifar10", "dataset.of.keep=0.5"],
            ["dataset=pairs", "dataset@dataset.base=cifar10", "dataset.base.class_fraction=0.5"],
        ),
        (["hydra.sweeper.params.trainer.clip=1,2"], ["hydra.sweeper.params.trainer.grad_clip=1,2"]),
    ],
)
def test_old_names_are_resolved_by_what_the_plan_chooses(old, new, tmp_path):
    plan = {"command": ["train", "-m", *old], "cwd": "/", "sweeper": "basic", "jobs": [old]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    sweep = SweepFolder.open(tmp_path)
    assert sweep.read_plan()["command"] == ["train", "-m", *new]
    assert [list(job.overrides) for job in sweep.jobs()] == [new]


# --- shipped sweeps and launchers -----------------------------------------------------------------


@pytest.fixture
def planned_jobs(monkeypatch) -> list[list[str]]:
    """The overrides of the jobs that a command would run; none of them runs."""
    found: list[list[str]] = []
    keep = lambda self, job_overrides, initial_job_idx: found.extend(map(list, job_overrides)) or []  # noqa: E731
    monkeypatch.setattr(hydra_launchers.SweepLauncher, "launch", keep)
    # It composes every job, which takes seconds; here the first job is enough.
    validate = Sweeper.validate_batch_is_legal
    monkeypatch.setattr(
        Sweeper, "validate_batch_is_legal", lambda self, batch: validate(self, batch[:1])
    )
    return found


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweep_matches_its_header(path, genlab, planned_jobs):
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
        f"{len(planned_jobs)} runs" in text
        and len({tuple(job) for job in planned_jobs}) == len(planned_jobs) > 3
    )
    left = {override for job in planned_jobs for override in job}
    while left:  # every value composes and builds, in as few jobs as have all of them
        job = max(planned_jobs, key=lambda job: len(left & set(job)))
        left -= set(job)
        build_training_objects(*job, "device=cpu", "out=unused")


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_launcher_command_composes(command, genlab, planned_jobs):
    result = genlab(*command.split()[1:])
    assert result.code == 0 and len(planned_jobs) > 1, result.err


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launcher_composes_and_documents_its_use(path, genlab):
    result = genlab(
        "train", f"hydra/launcher={path.stem}", "--cfg", "hydra", "--package", "hydra.launcher"
    )
    assert result.code == 0 and "tries: " in result.out, result.err
    text = path.read_text()
    assert text.startswith("# Run a sweep on") and (
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
