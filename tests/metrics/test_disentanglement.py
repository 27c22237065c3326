"""Disentanglement of codes with known values, and the shapes dataset with known factors."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from omegaconf import OmegaConf

from genlab.data.shapes2d import FACTORS, Shapes
from genlab.errors import UserError
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.disentanglement import (
    NUM_BINS,
    ROW_NAMES,
    code_bin_numbers,
    dci,
    disentanglement_and_completeness,
    jackknife_standard_error,
    measure,
    mig,
    mig_of_binned_codes,
    mutual_information,
    row_names,
    sap,
)

GRID = torch.cartesian_prod(
    torch.arange(3), torch.arange(4), torch.arange(5), torch.arange(6)
).repeat(4, 1)
V, OTHER = (
    GRID[:, :3],
    GRID[:, 3:],
)  # three factors in all combinations, and two independent ones


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- metrics --------------------------------------------------------------------------------------


def test_mutual_information_equals_scikit_learn():
    from sklearn.metrics import mutual_info_score

    v = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(0))
    a = code_bin_numbers(normal(300, 4) + v[:, None] * torch.tensor([0.0, 0.3, 1.0, 5.0]))
    assert mutual_information(a, v).tolist() == pytest.approx(
        [mutual_info_score(k, v) for k in a.T], abs=1e-12
    )


def test_mig_by_hand():
    """H(v) = ln 2; the second code is 1 for one item of four: I = ln 2 − 3/4 · H(1/3)."""
    v = torch.tensor([[0], [0], [1], [1]])
    z = torch.tensor([[-3.0, 0.0], [-3.0, 0.0], [7.0, 0.0], [7.0, 1.0]])
    second = math.log(2) - 0.75 * (math.log(3) - 2 / 3 * math.log(2))
    assert mig(z, v) == pytest.approx((math.log(2) - second) / math.log(2), abs=1e-12)
    assert mig(z[:, 1:], v) == pytest.approx(second / math.log(2), abs=1e-12), "a single code"


@pytest.mark.parametrize(
    ("r", "d", "c"),
    [
        ([[1, 0], [0, 1]], 1, 1),
        ([[1, 1], [1, 1]], 0, 0),
        ([[1, 0], [1, 0], [0, 1]], 1, (1 - math.log(2, 3) + 1) / 2),
        ([[1, 1], [0, 0]], 0, 1),
        (
            [[3, 1], [0, 2]],
            4 / 6 * (1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) + 2 / 6,
            None,
        ),
    ],
)
def test_importance_scores_by_hand(r, d, c):
    ours = disentanglement_and_completeness(torch.tensor(r).double())
    assert ours[0] == pytest.approx(d, abs=1e-12) and (
        c is None or ours[1] == pytest.approx(c, abs=1e-12)
    )


def test_codes_that_equal_the_factors_have_the_best_scores():
    """They may be scaled, negated and permuted, with uninformative codes beside them."""
    z = torch.cat(
        [
            V[:, [2, 0, 1]] * torch.tensor([0.1, -20.0, 3.0]) + 5,
            OTHER.float(),
            torch.ones(len(V), 1),
        ],
        1,
    )
    assert mig(z, V) == pytest.approx(1, abs=1e-6)
    assert dci(z, V, seed=0) == pytest.approx((1, 1, 1), abs=0.01)
    assert sap(z, V) == pytest.approx(1, abs=1e-6)
    # thresholds on an uninformative code are right for one class of three
    assert sap(z, V, categorical=(0,)) == pytest.approx((1 - 1 / 3 + 1 + 1) / 3, abs=1e-6)


def test_a_rotation_of_the_factors_is_not_importance_scores():
    """The R² of code i for factor j is q_ij²; equal mixtures of all factors have a gap of 0."""
    s = (GRID - GRID.double().mean(0)) / GRID.double().std(0)
    q = torch.linalg.qr(normal(4, 4)).Q
    first, second = (
        q.square().topk(2, dim=1).values[:, i] for i in (0, 1)
    )  # z = s q: row j belongs to factor j
    assert sap(s @ q, GRID) == pytest.approx((first - second).mean().item(), abs=1e-12)

    h = torch.tensor([[1, 1], [1, -1]]).double()
    z = s @ torch.kron(h, h) / 2
    disentanglement, completeness, informativeness = dci(z, GRID, seed=0)
    assert sap(z, GRID) == pytest.approx(0, abs=1e-12) and mig(z, GRID) < 0.1
    assert disentanglement < 0.15 and completeness < 0.15 and informativeness > 0.5, (
        "predictable, but only from all codes together"
    )


def test_independent_codes_have_the_lowest_scores():
    """Their histogram's information is (NUM_BINS − 1)(C − 1) / 2N on average (Miller 1955)."""
    n, codes = 4000, 200
    v = torch.randint(0, 5, (n, 2), generator=torch.Generator().manual_seed(1))
    z = torch.rand(n, codes, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bias = (NUM_BINS - 1) * 4 / (2 * n)
    assert mutual_information(code_bin_numbers(z), v[:, 0]).mean().item() == pytest.approx(
        bias, rel=0.05
    )
    assert mig(z[:, :6], v) < bias / math.log(5)
    assert sap(z[:, :6], v) < 0.003 and sap(z[:, :6], v, categorical=(0, 1)) < 0.02
    scores = dci(z[:, :6], v, seed=0)
    assert max(scores[:2]) < 0.02 and scores[2] == pytest.approx(0.2, abs=0.04)


def test_invalid_codes_are_refused():
    for z, v, words in [
        (torch.ones(4, 2), torch.ones(3, 2), "must be"),
        (torch.ones(4, 2), torch.ones(4, 2), "factor 0 has a single value among 4 items"),
        (torch.full((4, 2), math.nan), V[:4], "not finite"),
    ]:
        with pytest.raises(UserError, match=words):
            mig(z, v)


def test_jackknife_error_is_the_standard_deviation():
    x = normal(50)
    error = jackknife_standard_error(lambda i: x[i].mean(), 50, 50, 0)
    assert error.item() == pytest.approx(x.std().item() / math.sqrt(50)), (
        "for a mean with one item per group it is the usual error"
    )

    values, errors = [], []
    for seed in range(60):
        v = torch.randint(0, 4, (300, 2), generator=torch.Generator().manual_seed(seed))
        z = v + 0.6 * normal(300, 2, seed=1000 + seed)
        values.append(mig(z, v))
        b = code_bin_numbers(z)
        errors.append(
            jackknife_standard_error(
                lambda i, b=b, v=v: torch.tensor(mig_of_binned_codes(b[i], v[i])).double(),
                300,
                10,
                seed,
            )
        )
    assert torch.stack(errors).mean().item() == pytest.approx(
        torch.tensor(values).std().item(), rel=0.25
    )


# --- the shapes dataset ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes()


def test_shapes_are_all_combinations_without_duplicates(shapes):
    x = torch.cat(
        [shapes.raw_items_and_labels(split)[0] for split in ("train", "validation", "test")]
    )
    assert len(x) == math.prod(FACTORS.values()) and x.shape[1:] == shapes.spec.shape == (1, 32, 32)
    assert len(x.flatten(1).unique(dim=0)) == len(x)
    assert shapes.spec.num_classes == 3 and shapes.factor_names == (
        "shape",
        "scale",
        "orientation",
        "x",
        "y",
    )
    assert Shapes(n=10, size=16).spec.shape == (1, 16, 16)


def test_factors_match_the_images(shapes):
    """An image's mass determines its scale, and its center of mass its position."""
    batch, v = shapes.head("train", 2000, seed=3), shapes.factors("train", 2000, seed=3)
    assert v.dtype == torch.int64 and torch.equal(batch.y, v[:, 0])
    mass = (batch.x[:, 0].double() + 1) / 2  # (N, 32, 32)
    pixel = torch.arange(32) + 0.5
    radius = 8 * (0.5 + 0.1 * v[:, 1])
    torch.testing.assert_close(mass.sum((1, 2)), 1.74 * radius.square().double(), rtol=0.06, atol=0)
    for k, axis in ((3, 1), (4, 2)):
        center = (mass.sum(axis) * pixel).sum(1) / mass.sum((1, 2))
        torch.testing.assert_close(center, 8 + 16 * v[:, k].double() / 11, rtol=0, atol=0.1)


def test_a_subset_of_shapes():
    data = Shapes(n=100, size=8, validation=0.2, test=0.3)
    assert [data.size(split) for split in ("train", "validation", "test")] == [50, 20, 30]
    every = torch.cat([data.factors(split) for split in ("train", "validation", "test")])
    assert len(every.unique(dim=0)) == 100
    assert not torch.equal(
        data.factors("test"),
        Shapes(n=100, size=8, validation=0.2, test=0.3, split_seed=1).factors("test"),
    )
    for options, words in [
        ({"n": 30_000}, "there are 20736"),
        ({"validation": 0.5, "test": 0.5}, "nothing to train on"),
    ]:
        with pytest.raises(UserError, match=words):
            Shapes(**options)
    with pytest.raises(UserError, match=r"no validation items: dataset.validation=0"):
        Shapes(n=10, validation=0.0).head("validation", 1)


def test_yaml_lists_every_option(repository):
    shown = set(OmegaConf.load(repository / "configs" / "dataset" / "shapes.yaml")) - {"_target_"}
    assert shown == {field.name for field in fields(Shapes)}


# --- rows -----------------------------------------------------------------------------------------


class Moments(torch.nn.Module):
    """Encodes an image as its center of mass and its mass: x, y and scale."""

    def encode(self, x):
        mass, pixel = (x + 1) / 2, torch.arange(x.shape[-1]).float()
        total = mass.sum((1, 2, 3))
        return torch.stack(
            [
                (mass.sum(2)[:, 0] * pixel).sum(1) / total,
                (mass.sum(3)[:, 0] * pixel).sum(1) / total,
                total,
            ],
            1,
        )


def test_rows_of_a_simple_encoder(shapes):
    context = MetricContext(shapes, Settings(n=400, batch_size=150), model=Moments())
    found = measure(context)
    assert [row.name for row in found] == row_names(context) == ROW_NAMES
    assert all(
        0 <= row.value <= 1 and 0 < row.error < 0.2 and row.better == "higher" for row in found
    )
    assert all(row.conditions["codes"] == 3 and row.conditions["n"] == 400 for row in found)
    assert [row.to_json() for row in measure(context)] == [row.to_json() for row in found]
    value = {row.name: row.value for row in found}
    assert value["mig"] > 0.4 and value["sap"] > 0.4 and value["dci_disentanglement"] > 0.4
    assert not row_names(MetricContext(shapes, Settings(), model=torch.nn.Identity()))
