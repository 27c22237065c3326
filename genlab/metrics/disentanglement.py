"""Disentanglement: whether each number of a code represents one known factor of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.errors import UserError
from genlab.metrics.base import NotMeasurableError, Row
from genlab.metrics.context import MetricContext

NUM_BINS = 20
NUM_GROUPS = 10  # of the jackknife
MIN_ITEMS = 2 * NUM_GROUPS
NUM_GROUPS_DCI = 4  # for DCI, whose forests are the most expensive
# DCI's forests: trees per factor, fewest items per leaf, codes that a tree considers per split (so
# that codes of thousands of numbers stay affordable), and items
NUM_TREES, MIN_LEAF_ITEMS, MAX_SPLIT_FEATURES, MAX_FOREST_ITEMS = 10, 5, 32, 3000
TINY = 1e-300  # keeps divisions by a sum of zero finite
ROW_NAMES = ["mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap"]


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    is_applicable = bool(context.dataset.factor_names) and "encode" in context.abilities
    return list(ROW_NAMES) if is_applicable else []


# --- mutual information gap -----------------------------------------------------------------------


def mig(z: Tensor, v: Tensor) -> float:
    """Return the mutual information gap, 0 … 1, of codes z (N, L) and factors v (N, K).

    Chen et al. 2018 (https://arxiv.org/abs/1802.04942), equation 6. I(z; v) is that of the
    histogram of the N pairs, with 20 bins of equal width per code (Locatello et al. 2019,
    https://arxiv.org/abs/1811.12359), where the paper integrates over the posterior.

    Raises:
        UserError: z and v do not match, or a factor has a single value.
    """
    z, v = validate_codes_and_factors(z, v)
    return mig_of_binned_codes(code_bin_numbers(z), v)


def mig_of_binned_codes(bins: Tensor, v: Tensor) -> float:
    """Return the mutual information gap of codes (N, L) and factors (N, K) numbered from 0."""
    gaps = []
    for k in range(v.shape[1]):
        h = mutual_information(v[:, k : k + 1], v[:, k]).item()  # H(v_k) = I(v_k; v_k)
        first, second = two_largest(mutual_information(bins, v[:, k]))
        gaps.append((first - second) / h)  # eq. 6: 1/H(v_k) (I(z_j*; v_k) − max_{j≠j*} I(z_j; v_k))
    return math.fsum(gaps) / len(gaps)


def mutual_information(a: Tensor, b: Tensor) -> Tensor:
    """Return I(a_l; b) (L,) in nats of the empirical distribution of a (N, L) and b (N,).

    Both are integers from 0.
    """
    n, width = a.shape
    height, columns = int(a.max()) + 1, int(b.max()) + 1
    # (N, L): each code has its own table of counts
    cell = (torch.arange(width) * height + a) * columns + b.unsqueeze(1)
    counts = torch.bincount(cell.flatten(), minlength=width * height * columns)
    joint = counts.view(width, height, columns).double() / n
    product = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, joint * (joint / product).log(), 0).sum((1, 2))


def code_bin_numbers(z: Tensor) -> Tensor:
    """Return the number 0 … NUM_BINS−1 (N, L) of each code's bin; bins have equal width.

    A constant code gets 0.
    """
    low, high = z.min(0).values, z.max(0).values
    fraction = (z - low) / torch.where(high > low, high - low, 1)
    return (fraction * NUM_BINS).long().clamp(max=NUM_BINS - 1)


# --- disentanglement, completeness, informativeness -----------------------------------------------


def dci(z: Tensor, v: Tensor, *, seed: int = 0) -> tuple[float, float, float]:
    """Return disentanglement, completeness and informativeness, each 0 … 1.

    Eastwood & Williams 2018 (https://openreview.net/forum?id=By-7dz-AZ), section 2, of codes
    z (N, L) and factors v (N, K). R_ij is the importance of code i in a random forest
    (scikit-learn's) that predicts the value of factor j. Informativeness is its accuracy on a
    quarter of the items, drawn by the seed and held out, averaged over the factors (the paper uses
    the error).

    Raises:
        UserError: z and v do not match, or a factor has a single value.
    """
    from sklearn.ensemble import RandomForestClassifier

    z, v = validate_codes_and_factors(z, v)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    test, train = order[: len(z) // 4], order[len(z) // 4 :]
    importances, accuracies = [], []
    for j in range(v.shape[1]):
        forest = RandomForestClassifier(
            NUM_TREES,
            min_samples_leaf=MIN_LEAF_ITEMS,
            max_features=min(MAX_SPLIT_FEATURES, z.shape[1]),
            random_state=seed,
        )
        forest.fit(z[train].numpy(), v[train, j].numpy())
        importances.append(torch.from_numpy(forest.feature_importances_))
        accuracies.append(forest.score(z[test].numpy(), v[test, j].numpy()))
    disentanglement, completeness = disentanglement_and_completeness(torch.stack(importances, 1))
    return disentanglement, completeness, math.fsum(accuracies) / len(accuracies)


def disentanglement_and_completeness(r: Tensor) -> tuple[float, float]:
    """Return disentanglement and completeness of importances R (L, K) of codes for factors."""
    rho = r.sum(1) / r.sum().clamp(min=TINY)  # ρ_i: a code without information does not count
    is_predicted = r.sum(0) > 0  # a factor that no code predicts is not complete
    # Σ_i ρ_i D_i, D_i = 1 − H_K(P_i.)
    disentanglement = (rho * (1 - normalized_entropy(r, 1))).sum()
    # C_j = 1 − H_D(P̃_.j)
    completeness = torch.where(is_predicted, 1 - normalized_entropy(r, 0), 0)
    return disentanglement.item(), completeness.mean().item()


def normalized_entropy(r: Tensor, axis: int) -> Tensor:
    """Return the entropy of r over its sum along an axis, relative to the uniform one, 0 … 1."""
    p = r / r.sum(axis, keepdim=True).clamp(min=TINY)
    return -torch.special.xlogy(p, p).sum(axis) / math.log(max(r.shape[axis], 2))


# --- separated attribute predictability -----------------------------------------------------------


def sap(z: Tensor, v: Tensor, *, categorical: Sequence[int] = ()) -> float:
    """Return the mean gap between the two most predictive codes of each factor, 0 … 1.

    Kumar et al. 2018 (https://arxiv.org/abs/1711.00848), section 3, of codes z (N, L) and factors
    v (N, K): the score of code i for factor j is the R² of the linear regression of v_j on z_i. For
    categorical (unordered) factors it is the balanced accuracy of thresholds on
    z_i midway between the means of the classes.

    Args:
        categorical: columns of v.

    Raises:
        UserError: z and v do not match, or a factor has a single value.
    """
    z, v = validate_codes_and_factors(z, v)
    centered, target = z - z.mean(0), v.double() - v.double().mean(0)
    variance = centered.square().sum(0)[:, None] * target.square().sum(0)  # (L, K)
    # a code whose values differ only by rounding is constant and does not predict anything
    varies = (centered.square().mean(0) > (1e-12 * z.abs().amax(0)).square())[:, None]
    r2 = (centered.T @ target).square() / torch.where(varies, variance, 1)  # (L, K)
    score = torch.where(varies, r2, 0)
    for j in categorical:
        score[:, j] = balanced_accuracy_per_code(z, v[:, j])
    gaps = [first - second for first, second in map(two_largest, score.unbind(1))]
    return math.fsum(gaps) / len(gaps)


def balanced_accuracy_per_code(z: Tensor, y: Tensor) -> Tensor:
    """Return the balanced accuracy (L,) of predicting y (N,) from each code of z (N, L).

    The prediction is the class with the nearest mean.
    """
    classes = y.unique()
    means = torch.stack([z[y == c].mean(0) for c in classes])  # (C, L)
    nearest, best = torch.full_like(z, torch.inf), torch.zeros(z.shape, dtype=torch.int64)
    for c, mean in enumerate(means):
        distance = (z - mean).abs()
        best = torch.where(distance < nearest, c, best)
        nearest = torch.minimum(nearest, distance)
    accuracies = [(best[y == c] == i).double().mean(0) for i, c in enumerate(classes)]
    return torch.stack(accuracies).mean(0)


# --- shared functions -----------------------------------------------------------------------------


def validate_codes_and_factors(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes as float64 (N, L) and factors numbered from 0 (N, K), on the CPU.

    Raises:
        NotMeasurableError: a factor has a single value, or a code is not finite.
        UserError: they do not match.
    """
    if z.dim() != 2 or v.dim() != 2 or len(z) != len(v):
        raise UserError(
            f"codes {tuple(z.shape)} and factors {tuple(v.shape)} must be (N, L) and (N, K)"
        )
    if not z.isfinite().all():
        raise NotMeasurableError("the codes have values that are not finite numbers")
    numbered = [k.unique(return_inverse=True)[1] for k in v.cpu().unbind(1)]
    for k, column in enumerate(numbered):
        if not column.any():
            raise NotMeasurableError(
                f"factor {k} has a single value among {len(v)} items, so no code can predict it"
            )
    return z.detach().cpu().double(), torch.stack(numbered, 1)


def two_largest(values: Tensor) -> tuple[float, float]:
    """Return the two largest of values (L,); for a single value the second is 0."""
    first, second = torch.cat([values, values.new_zeros(1)]).topk(2).values.tolist()
    return first, second


def jackknife_standard_error(
    statistic: Callable[[Tensor], Tensor], n: int, groups: int, seed: int
) -> Tensor:
    """Return the standard errors (…) of a statistic of n items, by the delete-group jackknife.

    Efron 1982; each of `groups` random groups is left out in turn.

    Args:
        statistic: of the indices of the items that it uses, (…) float64.
    """
    parts = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tensor_split(groups)
    without_group = torch.stack(
        [statistic(torch.cat(parts[:g] + parts[g + 1 :])) for g in range(groups)]
    )  # (G, …)
    squares = (without_group - without_group.mean(0)).square()
    return ((groups - 1) * squares.mean(0)).sqrt()


def encode_heldout_items(context: MetricContext, n: int) -> Tensor:
    """Return the codes (n, L) float64 of the first n held-out items."""
    s, model = context.settings, context.model
    x = context.dataset.head(s.split, n, seed=s.seed, device=context.device).x
    x = x.to(next((p.dtype for p in model.parameters()), x.dtype))
    torch.manual_seed(s.seed)  # for a model that samples its codes

    def encode(part: Tensor) -> Tensor:
        return model.encode(part).flatten(1).double().cpu()

    return map_batched(encode, x, batch_size=s.batch_size)


def measure(context: MetricContext) -> list[Row]:
    """Return MIG, DCI and SAP of the codes of held-out items, with jackknife standard errors.

    The errors are those of the choice of items (10 groups left out in turn; 4 for DCI, whose
    forests are the most expensive).
    """
    s, dataset = context.settings, context.dataset
    v = dataset.factors(s.split, s.n, seed=s.seed)
    z, v = validate_codes_and_factors(encode_heldout_items(context, len(v)), v)
    bins, m = code_bin_numbers(z), min(len(v), MAX_FOREST_ITEMS)

    def mig_and_sap(i: Tensor) -> Tensor:
        # The bins are those of all items: edges that move with the extremes would be counted as an
        # error of the gap.
        gap = mig_of_binned_codes(bins[i], v[i])
        separation = sap(z[i], v[i], categorical=dataset.categorical_factors)
        return torch.tensor([gap, separation], dtype=torch.float64)

    def dci_scores(i: Tensor) -> Tensor:
        return torch.tensor(dci(z[i], v[i], seed=s.seed), dtype=torch.float64)

    gap, separation = mig_and_sap(torch.arange(len(v)))
    gap_error, separation_error = jackknife_standard_error(mig_and_sap, len(v), NUM_GROUPS, s.seed)
    scores = dci_scores(torch.arange(m))
    score_errors = jackknife_standard_error(dci_scores, m, NUM_GROUPS_DCI, s.seed)
    common = {"split": s.split, "seed": s.seed, "codes": z.shape[1]}
    binning = common | {"n": len(v), "bins": NUM_BINS}
    forest = common | {"n": m, "forest": f"{NUM_TREES} trees"}
    numbers = [
        ("mig", gap, "share", gap_error, binning),
        ("dci_disentanglement", scores[0], "share", score_errors[0], forest),
        ("dci_completeness", scores[1], "share", score_errors[1], forest),
        ("dci_informativeness", scores[2], "accuracy", score_errors[2], forest),
        ("sap", separation, "share", separation_error, common | {"n": len(v)}),
    ]
    return [
        Row(
            name,
            float(value),
            unit,
            "estimate",
            float(error),
            better="higher",
            conditions=conditions,
        )
        for name, value, unit, error, conditions in numbers
    ]
