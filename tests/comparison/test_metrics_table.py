"""The table of `genlab evaluate`: shared conditions once, sections, what differs in a row."""

from __future__ import annotations

from typing import Any

import pytest

from genlab.comparison.metrics_table import format_metrics_table

SPACE = "classifier a2d8f6, 100.0% on digits test"
COMMON = {"n": 1000, "split": "test", "seed": 0}
HALVES = {"real_vs_real": "500 against 500"}


def make_row(metric: str, name: str, value: float | None = 1.0, **more: Any) -> dict[str, Any]:
    row = {
        "metric": metric,
        "name": name,
        "value": value,
        "error": 0.1,
        "real_vs_real": None,
        "unit": "",
        "tag": "estimate",
        "better": "lower",
        "conditions": COMMON,
        "note": "",
    }
    return row | more


def all_rows() -> list[dict[str, Any]]:
    """Rows of every section, with long names."""
    of_samples = {"conditions": {"features": SPACE} | COMMON | HALVES, "real_vs_real": 0.123456}
    rows = [
        make_row("likelihood", "nll_elbo", 23.6583, tag="bound", unit="nats", error=0.31),
        make_row(
            "likelihood",
            "nll_iwae",
            tag="bound",
            unit="nats",
            conditions=COMMON | {"iwae_samples": 100},
        ),
    ]
    names = ("frechet", "kid", "sliced_wasserstein")
    rows += [make_row(name, f"{name}_classifier", **of_samples) for name in names]
    pixels = of_samples | {"conditions": {"features": "pixels"} | COMMON | HALVES}
    rows.append(make_row("energy_distance", "energy_distance_pixels", **pixels))
    for k, name in ((3, "precision"), (3, "recall"), (5, "density"), (5, "coverage")):
        own = of_samples | {"conditions": of_samples["conditions"] | {"k": k}}
        rows.append(make_row("prdc", f"{name}_classifier", better="higher", unit="share", **own))
    rows.append(
        make_row("nn_memorization", "data_copying_classifier", unit="probability", **of_samples)
    )
    cost = {"conditions": {}, "error": None}
    rows.append(make_row("efficiency", "parameters", 95104, tag="exact", **cost))
    rows.append(make_row("efficiency", "network_evaluations", 2000, unit="per sample", **cost))
    return rows


@pytest.mark.parametrize("width", [80, 100, 200])
def test_table_fits_and_says_shared_conditions_once(width):
    lines = format_metrics_table(all_rows(), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert all(text.count(part) == 1 for part in ("n=1000", "split=test", "seed=0", SPACE))
    assert text.count("500 against 500") == 1 and text.count("real items score") == 1
    headings = ["Likelihood: bound", "Samples against", "Fidelity", "Memorization", "Cost"]
    positions = [text.index(heading) for heading in headings]
    assert positions == sorted(positions)
    assert "23.66  ± 0.31" in text and "0.12" in text and "95,104" in text
    assert text.count("k=3") == 2 and text.count("k=5") == 2 and "iwae_samples=100" in text
    assert "estimate" not in text[text.index("precision_classifier") : text.index("Memorization")]


def test_rows_that_differ_say_so():
    """Another n, a value that is not finite, a single metric, and no metric."""
    rows = all_rows()
    rows[0] = rows[0] | {"conditions": COMMON | {"n": 7}, "value": None, "error": None}
    text = "\n".join(format_metrics_table(rows, 80))
    assert "n=7" in text and "n=1000" in text and "not finite" in text
    single = format_metrics_table([make_row("reconstruction", "reconstruction", tag="exact")], 80)
    assert single[0] == "exact, n=1000, split=test, seed=0"
    assert "real" not in "\n".join(single[1:]).split()
    assert format_metrics_table([], 80) == ["no metric was measured"]
