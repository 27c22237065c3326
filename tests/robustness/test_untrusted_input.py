"""Files from strangers: refused in one line, with nothing in them executed, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genlab.errors import UserError
from genlab.sweeps import trust
from genlab.sweeps.sweep_folder import LINES, SweepFolder

SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
SAMPLE, RESUME = ("sample", "run=run", "n=1"), ("train", "resume=run", "trainer.steps=3")
EVALUATE = ("evaluate", "samples=made", "dataset=digits", "metrics=[energy_distance]")
SECRET = "a-word-that-nobody-should-see"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"


class Payload:
    """Makes a file when it is unpickled with trust."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch marker",)


SYSTEM = {"_target_": "os.system", "command": "touch marker"}
WRITES = {"_target_": "genlab.fileio.write_whole", "path": "marker", "data": "x"}


# --- how a file becomes hostile ----------------------------------------------------------------------------------------


def state(**changes: object) -> Callable[[Path], None]:
    """Return what changes the newest checkpoint's state."""

    def change(run: Path) -> None:
        [checkpoint] = (run / "checkpoints").glob("step_*.pt")
        torch.save({**torch.load(checkpoint, weights_only=True), **changes}, checkpoint)

    return change


def checkpoint(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what puts another file in the place of the checkpoint."""
    return lambda run: make(next((run / "checkpoints").glob("step_*.pt")))


def inflated(path: Path) -> None:
    """Compress a checkpoint whose largest part is sixteen megabytes of zeros: some kilobytes on disk."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, bytes(2**24) if name.endswith("data/0") else data)


def overlapping(path: Path) -> None:
    """Let the directory of a checkpoint name its largest part a hundred times."""
    with zipfile.ZipFile(path, "a") as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
        parts.filelist += [largest] * 100
        parts._didModify = True


def config(**changes: object) -> Callable[[Path], None]:
    """Return what changes the run's config.yaml, by dotted keys."""

    def change(run: Path) -> None:
        own = yaml.safe_load((run / "config.yaml").read_text())
        for key, value in changes.items():
            *above, last = key.split("__")
            node = own
            for part in above:
                node = node[part]
            node[last] = value
        (run / "config.yaml").write_text(yaml.safe_dump(own))

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(content)


def info(**changes: object) -> Callable[[Path], None]:
    """Return what changes the run's run.json."""
    return lambda run: (run / "run.json").write_text(
        json.dumps({**json.loads((run / "run.json").read_text()), **changes})
    )


def spec(**changes: object) -> Callable[[Path], None]:
    return lambda run: info(spec={**json.loads((run / "run.json").read_text())["spec"], **changes})(
        run
    )


def link(name: str, target: str) -> Callable[[Path], None]:
    """Return what makes something in the run a link out of it."""

    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        path.symlink_to((run.parent / target).resolve())

    return change


def many(run: Path) -> None:
    """Write a YAML of nine lines that stands for a thousand million values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    own = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text("\n".join(lines) + "\n" + yaml.safe_dump(own))


def saved(array: np.ndarray, name: str = "") -> Callable[[Path], None]:
    """Return what saves an array as .npy, or by its name in a .npz."""

    def write(path: Path) -> None:
        with open(path, "wb") as f:
            np.savez(f, **{name: array}) if name else np.save(f, array, allow_pickle=True)

    return write


def png(path: Path, width: int, height: int) -> None:
    """Write a small PNG that unpacks to width × height pixels."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )  # noqa: E731
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(10**5))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def huge(path: Path) -> None:
    png(path, 60_000, 60_000)


def array(path: Path, shape: str, data: bytes = b"", kind: str = "<f8") -> None:
    """Write a .npy file with any header."""
    with open(path, "wb") as f:
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)


def bomb(path: Path) -> None:
    """Write a .npz whose directory claims ten parts of four gigabytes."""
    held = io.BytesIO()
    np.save(held, np.zeros(4))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        for i in range(10):
            parts.writestr(f"{i}.npy", held.getvalue())
        for part in parts.filelist:
            part.file_size = 2**32 - 2


