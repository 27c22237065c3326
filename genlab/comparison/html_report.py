"""The page of a comparison: one HTML file that opens from disk, with every picture inside and nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
import struct
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from genlab.comparison import charts
from genlab.comparison.run_records import Entry, plain_value
from genlab.comparison.table import Cell, Comparison, Measure, compared, joined, number
from genlab.runs.run_folder import write_whole

TEMPLATE = Path(__file__).with_name("page.html")

SECTIONS = {  # measure -> the table that it stands in; any other one is in the first
    "manifold": "Fidelity and coverage",
    "modes": "Modes and classes",
    "class_modes": "Modes and classes",
    "class_accuracy": "Modes and classes",
    "prompt_accuracy": "Modes and classes",
    "train_on_generated": "Modes and classes",
    "disentanglement": "Disentanglement",
    "likelihood": "Likelihood",
    "ode_likelihood": "Likelihood",
    "memorisation": "Memorisation",
    "cost": "Cost",
}
FIRST = "Samples against held-out data"
PICTURES = {  # a record's picture -> its heading and what it shows
    "nearest": ("Nearest neighbours", "Samples above, below each the training item nearest to it."),
    "latent": (
        "Latent space",
        "The codes of held-out items, coloured by class where there are classes.",
    ),
    "manifold": ("Manifold", "What a grid of codes stands for."),
    "reconstructions": (
        "Reconstructions",
        "Held-out items above, what comes back from their codes below.",
    ),
}


def write_page(
    entries: Sequence[tuple[str, Path, dict[str, Any] | None]],
    out: Path,
    *,
    title: str = "",
    text: str = "",
) -> Path:
    """Write the page that compares entries (label, run folder, record or None), and return its path.

    Entries of one label that differ in the run's seed alone become one column; one folder may come with several records.

    Args:
        out: the HTML file.
        title: of the page; "" for the models' names.
        text: paragraphs below the title, with an empty line between two.
    """
    return write(
        compared([Entry(Path(folder), record, label) for label, folder, record in entries]),
        out,
        title=title,
        text=text,
    )


def write(found: Comparison, out: Path, *, title: str = "", text: str = "") -> Path:
    """Write the page of a comparison and return its path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page(found, title=title, text=text).encode("utf-8", "replace"))
    return out


