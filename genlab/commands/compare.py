"""genlab compare: runs of any models side by side, as a table, as CSV and Markdown, and as a page to look at."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genlab.commands.evaluate import Items, Split, evaluate_run
from genlab.commands.sample import sampler_options
from genlab.comparison import html_report
from genlab.comparison.run_records import Entry, Record, newest_step, records
from genlab.comparison.table import Comparison, compared
from genlab.comparison.text_report import print_table, to_csv, to_markdown
from genlab.errors import UserError, did_you_mean
from genlab.metrics import Settings, metrics_for, registry
from genlab.metrics.context import Subject
from genlab.runs.loaded_run import Run
from genlab.runs.run_folder import RunFolder, write_whole
from genlab.spec import Count, Positive

Where = tuple[RunFolder, Path | None]  # a run, and its checkpoint where one was named


@dataclass(frozen=True)
class Wanted:
    """A run that is to be compared."""

    run: RunFolder
    checkpoint: Path | None = None  # where one was named
    label: str | None = None  # None: found from what tells the runs apart
    sampler: dict[str, Any] | None = (
        None  # with its name as `name`; None: the one that is asked for all
    )


def compare(
    load: Callable[[str], Run],
    wanted: list[Wanted],
    *,
    evaluate: bool = True,
    metrics: list[str] | None = None,
    split: Split | None = None,
    n: Items | None = None,
    k: Positive | None = None,
    terms: Positive | None = None,
    seed: Count | None = None,
    batch_size: Positive | None = None,
    features: list[str] | None = None,
    sampler: dict[str, Any] | None = None,
    title: str | None = None,
    text: str | None = None,
    out: str = "outputs/compare",
) -> Comparison:
    """Print runs side by side, write compare.csv, compare.md and compare.html into `out`, and return the comparison.

    Args:
        load: returns the run of a folder or checkpoint; called only for a run that has to be measured.
        evaluate: measure a run without a record, or whose record was made under other settings than are asked for.

    Raises:
        UserError: no run could be measured as asked.
    """
    for name in metrics or ():
        if name not in registry():
            raise UserError(
                f"metrics: there is no '{name}'{did_you_mean(name, registry())}; there are {', '.join(registry())}"
            )
    settings = {
        "split": split, "n": n, "k": k, "terms": terms, "seed": seed, "batch_size": batch_size,
        "features": tuple(features) if features else None,
    }  # fmt: skip
    given = drawn_by(sampler)
    asked = Asked(
        {key: value for key, value in settings.items() if value is not None},
        metrics,
        given,
        any_sampler=not given,
    )
    entries = gather(wanted, asked, load if evaluate else None)
    found = compared(entries, metrics)
    print_table(found)
    for path in write(found, Path(out), title=title or "", text=text or ""):
        print(path)
    return found


def write(found: Comparison, folder: Path, *, title: str = "", text: str = "") -> list[Path]:
    """Write a comparison as compare.csv, compare.md and compare.html, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("compare.csv", to_csv(found)), ("compare.md", to_markdown(found))):
        write_whole(folder / name, content.encode("utf-8", "replace"))
    html_report.write(found, folder / "compare.html", title=title, text=text)
    return [folder / f"compare.{end}" for end in ("csv", "md", "html")]


# --- the runs ---------------------------------------------------------------------------------------------------------


def find_runs(runs: list[str | int] | str | int | None) -> list[Wanted]:
    """Return the runs that are named, each once, in their order.

    Raises:
        UserError: none are given, or a name has no run.
    """
    names = [str(r) for r in (runs if isinstance(runs, list) else [] if runs is None else [runs])]
    if not names:
        raise UserError(
            "give runs=[a,b,…]: run folders, globs ('outputs/vae*'), sweep folders, checkpoints or latest:<model>"
        )
    found: dict[tuple[Path, Path | None], Wanted] = {}
    for name in names:
        for run, checkpoint in named(name):
            found.setdefault(
                (run.path.resolve(), checkpoint and checkpoint.resolve()), Wanted(run, checkpoint)
            )
    return list(found.values())


def named(name: str) -> list[Where]:
    """Return the runs that one name stands for."""
    path = Path(name).expanduser()
    if name == "latest" or name.startswith("latest:"):
        return [RunFolder.find(name)]
    if path.exists():
        if inside := below(path):
            return inside
        raise UserError(
            f"runs: {name} is no run, and there is none below it; give a folder that `genlab train` made"
        )
    matches = [Path(m) for m in sorted(glob.glob(str(path), recursive=True), key=natural)]
    inside = [where for match in matches for where in below(match)]
    whole = {run.path for run, checkpoint in inside if checkpoint is None}
    if inside := [
        (run, checkpoint)
        for run, checkpoint in inside
        if checkpoint is None or run.path not in whole
    ]:
        return inside  # `**` matches a run and the checkpoints in it: the run is meant
    raise UserError(
        f"runs: there is no such run as {name}"
        + (": what it matches holds no run" if matches else "")
    )


