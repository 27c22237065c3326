"""Fill the README's tables from measurements, so that no number is typed by hand.

    python scripts/report.py [run folders]

Each run folder, evaluated before by `genlab evaluate` (or asked by another command that leaves its numbers there), adds
its numbers to docs/results.json; then the tables between the README's markers are written anew from docs/results.json,
docs/benchmarks/*.json and the headers of configs/model/, docs/results.md from docs/results.json and
docs/benchmarks/README.md from docs/benchmarks/*.json.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import yaml

from genlab.config.recipes import group, header
from genlab.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.json"
BENCHMARKS = ROOT / "docs" / "benchmarks"
README = ROOT / "README.md"


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def collect(folder: Path, record: Path) -> dict:
    """Return what docs/results.json keeps of a run and one of its records, metrics.json or that of a sampler."""
    measured = json.loads(record.read_text())
    return row(
        [RunFolder(folder)], evaluated(measured), measured["metrics"], steps=measured["step"]
    )


def row(runs: list[RunFolder], how: str, metrics: list[dict], *, steps: int | None = None) -> dict:
    """Return one row of docs/results.json: what trained the runs, how they were asked, and what was found.

    Args:
        steps: at which they were asked; None: at the end of the first.
    """
    infos = [run.info() for run in runs]
    last = [[line for line in run.history() if "seconds" in line][-1] for run in runs]
    return {
        "model": infos[0]["model"],
        "dataset": infos[0]["dataset"],
        "command": trained_by([info["command"] for info in infos]) + gone_on(runs[0], last[0]),
        "evaluated": how,
        "seed": infos[0]["seed"],
        "steps": last[0]["step"] if steps is None else steps,
        "train_seconds": round(sum(line["seconds"] for line in last)),
        "device": infos[0]["device"],
        "metrics": metrics,
    }


def trained_by(commands: list[list[str]]) -> str:
    """Return the command that trained one run, or the sweep that trained several."""
    beside = (
        "out=",
        "hydra.",
        "device.threads=",
    )  # what is of one machine; of a file's path its name is enough
    kept = [
        [re.sub(r"=/\S*/", "=", w) for w in words if not w.startswith(beside)] for words in commands
    ]
    if len(kept) == 1:
        return " ".join(kept[0])
    values: dict[str, list[str]] = {}
    for words in kept:
        for key, _, value in (word.partition("=") for word in words[2:]):
            values.setdefault(key, []).append(value)
    once = {key: list(dict.fromkeys(of)) for key, of in values.items()}
    return " ".join([*kept[0][:2], "-m", *(f"{key}={','.join(of)}" for key, of in once.items())])


def gone_on(run: RunFolder, last: dict) -> str:
    """Return the resume by which a run came further than its config says, "" if it did not."""
    planned = run.options("trainer")["trainer"]
    if last["step"] <= planned["steps"]:
        return ""
    longer = planned.get("max_time") and last["seconds"] > 60 * planned["max_time"]
    time = f" trainer.max_time={math.ceil(last['seconds'] / 60)}" if longer else ""
    return f" && genlab train resume=latest trainer.steps={last['step']}{time}"


def answers(folder: Path) -> list[dict]:
    """Return what docs/results.json keeps of `genlab classify` and `genlab anomaly` in a run's folder, or in a sweep's."""
    found = []
    for path in [*folder.glob("classify/*.json"), *folder.glob("anomaly/mean.json")]:
        record = json.loads(path.read_text())
        if path.parent.name == "classify":
            where, unit, n = record["runs"], "share", record["n"]
            rows = [("accuracy", record["accuracy"], record["standard_error"])]
            terms = (
                f" terms={record['terms']}"
                if record.get("terms") and re.search("noise|bound", record["rule"])
                else ""
            )
            how = f"genlab classify n={n}{terms}: {record['rule']}"
        else:
            where, unit, n = [run["folder"] for run in record["runs"]], "share", None
            rows = [(name, value, None) for name, value in record["mean"].items()]
            how = f"genlab anomaly: mean of {len(where)} runs, {record['runs'][0]['score']}"
        metrics = [{"name": name, "value": value, "unit": unit, "tag": "exact", "error": error,
                    "conditions": {"n": n} if n else {}} for name, value, error in rows]  # fmt: skip
        found.append(row([RunFolder(Path(run)) for run in where], how, metrics))
    return found


ASKING = (
    "translate",
    "colorize",
    "superres",
    "forecast",
    "denoise",
    "inpaint",
)  # commands whose records are numbers with errors
ASKED = (
    "in",
    "back",
    "down",
    "n",
    "films",
    "mask",
    "side",
    "noise",
    "strength",
    "draws",
    "steps",
    "judge",
)  # options in records
PAIR = {"value", "error"}  # of such a number


def askings(folder: Path) -> list[dict]:
    """Return what docs/results.json keeps of the records that such commands left in a run's samples/."""
    found, run = [], RunFolder(folder)
    for path in sorted([*run.samples.glob("*.json"), *run.samples.glob("*/*.json")]):
        command = re.match("[a-z]+", path.stem).group()
        if command not in ASKING:
            continue
        record = json.loads(path.read_text())
        kept = [key for key in ASKED if record.get(key)]
        say = {"in": lambda path: Path(path).name} | dict.fromkeys(
            ("back", "down", "judge"), lambda yes: str(yes).lower()
        )
        said = [f"{key}={say.get(key, str)(record[key])}" for key in kept]
        metrics = [{"name": name, "unit": "dB" if "_db" in name else "", "tag": "exact", "conditions": {}, **value}
                   for name, value in record.items() if isinstance(value, dict) and value.keys() == PAIR]  # fmt: skip
        found.append(
            row([run], " ".join([f"genlab {command}", *said]), metrics, steps=record["step"])
        )
    return found


