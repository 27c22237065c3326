"""genlab compare: runs side by side, as a table, CSV, Markdown and an HTML page."""

from __future__ import annotations

import glob
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from genlab.commands.evaluate import ItemCount, Split, evaluate_run
from genlab.commands.sample import validated_sampler_options
from genlab.comparison import html_report
from genlab.comparison.figures.registry import FIGURE_KINDS, FigureRun, find_figure_function
from genlab.comparison.run_records import (
    Record,
    RunRecord,
    newest_checkpoint_step,
    read_metrics_records,
)
from genlab.comparison.table import Comparison, make_comparison
from genlab.comparison.text_report import (
    comparison_to_csv,
    comparison_to_markdown,
    print_comparison,
)
from genlab.config.instantiate import validate_kwargs
from genlab.console import track
from genlab.errors import UserError, did_you_mean
from genlab.fileio import atomic_write
from genlab.inference.output_files import HASH_DIGITS, checksum, file_checksum
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import all_metrics_by_name, applicable_metrics
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.run_folder import RunFolder
from genlab.spec import Count, Positive
from genlab.untrusted.files import read_bytes
from genlab.viz.picture import Picture
from genlab.viz.sheets import save_picture_as_sheet

FIGURE_NAME = re.compile(r"[a-z0-9_]+")
PAGE_MARK = b"\n<!-- genlab compare "  # begins the comment by which a page is recognized
RunPlace = tuple[RunFolder, Path | None]  # a run, and a checkpoint if one was named
# How a record's reason starts for a metric that was not measured; the second one in old records.
NOT_REQUESTED = ("not requested", "not asked for")


@dataclass(frozen=True)
class RunRequest:
    """A run to compare.

    Attributes:
        checkpoint: a file of the run; None for the newest.
        label: None for one that distinguishes the runs.
        sampler: its options, with its name as `name`; None for the sampler of the command.
    """

    run: RunFolder
    checkpoint: Path | None = None
    label: str | None = None
    sampler: dict[str, Any] | None = None


@dataclass(frozen=True)
class MeasurementRequest:
    """How runs are to be measured.

    Attributes:
        settings: those that were given, and no others.
        metrics: None for all that fit.
        sampler: its options as a record holds them; {} for the model's own sampler.
        any_sampler: whether a record of another sampler will do if the model's own has none.
    """

    settings: dict[str, Any]
    metrics: list[str] | None
    sampler: dict[str, Any]
    any_sampler: bool = False

    def mismatch_reason(self, record: Record, step: int | None) -> str:
        """Return why a record is not what is requested, or "".

        Args:
            step: the run's present step.
        """
        if step is not None and record["step"] != step:
            return f"its numbers are of step {record['step']:,}, but it is at step {step:,}"
        for key, value in self.settings.items():
            recorded = record["settings"].get(key)
            if (tuple(recorded) if isinstance(recorded, list) else recorded) != value:
                return f"it was measured with {key}={recorded}, but {key}={value} is requested"
        present = {row["metric"] for row in record["metrics"]}
        for name in self.metrics or ():
            reason = record["absent"].get(name, NOT_REQUESTED[0])
            if name not in present and reason.startswith(NOT_REQUESTED):
                return f"its record does not contain {name}"
        return ""


