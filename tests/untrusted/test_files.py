"""Files from outside are opened at once and bounded, whatever stands in their place."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genlab.comparison.run_records import read_metrics_records
from genlab.data.captions import read_utf8_text
from genlab.data.image_decoding import read_image_header
from genlab.data.npy_files import read_numpy_arrays
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.runs.run_folder import RunFolder
from genlab.sweeps.file_locks import hold_file_lock, hold_job_lock, is_job_locked
from genlab.sweeps.job_state import read_state, submitted_job_id
from genlab.sweeps.leases import read_newest_lease
from genlab.sweeps.sweep_folder import SweepFolder
from genlab.untrusted import files

MAX_SECONDS = 5.0
SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")


class HangError(BaseException):
    """A reader waited for what never comes."""


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Interrupt a test that waits, such as for the other end of a pipe."""

    def interrupt(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 12 * MAX_SECONDS)  # a busy machine is slow, not hanging
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# --- what may stand in the place of a file --------------------------------------------------------


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    """Bind a socket; its path may only have 108 characters."""
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)
    os.chdir(here)


def put_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def put_sparse_file(path: Path) -> None:
    """Make a file of 60 GB that takes no space."""
    with open(path, "wb") as file:
        file.truncate(60 * 2**30)


PLACES = {
    put_fifo: "is a named pipe",
    put_socket: "is a socket",
    put_link_loop: "symbolic links",
    put_device: "is a device",
    put_terminal: "is a device",
    Path.mkdir: "is a folder",
}


@pytest.mark.parametrize(
    ("put", "message"), PLACES.items(), ids=lambda v: getattr(v, "__name__", v)
)
def test_only_regular_files_are_opened(put, message, tmp_path):
    put(tmp_path / "x")
    for read in (files.read_bytes, files.read_text, files.read_json, files.read_yaml):
        with pytest.raises((UserError, OSError), match=re.escape(message)):
            read(tmp_path / "x")


@pytest.mark.parametrize(
    "read", [files.read_text, files.read_json, files.read_yaml], ids=lambda f: f.__name__
)
def test_large_files_are_refused_before_they_are_read(read, tmp_path):
    put_sparse_file(tmp_path / "x")
    with pytest.raises(UserError, match=r"x is unreadable: it has more than .* \(60.0 GB\)"):
        read(tmp_path / "x")


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "x").write_text('{"a": 1e-4}')
    assert files.read_bytes(tmp_path / "x") == b'{"a": 1e-4}'
    assert files.read_json(tmp_path / "x") == files.read_yaml(tmp_path / "x") == {"a": 1e-4}
    (tmp_path / "link").symlink_to("x")
    assert files.read_text(tmp_path / "link") == '{"a": 1e-4}'


@pytest.mark.parametrize("put", [put_fifo, put_socket, put_device, put_link_loop])
def test_writing_replaces_what_is_in_the_way(put, tmp_path):
    """A pipe or a link in the place of a partial file would take what is written."""
    put(tmp_path / "x.part")
    atomic_write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert not os.path.lexists(tmp_path / "x.part")


# --- every reader of a run and of a sweep ---------------------------------------------------------


def lock_job(folder: Path) -> None:
    with hold_job_lock(folder, timeout_s=0):
        pass


def lock_launcher(folder: Path) -> None:
    with hold_file_lock(folder / ".launcher.lock", timeout_s=0):
        pass


# (the file, what reads it; None: every command that gets the folder)
READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("config.yaml", lambda run: RunFolder(run).read_config()),
    ("config.yaml", lambda run: RunFolder(run).config_text()),
    ("run.json", lambda run: RunFolder(run).metadata()),
    ("run.json", lambda run: RunFolder(run).format_number()),
    ("data.json", lambda run: RunFolder(run).data_summary()),
    ("stats.jsonl", lambda run: RunFolder(run).read_log()),
    ("stats.jsonl", lambda run: RunFolder(run).discard_records_after(1)),
    ("checkpoints/step_000000002.pt", lambda run: RunFolder(run).load_checkpoint()),
    (".lock", lambda run: RunFolder(run).lock()),
    ("metrics.json", read_metrics_records),
    ("reals.png", read_metrics_records),
    ("state.json", read_state),
    ("submitted", submitted_job_id),
    (".job.lock", is_job_locked),
    (".job.lock", lock_job),
    (".launcher.lock", lock_launcher),
    ("plan.json", lambda run: SweepFolder(run).read_plan()),
    ("anything", lambda run: files.refuse_links_and_special_files(run, "run")),
    ("deep/inside", lambda run: files.refuse_links_and_special_files(run, "run")),
    ("x.npz", lambda run: read_numpy_arrays(run / "x.npz", "samples=x.npz")),
    ("metadata.jsonl", lambda run: read_utf8_text(run / "metadata.jsonl")),
    ("x.png", lambda run: read_image_header(run / "x.png")),
]