def made(make: Callable[[Path], None], name: str = "made") -> Callable[[Path], None]:
    """Return what makes a file beside the run."""
    return lambda run: make(run.parent / name)


def folder(
    make: Callable[[Path], None], name: str = "0.png", where: str = "made"
) -> Callable[[Path], None]:
    """Return what makes a folder beside the run with one file in it."""

    def change(run: Path) -> None:
        (run.parent / where).mkdir()
        make(run.parent / where / name)

    return change


def captions(entry: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run.parent / "made").mkdir()
        Image.new("L", (8, 8)).save(run.parent / "made" / "0.png")
        Image.new("L", (8, 8)).save(run.parent / "outside.png")
        (run.parent / "made" / "metadata.jsonl").write_text(json.dumps(entry))

    return change


def script(path: Path) -> None:
    """Write PostScript, which Pillow hands to Ghostscript whatever its name."""
    body = "(marker) (w) file closefile\nshowpage"
    path.write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{body}\n%%EOF\n"
    )


def outside(path: Path) -> None:
    Image.new("L", (8, 8)).save(path.parent.parent / "private.png")
    path.symlink_to(path.parent.parent / "private.png")


def dataset(name: str, *more: str, path: str = "made") -> tuple[str, ...]:
    model = ("model=gmm",) if name == "table" else SMALL
    return (
        "train",
        *model,
        f"dataset={name}",
        f"dataset.path={path}",
        "trainer.steps=1",
        "device=cpu",
        "out=new",
        *more,
    )


def mnist(run: Path) -> None:
    """Write an image file of MNIST whose head asks for 2³² × 2³² pixels."""
    raw = run.parent / "made" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)


