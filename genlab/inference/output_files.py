"""The files of an answer: named by the request, so that no answer overwrites another.

A request is a command with its options, the run and its step. The name of the files says the
options that differ from their defaults, with a hash of all options. The record beside the files,
NAME.json, contains the request and a checksum of each file. A file that exists is written again
only if the record of the same request lists it, and if it has not been changed since.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from genlab.config.override_keys import is_path_option
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.untrusted.files import read_bytes, read_json, real_path

MAX_LEAD_CHARS = 48  # of a file name: the command and what it did
MAX_OPTION_CHARS = 60  # of a file name: the options that differ from their defaults
HASH_DIGITS = 8
PENDING = "pending"  # in place of the checksum of a file that is being written
PLACE_OPTIONS = frozenset({"output_dir", "output_file"})  # where an answer is, not what it says
# Options that say little about an answer; they come last in its name.
LESS_TELLING = frozenset({"n", "items", "batch_size", "iwae_samples", "elbo_timesteps"})

# Writes one file of an answer to a path.
Writer = Callable[[Path], object]


# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestedRun:
    """A run that a request is about; without a step, its newest one."""

    folder: Path
    step: int | None

    @classmethod
    def from_loaded_run(cls, run: Any) -> RequestedRun:
        """Return the run of a `LoadedRun`."""
        return cls(run.folder.path, run.step)


@dataclass(frozen=True)
class CommandRequest:
    """A command with its runs and all options that distinguish one answer from another.

    Attributes:
        options: all options as plain values; paths are absolute.
        changed: the options that differ from their defaults.
    """

    command: str
    runs: tuple[RequestedRun, ...]
    options: dict[str, Any]
    changed: tuple[str, ...]

    @classmethod
    def from_command_call(
        cls,
        command: Callable[..., Any],
        runs: Sequence[Any],
        values: dict[str, Any],
        *,
        further: dict[str, Any] | None = None,
        ignore: Iterable[str] = (),
    ) -> CommandRequest:
        """Return the request of a call of a command.

        Args:
            command: the command's function.
            runs: its `LoadedRun`s.
            values: the arguments that it received, as `locals()` has them.
            further: options that are not among its keywords; None values are left out.
            ignore: keywords that do not change the answer.
        """
        left_out = PLACE_OPTIONS.union(ignore)
        keywords = {
            p.name: p.default
            for p in inspect.signature(command).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in left_out
        }
        given = {name: values[name] for name in keywords}
        extra = {name: value for name, value in (further or {}).items() if value is not None}
        return cls.from_options_and_defaults(command.__name__, runs, given | extra, keywords)

    @classmethod
    def from_options_and_defaults(
        cls, command: str, runs: Sequence[Any], values: dict[str, Any], defaults: dict[str, Any]
    ) -> CommandRequest:
        """Return the request with these options, of which some have a default."""
        values = changed_data_options(runs) | values
        options = {name: to_plain_value(value, name) for name, value in values.items()}
        changed = [
            name
            for name, value in options.items()
            if name not in defaults or option_differs_from_default(value, defaults[name])
        ]
        return cls(command, tuple(map(RequestedRun.from_loaded_run, runs)), options, tuple(changed))

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the request as a record in `folder` has it.

        A run is named unless the record is inside the run's folder, which may be moved.
        """
        runs = [
            {"folder": self.run_folder_as_recorded(run.folder, folder), "step": run.step}
            for run in self.runs
        ]
        return {"command": self.command, "runs": runs, "options": self.options}

    def run_folder_as_recorded(self, run: Path, folder: Path) -> str:
        """Return a run's folder as a record in `folder` names it."""
        if len(self.runs) == 1 and folder.resolve().is_relative_to(run.resolve()):
            return "."
        return str(run.resolve())

    def output_file_stem(self, lead: str, folder: Path) -> str:
        """Return the name, without suffix, of the files of the answer in `folder`.

        Args:
            lead: the first words of the name: the command, or what it did.
        """
        lead = slugify_for_file_name(lead)[:MAX_LEAD_CHARS].strip("-_")
        words = [lead]
        if len(self.runs) == 1 and self.runs[0].step is not None:
            words.append(f"step{self.runs[0].step}")
        if (seed := self.options.get("seed")) is not None:
            words.append(f"seed{seed}")
        content = self.to_json(folder)
        told = [
            option_as_file_name_part(name, self.options[name])
            for name in self.changed_options_by_importance()
        ]
        readable = "_".join(text for text in told if text and text not in lead.split("_"))
        readable = readable[:MAX_OPTION_CHARS].strip("-_.")
        is_elsewhere = any(run["folder"] != "." for run in content["runs"])
        if set(self.changed) - {"seed"} or is_elsewhere or not self.runs:
            readable = "-".join(filter(None, [readable, checksum(content)[:HASH_DIGITS]]))
        return "_".join(filter(None, [*words, readable]))

    def changed_options_by_importance(self) -> list[str]:
        """Return the changed options, those that say most about the answer first."""
        names = [name for name in self.changed if name != "seed"]
        return sorted(names, key=lambda name: name in LESS_TELLING)


