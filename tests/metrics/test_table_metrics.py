"""Metrics of tables: closed forms, other packages' numbers, perfect samplers and copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from genlab.data.mixed_table import MixedTable
from genlab.metrics import table_copying, table_correlations, table_marginals, table_utility
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import applicable_metrics, measure
from genlab.metrics.table_rows import TableRows
from genlab.spec import Batch

TABLE_METRICS = ["table_marginals", "table_correlations", "table_utility", "table_copying"]


@pytest.fixture(scope="module")
def table() -> MixedTable:
    return MixedTable(validation=0.2, test=0.3)


def values_of(context: MetricContext, names: list[str] | None = None) -> dict:
    rows = measure(context, names or TABLE_METRICS)
    return {row.name: row for part in rows.values() for row in part}


def given(table: MixedTable, x, y, n: int = 1000) -> MetricContext:
    return MetricContext(table, Settings(n=n), samples=Batch(x, y))


@pytest.mark.parametrize("seed", range(3))
def test_associations_and_distances_equal_those_of_scipy(seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=300), random.normal(0.3, 2, size=200).round(1)
    assert table_marginals.kolmogorov_smirnov(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)
    first = random.integers(4, size=500)
    second = (first + random.integers(2, size=500)) % 3
    crossed = np.zeros((4, 3), int)
    np.add.at(crossed, (first, second), 1)
    expected = stats.contingency.association(crossed, method="cramer")
    assert table_correlations.cramers_v(first, second) == pytest.approx(expected)
    numbers = first + random.normal(size=500)
    groups = [numbers[first == k] for k in range(4)]
    f = stats.f_oneway(*groups).statistic
    eta2 = f * 3 / (f * 3 + 496)
    ratio = table_correlations.correlation_ratio(first, numbers)
    assert ratio**2 == pytest.approx(eta2)
    found = table_correlations.pearson_correlation(numbers, first.astype(float))
    assert found == pytest.approx(stats.pearsonr(numbers, first).statistic)


def test_limits_of_the_associations():
    k = np.array([0, 0, 1, 2, 2])
    assert table_correlations.cramers_v(k, 2 - k) == pytest.approx(1)
    assert table_correlations.cramers_v(k, np.zeros(5, int)) == 0
    assert table_correlations.correlation_ratio(k, k.astype(float)) == pytest.approx(1)
    assert table_correlations.correlation_ratio(k, np.ones(5)) == 0
    assert table_correlations.pearson_correlation(np.ones(5), np.arange(5.0)) == 0
    assert table_marginals.kolmogorov_smirnov(np.zeros(0), np.ones(3)) == 1
    # a missing number is left out of its pairs
    rows = TableRows(np.array([[0.0, 1], [1, np.nan], [2, 5], [3, 7]]), ["a", "b"], [0, 0])
    found = table_correlations.association_matrix(rows)
    assert found[0, 1] == pytest.approx(np.corrcoef([0, 2, 3], [1, 5, 7])[0, 1])


def test_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    is_positive = torch.rand(400, generator=generator) < 0.3
    scores = (torch.randn(400, generator=generator) + is_positive).round(decimals=1).double()
    value, error = table_utility.binary_auc_and_error(scores, is_positive)
    assert value == pytest.approx(roc_auc_score(is_positive, scores))
    assert 0.02 < error < 0.05


def test_a_perfect_sampler_scores_what_real_rows_score(table):
    validation, train = table.splits["validation"], table.splits["train"]
    found = values_of(given(table, validation.x, validation.y))
    for name in ("column_ks", "column_total_variation", "pair_association"):
        assert found[name].value < 1.6 * found[name].real_vs_real, name
    copying = found["row_copying"]
    assert abs(copying.value - 0.5) < 4 * copying.error
    utility = found["utility_auc"]
    assert utility.value > utility.real_vs_real - 4 * utility.error - 0.02
    # the same rows as the training's are copies
    copies = values_of(given(table, train.x, train.y), ["table_copying"])
    assert copies["exact_copies"].value == 1
    assert copies["nearest_train_row"].value < 1e-3
    assert copies["row_copying"].value > 0.9


def test_a_bad_sampler_is_found(table):
    generator = torch.Generator().manual_seed(0)
    part = table.splits["validation"]
    order = [torch.randperm(len(part.x), generator=generator) for _ in range(table.spec.dim)]
    shuffled = torch.stack([part.x[index, i] for i, index in enumerate(order)], 1)
    found = values_of(given(table, shuffled, part.y))
    # columns by themselves are right, but neither their pairs nor the class
    assert found["column_total_variation"].value < 2 * found["column_total_variation"].real_vs_real
    assert found["pair_association"].value > 3 * found["pair_association"].real_vs_real
    assert found["utility_auc"].value < 0.65 < found["utility_auc"].real_vs_real
    assert found["row_copying"].value < 0.45  # no rows like these
    x = part.x.clone()
    x[:, 1] = 0
    worst = values_of(given(table, x, part.y))["column_total_variation"]
    assert worst.conditions["worst"].startswith("city 0.7")


def test_only_tables_with_classes_have_a_utility(table):
    assert set(TABLE_METRICS) <= set(
        applicable_metrics(given(table, *vars(table.splits["test"]).values()))
    )
    unlabeled = MixedTable(label="none")
    context = given(unlabeled, unlabeled.splits["test"].x, None)
    assert set(applicable_metrics(context)) & set(TABLE_METRICS) == set(TABLE_METRICS) - {
        "table_utility"
    }


def test_distances_of_rows_count_a_differing_category_as_one():
    rows = TableRows(np.array([[0.0, 0], [0, 1], [2, 1]]), ["a", "b"], [0, 2])
    points = table_copying.rows_to_coordinates(rows, rows)
    assert torch.dist(points[0], points[1]).item() == pytest.approx(1)
    scale = np.std([0, 0, 2])
    assert torch.dist(points[1], points[2]).item() == pytest.approx(2 / scale, rel=1e-5)


def test_the_numbers_agree_with_sdmetrics():
    reason = "SDMetrics is not installed: pip install sdmetrics"
    single = pytest.importorskip("sdmetrics.single_column", reason=reason)
    pairs = pytest.importorskip("sdmetrics.column_pairs", reason=reason)
    import pandas

    random = np.random.default_rng(0)
    a, b = random.normal(size=(400, 2)), random.normal(size=(300, 2)) @ [[1, 0.4], [0, 1]]
    ks = single.KSComplement.compute(pandas.Series(a[:, 0]), pandas.Series(b[:, 0]))
    assert table_marginals.kolmogorov_smirnov(a[:, 0], b[:, 0]) == pytest.approx(1 - ks)
    words = [
        random.choice(list("xyz"), size=n, p=p) for n, p in ((400, [0.2, 0.3, 0.5]), (300, None))
    ]
    tv = single.TVComplement.compute(*map(pandas.Series, words))
    codes = [np.unique(part, return_inverse=True)[1].astype(float) for part in words]
    rows = [TableRows(part[:, None], ["w"], [3]) for part in codes]
    (found,) = table_marginals.total_variation_by_column(*rows).values()
    assert found == pytest.approx(1 - tv)
    frames = [pandas.DataFrame(part, columns=["u", "v"]) for part in (a, b)]
    similarity = pairs.CorrelationSimilarity.compute(*frames)
    rows = [TableRows(part, ["u", "v"], [0, 0]) for part in (a, b)]
    difference = table_correlations.mean_absolute_difference(*rows)
    assert difference == pytest.approx(2 * (1 - similarity))  # it scales differences to [0, 1]
