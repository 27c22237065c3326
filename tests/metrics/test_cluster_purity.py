"""Categories against classes: purity, NMI and ARI, compared with scikit-learn."""

from __future__ import annotations

import json

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from genlab.metrics.cluster_purity import (
    adjusted_rand_index,
    bootstrap_standard_error,
    cluster_purity,
    contingency_table,
    normalized_mutual_information,
)

PARTITIONS = {
    "random": (torch.arange(60) * 7 % 11, torch.arange(60) * 5 % 4),
    "equal": (torch.arange(60) % 5, (torch.arange(60) + 2) % 5),
    "finer": (torch.arange(60) % 10, torch.arange(60) % 5),
    "one cluster": (torch.zeros(60, dtype=torch.int64), torch.arange(60) % 5),
    "one class": (torch.arange(60) % 5, torch.zeros(60, dtype=torch.int64)),
    "both single": (torch.zeros(60, dtype=torch.int64), torch.zeros(60, dtype=torch.int64)),
    "all different": (torch.arange(60), torch.arange(60)),
    "one item": (torch.tensor([3]), torch.tensor([1])),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_agreement_equals_scikit_learn(name):
    categories, classes = PARTITIONS[name]
    table = contingency_table(categories, classes)
    assert adjusted_rand_index(table) == pytest.approx(adjusted_rand_score(classes, categories))
    assert normalized_mutual_information(table) == pytest.approx(
        normalized_mutual_info_score(classes, categories), abs=1e-12
    )


def test_purity_is_the_share_of_each_category_s_largest_class():
    categories, classes = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1, 1, 0, 0, 1])
    assert cluster_purity(categories, classes) == pytest.approx(3 / 5)


def test_bootstrap_error_is_the_standard_deviation():
    torch.manual_seed(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(4, (300,))
        return torch.where(torch.rand(300) < 0.7, y, torch.randint(4, (300,))), y

    def ari(z: torch.Tensor, y: torch.Tensor) -> float:
        return adjusted_rand_index(contingency_table(z, y))

    spread = torch.tensor([ari(*draw()) for _ in range(200)]).std().item()
    assert bootstrap_standard_error(adjusted_rand_index, *draw(), seed=0) == pytest.approx(
        spread, rel=0.25
    )


@pytest.mark.parametrize("model", ["kmeans", "gmm"])
def test_evaluate_compares_clusters_with_labels(model, genlab, train_run):
    size = {"kmeans": "model.num_clusters=10", "gmm": "model.num_components=10"}[model]
    run = train_run(f"model={model}", size, "trainer.steps=1")
    result = genlab("evaluate", f"run={run}", "metrics=[cluster_purity]", "n=180", "device=cpu")
    assert result.code == 0, result.err
    record = json.loads((run / "metrics.json").read_text())
    values = {row["name"]: row["value"] for row in record["metrics"]}
    assert set(values) == {"code_purity", "code_nmi", "code_ari"}
    assert all(0.3 < value <= 1 for value in values.values()), "digits fall into clusters"