def changed_data_options(runs: Sequence[Any]) -> dict[str, Any]:
    """Return the data options that differ from those of the runs' trainings.

    Such as another place of the data.
    """
    changed: dict[str, Any] = {}
    for run in runs:
        with suppress(AttributeError, OSError, UserError):
            trained = run.folder.read_config("dataset")["dataset"]
            for key, value in run.config["dataset"].items():
                if trained.get(key) != value:
                    changed[f"dataset.{key}"] = value
    return changed


def option_differs_from_default(value: Any, default: Any) -> bool:
    """Whether an option's plain value is another one than the default."""
    default = to_plain_value(default, "")
    return json.dumps(value, sort_keys=True) != json.dumps(default, sort_keys=True)


def to_plain_value(value: Any, option: str) -> Any:
    """Return a value as JSON holds it; the path of an option that names files is absolute.

    Options in a mapping that are None are left out, and a mapping without options is None.
    """
    if isinstance(value, dict):
        given = {str(key): inner for key, inner in value.items() if inner is not None}
        return {key: to_plain_value(inner, key) for key, inner in given.items()} or None
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain_value(inner, option) for inner in value]
    if isinstance(value, Path) or (isinstance(value, str) and is_path_option(option)):
        path = Path(value).expanduser()
        return str(path.resolve()) if path.exists() else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def option_as_file_name_part(name: str, value: Any) -> str:
    """Return an option as a part of a file name: label3, ddim-steps10, a-red-square, backward."""
    if isinstance(value, dict):
        given = {key: inner for key, inner in value.items() if inner is not None}
        named = [str(given.pop(key)) for key in ("name", "sampler") if key in given]
        return slugify_for_file_name(
            "-".join([*named, *(option_as_file_name_part(k, v) for k, v in given.items())])
        )
    if isinstance(value, bool):
        return slugify_for_file_name(name if value else f"no-{name}")
    if isinstance(value, str):
        return slugify_for_file_name(Path(value).name if is_path_option(name) else value)
    if isinstance(value, list):
        words = "-".join(option_as_file_name_part("", inner) for inner in value)
        return slugify_for_file_name(
            words if value and isinstance(value[0], str) else f"{name}{words}"
        )
    if value is None:
        return slugify_for_file_name(f"{name}-null")
    return slugify_for_file_name(
        f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
    )


def slugify_for_file_name(text: str) -> str:
    """Return a text as part of a file name: lower-case letters, digits and separators.

    Such a name is the same file on file systems that ignore case.
    """
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")


def checksum(content: Any) -> str:
    """Return a hash of plain values, or of bytes."""
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:32]


# --- files that exist -----------------------------------------------------------------------------


def file_checksum(path: Path) -> str:
    """Return a hash of a file's content, or of all files in a folder."""
    if not path.is_dir():
        return checksum(read_bytes(path))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return checksum([[str(file.relative_to(path)), file_checksum(file)] for file in files])


def record_checksum(record: dict[str, Any]) -> str:
    """Return a hash of a record without its list of files, which contains the hash."""
    return checksum({key: value for key, value in record.items() if key != "files"})


def checksums_of_recorded_files(
    record_path: Path, request: dict[str, Any] | None
) -> dict[str, str]:
    """Return the checksums of the files that a record lists; none if it is not genlab's.

    Args:
        request: as the record must have it; None accepts any.
    """
    try:
        record = read_json(record_path)
    except (UserError, OSError):
        return {}
    files = record.get("files")
    if not isinstance(files, dict) or files.get(record_path.name) != record_checksum(record):
        return {}
    return files if request in (None, record.get("question")) else {}


