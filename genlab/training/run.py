"""The run folder: all that any task needs, written so that a kill at any moment leaves it whole."""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path
from typing import IO, Any

from genlab.errors import UserError

OUTPUTS = Path("outputs")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even if the power fails."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


class RunFolder:
    """A run's files: config.yaml, run.json, checkpoints/, tensorboard/, stats.jsonl, samples/, reals.png."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.stats = path / "stats.jsonl"

    # --- finding and making -----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, *, config: str, info: dict[str, Any]) -> RunFolder:
        """Make a new run folder.

        Raises:
            UserError: the folder holds a run already.
        """
        run = cls(path)
        run.refuse_if_there()
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(path / "config.yaml", config.encode())
        write_whole(path / "run.json", json.dumps(info, indent=2).encode())  # last: from now on it is a run
        return run

    def refuse_if_there(self) -> None:
        """Refuse to train anew into a folder that holds a run.

        Raises:
            UserError: it does; says how to go on with it.
        """
        if (self.path / "run.json").exists():
            raise UserError(
                f"{self.path} holds a run already; continue it with `genlab train resume={self.path}`, or choose another out="
            )

    @classmethod
    def find(cls, where: str | None) -> tuple[RunFolder, Path | None]:
        """Return the run that `where` names, and the checkpoint if it names one.

        Args:
            where: a run folder, a checkpoint file, "latest", "latest:<model>", or None for the newest run.

        Raises:
            UserError: there is no such run.
        """
        where = None if where is None else str(where)  # a folder's name may look like a number
        if where is None or where == "latest" or where.startswith("latest:"):
            return cls.latest((where or "").partition(":")[2]), None
        path = Path(where)
        if path.is_file() and path.suffix == ".pt":
            run, checkpoint = cls(path.parent.parent), path
        else:
            run, checkpoint = cls(path), None
        if not path.exists():
            raise UserError(f"run={where}: there is no such folder or checkpoint file")
        if not (run.path / "run.json").exists():
            raise UserError(f"run={where} is no run: {run.path} has no run.json; give a folder that `genlab train` made")
        return run, checkpoint

    @classmethod
    def latest(cls, model: str = "") -> RunFolder:
        """Return the newest run under outputs/, of the recipe `model` if given."""
        found = sorted(OUTPUTS.glob("**/run.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in found:
            if not model or cls(path.parent).info().get("model") == model:
                return cls(path.parent)
        what = f" of model={model}" if model else ""
        raise UserError(f"there is no run{what} under {OUTPUTS.resolve()}; train one with `genlab train`, or give run=<folder>")

    def lock(self) -> IO[str]:
        """Hold the folder for training until the returned file is closed.

        Raises:
            UserError: another process trains here.
        """
        handle = open(self.path / ".lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {self.path}") from None
        return handle

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def steps(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(p for p in self.checkpoints.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", p.name))

    def save(self, state: dict[str, Any], *, keep: int, best: bool = False) -> Path:
        """Write a checkpoint atomically and drop all but the last `keep`; `best` writes best.pt instead."""
        import torch

        path = self.checkpoints / ("best.pt" if best else f"step_{state['step']:09d}.pt")
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
        sync_folder(self.checkpoints)
        if not best:
            for old in self.steps()[:-keep]:
                old.unlink()
        return path

    def load(self, path: Path | None = None, *, device: str = "cpu") -> dict[str, Any]:
        """Return the state in a checkpoint (the newest, unless `path` names one), with nothing in it executed.

        Raises:
            UserError: there is none, or it cannot be read; the message names the checkpoint before it.
        """
        import torch

        if path is None:
            if not self.steps():
                raise UserError(f"{self.path} has no checkpoint yet")
            path = self.steps()[-1]
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            if not isinstance(state, dict) or "model" not in state or "step" not in state:
                raise ValueError("it is not a checkpoint of genlab")
        except Exception as error:  # whatever a damaged or hostile file makes the reader raise: it is unreadable
            others = [p for p in self.steps() if p != path]
            mend = f"; the one before it is {others[-1]}" if others else ""
            first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} is truncated or unreadable ({first}){mend}") from error
        return state

    # --- what the run said ------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Return run.json: the command, versions, commit, device, spec.

        Raises:
            UserError: it is damaged.
        """
        try:
            return json.loads((self.path / "run.json").read_text())
        except ValueError as error:
            raise UserError(f"{self.path / 'run.json'} is unreadable: {error}") from error

    def config(self) -> str:
        """Return config.yaml as text."""
        return (self.path / "config.yaml").read_text()

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of stats.jsonl."""
        lines = self.stats.read_text().splitlines() if self.stats.exists() else []
        return [json.loads(line) for line in lines]

    def final(self) -> dict[str, float]:
        """Return the run's last numbers: its last losses, its last evaluation."""
        found: dict[str, float] = {}
        for record in self.history():
            found |= record.get("evaluation", {k: v for k, v in record.items() if k not in ("step", "notes")})
        return found

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`, and files and lines that a kill cut short: a resume writes them again."""
        for part in self.path.rglob("*.part"):
            part.unlink()
        if not self.stats.exists():
            return
        kept = []
        for line in self.stats.read_text().splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        write_whole(self.stats, "".join(kept).encode())