def compare(
    load: Callable[[str], LoadedRun],
    requests: list[RunRequest],
    *,
    evaluate: bool = True,
    metrics: list[str] | None = None,
    split: Split | None = None,
    n: ItemCount | None = None,
    iwae_samples: Positive | None = None,
    elbo_timesteps: Positive | None = None,
    seed: Count | None = None,
    batch_size: Positive | None = None,
    features: list[str] | None = None,
    sampler: dict[str, Any] | None = None,
    title: str | None = None,
    text: str | None = None,
    formula: str | None = None,
    figures: dict[str, dict[str, Any]] | None = None,
    output_dir: str = "outputs/compare",
) -> Comparison:
    """Print runs side by side, and write compare.csv, compare.md, compare.html and figures.

    Args:
        load: returns the run of a folder or checkpoint; called only for runs to be measured or
            drawn.
        requests: the runs.
        evaluate: measure runs without a record, or with a record of other settings than requested.
        formula: in TeX as matplotlib draws it, without dollar signs.
        figures: name -> kind, caption and further options; each is also written as <name>.png.
        output_dir: the folder of the files.

    Raises:
        UserError: no run could be measured as requested.
    """
    for name in metrics or ():
        if name not in all_metrics_by_name():
            near = did_you_mean(name, all_metrics_by_name())
            raise UserError(
                f"metrics: there is no '{name}'{near}; there are {', '.join(all_metrics_by_name())}"
            )
    folder = Path(output_dir).expanduser()
    refuse_folder_with_other_files(folder, [request.run.path for request in requests])
    settings = {
        "split": split,
        "n": n,
        "iwae_samples": iwae_samples,
        "elbo_timesteps": elbo_timesteps,
        "seed": seed,
        "batch_size": batch_size,
        "features": tuple(features) if features else None,
    }
    recorded_sampler = sampler_options_as_recorded(sampler)
    measurement = MeasurementRequest(
        {key: value for key, value in settings.items() if value is not None},
        metrics,
        recorded_sampler,
        any_sampler=not recorded_sampler,
    )
    drawings = {name: make_drawing(name, options) for name, options in (figures or {}).items()}
    runs = find_or_measure_records(requests, measurement, load if evaluate else None)
    comparison = make_comparison(runs, metrics)
    print_comparison(comparison)
    figure_runs = make_figure_runs(comparison, runs, requests, load)
    drawn = [
        draw_figure(name, draw, (figures or {})[name], figure_runs)
        for name, draw in track(drawings.items(), "drawing figures", unit="figures")
    ]
    *files, page = write_reports(
        comparison, folder, title=title or "", text=text or "", formula=formula or "", figures=drawn
    )
    for path in files:
        print(path)
    print(f"open: {page}")
    return comparison


# --- figures --------------------------------------------------------------------------------------


def make_drawing(name: str, options: dict[str, Any]) -> Callable[..., Picture]:
    """Return the function that draws a figure of the comparison, with its options checked.

    Raises:
        UserError: the figure's name, kind or one of its options is not valid.
    """
    if not FIGURE_NAME.fullmatch(name):
        raise UserError(f"figures.{name}: a name has the letters a to z, digits and _ only")
    where = f"figures.{name}"
    if not isinstance(options, dict) or "kind" not in options:
        raise UserError(f"{where} has no kind; give {where}.kind={'|'.join(FIGURE_KINDS)}")
    function = find_figure_function(str(options["kind"]), name)
    own = {key: value for key, value in options.items() if key not in ("kind", "caption")}
    return partial(function, **validate_kwargs(function, own, where, skip=1))


def make_figure_runs(
    comparison: Comparison,
    records: list[RunRecord],
    requests: list[RunRequest],
    load: Callable[[str], LoadedRun],
) -> list[FigureRun]:
    """Return the runs as figures receive them; their models are loaded when they are needed."""
    loaded: dict[str, LoadedRun] = {}

    def load_with_sampler(request: RunRequest) -> tuple[LoadedRun, dict[str, Any]]:
        place = str(request.checkpoint or request.run.path)
        if place not in loaded:
            loaded[place] = load(place)
        return loaded[place], validated_sampler_options(loaded[place], request.sampler or {})

    labels = {id(run): column.label for column in comparison.columns for run in column.runs}
    return [
        FigureRun(labels[id(record)], record, partial(load_with_sampler, request), comparison)
        for record, request in zip(records, requests, strict=True)
    ]


def draw_figure(
    name: str, draw: Callable[..., Picture], options: dict[str, Any], runs: list[FigureRun]
) -> html_report.PageFigure:
    """Draw one figure, and return it with its name and caption."""
    picture = draw(runs)
    caption = " ".join(str(options.get("caption") or name.replace("_", " ").capitalize()).split())
    return html_report.PageFigure(name, caption, picture)


# --- files ----------------------------------------------------------------------------------------


