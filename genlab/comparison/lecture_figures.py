"""The figures of the lectures: one YAML file each, and the record of each that was made.

A figure needs runs (`train`) and commands of genlab that draw it (`commands`). Its folder is named
by these, so that a figure whose entry changes is made again, and one whose caption changes is not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from genlab.config.config_dir import config_folder
from genlab.config.instantiate import validate_kwargs
from genlab.config.override_keys import quote_override_value
from genlab.errors import UserError, did_you_mean
from genlab.fileio import atomic_write
from genlab.runs.data_place import DATA_VARIABLE
from genlab.tables import format_to_error_digits, format_with_error
from genlab.untrusted.files import read_json, read_yaml

COMPARISON_OPTION = re.compile(r"experiment=(lecture/\w+)")
PLACEHOLDER = re.compile(r"\{([^{}:,]+)\}")
FIGURE_RECORD = "figure.json"
SPACE_IN_LABEL = "\0"
OUT = "out"  # the placeholder of the figure's own folder, for files that a later command reads
DIGEST_DIGITS = 10
PICTURE_SUFFIXES = (".png", ".gif")

FigureState = Literal["made", "missing", "failed", "needs data", "needs package"]


@dataclass(frozen=True)
class LectureFigure:
    """One figure: what it shows, and what makes it.

    Attributes:
        name: of its file.
        topic: the heading that it stands under.
        caption: paragraphs, separated by empty lines.
        formula: in TeX as matplotlib draws it, without dollar signs, one formula a line.
        train: label -> the overrides of `genlab train` of a run that the commands use.
        commands: of genlab, without its name; {label} is replaced by the folder of a run, and {out}
            by the folder of the figure. A comparison that trains its own runs needs no `train`.
        numbers: name -> where the number is in a record that a command wrote: "crps.value".
        pictures: patterns of the files to show, in their order; all pictures by default.
        needs_data: files or folders in the folder of the public data.
        needs_packages: Python packages that genlab does not bring.
    """

    name: str
    topic: str
    title: str
    caption: str
    commands: tuple[str, ...]
    formula: str = ""
    train: dict[str, list[str]] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    needs_data: tuple[str, ...] = ()
    needs_packages: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of what makes the figure."""
        identity = [self.all_trainings(), self.commands]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:DIGEST_DIGITS]

    @property
    def folder_name(self) -> str:
        """The name of the folder of the figure's files."""
        return f"{self.name}-{self.digest}"

    def all_trainings(self) -> dict[str, list[str]]:
        """Return label -> overrides of every run, those of comparisons included."""
        found = dict(self.train)
        for command in self.commands:
            for label, overrides in comparison_trainings(command).items():
                found.setdefault(label, overrides)
        return found

    def missing_need(self) -> tuple[FigureState, str] | None:
        """Return what is missing to make the figure on this machine, in a word and a sentence."""
        root = Path(os.environ.get(DATA_VARIABLE, "data"))
        for name in self.needs_data:
            if not (root / name).exists():
                hint = f"set {DATA_VARIABLE} to the folder that contains it"
                return "needs data", f"{name} is not in {root}; {hint}"
        for package in self.needs_packages:
            if importlib.util.find_spec(package) is None:
                return "needs package", f"the package {package} is not installed"
        return None

    def arguments(self, command: str, runs: Mapping[str, Path], folder: Path) -> list[str]:
        """Return the arguments of a command, with folders in place of the labels.

        Args:
            runs: label -> run folder.
            folder: of the figure.
        """
        places = {label: str(path) for label, path in runs.items()} | {OUT: str(folder)}

        def replace_label(match: re.Match[str]) -> str:
            return places.get(match[1], match[0])

        # A label with spaces is part of one word.
        together = PLACEHOLDER.sub(lambda m: m[0].replace(" ", SPACE_IN_LABEL), command)
        words = [word.replace(SPACE_IN_LABEL, " ") for word in shlex.split(together)]
        return [PLACEHOLDER.sub(replace_label, word) for word in words]


# --- entries --------------------------------------------------------------------------------------


def shipped_lectures_folder() -> Path:
    """Return the folder of the entries that ship with genlab."""
    return config_folder() / "lectures"