both = lambda name, change, *said: [(f"{name}: {c[0]}", change, c, said) for c in (SAMPLE, RESUME)]  # noqa: E731
HOSTILE: list[tuple[str, Callable[[Path], object], tuple[str, ...], tuple[str, ...]]] = [
    # checkpoints
    *both("a payload", state(model=Payload()), "is no checkpoint of genlab"),
    *both("a payload deep inside", state(optimizers={"model": [{"x": (Payload(),)}]}), "is no checkpoint of genlab"),
    *both("a pickle", checkpoint(lambda p: p.write_bytes(pickle.dumps(Payload()))), "truncated or unreadable"),
    ("an old pickle", checkpoint(lambda p: torch.save({"step": Payload()}, p, _use_new_zipfile_serialization=False)), SAMPLE, ()),
    ("a script", checkpoint(lambda p: torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(p))), SAMPLE, ("unreadable",)),
    ("a zip bomb", checkpoint(inflated), SAMPLE, ("unpacks to more than it holds",)),
    ("overlapping parts", checkpoint(overlapping), SAMPLE, ("unpacks to more than it holds",)),
    ("expanded weights", state(model={"w": torch.zeros(1).expand(10**12)}, ema=None), SAMPLE, ("do not belong together",)),
    *both("a step of words", state(step="1"), "no step as it has"),
    *both("a weight of words", state(model={"encoder": "x"}, ema=None), "do not belong together"),
    ("losses of words", state(pending=["x"]), RESUME, ("no pending as it has",)),
    # config.yaml
    *both("os.system", config(model=SYSTEM), "os.system", "allow="),
    *both("a builtin", config(model__beta={"_target_": "builtins.eval", "source": "open('marker','w')"}), "builtins.eval"),
    ("through torch", config(optimizer={**SYSTEM, "_target_": "torch.optim.os.system"}), RESUME, ("torch.optim.os",)),
    ("torch.hub", config(model={"_target_": "torch.hub.load", "repo_or_dir": "x", "source": "local"}), SAMPLE, ("torch.hub",)),
    ("through genlab", config(model={**SYSTEM, "_target_": "genlab.config.instantiate.os.system"}), SAMPLE, ("os.system",)),
    *both("in a list", config(model__hidden=[4, SYSTEM]), "hidden[1]._target_"),
    ("in a nested mapping", config(model__beta={"a": [{"b": {"c": SYSTEM}}]}), SAMPLE, ("beta.a[0].b.c",)),
    ("a partial", config(model__hidden={**SYSTEM, "_partial_": True}), SAMPLE, ("os.system",)),
    ("a writer of genlab's", config(model__beta=WRITES), SAMPLE, ("write_whole is no network",)),
    ("a writer, in a list, in part", config(model__hidden=[{**WRITES, "_partial_": True}]), RESUME, ("no network",)),
    ("a maker of genlab's", config(model__beta={"_target_": "genlab.config.instantiate.construct", "target": SYSTEM}),
     SAMPLE, ("os.system",)),
    ("a locator", config(model__beta={"_target_": "genlab.config.instantiate.locate", "node": {}, "where": ""}), SAMPLE, ("no network",)),
    ("a download", config(dataset={"_target_": "genlab.data.text.download",
     "url": "file:///etc/passwd", "sha256": "", "file": "marker"}),
     RESUME, ("is no dataset",)),
    ("arguments by place", config(model___args_=["touch marker"]), SAMPLE, ("'model._args_'",)),
    ("a target of another spelling", config(model___Target_="os.system"), SAMPLE, ("'model._Target_'",)),
    ("a target of words and numbers", config(model___target_=["os.system"]), SAMPLE, ("model._target_",)),
    ("a decoded target", config(model="${oc.decode:'{_target_: os.system, command: touch marker}'}"),
     SAMPLE, ("no options of the model",)),
    ("an interpolated target", config(model___target_="${more.target}", more={"target": "os.system"}), SAMPLE, ("more.target",)),
    ("the environment as an option", config(model__beta="${oc.env:GENLAB_SECRET}"), SAMPLE, ("${oc.env:GENLAB_SECRET}",)),
    ("the environment as a path", config(dataset__root="${oc.env:GENLAB_SECRET}"), RESUME, ("'dataset.root'",)),
    ("a resolver of genlab's", config(seed="${genlab.folder:../..,marker}"), RESUME, ("seed=${genlab.folder",)),
    ("a tag", text("config.yaml", "model: !!python/object/apply:os.system [touch marker]"), SAMPLE, ("config.yaml",)),
    ("a name by tag", text("config.yaml", "model: !!python/name:os.system"), RESUME, ("config.yaml",)),
    *both("a YAML bomb", many, "YAML alias"),
    ("deep YAML", text("config.yaml", "model: " + "[" * 5_000), SAMPLE, ("config.yaml",)),
    ("long YAML", text("config.yaml", "model: [" + "x, " * 200_000 + "]"), SAMPLE, ("more than",)),
    ("a date that is none", text("config.yaml", "model: 2020-99-99"), SAMPLE, ("config.yaml",)),
    ("no mapping", text("config.yaml", "just words"), SAMPLE, ("no mapping",)),
    ("no text", lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), SAMPLE, ("UTF-8",)),
    ("a codec to be trained", config(codec={"run": None, "train": ["model._target_=os.system"]}), RESUME, ("codec",)),
    ("a trainer by its path", config(trainer__name="os.system"), RESUME, ("trainer.name=os.system",)),
    # run.json
    ("a shape of 10⁹", spec(shape=[10**9]), SAMPLE, ("more than its checkpoint can fill",)),
    ("a shape of 10¹²", spec(shape=[10**6, 10**6]), SAMPLE, ("spec is none",)),
    ("a shape of words", spec(shape="abc"), SAMPLE, ("spec is none",)),
    ("10¹² classes", spec(classes=10**12, shape=[10**5]), SAMPLE, ()),
    ("a name for the terminal", info(model=ESCAPE), SAMPLE, ("its model is not",)),
    ("an option for the terminal", config(model={"_target_": ESCAPE}), SAMPLE, ("allow=",)),
    ("deep JSON", text("run.json", "[" * 100_000), SAMPLE, ("run.json",)),
    ("a long number", text("run.json", '{"seed": ' + "9" * 10_000 + "}"), SAMPLE, ("run.json",)),
    ("no object", text("run.json", "[1]"), RESUME, ("no JSON object",)),
    # links out of a run
    ("a lock that is a link", link(".lock", "precious"), RESUME, ("is a link out of the run",)),
    ("samples that are a link", link("samples", "."), SAMPLE, ("is a link out of the run",)),
    ("a log that is a link", link("stats.jsonl", "precious"), RESUME, ("is a link out of the run",)),
    # samples and directions
    ("an object array", made(saved(np.array([Payload()]))), EVALUATE, ("plain numbers",)),
    ("objects in a .npz", made(saved(np.array([Payload()], object), "x")), EVALUATE, ("plain numbers",)),
    ("a header of 10¹² numbers", made(lambda p: array(p, "(1000000000000,)")), EVALUATE, ("more than the file holds",)),
    ("a header that is a program", made(lambda p: array(p, "__import__('os').system('touch marker')")), EVALUATE, ()),
    ("a deep header", made(lambda p: array(p, "(" * 9000)), EVALUATE, ()),
    ("an array bomb", made(bomb), EVALUATE, ("half of this machine's memory",)),
    ("structured numbers", made(saved(np.zeros(3, [("a", "f4")]))), EVALUATE, ("plain numbers",)),
    ("a PNG bomb of samples", folder(huge), EVALUATE, ("limit",)),
    ("PostScript as a sample", folder(script), EVALUATE, ("0.png",)),
    ("a sample that is a link", folder(outside), EVALUATE, ("is a link out of",)),
    ("a name for the terminal in a folder", folder(lambda p: p.write_bytes(b"x"), f"{ESCAPE[:8]}.png"),
     EVALUATE, ("unreadable image",)),
    ("a direction with objects", made(saved(np.array([Payload()], object), "direction")),
     ("project", "run=run", "edit=made", "n=1", "steps=1"), ("plain numbers",)),
    ("a mask that is a bomb", made(huge), ("inpaint", "run=run", "mask=made", "n=1"), ("limit",)),
    ("an image that is a bomb", made(huge), ("project", "run=run", "images=made", "steps=1"), ("images=made",)),
    # data sets
    ("a folder of bombs", folder(huge), dataset("image_folder"), ("none is left",)),
    ("a bomb where none is skipped", folder(huge), dataset("image_folder", "dataset.strict=true"), ("limit",)),
    ("a caption's image outside", captions({"file_name": "../outside.png", "text": "x"}),
     dataset("captioned_folder"), ("is no file in",)),
    ("a caption's image anywhere", captions({"file_name": "/etc/passwd", "text": "x"}),
     dataset("captioned_folder"), ("is no file in",)),
    ("a caption of numbers", captions({"file_name": "0.png", "text": 3}),
     dataset("captioned_folder"), ("metadata.jsonl, line 1",)),
    ("a caption's image of numbers", captions({"file_name": 3, "text": "x"}),
     dataset("captioned_folder"), ("metadata.jsonl, line 1",)),
    ("a cell of 200,000 characters", made(lambda p: p.write_text(f"1,{'2' * 200_000}\n")), dataset("table"), ("made",)),
    ("a row of 5,000,000 characters", made(lambda p: p.write_text("1," * 2_500_000)), dataset("table"), ("row 1",)),
    ("a table of objects", made(saved(np.array([Payload()], object)), "made.npy"),
     dataset("table", path="made.npy"), ("plain numbers",)),
    ("an image file of 2³² pixels a side", mnist,
     ("train", "dataset=mnist", "dataset.root=made", "trainer.steps=1"), ("damaged",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "command", "said"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_refused_in_one_line_with_nothing_done(
    change, command, said, trained, genlab, tmp_path, monkeypatch
):
    monkeypatch.setenv("GENLAB_SECRET", SECRET)
    (tmp_path / "precious").write_text("kept")
    run = shutil.copytree(trained(*SMALL), tmp_path / "run")
    change(run)
    before = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    began = time.process_time()  # the clock on the wall would measure the tests beside this one
    result = genlab(*command)
    assert time.process_time() - began < 10
    line = result.error
    for fragment in said:
        assert fragment in line
    assert line.isprintable() and len(line) < 1000
    assert SECRET not in result.out + result.err
    assert not list(tmp_path.rglob("marker")) and (tmp_path / "precious").read_text() == "kept"
    assert {path for path in tmp_path.rglob("*") if path.name != ".lock"} == before


# --- sweeps -----------------------------------------------------------------------------------------------------------

STRANGERS = [
    "--config-dir=confs", "-cd", "--config-name=x", "hydra.launcher.setup=[touch marker]", "hydra.launcher.python=/tmp/x",
    "hydra.launcher.additional_parameters={wrap:x}", "+hydra.callbacks.x._target_=os.system", "hydra.launcher._target_=os.system",
    "hydra.run.dir=/home", "hydra.searchpath=[file:///tmp]", "hydra.job.env_set.PATH=/tmp", "hydra/callbacks=x", "hydra@x=y",
    "model._target_=mine.Mine", "+x={_target_:os.system,command:touch marker}", "allow=[os]", "out=/home/me",
    "resume=/home/me/run", "seed=${oc.env:SECRET}", "hydra.launcher.partition='a\n#SBATCH --wrap=x'",
    "hydra.launcher.setup", "a" * 5000, ESCAPE,
]  # fmt: skip
USUAL = [
    "model=vae,dcgan", "seed=range(5)", "trainer.steps=100", "hydra/launcher=slurm", "hydra.launcher.partition=gpu",
    "hydra.launcher.mem_gb=16", "hydra.sweep.dir=here", "+regulariser=r1", "model.hidden=[3,4]", "dataset@dataset.of=mnist", "-m",
    "hydra/sweeper=optuna", "hydra.sweeper.n_trials=20", "hydra.sweeper.params.optimizer.lr=interval(1e-4,1e-2)",
]  # fmt: skip


@pytest.mark.parametrize("word", STRANGERS)
def test_a_strangers_plan_sets_options_and_nothing_else(word, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    for plan in (
        {"command": ["train", *USUAL, word], "cwd": "/", "jobs": [["seed=0"]]},
        {"command": ["train", *USUAL], "cwd": "/", "jobs": [["seed=0"], ["seed=1", word]]},
    ):
        with pytest.raises(UserError, match="is no sweep that you began"):
            trust.check(plan, tmp_path)
        trust.remember({**plan, "cwd": "/elsewhere"})
        with pytest.raises(UserError, match="is no sweep that you began"):
            trust.check(plan, tmp_path)
        trust.remember(plan)
        trust.check(plan, tmp_path)


def test_a_usual_plan_goes_on_whoever_gave_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    trust.check(
        {"command": ["train", *USUAL], "cwd": "/", "jobs": [["seed=0"], ["seed=1"]]}, tmp_path
    )


NO_PLANS = [
    "[1]",
    "{",
    "{}",
    '{"command": "rm", "cwd": "/", "jobs": []}',
    '{"command": [], "cwd": "/", "jobs": [1]}',
]
NO_PLANS += ['{"command": [1], "cwd": "/", "jobs": []}', "[" * 10_000]


@pytest.mark.parametrize("text", NO_PLANS)
def test_a_plan_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match="plan.json is unreadable"):
        SweepFolder.find(tmp_path).plan()


def job(**changes: object) -> Callable[[Path], None]:
    """Return what changes a job's state.json."""
    return lambda own: (own / "state.json").write_text(
        json.dumps({"status": "failed", "starts": 1, "error": "x", **changes})
    )


def row(**changes: object) -> Callable[[Path], None]:
    """Return what writes a record of numbers with one changed row."""
    own = {
        "metric": "fid",
        "name": "fid",
        "unit": "",
        "tag": "",
        "value": 1.0,
        "better": "lower",
        **changes,
    }
    record = {"metrics": [own], "absent": {}, "settings": {}, "step": 2}
    return lambda folder: (folder / "metrics.json").write_text(json.dumps(record))


def above(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what changes the sweep in place of its job."""
    return lambda own: make(own.parent)


def elsewhere(sweep: Path) -> None:
    (sweep / "plan.json").rename(sweep.parent / "plan")
    (sweep / "plan.json").symlink_to(sweep.parent / "plan")


def logged(sweep: Path) -> None:
    (sweep / ".submitit" / "7").mkdir(parents=True)
    (sweep / ".submitit" / "7" / "7_0_log.err").symlink_to(sweep.parent / "precious")


LOGGED = '{"step": 1, "seconds": 1.0, "loss": 0.5}\n'
STATUS, BEST = ("status",), ("best",)
every = lambda name, change, *said: [(f"{name}: {c[0]}", change, c, said) for c in (STATUS, BEST)]  # noqa: E731
SWEPT: list[tuple[str, Callable[[Path], object], tuple[str, ...], tuple[str, ...]]] = [
    # state.json
    ("an error of numbers", job(error=5), STATUS, ("0/state.json", "its error")),
    ("a status of its own", job(status=ESCAPE), STATUS, ("0/state.json", "its status")),
    ("a status that is a list", job(status=["done"]), STATUS, ("its status",)),
    ("a time of numbers", job(since=3), STATUS, ("its since",)),
    ("a time for the terminal", job(since=ESCAPE), STATUS, ("its since",)),
    ("a machine for the terminal", job(host=ESCAPE), STATUS, ("its host",)),
    ("starts of words", job(starts="x"), STATUS, ("its starts",)),
    ("an id that is a path", job(slurm="../../made"), STATUS, ("its slurm",)),
    ("a result of words", job(status="done", result={"loss": ESCAPE}), STATUS, ("its result",)),
    ("a state that is a list", text("state.json", "[1]"), STATUS, ("0/state.json", "no JSON object")),
    ("a deep state", text("state.json", "[" * 100_000), STATUS, ("0/state.json",)),
    ("a submission that is a path", text("submitted", "../../made"), STATUS, ("0/submitted",)),
    ("a submission that is no text", lambda own: (own / "submitted").write_bytes(b"\xff"), STATUS, ("0/submitted",)),
    # what a run has logged, and its config
    *every("a list as a line", text("stats.jsonl", LOGGED + "[1]\n"), "0/stats.jsonl, line 2"),
    *every("a step of words", text("stats.jsonl", '{"step": "x"}\n'), "0/stats.jsonl, line 1"),
    *every("an evaluation of words", text("stats.jsonl", '{"step": 1, "evaluation": "x"}\n'), "0/stats.jsonl", "evaluation"),
    ("a config without a trainer", text("config.yaml", "model: {}\n"), STATUS, ("0/config.yaml", "trainer")),
    ("a config without steps", text("config.yaml", "trainer: {}\n"), STATUS, ("0/config.yaml", "trainer.steps")),
    ("steps of words", text("config.yaml", "trainer: {steps: x}\n"), STATUS, ("0/config.yaml", "trainer.steps")),
    ("a config that is a YAML bomb", text("config.yaml", "a: &a [x]\ntrainer: {steps: *a}\n"), STATUS, ("YAML alias",)),
    # metrics.json
    ("a record that is none", text("metrics.json", "{"), BEST, ("0/metrics.json",)),
    ("a record without numbers", text("metrics.json", "{}"), BEST, ("0/metrics.json", "genlab evaluate")),
    ("a number of words", row(value="x"), BEST, ("0/metrics.json", "genlab evaluate")),
    ("a name of numbers", row(name=5), BEST, ("0/metrics.json", "genlab evaluate")),
    # links out of a sweep
    *every("a state that is a link", link("state.json", "../precious"), "0/state.json is a link out of the sweep"),
    *every("a job that is a link", above(link("0", "../precious")), "s/0 is a link out of the sweep"),
    *every("a plan that is a link", above(elsewhere), "plan.json is a link out of the sweep"),
    ("a log that is a link", above(logged), STATUS, ("7_0_log.err is a link out of the sweep",)),
    ("logs that are a link", above(link(".submitit", "..")), STATUS, (".submitit is a link out of the sweep",)),
    ("a link, to go on with", link("stats.jsonl", "../precious"), ("resume",), ("0/stats.jsonl is a link out of the sweep",)),
]  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of one job, which failed."""
    own = tmp_path / "s" / "0"
    own.mkdir(parents=True)
    plan = {
        "command": ["train", "-m", "seed=0"],
        "cwd": str(tmp_path),
        "sweeper": "basic",
        "jobs": [["seed=0"]],
    }
    (own.parent / "plan.json").write_text(json.dumps(plan))
    (own / "config.yaml").write_text("trainer: {steps: 2}\n")
    (own / "stats.jsonl").write_text(LOGGED)
    job()(own)
    (tmp_path / "precious").write_text("kept")
    return own.parent


@pytest.mark.parametrize(
    ("change", "verb", "said"), [row[1:] for row in SWEPT], ids=[row[0] for row in SWEPT]
)
def test_a_sweep_is_refused_in_one_line(change, verb, said, sweep, genlab, tmp_path):
    change(sweep / "0")
    result = genlab("sweep", *verb, "s")
    for fragment in said:
        assert fragment in result.error
    assert result.error.isprintable() and len(result.error) < 1000 and result.out == ""
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_sweep_prints_nothing_that_a_terminal_acts_on(sweep, genlab):
    """Whatever an error, an option, a log or a metric's name has in it; how far in a line stands is kept."""
    plan = json.loads((sweep / "plan.json").read_text())
    (sweep / "plan.json").write_text(json.dumps({**plan, "jobs": [[f"a={ESCAPE}"], ["a=2"]]}))
    job(error="first\n" * 10 + f"    raise {ESCAPE}\rlast")(sweep / "0")
    (sweep / "1").mkdir()
    job(status="lost", error="", slurm="7")(sweep / "1")
    (sweep / "1" / "submitted").write_text("7")
    log = sweep / ".submitit" / "7" / "7_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("x" * 100_000 + f"\nkilled {ESCAPE}\n")
    row(name=f"[/b]{ESCAPE}")(sweep / "0")
    (sweep / "0" / "stats.jsonl").write_text(
        json.dumps({"step": 1, "seconds": 1.0, ESCAPE: 0.5}) + "\n"
    )
    status = genlab("sweep", "status", "s")
    best = genlab("sweep", "best", "s", f"metric=[/b]{ESCAPE}")
    assert status.code == best.code == 0, status.err + best.err
    assert (
        "      raise \N{REPLACEMENT CHARACTER}]0;owned" in status.out and "  killed " in status.out
    )
    assert "[/b]" in best.out and status.out.count("first") == LINES - 2
    for line in (status.out + best.out).split("\n"):
        assert line.isprintable()


def test_a_sweeps_own_links_are_no_links_out_of_it(sweep, genlab):
    """Submitit and optuna make theirs absolute, so that they point to the old place of a sweep that was moved."""
    (sweep / ".submitit").mkdir()
    for name in (".submitit/0123.pkl", "study.journal.lock"):
        (sweep / name).symlink_to("/somewhere/else")
    (sweep / "1").symlink_to("0")
    assert genlab("sweep", "status", "s").code == 0


def test_the_payloads_are_real(tmp_path, monkeypatch):
    """What is refused above would have made the file."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "marker").exists()


@pytest.mark.slow
def test_a_model_may_not_take_more_memory_than_its_checkpoint(trained, tmp_path):
    """Measured: a config that asks for 8 GB beside a checkpoint of a few kB leaves the process as small as it was."""
    run = shutil.copytree(trained(*SMALL), tmp_path / "run")
    config(model__hidden=[40_000, 50_000])(run)
    code = (
        "import resource, sys, genlab.cli.main\n"
        "sys.argv = ['genlab', 'sample', 'run=run', 'n=1']\n"
        "try:\n    genlab.cli.main.main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (
        "more than its checkpoint can fill" in ended.stderr and int(ended.stdout) < 2 * 2**20
    )  # kB