def write_reports(
    comparison: Comparison,
    folder: Path,
    *,
    title: str = "",
    text: str = "",
    formula: str = "",
    figures: Sequence[html_report.PageFigure] = (),
) -> list[Path]:
    """Write compare.csv, compare.md, the figures and compare.html; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    csv_path, markdown_path, html_path = (
        folder / f"compare.{suffix}" for suffix in ("csv", "md", "html")
    )
    atomic_write(csv_path, comparison_to_csv(comparison).encode("utf-8", "replace"))
    atomic_write(markdown_path, comparison_to_markdown(comparison).encode("utf-8", "replace"))
    html_report.write_comparison_page(
        comparison, html_path, title=title, text=text, formula=formula, figures=figures
    )
    figure_paths = [folder / f"{figure.name}.png" for figure in figures]
    for figure, path in zip(figures, figure_paths, strict=True):
        save_picture_as_sheet(figure.picture, path, caption=figure.caption)
    runs = [run.folder for column in comparison.columns for run in column.runs]
    page = read_bytes(html_path)
    mark = {
        "runs": sorted(map(hash_run_path, runs)),
        "files": {
            csv_path.name: file_checksum(csv_path),
            markdown_path.name: file_checksum(markdown_path),
            html_path.name: checksum(page),
            **{path.name: file_checksum(path) for path in figure_paths},
        },
    }
    atomic_write(html_path, page + PAGE_MARK + json.dumps(mark).encode() + b" -->\n")
    return [csv_path, markdown_path, *figure_paths, html_path]


def hash_run_path(folder: Path) -> str:
    """Return a short hash of where a run is."""
    return checksum(str(folder.resolve()).encode("utf-8", "surrogateescape"))[:HASH_DIGITS]


def refuse_folder_with_other_files(folder: Path, runs: list[Path]) -> None:
    """Refuse an output folder with other files than an earlier page of these runs.

    Raises:
        UserError: names a file that is not genlab's or was changed, or says that the page shows
            further runs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; give a folder")
    names = sorted(p.name for p in folder.glob("*") if not p.name.startswith("."))
    if not names:
        return
    mark = read_page_runs_and_checksums(folder / "compare.html")
    for name in names:
        if mark["files"].get(name) is None or mark["files"][name] != mark["found"].get(name):
            raise UserError(
                f"output_dir={folder} contains {name}, which this command did not write or which "
                "was changed since; give a new folder"
            )
    if others := set(mark["runs"]) - set(map(hash_run_path, runs)):
        raise UserError(
            f"output_dir={folder} has a page with {len(others)} further run"
            f"{'s' if len(others) > 1 else ''}; give a new folder, or compare these runs too"
        )


