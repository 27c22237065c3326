"""Write the tables of README.md and docs/ from measurements.

    python scripts/report.py [--check] [run folders]

Each run folder adds its numbers to docs/results.json. They come from `genlab evaluate`, or from
another command that writes numbers into the run folder. Then all tables are written:

    README.md                   the table of families, between its markers
    docs/models.md              the recipes, with the best number of each
    docs/lectures.md            the figures of configs/lectures/
    docs/speed.md               the pairs of docs/benchmarks/*.json that have a bar
    docs/results.md             every number of docs/results.json
    docs/benchmarks/README.md   every number of docs/benchmarks/*.json

With --check nothing is written; the exit code is 1 if a page differs from what would be written.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from report_benchmarks import benchmark_page, markdown_table, speed_table

from genlab.comparison.lecture_figures import (
    list_lecture_figures,
    read_figure_record,
    shipped_lectures_folder,
)
from genlab.comparison.lecture_page import planned_commands
from genlab.config.recipes import Recipe, list_recipes
from genlab.runs.migrations import migrate_overrides
from genlab.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RESULTS = DOCS / "results.json"
DURATIONS = shipped_lectures_folder() / "durations.yaml"

Result = dict[str, Any]  # one entry of docs/results.json
Number = dict[str, Any]  # one measured number of an entry


@dataclass(frozen=True)
class Family:
    """A family of models: a row of the README's table and a section of docs/models.md."""

    title: str
    packages: tuple[str, ...]  # modules or packages of genlab.models
    headline: tuple[str, str, str]  # recipe, number and dataset that stand for the family

    @property
    def anchor(self) -> str:
        """The anchor of the section in docs/models.md, as GitHub derives it from the title."""
        return re.sub(r"[^\w-]", "", self.title.lower().replace(" ", "-"))


TRANSLATION = ("gan.pix2pix", "gan.cyclegan", "gan.srgan", "gan.next_frame", "gan.unit")
FAMILIES = (
    Family("Classical", ("classical",), ("gmm", "accuracy", "mnist")),
    Family("Autoencoders", ("autoencoder",), ("ae", "reconstruction", "mnist")),
    Family("VAEs", ("vae",), ("vae_iwae", "nll_iwae", "mnist")),
    Family("Normalizing flows", ("flow",), ("nsf", "kl_to_truth", "ring")),
    Family("Autoregressive", ("autoregressive",), ("pixelcnn", "nll", "mnist")),
    Family("Tables", ("tabular",), ("tabddpm", "utility_auc", "mixed_table")),
    Family("Series", ("series",), ("deepar", "crps", "ar2")),
    Family("Boltzmann machines", ("boltzmann",), ("dbn", "nll_iwae", "mnist")),
    Family("Image translation", TRANSLATION, ("srresnet", "psnr_y", "superres")),
    Family("GANs", ("gan",), ("sngan", "frechet_classifier", "mnist")),
    Family("Diffusion", ("diffusion",), ("ddpm_small", "frechet_classifier", "mnist")),
)


# --- collecting results ---------------------------------------------------------------------------