def find_first_taken_file(
    folder: Path, names: Iterable[str], record_name: str, request: dict[str, Any] | None
) -> str | None:
    """Return the first of these names that is a file which must not be written again, or None.

    That is every file but those that the record of the same request lists, unchanged.
    """
    own = checksums_of_recorded_files(folder / record_name, request)
    for name in [*names, record_name]:
        path = folder / name
        if not os.path.lexists(path):
            continue
        if name == record_name and own:
            continue
        if own.get(name) not in (PENDING, file_checksum(path)):
            return name
    return None


def refuse_taken_output_file(path: Path, option: str, request: CommandRequest) -> None:
    """Refuse an output file that exists, unless it is the earlier answer to the same request.

    Raises:
        UserError: names the option.
    """
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder; give the name of a file in it")
    if find_first_taken_file(path.parent, [], path.name, request.to_json(path.parent)):
        whose = (
            "the answer to another question"
            if checksums_of_recorded_files(path, None)
            else "a file of yours"
        )
        raise UserError(
            f"{option}={path} exists and is {whose}, which is not overwritten; give another name"
        )


def refuse_overlapping_folders(
    source: Path, target: Path, source_option: str, target_option: str
) -> None:
    """Refuse an input and an output folder that are the same, or one inside of the other.

    Raises:
        UserError: names both options.
    """
    if is_same_or_inside_folder(target, source):
        relation = "the same folder as" if is_same_or_inside_folder(source, target) else "inside of"
    elif is_same_or_inside_folder(source, target):
        relation = "a folder around"
    else:
        return
    raise UserError(
        f"{target_option}={target} is {relation} {source_option}={source}, whose files must not be "
        f"mixed with results; give another {target_option}="
    )


def is_same_or_inside_folder(inner: Path, outer: Path) -> bool:
    """Whether a folder is another one or below it, whatever links and letter cases name them."""
    inner, outer = real_path(inner), real_path(outer)
    if inner.is_relative_to(outer):
        return True
    if not outer.exists():
        return False
    return any(parent.exists() and parent.samefile(outer) for parent in (inner, *inner.parents))


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrittenFiles:
    """The paths of a command's output: record, files by suffix, and the picture to open."""

    record: Path
    files: dict[str, Path]
    picture: Path | None

    def print_paths(self) -> None:
        """Print the paths, and last the picture to open."""
        for path in (self.record, *self.files.values()):
            if path != self.picture:
                print(path)
        if self.picture:
            print(f"open: {self.picture}")


def write_and_print_output_files(
    request: CommandRequest,
    folder: Path,
    lead: str,
    record: dict[str, Any],
    files: dict[str, Writer],
    *,
    picture: str = ".png",
) -> None:
    """Write the files of an answer, and print their paths; see `write_files_and_record`."""
    write_files_and_record(
        request, folder, lead, lambda paths: record, files, picture=picture
    ).print_paths()


def write_files_and_record(
    request: CommandRequest,
    folder: Path,
    lead: str,
    make_record: Callable[[dict[str, Path]], dict[str, Any]],
    files: dict[str, Writer],
    *,
    picture: str = ".png",
) -> WrittenFiles:
    """Write the files of an answer and its record.

    If another file has one of the names, all of them get a number.

    Args:
        lead: the first words of the files' name.
        make_record: returns the record, given the paths of the files by suffix.
        files: suffix of the name, such as ".png" or "_roc.png" -> writer. The suffix of a folder
            is "/".
        picture: the suffix of the file to look at; without it, the first picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = request.to_json(folder)
    name = first_free_file_stem(
        folder, request.output_file_stem(lead, folder), list(files), content
    )
    paths = {suffix: folder / (name + suffix.rstrip("/")) for suffix in files}
    new = [path for path in paths.values() if not os.path.lexists(path)]
    try:
        for suffix, write in files.items():
            write(paths[suffix])
    except BaseException:
        for path in new:
            with suppress(OSError):  # a folder stays
                path.unlink()
        raise
    record_path = folder / f"{name}.json"
    checksums = {path.name: file_checksum(path) for path in paths.values()}
    write_record_file(record_path, make_record(paths), content, checksums)
    first = next((path for path in paths.values() if path.suffix == ".png"), None)
    return WrittenFiles(record_path, paths, paths.get(picture, first))


def first_free_file_stem(
    folder: Path, name: str, suffixes: list[str], request: dict[str, Any]
) -> str:
    """Return `name`, or with a number the first name that no other file has."""
    for number in count(1):
        candidate = name if number == 1 else f"{name}-{number}"
        names = [candidate + suffix.rstrip("/") for suffix in suffixes]
        if find_first_taken_file(folder, names, f"{candidate}.json", request) is None:
            return candidate
    raise AssertionError("unreachable: numbers do not end")


def write_record_file(
    path: Path, record: dict[str, Any], request: dict[str, Any], checksums: dict[str, str]
) -> None:
    """Write a record with its request and the checksums of the files that it lists."""
    plain = json.loads(json.dumps(replace_non_finite_by_none(record | {"question": request})))
    checksums = checksums | {path.name: record_checksum(plain)}
    plain["files"] = dict(sorted(checksums.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(plain, indent=2, ensure_ascii=False).encode("utf-8", "replace"))


def write_output_file(path: Path, record: dict[str, Any], request: CommandRequest) -> None:
    """Write a record to a file that the user named, and print its path.

    Raises:
        UserError: the file exists; see `refuse_taken_output_file`.
    """
    refuse_taken_output_file(path, "output_file", request)
    write_record_file(path, record, request.to_json(path.parent), {})
    print(path)


def replace_non_finite_by_none(value: Any) -> Any:
    """Return a JSON-like value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: replace_non_finite_by_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite_by_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- folders of results ---------------------------------------------------------------------------