def page(found: Comparison, *, title: str = "", text: str = "") -> str:
    """Return the page of a comparison as HTML."""
    import jinja2

    from genlab import __version__

    source = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL).group(1)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    labels = [c.label for c in found.columns]
    differences = found.differences()
    data = ", ".join(dict.fromkeys(str(c.entries[0].info.get("dataset")) for c in found.columns))
    return environment.from_string(source).render(
        title=plain_value(
            title or f"{', '.join(labels[:6])}{' and others' if len(labels) > 6 else ''} on {data}"
        ),
        paragraphs=[" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()],
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        models=[
            {"label": c.label, "title": c.title, "colour": j % len(charts.COLOURS)}
            for j, c in enumerate(found.columns)
        ],
        colours=charts.COLOURS,
        data=data,
        galleries=galleries(found),
        tables=tables(found),
        conditions=[(m.label, said(m, found.row(i))) for i, m in enumerate(found.measures)],
        blanks=found.blanks(),
        notes=found.notes(),
        losses=[charts.losses(c) for c in found.columns],
        evaluations=charts.evaluations(found.columns),
        scatter=charts.against_cost(found),
        shared={k: v for k, v in differences.items() if None not in v},
        own={
            k: ["" if value is None else value for value in v]
            for k, v in differences.items()
            if None in v
        },
        runs=[run(found, j, e) for j, c in enumerate(found.columns) for e in c.entries],
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def galleries(found: Comparison) -> list[dict[str, Any]]:
    """Return the pictures by what they show: samples beside the real data first, then what else the records hold."""
    of = [c.entries[0].pictures for c in found.columns]
    keys = dict.fromkeys(["samples", *PICTURES, *(k for p in of for k in p if k != "reals")])
    made = []
    for key in keys:
        pairs = list(enumerate(zip(found.columns, of, strict=True)))
        figures = [
            figure(c.title, p[key], colour=j % len(charts.COLOURS))
            for j, (c, p) in pairs
            if key in p
        ]
        without = [c.label for _, (c, p) in pairs if key not in p]
        if key == "samples":
            made.append(
                {
                    "key": key,
                    "heading": "Samples",
                    "text": "",
                    "figures": reals(found, of) + figures,
                    "without": without,
                }
            )
        elif figures:
            heading, text = PICTURES.get(key, (plain_value(key).replace("_", " ").capitalize(), ""))
            made.append(
                {
                    "key": key,
                    "heading": heading,
                    "text": text,
                    "figures": figures,
                    "without": without,
                }
            )
    return made


def reals(found: Comparison, of: list[dict[str, bytes]]) -> list[dict[str, Any]]:
    """Return the real data's pictures, one for each preparation among the models."""
    made: dict[str, dict[str, Any]] = {}
    for column, pictures in zip(found.columns, of, strict=True):
        entry = column.entries[0]
        said = entry.data({"metric": "likelihood", "unit": ""})
        name = " ".join(
            filter(
                None, (said.get("data"), said.get("shape"), said.get("binarized") and "binarized")
            )
        )
        if "reals" in pictures and name not in made:
            made[name] = figure(plain_value(f"real data: {name}"), pictures["reals"], colour=None)
    return list(made.values())


def figure(label: str, png: bytes, *, colour: int | None) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24])
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"label": label, "source": source, "width": width, "height": height, "colour": colour}


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(found: Comparison) -> list[dict[str, Any]]:
    """Return the numbers as tables with models down and measures across, a table a section."""
    sections: dict[str, list[int]] = {}
    for i, m in enumerate(found.measures):
        sections.setdefault(SECTIONS.get(m.metric, FIRST), []).append(i)
    order = dict.fromkeys([FIRST, *SECTIONS.values()])
    made = []
    for heading in (h for h in order if h in sections):
        rows = sections[heading]
        heads = [(found.measures[i], i) for i in rows]
        made.append({
            "heading": heading,
            "measures": [{"m": m, "floor": found.floor(i), "said": said(m, found.row(i))} for m, i in heads],
            "rows": [[shown(found.cells[i, j]) for i in rows] for j in range(len(found.columns))],
        })  # fmt: skip
    return made


def shown(cell: Cell) -> dict[str, Any]:
    """Return a cell as the page shows it."""
    if cell.value is None:
        return {"blank": True, "reason": cell.reason}
    kind = {
        "s.e.": "± standard error",
        "s.d.": f"mean ± standard deviation of {cell.seeds} seeds",
    }.get(cell.kind, "")
    lacking = f"{cell.missing_seeds} more seeds have no such number" if cell.missing_seeds else ""
    floor = f"floor {number(cell.floor)}" if cell.floor is not None else ""
    return {
        "blank": False,
        "text": number(cell.value, cell.spread),
        "spread": number(cell.spread, cell.spread) if cell.spread is not None else "",
        "value": repr(cell.value) if math.isfinite(cell.value) else "",
        "tag": cell.tag,
        "best": cell.best,
        "seeds": f"{cell.seeds} of {cell.seeds + cell.missing_seeds} seeds"
        if cell.missing_seeds
        else "",
        "tip": "; ".join(
            part for part in (cell.tag, kind, lacking, floor, cell.conditions) if part
        ),
    }


def said(measure: Measure, cells: list[Cell]) -> str:
    """Return the conditions that a row's numbers share."""
    return joined(dict(measure.conditions)) or next(
        (c.conditions for c in cells if c.conditions), ""
    )


def run(found: Comparison, j: int, entry: Entry) -> dict[str, Any]:
    """Return where a column's numbers come from."""
    info = entry.info
    command = info.get("command") or []
    return {
        "label": plain_value(found.columns[j].label),
        "folder": plain_value(entry.folder),
        "seed": plain_value(entry.seed),
        "step": f"{entry.step:,}",
        "device": plain_value(info.get("device", "")),
        "commit": plain_value(info.get("commit") or "")[:8],
        "command": plain_value(shlex.join(map(str, command)))
        if isinstance(command, list)
        else plain_value(command),
    }
