"""Train the recipes and experiments of configs/ as shipped for a while, and judge their losses.

`PYTHONPATH=tests python -m helpers.shipped_trainings TABLE [LIMIT_S] [WORDS…]` trains them one
after another and writes TABLE, a Markdown table, after each; rows that TABLE has are kept. It
trains everything for FIRST_LIMIT_S first, and what has then made too few steps again for LIMIT_S.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml
from helpers.recipes import CONFIGS, compose_command

MIN_STEPS = 200
MIN_SECONDS = 10.0  # of training, so that a fast training is judged after more steps
LIMIT_S = 180.0
FIRST_LIMIT_S = 20.0  # of the first pass over all trainings, which ends the short ones
START_LIMIT_S = 300.0  # for data, codecs and teachers before the first step
EDGE_FRACTION = 0.1  # of the steps at either end whose mean losses are compared
MIN_EDGE = 3  # steps at either end
MIN_JUDGED_STEPS = 10  # of a training that was cut; fewer show no trend
ZERO_GRADIENT = 1e-3  # of the later gradient norms, which are those of noise in the batches
MAX_ADVANTAGE = 0.99  # of a discriminator, as genlab.models.gan.trainer reports it
# One line of the log per step, and no pictures; a codec or teacher is trained for a minute.
LOG_EVERY_STEP = ("trainer.log_every=1", "trainer.preview_every=0", "device=cpu")
PART_LIMIT = "trainer.max_minutes=1"
NOT_LOSSES = {"step", "seconds", "seconds_left", "items_per_s", "memory_mb"}
HEADER = ("training", "dataset", "steps", "seconds", "quantity", "first", "last", "verdict")


@dataclass
class Outcome:
    """What a training did until it ended or was stopped.

    Attributes:
        log: the lines of stats.jsonl with losses.
        seconds: since the first step.
        improvement: quantity -> (before, after), of the families whose loss does not fall.
    """

    words: str
    dataset: str = ""
    trainer: str = ""
    log: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    is_cut: bool = False  # stopped by the time limit, before MIN_STEPS
    skipped: str = ""
    error: str = ""
    improvement: dict[str, tuple[float, float]] = field(default_factory=dict)

    def edges(self, name: str) -> tuple[list[float], list[float]]:
        """Return the first and the last tenth of the values of a logged quantity."""
        values = [line[name] for line in self.log if name in line]
        k = min(len(values), max(MIN_EDGE, math.ceil(EDGE_FRACTION * len(values))))
        return values[:k], values[-k:]

    def judged_quantity(self) -> str:
        """Return the logged quantity that must fall, or "" if the family has none."""
        names = set().union(*self.log)
        if self.trainer in ("rbm", "greedy") and "energy/data" in names:
            return ""  # the contrast of two energies
        for name in ("negative_elbo", "error", "l1", "mse", "content", "cycle", "loss"):
            if name in names:
                return name
        return ""

    def begins_at_optimum(self) -> bool:
        """Whether the first gradient vanishes, as of a model that is initialized by its data."""
        norms = [line["grad_norm/model"] for line in self.log if "grad_norm/model" in line]
        return len(norms) > 1 and norms[0] < ZERO_GRADIENT * median(norms[1:])

    def verdict(self) -> tuple[str, str, float, float]:
        """Return the verdict, which starts with "ok" if it is good, and what it rests on."""
        if self.skipped or self.error or not self.log:
            reason = self.skipped and f"skipped: {self.skipped}"
            return reason or self.error or "no step within the limit", "", math.nan, math.nan
        names = {k for line in self.log for k in line} - NOT_LOSSES
        losses = {name for name in names if not name.startswith("grad_norm")}
        for name in sorted(losses):
            if not all(math.isfinite(line.get(name, 0.0)) for line in self.log):
                return f"FAILED: {name} is not finite", name, math.nan, math.nan
        name = self.judged_quantity()
        if name:
            first, last = self.edges(name)
            before, after = fmean(first), fmean(last)
            noise = sum(stdev(e) ** 2 / len(e) for e in (first, last) if len(e) > 1) ** 0.5
            if self.is_cut and len(self.log) < MIN_JUDGED_STEPS:
                return "ok: finite, too few steps for a trend", name, before, after
            if len(self.log) == 1:
                return "ok: one step, finite", name, before, after
            if after > before + 2 * noise:
                return "FAILED: rises", name, before, after
            result = "ok: falls" if after < before else "FAILED: does not fall"
            if after >= before and self.begins_at_optimum():
                result = "ok: begins at its optimum and stays there"
        else:
            name, (before, after) = next(iter(self.improvement.items()), ("", (math.nan,) * 2))
            good = after < before if name == "reconstruction error" else after > before
            result = "ok: improves" if good else "FAILED: does not improve"
        advantages = [k for k in losses if k.partition("/")[0] == "d_advantage"]
        if any(fmean(self.edges(k)[1]) > MAX_ADVANTAGE for k in advantages):
            result = "FAILED: the discriminator is saturated"
        return result, name, before, after

    def row(self) -> tuple[str, ...]:
        """Return the row of the table."""
        verdict, name, before, after = self.verdict()
        steps = str(int(self.log[-1]["step"])) if self.log else "0"
        numbers = [f"{v:.4g}" if math.isfinite(v) else "" for v in (before, after)]
        cells = (self.words, self.dataset, steps, f"{self.seconds:.0f}", name, *numbers, verdict)
        return tuple(cell.replace("|", "/") for cell in cells)


# --- what is trained ------------------------------------------------------------------------------


def list_trainings() -> list[str]:
    """Return the words after `genlab train` of everything that ships, found by listing.

    A recipe is trained by the first command of its header and on its default data; a comparison
    by each of its runs.
    """
    found: dict[str, None] = {}
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        command = re.search(rf"(?<=genlab train )model={path.stem} [^…|\n]*$", header(path), re.M)
        if command:
            words = [w for w in re.split(r"\s", re.split(r"\s{2,}", command.group())[0]) if w]
            default = re.search(r"override /dataset: (\w+)", path.read_text())
            omitted = ("device=", f"dataset={default[1] if default else 'digits'}")
            found[shlex.join(w for w in words if not w.startswith(omitted))] = None
        found[f"model={path.stem}"] = None
    for path in sorted((CONFIGS / "experiment").rglob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        for overrides in (config.get("train") or {}).values():
            found[shlex.join([*(config.get("common") or []), *overrides])] = None
        if "train" not in config:
            found[f"experiment={path.relative_to(CONFIGS / 'experiment').with_suffix('')}"] = None
    return list(found)


def header(path: Path) -> str:
    """Return the first comment of a recipe, without the marks."""
    lines = path.read_text().splitlines()
    comment = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    return re.sub(r"\s{2,}(on a laptop|then|\|).*$", "", "\n".join(comment), flags=re.M)


def missing_data(options: dict[str, Any]) -> str:
    """Return which file of a dataset's config is missing, or ""."""
    for key, value in options.items():
        if isinstance(value, dict) and (reason := missing_data(value)):
            return reason
        if key == "path" and value is None:
            return "the dataset has no default path"
        if key in ("path", "root") and isinstance(value, str) and not Path(value).exists():
            return f"{value} does not exist: set GENLAB_DATA"
    return ""


