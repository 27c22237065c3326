"""Faults of the machine: truncated checkpoints, full disks, wrong clocks, changed data."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.cli_runner import Result
from helpers.recipes import states_equal
from PIL import Image

from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder

SMALL = (
    "model=vae",
    "model.hidden=[8]",
    "model.latent=2",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
    "device=cpu",
)
COMMANDS = (("sample", "run=run", "n=1"), ("train", "resume=run"))


@pytest.fixture
def run(train_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a run of two steps with a checkpoint of each."""
    return shutil.copytree(train_run(*SMALL, "trainer.save_every=1"), tmp_path / "run")


# --- truncated and changed checkpoints ------------------------------------------------------------


def test_a_truncated_checkpoint_is_replaced_by_the_one_before(run, capsys):
    first, last = RunFolder(run).checkpoint_files()
    data, before = last.read_bytes(), RunFolder(run).load_checkpoint(first)
    for percent in range(100):
        last.write_bytes(data[: len(data) * percent // 100])
        state = RunFolder(run).load_checkpoint()
        warnings = capsys.readouterr().err.splitlines()
        assert states_equal(state, before)
        assert (
            len(warnings) == 1
            and last.name in warnings[0]
            and "the training after step 1 is lost" in warnings[0]
        )
        with pytest.raises(
            UserError, match=f"{last.name} is truncated.*the one before it is .*{first.name}"
        ):
            RunFolder(run).load_checkpoint(last)
    last.write_bytes(data)
    assert RunFolder(run).load_checkpoint()["step"] == 2 and not capsys.readouterr().err


def test_a_changed_byte_never_changes_a_weight(run, capsys):
    first, last = RunFolder(run).checkpoint_files()
    data = last.read_bytes()
    states = {1: RunFolder(run).load_checkpoint(first), 2: RunFolder(run).load_checkpoint(last)}
    rng, num_skipped = random.Random(0), 0
    for _ in range(100):
        changed = bytearray(data)
        position = rng.randrange(len(data))
        changed[position] ^= 1 << rng.randrange(8)
        last.write_bytes(changed)
        try:
            state = RunFolder(run).load_checkpoint()
        except UserError as error:  # valid checksums, but a changed name in the list of parts
            assert last.name in str(error)
            continue
        assert states_equal(state, states[state["step"]])  # padding may change
        num_skipped += state["step"] == 1
    capsys.readouterr()
    assert num_skipped > 30


@pytest.mark.parametrize("command", COMMANDS, ids=["sample", "resume"])
def test_a_damaged_checkpoint_is_reported_and_kept(command, run, genlab):
    first, last = RunFolder(run).checkpoint_files()
    whole = RunFolder(run).load_checkpoint()
    last.write_bytes(last.read_bytes()[:1000])
    result = genlab(*command)
    assert result.code == 0, result.err
    (warning,) = [line for line in result.err.splitlines() if "is truncated" in line]
    assert last.name in warning and f"{first.name} is used instead" in warning
    kept = run / "checkpoints" / (last.name + (".aside" if command[0] == "train" else ""))
    assert kept.stat().st_size == 1000
    if command[0] == "train":
        again = RunFolder(run).load_checkpoint()
        assert [
            key for key in whole if key != "seconds" and not states_equal(whole[key], again[key])
        ] == []
        assert [line["step"] for line in RunFolder(run).read_log()] == [2]


@pytest.mark.parametrize("command", COMMANDS, ids=["sample", "resume"])
def test_a_run_without_an_intact_checkpoint_is_refused(command, run, genlab):
    for path in RunFolder(run).checkpoint_files():
        path.write_bytes(path.read_bytes()[:500])
    assert "there is no other intact checkpoint" in genlab(*command).error


def test_resuming_from_an_earlier_step_sets_later_checkpoints_aside(run, genlab):
    """With keep_checkpoints=1 they would otherwise replace each new one."""
    first, last = RunFolder(run).checkpoint_files()
    last.rename(last.with_name("step_000000099.pt"))
    result = genlab("train", f"resume={first}", "trainer.steps=4", "trainer.keep_checkpoints=1")
    assert result.code == 0, result.err
    assert sorted(p.name for p in first.parent.iterdir()) == [
        "step_000000004.pt",
        "step_000000099.pt.aside",
    ]


def test_a_checkpoint_that_disappears_while_it_is_read_is_skipped(run, monkeypatch):
    """A training process may delete the oldest checkpoint after another process listed it."""
    from genlab.runs import run_folder

    read_checkpoint, last = run_folder.read_checkpoint, RunFolder(run).checkpoint_files()[-1]

    def read_or_disappear(path: Path, **options: object) -> dict:
        if path == last:
            path.rename(path.with_name("step_000000003.pt"))
            raise FileNotFoundError(path)
        return read_checkpoint(path, **options)

    monkeypatch.setattr(run_folder, "read_checkpoint", read_or_disappear)
    assert RunFolder(run).load_checkpoint()["step"] == 2


# --- disks and folders ----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`disk(kilobytes)` mounts a disk of that size, `disk(read_only=True)` remounts it."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(kilobytes: int = 0, *, read_only: bool = False) -> Path:
        options = "remount,ro" if read_only else f"size={kilobytes}k"
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
            capture_output=True,
            check=False,
        )
        if result.returncode:
            pytest.skip("no disk can be mounted here")
        return path

    yield mount
    while os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)