def evaluated(measured: dict) -> str:
    """Return the command that gave a record."""
    settings = measured["settings"]
    command = f"genlab evaluate n={settings['n']}" + (
        f" split={settings['split']}" if settings["split"] != "test" else ""
    )
    if any("K" in row["conditions"] for row in measured["metrics"]):
        command += f" k={settings['k']}"
    if settings.get("features"):
        command += f" features=[{','.join(settings['features'])}]"
    sampler = dict(settings.get("sampler") or {})
    if name := sampler.pop("name", None) or sampler.pop("sampler", None):
        command += f" sampler={name}"
    options = (
        f" sampler.{key}={value}".replace(", ", ",")
        for key, value in sampler.items()
        if value is not None
    )
    return command + "".join(options)


def number(row: dict) -> str:
    """Return one measured number with its tag: "nll_elbo 97.8 ± 0.2 nats (bound)", and the floor where it has one."""
    error = f" ± {row['error']:.2g}" if row["error"] is not None else ""
    floor = f"; floor {row['floor']:.2g}" if row.get("floor") is not None else ""
    return f"{row['name']} {row['value']:.5g}{error} {row['unit']} ({row['tag']}{floor})"


def shown(row: dict) -> bool:
    """Whether the README shows a number: what it cost is in a column of its own, and floors are beside their numbers."""
    return row.get("metric") != "cost" and not row["name"].endswith("_floor")


# The rows that stand for a recipe in the README, the most telling first; docs/results.md has all of them.
TELLING = ("nll_gap", "nll_logit", "nats_per_token", "nll", "nll_iwae", "nll_elbo", "reconstruction",
           "classification_error", "accuracy", "class_accuracy", "class_kept", "code_purity", "psnr_luminance_db",
           "psnr_luminance_db_of_bicubic", "auroc", "modes", "fid", "frechet_classifier", "energy_distance")  # fmt: skip
TOLD = 2  # of them, at most


def telling(row: dict) -> int:
    return TELLING.index(row["name"]) if row["name"] in TELLING else len(TELLING)


def told(result: dict) -> list[dict]:
    """Return a result's most telling numbers."""
    return sorted(filter(shown, result["metrics"]), key=telling)[:TOLD]


def worth(result: dict) -> tuple[int, float]:
    """Return what of two results of one training is greater where the README shows it: more items, then the better number."""
    number = told(result)[0]
    higher = number.get("better") == "higher" or number.get("higher_is_better")
    if "better" not in number and "higher_is_better" not in number:  # of a command's record
        higher = not re.match("nll|squared_error|energy", number["name"])
    n = number["conditions"].get("n", 0)
    return n if isinstance(n, int) else 0, number["value"] if higher else -number["value"]


