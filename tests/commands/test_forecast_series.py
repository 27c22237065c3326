"""genlab forecast on series, and the other commands on models of series."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.builders.entrypoints import load_run
from genlab.commands.forecast import forecast
from genlab.inference.series_forecasts import draw_futures, find_origin

SMALL = {
    "deepar": ("model=deepar", "model.hidden=4", "model.num_layers=1"),
    "csdi": (
        "model=csdi", "model.channels=8", "model.num_layers=1", "model.num_heads=2",
        "model.embedding=8", "model.timesteps=4",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sales(tmp_path_factory) -> Path:
    """Ten years of months of two columns in different units."""
    months = np.datetime64("2001-01") + np.arange(120)
    season = np.sin(np.arange(120) * math.pi / 6)
    path = tmp_path_factory.mktemp("sales") / "sales.csv"
    lines = [f"{m},{1000 + 100 * s:.1f},{5 + s:.3f}" for m, s in zip(months, season, strict=True)]
    path.write_text("month,price [EUR],amount\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def trained(sales, train_run):
    def train(recipe: str, *options: str) -> Path:
        data = ("dataset=series", f"dataset.path={sales}", "dataset.context_steps=12")
        return train_run(*SMALL[recipe], *data, "dataset.target_steps=6", *options)

    return train


def loaded(folder: Path):
    return load_run({"run": str(folder), "device": {"name": "cpu"}})


def only(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


@pytest.mark.parametrize("recipe", SMALL)
def test_a_forecast_continues_the_dates_in_own_units(recipe, trained, tmp_path):
    record = forecast(loaded(trained(recipe)), steps=15, draws=20, output_dir=str(tmp_path))
    with open(only(tmp_path, ".csv")) as file:
        header, *rows = csv.reader(file)
    wanted = [str(m) for m in np.datetime64("2011-01") + np.arange(15)]
    assert [row[0] for row in rows] == wanted
    assert record["origin"] == "2010-12" and (record["first"], record["last"]) == (
        "2011-01", "2012-03"
    )  # fmt: skip
    assert header[:4] == ["date", "price [EUR]_mean", "price [EUR]_q0.05", "price [EUR]_q0.25"]
    draws = np.load(only(tmp_path, ".npz"))["draws"]
    assert draws.shape == (20, 15, 2)
    numbers = np.array([row[1:] for row in rows], float).reshape(15, 2, 6)
    assert (np.diff(numbers[:, :, 1:], axis=2) >= 0).all()
    assert np.allclose(numbers[:, :, 0], draws.mean(0), rtol=1e-5)
    levels = np.quantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    assert np.allclose(numbers[:, :, 1:], levels.transpose(1, 2, 0), rtol=1e-5)
    assert only(tmp_path, ".png").stat().st_size > 10_000
    # an untrained network does not know the season, but the units are those of the columns
    assert abs(draws[..., 0].mean() - 1000) < 200 and abs(draws[..., 1].mean() - 5) < 2


def test_a_forecast_of_the_past_is_scored_with_the_known_future(trained, tmp_path, genlab):
    run = trained("deepar")
    record = forecast(
        loaded(run), origin="2008-12", draws=50, seed=3, output_dir=str(tmp_path / "a")
    )
    assert record["steps"] == 6 and set(record["crps"]) == {"price [EUR]", "amount"}
    arrays = np.load(only(tmp_path / "a", ".npz"))
    season = np.sin(np.arange(96, 102) * math.pi / 6)
    assert np.allclose(arrays["x"][:, 1], 5 + season, atol=1e-3)
    pairs = np.abs(arrays["draws"][:, None] - arrays["draws"][None]).sum((0, 1)) / (50 * 49)
    crps = (np.abs(arrays["draws"] - arrays["x"]).mean(0) - pairs / 2).mean(0)
    assert np.allclose(list(record["crps"].values()), crps)
    # the same command draws the same, and overwrites only its own files
    for _ in range(2):
        result = genlab("forecast", f"run={run}", "origin=2008-12", "seed=3", "output_dir=b",
                        "draws=50", "device=cpu")  # fmt: skip
        assert result.code == 0, result.err
    again = np.load(only(tmp_path / "b", ".npz"))["draws"]
    assert np.array_equal(again, arrays["draws"])
    saved = json.loads(only(tmp_path / "b", ".json").read_text())
    assert saved["question"]["options"]["origin"] == "2008-12"
    with open(only(tmp_path / "b", ".csv")) as file:
        header = next(csv.reader(file))
    assert "amount_truth" in header and header.index("amount_truth") == 14


def test_a_series_that_has_grown_is_forecast_in_the_units_of_the_training(
    trained, sales, tmp_path, genlab
):
    """The fractions of the splits would standardize a longer series in another way."""
    run = trained("deepar")
    longer = tmp_path / "longer.csv"
    rows = [
        f"{m},{5000 + i}.0,9.25" for i, m in enumerate(np.datetime64("2011-01") + np.arange(24))
    ]
    longer.write_text(sales.read_text() + "\n".join(rows) + "\n")
    result = genlab("forecast", f"run={run}", f"dataset.path={longer}", "output_dir=made",
                    "device=cpu")  # fmt: skip
    assert result.code == 0 and "6 steps after 2012-12" in result.out, result.err
    before = loaded(run).dataset
    data = load_run(
        {"run": str(run), "device": {"name": "cpu"}, "dataset": {"path": str(longer)}}
    ).dataset
    assert [(c.mean, c.scale) for c in data.columns] == [(c.mean, c.scale) for c in before.columns]
    assert torch.equal(data.store[:120, :2], before.store[:, :2])
    other = tmp_path / "other.csv"
    other.write_text(sales.read_text().replace("amount", "number"))
    error = genlab("forecast", f"run={run}", f"dataset.path={other}", "device=cpu").error
    assert "has the columns price [EUR], number" in error


def test_later_steps_are_conditioned_on_the_drawn_ones(trained):
    """A model that adds 1 to the last value counts on beyond the steps that it predicts at once."""
    run = loaded(trained("deepar"))
    dataset = run.dataset

    def forecast_counting(cond, draws=1):
        last = cond[:, dataset.context_steps - 1, :2]
        ahead = torch.arange(1.0, 7.0)[:, None] + last[:, None]
        return ahead.expand(draws, *ahead.shape)

    run.model.forecast = forecast_counting
    origin = find_origin(dataset, "2008-12")
    drawn = draw_futures(run.model, dataset, origin, 15, 3, "cpu")
    start = dataset.store[origin.row, :2]
    assert torch.allclose(drawn[2] - start, torch.arange(1.0, 16.0)[:, None].expand(15, 2))


def test_every_command_works_on_a_model_of_series(trained, sales, genlab, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(trained("deepar"), run)
    info = genlab("info", f"run={run}").out
    assert "genlab forecast" in info and "metrics=[crps,pinball" in info
    result = genlab("evaluate", f"run={run}", "metrics=[crps,forecast_likelihood]", "device=cpu")
    assert result.code == 0 and "seasonal_naive" in result.out, result.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert [row["name"] for row in metrics["metrics"]] == ["crps", "nll_forecast"]
    assert (run / metrics["pictures"]["forecasts"]).exists()
    page = genlab("compare", f"runs=[{run}]", "metrics=[crps]", "output_dir=page", "device=cpu")
    assert page.code == 0 and "crps" in page.out, page.err
    options = (*SMALL["deepar"], "dataset=series", f"dataset.path={sales}", "device=cpu")
    plan = genlab("plan", *options, "trainer.steps=5")
    assert plan.code == 0 and "series" in plan.out, plan.err
    resumed = genlab("train", f"resume={run}", "trainer.steps=2")
    assert resumed.code == 0 and "is done" in resumed.out + resumed.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("n=3", "n=3 has no effect: it is for videos; this run takes steps=30"),
        ("split=train", "split=train has no effect"),
        ("origin=2008-12-01", "origin=2008-12-01: no such date in series"),
        ("origin=2001-03", "the first possible origin is 2001-12"),
        ("draws=1", "draws"),
    ],
)
def test_a_wrong_option_of_a_forecast_is_told_in_one_line(words, told, trained, genlab):
    error = genlab("forecast", f"run={trained('deepar')}", words, "device=cpu").error
    assert told in error


@pytest.mark.parametrize("model", ["vae", "realnvp_points", "gpt_text"])
def test_other_models_refuse_series_and_name_those_that_take_them(model, sales, genlab):
    error = genlab("train", f"model={model}", "dataset=series", f"dataset.path={sales}").error
    assert "deepar" in error and "csdi" in error and "series" in error


def test_an_image_model_does_not_forecast_and_a_series_model_does_not_sample(
    trained, train_run, genlab
):
    error = genlab("sample", f"run={trained('deepar')}", "device=cpu").error
    assert "does not support `sample`" in error
    films = train_run("model=next_frame", "model.width=[2,2,2,2]", "model.adversarial_weight=0")
    error = genlab("forecast", f"run={films}", "steps=3", "device=cpu").error
    assert "steps=3 has no effect: it is for series" in error