class OutputFolder:
    """A folder of results, each under the name of its input, and the record of all of them.

    Args:
        folder: the folder.
        lead: the name of the record.
        names: the files that will be written.
    """

    def __init__(self, request: CommandRequest, folder: Path, lead: str, names: list[str]) -> None:
        self.request = request
        self.folder = folder
        self.names = names
        self.record_path = folder / f"{lead}.json"
        self.has_begun = False

    @classmethod
    def choose_folder(
        cls,
        request: CommandRequest,
        lead: str,
        *,
        source: Path,
        output_dir: str | None,
        default_parent: Path,
        names: list[str],
    ) -> OutputFolder:
        """Return the folder of results for the images of a folder, before any is written.

        Args:
            lead: the first words of a new folder's name, and the name of the record.
            source: the folder of images.
            output_dir: the folder to write to; None takes a new one in `default_parent`.
            names: the files that will be written.

        Raises:
            UserError: the two folders overlap, or a file of another origin would be overwritten.
        """
        if output_dir:
            answer = cls(request, Path(output_dir).expanduser(), lead, names)
            refuse_overlapping_folders(source, answer.folder, "input_dir", "output_dir")
            if (taken := answer.find_first_taken_file()) is not None:
                raise UserError(
                    f"output_dir={answer.folder} contains {taken}, which is yours or the answer to "
                    "another question and is not overwritten; give another folder"
                )
            return answer
        name = request.output_file_stem(f"{lead}_{source.resolve().name}", default_parent)
        for number in count(1):
            folder = default_parent / (name if number == 1 else f"{name}-{number}")
            answer = cls(request, folder, lead, names)
            if answer.find_first_taken_file() is None:
                refuse_overlapping_folders(source, folder, "input_dir", "output_dir")
                return answer
        raise AssertionError("unreachable: numbers do not end")

    def claim_result_path(self, name: str) -> Path:
        """Return where to write a result.

        Before the first one, the record lists all of them as pending, so that the same command
        continues after an interruption.
        """
        if not self.has_begun:
            self.has_begun = True
            request = self.request.to_json(self.folder)
            pending = dict.fromkeys(self.names, PENDING)
            earlier = checksums_of_recorded_files(self.record_path, request)
            record = {"step": self.request.runs[0].step, "complete": False}
            write_record_file(self.record_path, record, request, pending | earlier)
        return self.folder / name

    def find_first_taken_file(self) -> str | None:
        """Return the first file that must not be written again, or None."""
        request = self.request.to_json(self.folder)
        return find_first_taken_file(self.folder, self.names, self.record_path.name, request)

    def write_final_record(self, record: dict[str, Any]) -> None:
        """Write the record of the results, and print where they are."""
        request = self.request.to_json(self.folder)
        earlier = checksums_of_recorded_files(self.record_path, request)
        earlier = {name: value for name, value in earlier.items() if value != PENDING}
        written = [name for name in self.names if (self.folder / name).exists()]
        checksums = earlier | {name: file_checksum(self.folder / name) for name in written}
        write_record_file(self.record_path, record, request, checksums)
        print(self.record_path)
        print(f"{len(written):,} images in {self.folder}")
        if written:
            print(f"open: {self.folder / written[0]}")