@pytest.mark.parametrize("put", [put_fifo, put_socket, put_device], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", range(len(READERS)), ids=[row[0] for row in READERS])
def test_no_reader_waits_for_a_pipe_or_a_device(case, put, train_run, tmp_path):
    name, read = READERS[case]
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(path)
    put(path)
    with pytest.raises((UserError, OSError)) as error:
        read(run)
    assert path.name in str(error.value)


def test_a_lease_that_is_a_pipe_is_of_an_unknown_worker(tmp_path):
    put_fifo(tmp_path / ".lease.1")
    lease = read_newest_lease(tmp_path)
    assert lease is not None and lease.worker == ""


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "stats.jsonl", "plan.json"])
def test_a_sparse_file_is_refused_by_its_size(name, train_run, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    put_sparse_file(run / name)
    read = next(read for place, read in READERS if place == name)
    with pytest.raises(UserError, match="60.0 GB"):
        read(run)


def test_a_sparse_checkpoint_is_refused_by_its_size(train_run, tmp_path, monkeypatch):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    put_sparse_file(run / "checkpoints" / "step_000000002.pt")
    monkeypatch.setattr("genlab.runs.checkpoint_io.half_memory_bytes", lambda: 2**33)
    with pytest.raises(UserError, match=r"it has more than 8.0 GB \(60.0 GB\)"):
        RunFolder(run).load_checkpoint()


# --- folders --------------------------------------------------------------------------------------


def test_links_inside_of_a_folder_are_allowed(tmp_path):
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "file").write_text("x")
    (tmp_path / "run" / "to_file").symlink_to("a/file")
    (tmp_path / "run" / "to_folder").symlink_to("a")
    (tmp_path / "run" / "to_nothing").symlink_to("missing")
    files.refuse_links_and_special_files(tmp_path / "run", "run")


LINKS = {
    "../outside": "is a link out of the run",
    "/etc/passwd": "is a link out of the run",
    "a/../../../x": "is a link out of the run",
    "/dev/zero": "is a link out of the run",
    "link": "is a link to itself",
    "pipe": "is a named pipe",
    "../run-2/x": "is a link out of the run",
}


@pytest.mark.parametrize(("target", "message"), LINKS.items())
def test_other_links_are_refused(target, message, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "run-2").mkdir()
    os.mkfifo(run / "pipe")
    (run / "link").symlink_to(target)
    if target != "pipe":
        (run / "pipe").unlink()
    with pytest.raises(UserError, match=message):
        files.refuse_links_and_special_files(run, "run")


# --- what is read from them -----------------------------------------------------------------------

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(5000),
    "latin-1": '{"näme": "é"}\n'.encode("latin-1"),
    "utf-16": '{"a": 1}\n'.encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "a list": b"[1, 2]\n",
    "a number": b"5\n",
    "a long number": b'{"step": ' + b"9" * 5000 + b"}\n",
    "not finite": b'{"format": NaN, "step": Infinity}\n',
    "noise": random.Random(0).randbytes(3000),
    "yaml omap": b"model: !!omap [1]\n",
    "yaml binary": b"model: !!binary x\n",
    "yaml timestamp": b"model: !!timestamp x\n",
    "yaml int": b"model: !!int x\n",
    "yaml set": b"model: !!set [1]\n",
    "yaml keys": b"? [1, 2]\n: x\n",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_file_is_an_error_of_one_line(content, train_run, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    for name, read in READERS[:8] + READERS[9:10]:
        path = run / name
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            read(run)
        except UserError as error:
            assert path.name in str(error) and len(str(error)) < 1000
        finally:
            path.unlink() if kept is None else path.write_bytes(kept)
