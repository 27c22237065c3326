"""Data workers that die, hang or cannot share memory: every batch still arrives, unchanged."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data import worker_processes
from genlab.data.worker_processes import describe_death, describe_failure, stream_items

SHORT_SHM = "mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "


class Items:
    """Answers that are tensors; at key 5 the worker meets its fate."""

    def __init__(self, fate: str = "") -> None:
        self.fate, self.parent = fate, os.getpid()

    def __getitem__(self, key: int) -> tuple[int, torch.Tensor]:
        if key == 5 and os.getpid() != self.parent:
            if self.fate == "hangs":
                time.sleep(3600)
            if self.fate == "is slow":
                time.sleep(1.5)
            if self.fate.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, self.fate))
            if self.fate == "exits":
                os._exit(3)
            if self.fate == "no shared memory":
                raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")
        return key, torch.full((3,), float(key))


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch):
    monkeypatch.setattr(worker_processes, "POLL_INTERVAL_S", 1)
    monkeypatch.setattr(worker_processes, "has_failed", False)


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        ("", ""),
        ("is slow", ""),
        pytest.param("hangs", "have not answered", marks=pytest.mark.slow),
        ("SIGKILL", "was killed (SIGKILL), as the system does when memory runs out"),
        ("SIGBUS", "died of SIGBUS; they need more of /dev/shm"),
        ("SIGSEGV", "died of SIGSEGV"),
        ("exits", "ended with exit code 3"),
        ("no shared memory", "--shm-size=1g"),
    ],
)
def test_answers_stay_the_same_whatever_happens_to_workers(fate, message, monkeypatch, capsys):
    if fate == "hangs":
        monkeypatch.setattr(worker_processes, "ANSWER_TIMEOUT_S", 0.5)
    before = signal.getsignal(signal.SIGCHLD), torch.get_rng_state()
    answers = stream_items(Items(fate), count(), workers=2, pin_memory=False)
    got = list(islice(answers, 9))
    answers.close()
    assert [key for key, _ in got] == list(range(9))
    assert all(torch.equal(x, torch.full((3,), float(key))) for key, x in got)
    err = capsys.readouterr().err
    assert message in err and err.count("warning:") == bool(message)
    assert "Traceback" not in err
    # no handler of torch's is left, which would raise anywhere, and no random number was drawn
    assert signal.getsignal(signal.SIGCHLD) is before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_failure_is_said_once_and_later_streams_have_no_workers(capsys):
    for _ in range(2):
        answers = stream_items(Items("exits"), iter(range(7)), workers=1, pin_memory=False)
        assert [key for key, _ in answers] == list(range(7))
    assert capsys.readouterr().err.count("continues without workers") == 1


class Broken:
    """Items of which one cannot be computed."""

    def __getitem__(self, key: int) -> torch.Tensor:
        if key == 2:
            raise ZeroDivisionError("a bug")
        return torch.zeros(1)


def test_an_error_of_an_item_is_raised_here_with_its_own_traceback():
    answers = stream_items(Broken(), count(), workers=1, pin_memory=False)
    with pytest.raises(ZeroDivisionError, match="^a bug$"):
        list(answers)


def test_workers_that_cannot_be_started_are_replaced(monkeypatch, capsys):
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker_processes.multiprocessing, "Lock", refuse)
    answers = stream_items(Items(), iter(range(3)), workers=2, pin_memory=False)
    assert [key for key, _ in answers] == [0, 1, 2]
    assert "cannot be started: [Errno 28]" in capsys.readouterr().err


def test_messages_name_cause_and_remedy():
    assert "dataset.workers=1" in describe_death(-9)
    assert "--ipc=host" in describe_failure("unable to allocate shared memory(shm)")
    assert "shm" not in describe_failure("Too many open files")


def test_streamed_images_reach_workers_that_are_spawned(tmp_path):
    """macOS and Windows start workers anew: all that they need travels by pickle."""
    from genlab.data.image_folder import ImageFolder

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = np.full((4, 4, 3), 20 * i, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    data = ImageFolder(path=str(tmp_path), size=4, cache_in_memory=False, workers=1)
    files = data.splits["train"].x
    copy = pickle.loads(pickle.dumps(worker_processes.SharedItems(files)))
    ours, theirs = files[0, 0, [0, 1]], copy[0, 0, [0, 1]]
    assert all(map(torch.equal, ours[2:4], theirs[2:4]))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "64k", "1m"])
def test_training_with_little_shared_memory_equals_one_without_workers(size, tmp_path: Path):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    trial = ["unshare", "-m", "sh", "-c", SHORT_SHM.format(size=size) + "true"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount another /dev/shm")
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(60):
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    options = ["model=vae_conv", "dataset=image_folder", "dataset.path=images", "dataset.size=32"]
    options += ["dataset.cache_in_memory=false", "trainer.steps=3", "trainer.batch_size=32"]
    options += ["trainer.preview_every=0", "device=cpu"]
    command = [sys.executable, "-m", "genlab", "train", *options]
    shell = SHORT_SHM.format(size=size)
    small = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{shell}"$@"', "sh", *command, "out=small"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip  # one line of options
    assert small.returncode == 0, small.stderr
    assert small.stderr.count("--shm-size=1g") == 1 and "Traceback" not in small.stderr
    subprocess.run(
        [*command, "dataset.workers=0", "out=none"], cwd=tmp_path, check=True, capture_output=True
    )
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step_000000003.pt", weights_only=True)
        for name in ("small", "none")
    ]
    assert all(map(torch.equal, *(state["model"].values() for state in states)))