def read_page_runs_and_checksums(page: Path) -> dict[str, Any]:
    """Return the runs and the checksums that an earlier page lists, and those that are found."""
    nothing: dict[str, Any] = {"runs": [], "files": {}, "found": {}}
    if not page.is_file():
        return nothing
    content, _, comment = read_bytes(page).rpartition(PAGE_MARK)
    try:
        mark = json.loads(comment.removesuffix(b" -->\n"))
        files = dict(mark["files"])
        runs = [str(run) for run in mark["runs"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return nothing
    found = {
        path.name: file_checksum(path)
        for path in page.parent.glob("*")
        if path.name in files and path.is_file()
    }
    found[page.name] = checksum(content)
    return {"runs": runs, "files": files, "found": found}


# --- finding the runs -----------------------------------------------------------------------------


def find_run_requests(runs: list[str | int] | str | int | None) -> list[RunRequest]:
    """Return the named runs, each once, in their order.

    Raises:
        UserError: no names are given, or a name matches no run.
    """
    if not isinstance(runs, list):
        runs = [] if runs is None else [runs]
    if not runs:
        raise UserError(
            "give runs=[a,b,…]: run folders, globs ('outputs/vae*'), sweep folders, checkpoints or "
            "latest:<model>"
        )
    requests: dict[tuple[Path, Path | None], RunRequest] = {}
    for name in map(str, runs):
        for run, checkpoint in find_runs_by_name(name):
            identity = (run.path.resolve(), checkpoint.resolve() if checkpoint else None)
            requests.setdefault(identity, RunRequest(run, checkpoint))
    return list(requests.values())


def find_runs_by_name(name: str) -> list[RunPlace]:
    """Return the runs that one name stands for.

    Raises:
        UserError: there are none.
    """
    path = Path(name).expanduser()
    if name == "latest" or name.startswith("latest:"):
        return [RunFolder.find_run_and_checkpoint(name)]
    if path.exists():
        if places := find_runs_at_or_below(path):
            return places
        raise UserError(
            f"runs: {name} is not a run and contains none; give a folder that `genlab train` made"
        )
    matches = [Path(m) for m in sorted(glob.glob(str(path), recursive=True), key=natural_sort_key)]
    places = [place for match in matches for place in find_runs_at_or_below(match)]
    # `**` matches a run and the checkpoints in it: the run is meant.
    whole_runs = {run.path for run, checkpoint in places if checkpoint is None}
    places = [
        (run, checkpoint)
        for run, checkpoint in places
        if checkpoint is None or run.path not in whole_runs
    ]
    if not places:
        suffix = ": its matches contain no run" if matches else ""
        raise UserError(f"runs: there is no such run as {name}{suffix}")
    return places


def find_runs_at_or_below(path: Path) -> list[RunPlace]:
    """Return the run at a path, the checkpoint, or all runs below it."""
    if path.is_file():
        run = path.parent.parent
        is_checkpoint = path.suffix == ".pt" and (run / "run.json").exists()
        return [(RunFolder(run), path)] if is_checkpoint else []
    if (path / "run.json").exists():
        return [(RunFolder(path), None)]
    found = sorted(path.rglob("run.json"), key=natural_sort_key)
    return [(RunFolder(file.parent), None) for file in found]


def natural_sort_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names as numbers: run 2 of a sweep before its run 10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", str(path))
        if part
    ]


# --- their records --------------------------------------------------------------------------------


def sampler_options_as_recorded(sampler: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of a sampler as a record has them, without those that are null."""
    options = {key: value for key, value in (sampler or {}).items() if value is not None}
    if "name" in options:
        options["sampler"] = options.pop("name")
    return options


def find_or_measure_records(
    requests: list[RunRequest],
    measurement: MeasurementRequest,
    load: Callable[[str], LoadedRun] | None,
) -> list[RunRecord]:
    """Return every run with its record, measured now if necessary.

    Args:
        measurement: of all runs that do not name a sampler themselves.
        load: as of `compare`; None measures nothing.

    Raises:
        UserError: no run could be measured, or no run has the requested sampler.
    """
    runs: list[RunRecord] = []
    failures: list[UserError] = []
    refusals: list[UserError] = []  # of the sampler
    for i, request in enumerate(requests):
        folder, checkpoint = request.run, request.checkpoint
        own = measurement
        if request.sampler is not None:
            sampler = sampler_options_as_recorded(request.sampler)
            own = replace(measurement, sampler=sampler, any_sampler=False)
        if checkpoint:
            step = folder.load_checkpoint(checkpoint)["step"]
        else:
            step = newest_checkpoint_step(folder.path)
        record, reason = find_record_and_mismatch(folder.path, own, step)
        if reason and load is not None:
            print(
                f"measuring {folder.path} ({i + 1} of {len(requests)}): {reason}", file=sys.stderr
            )
            try:
                run = load(str(checkpoint or folder.path))
                record, reason, refusal = measure_run_if_needed(run, own, step)
                if refusal:
                    refusals.append(refusal)
            except UserError as error:
                failures.append(error)
                record, reason = None, " ".join(str(error).split())
                print(f"{folder.path}: {reason}", file=sys.stderr)
        entry = RunRecord(folder.path, None if reason else record, request.label, reason)
        # Read now: measuring another checkpoint of this run may overwrite the pictures.
        entry.pictures  # noqa: B018
        runs.append(entry)
    for errors in (failures, refusals):
        if len(errors) == len(requests):
            raise errors[0]
    return runs


def find_record_and_mismatch(
    folder: Path, request: MeasurementRequest, step: int | None
) -> tuple[Record | None, str]:
    """Return the newest record that fits the request, or else the newest with its sampler.

    Returns:
        The record, and why it is not what is requested, or "".
    """
    records = read_metrics_records(folder)
    candidates = [r for r in records if (r["settings"].get("sampler") or {}) == request.sampler]
    if not candidates and request.any_sampler:
        candidates = records
    if not candidates:
        suffix = f" with {request.sampler}" if request.sampler else ""
        return None, f"it was not measured{suffix}"
    for record in reversed(candidates):
        if not request.mismatch_reason(record, step):
            return record, ""
    return candidates[-1], request.mismatch_reason(candidates[-1], step)


def measure_run_if_needed(
    run: LoadedRun, request: MeasurementRequest, step: int | None
) -> tuple[Record, str, UserError | None]:
    """Measure a run as requested, or return its record if one fits.

    A run without the requested sampler is measured with its own.

    Returns:
        The record, "", and the error of the sampler or None.
    """
    refusal = None
    sampler = dict(request.sampler)
    if "sampler" in sampler:
        sampler["name"] = sampler.pop("sampler")
    try:
        sampler = validated_sampler_options(run, sampler)
    except UserError as error:
        sampler, refusal, request = {}, error, replace(request, sampler={})
    record, reason = find_record_and_mismatch(run.folder.path, request, step)
    if record is not None and not reason:
        return record, "", refusal
    names = {field.name for field in fields(Settings)}
    previous = {k: v for k, v in (record or {}).get("settings", {}).items() if k in names}
    if previous.get("features"):
        previous["features"] = tuple(previous["features"])
    settings = Settings(**(previous | request.settings | {"sampler": sampler}))
    metrics = None
    if request.metrics is not None:
        # Metrics that do not fit stay blank, with the reason that the record gives.
        context = MetricContext(run.dataset, settings, model=run.model, training=run.training_cost)
        fitting = applicable_metrics(context, "on_request")
        metrics = [name for name in request.metrics if name in fitting]
    return evaluate_run(run, settings, metrics), "", refusal
