"""A small example of a table with numbers, categories, missing cells and a label."""

from __future__ import annotations

import numpy as np

from genlab.data.table_files import RawTable

CITIES = ("Aachen", "Bergen", "Cork", "Delft")
PLANS = ("basic", "plus", "pro")
# P(plan | city), one row for each city
PLAN_PROBABILITIES = ((0.7, 0.2, 0.1), (0.4, 0.4, 0.2), (0.2, 0.5, 0.3), (0.3, 0.2, 0.5))
MEAN_LOG_SPENDING = (2.0, 3.0, 4.0)  # of each plan
MISSING_RATING = 0.15  # fraction of the rows without a rating


def make_example_table(num_rows: int, seed: int = 0) -> RawTable:
    """Return invented customers: age, city, plan, spending, rating, and whether they stayed.

    Each column depends on those before it, so that the distribution is known.
    """
    random = np.random.default_rng(seed)
    city = random.integers(len(CITIES), size=num_rows)
    age = (18 + random.gamma(3.0 + city, 6.0)).clip(max=90).astype(int)
    cumulative = np.array(PLAN_PROBABILITIES).cumsum(1)
    plan = (random.random((num_rows, 1)) > cumulative[city, :-1]).sum(1)
    spending = np.exp(random.normal(np.array(MEAN_LOG_SPENDING)[plan], 0.4))
    rating = random.binomial(4, 0.4 + 0.2 * plan) + 1
    is_missing = random.random(num_rows) < MISSING_RATING
    logit = 1.2 * (rating - 3) + 0.8 * (plan - 1) + 0.03 * (age - 40)
    stayed = random.random(num_rows) < 1 / (1 + np.exp(-logit))
    columns = {
        "age": [str(value) for value in age],
        "city": [CITIES[k] for k in city],
        "plan": [PLANS[k] for k in plan],
        "spending": [f"{value:.2f}" for value in spending],
        "rating": ["" if m else str(v) for m, v in zip(is_missing, rating, strict=True)],
        "stayed": ["yes" if value else "no" for value in stayed],
    }
    cells = [np.array(column, dtype=object) for column in columns.values()]
    return RawTable(list(columns), cells, np.arange(1, num_rows + 1))
