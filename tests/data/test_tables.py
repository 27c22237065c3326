"""Tables are read as their author meant them, or refused in one line with a remedy that works."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.data.number_formats import number_formats_of_all_cells
from genlab.data.summary import Column
from genlab.data.table_columns import split_name_and_unit
from genlab.data.table_files import RawTable, make_column_names_unique
from genlab.data.table_samples import read_table_samples
from genlab.data.table_units import TableUnits, round_preserving_variance
from genlab.data.tabular import Table
from genlab.errors import UserError

ROWS = 12


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(row, n: int = ROWS) -> str:
    """Return n lines, each by its number."""
    return "".join(f"{row(i)}\n" for i in range(n))


PLAIN = lines(lambda i: f"{i * 0.5},{i * i},{'ab'[i % 2]}")
INTEGERS = lines(lambda i: f"{i},{i * i},{'ab'[i % 2]}")


def real_table(name: str) -> Path:
    root = os.environ.get("GENLAB_DATA")
    path = Path(root or ".", "tabular", name)
    if not root or not path.exists():
        pytest.skip(f"needs tabular/{name} in the folder that GENLAB_DATA names")
    return path


def read(content: str | bytes, name: str = "t.csv", **options) -> Table:
    """Write a file and return its table."""
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Table(path=name, **options)


def own_values(table: Table) -> np.ndarray:
    """Return the rows (N, D) of a table in its own units, in the order of its file."""
    x = torch.cat(
        [table.raw_items_and_labels(split)[0] for split in ("train", "validation", "test")]
    )
    numbers = torch.cat([table.row_numbers[split] for split in ("train", "validation", "test")])
    return TableUnits.from_dataset(table).to_own_units(x[numbers.argsort()])


def own_labels(table: Table) -> list[str]:
    """Return the class names of the rows in the order of the file."""
    y = torch.cat(
        [table.raw_items_and_labels(split)[1] for split in ("train", "validation", "test")]
    )
    numbers = torch.cat([table.row_numbers[split] for split in ("train", "validation", "test")])
    return [table.spec.class_name(k) for k in y[numbers.argsort()].tolist()]


def report(table: Table) -> str:
    """Return what a run prints about a table."""
    return "\n".join(table.describe().lines())


HALVES = [[i * 0.5, i * i] for i in range(ROWS)]
COUNTS = [[i, i * i] for i in range(ROWS)]


def zipped(text: str, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names or ("t.csv",):
            archive.writestr(name, text)
    return buffer.getvalue()


HEADED = "x,y,k\n" + PLAIN
LATIN = "größe,y,k\n" + PLAIN
# name of the case: content, options, names of the columns, values, words of the report
READ = {
    "names": (HEADED, {}, "x y", HALVES, "the first row has the names"),
    "no names": (PLAIN, {}, "column_0 column_1", HALVES, "no row has the names"),
    "byte-order mark": ("\ufeff" + HEADED, {}, "x y", HALVES, "byte-order mark"),
    "byte-order mark, no names": ("\ufeff" + PLAIN, {}, "column_0 column_1", HALVES, "mark"),
    "UTF-16 with mark": (HEADED.encode("utf-16"), {}, "x y", HALVES, "encoding is utf-16"),
    "Latin-1": (LATIN.encode("latin-1"), {"encoding": "latin-1"}, "größe y", HALVES, "latin-1"),
    "Windows line ends": (HEADED.replace("\n", "\r\n"), {}, "x y", HALVES, ""),
    "old Mac line ends": (HEADED.replace("\n", "\r"), {}, "x y", HALVES, ""),
    "blank lines": (HEADED.replace("\n", "\n \n"), {}, "x y", HALVES, ""),
    "comments": ("# by hand\n" + HEADED + "# end\n", {}, "x y", HALVES, "left out, a comment: 2"),
    "names in a comment": ("# x y k\n" + PLAIN, {}, "x y", HALVES, "the comment above"),
    "% comments": ("% c\n" + HEADED, {"comment": "%"}, "x y", HALVES, "a comment: 1"),
    "a title": ("My data\n" + HEADED, {"skip_rows": 1}, "x y", HALVES, "above the table"),
    "tab": (HEADED.replace(",", "\t"), {}, "x y", HALVES, "separated by tab"),
    "semicolon": (HEADED.replace(",", ";"), {}, "x y", HALVES, "separated by semicolon"),
    "pipe": (HEADED.replace(",", "|"), {}, "x y", HALVES, "separated by pipe"),
    "blanks": (HEADED.replace(",", "   "), {}, "x y", HALVES, "separated by space"),
    "blanks around commas": (HEADED.replace(",", " , "), {}, "x y", HALVES, "by comma"),
    "colon": (HEADED.replace(",", ":"), {"delimiter": ":"}, "x y", HALVES, "by ':'"),
    "sep= of Excel": ("sep=;\n" + HEADED.replace(",", ";"), {}, "x y", HALVES, "semicolon"),
    "SEP= of Excel": ("SEP=;\n" + HEADED.replace(",", ";"), {}, "x y", HALVES, "semicolon"),
    "sep= in quotes": ('"sep=;"\n' + HEADED.replace(",", ";"), {}, "x y", HALVES, "semicolon"),
    "sep= of a tab": ("sep=\t\n" + HEADED.replace(",", "\t"), {}, "x y", HALVES, "by tab"),
    "sep= saved with empty cells": (
        "sep=;;;\n" + HEADED.replace(",", ";"),
        {},
        "x y",
        HALVES,
        "semicolon",
    ),
    "quotes": ('"x","y, all","k"\n' + PLAIN, {}, "x|y, all", HALVES, ""),
    "quoted numbers": (
        "x,y,k\n" + lines(lambda i: f'"{i * 0.5}","{i * i}","{"ab"[i % 2]}"'),
        {},
        "x y",
        HALVES,
        "",
    ),
    "decimal comma": (
        "x;y;k\n" + lines(lambda i: f"{i // 2},{i % 2 * 5};{i * i};u"),
        {},
        "x y",
        HALVES,
        "the comma is the decimal mark, as in '0,0'",
    ),
    "decimal comma, no integers, no names": (
        lines(lambda i: f"{i // 2},{i % 2 * 5};{i * i},00"),
        {},
        "column_0 column_1",
        HALVES,
        "the comma is the decimal mark",
    ),
    "German thousands": (
        "x;y\n" + lines(lambda i: f"1.{i:03d};0,{i}5"),
        {},
        "x y",
        [[1000 + i, float(f"0.{i}5")] for i in range(ROWS)],
        "the dot separates thousands",
    ),
    "quoted thousands": (
        "x,y\n" + lines(lambda i: f'"1,{100 + i},000",{i}.5'),
        {},
        "x y",
        [[(1100 + i) * 1000, i + 0.5] for i in range(ROWS)],
        "the comma separates thousands",
    ),
    "Swiss thousands": (
        "x;y\n" + lines(lambda i: f"1'{i:03d}.5;0.{i}5"),
        {},
        "x y",
        [[1000.5 + i, float(f"0.{i}5")] for i in range(ROWS)],
        "apostrophe",
    ),
    "thousands by option": (
        "x;y;k\n" + lines(lambda i: f"1,{100 + i};{i};u"),
        {"thousands": "comma"},
        "x y",
        [[1100 + i, i] for i in range(ROWS)],
        "",
    ),
    "decimals by option": (
        "x;y;k\n" + lines(lambda i: f"1,{100 + i};{i};u"),
        {"decimal": "comma"},
        "x y",
        [[1.1 + i / 1000, i] for i in range(ROWS)],
        "",
    ),
    "row numbers of pandas": (
        ",a,k\n" + lines(lambda i: f"{i},{i * 0.5},{'uv'[i % 2]}"),
        {},
        "a",
        [[i * 0.5] for i in range(ROWS)],
        "numbers the rows: it is left out",
    ),
    "shuffled row numbers of pandas": (
        ",a,k\n" + lines(lambda i: f"{i * 5 % 13},{i * 0.5},{'uv'[i % 2]}"),
        {},
        "a",
        [[i * 0.5] for i in range(ROWS)],
        "numbers the rows: it is left out",
    ),
    "an Id": (
        "Id,a,k\n" + lines(lambda i: f"{i},{i * i},{'uv'[i % 2]}"),
        {},
        "Id a",
        COUNTS,
        "column Id counts the rows and is used as a value; leave it out with "
        "dataset.skip_columns=[Id]",
    ),
    "leading zeros": (
        "zip,y,k\n" + lines(lambda i: f"{i:05},{i * i},{'ab'[i % 2]}"),
        {},
        "zip y",
        COUNTS,
        "leading zeros are not kept in column zip: 00000 is the number 0",
    ),
    "leading zeros of classes": (
        "x,y,k\n" + lines(lambda i: f"{i * 0.5},{i * i},{'01' if i % 2 else '17'}"),
        {},
        "x y",
        HALVES,
        "leading zeros are not kept in column k: 01 is the number 1",
    ),
    "a last row of totals": (
        "shop,x,y\n"
        + lines(lambda i: f"s{i},{i if i < ROWS - 1 else 11},{i * i}").replace("s11", "Total"),
        {"skip_columns": ("shop",)},
        "x y",
        COUNTS,
        "the last row ('Total') is a row as the others",
    ),
    "rows behind a comment sign": (
        HEADED + "#1,2,a\n# two rows are left out\n#3,4,a\n",
        {},
        "x y",
        HALVES,
        "2 of the comments are rows of the table behind a #; dataset.comment=null reads them",
    ),
    "numbers in the first row": (
        "-,3.2,k\n" + PLAIN,
        {},
        "- 3.2",
        HALVES,
        "though some are numbers (-, 3.2, k): dataset.header=false reads it as values",
    ),
    "three digits behind each dot": (
        "x;y\n" + lines(lambda i: f"{i + 1}.250;{i}.5"),
        {},
        "x y",
        [[i + 1.25, i + 0.5] for i in range(ROWS)],
        "the dot in '1.250' and all numbers of column x is the decimal mark; "
        "dataset.thousands=dot if",
    ),
    "row labels of R": (
        '"mpg","kind"\n' + lines(lambda i: f'"car {i}",{i * 0.5},{"uv"[i % 2]}'),
        {},
        "mpg",
        [[i * 0.5] for i in range(ROWS)],
        "labels the rows and is left out",
    ),
    "row numbers kept": (
        ",a,k\n" + lines(lambda i: f"{i},{i * i},{'uv'[i % 2]}"),
        {"skip_columns": ()},
        "column_0 a",
        COUNTS,
        "add 0 to dataset.skip_columns",
    ),
    "years as names": ("2019,2020,k\n" + PLAIN, {}, "2019 2020", HALVES, "the first row has"),
    "0, 1, 2 as names": ("0,1,2\n" + PLAIN, {}, "0 1", HALVES, "the first row has the names"),
    "names by option": ("1,2,a\n" + PLAIN, {"header": True}, "1 2", HALVES, "the first row has"),
    "the same name twice": ("a,a,k\n" + PLAIN, {}, "a a.1", HALVES, "a further column a"),
    "a delimiter at line ends": (
        HEADED.replace("\n", ",\n"),
        {},
        "x y",
        HALVES,
        "left out, a column without values: 1",
    ),
    "a delimiter at line ends, not of the names": (
        "x,y,k\n" + PLAIN.replace("\n", ",\n"),
        {},
        "x y",
        HALVES,
        "left out, a column without values: 1",
    ),
    "rows of commas": (HEADED + ",,\n,,\n", {}, "x y", HALVES, "a row without values: 2"),
    "booleans": (
        "x,ok,k\n" + lines(lambda i: f"{i * 0.5},{i % 2 == 0},{'uv'[i % 2]}"),
        {},
        "x ok",
        [[i * 0.5, i % 2 == 0] for i in range(ROWS)],
        "true is 1 and false is 0 in column ok",
    ),
    "a constant": (
        "x,y,k\n" + lines(lambda i: f"{i * 0.5},0.1,u{i % 2}"),
        {},
        "x y",
        [[i * 0.5, 0.1] for i in range(ROWS)],
        "same value in column y, where a density has no bound",
    ),
    "values of 1e200": (
        "x,y,k\n" + lines(lambda i: f"{i * 0.5},{i + 1}e200,u{i % 2}"),
        {},
        "x y",
        [[i * 0.5, (i + 1) * 1e200] for i in range(ROWS)],
        "",
    ),
    "values of 1e-200": (
        "x,y,k\n" + lines(lambda i: f"{i * 0.5},{i + 1}e-200,u{i % 2}"),
        {},
        "x y",
        [[i * 0.5, (i + 1) * 1e-200] for i in range(ROWS)],
        "",
    ),
    "time stamps": (
        "x,y,k\n" + lines(lambda i: f"{i * 0.5},{1_700_000_000 + i},u{i % 2}"),
        {},
        "x y",
        [[i * 0.5, 1_700_000_000 + i] for i in range(ROWS)],
        "integers are column y",
    ),
    "columns by name": (
        "x,date,y,k\n" + lines(lambda i: f"{i * 0.5},2020-01-01,{i * i},u"),
        {"use_columns": ("x", "y")},
        "x y",
        HALVES,
        "",
    ),
    "columns without their units": (
        "x [m],date (UTC),y,k\n" + lines(lambda i: f"{i * 0.5},2020-01-01,{i * i},u"),
        {"skip_columns": ("date",)},
        "x [m]|y",
        HALVES,
        "",
    ),
    "gzip": (gzip.compress(HEADED.encode()), {}, "x y", HALVES, ""),
    "bzip2": (bz2.compress(HEADED.encode()), {}, "x y", HALVES, ""),
    "xz": (lzma.compress(HEADED.encode()), {}, "x y", HALVES, ""),
    "zip": (zipped(HEADED), {}, "x y", HALVES, ""),
}


@pytest.mark.parametrize("case", READ)
def test_a_table_is_read_as_meant(case):
    content, options, names, values, words = READ[case]
    table = read(content, **options)
    expected = names.split("|") if "|" in names else names.split(" ")
    assert [column.name for column in table.columns] == expected
    np.testing.assert_allclose(own_values(table), values, rtol=1e-5, atol=1e-9)
    assert words in report(table)


LABELS = {
    "words": (["no", "yes"], {}, ["no", "yes"]),
    "numbers in their order": (["10", "9", "2"], {}, ["2", "9", "10"]),
    "1 and 1.0": (["1", "1.0", "2"], {}, ["1", "2"]),
    "0 to 2": (["2.0", "1", "0"], {}, ["0", "1", "2"]),
    "leading zeros": (["07", "7", "12"], {}, ["7", "12"]),
    "halves, by name": (["0.5", "1.5"], {"label": "kind"}, ["0.5", "1.5"]),
    "a class named NA": (["NA", "DE"], {"missing_values": ()}, ["DE", "NA"]),
    "missing labels": (["1", "", "2"], {"drop_missing": True}, ["1", "2"]),
    "nan labels": (["a", "nan", "b"], {"drop_missing": True}, ["a", "b"]),
    "booleans": (["True", "False"], {}, ["False", "True"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(case):
    cells, options, names = LABELS[case]
    rows = lines(lambda i: f"{i * 0.5},{i},{cells[i % len(cells)]}")
    table = read("x,y,kind\n" + rows, **options)
    assert [table.spec.class_name(k) for k in range(table.spec.num_classes)] == names
    assert set(own_labels(table)) == set(names)
    assert f"the labels are column kind: {len(names)} classes" in report(table)
    assert table.describe().facts == {"label_column": "kind"}


def test_which_column_is_the_label():
    """The last column is, if it has classes; what was decided is said with the other choice."""
    ages = "a,b,age\n" + lines(lambda i: f"{i * 0.1},{i},{i % 37 + 20}", 200)
    assert read(ages).spec.num_classes == 0
    assert "age has 37 different integers and is used as a number" in report(read(ages))
    assert read(ages, label="age").spec.num_classes == read(ages, label=2).spec.num_classes == 37
    assert read(ages, label="last").spec.num_classes == 37
    assert read(ages, label="AGE", skip_columns=(0,)).spec.shape == (1,)
    prices = "a,b,price\n" + lines(lambda i: f"{i * 0.1},{i},{i * 0.37}", 50)
    assert read(prices).spec.shape == (3,) and not read(prices).spec.num_classes
    first = "label,p0,p1\n" + lines(lambda i: f"{i % 3},{i * 0.1},{i * 0.7}")
    assert read(first).spec.num_classes == 3 and read(first).label_name == "label"
    assert read(first, label="none").spec.shape == (3,)
    quality = "a,quality,b\n" + lines(lambda i: f"{i * 0.1},{i % 3 + 5},{i * 0.37}")
    table = read(quality, label="quality")
    assert table.spec.class_names == ("5", "6", "7")
    assert [c.name for c in table.columns] == ["a", "b"]
    constant = read("a,b\n" + lines(lambda i: f"{i * 0.1},5"))
    assert constant.spec.shape == (2,) and not constant.spec.num_classes


# name of the case: content, options, words of the refusal, and options that it names, to be tried
REFUSED = {
    "a missing cell": (
        HEADED + "1,,a\n",
        {},
        "row 14, column 1: '' is a missing value; 1 of 13 rows lack one, in y (1)",
        [{"drop_missing": True}, {"skip_columns": ("y",)}],
    ),
    "a question mark in the first row": (
        "?,2,a\n" + PLAIN,
        {},
        "row 1, column 0: '?' is a missing value",
        [{"drop_missing": True}, {"skip_columns": (0,)}],
    ),
    "the missing-value word -999": (
        HEADED + "-999.0,1,a\n",
        {"missing_values": (-999,)},
        "'-999.0' is a missing value",
        [{"missing_values": (-999,), "drop_missing": True}],
    ),
    "a missing label": (
        HEADED + "1,1,NA\n",
        {},
        "if NA is a class, set dataset.missing_values=[]",
        [{"drop_missing": True}, {"missing_values": ()}],
    ),
    "dates and words": (
        "date,b,city,k\n" + lines(lambda i: f"2020-01-{i + 1:02d},{i},Bern,u"),
        {},
        "'2020-01-01' is not a finite number; leave the columns of text out with "
        "dataset.skip_columns=[date,city]",
        [{"skip_columns": ("date", "city")}],
    ),
    "dates beside row numbers": (
        ",date,b,k\n" + lines(lambda i: f"{i},2020-01-{i + 1:02d},{i * i},u"),
        {},
        "skip_columns=[0,date]",
        [{"skip_columns": (0, "date")}],
    ),
    "a name that needs quotes": (
        "the day,b,k\n" + lines(lambda i: f"2020-01-{i + 1:02d},{i},u"),
        {},
        "dataset.skip_columns=[0]",
        [{"skip_columns": (0,)}],
    ),
    "one wrong cell": (
        "a,b\n" + lines(lambda i: f"{'oops' if i == 7 else i},{i * 0.3}"),
        {},
        "row 9, column 0: 'oops' is not a finite number; fix it, or leave column a out",
        [{"skip_columns": ("a",)}],
    ),
    "percent signs": ("a,b\n" + lines(lambda i: f"{i}%,{i * 0.3}"), {}, "'0%'", []),
    "a row of units": (
        "a,b\nm,kg\n" + lines(lambda i: f"{i},{i * 0.3}"),
        {},
        "row 2, column 0: 'm' is not a finite number; it is the only row with text: fix it or "
        "delete it",
        [],
    ),
    "names with underscores": (
        "sample,b,k\n" + lines(lambda i: f"{2020 + i % 3}_{i},{i * 0.3},u"),
        {},
        "'2020_0' is not a finite number; leave column sample out",
        [{"skip_columns": ("sample",)}],
    ),
    "dots between thousands": (
        "a;b\n" + lines(lambda i: f"{f'{i}.250' if i else 999};{i}"),
        {},
        "row 3, column a: the dot in '1.250' marks decimals or thousands; set "
        "dataset.decimal=dot or dataset.thousands=dot",
        [{"decimal": "dot"}, {"thousands": "dot"}],
    ),
    "rows that all begin with #": (
        "id,b\n" + lines(lambda i: f"#{i},{i * 0.3}"),
        {},
        "because 12 lines begin with #; dataset.comment=null reads them",
        [{"comment": None, "skip_columns": ("id",)}],
    ),
    "infinity": (HEADED + "inf,1,a\n", {}, "'inf' is not a finite number", []),
    "beyond float64": (HEADED + "1e400,1,a\n", {}, "'1e400' is not a finite number", []),
    "an outlier of 1e200": (
        HEADED + "1e200,1,a\n",
        {},
        "float32 keeps 2 of 13 different values apart, because values reach 1e+200",
        [{"skip_columns": ("x",)}],
    ),
    "large and not standardized": (
        "x,t,k\n" + lines(lambda i: f"{i * 0.5},{1_700_000_000 + i},u"),
        {"standardize": False},
        "set dataset.standardize=true",
        [{"standardize": True}],
    ),
    "beyond float32 and not standardized": (
        "x,t,k\n" + lines(lambda i: f"{i * 0.5},{i}e100,u"),
        {"standardize": False},
        "is too large for float32",
        [{"skip_columns": ("t",)}],
    ),
    "identifiers of 20 digits": (
        "x,id,k\n" + lines(lambda i: f"{i * 0.5},{12345678901234567890 + i},u"),
        {},
        "more digits than a number can keep (2^53); leave column id out",
        [{"skip_columns": ("id",)}],
    ),
    "decimals or thousands": (
        "a;b;k\n" + lines(lambda i: f"1,{100 + i};{i};u"),
        {},
        "row 2, column a: the comma in '1,100' marks decimals or thousands; set "
        "dataset.decimal=comma or dataset.thousands=comma",
        [{"decimal": "comma"}, {"thousands": "comma"}],
    ),
    "two decimal marks": (
        "a;b;c\n" + lines(lambda i: f"{i},5;0.{i}5;{i}"),
        {},
        "column b ('0.05') writes numbers in another way",
        [{"skip_columns": ("b",)}],
    ),
    "a short row": (
        HEADED + "1,2\n",
        {},
        "row 14: 2 columns, where the first row has 3",
        [{"drop_missing": True}],
    ),
    "a long row": (HEADED + "1,2,a,4\n", {"drop_missing": True}, "row 14: 4 columns", []),
    "a title above": ("My data\n" + HEADED, {}, "set dataset.skip_rows=1", [{"skip_rows": 1}]),
    "an open quote": (HEADED + '1,"2,a\n1,2,a\n', {}, 'a quote (") in it is not closed', []),
    "Latin-1": (LATIN.encode("latin-1"), {}, "dataset.encoding=latin-1", [{"encoding": "latin-1"}]),
    "UTF-16 without a mark": (
        HEADED.encode("utf-16-le"),
        {},
        "dataset.encoding=utf-16-le",
        [{"encoding": "utf-16-le"}],
    ),
    "an unknown encoding": (HEADED, {"encoding": "latin1x"}, "did you mean 'latin-1'", []),
    "an unknown delimiter": (HEADED, {"delimiter": "coma"}, "did you mean 'comma'", []),
    "JSON": ('[{"a": 1}]', {}, "is JSON", []),
    "ARFF": ("% c\n@RELATION iris\n@DATA\n1,2\n", {}, "is an ARFF file", []),
    "a spreadsheet": (b"\xd0\xcf\x11\xe0" + bytes(100), {}, "export it as CSV", []),
    "binary data": (bytes(range(256)) * 10, {}, "t.csv", []),
    "32 MB of zeros in gzip": (gzip.compress(bytes(2**25)), {}, "binary data", []),
    "two files in a ZIP archive": (
        zipped(HEADED, "a.csv", "b.csv"),
        {},
        "is a ZIP archive of 2 files; unpack it",
        [],
    ),
    "a damaged gzip file": (gzip.compress(HEADED.encode())[:-12], {}, "is damaged", []),
    "names only": ("a,b,k\n", {}, "no rows below it", []),
    "comments only": ("# a\n", {}, "empty below its comments", []),
    "nothing": ("", {}, "is empty", []),
    "no such column": (HEADED, {"label": "kk"}, "no column kk (dataset.label)", []),
    "a misspelt column": (
        "length,width,k\n" + PLAIN,
        {"skip_columns": ("lenght",)},
        "did you mean 'length'",
        [{"skip_columns": ("length",)}],
    ),
    "labels that are no classes": (
        "a,b\n" + lines(lambda i: f"{i},{i * 0.37}", 150),
        {"label": "b"},
        "has 150 values, too many for classes",
        [{"label": "none"}],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unclear_is_refused_with_a_remedy_that_works(case):
    content, options, words, remedies = REFUSED[case]
    with pytest.raises(UserError) as error:
        read(content, **options)
    message = str(error.value)
    assert words in message and "\n" not in message and len(message) < 600
    for remedy in remedies:
        read(content, **{**options, **remedy})


def test_rows_that_are_left_out_are_counted():
    table = read(HEADED + "1,,a\n1,nan,\n,,\n1,2\n", drop_missing=True)
    assert sum(len(numbers) for numbers in table.row_numbers.values()) == ROWS
    assert table.left_out.counts == {
        "a row with fewer cells than columns": 1,
        "a row without values": 1,
        "a row without column y": 2,
    }


def test_units_are_read_from_names():
    for name, unit in [
        ("mass [kg]", ("mass", "kg")),
        ("speed (m/s)", ("speed", "m/s")),
        ("income (2019)", ("income (2019)", "")),
        ("plain", ("plain", "")),
    ]:
        assert split_name_and_unit(name) == unit
    assert read("mass [kg],b,k\n" + PLAIN).columns[0].unit == "kg"


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("1234.5", {1234.5}),
        ("1,5", {1.5}),
        ("1,234", {1.234, 1234.0}),
        ("1,234.5", {1234.5}),
        ("1.234,5", {1234.5}),
        ("12,34,56", set()),
        ("0,123", {0.123}),
        ("1 234,5", {1234.5}),
        ("1,5e3", {1500.0}),
        ("-1.234.567", {-1234567.0}),
        ("1/2", set()),
    ],
)
def test_number_formats(cell, values):
    assert {known.parse(cell) for known in number_formats_of_all_cells([cell])} == values


def test_arrays():
    x = np.arange(24.0).reshape(12, 2)
    np.save("t.npy", np.c_[x, np.arange(12) % 3])
    table = Table(path="t.npy")
    assert table.spec.num_classes == 3 and table.columns[0].is_integer
    np.testing.assert_allclose(own_values(table), x)
    np.savez("t.npz", x=x, y=np.arange(12) % 2)
    table = Table(path="t.npz")
    assert table.spec.shape == (2,) and table.spec.num_classes == 2
    assert Table(path="t.npz", label="none").spec.num_classes == 0
    x[3, 1] = np.nan
    np.save("t.npy", x)
    with pytest.raises(UserError, match="row 3, column 1: 'nan' is a missing value"):
        Table(path="t.npy", label="none")
    assert Table(path="t.npy", label="none", drop_missing=True).left_out.counts.total() == 1
    Path("folder").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        Table(path="folder")


def test_parquet(monkeypatch):
    import sys

    Path("t.parquet").write_bytes(b"PAR1")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(UserError, match=r"pip install 'genlab\[parquet\]'"):
            Table(path="t.parquet")
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    kinds = ["u", "v"] * 6
    columns = {"x": [i * 0.5 for i in range(ROWS)], "y": [i * i for i in range(ROWS)]}
    parquet.write_table(arrow.table({**columns, "kind": kinds}), "t.parquet")
    table = Table(path="t.parquet")
    assert table.spec.class_names == ("u", "v") and table.columns[1].is_integer
    np.testing.assert_allclose(own_values(table), HALVES)
    columns |= {"ok": [None, *[i % 2 == 0 for i in range(1, ROWS)]]}
    parquet.write_table(arrow.table({**columns, "kind": kinds}), "t.parquet")
    table = Table(path="t.parquet", drop_missing=True)
    assert own_values(table)[:, 2].tolist() == [i % 2 == 0 for i in range(1, ROWS)]
    columns["ok"] = [None, *[2**60 + i for i in range(1, ROWS)]]
    parquet.write_table(arrow.table({**columns, "kind": kinds}), "t.parquet")
    with pytest.raises(UserError, match="more digits than a number can keep"):
        Table(path="t.parquet", drop_missing=True)


# --- samples --------------------------------------------------------------------------------------


@pytest.fixture
def people() -> Table:
    rng = np.random.default_rng(0)
    rows = [f"{170 + 10 * a:.2f},{b},{'fm'[i % 2]}" for i, (a, b) in enumerate(
        zip(rng.normal(size=60), rng.poisson(3, 60), strict=True)
    )]  # fmt: skip  # one row a line
    return read("height [cm],kids,sex\n" + "\n".join(rows))


def test_items_are_written_and_read_in_own_units(people):
    """A CSV of the model's items gives the table's values and labels, and is read back."""
    units, (x, y) = TableUnits.from_dataset(people), people.raw_items_and_labels("train")
    text = units.to_csv(x, people.spec, y=y).decode()
    header, first, *_ = text.splitlines()
    assert header == "height [cm],kids,sex"
    assert re.fullmatch(r"\d+\.\d{1,2},\d+,[fm]", first)  # as in the table
    Path("drawn.csv").write_text(text)
    batch = read_table_samples(Path("drawn.csv"), people.spec, units)
    torch.testing.assert_close(batch.x, x, atol=1e-6, rtol=1e-6)
    assert torch.equal(batch.y, y)
    stacked = units.to_csv(x[:6].view(3, 2, 2), people.spec, index_names=("item", "draw"))
    assert stacked.decode().splitlines()[2].startswith("0,1,")


def test_rounding_keeps_the_variance():
    """Smooth values of an integer column keep their deviation; integers stay as they are."""
    values = np.random.default_rng(0).normal(5.8, 0.8, 100_000)
    column = Column("quality", 5.8, 0.8, is_integer=True)
    rounded = round_preserving_variance(values, column)
    assert rounded.std() == pytest.approx(0.8, rel=0.01)
    assert values.round().std() > 0.84
    given = np.arange(-50.0, 60.0)
    standardized = ((given - 5.8) / 0.8).astype(np.float32)
    assert np.array_equal(round_preserving_variance(standardized * 0.8 + 5.8, column), given)


SAMPLES = {
    "another order": ("sex;kids;height [cm]\nm;2;171,5\nf;1;160,5\n", [[171.5, 2], [160.5, 1]]),
    "further columns": ("id,height [cm],kids\n7,171.5,2\n8,160.5,1\n", [[171.5, 2], [160.5, 1]]),
    "no names": ("171.5,2\n160.5,1\n", [[171.5, 2], [160.5, 1]]),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_as_csv(case, people):
    content, values = SAMPLES[case]
    Path("s.csv").write_text(content)
    units = TableUnits.from_dataset(people)
    x = read_table_samples(Path("s.csv"), people.spec, units).x
    np.testing.assert_allclose(units.to_own_units(x), values)


def test_sample_arrays_are_standardized_once(people):
    """An array says what it is, or the reading that is nearer to the table is taken."""
    units, x = TableUnits.from_dataset(people), people.raw_items_and_labels("train")[0]
    own = units.to_own_units(x)
    np.savez("own.npz", x=own)
    np.savez("standardized.npz", x=x.numpy())
    np.savez("marked.npz", x=x.numpy(), standardized=True)
    np.savez("marked_own.npz", x=own, standardized=False)
    for name in ("own", "standardized", "marked", "marked_own"):
        batch = read_table_samples(Path(f"{name}.npz"), people.spec, units)
        torch.testing.assert_close(batch.x, x, atol=1e-5, rtol=1e-5)
    np.savez("unclear.npz", x=np.full((9, 2), 70.0))
    with pytest.raises(UserError, match="may be standardized or in the table's own units"):
        read_table_samples(Path("unclear.npz"), people.spec, units)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("height,kids\n1,2\n3,4\n", "has no column height [cm] (did you mean 'height'?)"),
        ("height [cm],kids\n1,?\n3,4\n", "row 2, column kids: '?' is not a finite number"),
        ("1,2,3,4\n1,2,3,4\n", "has 4 columns without names, and the table 2"),
        ("height [cm],kids,sex\n1,2,x\n3,4,m\n", "no such class"),
    ],
)
def test_unclear_samples_are_refused(content, words, people):
    Path("s.csv").write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        read_table_samples(Path("s.csv"), people.spec, TableUnits.from_dataset(people))


# --- runs of older versions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "names", "classes"),
    [
        ("\ufeff" + PLAIN, ["\ufeff0.0", "0"], ["a", "b"]),  # the first row was taken for names
        ("0,1,2\n" + INTEGERS.replace("a", "0").replace("b", "1"), None, ["0", "1", "2"]),
        (",a,k\n" + INTEGERS, ["column_0", "a"], ["a", "b"]),
        (lines(lambda i: f"{i},{i},{['1', '1.0', '2', ''][i % 4]}"), None, ["", "1", "1.0", "2"]),
    ],
)
def test_older_runs_find_the_same_rows_and_classes(content, names, classes):
    table = read(content, label="last", skip_columns=(), table_rules=1)
    assert table.spec.num_classes == len(classes)
    assert set(own_labels(table)) == set(classes)
    if names:
        assert len(table.columns) == len(names) == 2
        assert own_values(table).shape == (ROWS if names[0] == "column_0" else ROWS - 1, 2)


def test_real_tables_are_read_or_refused_in_words():
    for name, options, classes, words in [
        ("winequality-red.csv", {}, ("3", "4", "5", "6", "7", "8"), "11: 6 classes"),
        ("mammography.csv", {}, ("'-1'", "'1'"), "2 classes"),
        ("abalone.csv", {"skip_columns": (0,)}, (), "28 different integers"),
        ("horse-colic.csv", {}, None, "294 of 300 rows lack one"),
        ("german.csv", {}, None, "skip_columns=[0,2,3,5,6,8,9,11,13,14,16,18,19]"),
    ]:
        path = str(real_table(name))
        if classes is None:
            with pytest.raises(UserError, match=re.escape(words)):
                Table(path=path, **options)
        else:
            table = Table(path=path, **options)
            assert table.spec.class_names == classes and words in report(table)


def test_ten_thousand_columns_of_one_name_are_numbered_at_once():
    """The numbers of names that occur again are found without a search."""
    raw = RawTable(["a"] * 10_000 + ["a.3", ""], [], np.zeros(0))
    names = make_column_names_unique(raw).names
    assert len(set(names)) == 10_002 and names[:4] == ["a", "a.1", "a.2", "a.4"]
    assert len(raw.notes) <= 10
