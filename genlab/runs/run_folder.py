"""The run folder: all that any task needs, written so that a kill at any moment leaves it whole."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from genlab.errors import UserError
from genlab.fileio import lockable, read_json, read_yaml, refuse_links, write_whole
from genlab.runs import checkpoint_io
from genlab.spec import Spec

OUTPUTS = Path("outputs")


class RunFolder:
    """A run's files: config.yaml, run.json, checkpoints/, tensorboard/, stats.jsonl, samples/, reals.png."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.stats = path / "stats.jsonl"
        self.held: IO[str] | None = None  # the lock, while this object has it

    # --- finding and making -----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, *, config: str, info: dict[str, Any]) -> RunFolder:
        """Make a new run folder.

        Raises:
            UserError: the folder holds a run already.
        """
        run = cls(path)
        run.refuse_if_there()
        newest = max((there.stat().st_mtime_ns for there in runs_below(OUTPUTS)), default=0)
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(parents=True, exist_ok=True)
        with run.lock():  # of two processes that make the same folder, the second must not write over the first's config
            run.refuse_if_there()
            write_whole(path / "config.yaml", config.encode())
            write_whole(
                path / "run.json", json.dumps(info, indent=2).encode()
            )  # last: from now on it is a run
            if (
                (path / "run.json").stat().st_mtime_ns <= newest
            ):  # a clock that was set back: it is the latest all the same
                os.utime(path / "run.json", ns=(newest + 1_000_000, newest + 1_000_000))
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
            run = cls.latest((where or "").partition(":")[2])
            refuse_links(run.path, "run")
            return run, None
        path = Path(where)
        if path.is_file() and path.suffix == ".pt":
            run, checkpoint = cls(path.parent.parent), path
        else:
            run, checkpoint = cls(path), None
        if not path.exists():
            raise UserError(f"run={where}: there is no such folder or checkpoint file")
        if not (run.path / "run.json").exists():
            raise UserError(
                f"run={where} is no run: {run.path} has no run.json; give a folder that `genlab train` made"
            )
        refuse_links(run.path, "run")
        return run, checkpoint

    @classmethod
    def latest(cls, model: str = "") -> RunFolder:
        """Return the newest run under outputs/, of the recipe `model` if given."""
        found = sorted(runs_below(OUTPUTS), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in found:
            if not model or cls(path.parent).info().get("model") == model:
                return cls(path.parent)
        what = f" of model={model}" if model else ""
        raise UserError(
            f"there is no run{what} under {OUTPUTS.resolve()}; train one with `genlab train`, or give run=<folder>"
        )

    def lock(self) -> IO[str]:
        """Hold the folder for training until the returned file is closed; asked again meanwhile, return the same file.

        Raises:
            UserError: another process trains here.
        """
        if self.held and not self.held.closed:
            return self.held
        handle = lockable(self.path / ".lock")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise UserError(f"another process is training in {self.path}") from None
        os.register_at_fork(
            after_in_child=handle.close
        )  # workers that outlive a killed run must not go on holding it
        self.held = handle
        return handle

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def steps(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(
            p for p in self.checkpoints.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", p.name)
        )

    def save(self, state: dict[str, Any], *, keep: int, best: bool = False) -> Path:
        """Write a checkpoint atomically and drop all but the last `keep`; `best` writes best.pt instead."""
        path = self.checkpoints / ("best.pt" if best else f"step_{state['step']:09d}.pt")
        checkpoint_io.write(state, path)
        if not best:
            for old in self.steps()[:-keep]:
                old.unlink()
        return path

    def load(self, path: Path | None = None, *, device: str = "cpu") -> dict[str, Any]:
        """Return the state in a checkpoint, with nothing in it executed.

        Args:
            path: the checkpoint; None: the newest that is whole. A damaged one that is passed over is said on stderr.

        Raises:
            UserError: there is none, or it cannot be read; the message names the checkpoint before it.
        """
        if path is not None:
            try:
                return checkpoint_io.read(path, device=device)
            except checkpoint_io.Damaged as error:
                others = [p for p in self.steps() if p != path]
                raise UserError(
                    f"{error}" + (f"; the one before it is {others[-1]}" if others else "")
                ) from error
        damaged: list[UserError] = []
        tried: set[Path] = set()
        while left := [
            p for p in self.steps() if p not in tried
        ]:  # listed anew: a process that trains here drops old ones
            tried.add(left[-1])
            try:
                state = checkpoint_io.read(left[-1], device=device)
            except FileNotFoundError:
                continue
            except checkpoint_io.Damaged as error:
                damaged.append(error)
                continue
            if damaged:
                lost = f"what was trained after step {state['step']:,} is lost"
                print(f"{damaged[0]}; {left[-1].name} is used instead: {lost}", file=sys.stderr)
            return state
        if not damaged:
            raise UserError(f"{self.path} has no checkpoint yet")
        raise UserError(f"{damaged[0]}; there is no other that is whole")

    def set_aside(self, step: int) -> None:
        """Rename the checkpoints of later steps (damaged, or of a way that the run goes back on) so that they stay, uncounted.

        They would outlive the run's own newer ones, of which the last are kept by their number.
        """
        for path in self.steps():
            if int(path.stem.removeprefix("step_")) > step:
                os.replace(path, path.with_name(path.name + ".aside"))

    # --- what the run said ------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Return run.json: the command, versions, commit, device, spec.

        Raises:
            UserError: it is damaged, or no file that genlab wrote.
        """
        found = read_json(self.path / "run.json")
        for key, kind in {"model": str, "dataset": str, "choices": dict, "spec": dict}.items():
            value = found.setdefault(key, kind())
            if not isinstance(value, kind) or (
                kind is str and not value.isprintable()
            ):  # a terminal acts on some characters
                raise UserError(
                    f"{self.path / 'run.json'} is unreadable: its {key} is not as genlab writes it"
                )
        return found

    def config(self) -> str:
        """Return config.yaml as text."""
        return (self.path / "config.yaml").read_text()

    def options(self, *needed: str) -> dict[str, Any]:
        """Return config.yaml as plain values; those `needed` are mappings.

        Raises:
            UserError: it is damaged, or no file that genlab wrote.
        """
        found = read_yaml(self.path / "config.yaml")
        for key in needed:
            if not isinstance(found.get(key), dict):
                raise UserError(
                    f"{self.path / 'config.yaml'} is unreadable: it has no options of the {key}"
                )
        return found

    def spec(self) -> Spec:
        """Return what the run's data told its model.

        Raises:
            UserError: run.json has no such thing.
        """
        try:
            return Spec.from_json(self.info()["spec"])
        except ValueError as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"{self.path / 'run.json'} is unreadable: its spec is none ({said})"
            ) from error

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of stats.jsonl, without one that is being written or that a kill or a full disk cut short.

        Raises:
            UserError: it is damaged.
        """
        return [record for _, record in self._logged()]

    def _logged(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield the whole lines of stats.jsonl, as they are and read."""
        lines = self.stats.read_bytes().splitlines(keepends=True) if self.stats.exists() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise UserError(
                    f"{self.stats}, line {number} is damaged: it is no JSON object with a step"
                )
            yield line, record

    def final(self) -> dict[str, float]:
        """Return the run's last numbers: its last losses, its last evaluation."""
        found: dict[str, float] = {}
        for record in self.history():
            found |= record.get(
                "evaluation", {k: v for k, v in record.items() if k not in ("step", "notes")}
            )
        return found

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`, and files and lines that a kill cut short: a resume writes them again."""
        for part in (
            *self.checkpoints.glob("*.part"),
            self.stats.with_name(self.stats.name + ".part"),
        ):
            part.unlink(missing_ok=True)
        self.set_aside(step)
        if self.stats.exists():
            write_whole(
                self.stats,
                b"".join(line for line, record in self._logged() if record["step"] <= step),
            )


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield the run.json of every run below a folder; nothing inside of a run is looked at."""
    for here, folders, files in os.walk(folder):
        if "run.json" in files:
            folders.clear()
            yield Path(here) / "run.json"
