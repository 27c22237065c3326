"""Fill the README's tables from measurements, so that no number is typed by hand.

    python scripts/report.py [run folders]

Each run folder, evaluated before by `genlab evaluate`, adds its numbers to docs/results.json; then the tables between
the README's markers are written anew from docs/results.json, docs/benchmarks/cpu.json and the headers of configs/model/.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from genlab.tasks.catalogue import group, header
from genlab.training.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.json"
BENCHMARKS = ROOT / "docs" / "benchmarks" / "cpu.json"
README = ROOT / "README.md"


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def collect(folder: Path) -> dict:
    """Return what docs/results.json keeps of a run."""
    run = RunFolder(folder)
    info, measured = run.info(), json.loads((folder / "metrics.json").read_text())
    last = [line for line in run.history() if "seconds" in line][-1]
    settings = measured["settings"]
    evaluated = f"genlab evaluate n={settings['n']}"
    if any("K" in row["conditions"] for row in measured["metrics"]):
        evaluated += f" k={settings['k']}"
    asked = [word for word in info["command"] if not word.startswith(("out=", "device.threads="))]
    return {
        "model": info["model"],
        "dataset": info["dataset"],
        "command": " ".join(asked),
        "evaluated": evaluated,
        "seed": info["seed"],
        "steps": measured["step"],
        "train_seconds": round(last["seconds"]),
        "device": info["device"],
        "metrics": measured["metrics"],
    }


def number(row: dict) -> str:
    """Return one measured number with its tag: "nll_elbo 97.8 ± 0.2 nats (bound)"."""
    error = f" ± {row['error']:.2g}" if row["error"] is not None else ""
    return f"{row['name']} {row['value']:.4g}{error} {row['unit']} ({row['tag']})"


def models_table(results: dict) -> str:
    lines = ["| recipe | paper | command | measured |", "|---|---|---|---|"]
    for path in group("model"):
        text = header(path)
        paper = re.search(r"[:(]\s*([^:()]*?\b(?:19|20)\d\d)[a-z]?,\s*(https?://[^\s,);]+)", text)
        command = re.search(r"genlab train (?:\S+=\S+ ?)+", text)
        shown = [
            f"`{r['command']}` ({r['train_seconds']:,} s), `{r['evaluated']}`: "
            + "; ".join(number(m) for m in r["metrics"] if "floor" not in m["name"])
            for r in results.values()
            if r["model"] == path.stem
        ]
        cite = f"[{paper[1]}]({paper[2].rstrip('.')})" if paper else text.split(".")[0]
        lines.append(f"| `{path.stem}` | {cite} | `{command[0].strip()}` | {'<br>'.join(shown) or '·'} |")
    return "\n".join(lines)


def speed_table(found: dict) -> str:
    lines = ["| what | genlab | against | ratio |", "|---|---|---|---|"]
    for name, seconds in found.get("start", {}).items():
        lines.append(f"| `{name}` | {seconds:.2f} s | | |")
    for row in found.values():
        if isinstance(row, dict) and "ratio" in row:
            lines.append(f"| {row['what']} | {row['genlab_s']:.2f} s | {row['other_s']:.2f} s | {row['ratio']:.2f} |")
    how = f"In one run, a few steps of each in turn: `python scripts/bench.py` ({found.get('machine', 'not yet run')})."
    return "\n".join([*lines, "", how])


def filled(text: str, tables: dict[str, str]) -> str:
    """Return the README with each table put between its markers."""
    for name, table in tables.items():
        start, end = f"<!-- {name}: written by scripts/report.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def main(folders: list[str]) -> None:
    results = read(RESULTS)
    for folder in folders:
        row = collect(Path(folder))
        results[row["command"] + f" (seed {row['seed']})"] = row
    if folders:
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    tables = {"models": models_table(results), "speed": speed_table(read(BENCHMARKS))}
    README.write_text(filled(README.read_text(), tables))


if __name__ == "__main__":
    main(sys.argv[1:])
