"""What a machine does to a run: checkpoints cut short, full disks, closed folders, clocks that jump, data that change."""

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
from helpers.recipes import same
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
ASKING = (("sample", "run=run", "n=1"), ("train", "resume=run"))


@pytest.fixture
def run(trained: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a run of two steps with a checkpoint of each."""
    return shutil.copytree(trained(*SMALL, "trainer.save_every=1"), tmp_path / "run")


# --- checkpoints cut short or changed ---------------------------------------------------------------------------------


def test_a_checkpoint_cut_at_any_hundredth_costs_what_came_after_the_one_before(run, capsys):
    first, last = RunFolder(run).steps()
    data, before = last.read_bytes(), RunFolder(run).load(first)
    for percent in range(100):
        last.write_bytes(data[: len(data) * percent // 100])
        state = RunFolder(run).load()
        said = capsys.readouterr().err.splitlines()
        assert same(state, before)
        assert (
            len(said) == 1
            and last.name in said[0]
            and "what was trained after step 1 is lost" in said[0]
        )
        with pytest.raises(
            UserError, match=f"{last.name} is truncated.*the one before it is .*{first.name}"
        ):
            RunFolder(run).load(last)
    last.write_bytes(data)
    assert RunFolder(run).load()["step"] == 2 and not capsys.readouterr().err


def test_no_changed_byte_becomes_a_wrong_weight(run, capsys):
    first, last = RunFolder(run).steps()
    data, states = (
        last.read_bytes(),
        {step: RunFolder(run).load(path) for step, path in ((1, first), (2, last))},
    )
    chance, passed_over = random.Random(0), 0
    for _ in range(100):
        changed = bytearray(data)
        at = chance.randrange(len(data))
        changed[at] ^= 1 << chance.randrange(8)
        last.write_bytes(changed)
        try:
            state = RunFolder(run).load()
        except (
            UserError
        ) as error:  # whole by its checksums, and no state: a name in the directory of parts
            assert last.name in str(error)
            continue
        assert same(state, states[state["step"]])  # padding may change
        passed_over += state["step"] == 1
    capsys.readouterr()
    assert passed_over > 30


@pytest.mark.parametrize("command", ASKING, ids=["sample", "resume"])
def test_a_damaged_newest_checkpoint_is_said_and_kept(command, run, genlab):
    first, last = RunFolder(run).steps()
    whole = RunFolder(run).load()
    last.write_bytes(last.read_bytes()[:1000])
    result = genlab(*command)
    assert result.code == 0, result.err
    said = [line for line in result.err.splitlines() if "is truncated" in line]
    assert len(said) == 1 and last.name in said[0] and f"{first.name} is used instead" in said[0]
    kept = run / "checkpoints" / (last.name + (".aside" if command[0] == "train" else ""))
    assert kept.stat().st_size == 1000
    if command[0] == "train":
        again = RunFolder(run).load()
        assert [key for key in whole if key != "seconds" and not same(whole[key], again[key])] == []
        assert [line["step"] for line in RunFolder(run).history()] == [2]


@pytest.mark.parametrize("command", ASKING, ids=["sample", "resume"])
def test_no_whole_checkpoint_is_refused(command, run, genlab):
    for path in RunFolder(run).steps():
        path.write_bytes(path.read_bytes()[:500])
    assert "there is no other that is whole" in genlab(*command).error


def test_a_run_that_goes_back_keeps_its_own_checkpoints(run, genlab):
    """With trainer.keep=1, a later checkpoint of the way that was left would push out each new one."""
    first, last = RunFolder(run).steps()
    last.rename(last.with_name("step_000000099.pt"))
    result = genlab("train", f"resume={first}", "trainer.steps=4", "trainer.keep=1")
    assert result.code == 0, result.err
    assert sorted(p.name for p in first.parent.iterdir()) == [
        "step_000000004.pt",
        "step_000000099.pt.aside",
    ]


def test_a_checkpoint_that_goes_while_it_is_read_is_no_error(run, monkeypatch):
    """A process that trains drops the oldest checkpoint at any moment, also that which another has just listed."""
    from genlab.runs import checkpoint_io

    read, last = checkpoint_io.read, RunFolder(run).steps()[-1]

    def gone(path: Path, **how: object) -> dict:
        if path == last:
            path.rename(path.with_name("step_000000003.pt"))
            raise FileNotFoundError(path)
        return read(path, **how)

    monkeypatch.setattr(checkpoint_io, "read", gone)
    assert RunFolder(run).load()["step"] == 2


# --- disks and folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`disk(kilobytes)`: a disk of that size, and `disk(read_only=True)` for the same one; where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(kilobytes: int = 0, *, read_only: bool = False) -> Path:
        options = "remount,ro" if read_only else f"size={kilobytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("no disk can be mounted here")
        return place

    yield mounted
    while os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def filled(place: Path, free: int) -> None:
    """Leave this many kilobytes of a disk free."""
    (place / "filler").unlink(missing_ok=True)
    left = os.statvfs(place)
    (place / "filler").write_bytes(b"\0" * max(0, left.f_bavail * left.f_frsize - 1024 * free))


def check_refusal(result: Result) -> str:
    """Return the one line after what training says by itself."""
    assert result.code == 2 and "Traceback" not in result.err and "Exception" not in result.err, (
        result.err
    )
    said = [line for line in result.err.splitlines() if line.startswith("genlab: ")]
    assert len(said) == 1 and result.err.splitlines()[-1] == said[0], result.err
    return said[0]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "free", [8, 64, *(pytest.param(k, marks=slow) for k in (0, 4, 16, 24, 32, 48, 96, 128))]
)
def test_a_full_disk_loses_nothing(free, disk, genlab, genlab_process):
    """Whatever is being written when the disk is full: one line, and the run goes on from what was saved."""
    place = disk(4096)
    options = (*SMALL, "trainer.save_every=2", "trainer.log_every=1", "trainer.keep=2")
    whole = genlab("train", *options, "trainer.steps=12", f"out={place}/whole")
    assert whole.code == 0, whole.err
    expected = RunFolder(place / "whole").load()
    shutil.rmtree(place / "whole")
    assert genlab("train", *options, "trainer.steps=4", f"out={place}/run").code == 0
    before = RunFolder(place / "run").load()
    filled(place, free)
    start = (
        genlab_process if free in (16, 48) else genlab
    )  # whose TensorBoard thread has a terminal to write its traceback to
    said = check_refusal(start("train", f"resume={place}/run", "trainer.steps=10000"))
    assert "No space left on device" in said and str(place) in said and "is whole" in said
    assert not list(place.rglob("*.part"))
    after = RunFolder(place / "run").load()
    assert after["step"] >= before["step"]
    (place / "filler").unlink()
    if after["step"] <= 12:
        again = genlab("train", f"resume={place}/run", "trainer.steps=12")
        assert again.code == 0, again.err
        end = RunFolder(place / "run").load()
        assert [
            k for k in expected if k not in ("seconds", "pending") and not same(expected[k], end[k])
        ] == []


@pytest.mark.parametrize("free", [0, 4])
def test_a_full_disk_refuses_a_new_run_and_an_answer(free, disk, genlab, trained):
    place = disk(1024)
    filled(place, free)
    for command in (
        ("train", *SMALL, f"out={place}/run"),
        ("sample", f"run={trained(*SMALL)}", f"out={place}/made"),
    ):
        assert "No space left on device" in check_refusal(genlab(*command))
    assert not list(place.rglob("*.part")) and not list(place.rglob("*.npz"))


@slow
@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_quota_is_a_full_disk(limit, run, tmp_path):
    """The system's limit of a file's size, which needs no disk of its own, stops the checkpoint or the log."""
    before = RunFolder(run).load()
    command = [sys.executable, "-m", "genlab", "train", "resume=run", "trainer.steps=10000"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), check=False, timeout=120,
    )  # fmt: skip
    assert "File too large" in check_refusal(Result(ended.returncode, ended.stdout, ended.stderr))
    assert same(RunFolder(run).load(), before) and not list(run.rglob("*.part"))


def test_a_read_only_folder(disk, genlab, run, tmp_path):
    """Asked without out= a run must be written to; with it, it need not."""
    shutil.copytree(run, disk(4096) / "run")
    place = disk(read_only=True)
    for command in (("sample", "n=1", f"run={place}/run"), ("train", f"resume={place}/run", "trainer.steps=3"),
                    ("train", *SMALL, f"out={place}/new")):  # fmt: skip
        assert "Read-only file system" in genlab(*command).error
    assert genlab("sample", "n=1", f"run={place}/run", "out=made").code == 0
    assert len(list((tmp_path / "made").iterdir())) == 2


# --- two processes ----------------------------------------------------------------------------------------------------


@slow
def test_one_trains_while_others_ask(run, genlab, tmp_path):
    """A second training in a folder is refused, a second asking is not, however often the checkpoints change."""
    command = [
        sys.executable,
        "-m",
        "genlab",
        "train",
        "resume=run",
        "trainer.steps=100000000",
        "trainer.keep=1",
    ]
    trains = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while RunFolder(run).steps()[-1].name == "step_000000002.pt":
            assert trains.poll() is None, trains.stderr.read()
            time.sleep(0.05)
        assert (
            "another process is training" in genlab("train", "resume=run", "trainer.steps=3").error
        )
        for seed in range(5):
            result = genlab("sample", "run=run", "n=1", f"seed={seed}")
            assert result.code == 0 and not result.err, result.err
        assert genlab("tasks", "run=run").code == 0
    finally:
        trains.terminate()
        trains.communicate()
    assert trains.returncode == 143


def test_a_folder_is_made_by_one_of_two(tmp_path):
    """Of two runs that are to be made in one folder, the second changes nothing of the first."""
    path = tmp_path / "run"
    path.mkdir()
    held = RunFolder(path).lock()
    with pytest.raises(UserError, match="another process is training"):
        RunFolder.create(path, config="second", info={})
    assert not (path / "config.yaml").exists()
    held.close()


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_the_newest_run_is_the_one_made_last_whatever_the_clock_says(tmp_path, monkeypatch, genlab):
    monkeypatch.chdir(tmp_path)
    for name in ("before", "ahead", "after"):
        run = RunFolder.create(
            Path("outputs") / name, config="", info={"model": name, "dataset": "digits"}
        )
        if name == "ahead":  # made while the clock was a year ahead, and then it was set right
            later = time.time() + 365 * 86400
            os.utime(run.path / "run.json", (later, later))
        assert RunFolder.latest().path == run.path


def test_a_clock_that_jumps_changes_no_limit(run, genlab, monkeypatch):
    """trainer.max_time and the rates are of a clock that nobody sets."""
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(calls) * 1e8)
    result = genlab("train", "resume=run", "trainer.steps=30", "trainer.max_time=5")
    assert result.code == 0 and "trained 30 steps in " in result.out, result.err
    assert all(
        line["items_per_s"] > 0 for line in RunFolder(run).history() if "items_per_s" in line
    )


# --- data that change -------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 40 grey images of 8×8."""
    folder = tmp_path / "photos"
    folder.mkdir()
    chance = random.Random(0)
    for i in range(40):
        Image.frombytes("L", (8, 8), chance.randbytes(64)).save(folder / f"{i:02d}.png")
    return folder


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "cut short": lambda path: os.truncate(path, 20),
    "another size": lambda path: Image.new("L", (9, 9)).save(path),
}
FOLDER = ("dataset=image_folder", "dataset.resident=false", "trainer.save_every=5")


