"""Random changes of checkpoints and of the files of runs: each loads, or is refused in one line.

The changes are seeded. A part of them is in the quick suite.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipes import compose_config
from PIL import Image
from torch import Tensor

from genlab.builders import factory
from genlab.comparison.run_records import read_metrics_records
from genlab.data.captions import parse_metadata_line, read_utf8_text
from genlab.data.image_decoding import DECODE_ERRORS, read_image
from genlab.data.npy_files import read_numpy_arrays
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.sweeps.job_state import read_state, submitted_job_id
from genlab.sweeps.launches import Launch
from genlab.sweeps.leases import read_newest_lease
from genlab.sweeps.sweep_folder import SweepFolder

MAX_CPU_S = 5.0
NUM_STATES, NUM_FILES, NUM_COMMANDS = 1000, 1200, 60
SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
RUNS = {
    "adam": SMALL,
    "ema": (*SMALL, "trainer.ema_decay=0.9", "optimizer=adamw"),
    "sgd": (*SMALL, "optimizer=sgd"),
    "gan": ("model=gan", "model.hidden=[4]"),
}


class TookTooLongError(BaseException):
    """A reader used more than MAX_CPU_S of the processor, or waited for as many minutes."""


@pytest.fixture
def limited() -> Iterator[Callable[..., None]]:
    """A function that starts the time of the next trial."""

    def interrupt(*_: object) -> None:
        raise TookTooLongError

    before = [signal.signal(s, interrupt) for s in (signal.SIGPROF, signal.SIGALRM)]

    def restart(factor: float = 1) -> None:
        signal.setitimer(signal.ITIMER_PROF, factor * MAX_CPU_S)
        signal.setitimer(signal.ITIMER_REAL, 60 * MAX_CPU_S)  # a busy machine is slow

    yield restart
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for name, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
        signal.signal(name, handler)


# --- checkpoints ----------------------------------------------------------------------------------

TENSORS: list[Callable[[Tensor], Any]] = [
    lambda t: torch.zeros(1),
    lambda t: torch.zeros(()),
    lambda t: torch.zeros(0),
    lambda t: t[None],
    lambda t: t.double(),
    lambda t: t.bfloat16(),
    lambda t: t.int(),
    lambda t: t.bool(),
    lambda t: t.to(torch.complex64),
    lambda t: torch.full_like(t.float(), torch.nan),
    lambda t: torch.full_like(t.float(), torch.inf),
    lambda t: torch.full_like(t.float(), 3e38),
    lambda t: -t.float() - 1,
    lambda t: torch.zeros(1, dtype=t.dtype).expand(t.shape or (3,)),
    lambda t: t.to("meta"),
    lambda t: t.float().to_sparse() if t.ndim else t.int(),
    lambda t: torch.zeros(tuple(side + 1 for side in t.shape)),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: torch.zeros(4096).as_strided(t.shape, [1] * t.ndim) if t.numel() < 4096 else None,
    lambda t: torch.nn.Parameter(t.float()),
    lambda t: t.tolist() if t.numel() < 4096 else None,
    lambda t: None,
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**63, 2**64, 2**2000, -(2**63), 1e400, float("nan"), -0.5, 1e-320),
    *("x", "", "\x1b[2J", [], {}, [1, 2], {"a": 1}, (0.9,), (2.0, 3.0), b"x", torch.zeros(3)),
    *(torch.Size([1]), torch.float32, {1, 2}, OrderedDict(a=1), torch.device("cpu"), [[]] * 3),
]
KEYS: list[Any] = ["new", -1, 99, "\x1b[2J", 2**40, True, ""]


def walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and the value of everything in nested containers."""
    if path:
        yield path, node
    if isinstance(node, dict):
        for key in list(node):
            yield from walk(node[key], (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from walk(value, (*path, i))


def mutate_state(state: dict[str, Any], rng: random.Random) -> str:
    """Make one random change of a state in place; return what it was."""
    nodes = list(walk(state))
    tensors = [(path, node) for path, node in nodes if isinstance(node, Tensor)]
    others = [(path, node) for path, node in nodes if not isinstance(node, Tensor)]
    mappings = [(path, node) for path, node in nodes if isinstance(node, dict) and node]
    kind = rng.choice(["tensor"] * 5 + ["value"] * 3 + ["delete", "add"])
    if kind in ("tensor", "value"):
        path, node = rng.choice((tensors if kind == "tensor" else others) or nodes)
        is_tensor = kind == "tensor" and isinstance(node, Tensor)
        value = rng.choice(TENSORS)(node) if is_tensor else copy.deepcopy(rng.choice(VALUES))
        parent = state
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        return f"{path} = {str(value)[:60]}"
    path, node = rng.choice(mappings or [((), state)])
    if kind == "delete":
        key = rng.choice(list(node))
        del node[key]
    else:
        key = rng.choice(KEYS)
        node[key] = rng.choice([torch.zeros(2), 1, {}, None])
    return f"{kind} {key!r} at {path}"


@pytest.fixture
def load(train_run, tmp_path: Path) -> Callable[[str, Path], Any]:
    """`load(name, checkpoint)` reads a checkpoint and loads it into the trainer of that run."""
    trainers: dict[str, Any] = {}
    for name, options in RUNS.items():
        config = compose_config(*options, "trainer.batch_size=8", "device=cpu", "out=x")
        dataset = factory.make_dataset(config)
        device = factory.make_device(config["device"], seed=0)
        model = factory.make_model(config, dataset.spec)
        trainers[name] = factory.make_trainer(config, model, device), dataset

    def load_and_step(name: str, path: Path) -> Any:
        trainer, dataset = copy.deepcopy(trainers[name])
        trainer.load_state_dict(RunFolder(path.parent.parent).load_checkpoint(path))
        trainer.options.steps = trainer.global_step + 1
        trainer.train_step(trainer.train_batches(dataset))  # the kernels use what was loaded

    return load_and_step


def check_states(
    n: int, seed: int, load: Callable, train_run: Callable, tmp: Path, limited
) -> dict:
    """Load n random changes of checkpoints; return how many loaded and how many were refused."""
    rng, counts = random.Random(seed), {"loaded": 0, "refused": 0}
    folders = {}
    for name, options in RUNS.items():
        folders[name] = shutil.copytree(train_run(*options), tmp / f"{name}{seed}")
    states = {
        name: torch.load(folder / "checkpoints" / "step_000000002.pt", weights_only=True)
        for name, folder in folders.items()
    }
    for i in range(n):
        name = list(RUNS)[i % len(RUNS)]
        state = copy.deepcopy(states[name])
        changes = [mutate_state(state, rng) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
        path = folders[name] / "checkpoints" / "step_000000002.pt"
        torch.save(state, path)
        limited()
        try:
            load(name, path)
            counts["loaded"] += 1
        except UserError as error:
            assert len(str(error)) < 2000 and str(error).isprintable(), changes
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, trial {i}: {changes}") from error
    return counts


def test_random_changes_of_checkpoints_load_or_are_refused(load, train_run, tmp_path, limited):
    counts = check_states(60, 0, load, train_run, tmp_path, limited)
    assert counts["refused"] > 20


@pytest.mark.slow
def test_a_thousand_changes_of_checkpoints_load_or_are_refused(load, train_run, tmp_path, limited):
    counts = check_states(NUM_STATES, 1, load, train_run, tmp_path, limited)
    print(f"changed checkpoints: {counts}")
    assert counts["refused"] > NUM_STATES / 3


# --- the bytes and the values of other files ------------------------------------------------------


def read_captions(folder: Path) -> None:
    for line in read_utf8_text(folder / "metadata.jsonl").splitlines():
        if line.strip():
            parse_metadata_line(folder, line, "metadata.jsonl")


READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": lambda run: RunFolder(run).read_config("model", "dataset", "trainer"),
    "run.json": lambda run: (RunFolder(run).metadata(), RunFolder(run).spec()),
    "data.json": lambda run: RunFolder(run).data_summary(),
    "stats.jsonl": lambda run: (RunFolder(run).read_log(), RunFolder(run).final_metrics()),
    "metrics.json": read_metrics_records,
    "state.json": read_state,
    "submitted": submitted_job_id,
    "plan.json": lambda run: SweepFolder(run).read_plan(),
    ".workers/launch.json": Launch.read,
    ".lease.1": read_newest_lease,
    "checkpoints/step_000000002.pt": lambda run: RunFolder(run).load_checkpoint(),
    "x.npz": lambda run: read_numpy_arrays(run / "x.npz", "samples=x.npz"),
    "x.npy": lambda run: read_numpy_arrays(run / "x.npy", "samples=x.npy"),
    "x.png": lambda run: read_image(run / "x.png", 1, {}),
    "metadata.jsonl": read_captions,
}
JSON_VALUES: list[Any] = [
    *(None, True, -1, 0, 2**70, 1e300, float("nan"), "x", "", "\x1b[2J", "${x}", "../..", [], {}),
    *([[1]], {"a": {"b": 1}}, ["x"] * 5, "9" * 400, "a\0b", "\ud800"),
]


@pytest.fixture
def run(train_run, tmp_path: Path) -> Path:
    """A folder with a file of every kind."""
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    row = {"metric": "fid", "name": "fid", "unit": "", "tag": "", "value": 1.0, "conditions": {}}
    contents: dict[str, Any] = {
        "metrics.json": {"metrics": [row], "absent": {"x": "y"}, "settings": {}, "step": 2},
        "state.json": {"status": "failed", "starts": 1, "error": "x", "result": {"loss": 1.0}},
        "plan.json": {"command": ["train"], "cwd": "/", "sweeper": "basic", "jobs": [["seed=0"]]},
        ".workers/launch.json": {"tries": 3, "jobs": {"0": [1, 0]}},
        ".lease.1": {"worker": "w", "host": "h"},
        "metadata.jsonl": {"file_name": "x.png", "text": "a red square"},
    }
    (run / ".workers").mkdir()
    for name, content in contents.items():
        (run / name).write_text(json.dumps(content) + "\n")
    (run / "submitted").write_text("12_3")
    np.savez(run / "x.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.arange(2))
    np.save(run / "x.npy", np.zeros((2, 3)))
    Image.new("L", (8, 8)).save(run / "x.png")
    return run


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them changed, added, repeated or cut."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        at = rng.randrange(len(changed)) if changed else 0
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at:at] = rng.choice([b"\0", b"\xff", b"[", b"{", b'"', b"\x1b[2J", b"9" * 50])
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 50)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randrange(200)]
        elif rng.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def mutate_json(text: str, rng: random.Random) -> str:
    """Return a JSON file, or the lines of one, with values that are replaced or removed."""
    content = (
        [json.loads(line) for line in text.splitlines()] if "\n{" in text else json.loads(text)
    )
    for _ in range(rng.choice([1, 1, 3])):
        nodes = list(walk([content] if isinstance(content, dict) else content))[1:]
        if not nodes:
            break
        path, _ = rng.choice(nodes)
        node = [content] if isinstance(content, dict) else content
        for key in path[:-1]:
            node = node[key]
        if isinstance(node, dict) and rng.random() < 0.3:
            node.pop(path[-1])
        else:
            node[path[-1]] = copy.deepcopy(rng.choice(JSON_VALUES))
    lines = content if isinstance(content, list) else [content]
    return "".join(json.dumps(line) + "\n" for line in lines)


