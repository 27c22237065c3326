"""Imputation of horse-colic.csv: a Gaussian mixture of genlab beside scikit-learn's imputers.

Protocol: columns 3, 4, 5, 15, 18, 19 and 21 (from 0) of the file of the UCI repository, 300 rows of
which 31% of the cells are missing. 20% of the known cells are hidden at random. The error is the
root mean squared difference over the hidden cells, in units of the deviation of the cells that are
left; the coverage is the share of hidden cells inside the 90% interval. The number of components
and the floor of the variances are chosen on a further 20% of the cells that are left, so the hidden
cells are not used. Training and imputation are the commands of genlab.

python scripts/benchmarks/imputation.py horse-colic.csv
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from genlab.models.classical.full_batch import TrainingItems
from genlab.models.classical.gmm import GMM
from genlab.spec import Batch, DataSpec
from genlab.tables import print_table

COLUMNS = (3, 4, 5, 15, 18, 19, 21)
HIDDEN_SHARE = 0.2
SEEDS = (0, 1, 2, 3, 4)
VALIDATION_SEEDS = (100, 101)
NUM_COMPONENTS = (1, 2, 3)
REG_COVAR = (0.01, 0.1)
EM_STEPS = 30
INTERVAL_DRAWS = 400


class Score(NamedTuple):
    """The error over the hidden cells, and the share of them inside the 90% interval."""

    rmse: float
    coverage: float = float("nan")


def read_columns(path: Path) -> np.ndarray:
    """Return the columns of the file (N, D), NaN where a cell is missing."""
    with path.open(newline="") as f:
        rows = [row for row in csv.reader(f) if row]
    return np.array([[np.nan if row[c] == "?" else float(row[c]) for c in COLUMNS] for row in rows])


def hide_cells(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (N, D) with 20% of its known cells as NaN, and which cells (N, D) these are."""
    known = np.argwhere(~np.isnan(x))
    chosen = known[np.random.default_rng(seed).permutation(len(known))]
    chosen = chosen[: round(HIDDEN_SHARE * len(known))]
    hidden = np.zeros(x.shape, bool)
    hidden[tuple(chosen.T)] = True
    return np.where(hidden, np.nan, x), hidden