def read_json_or_empty(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def make_result_entry(
    runs: list[RunFolder], evaluated: str, metrics: list[Number], *, step: int | None = None
) -> Result:
    """Return one entry of docs/results.json.

    Args:
        runs: one run, or the runs of a sweep.
        evaluated: the command that measured the numbers.
        step: the step that was measured; by default the last of the first run.
    """
    infos = [run.metadata() for run in runs]
    last = [[line for line in run.read_log() if "seconds" in line][-1] for run in runs]
    command = training_command(
        [
            [*info["command"][:2], *migrate_overrides(info["command"][2:], info.get("format", 1))]
            for info in infos
        ]
    )
    return {
        "model": infos[0]["model"],
        "dataset": infos[0]["dataset"],
        "command": command + resume_command(runs[0], last[0]),
        "evaluated": evaluated,
        "seed": infos[0]["seed"],
        "steps": last[0]["step"] if step is None else step,
        "train_seconds": round(sum(line["seconds"] for line in last)),
        "device": infos[0]["device"],
        "metrics": metrics,
    }


MACHINE_OPTIONS = ("out=", "hydra.", "device.threads=")  # they do not describe the experiment


def training_command(commands: list[list[str]]) -> str:
    """Return the command that trained one run, or the sweep that trained several."""
    kept = [
        # the name of a file is enough, without its folder
        [re.sub(r"=/\S*/", "=", word) for word in words if not word.startswith(MACHINE_OPTIONS)]
        for words in commands
    ]
    if len(kept) == 1:
        return " ".join(kept[0])
    values: dict[str, list[str]] = {}
    for words in kept:
        for key, _, value in (word.partition("=") for word in words[2:]):
            values.setdefault(key, []).append(value)
    swept = [f"{key}={','.join(dict.fromkeys(of_key))}" for key, of_key in values.items()]
    return " ".join([*kept[0][:2], "-m", *swept])


def resume_command(run: RunFolder, last: dict[str, Any]) -> str:
    """Return the resume that took a run beyond the steps of its config, or ""."""
    planned = run.read_config("trainer")["trainer"]
    if last["step"] <= planned["steps"]:
        return ""
    command = f" && genlab train resume=latest trainer.steps={last['step']}"
    minutes = planned.get("max_minutes")
    if minutes and last["seconds"] > 60 * minutes:
        command += f" trainer.max_minutes={math.ceil(last['seconds'] / 60)}"
    return command


def make_evaluate_entry(folder: Path, record: Path) -> Result:
    """Return the entry of a record of `genlab evaluate`, metrics[-<sampler>].json."""
    measured = json.loads(record.read_text())
    command = evaluate_command(measured)
    return make_result_entry(
        [RunFolder(folder)], command, measured["metrics"], step=measured["step"]
    )


def evaluate_command(measured: dict[str, Any]) -> str:
    """Return the `genlab evaluate` command that wrote a record."""
    settings = measured["settings"]
    words = [f"genlab evaluate n={settings['n']}"]
    if settings["split"] != "test":
        words.append(f"split={settings['split']}")
    if any("iwae_samples" in number["conditions"] for number in measured["metrics"]):
        words.append(f"iwae_samples={settings['iwae_samples']}")
    if settings.get("features"):
        words.append(f"features=[{','.join(settings['features'])}]")
    sampler = dict(settings.get("sampler") or {})
    if name := sampler.pop("name", None) or sampler.pop("sampler", None):
        words.append(f"sampler={name}")
    words += [
        f"sampler.{key}={value}".replace(", ", ",")
        for key, value in sampler.items()
        if value is not None
    ]
    return " ".join(words)


def classify_and_anomaly_entries(folder: Path) -> list[Result]:
    """Return the entries of `genlab classify` and `genlab anomaly` in a run or sweep folder."""
    entries = []
    for path in folder.glob("classify/*.json"):
        record = json.loads(path.read_text())
        n, rule = record["n"], record["rule"]
        command = f"genlab classify n={n}"
        if record.get("elbo_timesteps") and re.search("noise|bound", rule):
            command += f" elbo_timesteps={record['elbo_timesteps']}"
        numbers = [("accuracy", record["accuracy"], record["standard_error"])]
        runs = [RunFolder(Path(run)) for run in record["runs"]]
        entries.append(
            make_result_entry(runs, f"{command}: {rule}", make_exact_numbers(numbers, {"n": n}))
        )
    for path in sorted(folder.glob("anomaly/mean*.json")):
        record = json.loads(path.read_text())
        runs = [RunFolder(Path(run["folder"])) for run in record["runs"]]
        evaluated = f"genlab anomaly: mean of {len(runs)} runs, {record['runs'][0]['score']}"
        numbers = [(name, value, None) for name, value in record["mean"].items()]
        entries.append(make_result_entry(runs, evaluated, make_exact_numbers(numbers, {})))
    return entries


def make_exact_numbers(
    numbers: Iterable[tuple[str, float, float | None]], conditions: dict[str, Any]
) -> list[Number]:
    """Return shares (name, value, standard error) as numbers of an entry."""
    return [
        {
            "name": name,
            "value": value,
            "unit": "share",
            "tag": "exact",
            "error": error,
            "conditions": conditions,
        }
        for name, value, error in numbers
    ]


# Commands that write records of numbers with errors into samples/, and the options in them.
SAMPLE_COMMANDS = ("translate", "colorize", "superres", "forecast", "denoise", "inpaint")
RECORD_OPTIONS = (
    "input_dir",
    "backward",
    "downsample",
    "n",
    "videos",
    "mask",
    "half",
    "noise",
    "strength",
    "draws",
    "steps",
    "classify_fills",
)


def sample_command_entries(folder: Path) -> list[Result]:
    """Return the entries of the records that SAMPLE_COMMANDS left in a run's samples/."""
    entries, run = [], RunFolder(folder)
    for path in sorted([*run.samples.glob("*.json"), *run.samples.glob("*/*.json")]):
        command = path.stem.partition("_")[0]
        if command not in SAMPLE_COMMANDS:
            continue
        record = json.loads(path.read_text())
        words = [f"{key}={format_option(record[key])}" for key in RECORD_OPTIONS if record.get(key)]
        metrics = [
            {
                "name": name,
                "unit": "dB" if name.startswith("psnr") else "",
                "tag": "exact",
                "conditions": {},
                **value,
            }
            for name, value in record.items()
            if isinstance(value, dict) and value.keys() == {"value", "error"}
        ]
        evaluated = " ".join([f"genlab {command}", *words])
        entries.append(make_result_entry([run], evaluated, metrics, step=record["step"]))
    return entries


def format_option(value: Any) -> str:
    """Return the value of an option as it is typed; the name of a path without its folder."""
    if isinstance(value, bool):
        return str(value).lower()
    return Path(value).name if isinstance(value, str) else str(value)


def collect_results(folder: Path) -> dict[str, Result]:
    """Return the entries of a run folder by their keys in docs/results.json."""
    found = {}
    for record in sorted(folder.glob("metrics*.json")):
        entry = make_evaluate_entry(folder, record)
        sampler = record.stem.removeprefix("metrics").removeprefix("-")
        key = f"{entry['command']} (seed {entry['seed']})"
        found[f"{key} by {sampler}" if sampler else key] = entry
    for entry in [*classify_and_anomaly_entries(folder), *sample_command_entries(folder)]:
        found[f"{entry['command']} (seed {entry['seed']}): {entry['evaluated']}"] = entry
    return found


# --- choosing numbers -----------------------------------------------------------------------------

# The numbers that represent a recipe in docs/models.md, the most informative first.
HEADLINE_NUMBERS = (
    "kl_to_truth",
    "nll_logit",
    "nats_per_token",
    "nll",
    "nll_iwae",
    "nll_elbo",
    "reconstruction",
    "classification_error",
    "accuracy",
    "class_accuracy",
    "class_kept",
    "code_purity",
    "psnr_y",
    "psnr_y_bicubic",
    "auroc",
    "utility_auc",
    "mode_count",
    "fid",
    "frechet_classifier",
    "energy_distance",
)
NUMBERS_PER_RESULT = 2


def real_vs_real_value(number: Number) -> float | None:
    """Return the value of a metric between two halves of the real data, if it was measured."""
    return number.get("real_vs_real", number.get("floor"))


def format_number(number: Number) -> str:
    """Return a number with error, unit and tag: "nll_elbo 97.8 ± 0.2 nats (bound)"."""
    text = f"{number['name']} {number['value']:.5g}"
    if number["error"] is not None:
        text += f" ± {number['error']:.2g}"
    if number["unit"]:
        text += f" {number['unit']}"
    tag = number["tag"]
    if (reference := real_vs_real_value(number)) is not None:
        tag += (
            f"; real vs real {reference:,.0f}"
            if reference >= 100
            else f"; real vs real {reference:.2g}"
        )
    return f"{text} ({tag})"


def is_quality_number(number: Number) -> bool:
    """Return whether a number measures quality, not cost, and is not a reference value."""
    is_cost = number.get("metric") in ("cost", "efficiency")
    return not is_cost and not number["name"].endswith(("_floor", "_real_vs_real"))


def headline_rank(number: Number) -> int:
    """Return the place of a number in HEADLINE_NUMBERS."""
    names = HEADLINE_NUMBERS
    return names.index(number["name"]) if number["name"] in names else len(names)


def headline_numbers(result: Result) -> list[Number]:
    """Return the most informative numbers of a result."""
    numbers = filter(is_quality_number, result["metrics"])
    return sorted(numbers, key=headline_rank)[:NUMBERS_PER_RESULT]


def higher_is_better(number: Number) -> bool:
    if "better" in number:
        return number["better"] == "higher"
    if "higher_is_better" in number:
        return bool(number["higher_is_better"])
    return not re.match("nll|squared_error|energy|frechet|kl_", number["name"])


def quality_sort_key(result: Result) -> tuple[int, float]:
    """Return a sort key for results of one kind: more items first, then the better number."""
    number = headline_numbers(result)[0]
    n = number["conditions"].get("n", 0)
    value = number["value"] if higher_is_better(number) else -number["value"]
    return n if isinstance(n, int) else 0, value


def best_results(results: Iterable[Result]) -> list[Result]:
    """Return the best result for each dataset and kind of number, in order of appearance."""
    best: dict[tuple[str, ...], Result] = {}
    for result in results:
        names = [number["name"] for number in headline_numbers(result)]
        kind = (result["dataset"], *names)
        best[kind] = max(best.get(kind, result), result, key=quality_sort_key)
    return list(best.values())


# --- tables ---------------------------------------------------------------------------------------


def family_of_recipe(recipe: Recipe) -> Family:
    """Return the family of a recipe, by the module of its model."""
    for family in FAMILIES:
        packages = tuple(f"genlab.models.{package}." for package in family.packages)
        if recipe.target.startswith(packages):
            return family
    raise ValueError(f"add the package of {recipe.target} to FAMILIES in scripts/report.py")


def recipes_of_family(family: Family) -> list[Recipe]:
    """Return the recipes of a family, by name."""
    return [recipe for recipe in list_recipes() if family_of_recipe(recipe) is family]


def headline_cell(family: Family, results: list[Result]) -> str:
    """Return the best number that stands for a family, with its recipe and dataset."""
    recipe, name, dataset = family.headline
    numbers = [
        number
        for result in results
        if result["model"] == recipe and result["dataset"] == dataset
        for number in result["metrics"]
        if number["name"] == name
    ]
    if not numbers:
        return "·"
    sign = 1 if higher_is_better(numbers[0]) else -1
    best = max(numbers, key=lambda number: sign * number["value"])
    text = f"{name} {best['value']:.4g}"
    if error := best["error"]:
        decimals = max(0, 1 - math.floor(math.log10(error)))  # two digits of the error
        text = f"{name} {best['value']:.{decimals}f} ± {error:.{decimals}f}"
    if best["unit"] not in ("", "share"):
        text += f" {best['unit']}"
    return f"{text} ({best['tag']}): {recipe}, {dataset}"


# Recipes that repeat another one for other data or at another size; the README does not list them.
VARIANTS = ("_points", "_small", "_conv")


def families_table(results: list[Result]) -> str:
    """Return one row for each family: link, recipes and best number."""
    rows = []
    for family in FAMILIES:
        names = ", ".join(
            recipe.name
            for recipe in recipes_of_family(family)
            if not recipe.name.endswith(VARIANTS)
        )
        link = f"[{family.title}](docs/models.md#{family.anchor})"
        rows.append((link, names, headline_cell(family, results)))
    return markdown_table(("family", "models", "best measured"), rows)


def models_tables(results: list[Result]) -> str:
    """Return a section for each family: the paper, command and best numbers of each recipe."""
    parts = []
    for family in FAMILIES:
        rows = [recipe_row(recipe, results) for recipe in recipes_of_family(family)]
        table = markdown_table(("recipe", "paper", "command", "best measured"), rows)
        parts += [f"## {family.title}", "", table, ""]
    return "\n".join(parts)


def recipe_row(recipe: Recipe, results: list[Result]) -> tuple[str, ...]:
    """Return the paper, command and best numbers of a recipe."""
    text = recipe.header
    paper = re.search(r"[:(]\s*([^:()]*?\b(?:19|20)\d\d)[a-z]?,\s*(https?://[^\s,);]+)", text)
    command = re.search(r"genlab train (?:\S+=\S+ ?)+", text)
    if command is None:
        raise ValueError(
            f"configs/model/{recipe.name}.yaml: its first comment shows no `genlab train` command"
        )
    cite = f"[{paper[1]}]({paper[2].rstrip('.:')})" if paper else text.split(".")[0]
    lines = [
        f"{result['dataset']}: {'; '.join(map(format_number, headline_numbers(result)))}"
        for result in best_results(r for r in results if r["model"] == recipe.name)
    ]
    if lines:
        lines.append(f"[all numbers](results.md#{recipe.name})")
    return f"`{recipe.name}`", cite, f"`{command[0].strip()}`", "<br>".join(lines) or "·"


def lectures_table() -> str:
    """Return the figures of the lectures by topic, with their commands and their duration."""
    rows = []
    durations = yaml.safe_load(DURATIONS.read_text()) or {}
    for figure in list_lecture_figures():
        time = durations.get(figure.name)
        duration = f"{time['seconds']:.0f} s on {time['cores']} cores" if time else "·"
        commands = "<br>".join(f"`{command}`" for command in planned_commands(figure))
        rows.append((figure.topic, figure.title, f"`{figure.name}`", commands, duration))
    return markdown_table(("topic", "figure", "name", "commands", "duration"), rows)


def write_lecture_durations(folder: Path) -> None:
    """Write how long the figures took that `genlab lectures` made in a folder."""
    durations = yaml.safe_load(DURATIONS.read_text()) or {}
    for figure in list_lecture_figures():
        record = read_figure_record(folder / "figures" / figure.folder_name)
        if record is not None and not record.error:
            seconds = round(record.seconds, 1)
            durations[figure.name] = {"seconds": seconds, "cores": record.cores}
    header = "# Written by `python scripts/report.py --lectures <folder>`.\n"
    DURATIONS.write_text(header + yaml.safe_dump(durations))


def results_page(results: list[Result]) -> str:
    """Return docs/results.md: every measured run with its commands and all its numbers."""
    parts = [
        "# Results",
        "",
        "Written by `scripts/report.py` from results.json; no number is typed by hand. Numbers are "
        "measured on test items unless the command says otherwise. Seconds are of training, on the "
        "device named.",
    ]
    head = ("trained by", "duration", "measured by", "numbers")
    for recipe in list_recipes():
        rows = [result_cells(result) for result in results if result["model"] == recipe.name]
        if rows:
            parts += ["", f"## {recipe.name}", "", markdown_table(head, rows)]
    return "\n".join(parts) + "\n"


def result_cells(result: Result) -> tuple[str, ...]:
    return (
        f"`{result['command']}`",
        f"{result['train_seconds']:,} s, {result['device']}",
        f"`{result['evaluated']}`",
        "<br>".join(map(format_number, filter(is_quality_number, result["metrics"]))),
    )


# --- pages ----------------------------------------------------------------------------------------


def replace_marked_block(text: str, name: str, content: str) -> str:
    """Replace what is between the markers of a block."""
    start, end = f"<!-- {name}: written by scripts/report.py -->", f"<!-- end of {name} -->"
    if start not in text or end not in text:
        raise ValueError(f"the block {name!r} is missing: add {start} and {end}")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def build_page_texts() -> dict[Path, str]:
    """Return the text of every page that has tables."""
    results = list(read_json_or_empty(RESULTS).values())
    cpu, gpu = (read_json_or_empty(DOCS / "benchmarks" / f"{name}.json") for name in ("cpu", "gpu"))
    blocks = {
        ROOT / "README.md": ("families", families_table(results)),
        DOCS / "models.md": ("models", models_tables(results)),
        DOCS / "lectures.md": ("lectures", lectures_table()),
        DOCS / "speed.md": ("speed", speed_table(cpu, gpu)),
    }
    return {
        path: replace_marked_block(path.read_text(), *block) for path, block in blocks.items()
    } | {
        DOCS / "results.md": results_page(results),
        DOCS / "benchmarks" / "README.md": benchmark_page(cpu, gpu),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="run folders to add")
    parser.add_argument(
        "--lectures", type=Path, help="output_dir of `genlab lectures`, to record the durations"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare the pages")
    options = parser.parse_args(arguments)
    if options.folders and not options.check:
        results = read_json_or_empty(RESULTS)
        for folder in options.folders:
            results |= collect_results(folder)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if options.lectures and not options.check:
        write_lecture_durations(options.lectures)
    changed = [path for path, text in build_page_texts().items() if path.read_text() != text]
    if options.check:
        for path in changed:
            print(f"{path.relative_to(ROOT)} is out of date: run python scripts/report.py")
        return int(bool(changed))
    for path, text in build_page_texts().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