def below(path: Path) -> list[Where]:
    """Return the run at a path, the checkpoint, or all runs below it."""
    if path.is_file():
        there = path.suffix == ".pt" and (path.parent.parent / "run.json").exists()
        return [(RunFolder(path.parent.parent), path)] if there else []
    if (path / "run.json").exists():
        return [(RunFolder(path), None)]
    return [(RunFolder(p.parent), None) for p in sorted(path.rglob("run.json"), key=natural)]


def natural(path: Path | str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names as numbers: a sweep's run 2 before its run 10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", str(path))
        if part
    ]


# --- their records ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a measurement is to be: the settings that were given, and no others."""

    settings: dict[str, Any]
    metrics: list[str] | None
    sampler: dict[str, Any]
    any_sampler: bool = (
        False  # whether a record of whatever sampler serves where the model's own has none
    )

    def unlike(self, record: Record, step: int | None) -> str:
        """Return why a record is not what is asked for, or ""."""
        if step is not None and record["step"] != step:
            return f"its numbers are of step {record['step']:,}, and it is at step {step:,}"
        for key, value in self.settings.items():
            own = record["settings"].get(key)
            if (tuple(own) if isinstance(own, list) else own) != value:
                return f"it was measured with {key}={own}, and {key}={value} is asked for"
        there = {row["metric"] for row in record["metrics"]}
        for name in self.metrics or ():
            if name not in there and record["absent"].get(name, "not asked for").startswith(
                "not asked for"
            ):
                return f"its record has no {name}"
        return ""


def drawn_by(sampler: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of a sampler as a record holds them: those that were given, its name as `sampler`."""
    given = {key: value for key, value in (sampler or {}).items() if value is not None}
    return given | ({"sampler": given.pop("name")} if "name" in given else {})


def gather(runs: list[Wanted], every: Asked, load: Callable[[str], Run] | None) -> list[Entry]:
    """Return every run with its record, measured now where that is wanted; a run that cannot be says why.

    Raises:
        UserError: none of several, or the only one, could be measured; no run has the sampler.
    """
    entries, failed, samplerless = [], [], []
    for i, wanted in enumerate(runs):
        run, checkpoint = wanted.run, wanted.checkpoint
        asked = (
            every
            if wanted.sampler is None
            else replace(every, sampler=drawn_by(wanted.sampler), any_sampler=False)
        )
        step = run.load(checkpoint)["step"] if checkpoint else newest_step(run.path)
        record, why = recorded(run.path, asked, step)
        if why and load is not None:
            print(f"measuring {run.path} ({i + 1} of {len(runs)}): {why}", file=sys.stderr)
            try:
                record, why, refused = measured(load(str(checkpoint or run.path)), asked, step)
                samplerless += [refused] if refused else []
            except UserError as error:
                failed.append(error)
                record, why = None, " ".join(str(error).split())
                print(f"{run.path}: {why}", file=sys.stderr)
        entry = Entry(run.path, None if why else record, wanted.label, missing=why)
        entry.pictures  # noqa: B018 read now: another checkpoint of this run may have its own drawn over them
        entries.append(entry)
    for errors in (failed, samplerless):
        if len(errors) == len(runs):
            raise errors[0]
    return entries


def recorded(folder: Path, asked: Asked, step: int | None) -> tuple[Record | None, str]:
    """Return the newest record with the sampler that is asked for, and why it is not what is asked for, or ""."""
    every = records(folder)
    own = [r for r in every if (r["settings"].get("sampler") or {}) == asked.sampler] or (
        every if asked.any_sampler else []
    )
    if not own:
        return None, "it was not measured" + (f" with {asked.sampler}" if asked.sampler else "")
    fitting = [r for r in own if not asked.unlike(r, step)]
    return (fitting or own)[-1], "" if fitting else asked.unlike(own[-1], step)


def measured(run: Run, asked: Asked, step: int | None) -> tuple[Record, str, UserError | None]:
    """Return a run's record as asked for, "", and why the run is measured with its own sampler, where it is."""
    refused = None
    try:
        name = {"name": asked.sampler["sampler"]} if "sampler" in asked.sampler else {}
        options = sampler_options(
            run, {k: v for k, v in asked.sampler.items() if k != "sampler"} | name
        )
    except UserError as error:
        options, refused, asked = {}, error, replace(asked, sampler={})
    record, why = recorded(run.folder.path, asked, step)
    if record is not None and not why:
        return record, "", refused
    before = {
        k: v
        for k, v in (record or {}).get("settings", {}).items()
        if k in Settings.__dataclass_fields__
    }
    if before.get("features"):
        before["features"] = tuple(before["features"])
    settings = Settings(**(before | asked.settings | {"sampler": options}))
    wanted = None
    if (
        asked.metrics is not None
    ):  # those that do not fit leave blanks, with the reason that the record gives
        fitting = metrics_for(
            Subject(run.dataset, settings, model=run.model, training=run.training), "asked"
        )
        wanted = [name for name in asked.metrics if name in fitting]
    return evaluate_run(run, settings, wanted), "", refused