def list_lecture_figures(own_folder: Path | None = None) -> list[LectureFigure]:
    """Return all figures, in the order of their topics and then of their names.

    Args:
        own_folder: a folder with entries of the user, which come beside the shipped ones.

    Raises:
        UserError: an entry is not valid, or two have one name.
    """
    paths = sorted((shipped_lectures_folder() / "figures").glob("*.yaml"))
    if own_folder is not None:
        if not own_folder.is_dir():
            raise UserError(f"figures_dir={own_folder}: this folder does not exist")
        paths += sorted(own_folder.glob("*.yaml"))
    figures: dict[str, LectureFigure] = {}
    for path in paths:
        if path.stem in figures:
            raise UserError(f"{path} has the name of a figure that ships with genlab; rename it")
        figures[path.stem] = read_lecture_figure(path)
    topics = list(read_topics())
    return sorted(
        figures.values(),
        key=lambda figure: (
            topics.index(figure.topic) if figure.topic in topics else len(topics),
            figure.topic if figure.topic not in topics else "",
            figure.name,
        ),
    )


def read_topics() -> dict[str, str]:
    """Return the topics in the order of the lectures, with their introductions.

    Figures of other topics come last.
    """
    path = shipped_lectures_folder() / "topics.yaml"
    topics: dict[str, str] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return topics


def read_lecture_figure(path: Path) -> LectureFigure:
    """Return the figure of an entry.

    A comparison brings its title, caption and formula, which the entry need not repeat.

    Raises:
        UserError: the entry has an unknown key, or a value of another type.
    """
    content = read_yaml(path)
    for command in content.get("commands") or ():
        comparison = read_comparison(str(command))
        for key, source in (("title", "title"), ("caption", "text"), ("formula", "formula")):
            if comparison.get(source):
                content.setdefault(key, comparison[source])
    known = {f.name for f in fields(LectureFigure)} - {"name"}
    for key in content:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'{did_you_mean(str(key), known)}")
    for key in ("topic", "title", "caption", "commands"):
        if not content.get(key):
            raise UserError(f"{path}: {key} is missing")
    values = validate_kwargs(LectureFigure, {"name": path.stem, **content}, "")
    figure = LectureFigure(**values)
    refuse_unknown_placeholders(figure, path)
    return figure


def refuse_unknown_placeholders(figure: LectureFigure, path: Path) -> None:
    """Refuse a command that names a run which the entry does not train.

    Raises:
        UserError: names the label.
    """
    labels = figure.all_trainings()
    for command in figure.commands:
        for label in PLACEHOLDER.findall(command):
            if label not in labels and label != OUT:
                near = did_you_mean(label, labels)
                raise UserError(f"{path}: {{{label}}} is not a label of `train`{near}")


def read_comparison(command: str) -> dict[str, Any]:
    """Return the config of the comparison that a command makes; {} for another command."""
    match = COMPARISON_OPTION.search(command)
    if match is None:
        return {}
    path = config_folder() / "experiment" / f"{match[1]}.yaml"
    if not path.exists():
        return {}
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def comparison_trainings(command: str) -> dict[str, list[str]]:
    """Return label -> overrides of the runs that a comparison trains."""
    comparison = read_comparison(command)
    common = comparison.get("common") or []
    return {label: [*common, *own] for label, own in (comparison.get("train") or {}).items()}


def choose_figures(
    names: Sequence[str], figures: Sequence[LectureFigure]
) -> tuple[LectureFigure, ...]:
    """Return the figures with these names, in the order of the list; "all" is every figure.

    Raises:
        UserError: a name is not one of a figure.
    """
    by_name = {figure.name: figure for figure in figures}
    for name in names:
        if name != "all" and name not in by_name:
            near = did_you_mean(name, by_name)
            raise UserError(
                f"make={name}: there is no such figure{near}; `genlab lectures` lists them"
            )
    return tuple(figure for figure in figures if "all" in names or figure.name in names)


def read_durations() -> dict[str, float]:
    """Return the seconds that each shipped figure took when it was measured."""
    path = shipped_lectures_folder() / "durations.yaml"
    measured = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {name: float(entry["seconds"]) for name, entry in measured.items()}


