"""Answers about a table come in its own units, as CSV beside the arrays."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

N = 600
COLUMNS = ["mass [kg]", "height (cm)", "kids"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two columns of decimals, one of integers and a class."""
    rng = np.random.default_rng(0)
    sex = rng.integers(0, 2, N)
    mass = rng.normal(65, 8, N) + 12 * sex
    height = 140 + 0.4 * mass + rng.normal(0, 5, N)
    kids = rng.poisson(4, N)
    lines = [
        f"{a:.1f};{b:.1f};{c};{'fm'[k]}".replace(".", ",")
        for a, b, c, k in zip(mass, height, kids, sex, strict=True)
    ]
    path = tmp_path_factory.mktemp("people") / "people.csv"
    path.write_text(";".join([*COLUMNS, "sex"]) + "\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(people, train_run):
    return lambda model, *options: train_run(
        f"model={model}", "dataset=table", f"dataset.path={people}", *options
    )


def read_people(path: Path) -> np.ndarray:
    """Return the table (N, 3) as it is in the file."""
    rows = path.read_text().replace(",", ".").splitlines()[1:]
    return np.array([row.split(";")[:3] for row in rows], float)


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with open(path) as file:
        header, *rows = csv.reader(file)
    return header, rows


def find(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_samples_have_the_moments_of_the_table(trained, people, genlab, tmp_path):
    run = trained("gmm")
    assert genlab("sample", f"run={run}", "n=2000", "output_dir=drawn", "device=cpu").code == 0
    header, rows = read_csv(find(tmp_path / "drawn", "*.csv"))
    assert header == COLUMNS and len(rows) == 2000
    assert all(cells[2].lstrip("-").isdecimal() for cells in rows)
    drawn, data = np.array(rows, float), read_people(people)
    error = data.std(0) / np.sqrt(N)
    assert (np.abs(drawn.mean(0) - data.mean(0)) < 3 * error).all()
    assert (np.abs(drawn.std(0) - data.std(0)) < 3 * data.std(0) / np.sqrt(2 * N)).all()
    recorded = json.loads((run / "data.json").read_text())
    assert [column["name"] for column in recorded["columns"]] == COLUMNS
    assert [column["unit"] for column in recorded["columns"]] == ["kg", "cm", ""]
    assert recorded["facts"]["label_column"] == "sex"
    # the table itself is not needed, and the arrays are read back once
    archive = find(tmp_path / "drawn", "*.npz")
    options = (f"samples={archive}", "dataset=table", f"dataset.path={people}", "n=500")
    csv_options = (f"samples={archive.with_suffix('.csv')}", *options[1:])
    for given in (options, csv_options):
        result = genlab("evaluate", *given, "metrics=[frechet]", "output_file=m.json", "device=cpu")
        assert result.code == 0, result.err
        value = json.loads((tmp_path / "m.json").read_text())["metrics"][0]["value"]
        assert 0 <= value < 0.3
        (tmp_path / "m.json").unlink()


def test_samples_of_a_class_name_it(trained, genlab, tmp_path):
    run = trained("maf_points", "model.conditional=true")
    options = (f"run={run}", "n=6", "label=[m,f]", "output_dir=drawn", "device=cpu")
    assert genlab("sample", *options).code == 0
    header, rows = read_csv(find(tmp_path / "drawn", "*.csv"))
    assert header == [*COLUMNS, "sex"]
    assert [cells[-1] for cells in rows] == ["m", "f", "m", "f", "m", "f"]


ANSWERS = [  # command, model, options, and the columns before those of the table by file
    ("reconstruct", "pca model.latent=2", ("n=5",), {".csv": [], "_x.csv": []}),
    (
        "inpaint",
        "ddpm_points",
        ("n=3", "mask=half", "half=right", "steps=3"),
        {".csv": ["item", "draw"], "_x.csv": []},
    ),
    ("interpolate", "pca model.latent=2", ("n=2", "frames=4"), {".csv": ["pair", "frame"]}),
    ("traverse", "pca model.latent=2", ("n=1", "frames=3"), {".csv": ["row", "frame"]}),
    ("arithmetic", "pca model.latent=2", ("a=[m]", "b=[f]"), {".csv": []}),
    ("project", "realnvp_points", ("n=2", "steps=2", "tries=1"), {".csv": [], "_x.csv": []}),
    ("denoise", "ddpm_points", ("n=4", "level=0.1"), {".csv": [], "_x.csv": []}),
    ("likelihood", "gmm", ("n=7",), {".csv": ["row", "log_prob"]}),
]


@pytest.mark.parametrize(("command", "model", "options", "files"), ANSWERS)
def test_answers_are_in_own_units(
    command, model, options, files, trained, people, genlab, tmp_path
):
    """Each file has the table's columns; given items are those of the table to the last digit."""
    result = genlab(
        command, f"run={trained(*model.split())}", *options, "output_dir=o", "device=cpu"
    )
    assert result.code == 0, result.err
    given = {tuple(row) for row in read_people(people).tolist()}
    stem = str(find(tmp_path / "o", "*.npz")).removesuffix(".npz")
    for suffix, leading in files.items():
        header, rows = read_csv(Path(stem + suffix))
        width = len(leading)
        assert header[:width] == leading and header[width : width + 3] == COLUMNS
        if suffix == "_x.csv" or ("row" in leading[:1] and "log_prob" in leading):
            assert {tuple(map(float, row[width : width + 3])) for row in rows} <= given
    if command == "inpaint":
        _, filled = read_csv(Path(stem + ".csv"))
        assert len(filled) == 9 and {row[-1] for row in filled} <= {"f", "m"}


def test_rows_are_named_by_classify_and_anomaly(trained, people, genlab, tmp_path):
    rows = people.read_text().replace(",", ".").splitlines()
    run = trained("maf_points", "model.conditional=true")
    assert genlab("classify", f"run={run}", "output_dir=c", "device=cpu").code == 0
    header, cells = read_csv(find(tmp_path / "c", "*.csv"))
    assert header == ["row", "predicted", "probability", *COLUMNS, "sex"] and len(cells) == 60
    run = trained("gmm", "dataset.classes=f")
    result = genlab("anomaly", f"run={run}", "output_dir=a", "device=cpu")
    assert result.code == 0, result.err
    header, scored = read_csv(find(tmp_path / "a", "*.csv"))
    assert header == ["row", "kind", "score", *COLUMNS, "sex"] and len(scored) == 60
    assert {(row[1], row[-1]) for row in scored} == {("normal", "f"), ("anomaly", "m")}
    assert [float(row[2]) for row in scored] == sorted(float(row[2]) for row in scored)
    for row in (*cells, *scored):
        line = rows[int(row[0]) - 1].split(";")
        assert [float(cell) for cell in line[:3]] == [float(cell) for cell in row[3:6]]
        assert line[3] == row[6]


def test_a_run_without_its_summary_reads_the_table(trained, people, genlab, tmp_path):
    """As of an older version: the units are those of the table, if it is still there."""
    import shutil

    run = shutil.copytree(trained("gmm"), tmp_path / "old")
    (run / "data.json").unlink()
    assert genlab("sample", f"run={run}", "n=5", "output_dir=o", "device=cpu").code == 0
    assert read_csv(find(tmp_path / "o", "*.csv"))[0] == COLUMNS
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(people), str(tmp_path / "gone.csv")))
    result = genlab("sample", f"run={run}", "n=5", "output_dir=p", "device=cpu")
    assert result.code == 0 and "no CSV file in the table's own units" in result.err
    assert not list((tmp_path / "p").glob("*.csv"))


def test_points_without_columns_are_not_a_table(train_run, genlab, tmp_path):
    run = train_run("model=gmm", "dataset=ring", "dataset.n=100")
    assert genlab("sample", f"run={run}", "n=5", "output_dir=o", "device=cpu").code == 0
    assert not list((tmp_path / "o").glob("*.csv"))
    assert "standardized" not in np.load(find(tmp_path / "o", "*.npz"))
