"""Untrusted files are refused in one line, in bounded time and memory, without any effect."""

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
from genlab.sweeps import plan_trust, squeue
from genlab.sweeps.job_state import MAX_ERROR_LINES
from genlab.sweeps.sweep_folder import SweepFolder

SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
SAMPLE, RESUME = ("sample", "run=run", "n=1"), ("train", "resume=run", "trainer.steps=3")
EVALUATE = ("evaluate", "samples=made", "dataset=digits", "metrics=[energy_distance]")
SECRET = "a-word-that-must-not-be-printed"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"


class Payload:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch marker",)


SYSTEM = {"_target_": "os.system", "command": "touch marker"}
WRITES = {"_target_": "genlab.fileio.atomic_write", "path": "marker", "data": "x"}


# --- changes that make a file hostile -------------------------------------------------------------


def state(**changes: object) -> Callable[[Path], None]:
    """Return a change of the newest checkpoint's state."""

    def change(run: Path) -> None:
        [checkpoint] = (run / "checkpoints").glob("step_*.pt")
        torch.save({**torch.load(checkpoint, weights_only=True), **changes}, checkpoint)

    return change


def checkpoint(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a change that replaces the checkpoint by another file."""
    return lambda run: make(next((run / "checkpoints").glob("step_*.pt")))


def write_zip_bomb(path: Path) -> None:
    """Compress a checkpoint whose largest part is 16 MB of zeros to some kilobytes."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, bytes(2**24) if name.endswith("data/0") else data)


def overlap_parts(path: Path) -> None:
    """List the largest part of a checkpoint a hundred times."""
    with zipfile.ZipFile(path, "a") as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
        parts.filelist += [largest] * 100
        parts._didModify = True


def config(**changes: object) -> Callable[[Path], None]:
    """Return a change of the run's config.yaml, by keys with __ for dots."""

    def change(run: Path) -> None:
        content = yaml.safe_load((run / "config.yaml").read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = content
            for part in parents:
                node = node[part]
            node[last] = value
        (run / "config.yaml").write_text(yaml.safe_dump(content))

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    """Return a change that replaces the content of a file."""
    return lambda run: (run / name).write_text(content)


def info(**changes: object) -> Callable[[Path], None]:
    """Return a change of the run's run.json."""
    return lambda run: (run / "run.json").write_text(
        json.dumps({**json.loads((run / "run.json").read_text()), **changes})
    )


def spec(**changes: object) -> Callable[[Path], None]:
    """Return a change of the spec in run.json."""

    def change(run: Path) -> None:
        content = json.loads((run / "run.json").read_text())["spec"]
        info(spec={**content, **changes})(run)

    return change


def link(name: str, target: str) -> Callable[[Path], None]:
    """Return a change that makes something in the run a link out of it."""

    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        path.symlink_to((run.parent / target).resolve())

    return change


def write_yaml_bomb(run: Path) -> None:
    """Write a YAML file of nine lines that expands to a billion values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text("\n".join(lines) + "\n" + yaml.safe_dump(config))


def save_array(array: np.ndarray, name: str = "") -> Callable[[Path], None]:
    """Return a function that saves an array as .npy, or by its name in a .npz."""

    def write(path: Path) -> None:
        with open(path, "wb") as f:
            np.savez(f, **{name: array}) if name else np.save(f, array, allow_pickle=True)

    return write


def save_samples(**arrays: object) -> Callable[[Path], None]:
    """Return a change that saves 20 images with other arrays as a .npz beside the run."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8)
    contents = {"x": pixels, **arrays}

    def write(path: Path) -> None:
        with open(path, "wb") as f:
            np.savez(f, **{name: np.asarray(array) for name, array in contents.items()})

    return file(write)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png_bomb(path: Path) -> None:
    """Write a small PNG that unpacks to 60,000 × 60,000 pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(10**5)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b""))


def write_npy(path: Path, shape: str, data: bytes = b"", kind: str = "<f8") -> None:
    """Write a .npy file with any header."""
    with open(path, "wb") as f:
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)


def write_npz_bomb(path: Path) -> None:
    """Write a .npz that claims to have ten parts of four gigabytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(4))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        for i in range(10):
            parts.writestr(f"{i}.npy", buffer.getvalue())
        for part in parts.filelist:
            part.file_size = 2**32 - 2


def file(write: Callable[[Path], None], name: str = "made") -> Callable[[Path], None]:
    """Return a change that writes a file beside the run."""
    return lambda run: write(run.parent / name)


def folder(write: Callable[[Path], None], name: str = "0.png") -> Callable[[Path], None]:
    """Return a change that creates a folder beside the run with one file in it."""

    def change(run: Path) -> None:
        (run.parent / "made").mkdir()
        write(run.parent / "made" / name)

    return change


def captions(entry: object) -> Callable[[Path], None]:
    """Return a change that creates a folder of one image with captions."""

    def change(run: Path) -> None:
        (run.parent / "made").mkdir()
        Image.new("L", (8, 8)).save(run.parent / "made" / "0.png")
        Image.new("L", (8, 8)).save(run.parent / "outside.png")
        (run.parent / "made" / "metadata.jsonl").write_text(json.dumps(entry))

    return change


def write_postscript(path: Path) -> None:
    """Write PostScript, which Pillow passes to Ghostscript whatever its file name."""
    body = "(marker) (w) file closefile\nshowpage"
    path.write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{body}\n%%EOF\n"
    )