def best(results: list[dict]) -> list[dict]:
    """Return of each training and kind of number the result that stands for it, in the order in which they came."""
    kinds: dict[tuple, dict] = {}
    for result in results:
        kind = (result["command"], *(number["name"] for number in told(result)))
        kinds[kind] = max(kinds.get(kind, result), result, key=worth)
    return list(kinds.values())


def models_table(results: dict) -> str:
    """Return a row a recipe: its paper, its command, and of each of its trainings the most telling numbers."""
    lines = []
    for path in group("model"):
        text = header(path)
        paper = re.search(r"[:(]\s*([^:()]*?\b(?:19|20)\d\d)[a-z]?,\s*(https?://[^\s,);]+)", text)
        command = re.search(r"genlab train (?:\S+=\S+ ?)+", text)
        measured = []
        for result in best([r for r in results.values() if r["model"] == path.stem]):
            took = f" ({result['train_seconds']:,} s)" if result["train_seconds"] else ""
            measured.append(f"{'; '.join(map(number, told(result)))}: `{result['command']}`{took}")
        cite = f"[{paper[1]}]({paper[2].rstrip('.:')})" if paper else text.split(".")[0]
        lines.append(
            (f"`{path.stem}`", cite, f"`{command[0].strip()}`", "<br>".join(measured) or "·")
        )
    return table(("recipe", "paper", "command", "measured"), lines)


def results_page(results: dict) -> str:
    """Return docs/results.md: every measured run with the command that trained it, the one that asked it, and all numbers."""
    parts = ["# Results", "", "Written by `scripts/report.py` from results.json: no number here is typed by hand. Test items, "
             "unless a number says otherwise; seconds are of training, on the device named."]  # fmt: skip
    for path in group("model"):
        own = [r for r in results.values() if r["model"] == path.stem]
        if not own:
            continue
        rows = [
            (f"`{r['command']}`", f"{r['train_seconds']:,} s, {r['device']}", f"`{r['evaluated']}`",
             "<br>".join(number(m) for m in r["metrics"] if shown(m)))
            for r in own
        ]  # fmt: skip
        parts += [
            "",
            f"## {path.stem}",
            "",
            table(("trained by", "took", "asked by", "numbers"), rows),
        ]
    return "\n".join(parts) + "\n"


# --- the benchmarks ---------------------------------------------------------------------------------------------------


def pairs(found: dict, kind: str) -> list[dict]:
    """Return the measured rows of docs/benchmarks/cpu.json: "loop", "sample", or "other" for what else one would take."""
    kinds = {name: "sample" if name.startswith("sample_") else "loop" if name.endswith("_loop") else "other"
             for name in found.get("pairs", {})}  # fmt: skip
    return [
        row
        for name, row in found.get("pairs", {}).items()
        if kinds[name] == kind and "skipped" not in row
    ]


def span(row: dict) -> str:
    """Return the ratio of a pair: the turns' median, and their quartiles."""
    low, high = row["quartiles"]
    digits = 2 if low >= 0.1 else 3
    return f"{row['median_ratio']:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def bar(row: dict) -> str:
    return f"≤ {row['bar']:.3g}: {'met' if row['met'] else 'missed'}" if "bar" in row else ""


def what(row: dict) -> str:
    """Return what a pair measures, with the threads that it had."""
    return f"{row['what']}; {row['threads']} thread{'s'[: row['threads'] > 1]}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(found: dict) -> str:
    versions = found["versions"]
    numbers = sorted({row["threads"] for row in found["pairs"].values() if "threads" in row})
    threads = f"{' or '.join(map(str, numbers))} thread{'s'[: numbers != [1]]}"
    return f"{found['machine']}, {threads}, torch {versions['torch']}, Python {versions['python']}"


def trials(found: dict) -> str:
    """Return the warning that numbers were not measured at full length, where they were not."""
    if found["share"] == 1 and found["data"] == "mnist":
        return ""
    return (
        f"**A trial, not a measurement: {found['share']:g} of the steps, data: {found['data']}.**"
    )