def standardize(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return x (N, D) in units of the mean and deviation of the known cells of `like`."""
    return (x - np.nanmean(like, 0)) / np.nanstd(like, 0)


def score(filled: np.ndarray, truth: np.ndarray, hidden: np.ndarray, interval: Any = None) -> Score:
    """Return the score of filled cells (N, D); all arguments are standardized."""
    rmse = float(np.sqrt(np.mean((filled - truth)[hidden] ** 2)))
    if interval is None:
        return Score(rmse)
    low, high = interval
    return Score(rmse, float(((low <= truth) & (truth <= high))[hidden].mean()))


# --- genlab ---------------------------------------------------------------------------------------


def choose_options(x: np.ndarray) -> tuple[int, float]:
    """Return the number of components and the floor with the least error on cells of x (N, D)."""

    def validation_error(options: tuple[int, float]) -> float:
        errors = []
        for seed in VALIDATION_SEEDS:
            left, hidden = hide_cells(x, seed)
            given, truth = standardize(left, left), standardize(x, left)
            errors.append(score(fit_and_impute(given, *options), truth, hidden).rmse)
        return float(np.mean(errors))

    return min(itertools.product(NUM_COMPONENTS, REG_COVAR), key=validation_error)


def fit_and_impute(x: np.ndarray, num_components: int, reg_covar: float) -> np.ndarray:
    """Return the mean of draws (N, D) of a mixture that is fitted to standardized x (N, D)."""
    spec = DataSpec(shape=(x.shape[1],), kind="points", levels=0, has_missing=True)
    model = GMM(spec, num_components=num_components, reg_covar=reg_covar).double()
    rows = torch.from_numpy(x[~np.isnan(x).all(1)])
    items = TrainingItems(lambda: iter([Batch(rows)]), full_batch=True)
    for step in range(EM_STEPS):
        model.fit_step(items, step=step, seed=0)
    torch.manual_seed(0)
    everything = torch.from_numpy(x)
    drawn = model.impute(everything.nan_to_num(), ~everything.isnan(), draws=INTERVAL_DRAWS)
    mean: np.ndarray = drawn.mean(0).numpy()
    return mean


def measure_genlab(x: np.ndarray, seed: int, folder: Path) -> tuple[Score, tuple[int, float]]:
    """Return the score of the commands `train` and `impute`, and the options that were chosen."""
    left, hidden = hide_cells(x, seed)
    options = choose_options(left)
    table = folder / f"table{seed}.csv"
    with table.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow([f"c{c}" for c in COLUMNS])
        writer.writerows([["" if np.isnan(v) else repr(v) for v in row] for row in left.tolist()])
    run = folder / f"run{seed}"
    run_genlab(
        *("train", "model=gmm", "dataset=table", f"dataset.path={table}", "dataset.label=none"),
        *("dataset.keep_missing=true", "dataset.validation=0", "dataset.test=0", f"out={run}"),
        *(f"model.num_components={options[0]}", f"model.reg_covar={options[1]}"),
        *(f"trainer.steps={EM_STEPS}", "trainer.preview_every=0", f"trainer.save_every={EM_STEPS}"),
    )
    run_genlab(
        *("impute", f"run={run}", f"interval_draws={INTERVAL_DRAWS}", "draws=1"),
        f"output_dir={folder / f'filled{seed}'}",
    )
    filled, low, high = (left.copy() for _ in range(3))
    (cells,) = (folder / f"filled{seed}").glob("*_cells.csv")
    with cells.open(newline="") as f:
        for entry in csv.DictReader(f):
            place = int(entry["row"]) - 2, [f"c{c}" for c in COLUMNS].index(entry["column"])
            filled[place], low[place], high[place] = (
                float(entry[name]) for name in ("mean", "q0.05", "q0.95")
            )
    mean, *interval, truth = (standardize(part, left) for part in (filled, low, high, x))
    return score(mean, truth, hidden, interval), options


def run_genlab(*arguments: str) -> None:
    """Run a command of genlab; print what it printed if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "genlab", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"genlab {' '.join(arguments)}\n{done.stdout}{done.stderr}")


# --- baselines ------------------------------------------------------------------------------------


def measure_baselines(x: np.ndarray, seed: int) -> dict[str, Score]:
    """Return the scores of the column mean and of scikit-learn's imputers."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  enables the next import
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    left, hidden = hide_cells(x, seed)
    given, truth = standardize(left, left), standardize(x, left)
    imputers = {
        "column mean": SimpleImputer(),
        "IterativeImputer": IterativeImputer(max_iter=20, random_state=0),
        "10 nearest neighbors": KNNImputer(n_neighbors=10),
    }
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # IterativeImputer does not converge
        return {
            name: score(imputer.fit_transform(given), truth, hidden)
            for name, imputer in imputers.items()
        }


def measure(path: Path, seeds: tuple[int, ...] = SEEDS) -> dict[str, list[Score]]:
    """Return the scores of all methods by seed, and print the options that were chosen."""
    x = read_columns(path)
    print(f"{path.name}: {x.shape[0]} x {x.shape[1]} cells, {np.isnan(x).mean():.1%} missing")
    scores: dict[str, list[Score]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            found, options = measure_genlab(x, seed, Path(folder))
            print(
                f"seed {seed}: model.num_components={options[0]} model.reg_covar={options[1]}: "
                f"RMSE {found.rmse:.3f}, coverage {found.coverage:.1%}"
            )
            for name, value in {"genlab gmm": found, **measure_baselines(x, seed)}.items():
                scores.setdefault(name, []).append(value)
    return scores


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure imputation of horse-colic.csv.")
    parser.add_argument("path", type=Path, help="the file horse-colic.csv")
    scores = measure(parser.parse_args().path)
    rows = []
    for name, values in scores.items():
        rmse = np.array([value.rmse for value in values])
        coverage = np.mean([value.coverage for value in values])
        rows.append(
            [
                name,
                f"{rmse.mean():.3f} ± {rmse.std():.3f}",
                "–" if np.isnan(coverage) else f"{coverage:.1%}",
            ]
        )
    print_table(["method", "standardized RMSE", "coverage of 90%"], rows)


if __name__ == "__main__":
    main()