def link_outside(path: Path) -> None:
    """Create a link to an image outside of the folder."""
    Image.new("L", (8, 8)).save(path.parent.parent / "private.png")
    path.symlink_to(path.parent.parent / "private.png")


def train_on(name: str, *more: str, path: str = "made") -> tuple[str, ...]:
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


def write_mnist_bomb(run: Path) -> None:
    """Write an image file of MNIST whose header claims 2³² × 2³² pixels."""
    raw = run.parent / "made" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)


Case = tuple[str, Callable[[Path], object], tuple[str, ...], tuple[str, ...]]


def both(name: str, change: Callable[[Path], object], *messages: str) -> list[Case]:
    """Return a case for sampling and one for resuming."""
    return [(f"{name}: {c[0]}", change, c, messages) for c in (SAMPLE, RESUME)]


# (name, change, command, parts of the message)
HOSTILE: list[Case] = [
    # checkpoints
    *both("a payload", state(model=Payload()), "is not a checkpoint of genlab"),
    *both(
        "a payload deep inside",
        state(optimizers={"model": [{"x": (Payload(),)}]}),
        "is not a checkpoint of genlab",
    ),
    *both(
        "a pickle",
        checkpoint(lambda p: p.write_bytes(pickle.dumps(Payload()))),
        "truncated or unreadable",
    ),
    (
        "an old pickle",
        checkpoint(
            lambda p: torch.save({"step": Payload()}, p, _use_new_zipfile_serialization=False)
        ),
        SAMPLE,
        (),
    ),
    (
        "a script",
        checkpoint(lambda p: torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(p))),
        SAMPLE,
        ("unreadable",),
    ),
    ("a zip bomb", checkpoint(write_zip_bomb), SAMPLE, ("unpacks to more than its size",)),
    ("overlapping parts", checkpoint(overlap_parts), SAMPLE, ("unpacks to more than its size",)),
    (
        "expanded weights",
        state(model={"w": torch.zeros(1).expand(10**12)}, ema=None),
        SAMPLE,
        ("is unreadable: its model 'w' is one number expanded to many",),
    ),
    *both("a step of words", state(step="1"), "no valid step"),
    *both("a weight of words", state(model={"encoder": "x"}, ema=None), "do not belong together"),
    ("losses of words", state(unlogged_losses=["x"]), RESUME, ("no valid unlogged_losses",)),
    # config.yaml
    *both("os.system", config(model=SYSTEM), "os.system", "trusted_packages="),
    *both(
        "a builtin",
        config(model__beta={"_target_": "builtins.eval", "source": "open('marker','w')"}),
        "builtins.eval",
    ),
    (
        "through torch",
        config(optimizer={**SYSTEM, "_target_": "torch.optim.os.system"}),
        RESUME,
        ("torch.optim.os",),
    ),
    (
        "torch.hub",
        config(model={"_target_": "torch.hub.load", "repo_or_dir": "x", "source": "local"}),
        SAMPLE,
        ("torch.hub",),
    ),
    (
        "through genlab",
        config(model={**SYSTEM, "_target_": "genlab.config.instantiate.os.system"}),
        SAMPLE,
        ("os.system",),
    ),
    *both("in a list", config(model__hidden=[4, SYSTEM]), "hidden[1]._target_"),
    (
        "in a nested mapping",
        config(model__beta={"a": [{"b": {"c": SYSTEM}}]}),
        SAMPLE,
        ("beta.a[0].b.c",),
    ),
    ("a partial", config(model__hidden={**SYSTEM, "_partial_": True}), SAMPLE, ("os.system",)),
    (
        "a writer of genlab's",
        config(model__beta=WRITES),
        SAMPLE,
        ("atomic_write is not a network",),
    ),
    (
        "a writer, in a list, in part",
        config(model__hidden=[{**WRITES, "_partial_": True}]),
        RESUME,
        ("not a network",),
    ),
    (
        "a maker of genlab's",
        config(model__beta={"_target_": "genlab.config.instantiate.instantiate", "target": SYSTEM}),
        SAMPLE,
        ("os.system",),
    ),
    (
        "a locator",
        config(
            model__beta={
                "_target_": "genlab.config.instantiate.import_target",
                "node": {},
                "where": "",
            }
        ),
        SAMPLE,
        ("not a network",),
    ),
    (
        "a download",
        config(
            dataset={
                "_target_": "genlab.data.text.download_file",
                "url": "file:///etc/passwd",
                "sha256": "",
                "file": "marker",
            }
        ),
        RESUME,
        ("is not a data set",),
    ),
    ("arguments by place", config(model___args_=["touch marker"]), SAMPLE, ("'model._args_'",)),
    (
        "a target of another spelling",
        config(model___Target_="os.system"),
        SAMPLE,
        ("'model._Target_'",),
    ),
    (
        "a target of words and numbers",
        config(model___target_=["os.system"]),
        SAMPLE,
        ("model._target_",),
    ),
    (
        "a decoded target",
        config(model="${oc.decode:'{_target_: os.system, command: touch marker}'}"),
        SAMPLE,
        ("no section `model`",),
    ),
    (
        "an interpolated target",
        config(model___target_="${more.target}", more={"target": "os.system"}),
        SAMPLE,
        ("more.target",),
    ),
    (
        "the environment as an option",
        config(model__beta="${oc.env:GENLAB_SECRET}"),
        SAMPLE,
        ("${oc.env:GENLAB_SECRET}",),
    ),
    (
        "the environment as a path",
        config(dataset__root="${oc.env:GENLAB_SECRET}"),
        RESUME,
        ("dataset.root=",),
    ),
    (
        "a resolver of genlab's",
        config(seed="${genlab.folder:../..,marker}"),
        RESUME,
        ("seed=${genlab.folder",),
    ),
    (
        "a tag",
        text("config.yaml", "model: !!python/object/apply:os.system [touch marker]"),
        SAMPLE,
        ("config.yaml",),
    ),
    (
        "a name by tag",
        text("config.yaml", "model: !!python/name:os.system"),
        RESUME,
        ("config.yaml",),
    ),
    *both("a YAML bomb", write_yaml_bomb, "YAML alias"),
    ("deep YAML", text("config.yaml", "model: " + "[" * 5_000), SAMPLE, ("config.yaml",)),
    ("long YAML", text("config.yaml", "model: [" + "x, " * 200_000 + "]"), SAMPLE, ("more than",)),
    ("a date that is none", text("config.yaml", "model: 2020-99-99"), SAMPLE, ("config.yaml",)),
    ("no mapping", text("config.yaml", "just words"), SAMPLE, ("not contain a mapping",)),
    ("no text", lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), SAMPLE, ("UTF-8",)),
    (
        "a codec to be trained",
        config(codec={"run": None, "train": ["model._target_=os.system"]}),
        RESUME,
        ("codec",),
    ),
    (
        "a trainer by its path",
        config(trainer__name="os.system"),
        RESUME,
        ("trainer.name=os.system",),
    ),
    ("a trainer that is a list", config(trainer__name=["vae"]), RESUME, ("does not exist",)),
    ("pixels of 10⁹ a side", config(dataset__size=10**9), RESUME, ("out of memory",)),
    # run.json
    ("a shape of 10⁹", spec(shape=[10**9]), SAMPLE, ("more than its checkpoint can fill",)),
    ("a shape of 10¹²", spec(shape=[10**6, 10**6]), SAMPLE, ("spec is not valid",)),
    ("a shape of words", spec(shape="abc"), SAMPLE, ("spec is not valid",)),
    ("10¹² classes", spec(num_classes=10**12, shape=[10**5]), SAMPLE, ()),
    ("a name for the terminal", info(model=ESCAPE), SAMPLE, ("its model is not",)),
    (
        "an option for the terminal",
        config(model={"_target_": ESCAPE}),
        SAMPLE,
        ("trusted_packages=",),
    ),
    ("deep JSON", text("run.json", "[" * 100_000), SAMPLE, ("run.json",)),
    ("a long number", text("run.json", '{"seed": ' + "9" * 10_000 + "}"), SAMPLE, ("run.json",)),
    ("no object", text("run.json", "[1]"), RESUME, ("not contain a JSON object",)),
    # links out of a run
    ("a lock that is a link", link(".lock", "precious"), RESUME, ("is a link out of the run",)),
    ("samples that are a link", link("samples", "."), SAMPLE, ("is a link out of the run",)),
    (
        "a log that is a link",
        link("stats.jsonl", "precious"),
        RESUME,
        ("is a link out of the run",),
    ),
    # samples and directions
    ("an object array", file(save_array(np.array([Payload()]))), EVALUATE, ("plain numbers",)),
    (
        "objects in a .npz",
        file(save_array(np.array([Payload()], object), "x")),
        EVALUATE,
        ("plain numbers",),
    ),
    (
        "a header of 10¹² numbers",
        file(lambda p: write_npy(p, "(1000000000000,)")),
        EVALUATE,
        ("more than the file has",),
    ),
    (
        "a header that is a program",
        file(lambda p: write_npy(p, "__import__('os').system('touch marker')")),
        EVALUATE,
        (),
    ),
    ("a deep header", file(lambda p: write_npy(p, "(" * 9000)), EVALUATE, ()),
    ("an array bomb", file(write_npz_bomb), EVALUATE, ("half of this machine's memory",)),
    (
        "structured numbers",
        file(save_array(np.zeros(3, [("a", "f4")]))),
        EVALUATE,
        ("plain numbers",),
    ),
    *(
        (f"labels that are {name}", save_samples(y=labels), EVALUATE, (message,))
        for name, labels, message in (
            ("NaN", [np.nan] * 20, "y[0] is nan, which is not the number of a class (0 to 9)"),
            ("fractional", [0.5] * 20, "y[0] is 0.5"),
            ("negative", [0] * 19 + [-1], "y[19] is -1"),
            ("too large", [10] * 20, "y[0] is 10"),
            ("infinite", [np.inf] * 20, "y[0] is inf"),
            ("beyond 64 bits", np.full(20, 2**64 - 1, np.uint64), "is too large"),
            ("too few", [0], "there are 20 samples"),
            ("complex", np.zeros(20, complex), "plain numbers"),
            ("dates", np.zeros(20, "M8[s]"), "plain numbers"),
        )
    ),
    (
        "pixels of 128 bits",
        save_samples(x=np.zeros((20, 1, 8, 8), np.longdouble)),
        EVALUATE,
        ("float128",),
    ),
    (
        "pixels of 64 bits",
        save_samples(x=np.full((20, 1, 8, 8), 2**64 - 1, np.uint64)),
        EVALUATE,
        ("too large",),
    ),
    (
        "a side of no pixels",
        save_samples(x=np.zeros((20, 1, 0, 8))),
        EVALUATE,
        ("does not contain samples",),
    ),
    (
        "a shape of truth values",
        file(lambda p: write_npy(p, "(True,)", bytes(8))),
        EVALUATE,
        ("more than the file has",),
    ),
    ("a named pipe of samples", file(os.mkfifo), EVALUATE, ("made is a named pipe",)),
    ("a named pipe as a sample", folder(os.mkfifo), EVALUATE, ("no image in that folder",)),
    ("a loop of samples", file(lambda p: p.symlink_to(p.name)), EVALUATE, ("no such file",)),
    (
        "a named pipe as a mask",
        file(os.mkfifo),
        ("inpaint", "run=run", "mask=made", "n=1"),
        ("made",),
    ),
    (
        "a named pipe as a direction",
        file(os.mkfifo),
        ("project", "run=run", "edit=made", "n=1", "steps=1"),
        ("made",),
    ),
    (
        "a direction that is not finite",
        file(save_array(np.full(2, np.nan), "direction")),
        ("project", "run=run", "edit=made", "n=1", "steps=1"),
        ("not finite",),
    ),
    ("a PNG bomb of samples", folder(write_png_bomb), EVALUATE, ("limit",)),
    ("PostScript as a sample", folder(write_postscript), EVALUATE, ("0.png",)),
    ("a sample that is a link", folder(link_outside), EVALUATE, ("is a link to outside of",)),
    (
        "a name for the terminal in a folder",
        folder(lambda p: p.write_bytes(b"x"), f"{ESCAPE[:8]}.png"),
        EVALUATE,
        ("unreadable image",),
    ),
    (
        "a direction with objects",
        file(save_array(np.array([Payload()], object), "direction")),
        ("project", "run=run", "edit=made", "n=1", "steps=1"),
        ("plain numbers",),
    ),
    (
        "a mask that is a bomb",
        file(write_png_bomb),
        ("inpaint", "run=run", "mask=made", "n=1"),
        ("limit",),
    ),
    (
        "an image that is a bomb",
        file(write_png_bomb),
        ("project", "run=run", "images=made", "steps=1"),
        ("images=made",),
    ),
    # data sets
    ("a folder of bombs", folder(write_png_bomb), train_on("image_folder"), ("no image is left",)),
    (
        "a bomb where none is skipped",
        folder(write_png_bomb),
        train_on("image_folder", "dataset.strict=true"),
        ("limit",),
    ),
    (
        "a caption's image outside",
        captions({"file_name": "../outside.png", "text": "x"}),
        train_on("captioned_folder"),
        ("is not a file in",),
    ),
    (
        "a caption's image anywhere",
        captions({"file_name": "/etc/passwd", "text": "x"}),
        train_on("captioned_folder"),
        ("is not a file in",),
    ),
    (
        "a caption of numbers",
        captions({"file_name": "0.png", "text": 3}),
        train_on("captioned_folder"),
        ("metadata.jsonl, line 1",),
    ),
    (
        "a caption's image of numbers",
        captions({"file_name": 3, "text": "x"}),
        train_on("captioned_folder"),
        ("metadata.jsonl, line 1",),
    ),
    (
        "a caption's zero byte",
        captions({"file_name": "a\0.png", "text": "x"}),
        train_on("captioned_folder"),
        ("zero byte",),
    ),
    (
        "captions in Latin-1",
        folder(
            lambda p: p.write_bytes('{"file_name": "0.png", "text": "é"}'.encode("latin-1")),
            "metadata.jsonl",
        ),
        train_on("captioned_folder"),
        ("is not UTF-8",),
    ),
    (
        "captions that are a named pipe",
        folder(os.mkfifo, "metadata.jsonl"),
        train_on("captioned_folder"),
        ("metadata.jsonl",),
    ),
    (
        "captions that are a private file",
        folder(lambda p: p.symlink_to(p.parent.parent / "precious"), "metadata.jsonl"),
        train_on("captioned_folder"),
        ("line 1: it is not",),
    ),
    ("a table that is a named pipe", file(os.mkfifo), train_on("table"), ("made is a named pipe",)),
    (
        "a table that is a loop",
        file(lambda p: p.symlink_to(p.name)),
        train_on("table"),
        ("no such file",),
    ),
    (
        "a text that is a named pipe",
        file(os.mkfifo),
        ("train", "model=gpt_text", "dataset=text", "dataset.path=made", "out=new"),
        ("no such file or folder",),
    ),
    (
        "a cell of 200,000 characters",
        file(lambda p: p.write_text(f"1,{'2' * 200_000}\n")),
        train_on("table"),
        ("made",),
    ),
    (
        "a row of 5,000,000 characters",
        file(lambda p: p.write_text("1," * 2_500_000)),
        train_on("table"),
        ("row 1",),
    ),
    (
        "a table of objects",
        file(save_array(np.array([Payload()], object)), "made.npy"),
        train_on("table", path="made.npy"),
        ("plain numbers",),
    ),
    (
        "an image file of 2³² pixels a side",
        write_mnist_bomb,
        ("train", "dataset=mnist", "dataset.root=made", "trainer.steps=1"),
        ("damaged",),
    ),
]