# --- one training ---------------------------------------------------------------------------------


def train_as_shipped(words: str, *, limit_s: float = LIMIT_S) -> Outcome:
    """Train in a new process for MIN_STEPS and MIN_SECONDS, up to `limit_s` seconds."""
    outcome = Outcome(words)
    overrides = shlex.split(words)
    config = compose_command(*overrides, "out=unused")
    outcome.dataset = config["dataset"]["_target_"].rpartition(".")[2]
    outcome.trainer = config["trainer"]["name"]
    outcome.skipped = missing_data(config["dataset"])
    if outcome.skipped:
        return outcome
    for part in ("codec", "teacher"):
        if config.get(part):
            shorter = [*config[part]["train"], PART_LIMIT]
            overrides.append(f"{part}.train={json.dumps(shorter)}")
    with tempfile.TemporaryDirectory() as cwd:
        run = Path(cwd) / "run"
        _train(outcome, [*overrides, *LOG_EVERY_STEP, f"out={run}"], run, limit_s)
        if outcome.log and not outcome.error and not outcome.judged_quantity():
            outcome.improvement = measure_improvement(run)
    return outcome


def _train(outcome: Outcome, overrides: list[str], run: Path, limit_s: float) -> None:
    """Run the process, stop it by SIGTERM when it has trained enough, and read its log."""
    with open(run.parent / "stderr", "w+") as stderr:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "genlab", "train", *overrides],
            cwd=run.parent,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        first_step = stopped = None
        while process.poll() is None:
            time.sleep(0.2)
            now = time.monotonic()
            log = list(read_losses(run))
            if log and first_step is None:
                first_step = now
            trained = now - first_step if first_step else 0.0
            is_enough = len(log) >= MIN_STEPS and trained >= MIN_SECONDS
            late = first_step is None and now - start > START_LIMIT_S
            if stopped is None and (is_enough or trained > limit_s or late):
                stopped = now
                process.send_signal(signal.SIGTERM)
            if stopped is not None and now - stopped > START_LIMIT_S:
                process.kill()
        outcome.seconds = max(0.0, (stopped or time.monotonic()) - (first_step or start))
        outcome.log = list(read_losses(run))
        outcome.is_cut = stopped is not None and len(outcome.log) < MIN_STEPS
        stderr.seek(0)
        lines = [line.strip() for line in stderr.read().splitlines() if line.strip()]
        if process.returncode and stopped is None:
            outcome.error = f"FAILED: {lines[-1] if lines else process.returncode}"
            if "download" in outcome.error:
                outcome.skipped, outcome.error = outcome.error.removeprefix("FAILED: "), ""