def check_files(n: int, seed: int, run: Path, limited: Callable[[], None]) -> dict[str, int]:
    """Read n random changes of the files of a folder; return how many were refused, by file."""
    rng = random.Random(seed)
    refused = dict.fromkeys(READERS, 0)
    originals = {name: (run / name).read_bytes() for name in READERS}
    for i in range(n):
        name = list(READERS)[i % len(READERS)]
        data = originals[name]
        is_json = name.endswith((".json", ".jsonl"))
        if is_json and rng.random() < 0.6:
            data = mutate_json(data.decode(), rng).encode("utf-8", "surrogatepass")
        else:
            data = mutate_bytes(data, rng)
        (run / name).write_bytes(data)
        limited()
        try:
            READERS[name](run)
        except UserError:
            refused[name] += 1
        except DECODE_ERRORS as error:
            if name != "x.png":
                raise AssertionError(f"{name}, trial {i}: {data[:500]!r}") from error
            refused[name] += 1
        except Exception as error:
            raise AssertionError(f"{name}, trial {i}: {data[:500]!r}") from error
        finally:
            (run / name).write_bytes(originals[name])
    return refused


def test_random_changes_of_files_are_read_or_refused(run, limited):
    check_files(90, 0, run, limited)


@pytest.mark.slow
def test_a_thousand_changes_of_files_are_read_or_refused(run, limited):
    refused = check_files(NUM_FILES, 1, run, limited)
    print(f"changed files that were refused: {refused}")
    assert sum(refused.values()) > NUM_FILES / 4


@pytest.mark.slow
def test_commands_on_changed_files_end_in_one_line(run, genlab, tmp_path, limited):
    """The same changes, seen by whole commands."""
    rng = random.Random(2)
    names = [*list(READERS)[:5], "checkpoints/step_000000002.pt"]
    commands = (
        ("sample", "run=run", "n=1"),
        ("train", "resume=run", "trainer.steps=3"),
        ("compare", "run", "metrics=[]"),
        ("info", "run=run"),
    )
    codes: dict[int, int] = {}
    for i in range(NUM_COMMANDS):
        work = tmp_path / str(i)
        shutil.copytree(run, work / "run")
        path = work / "run" / names[i % len(names)]
        if path.suffix in (".json", ".jsonl") and i % 2:
            path.write_text(mutate_json(path.read_text(), rng), errors="replace")
        else:
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        limited(4)  # a command also imports what it needs
        result = genlab(*rng.choice(commands), cwd=work)
        assert result.code in (0, 1, 2) and "Traceback" not in result.err, (
            path,
            result.err[-2000:],
        )
        codes[result.code] = codes.get(result.code, 0) + 1
    print(f"commands on changed files by exit code: {codes}")
