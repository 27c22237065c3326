"""Comparisons: columns and rows, the three files, and the page in a browser."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from genlab.commands.compare import RunRequest, compare, find_run_requests
from genlab.comparison import charts, html_report
from genlab.comparison.run_records import RunRecord
from genlab.comparison.table import make_comparison
from genlab.comparison.text_report import (
    comparison_to_csv,
    comparison_to_markdown,
    print_comparison,
)
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.tables import format_to_error_digits
from genlab.viz import item_pictures
from genlab.viz.picture import make_picture, make_plot_picture
from genlab.viz.sheets import save_picture_as_sheet

REGULARIZERS = ("none", "r1", "gradient_penalty", "spectral_norm")
NASTY = """<script>alert(1)</script>"'&$_{x}"""
FILE_NAME = NASTY.replace("/", "∕")  # a file name may have any other character


def make_row(name: str, value: float, metric: str = "frechet", **more: Any) -> dict[str, Any]:
    """Return a row of a record."""
    conditions = {
        "features": "classifier ab12cd, 99.0% on digits test",
        "n": 1000,
        "split": "test",
        "seed": 0,
    }
    plain = {
        "unit": "",
        "tag": "estimate",
        "error": 0.1,
        "real_vs_real": 0.5,
        "better": "lower",
        "conditions": conditions,
    }
    return {"metric": metric, "name": name, "value": value, **plain, **more}