def read_losses(run: Path) -> Iterator[dict[str, float]]:
    """Yield the logged steps of a run; a line that is being written is left out."""
    path = run / "stats.jsonl"
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        if len(numbers) > 1:
            yield {k: v for k, v in numbers.items() if not k.startswith("lr/")}


def measure_improvement(run: Path) -> dict[str, tuple[float, float]]:
    """Compare the model of a run with its initial state, where no loss says whether it learns.

    Returns:
        The reconstruction error of real items before and after, of a model with codes; else the
        squared change of samples from the same noise, with 0 as "before".
    """
    import torch

    from genlab.abilities import abilities
    from genlab.builders import factory
    from genlab.runs.run_folder import RunFolder

    folder = RunFolder(run)
    config = yaml.safe_load(folder.config_text())
    factory.make_device(config["device"], seed=config["seed"])
    dataset = factory.make_dataset(config)
    before = factory.make_model(config, dataset.spec).eval()
    after = factory.make_model(config, dataset.spec).eval()
    state = folder.load_checkpoint()
    after.load_state_dict(state["ema"] or state["model"])
    x = dataset.head("train", 200).x
    results = []
    with torch.no_grad():
        for model in (before, after):
            torch.manual_seed(0)
            if {"encode", "decode"} <= abilities(model):
                results.append(model.decode(model.encode(x)).reshape(x.shape))
            else:
                results.append(model.sample(16))
    if {"encode", "decode"} <= abilities(after):
        errors = [float((x - r).square().mean()) for r in results]
        return {"reconstruction error": (errors[0], errors[1])}
    return {"change of samples": (0.0, float((results[1] - results[0]).square().mean()))}


# --- the table ------------------------------------------------------------------------------------


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the rows of a table by their first cell."""
    rows = {}
    for line in path.read_text().splitlines()[2:] if path.exists() else ():
        cells = tuple(cell.strip() for cell in line.strip("| ").split(" | "))
        rows[cells[0].strip("`")] = (cells[0].strip("`"), *cells[1:])
    return rows


def write_table(path: Path, rows: dict[str, tuple[str, ...]]) -> None:
    """Write the rows as a Markdown table."""
    lines = [" | ".join(HEADER), " | ".join("---" for _ in HEADER)]
    lines += [" | ".join((f"`{row[0]}`", *(c or "–" for c in row[1:]))) for row in rows.values()]
    path.write_text("\n".join(f"| {line} |" for line in lines) + "\n")


def main(table: Path, limit_s: float, chosen: list[str]) -> None:
    """Train what the table does not have yet, short trainings first."""
    rows = read_table(table)
    for limit in sorted({min(FIRST_LIMIT_S, limit_s), limit_s}):
        for words in chosen or list_trainings():
            if words in rows and not rows[words][-1].endswith("(cut)"):
                continue
            if words in rows and limit < limit_s:
                continue
            outcome = train_as_shipped(words, limit_s=limit)
            row = outcome.row()
            if outcome.is_cut and limit < limit_s:
                row = (*row[:-1], f"{row[-1]} (cut)")
            rows = read_table(table) | {words: row}
            write_table(table, rows)
            print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if sys.argv[2:] else LIMIT_S, sys.argv[3:])