@pytest.mark.parametrize(
    ("change", "workers"), [("deleted", 0), ("cut short", 1), ("another size", 0)]
)
def test_an_image_that_changes_while_a_run_streams_is_named(
    change, workers, photos, genlab, tmp_path, monkeypatch
):
    from genlab.runs.run_folder import RunFolder as Folder

    save = Folder.save

    def saved(self: RunFolder, state: dict, **how: object) -> Path:
        if state["step"] == 5 and (photos / "07.png").exists():
            CHANGES[change](photos / "07.png")
        return save(self, state, **how)

    monkeypatch.setattr(Folder, "save", saved)
    options = (
        *SMALL,
        *FOLDER,
        f"dataset.path={photos}",
        f"dataset.workers={workers}",
        "trainer.steps=200",
        "out=run",
    )
    result = genlab("train", *options)
    said = check_refusal(result)
    assert "07.png has changed since the run began" in said
    assert RunFolder(tmp_path / "run").load()["step"] >= 5
    if change == "deleted":
        assert "image_folder in" in check_refusal(genlab("train", "resume=run"))


def test_a_run_knows_its_data_again(photos, genlab, tmp_path):
    """A folder that moved is the same; one with other images is refused, unless it is named anew."""
    options = ("dataset=image_folder", "trainer.steps=4", f"dataset.path={photos}", "out=run")
    assert genlab("train", *SMALL, *options).code == 0
    moved = photos.rename(tmp_path / "moved")
    result = genlab(
        "train", "resume=run", "trainer.steps=6", "dataset=image_folder", f"dataset.path={moved}"
    )
    assert result.code == 0 and "not what the run began with" not in result.err, result.err
    Image.new("L", (8, 8)).save(moved / "new.png")
    moved.rename(photos)
    assert "33 train items for 32" in check_refusal(
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


def test_a_log_cut_short_is_read_and_one_that_is_damaged_is_named(run, genlab):
    stats = run / "stats.jsonl"
    whole = stats.read_bytes()
    stats.write_bytes(whole + b'{"step": 3, "lo')
    assert RunFolder(run).history() == [json.loads(line) for line in whole.splitlines()]
    stats.write_bytes(b"\0\0\n" + whole)
    assert (
        "stats.jsonl, line 1 is damaged" in genlab("train", "resume=run", "trainer.steps=3").error
    )
    assert torch.equal(torch.tensor(RunFolder(run).load()["step"]), torch.tensor(2))
