"""The run folder: all that a command needs, written so that a kill leaves it intact."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from genlab.data.summary import DataSummary
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.runs import migrations
from genlab.runs.checkpoint_io import (
    CorruptCheckpointError,
    read_checkpoint,
    write_checkpoint,
)
from genlab.spec import DataSpec
from genlab.system import call_in_forked_children, try_lock
from genlab.untrusted.files import (
    MAX_YAML_BYTES,
    open_lock_file,
    read_json,
    read_json_lines,
    read_text,
    read_yaml,
    refuse_links_and_special_files,
)
from genlab.untrusted.records import (
    METADATA_CHECKS,
    check_fields,
    replace_unprintable_texts,
)

OUTPUTS = Path("outputs")


class RunFolder:
    """The files of a run.

    config.yaml, run.json, data.json, stats.jsonl, reals.png, checkpoints/, samples/, tensorboard/.
    Files of an older format are translated when they are read (`genlab.runs.migrations`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.stats = path / "stats.jsonl"
        self.tensorboard = path / "tensorboard"
        self.lock_file: IO[str] | None = None  # open while this object holds the lock

    # --- create and find --------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config: str,
        metadata: dict[str, Any],
        data: DataSummary | None = None,
    ) -> RunFolder:
        """Create a new run folder.

        Args:
            config: the text of config.yaml.
            metadata: the content of run.json.
            data: the summary of the dataset, for data.json.

        Raises:
            UserError: the folder contains a run already.
        """
        run = cls(path)
        run.ensure_empty()
        newest = max((p.stat().st_mtime_ns for p in find_run_json_files(OUTPUTS)), default=0)
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(parents=True, exist_ok=True)
        # of two processes that create the same folder, the second must not overwrite the config
        with run.lock():
            run.ensure_empty()
            atomic_write(path / "config.yaml", config.encode())
            if data is not None:
                run.write_data_summary(data)
            # run.json is last: from now on the folder is a run
            atomic_write(path / "run.json", json.dumps(metadata, indent=2).encode())
            # it is the latest run even if the clock was set back
            if (path / "run.json").stat().st_mtime_ns <= newest:
                os.utime(path / "run.json", ns=(newest + 1_000_000, newest + 1_000_000))
        return run

    def ensure_empty(self) -> None:
        """Refuse to start a new run in a folder that contains one, or files that it would replace.

        Raises:
            UserError: it does; says how to continue that run, or names the file.
        """
        if (self.path / "run.json").exists():
            raise UserError(
                f"{self.path} contains a run already; continue it with "
                f"`genlab train resume={self.path}`, or choose another out="
            )
        if (self.path / ".lock").exists():  # of a start that was interrupted
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out={self.path} is a file; choose another out=")
        own = [self.path / name for name in ("config.yaml", "data.json", "reals.png")]
        taken = [path for path in (*own, self.stats, *self.checkpoint_files()) if path.exists()]
        if taken:
            raise UserError(
                f"out={self.path} contains {taken[0].relative_to(self.path)}, which a run would "
                "replace and genlab did not write; choose another out="
            )

    @classmethod
    def find_run_and_checkpoint(cls, where: str | None) -> tuple[RunFolder, Path | None]:
        """Return the run that `where` names, and the checkpoint if it names one.

        Args:
            where: a run folder, a checkpoint file, "latest", "latest:<model>", or None for the
                newest run.

        Raises:
            UserError: the run does not exist.
        """
        where = None if where is None else str(where)  # a folder's name may look like a number
        if where is None or where == "latest" or where.startswith("latest:"):
            run = cls.latest_run((where or "").partition(":")[2])
            refuse_links_and_special_files(run.path, "run")
            return run, None
        path = Path(where).expanduser()
        if not path.exists():
            raise UserError(f"run={where}: there is no such folder or checkpoint file")
        checkpoint = path if path.is_file() and path.suffix == ".pt" else None
        run = cls(path.parent.parent if checkpoint else path)
        if not (run.path / "run.json").exists():
            raise UserError(
                f"run={where} is not a run: {run.path} has no run.json; "
                "give a folder that `genlab train` made"
            )
        refuse_links_and_special_files(run.path, "run")
        return run, checkpoint

    @classmethod
    def latest_run(cls, model: str = "") -> RunFolder:
        """Return the newest run under outputs/, of the recipe `model` if given."""
        paths = sorted(
            find_run_json_files(OUTPUTS), key=lambda p: p.stat().st_mtime_ns, reverse=True
        )
        for path in paths:
            if not model or cls(path.parent).metadata().get("model") == model:
                return cls(path.parent)
        of_model = f" of model={model}" if model else ""
        raise UserError(
            f"there is no run{of_model} under {OUTPUTS.resolve()}; train one with `genlab train`, "
            "or give run=<folder>"
        )

    def lock(self) -> IO[str]:
        """Lock the folder for training, until the returned file is closed.

        A second call while it is locked returns the same file.

        Raises:
            UserError: another process is training here.
        """
        if self.lock_file and not self.lock_file.closed:
            return self.lock_file
        handle = open_lock_file(self.path / ".lock")
        if not try_lock(handle):
            handle.close()
            raise UserError(f"another process is training in {self.path}")
        # data workers that outlive a killed run must not keep holding it
        call_in_forked_children(handle.close)
        self.lock_file = handle
        return handle

    def is_lock_gone(self) -> bool:
        """Whether the lock that this object holds was deleted, so that it excludes no process."""
        if not self.lock_file or self.lock_file.closed:
            return False
        try:
            found = os.stat(self.path / ".lock", follow_symlinks=False)
        except FileNotFoundError:
            return True
        return not os.path.samestat(found, os.fstat(self.lock_file.fileno()))

    def lock_again(self) -> None:
        """Lock the folder again after its lock was deleted.

        Raises:
            UserError: another process is training here by now.
        """
        gone, self.lock_file = self.lock_file, None
        try:
            self.lock()
        except UserError:
            self.lock_file = gone
            raise
        if gone:
            gone.close()

    def unlock(self) -> None:
        """Let other processes train in the folder, if this object holds the lock."""
        if self.lock_file:
            self.lock_file.close()

    # --- checkpoints ------------------------------------------------------------------------------

    def checkpoint_files(self) -> list[Path]:
        """Return the paths of the checkpoints, oldest first."""
        paths = self.checkpoints.glob("step_*.pt")
        return sorted(p for p in paths if re.fullmatch(r"step_\d+\.pt", p.name))

    def checkpoint_path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.checkpoints / f"step_{step:09d}.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The path of the checkpoint with the best evaluation."""
        return self.checkpoints / "best.pt"

    def save_checkpoint(self, state: dict[str, Any], *, keep: int, best: bool = False) -> Path:
        """Write a checkpoint atomically, and delete all but the last `keep`.

        Args:
            best: write best.pt instead, and delete nothing.
        """
        path = self.best_checkpoint if best else self.checkpoint_path(state["step"])
        write_checkpoint(state, path)
        if not best:
            self.delete_old_checkpoints(keep)
        return path

    def delete_old_checkpoints(self, keep: int) -> None:
        """Delete all checkpoints but the last `keep`."""
        for old in self.checkpoint_files()[:-keep]:
            old.unlink()

    def load_checkpoint(self, path: Path | None = None, *, device: str = "cpu") -> dict[str, Any]:
        """Return the state in a checkpoint, without executing anything in it.

        Args:
            path: the checkpoint; None takes the newest that is intact, and warns about a damaged
                one.

        Raises:
            UserError: there is none, or it cannot be read; the message names the checkpoint before
                it.
        """
        if path is not None:
            try:
                return self._read_checkpoint(path, device)
            except CorruptCheckpointError as error:
                others = [p for p in self.checkpoint_files() if p != path]
                hint = f"; the one before it is {others[-1]}" if others else ""
                raise UserError(f"{error}{hint}") from error
        damaged: list[UserError] = []
        tried: set[Path] = set()
        # listed again each time: a process that is training here may have deleted old ones
        while untried := [p for p in self.checkpoint_files() if p not in tried]:
            newest = untried[-1]
            tried.add(newest)
            try:
                state = self._read_checkpoint(newest, device)
            except FileNotFoundError:
                continue
            except CorruptCheckpointError as error:
                damaged.append(error)
                continue
            if damaged:
                print(
                    f"{damaged[0]}; {newest.name} is used instead: the training after step "
                    f"{state['step']:,} is lost",
                    file=sys.stderr,
                )
            return state
        if not damaged:
            raise UserError(f"{self.path} has no checkpoint yet")
        raise UserError(f"{damaged[0]}; there is no other intact checkpoint")

    def _read_checkpoint(self, path: Path, device: str) -> dict[str, Any]:
        return read_checkpoint(path, device=device, migrate=self._migrate_checkpoint)

    def _migrate_checkpoint(self, state: dict[str, Any]) -> dict[str, Any]:
        target = self.read_config("model")["model"].get("_target_")
        return migrations.migrate_checkpoint(state, str(target))

    # --- previews ---------------------------------------------------------------------------------

    def preview_path(self, step: int) -> Path:
        """Return the path of the samples that a training shows at a step."""
        return self.samples / f"step_{step:09d}.png"

    def preview_files(self) -> list[Path]:
        """Return the paths of the previews, oldest first, and of the texts beside them."""
        paths = self.samples.glob("step_*.*")
        return sorted(p for p in paths if re.fullmatch(r"step_\d+\.(png|txt)", p.name))

    # --- config and metadata ----------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """Return the content of run.json: command, versions, commit, device, spec.

        Raises:
            UserError: it is damaged, not written by genlab, or written by a newer genlab.
        """
        path = self.path / "run.json"
        content = read_json(path)
        migrations.refuse_newer_format(content.get("format", 1), path)
        content = migrations.migrate_metadata(content)
        for key, kind in {"model": str, "dataset": str, "choices": dict, "spec": dict}.items():
            content.setdefault(key, kind())
        check_fields(content, METADATA_CHECKS, path)
        return content

    def format_number(self) -> int:
        """Return the format number of the run's config and metadata.

        Raises:
            UserError: run.json is damaged, or written by a newer genlab.
        """
        path = self.path / "run.json"
        if not path.exists():
            return migrations.FORMAT
        number = read_json(path).get("format", 1)
        migrations.refuse_newer_format(number, path)
        return int(number)

    def config_text(self) -> str:
        """Return config.yaml as it was written."""
        return read_text(self.path / "config.yaml", MAX_YAML_BYTES)

    def read_config(self, *sections: str) -> dict[str, Any]:
        """Return config.yaml as plain values, with the present names.

        Args:
            sections: keys that must be mappings.

        Raises:
            UserError: it is damaged, not written by genlab, or written by a newer genlab.
        """
        path = self.path / "config.yaml"
        config = read_yaml(path)
        if (number := self.format_number()) != migrations.FORMAT:
            config = migrations.migrate_config(config, number)
        if not (self.path / "data.json").exists():
            config = migrations.keep_old_reading(config)
        if migrations.is_before_joint_statistics(config):
            run_json = self.path / "run.json"
            metadata = read_json(run_json) if run_json.exists() else {}
            config = migrations.keep_old_training(config, metadata.get("processes"))
        for section in sections:
            if not isinstance(config.get(section), dict):
                raise UserError(f"{path} is unreadable: it has no section `{section}`")
        return config

    def write_data_summary(self, summary: DataSummary) -> None:
        """Write data.json, which tells how the data was read."""
        text = json.dumps(summary.to_json(), indent=2, ensure_ascii=False)
        atomic_write(self.path / "data.json", text.encode("utf-8", "replace"))

    def spec(self) -> DataSpec:
        """Return the spec of the data that the run's model was built for.

        Raises:
            UserError: run.json does not contain a valid one.
        """
        try:
            return DataSpec.from_json(self.metadata()["spec"])
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.path / 'run.json'} is unreadable: its spec is not valid ({reason})"
            ) from error

    def data_summary(self) -> dict[str, Any]:
        """Return data.json, what was understood of the run's dataset; {} in older runs.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / "data.json"
        return read_json(path) if path.exists() else {}

    # --- log --------------------------------------------------------------------------------------

    def read_log(self) -> list[dict[str, Any]]:
        """Return the records of stats.jsonl, without a last line that is incomplete.

        Raises:
            UserError: it is damaged.
        """
        records = [
            replace_unprintable_texts(record) if b"\\" in line or not line.isascii() else record
            for line, record in self._log_lines()
        ]
        if records and self.format_number() != migrations.FORMAT:
            records = [migrations.migrate_log_record(record) for record in records]
        return records

    def _log_lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield the complete lines of stats.jsonl, as bytes and parsed."""
        if self.stats.exists():
            yield from read_json_lines(self.stats, {"step": int})

    def final_metrics(self) -> dict[str, float]:
        """Return the run's last losses and its last evaluation."""
        numbers: dict[str, float] = {}
        for record in self.read_log():
            others = ("step", "notes", "partial")
            losses = {key: v for key, v in record.items() if key not in others}
            numbers |= record.get("evaluation", losses)
        return numbers

    def discard_records_after(self, step: int) -> None:
        """Drop what was logged after `step`, and incomplete files: a resume writes them again."""
        partial = [
            *self.checkpoints.glob("*.part"),
            *self.samples.glob("step_*.part"),
            *(self.path / f"{name}.part" for name in (self.stats.name, "reals.png")),
        ]
        for path in partial:
            path.unlink(missing_ok=True)
        if self.stats.exists():
            lines = [line for line, record in self._log_lines() if record["step"] <= step]
            atomic_write(self.stats, b"".join(lines))

    def discard_evaluation_at(self, step: int) -> None:
        """Drop the evaluation of `step`, the last thing that a training logs of a step."""
        if self.stats.exists():
            lines: list[bytes] = []
            for line, record in self._log_lines():
                if record["step"] == step and "evaluation" in record:
                    break
                lines.append(line)
            atomic_write(self.stats, b"".join(lines))

    def discard_partial_means(self) -> None:
        """Drop the mean losses of an interval that a resume completes."""
        if self.stats.exists():
            lines = [line for line, record in self._log_lines() if not record.get("partial")]
            atomic_write(self.stats, b"".join(lines))


def find_run_json_files(folder: Path) -> Iterator[Path]:
    """Yield the run.json of every run below a folder, without looking inside of runs."""
    for parent, folders, files in os.walk(folder):
        if "run.json" in files:
            folders.clear()
            yield Path(parent) / "run.json"
