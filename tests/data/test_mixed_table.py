"""Tables with columns of numbers and categories: what is read, and the CSV that is written."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.data.external_samples import read_samples
from genlab.data.mixed_table import MixedTable
from genlab.data.mixed_table_units import MixedTableUnits, table_units_of_dataset
from genlab.data.summary import DataSummary
from genlab.data.tabular import Table
from genlab.errors import UserError
from genlab.spec import DataSpec

HEADER = "name,age,job,class,income,member,zip\n"
JOBS = ("cook", "baker", "=sum", "")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_people(n: int = 200, file: str = "people.csv", jobs=JOBS) -> str:
    """Write a table with a name, words, a class in the middle, and missing cells."""
    rows = [
        f"P{i},{20 + i % 50},{jobs[i % len(jobs)]},{'good' if i % 3 else 'bad'},"
        f"{'?' if i % 5 == 0 else f'{1000 + 12.5 * i:.2f}'},{'true' if i % 2 else 'false'},"
        f"{10115 + i % 3}\n"
        for i in range(n)
    ]
    Path(file).write_text(HEADER + "".join(rows))
    return file


def people(**options) -> MixedTable:
    return MixedTable(path=write_people(), **options)


def table_rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode())))


def test_columns_become_numbers_and_categories():
    table = people(max_categories=20)
    # age, job, income, income missing, member, zip; the class is the label
    assert table.spec == DataSpec(
        (6,),
        "table",
        num_classes=2,
        class_names=("bad", "good"),
        levels=0,
        categories=(0, 4, 0, 2, 2, 0),
    )
    assert table.spec.describe() == "3 columns of numbers and 3 of categories"
    age, job, income, missing, member, _ = table.columns
    assert job.categories == ("=sum", "baker", "cook", "")  # a missing word comes last
    assert member.categories == ("false", "true")
    assert missing.presence_of == "income" and missing.categories == ("present", "missing")
    assert (age.is_integer, age.decimals) == (True, 0)
    assert (income.decimals, income.pads_decimals, income.missing_word) == (2, True, "?")
    x = table.splits["train"].x
    assert (x[x[:, 3] == 1][:, 2] == 0).all() and (x[:, 3] == 1).any()  # the mean stands for it
    known = x[x[:, 3] == 0][:, 2]
    assert known.mean().abs() < 1e-5 and abs(known.std(correction=0) - 1) < 1e-5
    (line,) = [line for line in table.left_out.lines() if "different values" in line]
    assert "name (200)" in line


def test_rows_are_written_as_their_file_has_them():
    table = people(max_categories=20)
    units = table_units_of_dataset(table)
    with open("people.csv", newline="") as file:
        original = list(csv.reader(file))
    for split in ("train", "test"):
        part = table.splits[split]
        header, *rows = table_rows(units.to_csv(part.x, table.spec, y=part.y))
        assert header == original[0][1:]  # the class stays between job and income
        for row, line in zip(rows, table.row_numbers[split].tolist(), strict=True):
            # a spreadsheet would take =sum for a formula
            assert [cell.removeprefix("'") for cell in row] == original[line - 1][1:]


def test_written_rows_are_read_back_in_any_order_of_columns():
    table = people(max_categories=20)
    units, part = table_units_of_dataset(table), table.splits["train"]
    content = units.to_csv(part.x, table.spec, y=part.y)
    rows = table_rows(content)
    order = np.random.default_rng(0).permutation(len(rows[0]))
    with open("shuffled.csv", "w", newline="") as file:
        csv.writer(file).writerows([[row[c] for c in order] for row in rows])
    Path("unnamed.csv").write_bytes(content.partition(b"\n")[2])
    for name in ("shuffled.csv", "unnamed.csv"):
        batch = read_samples(Path(name), table.spec, units)
        torch.testing.assert_close(batch.x, part.x, rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.y, part.y)
    Path("bad.csv").write_text(content.decode().replace("baker", "bakar", 1))
    with pytest.raises(UserError, match="does not have the category 'bakar'.*baker"):
        read_samples(Path("bad.csv"), table.spec, units)


def test_data_json_has_all_that_writing_needs():
    table = people(max_categories=20, label="none")
    assert table.spec.categories == (0, 4, 2, 0, 2, 2, 0) and not table.spec.num_classes
    summary = json.loads(json.dumps(table.describe().to_json()))
    units = MixedTableUnits.from_json(summary)
    part = table.splits["train"]
    own = table_units_of_dataset(table)
    assert units.to_csv(part.x, table.spec) == own.to_csv(part.x, table.spec)
    assert [asdict(column) for column in units.columns] == [asdict(c) for c in table.columns]
    assert DataSummary.from_json(summary).lines() == table.describe().lines()
    assert DataSpec.from_json(json.loads(json.dumps(table.spec.to_json()))) == table.spec
    with pytest.raises(ValueError, match="numbers of categories"):
        DataSpec.from_json(table.spec.to_json() | {"categories": [1]})
    damages = {"scale": 0.0, "decimals": 99, "presence_of": "ghost"}
    for key, value in damages.items():
        damaged = json.loads(json.dumps(summary))
        damaged["columns"][0][key] = value
        with pytest.raises(ValueError, match="column age has|no column of numbers ghost"):
            MixedTableUnits.from_json(damaged)
    with pytest.raises(ValueError, match="categories, not"):
        units.require_categories((0, 9))


def test_numbers_can_be_categories_and_generated_numbers_get_the_decimals_of_the_file():
    table = people(categorical=("zip", 1), max_categories=60, skip_columns=("name",))
    assert table.columns[-1].categories == ("10115", "10116", "10117")
    assert table.columns[0].categories == tuple(str(age) for age in range(20, 70))
    table = people(max_categories=20)
    units = table_units_of_dataset(table)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    x[:, [1, 3, 4]] = 0
    _, *rows = table_rows(units.to_csv(x, table.spec))
    for age, _, income, _, code in rows:
        assert age == str(int(age)) and code == str(int(code))
        assert len(income.partition(".")[2]) == 2


def test_without_a_file_the_example_is_used():
    table = MixedTable()
    assert not list(table.source_files) and table.size("train") == 4000
    assert any("example" in note for note in table.notes)


REFUSALS = [
    ({"use_columns": ("name",)}, "200 different texts, more than dataset.max_categories=100"),
    ({"categorical": ("age",), "max_categories": 10}, "50 different texts"),
    ({"categorical": ("aeg",)}, "no column aeg .dataset.categorical. .did you mean 'age'"),
    ({"skip_columns": ("age", "zip", "income", "job", "member")}, "there is no other column"),
    ({"validation": 0.5, "test": 0.5}, "leave none"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS, ids=str)
def test_refusals_say_what_to_type(options, message):
    with pytest.raises(UserError, match=message):
        people(**options)


def test_a_column_of_numbers_with_a_typing_error_is_not_taken_for_categories():
    Path("typo.csv").write_text("a,b\n" + "".join(f"{i / 7},x\n" for i in range(300)) + "1.2o,x\n")
    with pytest.raises(UserError, match=r"row 302, column 0: '1\.2o' is not a finite number"):
        MixedTable(path="typo.csv", label="none")


def test_a_table_of_numbers_points_to_it_for_text():
    with pytest.raises(UserError, match="dataset=mixed_table takes text for categories"):
        Table(path=write_people())


def test_rows_without_a_label_are_counted():
    Path("few.csv").write_text(
        "a,class\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(40)) + "1,\n"
    )
    table = MixedTable(path="few.csv")
    assert sum(map(table.size, ("train", "validation", "test"))) == 40
    assert any("the label: 1" in line for line in table.left_out.lines())


def test_another_file_is_expressed_in_the_columns_of_the_first():
    first = people(max_categories=20)
    second = MixedTable(path=write_people(100, "new.csv", jobs=("cook", "")), max_categories=20)
    own, part = table_units_of_dataset(second), second.splits["train"]
    before = own.to_csv(part.x, second.spec, y=part.y)
    second.adopt_columns(list(first.columns))
    assert second.spec == first.spec
    units = table_units_of_dataset(second)
    assert units.to_csv(second.splits["train"].x, second.spec, y=part.y) == before
    third = MixedTable(
        path=write_people(100, "other.csv", jobs=("cook", "pilot")), max_categories=20
    )
    with pytest.raises(UserError, match="category 'pilot' in column job"):
        third.adopt_columns(list(first.columns))
    fourth = people(max_categories=20, skip_columns=("zip",))
    with pytest.raises(UserError, match="the run was trained on"):
        fourth.adopt_columns(list(first.columns))