def make_cost_row(name: str, value: float, better: str = "lower") -> dict[str, Any]:
    return make_row(
        name,
        value,
        "efficiency",
        unit="s",
        tag="exact",
        error=None,
        real_vs_real=None,
        better=better,
        conditions={},
    )


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("vae", [make_row(…)])`: a run folder, whose record names an outside picture."""
    item_pictures.write_image_as_png(np.zeros((20, 20, 3), np.uint8), tmp_path / "secret.png")

    def write(
        model: str,
        rows: list[dict] | None = None,
        *,
        name: str = "",
        seed: int = 0,
        absent: dict | None = None,
        config: dict | None = None,
        settings: dict | None = None,
        dataset: str = "digits",
        step: int = 100,
    ) -> Path:
        folder = tmp_path / "runs" / (name or f"{model}-{seed}")
        (folder / "samples").mkdir(parents=True)
        spec = {
            "shape": [1, 8, 8],
            "kind": "image",
            "classes": 10,
            "levels": 2,
            "range": [0, 1],
            "dequantized": False,
        }
        info = {
            "model": model,
            "dataset": dataset,
            "command": ["genlab", "train", model],
            "seed": seed,
            "spec": spec,
        }
        own = {
            "seed": seed,
            "out": str(folder),
            "dataset": {"root": str(folder), "size": 8},
            "model": {"latent": 2},
        }
        own |= config or {}
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "config.yaml").write_text(yaml.safe_dump(own))
        log = [
            {"step": s, "loss": 10 / s + seed, "lr/model": 0.1, "seconds": s}
            for s in range(1, 101, 5)
        ]
        log += [{"step": s, "evaluation": {"frechet_classifier": 100 / s}} for s in (50, 100)]
        (folder / "stats.jsonl").write_text("\n".join(map(json.dumps, log)) + '\n{"step": 10')
        for where in ("samples/step_000000100.png", "reals.png", "evaluation/nearest.png"):
            item_pictures.write_image_as_png(
                np.full((20, 20, 3), 30 * seed, np.uint8), folder / where
            )
        if rows is not None:
            requested = {
                "split": "test",
                "n": 1000,
                "seed": 0,
                "iwae_samples": 100,
                "elbo_timesteps": 20,
                "features": None,
                "sampler": {},
            }
            record = {
                "model": model,
                "dataset": dataset,
                "seed": seed,
                "step": step,
                "settings": requested | (settings or {}),
            }
            record |= {"metrics": rows, "absent": absent or {}}
            record["pictures"] = {"nearest": "evaluation/nearest.png", "secret": "../../secret.png"}
            (folder / "metrics.json").write_text(json.dumps(record))
        return folder

    return write


def refuse_to_load(where: str) -> Any:
    raise AssertionError(f"{where} was loaded")


def compare_folders(*folders: Path, labels: tuple[str, ...] = ()):
    """Return the comparison of run folders with their records."""
    records = [
        json.loads((f / "metrics.json").read_text()) if (f / "metrics.json").exists() else None
        for f in folders
    ]
    named = [*labels, *[None] * (len(folders) - len(labels))]
    return make_comparison(
        [RunRecord(f, r, n) for f, r, n in zip(folders, records, named, strict=True)]
    )


# --- finding runs ---------------------------------------------------------------------------------


def test_names_stand_for_runs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, globs, folders of runs and checkpoints name runs, each once, in order."""
    a, b = make("vae", name="sweep/2"), make("vae", name="sweep/10", seed=1)
    checkpoint = b / "checkpoints" / "step_000000100.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    (a.parent / "multirun.yaml").touch()
    folders = lambda runs: [(w.run.path, w.checkpoint) for w in find_run_requests(runs)]  # noqa: E731
    assert folders([str(b), str(a), f"{a}/"]) == [(b, None), (a, None)]
    for whole in (str(a.parent), f"{a.parent}/*", f"{tmp_path}/**"):
        assert folders(whole) == [(a, None), (b, None)], whole  # 2 before 10
    assert folders([str(b), str(checkpoint)]) == [(b, None), (b, checkpoint)]
    monkeypatch.chdir(a.parent)
    assert folders([2, 10]) == [(Path("2"), None), (Path("10"), None)]
    for wrong, message in (
        (None, "give runs="),
        ([], "give runs="),
        ("nowhere", "no such run"),
        (str(a / "samples"), "is not a run"),
    ):
        with pytest.raises(UserError, match=message):
            find_run_requests(wrong)


# --- columns --------------------------------------------------------------------------------------


def test_seeds_become_one_column(make: Make) -> None:
    """Mean 4 and standard deviation 2 of 2, 4 and 6; another recipe is another column."""
    runs = [
        make("vae", [make_row("frechet_classifier", v)], seed=s)
        for s, v in enumerate((2.0, 4.0, 6.0))
    ]
    other = make(
        "vae", [make_row("frechet_classifier", 5.0)], name="other", config={"model": {"latent": 5}}
    )
    again = make("vae", [make_row("frechet_classifier", 7.0)], name="again", seed=2)
    found = compare_folders(*runs, other, again)
    assert [c.title for c in found.columns] == [
        "vae latent=2 (3 seeds)",
        "vae latent=5",
        "vae latent=2 #2",
    ]
    first, second, third = found.row_cells(0)
    assert (first.value, first.spread, first.spread_kind, first.num_seeds) == (4.0, 2.0, "s.d.", 3)
    assert (second.value, second.spread, second.spread_kind, second.is_best) == (
        5.0,
        0.1,
        "s.e.",
        False,
    )
    assert first.is_best and third.value == 7.0  # a repeated seed is not another seed
    assert first.format_text() == "4.0 ± 2.0"


def test_typed_overrides_label_columns_that_options_do_not_distinguish(
    make: Make,
) -> None:
    """Four options differ, but a label has three; the typed overrides are two."""
    runs = []
    for loss in ("hinge", "minimax"):
        for i, regularizer in enumerate(REGULARIZERS):
            config = {
                "model": {
                    "loss": loss,
                    "r1": 0.1 * (i == 1),
                    "slope": 10.0 * (i == 2),
                    "spectral": i == 3,
                }
            }
            folder = make(
                "gan", [make_row("frechet_classifier", i)], name=f"{loss}{i}", config=config
            )
            info = json.loads((folder / "run.json").read_text())
            info["command"] = [
                "genlab",
                "train",
                f"model.loss={loss}",
                f"+regularizer={regularizer}",
                "seed=0",
                f"out={folder}",
            ]
            (folder / "run.json").write_text(json.dumps(info))
            runs.append(folder)
    labels = [c.label for c in compare_folders(*runs).columns]
    assert labels == [
        f"gan loss={a}, regularizer={b}" for a in ("hinge", "minimax") for b in REGULARIZERS
    ]


def test_training_notes_are_below_the_numbers(make: Make, capsys: pytest.CaptureFixture) -> None:
    """Two of three seeds have a note, one twice; notes after the record's step do not count."""
    runs = [
        make("gan", [make_row("frechet_classifier", v)], seed=s)
        for s, v in enumerate((2.0, 4.0, 6.0))
    ]
    for folder, steps in zip(runs, ((), (60, 90), (40, 300)), strict=True):
        lines = [
            json.dumps({"step": s, "notes": [f"mode collapse {NASTY}; try +regularizer=r1"]})
            for s in steps
        ]
        (folder / "stats.jsonl").write_text("\n".join(lines))
    found = compare_folders(*runs)
    ((what, columns),) = found.training_notes().items()
    assert what.startswith("mode collapse ") and "try" not in what
    assert columns == {"gan": "2 of 3 seeds, from step 40"}
    print_comparison(found)
    for text in (
        capsys.readouterr().out,
        comparison_to_markdown(found),
        html_report.render_html_page(found),
    ):
        text = " ".join(text.split())  # a terminal's lines are wrapped
        assert "mode collapse" in text and "2 of 3 seeds, from step 40" in text


def test_many_models_go_down_in_markdown(make: Make) -> None:
    runs = [
        make(name, [make_row("frechet_classifier", i)])
        for i, name in enumerate(("ae", "vae", "gan"))
    ]
    lines = comparison_to_markdown(compare_folders(*runs)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["unit", "ae", "vae", "gan"]


def test_seeds_that_end_by_time_are_one_column_at_different_steps(make: Make) -> None:
    """With `trainer.max_minutes` the step does not matter; otherwise it distinguishes runs."""
    rows = [make_row("frechet_classifier", 1.0)]
    timed = {"trainer": {"max_minutes": 4}}
    ended = [
        make("vae", rows, seed=s, step=100 + s, config=timed, name=f"timed{s}") for s in (0, 1)
    ]
    assert [len(c.runs) for c in compare_folders(*ended).columns] == [2]
    other = [make("vae", rows, seed=s, step=100 + s) for s in (0, 1)]
    assert [len(c.runs) for c in compare_folders(*other).columns] == [1, 1]


@pytest.mark.parametrize("better, best", [("lower", 0), ("higher", 1), ("neither", None)])
def test_best_of_each_row_is_marked(make: Make, better: str, best: int | None) -> None:
    """By the direction of the measure; single or equal numbers are not marked."""
    rows = lambda v: [make_row("a", v, better=better), make_row("same", 1, "same")]  # noqa: E731
    found = compare_folders(
        make("vae", rows(1.0)), make("gan", [*rows(2.0), make_row("alone", 1, "alone")])
    )
    assert [[c.is_best for c in found.row_cells(i)] for i in range(3)] == [
        [j == best for j in range(2)],
        [False] * 2,
        [False] * 2,
    ]


# --- rows -----------------------------------------------------------------------------------------


def test_other_conditions_are_other_rows(make: Make) -> None:
    """Another classifier or dataset gives another row."""
    here = make_row("frechet_classifier", 1.0)["conditions"]
    others = [
        make(
            "rbm",
            [
                make_row(
                    "frechet_classifier",
                    2.0,
                    conditions=here | {"features": "classifier 999999, 98.0% on digits test"},
                )
            ],
        ),
        make("ddpm", [make_row("frechet_classifier", 2.0)], dataset="mnist"),
    ]
    base = make("vae", [make_row("frechet_classifier", 1.0)])
    for other in others:
        found = compare_folders(base, other)
        assert len(found.measures) == 2 and not any(c.is_best for c in found.cells.values())
        assert {c.blank_reason for c in found.cells.values()} == {
            "",
            "measured under other conditions, in its own row",
        }
        assert len({m.label for m in found.measures}) == 2
    same = make(
        "realnvp",
        [make_row("frechet_classifier", 3.0, conditions=here | {"seed": 5, "sampler": "steps=3"})],
    )
    assert (
        len(compare_folders(base, same).measures) == 1
    )  # the measurement's seed and the model's sampler only describe a number


@pytest.mark.parametrize(
    ("name", "metric", "best"),
    [("frechet_classifier", "frechet", False), ("nll_elbo", "likelihood", True)],
)
def test_same_number_at_another_n_is_on_one_row_with_its_n(make, name, metric, best):
    """The best is marked only for means over items: Fréchet distances depend on n."""
    here = make_row(name, 1.0, metric)["conditions"]
    few = make("gan", [make_row(name, 2.0, metric, conditions=here | {"n": 500})])
    many = make("vae", [make_row(name, 1.0, metric)])
    found = compare_folders(few, many)
    assert [cell.n for cell in found.row_cells(0)] == ["n=500", "n=1,000"] and len(
        found.measures
    ) == 1
    assert any(cell.is_best for cell in found.row_cells(0)) == best
    for text in (comparison_to_markdown(found), comparison_to_csv(found)):
        assert "500" in text and "1,000" in text
    same = compare_folders(many, make("rbm", [make_row(name, 3.0, metric)]))
    assert [cell.n for cell in same.row_cells(0)] == ["", ""], "an n that all share is no news"


def test_densities_of_different_ranges_are_converted(make):
    """As PCA in [0, 1] and a flow in [-1, 1]: D log 2 nats apart for the same density."""
    folders = []
    for name, value, bounds in (("pca", -1000.0, [0.0, 1.0]), ("realnvp", -500.0, [-1.0, 1.0])):
        bits = make_row("bits_per_dim", 3.0, "likelihood", unit="bits/dim")
        folders.append(make(name, [make_row("nll", value, "likelihood", unit="nats"), bits]))
        path = folders[-1] / "run.json"
        info = json.loads(path.read_text())
        info["spec"] |= {"shape": [1, 28, 28], "levels": 256, "dequantized": True, "range": bounds}
        path.write_text(json.dumps(info))
    found = compare_folders(*folders)
    assert len(found.measures) == 2 and found.measures[0].unit == "nats in [0, 1]"
    nll = found.row_cells(0)
    assert nll[0].value == -1000 and nll[1].value == pytest.approx(-500 - 784 * math.log(2))
    assert "converted from range=[-1, 1]" in nll[1].conditions
    assert [cell.value for cell in found.row_cells(1)] == [3.0, 3.0], "bits per dimension stay"
    alone = compare_folders(folders[1])
    assert alone.row_cells(0)[0].value == -500
    assert dict(alone.measures[0].conditions)["range"] == "[-1, 1]"


def test_likelihoods_of_different_data_are_different_rows(make: Make) -> None:
    """Likelihoods of binarized and of gray images are not comparable; their costs are."""
    rows = [make_row("nll", 1.0, "likelihood", unit="nats"), make_cost_row("training_seconds", 3)]
    gray = make("realnvp", rows, config={"dataset": {"binarize": "none"}})
    binary = make("vae", rows, config={"dataset": {"binarize": "dynamic"}})
    assert [m.label for m in compare_folders(gray, binary).measures] == [
        "nll",
        "nll (binarized=dynamic)",
        "training_seconds",
    ]


def test_blank_cells_have_a_reason(make: Make) -> None:
    """The record's reason, the numbers given instead, or why there is no record."""
    gan = make(
        "gan",
        [make_row("frechet_classifier", 1.0)],
        absent={"likelihood": "GAN does not support log_prob"},
    )
    vae = make(
        "vae", [make_row("nll_elbo", 1.0, "likelihood"), make_row("nll_iwae", 1.0, "likelihood")]
    )
    rbm = make("rbm", [make_row("nll", 1.0, "likelihood")])
    found = compare_folders(gan, vae, rbm, make("ddpm"))
    nll = next(i for i, m in enumerate(found.measures) if m.name == "nll")
    assert [c.blank_reason for c in found.row_cells(nll)] == [
        "GAN does not support log_prob",
        "vae gives nll_elbo, nll_iwae instead",
        "",
        "it was not measured",
    ]
    assert all(c.blank_reason for c in found.cells.values() if c.value is None)
    listed = found.blank_reasons()["GAN does not support log_prob"]
    assert list(listed) == ["gan"] and sorted(listed["gan"]) == ["nll", "nll_elbo", "nll_iwae"]


@pytest.mark.parametrize(
    "value, spread, text",
    [
        (97.9365, 0.2803, "97.94"),
        (1085.996, 12.3, "1,086"),
        (0.0121, 0.0008, "0.01210"),
        (3576704, None, "3,576,704"),
        (0.21, None, "0.21"),
        (0.0, None, "0"),
        (float("nan"), None, "nan"),
        (1e-9, 1e-10, "1e-09"),
    ],
)
def test_number_has_as_many_digits_as_its_spread_supports(
    value: float, spread: float | None, text: str
) -> None:
    assert format_to_error_digits(value, spread) == text


# --- the command ----------------------------------------------------------------------------------


def test_files_agree_with_the_records(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CSV has the exact numbers, Markdown and terminal round them; no run is loaded."""
    runs = [
        make(
            "vae", [make_row("frechet_classifier", v), make_cost_row("training_seconds", 9)], seed=s
        )
        for s, v in enumerate((2.5, 3.5))
    ]
    runs.append(
        make("g|n", [make_row("frechet_classifier", 1.23456789)], absent={"efficiency": "no cost"})
    )
    compare(
        refuse_to_load, find_run_requests([str(r) for r in runs]), output_dir=str(tmp_path / "out")
    )
    out = capsys.readouterr().out
    lines = {
        (line["model"], line["name"]): line
        for line in csv.DictReader((tmp_path / "out" / "compare.csv").open())
    }
    vae, gan = lines["vae", "frechet_classifier"], lines["g|n", "frechet_classifier"]
    assert (float(vae["value"]), float(vae["spread"]), vae["spread_is"], vae["seeds"]) == (
        3.0,
        0.5**0.5,
        "s.d.",
        "2",
    )
    assert (float(gan["value"]), float(gan["spread"]), float(gan["real_vs_real"]), gan["best"]) == (
        1.23456789,
        0.1,
        0.5,
        "1",
    )
    assert (
        lines["g|n", "training_seconds"]["value"],
        lines["g|n", "training_seconds"]["reason"],
    ) == ("", "no cost")
    markdown = (tmp_path / "out" / "compare.md").read_text()
    table = [
        re.split(r" *(?<!\\)\| *", line)[1:-1]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    assert table[0] == ["", "unit", "vae (2 seeds)", r"g\|n", "real vs. real"]
    assert table[2] == [
        "frechet_classifier ↓",
        "",
        "3.00 ± 0.71 estimate",
        "**1.23 ± 0.10 estimate**",
        "0.5",
    ]
    assert (
        table[3][2:4] == ["9 ± 0 exact", "·"] and "- no cost: g\\|n (training_seconds)" in markdown
    )
    for shown in (
        "3.00 ± 0.71",
        "1.23 ± 0.10 *",
        "Samples against held-out data: estimate",
        "no cost: g|n (training_seconds)",
        "compare.html",
    ):
        assert shown in out


def test_records_with_other_settings_do_not_count(make: Make, tmp_path: Path) -> None:
    """Nor do records of another step, and records that are not valid."""
    run = make("vae", [make_row("frechet_classifier", 1.0)])

    def reason(**requested: Any) -> str:
        found = compare(
            refuse_to_load,
            find_run_requests(str(run)),
            evaluate=False,
            output_dir=str(tmp_path / "out"),
            **requested,
        )
        return found.columns[0].runs[0].missing_reason

    assert reason(n=1000, seed=0, split="test") == ""
    assert reason(n=500) == "it was measured with n=1000, but n=500 is requested"
    assert reason(features=["pixels"]).startswith("it was measured with features=None")
    assert reason(metrics=["likelihood"]) == "its record does not contain likelihood"
    assert reason(sampler={"name": "ddim", "steps": 5}).startswith("it was not measured with")
    with pytest.raises(UserError, match="there is no 'likelyhood'.*did you mean"):
        reason(metrics=["likelyhood"])
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_000000200.pt").touch()
    assert reason() == "its numbers are of step 100, but it is at step 200"
    (run / "metrics.json").write_text(json.dumps({"step": 200, "settings": {}, "metrics": []}))
    assert reason() == "it was not measured"


def test_record_of_another_sampler_is_used_if_none_is_requested(make: Make, tmp_path: Path) -> None:
    """But not for a column that requests the model's own sampler."""
    run = make(
        "ddpm",
        [make_row("frechet_classifier", 1.0)],
        settings={"sampler": {"sampler": "ddim", "steps": 5}},
    )

    def missing(requests: list[RunRequest]) -> str:
        out = str(tmp_path / "out")
        comparison = compare(refuse_to_load, requests, evaluate=False, output_dir=out)
        return comparison.columns[0].runs[0].missing_reason

    assert missing(find_run_requests(str(run))) == ""
    assert missing([RunRequest(RunFolder(run), sampler={})]) == "it was not measured"


def test_runs_without_records_are_measured(train_run: Callable[..., Path], tmp_path: Path) -> None:
    """A metric that does not fit a run leaves a blank with its reason."""
    from genlab.builders import entrypoints

    loaded: list[str] = []

    def load(where: str) -> Any:
        loaded.append(where)
        return entrypoints.load_run({"run": where})

    options = ("dataset=digits",)
    runs = [
        str(shutil.copytree(train_run(f"model={m}", *options), tmp_path / m))
        for m in ("vae", "gan")
    ]
    requested = {"n": 8, "metrics": ["likelihood"], "output_dir": str(tmp_path / "out")}
    for _ in range(2):
        found = compare(load, find_run_requests(runs), **requested)
        assert loaded == runs  # the second time none is
        assert {m.metric for m in found.measures} == {"likelihood"}
        assert all(c.value is not None for (_, j), c in found.cells.items() if j == 0)
        assert all("gan" in c.blank_reason.lower() for (_, j), c in found.cells.items() if j == 1)
    record = json.loads((tmp_path / "vae" / "metrics.json").read_text())
    values = {m.name: found.cells[i, 0].value for i, m in enumerate(found.measures)}
    assert (
        values == {r["name"]: r["value"] for r in record["metrics"]}
        and record["settings"]["n"] == 8
    )
    with pytest.raises(UserError, match="sampler=ddim is not for"):
        compare(load, find_run_requests(runs), sampler={"name": "ddim"}, **requested)


def test_compare_command(genlab: Callable[..., Any], make: Make, tmp_path: Path) -> None:
    """It takes globs, prints a table, writes three files; missing runs are a one-line error."""
    make("vae", [make_row("frechet_classifier", 1.0)])
    make("gan", [make_row("frechet_classifier", 2.0)])
    result = genlab("compare", "runs=[runs/gan-0,runs/v*]", "title=Two", "device=cpu")
    assert result.code == 0, result.err
    assert "1.00 ± 0.10 estimate *" in result.out and result.out.index("gan") < result.out.index(
        "vae"
    )
    written = sorted(p.name for p in tmp_path.glob("outputs/compare/*/*"))
    assert written == ["compare.csv", "compare.html", "compare.md"]
    assert "give runs=" in genlab("compare").error
    assert "no such run as nowhere" in genlab("compare", "runs=nowhere").error
    assert "n=2" in genlab("compare", "runs=[runs/gan-0]", "n=2").error


def test_page_is_written_only_into_its_own_folder(genlab, make, tmp_path):
    """It is written again for at least the same runs; all that a user made is kept."""
    for name in ("vae", "gan", "rbm"):
        make(name, [make_row("frechet_classifier", 1.0)])
    ask = ("compare", "output_dir=page", "device=cpu", "evaluate=false")
    two = "runs=[runs/vae-0,runs/gan-0]"
    for runs in (two, two, "runs=runs/*", "runs=[runs/rbm-0,runs/vae-0,runs/gan-0]"):
        done = genlab(*ask, runs)
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1] == "open: page/compare.html"
    assert "a page with 1 further run" in genlab(*ask, two).error
    page = tmp_path / "page"
    for name in ("compare.md", "compare.csv", "compare.html", "notes.txt"):
        before = (page / name).read_bytes() if (page / name).exists() else None
        (page / name).write_bytes((before or b"") + b"mine")
        assert f"contains {name}" in genlab(*ask, "runs=runs/*").error or name == "compare.html"
        assert (page / name).read_bytes().endswith(b"mine")
        (page / name).unlink()
        if before:
            (page / name).write_bytes(before)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/compare.md").write_text("mine")
    assert "contains compare.md" in genlab(*ask, "output_dir=photos", two).error
    assert "is a file" in genlab(*ask, "output_dir=photos/compare.md", two).error


# --- the page -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def hostile_page(make: Make, tmp_path: Path) -> Path:
    """The page of five models with hostile names, values and reasons."""

    def costs(seconds: float) -> list[dict[str, Any]]:
        return [
            make_cost_row("sampling_seconds", seconds),
            make_cost_row("network_evaluations", 3),
        ]

    def record(run: Path) -> dict[str, Any] | None:
        path = run / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else None

    odd = [
        make_row("frechet_classifier", -2.0, tag=NASTY),
        make_row(NASTY, 1.0, NASTY, unit=NASTY, conditions={NASTY: NASTY}),
    ]
    made = {
        NASTY: make(
            "vae",
            [make_row("frechet_classifier", 10.0), *costs(0.5)],
            name=FILE_NAME,
            config={"model": {"latent": NASTY, NASTY: 1}},
        ),
        "gan": make(
            "gan", [make_row("frechet_classifier", 9.0), *costs(20)], absent={"likelihood": NASTY}
        ),
        "rbm": make(
            "rbm",
            [make_row("frechet_classifier", 1e3), make_row("nll", 5.0, "likelihood"), *costs(3000)],
        ),
        "_ddpm_$x^2$": make("_ddpm_$x^2$", odd),
        "realnvp": make("realnvp"),
    }
    entries = [(label, run, record(run)) for label, run in made.items()]
    return html_report.write_page_from_entries(
        entries, tmp_path / "pages" / f"{FILE_NAME}.html", title=NASTY, text=f"One {NASTY}\n\nTwo"
    )


def test_page_escapes_all_text(hostile_page: Path, tmp_path: Path) -> None:
    """Names and values are text, nothing is fetched, pictures come from the run folder only."""
    text = hostile_page.read_text()
    read = Reader(text)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert "alert(1)" in read.text and "<script>alert" not in text.replace(html.escape(NASTY), "")
    sources = [attrs["src"] for tag, attrs in read.tags if tag == "img"]
    assert sources and all(
        s.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for s in sources
    )
    assert not re.search(r"\b(?:src|href)=\"(?!data:|#)", text)
    policy = next(
        a["content"] for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert (
        policy.startswith("default-src 'none'; img-src data:") and "script-src 'sha256-" in policy
    )
    assert "No such picture" in read.text and "Secret" not in read.text


def test_chart_labels_are_plain_text(make: Make) -> None:
    """No mathematics, no hidden labels, valid XML."""
    import base64
    from xml.etree import ElementTree

    label = "_a_$x^2$ \\frac{1} <b>&\x00"
    runs = [
        make(m, [make_row("frechet_classifier", v), make_cost_row("sampling_seconds", v)])
        for m, v in (("vae", 1.0), ("gan", 200.0))
    ]
    chart = charts.plot_quality_against_cost(compare_folders(*runs, labels=(label, "gan")))
    svg = base64.b64decode(chart.source.partition(",")[2]).decode()
    words = "".join(ElementTree.fromstring(svg).itertext())
    assert (
        "_a_$x^2$ \\frac{1} <b>&\N{REPLACEMENT CHARACTER}" in words and "sampling_seconds" in words
    )
    assert "frechet_classifier (lower is better) against sampling_seconds" in chart.caption


def test_records_of_one_run_are_columns(make: Make, tmp_path: Path) -> None:
    """As for several samplers; each column has its label."""
    run = make("ddpm_small", [make_row("frechet_classifier", 1.0)])
    record = json.loads((run / "metrics.json").read_text())
    fast = record | {"settings": record["settings"] | {"sampler": {"sampler": "ddim", "steps": 5}}}
    fast["metrics"] = [make_row("frechet_classifier", 2.0)]
    out = html_report.write_page_from_entries(
        [("1,000 steps", run, record), ("5 steps", run, fast)],
        tmp_path / "a.html",
        title="Steps",
        text="Look",
    )
    assert "<h1>Steps</h1>" in out.read_text() and "<p>Look</p>" in out.read_text()
    plain = make_comparison([RunRecord(run, record), RunRecord(run, fast)])
    assert [c.label for c in plain.columns] == ["ddpm_small", "ddpm_small ddim 5"]
    assert comparison_to_csv(plain).count("\n") == 3 and "ddim 5" in comparison_to_markdown(plain)


def test_pictures_of_sheets_are_shown_without_their_captions(make: Make, tmp_path: Path) -> None:
    """And pixel by pixel, a plot as it is; every gallery has a sentence."""
    run = make("rbm", [make_row("frechet_classifier", 1.0)])
    record = json.loads((run / "metrics.json").read_text())
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
    pictures = {name: make_picture(images, columns=3) for name in ("samples", "filters", "chains")}
    pictures["latent"] = make_plot_picture(np.full((50, 60, 3), 7, np.uint8))
    for name, picture in pictures.items():
        save_picture_as_sheet(picture, run / "evaluation" / f"{name}.png", caption="rbm on digits")
    record["pictures"] = {name: f"evaluation/{name}.png" for name in pictures}
    galleries = html_report.make_picture_galleries(make_comparison([RunRecord(run, record)]))
    shown = {gallery["heading"]: gallery for gallery in galleries}
    assert set(shown) == {"Samples", "Latent space", "Filters", "Chains"}
    assert all(gallery["text"].endswith(".") for gallery in galleries)
    for heading, gallery in shown.items():
        figure = gallery["figures"][-1]
        size = (60, 50) if heading == "Latent space" else (1 + 3 * 9, 1 + 9)
        assert (figure["width"], figure["height"]) == size
        assert figure["is_plot"] == (heading == "Latent space")


@pytest.mark.parametrize(
    ("widths", "across"),
    [([73], 1), ([73] * 4, 4), ([73] * 5, 3), ([233] * 4, 2), ([233] * 3, 2), ([], 1)],
)
def test_cards_fill_the_rows_of_a_wide_page(widths: list[int], across: int) -> None:
    """Cards of 8×8 grids of 8×8 and 28×28 images: rows of similar lengths."""
    cards = html_report.choose_card_width_and_columns(
        [{"width": w, "is_plot": False} for w in widths]
    )
    assert cards["across"] == across
    assert cards["card"] >= 280 and cards["across"] * cards["card"] <= html_report.PAGE_WIDTH


PROBE = """
;(() => {
  const rows = table => [...table.tBodies[0].rows];
  const order = () => rows(tables[0]).map(row => row.cells[1].textContent.trim());
  const models = table => rows(table).map(row => row.dataset.model).join();
  const all = () => new Set(tables.map(models)).size;
  const header = tables[0].tHead.rows[0].cells[1];
  const button = header.querySelector("button");
  const seen = {before: order()};
  button.focus();
  seen.focused = document.activeElement === button;
  button.click(); seen.first = order(); seen.up = header.getAttribute("aria-sort");
  button.click(); seen.second = order(); seen.down = header.getAttribute("aria-sort");
  seen.orders = all();
  const name = tables[0].tHead.rows[0].cells[0];
  name.querySelector("button").click();
  seen.released = header.getAttribute("aria-sort"); seen.named = name.getAttribute("aria-sort");
  seen.tables = tables.length;
  addEventListener("load", () => {
    const loaded = [...document.images].every(i => i.complete && i.naturalWidth > 0);
    seen.images = loaded && document.images.length;
    seen.wide = document.documentElement.scrollWidth <= innerWidth;
    seen.width = innerWidth;
    const grids = [...document.querySelectorAll("figure.pixels img")];
    seen.scales = grids.map(i => i.getBoundingClientRect().width / i.naturalWidth);
    seen.rendering = grids.map(i => getComputedStyle(i).imageRendering);
    const tables = [...document.querySelectorAll(".scroll")];
    seen.scrolled = tables.filter(s => s.scrollWidth > s.clientWidth).length;
    seen.errors = errors;
    const pre = document.createElement("pre");
    pre.id = "probe";
    pre.textContent = JSON.stringify(seen);
    document.body.append(pre);
  });
})();
"""
WATCH = """
const errors = [];
addEventListener("error", e => errors.push(String(e.message)));
addEventListener("securitypolicyviolation",
  e => errors.push(e.violatedDirective + " " + e.blockedURI));
console.error = (...words) => errors.push(words.join(" "));
"""


def test_page_in_a_browser(hostile_page: Path, tmp_path: Path) -> None:
    """It renders, sorts by value both ways with blanks last, and logs no error.

    On a phone its tables scroll, the page does not, and images are enlarged by whole numbers.
    """
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("Chromium is not installed")
    text = (
        hostile_page.read_text()
        .replace('"use strict";', WATCH)
        .replace("</script>\n</body>", PROBE + "</script>\n</body>")
    )
    text = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text)
    copy = tmp_path / "probe.html"
    copy.write_text(text)
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=500,900",  # the narrowest that Chromium has
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=3000",
        "--enable-logging=stderr",
        "--dump-dom",
    ]

    def dump(path: Path) -> tuple[str, str]:
        ended = subprocess.run(
            [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=False
        )
        return ended.stdout, "\n".join(
            line for line in ended.stderr.splitlines() if "CONSOLE" in line
        )

    dom, message = dump(copy)
    assert not message, message
    seen = json.loads(
        html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL).group(1))
    )
    assert (
        seen["errors"] == []
        and seen["images"] > 8
        and seen["wide"]
        and seen["focused"]
        and seen["tables"] == 3
    )
    assert seen["width"] <= 500 and seen["scrolled"] >= 2
    assert len(seen["scales"]) > 8 and all(s >= 5 and s % 1 == 0 for s in seen["scales"])
    assert set(seen["rendering"]) == {"pixelated"}
    values = lambda cells: [re.split("±", cell)[0] for cell in cells]  # noqa: E731
    assert values(seen["before"]) == ["10.00", "9.00", "1,000.00", "-2.00", "·"]
    assert (values(seen["first"]), seen["up"]) == (
        ["-2.00", "9.00", "10.00", "1,000.00", "·"],
        "ascending",
    )
    assert (values(seen["second"]), seen["down"]) == (
        ["1,000.00", "10.00", "9.00", "-2.00", "·"],
        "descending",
    )
    assert (seen["orders"], seen["released"], seen["named"]) == (1, "none", "ascending")
    dom, message = dump(hostile_page)  # unchanged, under its own policy
    assert not message and 'aria-sort="none"' in dom


def test_options_that_only_say_how_files_are_read_are_no_conditions(make: Make) -> None:
    """The number of workers and options that are null do not put numbers on separate rows."""
    loaders = ({"workers": 4, "cache_in_memory": None, "crop": None}, {"workers": 0})
    runs = [
        make(name, [make_row("frechet", value)], config={"dataset": options})
        for name, value, options in zip(("gan", "vae"), (1.0, 2.0), loaders, strict=True)
    ]
    (measure,) = compare_folders(*runs).measures
    assert measure.label == "frechet"