def mib(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""


def lectures_table() -> str:
    """Return what each lecture shows, with its command and the time that it took."""
    rows, took = [], read(ROOT / "docs" / "lectures.json")
    for path in group("experiment/lecture"):
        config = yaml.safe_load(path.read_text())
        about = ", ".join(config["train"])
        time = took.get(path.stem)
        seconds = f"{time['seconds']} s on {time['cores']} cores" if time else "·"
        rows.append(
            (config["title"], f"`genlab compare experiment=lecture/{path.stem}`", about, seconds)
        )
    return table(("figure", "command", "trains", "took"), rows)


def speed_table(found: dict, gpu: dict) -> str:
    """Return the README's table: the pairs that have a bar, and the fastest mode of each network on the GPU."""
    if not found.get("pairs"):
        return "Not measured yet: `python scripts/bench.py`."
    head = ("what", "against", "genlab's time over the other's", "bar")
    judged = [
        row for kind in ("loop", "other", "sample") for row in pairs(found, kind) if "bar" in row
    ]
    lines = [table(head, [(what(row), row["against"], span(row), bar(row)) for row in judged]), ""]
    rows = [row for row in gpu.get("rows", {}).values() if "skipped" not in row]
    best = {row["case"]: row for row in sorted(rows, key=lambda row: row["genlab_items_s"])}
    if best:
        cells = [
            (row["what"], row["mode"], f"{row['genlab_items_s']:,.0f}", f"{row['median_ratio']:.2f}",
             f"{row['share_of_peak']:.1%}")
            for row in best.values()
        ]  # fmt: skip
        head = (
            f"on one {gpu['device']}",
            "fastest mode",
            "items/s",
            "time over the bare loop's",
            "share of the peak",
        )
        lines += [table(head, cells), ""]
    if trial := trials(found):
        lines += [trial, ""]
    how = f"Medians over turns in one run, with quartiles: `{found['command']}` ({machine(found)})."
    return "\n".join([*lines, f"{how} All of it: [docs/benchmarks](docs/benchmarks/README.md)."])


def benchmark_page(found: dict, gpu: dict) -> str:
    """Return docs/benchmarks/README.md."""
    parts = [
        "# Benchmarks",
        "",
        "Written by `scripts/report.py` from cpu.json and gpu.json: no number here is typed by hand.",
    ]
    if found.get("pairs"):
        parts += cpu_parts(found)
    if gpu.get("rows"):
        parts += gpu_parts(gpu)
    return "\n".join(parts) + "\n"


def cpu_parts(found: dict) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        "", "## On a processor", "",
        f"`{found['command']}` on {machine(found)}. genlab's own training loop and the other take turns in one run, the first "
        "turn of each uncounted; a ratio is genlab's time over the other's, the median of all turns and their quartiles.",
        "", f"Versions: {packages}.",
    ]  # fmt: skip
    if trial := trials(found):
        parts += ["", trial]
    both = lambda row: (f"{row['genlab_us'] / 1e3:.2f}", f"{row['other_us'] / 1e3:.2f}")  # noqa: E731
    rows = [
        (
            what(r),
            *both(r),
            f"{r['overhead_us']:,.0f}",
            span(r),
            bar(r),
            f"{r['turns']} × {r['block']}",
        )
        for r in pairs(found, "loop")
    ]
    head = (
        "what",
        "genlab, ms a step",
        "by hand, ms",
        "difference, µs a step",
        "ratio",
        "bar",
        "turns × steps",
    )
    about = "The same network, batch and optimizer, and nothing else."
    parts += ["", "### Against the loop by hand", "", about, "", table(head, rows)]
    rows = [
        (what(r), r["against"], *both(r), span(r), bar(r), f"{r['turns']} × {r['block']}",
         f"{r['parameters']:,}" + (f" / {r['other_parameters']:,}" if "other_parameters" in r else ""))
        for r in pairs(found, "other")
    ]  # fmt: skip
    head = (
        "what",
        "against",
        "genlab, ms a step",
        "other, ms",
        "ratio",
        "bar",
        "turns × steps",
        "parameters",
    )
    about = "Parameters: genlab's / the other's, where they differ."
    parts += ["", "### Against what one would take instead", "", about, "", table(head, rows)]
    rate = lambda us: f"{1e6 / us:,.0f}" if us < 1e5 else f"{1e6 / us:.2g}"  # noqa: E731
    rows = [
        (what(r), r["against"], rate(r["genlab_us"]), rate(r["other_us"]), span(r), bar(r))
        for r in pairs(found, "sample")
    ]
    head = ("what", "against", "genlab, items/s", "other, items/s", "ratio of times", "bar")
    parts += ["", "### Sampling", "", table(head, rows)]
    absent = [
        (r["what"], r["against"], r["skipped"]) for r in found["pairs"].values() if "skipped" in r
    ]
    if absent:
        parts += ["", "### Not measured", "", table(("what", "against", "why"), absent)]
    if "start_up" in found:
        rows = [
            (f"`{k}`", f"{v['median']:.2f}", f"{v['least']:.2f}–{v['most']:.2f}")
            for k, v in found["start_up"].items()
        ]
        parts += ["", "### Start-up", "", table(("process", "median, s", "least–most, s"), rows)]
    if "memory" in found:
        rows = [
            (k if " -c " not in k else f"`{k}`", f"{v:,.0f}") for k, v in found["memory"].items()
        ]
        about = "Of a process that trains the same VAE on MNIST for as many steps."
        parts += ["", "### Peak memory", "", about, "", table(("process", "MiB"), rows)]
    return parts