def fill_disk(path: Path, free: int) -> None:
    """Fill a disk, and leave `free` kilobytes."""
    (path / "filler").unlink(missing_ok=True)
    left = os.statvfs(path)
    size = max(0, left.f_bavail * left.f_frsize - 1024 * free)
    (path / "filler").write_bytes(b"\0" * size)


def check_refusal(result: Result) -> str:
    """Return the one line of the error, the last that a training prints."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err and "Exception" not in result.err, result.err
    errors = [line for line in result.err.splitlines() if line.startswith("genlab: ")]
    assert len(errors) == 1 and result.err.splitlines()[-1] == errors[0], result.err
    return errors[0]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "free", [8, 64, *(pytest.param(k, marks=slow) for k in (0, 4, 16, 24, 32, 48, 96, 128))]
)
def test_a_full_disk_loses_nothing(free, disk, genlab, genlab_process):
    """Whatever is being written: one line, and the run resumes from what was saved."""
    path = disk(4096)
    options = (*SMALL, "trainer.save_every=2", "trainer.log_every=1", "trainer.keep_checkpoints=2")
    whole = genlab("train", *options, "trainer.steps=12", f"out={path}/whole")
    assert whole.code == 0, whole.err
    expected = RunFolder(path / "whole").load_checkpoint()
    shutil.rmtree(path / "whole")
    assert genlab("train", *options, "trainer.steps=4", f"out={path}/run").code == 0
    before = RunFolder(path / "run").load_checkpoint()
    fill_disk(path, free)
    # in a process, TensorBoard's thread has a terminal to write its traceback to
    start = genlab_process if free in (16, 48) else genlab
    error = check_refusal(start("train", f"resume={path}/run", "trainer.steps=10000"))
    assert "No space left on device" in error and str(path) in error and "is intact" in error
    assert not list(path.rglob("*.part"))
    after = RunFolder(path / "run").load_checkpoint()
    assert after["step"] >= before["step"]
    (path / "filler").unlink()
    if after["step"] <= 12:
        resumed = genlab("train", f"resume={path}/run", "trainer.steps=12")
        assert resumed.code == 0, resumed.err
        end = RunFolder(path / "run").load_checkpoint()
        keys = expected.keys() - {"seconds", "unlogged_losses"}
        assert [key for key in keys if not states_equal(expected[key], end[key])] == []


@pytest.mark.parametrize("free", [0, 4])
def test_a_full_disk_refuses_a_new_run_and_samples(free, disk, genlab, train_run):
    path = disk(1024)
    fill_disk(path, free)
    for command in (
        ("train", *SMALL, f"out={path}/run"),
        ("sample", f"run={train_run(*SMALL)}", f"output_dir={path}/made"),
    ):
        assert "No space left on device" in check_refusal(genlab(*command))
    assert not list(path.rglob("*.part")) and not list(path.rglob("*.npz"))


@slow
@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_quota_is_treated_like_a_full_disk(limit, run, tmp_path):
    """The system's limit of a file's size stops the checkpoint or the log."""
    before = RunFolder(run).load_checkpoint()
    command = [sys.executable, "-m", "genlab", "train", "resume=run", "trainer.steps=10000"]
    process = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
        timeout=120,
    )
    result = Result(process.returncode, process.stdout, process.stderr)
    assert "File too large" in check_refusal(result)
    assert states_equal(RunFolder(run).load_checkpoint(), before) and not list(run.rglob("*.part"))


def test_a_read_only_run_can_be_sampled_with_output_dir(disk, genlab, run, tmp_path):
    """Without output_dir= a command writes into the run folder."""
    shutil.copytree(run, disk(4096) / "run")
    path = disk(read_only=True)
    for command in (
        ("sample", "n=1", f"run={path}/run"),
        ("train", f"resume={path}/run", "trainer.steps=3"),
        ("train", *SMALL, f"out={path}/new"),
    ):
        assert "Read-only file system" in genlab(*command).error
    assert genlab("sample", "n=1", f"run={path}/run", "output_dir=made").code == 0
    assert len(list((tmp_path / "made").iterdir())) == 3


# --- two processes --------------------------------------------------------------------------------


@slow
def test_a_run_can_be_sampled_while_it_is_trained(run, genlab, tmp_path):
    """A second training in the folder is refused; other commands work meanwhile."""
    command = [
        sys.executable,
        "-m",
        "genlab",
        "train",
        "resume=run",
        "trainer.steps=100000000",
        "trainer.keep_checkpoints=1",
    ]
    training = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while RunFolder(run).checkpoint_files()[-1].name == "step_000000002.pt":
            assert training.poll() is None, training.stderr.read()
            time.sleep(0.05)
        assert (
            "another process is training" in genlab("train", "resume=run", "trainer.steps=3").error
        )
        for seed in range(5):
            result = genlab("sample", "run=run", "n=1", f"seed={seed}")
            assert result.code == 0 and not result.err, result.err
        assert genlab("info", "run=run").code == 0
    finally:
        training.terminate()
        training.communicate()
    assert training.returncode == 143


def test_a_folder_is_created_by_one_of_two_processes(tmp_path):
    """The second of two runs in the same folder does not change the first."""
    path = tmp_path / "run"
    path.mkdir()
    lock_file = RunFolder(path).lock()
    with pytest.raises(UserError, match="another process is training"):
        RunFolder.create(path, config="second", metadata={})
    assert not (path / "config.yaml").exists()
    lock_file.close()


# --- clocks ---------------------------------------------------------------------------------------


def test_the_latest_run_is_the_last_created_even_if_the_clock_changes(
    tmp_path, monkeypatch, genlab
):
    monkeypatch.chdir(tmp_path)
    for name in ("before", "ahead", "after"):
        run = RunFolder.create(
            Path("outputs") / name, config="", metadata={"model": name, "dataset": "digits"}
        )
        if name == "ahead":  # created while the clock was a year ahead
            later = time.time() + 365 * 86400
            os.utime(run.path / "run.json", (later, later))
        assert RunFolder.latest_run().path == run.path


def test_a_clock_that_jumps_does_not_affect_training_time(run, genlab, monkeypatch):
    """trainer.max_minutes and the rates use a monotonic clock."""
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(calls) * 1e8)
    result = genlab("train", "resume=run", "trainer.steps=30", "trainer.max_minutes=5")
    assert result.code == 0 and "trained 30 steps in " in result.out, result.err
    assert all(
        line["items_per_s"] > 0 for line in RunFolder(run).read_log() if "items_per_s" in line
    )


# --- changed data ---------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 40 gray images of 8×8."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = random.Random(0)
    for i in range(40):
        Image.frombytes("L", (8, 8), rng.randbytes(64)).save(folder / f"{i:02d}.png")
    return folder


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, 20),
    "another size": lambda path: Image.new("L", (9, 9)).save(path),
}
FOLDER = ("dataset=image_folder", "dataset.cache_in_memory=false", "trainer.save_every=5")


@pytest.mark.parametrize(
    ("change", "workers"), [("deleted", 0), ("truncated", 1), ("another size", 0)]
)
def test_an_image_that_changes_during_training_is_named(
    change, workers, photos, genlab, tmp_path, monkeypatch
):
    save_checkpoint = RunFolder.save_checkpoint

    def change_image_and_save(self: RunFolder, state: dict, **options: object) -> Path:
        if state["step"] == 5 and (photos / "07.png").exists():
            CHANGES[change](photos / "07.png")
        return save_checkpoint(self, state, **options)

    monkeypatch.setattr(RunFolder, "save_checkpoint", change_image_and_save)
    options = (
        *SMALL,
        *FOLDER,
        f"dataset.path={photos}",
        f"dataset.workers={workers}",
        "trainer.steps=200",
        "out=run",
    )
    error = check_refusal(genlab("train", *options))
    assert "07.png has changed since the run began" in error
    assert RunFolder(tmp_path / "run").load_checkpoint()["step"] >= 5
    if change == "deleted":
        assert "image_folder in" in check_refusal(genlab("train", "resume=run"))


def test_resume_verifies_the_data(photos, genlab, tmp_path):
    """A folder may move; other images are refused, unless the resume names the folder."""
    options = ("dataset=image_folder", "trainer.steps=4", f"dataset.path={photos}", "out=run")
    assert genlab("train", *SMALL, *options).code == 0
    moved = photos.rename(tmp_path / "moved")
    result = genlab(
        "train", "resume=run", "trainer.steps=6", "dataset=image_folder", f"dataset.path={moved}"
    )
    assert result.code == 0 and "not what the run began with" not in result.err, result.err
    Image.new("L", (8, 8)).save(moved / "new.png")
    moved.rename(photos)
    assert "33 train items instead of 32" in check_refusal(
        genlab("train", "resume=run", "trainer.steps=8")
    )
    result = genlab(
        "train", "resume=run", "trainer.steps=8", "dataset=image_folder", f"dataset.path={photos}"
    )
    assert result.code == 0 and result.err.count("not what the run began with") == 1, result.err


def test_an_edited_table_is_refused(genlab, tmp_path):
    rows = [f"{i},{i * i % 7},{i % 2}" for i in range(50)]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    options = (
        "model=gmm",
        "dataset=table",
        "dataset.path=table.csv",
        "trainer.steps=2",
        "trainer.preview_every=0",
        "device=cpu",
    )
    assert genlab("train", *options, "out=run").code == 0
    before = (tmp_path / "run" / "checkpoints" / "step_000000002.pt").read_bytes()
    (tmp_path / "table.csv").write_text("\n".join(rows).replace("7,0,1", "7,5,1"))
    assert "table.csv is not what the run began with" in check_refusal(
        genlab("train", "resume=run", "trainer.steps=4")
    )
    assert (tmp_path / "run" / "checkpoints" / "step_000000002.pt").read_bytes() == before


def test_an_incomplete_log_is_read_and_a_damaged_one_refused(run, genlab):
    stats = run / "stats.jsonl"
    whole = stats.read_bytes()
    stats.write_bytes(whole + b'{"step": 3, "lo')
    assert RunFolder(run).read_log() == [json.loads(line) for line in whole.splitlines()]
    stats.write_bytes(b"\0\0\n" + whole)
    assert (
        "stats.jsonl, line 1 is damaged" in genlab("train", "resume=run", "trainer.steps=3").error
    )
    assert torch.equal(torch.tensor(RunFolder(run).load_checkpoint()["step"]), torch.tensor(2))
