"""Every command that works on a table with categories, from training to a CSV file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runner import run_here

pytestmark = pytest.mark.xdist_group("mixed_table")  # one training for all

N = 500
HEADER = ["age", "risk", "job", "amount", "owner"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a class in the middle, words, and missing amounts."""
    random = np.random.default_rng(0)
    risk = random.integers(2, size=N)
    job = np.array(["cook", "baker", "clerk"])[(risk + random.integers(2, size=N)) % 3]
    amount = random.lognormal(3 + risk, 0.5, size=N)
    lines = [
        f"{18 + k % 50},{('low', 'high')[r]},{j},{'' if k % 7 == 0 else f'{a:.2f}'},{k % 3 == 0}"
        for k, (r, j, a) in enumerate(zip(risk, job, amount, strict=True))
    ]
    path = tmp_path_factory.mktemp("people") / "people.csv"
    path.write_text(",".join(HEADER) + "\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def tabddpm(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    options = {
        "model": "tabddpm",
        "dataset.path": people,
        "dataset.label": "risk",
        "model.hidden": "[64]",
        "model.timesteps": 20,
        "trainer.batch_size": 256,
        "trainer.steps": 300,
        "trainer.ema_decay": 0.9,
        "optimizer.lr": 0.01,
        "trainer.preview_every": 300,
        "device": "cpu",
        "out": "run",
    }
    result = run_here("train", *(f"{key}={value}" for key, value in options.items()), cwd=folder)
    assert result.code == 0, result.err
    assert list((folder / "run" / "samples").glob("*.png"))
    return folder / "run"


def read_rows(folder: Path) -> tuple[list[str], np.ndarray]:
    (path,) = folder.glob("*.csv")
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows)


def test_samples_are_a_table_as_the_file(tabddpm, genlab, tmp_path):
    assert genlab("sample", f"run={tabddpm}", "n=1000", "output_dir=drawn").code == 0
    header, rows = read_rows(tmp_path / "drawn")
    assert header == HEADER and len(rows) == 1000
    age, risk, job, amount, owner = rows.T
    assert all(cell.isdecimal() and 18 <= int(cell) < 68 for cell in age)
    assert set(risk) == {"low", "high"} and 350 < (risk == "low").sum() < 650
    assert set(job) == {"cook", "baker", "clerk"} and set(owner) == {"True", "False"}
    assert all(not cell or len(cell.partition(".")[2]) == 2 for cell in amount)
    assert 0.02 < (amount == "").mean() < 0.4
    # amounts of high risk are e times as large
    known = amount != ""
    of_low, of_high = (
        np.log(amount[known & (risk == name)].astype(float)).mean() for name in ("low", "high")
    )
    assert of_high > of_low + 0.5
    result = genlab("sample", f"run={tabddpm}", "n=20", "label=high", "output_dir=high")
    assert result.code == 0 and set(read_rows(tmp_path / "high")[1][:, 1]) == {"high"}
    assert list((tmp_path / "high").glob("*.png"))


def test_a_run_and_its_csv_are_measured_and_compared(tabddpm, people, genlab, tmp_path):
    result = genlab("evaluate", f"run={tabddpm}", "n=50")
    assert result.code == 0, result.error
    record = json.loads((tabddpm / "metrics.json").read_text())
    names = {row["name"] for row in record["metrics"]}
    assert {"column_ks", "pair_association", "utility_auc", "row_copying"} <= names
    assert "defined for" in record["absent"]["frechet"]
    assert genlab("sample", f"run={tabddpm}", "n=50", "output_dir=drawn").code == 0
    (path,) = (tmp_path / "drawn").glob("*.csv")
    result = genlab(
        "evaluate",
        f"samples={path}",
        "dataset=mixed_table",
        f"dataset.path={people}",
        "dataset.label=risk",
        "output_file=measured.json",
    )
    assert result.code == 0, result.error
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert names - {row["name"] for row in measured["metrics"]} <= {
        row["name"] for row in record["metrics"] if row["metric"] == "efficiency"
    }
    assert genlab("compare", f"runs=[{tabddpm}]", "output_dir=compared").code == 0


def test_info_and_plan_know_tables(tabddpm, genlab):
    result = genlab("info", f"run={tabddpm}")
    assert result.code == 0
    assert "genlab sample run=" in result.out and "table_utility" in result.out
    assert "a missing cell" not in result.out and "missing numbers of amount" in result.out
    result = genlab("plan", "model=tvae", "trainer.steps=50", "trainer.batch_size=64")
    assert result.code == 0 and "columns of numbers" in " ".join(result.out.split())


def test_a_run_is_evaluated_on_another_file_of_the_same_columns(tabddpm, people, genlab, tmp_path):
    header, *lines = people.read_text().splitlines()
    (tmp_path / "half.csv").write_text("\n".join([header, *lines[::2]]) + "\n")
    result = genlab(
        "evaluate", f"run={tabddpm}", "dataset.path=half.csv", "n=20", "metrics=[table_marginals]"
    )
    assert result.code == 0, result.error
    new = "\n".join([header, *lines[::2], "20,low,pilot,3.00,True"])
    (tmp_path / "new.csv").write_text(new + "\n")
    result = genlab("evaluate", f"run={tabddpm}", "dataset.path=new.csv", "n=20")
    assert result.code == 2 and "the category 'pilot' in column job" in result.error


@pytest.mark.parametrize("model", ["vae", "gmm"])
def test_other_models_name_the_recipes_for_tables(model, genlab):
    result = genlab("train", f"model={model}", "dataset=mixed_table", "out=x", "trainer.steps=1")
    assert result.code == 2 and "models that do: tabddpm, tvae" in result.error
    assert len(result.error.strip().splitlines()) == 1
