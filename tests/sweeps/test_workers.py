"""Workers share the jobs of a folder, take over what is lost, and end when nothing is left."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import time

import pytest
from helpers.cli_runner import REPOSITORY
from helpers.sweep_model import MINE, status_and_starts, write_model

from genlab.commands import sweep as sweep_command
from genlab.errors import UserError
from genlab.signals import TrainingInterrupted
from genlab.sweeps import job_monitor, leases, local_backend, slurm_backend, squeue, worker
from genlab.sweeps.hydra_sweepers import probe_jobs
from genlab.sweeps.job_state import JobState, read_state, run_and_record_job, write_state
from genlab.sweeps.launches import JobCounts, Launch
from genlab.sweeps.leases import WORKERS_FOLDER, LeaseWatch, WorkerFile, claim_job
from genlab.sweeps.local_backend import LocalBackend
from genlab.sweeps.slurm_backend import SlurmBackend, SlurmRefusalError
from genlab.sweeps.sweep_folder import SweepFolder
from genlab.sweeps.worker import Worker, parse_duration_s, seconds_until_slurm_limit


class EndedProcess:
    """A process that has ended."""

    pid = None
    is_alive = lambda self: False  # noqa: E731
    join = close = lambda self: None


class InlineBackend(LocalBackend):
    """A machine whose jobs are done at once, in this process, by `do(job)`.

    A job that raises Lost has a process that ends without a message.
    """

    def __init__(self, do=lambda job: 1.0, slots=1) -> None:
        super().__init__(self.run, [None] * slots)
        self.do, self.started = do, []

    def run(self, backend, job, lease) -> None:
        self.started.append(job.number)
        self.processes[job.number] = EndedProcess()
        try:
            run_and_record_job(job.folder, lambda: self.do(job), lease)
        except Lost:
            before = read_state(job.folder)
            write_state(job.folder, JobState("running", starts=before.starts, losses=before.losses))
        except ValueError:
            pass

    def wait(self, seconds: float) -> None:
        time.sleep(0.01)


class Lost(BaseException):
    """The process of a job is gone."""


@pytest.fixture(autouse=True)
def poll_fast(monkeypatch) -> None:
    monkeypatch.setattr(job_monitor, "QUEUE_POLL_INTERVAL_S", (0.02, 0.02))
    monkeypatch.setattr(squeue, "query_slurm_states", lambda ids: {})


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    """The plan of a sweep of six jobs."""
    folder = SweepFolder(tmp_path / "sweep")
    folder.add_jobs(["train", "-m", "seed=range(6)"], 0, [[f"seed={n}"] for n in range(6)])
    return folder


def make_worker(sweep, backend, *, tries=3, before=None, **options) -> Worker:
    jobs = sweep.jobs()
    counts = {job.number: JobCounts(0, 0) for job in jobs} | (before or {})
    names = {job.number: f"job {job.number}" for job in jobs}
    return Worker(jobs, backend, names, Launch(tries, counts), **options)


def statuses(sweep) -> list[str]:
    return [read_state(job.folder).status for job in sweep.jobs()]


# --- what a worker does ---------------------------------------------------------------------------


def test_workers_share_the_jobs(sweep, monkeypatch):
    """Each job of the first one lets the second do one too."""
    monkeypatch.setattr(leases, "WORKER_FILES", {})
    second = make_worker(sweep, InlineBackend())

    def do_and_let_another_work(job) -> float:
        for other in sweep.jobs():
            lease = claim_job(other.folder, OTHER, LeaseWatch())
            if lease is not None and read_state(other.folder).status != "done":
                OTHER.record(other.number)
                run_and_record_job(other.folder, lambda: 2.0, lease)
                lease.release()
                break
        return 1.0

    monkeypatch.setattr(leases.socket, "gethostname", lambda: "another")
    OTHER = WorkerFile(sweep.path)
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "this")
    first = make_worker(sweep, InlineBackend(do_and_let_another_work))
    first.run_all()
    assert statuses(sweep) == ["done"] * 6 and first.num_ended == 3
    assert [read_state(job.folder).starts for job in sweep.jobs()] == [1] * 6
    second.run_all()
    assert second.num_ended == 0 and second.backend.started == []


def test_job_that_always_dies_fails_with_its_reason(sweep, capsys):
    def die(job) -> float:
        if job.number == 2:
            (job.folder / "train.log").write_text("Segmentation fault\n")
            raise Lost
        return 1.0

    one = make_worker(sweep, InlineBackend(die), tries=2)
    one.run_all()
    state = read_state(sweep.jobs()[2].folder)
    assert one.backend.started.count(2) == 2 and state.status == "failed"
    assert "its last output: Segmentation fault" in state.error
    assert statuses(sweep).count("done") == 5
    again = make_worker(sweep, InlineBackend())
    again.run_all()
    assert again.backend.started == [], "no worker tries it for ever"


def test_losses_count_over_all_workers(sweep):
    def die(job) -> float:
        raise Lost

    for _ in range(2):  # each of them is killed itself after one loss
        job = sweep.jobs()[0]
        backend = InlineBackend(die)
        backend.start([job])
        backend.has_ended(job)
    last = make_worker(sweep, InlineBackend(lambda job: die(job) if job.number == 0 else 1.0))
    last.run_all()
    assert last.backend.started.count(0) == 1 and statuses(sweep) == ["failed"] + ["done"] * 5


def test_failed_job_is_done_again_only_by_a_new_launch(sweep):
    def fail(job) -> float:
        raise ValueError("by design")

    make_worker(sweep, InlineBackend(fail)).run_all()
    assert statuses(sweep) == ["failed"] * 6
    make_worker(sweep, InlineBackend()).run_all()
    assert statuses(sweep) == ["failed"] * 6
    make_worker(sweep, InlineBackend(), before={1: JobCounts(1, 0)}).run_all()
    assert statuses(sweep) == ["failed", "done", *["failed"] * 4]


def test_worker_ends_beside_a_live_one_and_takes_over_a_silent_one(sweep, monkeypatch):
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "another")
    other, job = WorkerFile(sweep.path), sweep.jobs()[0]
    claim_job(job.folder, other, LeaseWatch())
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "this")
    make_worker(sweep, InlineBackend()).run_all()
    assert statuses(sweep) == ["waiting", *["done"] * 5], "the other worker does it"
    other.file.close()
    make_worker(sweep, InlineBackend()).run_all()
    assert statuses(sweep) == ["done"] * 6


def test_worker_waits_to_see_whether_another_machine_is_at_work(sweep, monkeypatch):
    monkeypatch.setattr(leases, "is_lock_conclusive", lambda folder, host: host == "this")
    monkeypatch.setattr(leases, "HEARTBEAT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "another")
    claim_job(sweep.jobs()[0].folder, WorkerFile(sweep.path), LeaseWatch())
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "this")
    monkeypatch.setattr(leases, "WORKER_FILES", {})
    began = time.monotonic()
    make_worker(sweep, InlineBackend()).run_all()
    assert statuses(sweep) == ["done"] * 6 and time.monotonic() - began > 0.3


@pytest.mark.parametrize("note, status", [("released", "done"), ("cancelled", "stopped")])
def test_stopped_job_goes_on_unless_it_was_cancelled(note, status, sweep):
    job = sweep.jobs()[3]
    lease = claim_job(job.folder, WorkerFile(sweep.path), LeaseWatch())
    write_state(job.folder, JobState("stopped", starts=1))
    lease.release(note)
    make_worker(sweep, InlineBackend()).run_all()
    assert statuses(sweep) == [*["done"] * 3, status, *["done"] * 2]


def test_worker_ends_at_its_time_limit_or_signal(sweep, capsys):
    make_worker(sweep, InlineBackend(), deadline=time.monotonic() - 1).run_all()
    assert "time limit: no job was running" in capsys.readouterr().err

    def interrupt(job) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    with pytest.raises(TrainingInterrupted) as error:
        make_worker(sweep, InlineBackend(interrupt)).run_all()
    assert error.value.exit_code == 143 and statuses(sweep).count("done") == 1


def test_full_disk_is_reported_and_tried_again(sweep, monkeypatch, capsys):
    full = iter([False, True, True, False, False, False, False, False, False])

    def claim(*arguments):
        if next(full):
            raise OSError(28, "No space left on device", "lease")
        return claim_job(*arguments)

    monkeypatch.setattr(local_backend, "claim_job", claim)
    slow = InlineBackend(slots=2)
    slow.has_ended = lambda job: len(slow.started) > 1 and LocalBackend.has_ended(slow, job)
    make_worker(sweep, slow).run_all()
    assert statuses(sweep) == ["done"] * 6
    assert capsys.readouterr().err.count("no job is started for now: No space left") == 1
    monkeypatch.setattr(
        local_backend, "claim_job", lambda *a: (_ for _ in ()).throw(OSError(28, "full"))
    )
    (sweep.jobs()[0].folder / "state.json").unlink()
    with pytest.raises(OSError, match="full"):
        make_worker(sweep, InlineBackend()).run_all()


# --- launches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["{}", '{"tries": 3, "jobs": [1]}', '{"tries": 3, "jobs": {"a": [1, 2]}}', "\x00"]
)
def test_damaged_launch_is_one_line(content, sweep):
    path = sweep.path / WORKERS_FOLDER / "launch.json"
    Launch(2, {0: JobCounts(4, 1)}).write(sweep.path)
    assert Launch.read(sweep.path) == Launch(2, {0: JobCounts(4, 1)})
    path.write_text(content)
    with pytest.raises(UserError, match="launch.json is unreadable"):
        Launch.read(sweep.path)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, fragment",
    [
        ("n=0", "n=0: it must be a whole number"),
        ("n=٣", "it must be a whole number"),
        ("tries=-1", "tries=-1"),
        ("n=2 gpus=0", "not both"),
        ("gpus=0,,1", "such as gpus=0,1"),
        ("until=soon", "such as 90m"),
        ("until=-3h", "such as 90m"),
        ("until=nan", "such as 90m"),
        ("untl=3h", "did you mean 'until'"),
    ],
)
def test_wrong_option_of_a_worker_is_one_line(words, fragment, sweep, genlab):
    assert fragment in genlab("sweep", "work", sweep.path, *words.split()).error


def test_jobs_that_the_command_did_not_plan_are_refused(sweep, genlab):
    plan = json.loads((sweep.path / "plan.json").read_text())
    for word in ("model.codec._target_=gift.code.Mean", "trusted_packages=[gift]", "out=/tmp/x"):
        plan["jobs"][2] = ["seed=2", word]
        (sweep.path / "plan.json").write_text(json.dumps(plan))
        assert word.split("=")[0] in genlab("sweep", "work", sweep.path).error


def test_durations():
    texts = {"90m": 5400, "3.5h": 12600, "2d": 172800, "600": 600, "10s": 10}
    assert {text: parse_duration_s(text) for text in texts} == texts


def test_time_limit_of_slurm(monkeypatch):
    end = str(int(time.time()) + 3600)
    assert seconds_until_slurm_limit({}) is None
    seconds = seconds_until_slurm_limit({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": end})
    assert seconds == pytest.approx(3600 - worker.SAVE_MARGIN_S, abs=2)
    told = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(int(end)))
    for output, known in ((told, True), ("N/A", False)):
        answer = subprocess.CompletedProcess([], 0, stdout=output.encode())
        monkeypatch.setattr(worker.subprocess, "run", lambda *a, answer=answer, **k: answer)
        assert (seconds_until_slurm_limit({"SLURM_JOB_ID": "7"}) is not None) == known


def test_sweep_work_does_the_jobs_of_a_plan(tmp_path, genlab):
    write_model(tmp_path)
    command = ["train", "-m", *MINE, "seed=0,4", "hydra.sweep.dir=sweep"]
    plan = {"command": command, "cwd": str(tmp_path), "sweeper": "basic", "format": 1}
    SweepFolder(tmp_path / "sweep").add_jobs(
        command, 0, [[*MINE[2:], "seed=0"], [*MINE[2:], "seed=4"]]
    )
    stored = json.loads((tmp_path / "sweep" / "plan.json").read_text())
    (tmp_path / "sweep" / "plan.json").write_text(json.dumps(stored | {"cwd": plan["cwd"]}))
    from genlab.sweeps.plan_trust import remember_trusted_plan

    remember_trusted_plan(stored | {"cwd": plan["cwd"]})
    result = genlab("sweep", "work", "sweep", "n=2", "until=1h")
    assert result.code == 0, result.err
    assert "this worker did 2 jobs; 2 done" in result.err
    assert status_and_starts(tmp_path / "sweep") == [("done", 1), ("done", 1)]
    again = genlab("sweep", "work", "sweep")
    assert again.code == 0 and "this worker did 0 jobs; 2 done" in again.err


@pytest.mark.slow
def test_jobs_are_done_once_whatever_is_killed(tmp_path):
    script = REPOSITORY / "scripts" / "benchmarks" / "sweep_workers.py"
    command = ["python", script, "--jobs=200", "--kill-every=10", f"--folder={tmp_path}/sweep"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["done_once"] == 200 and found["faults"] == []
    assert found["killed_workers"] + found["killed_jobs"] > 3


# --- planning -------------------------------------------------------------------------------------


def test_each_choice_is_composed_once():
    values = {"model": "vae gan", "dataset": "digits ring", "seed": " ".join(map(str, range(500)))}
    jobs = [
        [f"{key}={value}" for key, value in zip(values, choices, strict=True)]
        for choices in itertools.product(*(v.split() for v in values.values()))
    ]
    probes = probe_jobs(jobs, lambda key: key in ("model", "dataset"))
    assert len(probes) == 3 and {word for job in probes for word in job[:2]} == {
        "model=vae",
        "model=gan",
        "dataset=digits",
        "dataset=ring",
    }


@pytest.mark.parametrize(
    "words, fragment",
    [("model=vae,vea seed=1,2", "vea"), ("model=vae model.nonsense=1,2", "nonsense")],
)
def test_wrong_choice_is_refused_before_a_job_starts(words, fragment, genlab, tmp_path):
    assert fragment in genlab("train", "-m", *words.split()).error
    assert not list(tmp_path.rglob("state.json"))


def test_plan_shows_a_sweep_and_writes_nothing(genlab, tmp_path, sweep):
    result = genlab("plan", "-m", "model=vae,pca", "seed=range(40)", "trainer.steps=2")
    assert result.code == 0, result.err
    assert re.search(r"^80 jobs in outputs/sweeps/\S+: 80 waiting$", result.out, re.M)
    for line in ("  model: vae, pca", "… (40 in all)", "… and 30 others", "time: unknown"):
        assert line in result.out
    assert not (tmp_path / "outputs").exists()
    write_state(sweep.path / "1", JobState("done", starts=1))
    (sweep.path / "1" / "run.json").touch()
    before = sorted(sweep.path.rglob("*"))
    here = f"hydra.sweep.dir={sweep.path}"
    known = genlab("plan", "-m", "seed=range(6)", here, "hydra.launcher.n=2")
    assert "5 waiting" in known.out and "1 done" in known.out and "2 at a time" in known.out
    assert sorted(sweep.path.rglob("*")) == before
    assert "holds another sweep" in genlab("plan", "-m", "seed=7,8", here).error
    search = genlab("plan", "-m", "experiment=sweep/vae_search", here)
    assert "a search of 20 trials" in search.out and "1 done" in search.out


# --- SLURM's limits and refusals ------------------------------------------------------------------


class FakeCluster:
    """A cluster that accepts up to `limit` jobs, of which `busy` are others."""

    def __init__(self, limit: int, busy: int = 0) -> None:
        self.limit, self.busy, self.arrays = limit, busy, []

    def submit(self, executor, jobs):
        if self.busy + sum(map(len, self.arrays)) + len(jobs) > self.limit:
            raise RuntimeError(
                "sbatch: error: AssocMaxSubmitJobLimit\n"
                "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
                "(job submit limit, user's size and/or time limits)"
            )
        self.arrays.append([job.number for job in jobs])
        return [type("Job", (), {"job_id": f"{len(self.arrays)}_{n}"}) for n in range(len(jobs))]


@pytest.fixture
def make_backend(monkeypatch, tmp_path):
    def make(cluster, *, told=None, **params) -> SlurmBackend:
        def count() -> int:
            return cluster.busy + sum(map(len, cluster.arrays))

        monkeypatch.setattr(squeue, "count_own_jobs", count)
        monkeypatch.setattr(squeue, "query_max_array_size", lambda: 1001)
        monkeypatch.setattr(squeue, "query_max_submitted_jobs", lambda qos: told)
        options = {"max_num_timeout": 3, "array_parallelism": 256, **params}
        return SlurmBackend(tmp_path / "%j", cluster.submit, options)

    return make


@pytest.fixture
def no_submitit(monkeypatch) -> None:
    class Executor:
        def __init__(self, *arguments, **options) -> None: ...

        _typed_parameters = classmethod(lambda cls: {})
        update_parameters = lambda self, **options: None  # noqa: E731

    monkeypatch.setattr("submitit.AutoExecutor", Executor)


@pytest.mark.parametrize("told", [3, None], ids=["sacctmgr", "no sacctmgr"])
def test_as_many_jobs_are_submitted_as_the_cluster_accepts(
    told, sweep, make_backend, no_submitit, capsys
):
    cluster = FakeCluster(limit=3)
    backend = make_backend(cluster, told=told)
    jobs = sweep.jobs()[: backend.max_new_jobs(0)]
    started = backend.start(jobs)
    assert [job.number for job in started] == [0, 1, 2]
    assert backend.max_new_jobs(3) == 0
    assert capsys.readouterr().err.count("SLURM accepts no more jobs for now") == 1
    cluster.arrays.clear()
    backend.retry_at = 0.0
    assert backend.max_new_jobs(0) > 0, "it is tried again"


def test_attempts_to_submit_more_grow_rarer(sweep, make_backend, no_submitit, capsys):
    backend = make_backend(FakeCluster(limit=2, busy=2))
    waits = []
    for _ in range(8):
        backend.retry_at = 0.0
        assert backend.start(sweep.jobs()) == []
        waits.append(backend.retry_at - time.monotonic())
    assert [round(wait) for wait in waits] == [5, 10, 20, 40, 80, 120, 120, 120]
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "message, option",
    [
        ("Memory specification can not be satisfied", "hydra.launcher.mem_gb"),
        ("invalid partition specified: nowhere", "hydra.launcher.partition"),
        ("Invalid account or account/partition combination specified", "hydra.launcher.account"),
        ("Invalid qos specification", "hydra.launcher.qos"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "timeout_min"),
        ("Invalid generic resource (gres) specification", "hydra.launcher.gpus_per_node"),
        ("Invalid feature specification", "hydra.launcher.constraint"),
        ("Invalid node name specified", "hydra.launcher.exclude"),
        ("Requested node configuration is not available", "hydra.launcher.cpus_per_task"),
        ("Job violates accounting/QOS policy (job submit limit, user's size …)", "timeout_min"),
    ],
)
def test_refusal_for_good_names_the_option_to_set(
    message, option, sweep, make_backend, no_submitit
):
    cluster = FakeCluster(limit=9)

    def refuse(executor, jobs):
        raise RuntimeError(f"sbatch: error: Batch job submission failed: {message}")

    cluster.submit = refuse
    with pytest.raises(SlurmRefusalError) as error:
        make_backend(cluster).start(sweep.jobs())
    assert message in str(error.value) and option in str(error.value).partition("; set ")[2]


def test_number_of_workers_follows_the_options(make_backend):
    cluster = FakeCluster(limit=10**6)
    assert make_backend(cluster, array_parallelism=4).max_new_jobs(3) == 1
    whole_nodes = make_backend(cluster, array_parallelism=4, nodes=1, tasks_per_node=4)
    assert whole_nodes.max_new_jobs(3) == slurm_backend.MAX_ARRAY_JOBS


# --- help and documentation -----------------------------------------------------------------------


def test_help_lists_the_options_of_each_verb(genlab):
    text = genlab("sweep", "--help").out
    for verb, options in sweep_command.OPTIONS.items():
        assert re.search(rf"^  {verb} ", text, re.M)
        assert [key for key in options if not re.search(rf"^    {key} ", text, re.M)] == []
    assert max(map(len, text.splitlines())) <= 100
    signature = inspect.signature(sweep_command.parse_work_options)
    assert set(signature.parameters) == set(sweep_command.OPTIONS["work"])


def test_documented_workers_have_valid_options():
    text = (REPOSITORY / "docs" / "sweeps.md").read_text().replace(", ", " ")
    found = re.findall(r"genlab sweep work \S*outputs/sweeps/\S+((?: \w+=[\w,]+)*)", text)
    assert len(found) >= 4
    for words in found:
        sweep_command.parse_work_options(**dict(word.split("=") for word in words.split()))


def test_status_of_a_large_sweep_lists_only_what_needs_attention(tmp_path, genlab):
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.add_jobs(["train", "-m"], 0, [[f"seed={n}"] for n in range(300)])
    for n, status in ((3, "done"), (7, "failed"), (9, "stopped")):
        write_state(sweep.path / str(n), JobState(status, starts=1, error="why" * (n == 7)))
    result = genlab("sweep", "status", sweep.path)
    rows = re.findall(r"^ (\d+) ", result.out, re.M)
    assert rows == ["7", "9"] and "298 other jobs are not listed" in result.out
    assert "300 jobs: 1 done, 297 waiting, 1 failed, 1 stopped" in result.out
