"""Leases: one worker per job, whatever dies, is suspended, is far away or is damaged."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from genlab.errors import UserError
from genlab.sweeps import file_locks, job_state, leases
from genlab.sweeps.leases import (
    CANCELLED,
    Heartbeat,
    Journal,
    LeaseWatch,
    WorkerFile,
    claim_job,
    keep_lease,
    lease_path,
    read_newest_lease,
)


@pytest.fixture
def make_worker(tmp_path, monkeypatch):
    """`make_worker("a")`: a worker on a machine with this name."""

    def make(host: str) -> WorkerFile:
        monkeypatch.setattr(leases.socket, "gethostname", lambda: host)
        return WorkerFile(tmp_path)

    return make


@pytest.fixture
def on_nfs(monkeypatch) -> None:
    """Let no lock of another machine be visible."""
    monkeypatch.setattr(file_locks, "file_system_type", lambda path: "nfs")


def test_one_of_many_claims_a_job(tmp_path, make_worker):
    workers = [make_worker(f"host{n}") for n in range(8)]
    claimed = []
    start = threading.Barrier(len(workers))

    def claim_all(worker: WorkerFile) -> None:
        start.wait()
        for n in range(20):
            if claim_job(tmp_path / str(n), worker, LeaseWatch()):
                claimed.append(n)

    threads = [threading.Thread(target=claim_all, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(20))


def test_lease_of_another_machine_is_free_only_after_a_long_silence(tmp_path, make_worker, on_nfs):
    """Only changes count, not clocks: the other machine's may be years behind or ahead."""
    job = tmp_path / "0"
    theirs, ours, watch = make_worker("there"), make_worker("here"), LeaseWatch(timeout_s=0.1)
    lease = claim_job(job, theirs, LeaseWatch())
    assert lease is not None
    for seconds in (-(10**8), 10**9, -5):
        assert claim_job(job, ours, watch) is None
        time.sleep(0.07)
        os.utime(lease.path, (time.time() + seconds,) * 2)
        assert claim_job(job, ours, watch) is None, "it has beaten"
        assert watch.is_confirmed_alive(job)
    time.sleep(0.15)
    second = claim_job(job, ours, watch)
    assert second is not None and second.generation == 2 and lease.is_superseded()
    with pytest.raises(UserError, match="another worker has taken over"), keep_lease(lease):
        raise AssertionError


def test_suspended_process_ends_itself_before_it_writes_again(tmp_path, make_worker, monkeypatch):
    killed = []
    monkeypatch.setattr(leases.os, "kill", lambda pid, number: killed.append((pid, number)))
    worker = make_worker("here")
    lease = claim_job(tmp_path / "0", worker, LeaseWatch())
    beat = Heartbeat(lease, interval_s=0.01)
    beat.stopped.set()
    beat.run()
    assert not killed
    lease_path(lease.folder, 2).touch()
    beat.run()
    assert killed == [(os.getpid(), leases.signal.SIGKILL)]
    for path in (lease_path(lease.folder, 2), lease.path):
        path.unlink()  # a job's folder that is deleted is not a claim of another worker
    beat.run()
    assert len(killed) == 1


def test_lease_on_a_local_disk_is_free_when_its_worker_is_dead(tmp_path, make_worker, monkeypatch):
    monkeypatch.setattr(file_locks, "file_system_type", lambda path: "ext4")
    job, other = tmp_path / "0", make_worker("container-1")
    ours, watch = make_worker("container-2"), LeaseWatch()
    lease = claim_job(job, other, watch)
    assert claim_job(job, ours, watch) is None and watch.is_confirmed_alive(job)
    other.file.close()
    with open(job / ".job.lock", "w") as handle:  # its job outlives it
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert claim_job(job, ours, watch) is None
    assert claim_job(job, ours, watch).generation == lease.generation + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe" * 100,
        b"[1, 2]\n",
        b'{"worker": 5, "host": null}\n',
        b'{"worker": "../../../etc/passwd", "host": "x"}\n',
        b'{"worker": "a/b", "host": "x"}\n',
        b"x" * 100_000,
        b"[" * 4000,
    ],
)
def test_damaged_lease_is_one_of_an_unknown_worker(content, tmp_path, make_worker):
    job, worker, watch = tmp_path / "0", make_worker("here"), LeaseWatch(timeout_s=0.05)
    job.mkdir()
    lease_path(job, 1).write_bytes(content)
    assert read_newest_lease(job).generation == 1
    assert claim_job(job, worker, watch) is None
    time.sleep(0.1)
    assert claim_job(job, worker, watch).generation == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_pipe_or_folder_as_lease_and_journal_does_not_hang(make, tmp_path, make_worker):
    job, worker, watch = tmp_path / "0", make_worker("here"), LeaseWatch(timeout_s=0.05)
    job.mkdir()
    make(lease_path(job, 1))
    journal = Journal(tmp_path)
    make(tmp_path / leases.WORKERS_FOLDER / "other.jsonl")
    assert claim_job(job, worker, watch) is None and journal.changed_jobs() == set()
    time.sleep(0.1)
    assert claim_job(job, worker, watch).generation == 2


def test_full_disk_leaves_no_lease_behind(tmp_path, make_worker, monkeypatch):
    worker = make_worker("here")

    def fail(*arguments, **options):
        os.close(arguments[0])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(leases.os, "fdopen", fail)
        with pytest.raises(OSError, match="No space left") as error:
            claim_job(tmp_path / "0", worker, LeaseWatch())
    assert error.value.filename == str(tmp_path / "0" / ".lease.1")
    assert claim_job(tmp_path / "0", worker, LeaseWatch()).generation == 1


def test_released_and_cancelled_leases(tmp_path, make_worker):
    worker, watch = make_worker("here"), LeaseWatch()
    for generation, note in enumerate(("released", CANCELLED, "released"), 1):
        lease = claim_job(tmp_path / "0", worker, watch)
        assert lease.generation == generation and read_newest_lease(lease.folder).note == ""
        lease.release(note)
        assert read_newest_lease(lease.folder).note == note


def test_journal_is_read_incrementally(tmp_path, make_worker):
    first = make_worker("a")
    first.record(1)
    journal = Journal(tmp_path)
    assert journal.changed_jobs() == set(), "what was there before is not a change"
    first.record(2)
    second = make_worker("b")
    second.record(3)
    with open(second.path, "a") as file:
        file.write("4\nnonsense\n-1\n5")  # the last line is not complete
    assert journal.changed_jobs() == {2, 3, 4} and journal.changed_jobs() == set()
    with open(second.path, "a") as file:
        file.write("6\n")
    assert journal.changed_jobs() == {56}


def test_job_counts_its_losses_and_keeps_its_lease_alive(tmp_path, make_worker, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_INTERVAL_S", 0.02)
    job = tmp_path / "0"
    job_state.write_state(job, job_state.JobState("running", starts=1))
    lease = claim_job(job, make_worker("here"), LeaseWatch())
    before = os.stat(lease.path).st_mtime_ns

    def work() -> float:
        time.sleep(0.1)
        assert os.stat(lease.path).st_mtime_ns > before
        return 1.0

    assert job_state.run_and_record_job(job, work, lease) == 1.0
    state = job_state.read_state(job)
    assert (state.status, state.starts, state.losses) == ("done", 2, 1)
    assert not [t for t in threading.enumerate() if t.name == "heartbeat"]


def test_own_file_is_made_again_if_the_sweep_was_deleted(tmp_path):
    first = leases.worker_file(tmp_path)
    assert leases.worker_file(tmp_path) is first
    first.path.unlink()
    assert leases.worker_file(Path(tmp_path)).path.exists()