@pytest.mark.parametrize(
    ("change", "command", "messages"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_a_hostile_file_is_refused_without_effect(
    change, command, messages, train_run, genlab, tmp_path, monkeypatch
):
    monkeypatch.setenv("GENLAB_SECRET", SECRET)
    (tmp_path / "precious").write_text("kept")
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    change(run)
    before = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    began = time.process_time()  # wall time would include tests that run at the same time
    result = genlab(*command)
    assert time.process_time() - began < 10
    line = result.error
    for message in messages:
        assert message in line
    assert line.isprintable() and len(line) < 1000
    assert SECRET not in result.out + result.err
    assert not list(tmp_path.rglob("marker")) and (tmp_path / "precious").read_text() == "kept"
    assert {path for path in tmp_path.rglob("*") if path.name != ".lock"} == before


# --- sweeps ---------------------------------------------------------------------------------------

UNSAFE_OVERRIDES = [
    "--config-dir=confs",
    "-cd",
    "--config-name=x",
    "hydra.launcher.setup=[touch marker]",
    "hydra.launcher.python=/tmp/x",
    "hydra.launcher.additional_parameters={wrap:x}",
    "+hydra.callbacks.x._target_=os.system",
    "hydra.launcher._target_=os.system",
    "hydra.run.dir=/home",
    "hydra.searchpath=[file:///tmp]",
    "hydra.job.env_set.PATH=/tmp",
    "hydra/callbacks=x",
    "hydra@x=y",
    "model._target_=mine.Mine",
    "+x={_target_:os.system,command:touch marker}",
    "trusted_packages=[os]",
    "out=/home/me",
    "resume=/home/me/run",
    "seed=${oc.env:SECRET}",
    "hydra.launcher.partition='a\n#SBATCH --wrap=x'",
    "hydra.launcher.setup",
    "a" * 5000,
    ESCAPE,
]
SAFE_OVERRIDES = [
    "model=vae,dcgan",
    "seed=range(5)",
    "trainer.steps=100",
    "hydra/launcher=slurm",
    "hydra.launcher.partition=gpu",
    "hydra.launcher.mem_gb=16",
    "hydra.sweep.dir=here",
    "+regularizer=r1",
    "model.hidden=[3,4]",
    "dataset@dataset.base=mnist",
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=20",
    "hydra.sweeper.params.optimizer.lr=interval(1e-4,1e-2)",
]


@pytest.mark.parametrize("word", UNSAFE_OVERRIDES)
def test_an_untrusted_plan_with_unsafe_overrides_is_refused(word, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    for plan in (
        {"command": ["train", *SAFE_OVERRIDES, word], "cwd": "/", "jobs": [["seed=0"]]},
        {"command": ["train", *SAFE_OVERRIDES], "cwd": "/", "jobs": [["seed=0"], ["seed=1", word]]},
    ):
        with pytest.raises(UserError, match="is not a sweep that you started"):
            plan_trust.refuse_untrusted_plan(plan, tmp_path)
        plan_trust.remember_trusted_plan({**plan, "cwd": "/elsewhere"})
        with pytest.raises(UserError, match="is not a sweep that you started"):
            plan_trust.refuse_untrusted_plan(plan, tmp_path)
        plan_trust.remember_trusted_plan(plan)
        plan_trust.refuse_untrusted_plan(plan, tmp_path)


def test_an_untrusted_plan_with_safe_overrides_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    plan_trust.refuse_untrusted_plan(
        {"command": ["train", *SAFE_OVERRIDES], "cwd": "/", "jobs": [["seed=0"], ["seed=1"]]},
        tmp_path,
    )


INVALID_PLANS = [
    "[1]",
    "{",
    "{}",
    '{"command": "rm", "cwd": "/", "jobs": []}',
    '{"command": [], "cwd": "/", "jobs": [1]}',
]
INVALID_PLANS += ['{"command": [1], "cwd": "/", "jobs": []}', "[" * 10_000]


@pytest.mark.parametrize("text", INVALID_PLANS)
def test_an_invalid_plan_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match="plan.json is unreadable"):
        SweepFolder.open(tmp_path).read_plan()


def job(**changes: object) -> Callable[[Path], None]:
    """Return a change of a job's state.json."""
    return lambda folder: (folder / "state.json").write_text(
        json.dumps({"status": "failed", "starts": 1, "error": "x", **changes})
    )


def row(**changes: object) -> Callable[[Path], None]:
    """Return a change that writes a record with one row."""
    content = {
        "metric": "fid",
        "name": "fid",
        "unit": "",
        "tag": "",
        "value": 1.0,
        "better": "lower",
        **changes,
    }
    record = {"metrics": [content], "absent": {}, "settings": {}, "step": 2}
    return lambda folder: (folder / "metrics.json").write_text(json.dumps(record))


def in_sweep(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a change of the sweep instead of its job."""
    return lambda job: change(job.parent)


def move_plan(sweep: Path) -> None:
    """Replace the plan by a link to a file outside."""
    (sweep / "plan.json").rename(sweep.parent / "plan")
    (sweep / "plan.json").symlink_to(sweep.parent / "plan")


def link_log(sweep: Path) -> None:
    """Create a log that is a link to a file outside."""
    (sweep / ".submitit" / "7").mkdir(parents=True)
    (sweep / ".submitit" / "7" / "7_0_log.err").symlink_to(sweep.parent / "precious")


LOG = '{"step": 1, "seconds": 1.0, "loss": 0.5}\n'
STATUS, BEST = ("status",), ("best",)


def status_and_best(name: str, change: Callable[[Path], object], *messages: str) -> list[Case]:
    """Return a case for `genlab sweep status` and one for `genlab sweep best`."""
    return [(f"{name}: {c[0]}", change, c, messages) for c in (STATUS, BEST)]


HOSTILE_SWEEPS: list[Case] = [
    # state.json
    ("an error of numbers", job(error=5), STATUS, ("0/state.json", "its error")),
    ("a status for the terminal", job(status=ESCAPE), STATUS, ("0/state.json", "its status")),
    ("a status that is a list", job(status=["done"]), STATUS, ("its status",)),
    ("a time of numbers", job(since=3), STATUS, ("its since",)),
    ("a time for the terminal", job(since=ESCAPE), STATUS, ("its since",)),
    ("a machine for the terminal", job(host=ESCAPE), STATUS, ("its host",)),
    ("starts of words", job(starts="x"), STATUS, ("its starts",)),
    ("an id that is a path", job(slurm="../../made"), STATUS, ("its slurm",)),
    ("a result of words", job(status="done", result={"loss": ESCAPE}), STATUS, ("its result",)),
    (
        "a state that is a list",
        text("state.json", "[1]"),
        STATUS,
        ("0/state.json", "does not contain a JSON object"),
    ),
    ("a deep state", text("state.json", "[" * 100_000), STATUS, ("0/state.json",)),
    ("a submission that is a path", text("submitted", "../../made"), STATUS, ("0/submitted",)),
    (
        "a submission that is not text",
        lambda job: (job / "submitted").write_bytes(b"\xff"),
        STATUS,
        ("0/submitted",),
    ),
    # what a run has logged, and its config
    *status_and_best(
        "a list as a line", text("stats.jsonl", LOG + "[1]\n"), "0/stats.jsonl, line 2"
    ),
    *status_and_best(
        "a step of words", text("stats.jsonl", '{"step": "x"}\n'), "0/stats.jsonl, line 1"
    ),
    *status_and_best(
        "an evaluation of words",
        text("stats.jsonl", '{"step": 1, "evaluation": "x"}\n'),
        "0/stats.jsonl",
        "evaluation",
    ),
    (
        "a config without a trainer",
        text("config.yaml", "model: {}\n"),
        STATUS,
        ("0/config.yaml", "trainer"),
    ),
    (
        "a config without steps",
        text("config.yaml", "trainer: {}\n"),
        STATUS,
        ("0/config.yaml", "trainer.steps"),
    ),
    (
        "steps of words",
        text("config.yaml", "trainer: {steps: x}\n"),
        STATUS,
        ("0/config.yaml", "trainer.steps"),
    ),
    (
        "a config that is a YAML bomb",
        text("config.yaml", "a: &a [x]\ntrainer: {steps: *a}\n"),
        STATUS,
        ("YAML alias",),
    ),
    # metrics.json
    ("a record that is none", text("metrics.json", "{"), BEST, ("0/metrics.json",)),
    (
        "a record without numbers",
        text("metrics.json", "{}"),
        BEST,
        ("0/metrics.json", "genlab evaluate"),
    ),
    ("a number of words", row(value="x"), BEST, ("0/metrics.json", "genlab evaluate")),
    ("a name of numbers", row(name=5), BEST, ("0/metrics.json", "genlab evaluate")),
    # links out of a sweep
    *status_and_best(
        "a state that is a link",
        link("state.json", "../precious"),
        "0/state.json is a link out of the sweep",
    ),
    *status_and_best(
        "a job that is a link", in_sweep(link("0", "../precious")), "s/0 is a link out of the sweep"
    ),
    *status_and_best(
        "a plan that is a link", in_sweep(move_plan), "plan.json is a link out of the sweep"
    ),
    (
        "a log that is a link",
        in_sweep(link_log),
        STATUS,
        ("7_0_log.err is a link out of the sweep",),
    ),
    (
        "logs that are a link",
        in_sweep(link(".submitit", "..")),
        STATUS,
        (".submitit is a link out of the sweep",),
    ),
    (
        "a link in a sweep to be resumed",
        link("stats.jsonl", "../precious"),
        ("resume",),
        ("0/stats.jsonl is a link out of the sweep",),
    ),
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of one job, which failed."""
    folder = tmp_path / "s" / "0"
    folder.mkdir(parents=True)
    plan = {
        "command": ["train", "-m", "seed=0"],
        "cwd": str(tmp_path),
        "sweeper": "basic",
        "jobs": [["seed=0"]],
    }
    (folder.parent / "plan.json").write_text(json.dumps(plan))
    (folder / "config.yaml").write_text("trainer: {steps: 2}\n")
    (folder / "stats.jsonl").write_text(LOG)
    job()(folder)
    (tmp_path / "precious").write_text("kept")
    return folder.parent


@pytest.mark.parametrize(
    ("change", "verb", "messages"),
    [row[1:] for row in HOSTILE_SWEEPS],
    ids=[row[0] for row in HOSTILE_SWEEPS],
)
def test_a_hostile_sweep_is_refused_in_one_line(change, verb, messages, sweep, genlab, tmp_path):
    change(sweep / "0")
    result = genlab("sweep", *verb, "s")
    for message in messages:
        assert message in result.error
    assert result.error.isprintable() and len(result.error) < 1000 and result.out == ""
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_sweep_prints_no_control_characters(sweep, genlab, monkeypatch):
    """Errors, options, logs and metric names may contain them; indentation is kept."""
    # a squeue without a controller answers after twenty seconds
    monkeypatch.setattr(squeue, "query_slurm_states", lambda ids: None)
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
    assert "[/b]" in best.out and status.out.count("first") == MAX_ERROR_LINES - 2
    for line in (status.out + best.out).split("\n"):
        assert line.isprintable()


def test_links_of_submitit_and_optuna_are_allowed(sweep, genlab):
    """They are absolute, so they point to the old place of a sweep that was moved."""
    (sweep / ".submitit").mkdir()
    for name in (".submitit/0123.pkl", "study.journal.lock"):
        (sweep / name).symlink_to("/somewhere/else")
    (sweep / "1").symlink_to("0")
    assert genlab("sweep", "status", "s").code == 0


def test_the_payload_works(tmp_path, monkeypatch):
    """Without the protection, the payload above would have created the file."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "marker").exists()


@pytest.mark.slow
def test_a_model_must_not_take_more_memory_than_its_checkpoint(train_run, tmp_path):
    """A config that needs 8 GB beside a checkpoint of a few kB allocates nothing."""
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    config(model__hidden=[40_000, 50_000])(run)
    code = (
        "import resource, sys, genlab.cli.main\n"
        "sys.argv = ['genlab', 'sample', 'run=run', 'n=1']\n"
        "try:\n    genlab.cli.main.main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "more than its checkpoint can fill" in result.stderr
    assert int(result.stdout) < 2 * 2**20  # kB