def gpu_parts(gpu: dict) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in gpu["versions"].items())
    parts = [
        "", f"## On one {gpu['device']}", "",
        f"`{gpu['command']}`: genlab's updates (`Trainer.advance`) and the loop by hand of the same network in the same mode "
        "take turns; the data are random bytes on the device. FLOP are counted by torch.utils.flop_counter.",
        "", f"Versions: {packages}.", "",
    ]  # fmt: skip
    if gpu["small"]:
        parts += ["**A trial with tiny networks, not a measurement.**", ""]
    peaks = [
        (k, f"{v['tflops']:,.1f}", v["source"], f"{v['matmul_tflops']:,.1f}")
        for k, v in gpu["peaks"].items()
    ]
    parts += [
        table(("arithmetic", "peak, TFLOP/s", "by", "a large matrix product, TFLOP/s"), peaks),
        "",
    ]
    rows = [
        (r["what"], r["mode"], f"{r['genlab_items_s']:,.0f}", f"{r['other_items_s']:,.0f}", f"{r['median_ratio']:.3f}",
         f"{r['tflops']:,.1f}", f"{r['share_of_peak']:.1%}", f"{mib(r['memory_mib'])} / {mib(r['other_memory_mib'])}")
        if "skipped" not in r else (r["what"], r["mode"], "not measured", r["skipped"], "", "", "", "")
        for r in gpu["rows"].values()
    ]  # fmt: skip
    head = ("what", "mode", "genlab, items/s", "by hand, items/s", "ratio of times", "TFLOP/s", "share of the peak",
            "peak memory, MiB")  # fmt: skip
    return [*parts, table(head, rows)]


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
        for record in sorted(Path(folder).glob("metrics*.json")):
            found = collect(Path(folder), record)
            by = record.stem.removeprefix("metrics").removeprefix(
                "-"
            )  # the sampler, if it is not the model's own
            results[found["command"] + f" (seed {found['seed']})" + (f" by {by}" if by else "")] = (
                found
            )
        for found in [*answers(Path(folder)), *askings(Path(folder))]:
            results[f"{found['command']} (seed {found['seed']}): {found['evaluated']}"] = found
    if folders:
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    cpu, gpu = read(BENCHMARKS / "cpu.json"), read(BENCHMARKS / "gpu.json")
    tables = {
        "lectures": lectures_table(),
        "models": models_table(results),
        "speed": speed_table(cpu, gpu),
    }
    README.write_text(filled(README.read_text(), tables))
    (BENCHMARKS / "README.md").write_text(benchmark_page(cpu, gpu))
    (ROOT / "docs" / "results.md").write_text(results_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
