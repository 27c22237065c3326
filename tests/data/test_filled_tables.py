"""Missing cells of tables: kept for training, and filled in without a change of other bytes."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.data.filled_tables import read_incomplete_table
from genlab.data.summary import Column
from genlab.data.table_units import TableUnits
from genlab.data.tabular import Table
from genlab.errors import UserError

UNITS = TableUnits([Column("b", 1.0, 2.0), Column("a", 3.0, 1.0, is_integer=True)])
# the text, the options of the dataset, and what the text is with 7 and 2.5 in the missing cells
TEXTS = {
    "plain": ("a,b\n1,?\n,0.5\n", {}, "a,b\n1,2.5\n7,0.5\n"),
    "no last line end": ("a,b\n1,0.5\n2,", {}, "a,b\n1,0.5\n2,2.5"),
    "CR LF and spaces": ("a , b\r\n 1 , NA \r\n\t, 0.50\r\n", {},
                         "a , b\r\n 1 , 2.5 \r\n\t7, 0.50\r\n"),
    "quotes": ('"a","b","t"\n"1","","x, ""y"""\nNA,0.5,"two\nlines"\n', {},
               '"a","b","t"\n"1",2.5,"x, ""y"""\n7,0.5,"two\nlines"\n'),
    "comments and blank lines": ("# top\na,b\n\n1,?\n# 2,?\n,1e0\n", {},
                                 "# top\na,b\n\n1,2.5\n# 2,?\n7,1e0\n"),
    "semicolons and decimal commas": ("a;b\n1;\n?;0,50\n", {}, "a;b\n1;2,5\n7;0,50\n"),
    "quoted decimal commas": ('a,b\n1,?\n,"0,5"\n', {}, 'a,b\n1,"2,5"\n7,"0,5"\n'),
    "spaces": ("a  b\n1  ?\nNA 0.5\n", {"delimiter": "space"}, "a  b\n1  2.5\n7 0.5\n"),
    "a number as missing": ("a,b\n1,-999.0\n-999,0.5\n", {"missing_values": (-999,)},
                            "a,b\n1,2.5\n7,0.5\n"),
    "other columns": ("x,b,y,a\n?,?,é,1\nNA,0.5,,?\n", {}, "x,b,y,a\n?,2.5,é,1\nNA,0.5,,7\n"),
    "byte-order mark": ("\ufeffa,b\n1,?\n", {}, "\ufeffa,b\n1,2.5\n"),
    "tabs": ("a\tb\n1\t\n\t0.5\n", {}, "a\tb\n1\t2.5\n7\t0.5\n"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fill(path: str, **options) -> bytes:
    table = read_incomplete_table(Path(path), UNITS, options, "input_file=t.csv")
    values = np.tile([2.5, 7.0], (len(table.values), 1))
    return table.fill(values, lambda value, i: f"{value:g}")


@pytest.mark.parametrize("name", TEXTS)
def test_only_missing_cells_change(name: str) -> None:
    text, options, wanted = TEXTS[name]
    Path("t.csv").write_bytes(text.encode())
    assert fill("t.csv", **options) == wanted.encode()


def test_compressed_and_other_encodings() -> None:
    Path("t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,?\n"))
    assert fill("t.csv.gz") == b"a,b\n1,2.5\n"
    Path("t.csv").write_bytes("a,b,c\n1,?,é\n".encode("latin-1"))
    assert fill("t.csv", encoding="latin-1") == "a,b,c\n1,2.5,é\n".encode("latin-1")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,c\n1,?\n", "has no column b"),
        (b"a,b\n1,many\n2,3\n", "row 2, column b: 'many' is not a finite number"),
    ],
)
def test_refusals(content: bytes, said: str) -> None:
    Path("t.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        fill("t.csv")


def test_arrays_are_refused() -> None:
    np.save("t.npy", np.ones((3, 2)))
    with pytest.raises(UserError, match="is not a text"):
        fill("t.npy")


# --- training tables ------------------------------------------------------------------------------


def write_table(path: str = "t.csv") -> None:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["a", "b", "class"])
        for i in range(20):
            writer.writerow([i, "?" if i % 4 == 1 else 0.5 * i, "xy"[i % 2]])
        writer.writerow(["", "", "x"])
        writer.writerow(["3", "4", ""])


def test_missing_cells_are_kept_and_counted() -> None:
    write_table()
    table = Table(path="t.csv", keep_missing=True, validation=0.0, test=0.0)
    x = table.splits["train"].x
    assert table.spec.has_missing and len(x) == 20
    assert x.isnan().sum() == 5 and x[:, 1].isnan().sum() == 5
    b = torch.tensor([0.5 * i for i in range(20) if i % 4 != 1], dtype=torch.float64)
    assert table.columns[1].mean == pytest.approx(b.mean().item())
    assert table.columns[1].scale == pytest.approx(b.std(correction=0).item())
    assert x[~x[:, 1].isnan(), 1].double().mean().item() == pytest.approx(0, abs=1e-6)
    assert "missing cells are kept: 5 of 40 (12.5%), in 5 of 20 rows" in table.notes
    assert table.left_out.counts == {
        "a row without a value in the used columns": 1, "a row without column class, its label": 1
    }  # fmt: skip


def test_options_of_missing_cells() -> None:
    write_table()
    with pytest.raises(UserError, match="dataset.keep_missing=true keeps them"):
        Table(path="t.csv")
    with pytest.raises(UserError, match="set one of them"):
        Table(path="t.csv", keep_missing=True, drop_missing=True)
    assert not Table(path="t.csv", drop_missing=True).spec.has_missing
    lines = [f"{i},{'' if i else 1.5}" for i in range(12)]
    Path("empty.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    held_out = [
        seed for seed in range(20)
        if math.isnan(reads_b(seed))
    ]  # fmt: skip
    assert held_out


def reads_b(seed: int) -> float:
    """Return the mean of column b, NaN where its only value is held out."""
    try:
        return Table(path="empty.csv", label="none", keep_missing=True, split_seed=seed,
                     test=0.4).columns[1].mean  # fmt: skip
    except UserError as error:
        assert "column b has no value in the training rows" in str(error)
        return math.nan
