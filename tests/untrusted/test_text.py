"""Names and texts of untrusted files are shown as text: in terminals, tables, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genlab.console import CLEAR_LINE, write_past_line_clearing
from genlab.data.summary import Column
from genlab.data.table_units import TableUnits
from genlab.errors import UserError
from genlab.output_streams import SafeStream
from genlab.runs.run_folder import RunFolder
from genlab.spec import DataSpec
from genlab.untrusted import records, text

SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
SEQUENCES = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x07",
    "\x08\x08",
    "\r",
    "\u202egnp.exe",
    "\u2066x",
    "\u2028",
    "\x85",
    "\u200f",
    "\x7f",
    "\0",
]
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "=HYPERLINK()"]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=repr)
def test_sequences_become_visible(sequence):
    assert text.replace_unprintable(f"a{sequence}b").isprintable()
    assert text.to_printable_text(f"a{sequence}b").isprintable()
    assert text.escape_markdown(f"a{sequence}b").isprintable()
    stream = io.StringIO()
    SafeStream(stream, "standard output").write(f"a{sequence}b\tc\n")
    assert sequence not in stream.getvalue() and stream.getvalue().endswith("b\tc\n")


def test_the_progress_may_clear_its_line_but_not_what_it_shows():
    stream = io.StringIO()
    write_past_line_clearing(SafeStream(stream, "x"), CLEAR_LINE + "sampling \x1b[2J")
    assert stream.getvalue() == CLEAR_LINE + "sampling \N{REPLACEMENT CHARACTER}[2J"


@pytest.mark.parametrize("value", ["97.94 ± 0.28", "日本語", "naïve", "a→b", "😀"])
def test_ordinary_text_is_unchanged(value):
    assert text.replace_unprintable(value) == text.to_csv_cell(value) == value


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_are_no_cells(formula):
    cell = text.to_csv_cell(formula)
    if not formula.isprintable():
        assert cell == text.replace_unprintable(formula) and not text.FORMULA_START.match(cell)
        return
    assert cell.startswith("'") and text.from_csv_cell(cell) == text.replace_unprintable(formula)


@pytest.mark.parametrize("value", ["-1.5", "+2", "1e-3", "-inf", "'a'", "a=b", "", 3, -1.5, None])
def test_numbers_and_other_cells_are_unchanged(value):
    assert text.to_csv_cell(value) == value
    assert value is None or text.from_csv_cell(str(value)) == str(value)


def test_the_columns_of_a_strangers_table_are_no_formulas():
    units = TableUnits([Column("=1+1"), Column("x")], "@label")
    spec = DataSpec(shape=(2,), kind="points", num_classes=2, class_names=("=a", "-1"))
    content = units.to_csv(torch.zeros(2, 2), spec, y=np.array([0, 1])).decode()
    rows = list(csv.reader(io.StringIO(content)))
    assert rows[0] == ["'=1+1", "x", "'@label"] and [row[2] for row in rows[1:]] == ["'=a", "-1"]


# --- run.json, records and logs -------------------------------------------------------------------


def write_record(run: Path, **row: Any) -> None:
    """Write a record of one row."""
    content = {"metric": "fid", "name": "fid", "unit": "", "tag": "", "value": 1.0, **row}
    record = {"metrics": [content], "absent": {}, "settings": {}, "step": 2}
    (run / "metrics.json").write_text(json.dumps(record))


@pytest.mark.parametrize("word", [SEQUENCES[0], SEQUENCES[6], "[/b]", "=1+1", "`x`|<b>", "@x"])
def test_a_comparison_shows_the_words_of_a_record_as_text(word, train_run, genlab, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    write_record(run, name=word, unit=word, tag=word, conditions={word: word})
    result = genlab("compare", "run", "metrics=null", "output_dir=page")
    assert result.code == 0, result.err
    shown = result.out + result.err
    for name in ("compare.csv", "compare.md", "compare.html"):
        content = (tmp_path / "page" / name).read_text()
        assert word.isprintable() or word not in content
        if name == "compare.csv":
            cells = [cell for row in csv.reader(io.StringIO(content)) for cell in row]
            assert not [cell for cell in cells if cell[:1] in ("=", "@")]
        shown += content if name == "compare.md" else ""
    assert all(line.isprintable() for line in shown.replace("\xa0", " ").split("\n"))


WRONG_METADATA: dict[str, Any] = {
    "model": 5,
    "dataset": ["x"],
    "choices": {"model": {"x": 1}},
    "command": "genlab train",
    "spec": [1],
    "data": 3,
    "device": {"x": 1},
    "versions": ["x"],
    "commit": 5,
    "seed": "x",
    "processes": 0,
    "fitted_options": [1],
    "start_folder": 5,
}
WRONG_METADATA |= {"seed ": True, "data ": {}, "data  ": {"train": "x"}, "data   ": {"digest": 5}}


@pytest.mark.parametrize("key", WRONG_METADATA)
def test_wrong_types_in_run_json_are_named(key, train_run, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, key.strip(): WRONG_METADATA[key]}))
    with pytest.raises(UserError, match=rf"run\.json is unreadable: its {key.strip()} is not"):
        RunFolder(run).metadata()


@pytest.mark.parametrize("shape", [None, [], [-1, 8, 8], ["x"], "x"])
def test_a_comparison_refuses_a_spec_that_is_none(shape, train_run, genlab, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["spec"]["shape"] = shape
    (run / "run.json").write_text(json.dumps(content))
    write_record(run)
    assert "its spec is not valid" in genlab("compare", "run", "metrics=null").error


@pytest.mark.parametrize("key", ["model", "dataset", "device", "commit", "started"])
def test_control_characters_in_run_json_are_refused(key, train_run, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, key: "a\x1b[2J"}))
    with pytest.raises(UserError, match=f"its {key} is not as genlab writes it"):
        RunFolder(run).metadata()


def test_the_names_in_a_log_are_printable(train_run, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    line = {"step": 1, "loss\x1b[2J": 1.0, "notes": ["\u202ex"], "evaluation": {"\x07": 1}}
    (run / "stats.jsonl").write_text(json.dumps(line) + "\n")
    assert str(RunFolder(run).read_log()).isprintable()


@pytest.mark.parametrize("step", ["x", 1.5, True, None, [1], {}])
def test_a_step_of_another_type_is_refused(step, train_run, tmp_path):
    run = shutil.copytree(train_run(*SMALL), tmp_path / "run")
    (run / "stats.jsonl").write_text(json.dumps({"step": step}) + "\n")
    with pytest.raises(UserError, match=r"stats\.jsonl, line 1 is damaged"):
        RunFolder(run).read_log()


RECORD = {"metrics": [], "absent": {}, "settings": {}, "step": 1}
ROW = {"metric": "m", "name": "n", "unit": "", "tag": "", "value": 1.0}
WRONG_RECORDS: list[Any] = [
    None,
    [],
    {},
    {**RECORD, "step": "x"},
    {**RECORD, "step": -1},
    {**RECORD, "step": True},
    {**RECORD, "metrics": {}},
    {**RECORD, "metrics": [1]},
    {**RECORD, "absent": []},
    {**RECORD, "absent": {"x": 1}},
    {**RECORD, "settings": []},
    {**RECORD, "pictures": ["x"]},
    {**RECORD, "pictures": {"x": 1}},
    *({**RECORD, "metrics": [{**ROW, key: ["x"]}]} for key in ROW),
    *({**RECORD, "metrics": [{k: v for k, v in ROW.items() if k != key}]} for key in ROW),
    {**RECORD, "metrics": [{**ROW, "value": True}]},
    {**RECORD, "metrics": [{**ROW, "error": "x"}]},
    {**RECORD, "metrics": [{**ROW, "real_vs_real": "x"}]},
    {**RECORD, "metrics": [{**ROW, "conditions": "x"}]},
    {**RECORD, "metrics": [{**ROW, "better": 1}]},
    {**RECORD, "metrics": [{**ROW, "parts": {"x": "y"}}]},
]


@pytest.mark.parametrize("record", WRONG_RECORDS, ids=str)
def test_records_of_other_types_are_not_records(record):
    assert records.is_valid_record({**RECORD, "metrics": [ROW]})
    assert not records.is_valid_record(record)
