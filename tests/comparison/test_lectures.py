"""The figures of the lectures: every entry is valid, and what is made is shown, continued, told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.recipes import CONFIGS, compose_config
from PIL import Image

from genlab.commands import COMMANDS
from genlab.commands.lectures import lectures
from genlab.comparison.charts import draw_formula
from genlab.comparison.lecture_figures import (
    FigureRecord,
    figure_state,
    list_lecture_figures,
    read_durations,
    read_lecture_figure,
    read_topics,
)
from genlab.comparison.lecture_page import make_comparison_table, render_lecture_page
from genlab.config.recipes import read_header_comment
from genlab.errors import UserError

FIGURES = list_lecture_figures()
FOLDER = CONFIGS / "lectures" / "figures"
TINY = """
topic: Variational autoencoders
title: A tiny VAE
caption: Held-out digits above, and below them what a VAE of eight units makes of them.
formula: |
  \\mathcal{L} = \\mathbf{E}[\\log p(x|z)]
train:
  vae: [model=vae, "model.hidden=[8]", trainer.steps=STEPS, trainer.batch_size=8, device=cpu]
commands: ["reconstruct run={vae} n=4"]
numbers: {squared error: squared_error}
"""


# --- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_entry_is_complete_and_its_commands_exist(figure):
    assert figure.topic in read_topics()
    assert len(figure.caption.split()) >= 10 and figure.title
    assert read_header_comment(FOLDER / f"{figure.name}.yaml")
    if figure.formula:
        assert draw_formula(figure.formula).source.startswith("data:image/svg+xml")
    for command in figure.commands:
        name, *options = figure.arguments(command, {}, Path("figure"))
        assert name in COMMANDS
        if not COMMANDS[name].composed:
            continue
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        groups = [key for entry in config["defaults"] if isinstance(entry, dict) for key in entry]
        for option in options:
            key = option.partition("=")[0].partition(".")[0]
            assert key in [*config, *groups], f"{name} {option}"
    assert set(read_durations()) <= {f.name for f in FIGURES}


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_trainings_of_entry_compose(figure, monkeypatch):
    monkeypatch.setenv("GENLAB_DATA", os.environ.get("GENLAB_DATA", "data"))
    for overrides in figure.all_trainings().values():
        assert compose_config(*overrides, "out=unused")["trainer"]["steps"] > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour: red", "unknown key 'colour'"),
        ("commands: ['sample run={vea}']", "did you mean 'vae'"),
        ("title:", "title is missing"),
        ("train: 3", "train"),
    ],
)
def test_mistake_in_entry_is_named(line, message, tmp_path):
    key = line.partition(":")[0]
    kept = [part for part in TINY.strip().split("\n") if not part.startswith(f"{key}:")]
    if key == "train":
        kept = [part for part in kept if not part.startswith("  vae")]
    path = tmp_path / "tiny.yaml"
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(UserError, match=re.escape(message)):
        read_lecture_figure(path)


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture
def own_figures(tmp_path, monkeypatch):
    """A folder with an entry of the user, in the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY.replace("STEPS", "2"))
    return folder


def test_page_shows_what_is_made_and_says_what_is_missing(own_figures, tmp_path):
    figure = read_lecture_figure(own_figures / "tiny.yaml")
    (own_figures / "absent.yaml").write_text(TINY.replace("STEPS", "3") + "needs_data: [nothing]\n")
    absent = read_lecture_figure(own_figures / "absent.yaml")
    folder = tmp_path / "out"
    place = folder / "figures" / figure.folder_name / "1"
    place.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(place / "a.png")
    record = FigureRecord(
        ["genlab train a"], ["genlab b <c>"], 5.0, 1.0, 2, {"error": "0.3"}, ["1/a.png"]
    )
    record.save(place.parent)
    assert figure_state(figure, record) == ("made", "")
    assert figure_state(absent, None)[0] == "needs data"
    assert figure_state(figure, FigureRecord([], [], error="no")) == ("failed", "no")

    page = render_lecture_page([figure, absent], folder)
    assert page.count('src="data:image/png;base64,') == 1
    assert 'width="6" height="4"' in page and "genlab b &lt;c&gt;" in page
    assert "genlab lectures make=absent" in page and "nothing is not in" in page
    assert "1 of 2 figures" in page and not re.search(r'(src|href)="(?!data:|#)', page)
    (place / "a.png").unlink()  # a record without its picture is not a figure
    assert "0 of 2 figures" in render_lecture_page([figure, absent], folder)


def test_table_of_comparison_has_models_across():
    row = {"name": "FD", "unit": "", "better": "lower", "spread": "0.02", "best": ""}
    rows = [row | {"model": "a", "value": "1.5"}, row | {"model": "b", "value": ""}]
    table = make_comparison_table(rows)
    assert table["models"] == ["a", "b"]
    assert [row["name"] for row in table["rows"]] == ["FD ↓"]
    assert [cell["text"] for cell in table["rows"][0]["cells"]] == ["1.500 ± 0.020", "·"]


@pytest.mark.slow
def test_figures_are_made_once_and_failures_are_reported(own_figures, capsys):
    (own_figures / "typo.yaml").write_text(TINY.replace("trainer.steps=STEPS", "trainer.stepz=1"))
    (own_figures / "wrong.yaml").write_text(
        TINY.replace("STEPS", "2").replace("n=4", "n=4 split=nowhere")
    )
    names = ["tiny", "typo", "wrong"]
    with pytest.raises(UserError, match=r"2 of the figures .*: typo, wrong"):
        lectures(make=names, figures_dir=str(own_figures))
    page = Path("outputs/lectures/index.html").read_text()
    assert "stepz" in page and "nowhere" in page and page.count("data:image/png") == 1
    assert "squared error" in page and "genlab train model=vae" in page
    (record,) = Path("outputs/lectures/figures").glob("tiny-*/figure.json")
    before = record.stat().st_mtime_ns
    lectures(make="tiny", figures_dir=str(own_figures))
    assert record.stat().st_mtime_ns == before
    capsys.readouterr()
    lectures(figures_dir=str(own_figures))
    output = capsys.readouterr().out
    assert re.search(r"tiny +made", output) and re.search(r"wrong +failed", output)


@pytest.mark.slow
def test_interrupted_command_continues(own_figures):
    (own_figures / "tiny.yaml").write_text(TINY.replace("STEPS", "3000"))
    command = [
        sys.executable,
        "-m",
        "genlab",
        "lectures",
        "make=tiny",
        f"figures_dir={own_figures}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(Path().glob("outputs/lectures/runs/*/stats.jsonl")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert "run the same command again" in process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stderr or "already trained" in again.stderr
    assert "data:image/png" in Path("outputs/lectures/index.html").read_text()
