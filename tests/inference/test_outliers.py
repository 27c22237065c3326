"""Outliers of a table: contributions of columns, and the threshold, on a known Gaussian."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from genlab.inference.likelihood_scores import Score
from genlab.inference.outliers import candidate_values, column_contributions


def test_contributions_of_a_gaussian_are_half_the_squared_conditional_distance():
    """max_v log p(x with x_j = v) − log p(x) = (x_j − E[x_j|rest])² / (2 Var[x_j|rest])."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.mT + 0.3 * torch.eye(4, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.0, 3.0], dtype=torch.float64)
    law = MultivariateNormal(mean, covariance)
    run = SimpleNamespace(
        model=SimpleNamespace(conditional=False),
        device=SimpleNamespace(seed=lambda seed: None, to_device=lambda batch: batch),
    )
    score = Score("density", "log_prob", lambda x, y: law.log_prob(x))
    torch.manual_seed(0)
    x = law.sample((6,))
    candidates = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None] + mean
    found = column_contributions(run, score, x, candidates, batch_size=100_000, seed=0)
    precision = torch.linalg.inv(covariance)
    distance = (x - mean) @ precision / precision.diagonal()  # x_j − E[x_j | rest]
    exact = 0.5 * distance.square() * precision.diagonal()
    assert torch.allclose(found, exact, rtol=1e-3, atol=1e-3)


def test_candidates_are_quantiles_of_each_column():
    x = torch.stack([torch.arange(201.0), 5 * torch.ones(201)], 1)
    values = candidate_values(x)
    assert values[0].tolist() == [0, 5] and values[-1].tolist() == [200, 5]
    assert (values[:, 0].diff() > 0).all()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of two correlated columns, with one row that only their combination betrays."""
    random = np.random.default_rng(0)
    a = random.normal(size=300)
    rows = np.stack([a, a + 0.1 * random.normal(size=300), random.normal(size=300)], 1)
    rows[40] = [1.5, -1.5, 0.0]
    path = tmp_path / "table.csv"
    np.savetxt(path, rows, delimiter=",", header="a,b,c", comments="")
    return path


def test_the_strangest_row_comes_first_with_its_columns(genlab, table, tmp_path):
    run = tmp_path / "run"
    options = ("model=gmm", "model.num_components=1", f"dataset.path={table}", "dataset.label=none")
    train = genlab("train", *options, "dataset=table", "trainer.steps=2", f"out={run}")
    assert train.code == 0, train.err
    result = genlab("anomaly", f"run={run}", "shown=4", "outlier_fraction=0.02")
    assert result.code == 0, result.err
    (record_path,) = (run / "anomaly").glob("outliers_density*.json")
    record = json.loads(record_path.read_text())
    first, *others = record["rows"]
    gains = first["contributions"]
    assert min(gains["a"], gains["b"]) > 10 * gains["c"] and first["is_outlier"]
    assert first["values"] == {"a": "1.5", "b": "-1.5", "c": "0"}
    assert all(first["score"] < other["score"] - 20 for other in others)
    assert record["n"] == 300 and record["n_outliers"] >= 0.02 * 240 - 1
    names = {path.suffix for path in (run / "anomaly").iterdir()}
    assert names == {".json", ".png", ".csv"}
    lines = next((run / "anomaly").glob("*.csv")).read_text().splitlines()
    assert len(lines) == 301 and "score" in lines[0] and lines[1].startswith(str(first["row"]))
    assert "below the threshold" in result.out