# --- records --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureRecord:
    """How a figure was made: commands, times and numbers; or why that failed.

    Attributes:
        trainings: the commands that trained its runs.
        commands: the commands that drew it.
        training_s: seconds of the trainings, which other figures may share.
        drawing_s: seconds of the commands.
        cores: that the work had, with several jobs at a time.
        numbers: name -> number as it is shown.
        pictures: paths relative to the figure's folder, in the order of the page.
        error: "" if it was made.
    """

    trainings: list[str]
    commands: list[str]
    training_s: float = 0.0
    drawing_s: float = 0.0
    cores: int = 0
    numbers: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def seconds(self) -> float:
        """The duration of the trainings and of the commands."""
        return self.training_s + self.drawing_s

    def save(self, folder: Path) -> None:
        """Write the record into the figure's folder."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        text = json.dumps(content, indent=1, ensure_ascii=False)
        atomic_write(folder / FIGURE_RECORD, text.encode("utf-8", "replace"))


def read_figure_record(folder: Path) -> FigureRecord | None:
    """Return the record of a figure; None if there is none, or its pictures are gone."""
    path = folder / FIGURE_RECORD
    if not path.exists():
        return None
    try:
        record = FigureRecord(**validate_kwargs(FigureRecord, read_json(path), ""))
    except UserError:  # of another version: the figure is made again
        return None
    return record if all((folder / name).is_file() for name in record.pictures) else None


def figure_state(figure: LectureFigure, record: FigureRecord | None) -> tuple[FigureState, str]:
    """Return the state of a figure, and the reason why it is not made."""
    if record is not None and not record.error:
        return "made", ""
    if need := figure.missing_need():
        return need
    if record is not None:
        return "failed", record.error
    return "missing", ""


def find_figure_pictures(figure: LectureFigure, folder: Path) -> list[str]:
    """Return the pictures of a figure relative to its folder, in the order of its commands.

    Of one command the picture with the shortest name, which is the main one, comes first, and an
    animation after the pictures.

    Raises:
        UserError: there are none.
    """
    found: list[Path] = []
    if figure.pictures:
        for pattern in figure.pictures:
            found += sorted(path for path in folder.glob(pattern) if path not in found)
    else:
        for number in range(1, len(figure.commands) + 1):
            paths = [p for p in (folder / str(number)).glob("*") if p.suffix in PICTURE_SUFFIXES]
            found += sorted(paths, key=lambda p: (p.suffix == ".gif", len(p.stem), p.name))
    if not found:
        wanted = f" that match {', '.join(figure.pictures)}" if figure.pictures else ""
        raise UserError(f"its commands wrote no pictures{wanted}")
    return [path.relative_to(folder).as_posix() for path in found]


def read_figure_numbers(figure: LectureFigure, folder: Path) -> dict[str, str]:
    """Return the numbers of a figure as text, read from the records of its commands.

    Raises:
        UserError: no record has one of them.
    """
    records = []
    for number in range(1, len(figure.commands) + 1):
        records += [read_json(path) for path in sorted((folder / str(number)).glob("*.json"))]
    numbers = {}
    for name, place in figure.numbers.items():
        values = [value for r in records if (value := look_up(r, place)) is not None]
        if not values:
            raise UserError(f"numbers: no record of its commands has {place}")
        numbers[name] = format_number(values[0])
    return numbers


def look_up(record: Any, place: str) -> Any:
    """Return the value at a dotted place of nested mappings and lists, or None."""
    for part in place.split("."):
        if isinstance(record, dict):
            record = record.get(part)
        elif isinstance(record, list) and part.lstrip("-").isdigit() and int(part) < len(record):
            record = record[int(part)]
        else:
            return None
    return record


def format_number(value: Any) -> str:
    """Return a number of a record, which may have a standard error, as text."""
    if isinstance(value, dict) and "value" in value:
        return format_with_error(value["value"], value.get("error"))
    if isinstance(value, float):
        return format_to_error_digits(value)
    if isinstance(value, list):
        return ", ".join(map(format_number, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_command(arguments: Sequence[str]) -> str:
    """Return a command as it is typed."""
    return shlex.join(["genlab", *arguments])


def quote_folder(folder: Path) -> str:
    """Return a folder as the value of an override."""
    plain = re.fullmatch(r"[\w./-]+", str(folder))
    return str(folder) if plain else quote_override_value(folder)
