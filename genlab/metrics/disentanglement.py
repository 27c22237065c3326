"""Whether each number of a code stands for one factor of the data, on a set whose factors are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics import Row
from genlab.metrics.context import Subject

BINS = 20
GROUPS = 10  # of the jackknife; GROUPS_DCI for forests, which cost most
GROUPS_DCI = 4
TREES, LEAF = 10, 5  # of DCI's forests: trees a factor, fewest items in a leaf
TRIED = 32  # most codes that a tree considers for one cut, so that codes of thousands of numbers stay affordable
MOST = 3000  # items that DCI's forests see
NAMES = ["mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap"]


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    known = callable(getattr(subject.dataset, "factors", None))
    return list(NAMES) if known and "encode" in subject.abilities else []


# --- mutual information gap -------------------------------------------------------------------------------------------


def mig(z: Tensor, v: Tensor) -> float:
    """Return the mutual information gap, 0 … 1, of codes z (N, L) and factors v (N, K).

    Chen et al. 2018 (https://arxiv.org/abs/1802.04942), equation 6. I(z; v) is that of the histogram of the N pairs, each
    code cut into 20 bins of equal width (Locatello et al. 2019, https://arxiv.org/abs/1811.12359), where the paper
    integrates over the posterior.

    Raises:
        UserError: z and v do not match, or a factor has a single value.
    """
    z, v = checked(z, v)
    return information_gap(binned(z), v)


def information_gap(bins: Tensor, v: Tensor) -> float:
    """Return the mutual information gap of codes and factors that are numbered from 0 on, (N, L) and (N, K)."""
    gaps = []
    for k in range(v.shape[1]):
        h = mutual_information(v[:, k : k + 1], v[:, k]).item()  # H(v_k) = I(v_k; v_k)
        first, second = two_largest(mutual_information(bins, v[:, k]))
        gaps.append((first - second) / h)  # eq. 6: 1/H(v_k) (I(z_j*; v_k) − max_{j≠j*} I(z_j; v_k))
    return math.fsum(gaps) / len(gaps)


def mutual_information(a: Tensor, b: Tensor) -> Tensor:
    """Return I(a_l; b) (L,) in nats of the empirical joint law of whole numbers a (N, L) from 0 on and b (N,) from 0 on."""
    n, width = a.shape
    height, columns = int(a.max()) + 1, int(b.max()) + 1
    cell = (torch.arange(width) * height + a) * columns + b.unsqueeze(
        1
    )  # (N, L): each code has a table of its own
    joint = (
        torch.bincount(cell.flatten(), minlength=width * height * columns)
        .view(width, height, columns)
        .double()
        / n
    )
    product = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, joint * (joint / product).log(), 0).sum((1, 2))


def binned(z: Tensor) -> Tensor:
    """Return the number 0 … BINS−1 (N, L) of the bin of equal width that each code lies in; a constant code's is 0."""
    low, high = z.min(0).values, z.max(0).values
    share = (z - low) / torch.where(high > low, high - low, 1)
    return (share * BINS).long().clamp(max=BINS - 1)


# --- disentanglement, completeness, informativeness -------------------------------------------------------------------


def dci(z: Tensor, v: Tensor, *, seed: int = 0) -> tuple[float, float, float]:
    """Return disentanglement, completeness and informativeness, each 0 … 1, of codes z (N, L) and factors v (N, K).

    Eastwood & Williams 2018 (https://openreview.net/forum?id=By-7dz-AZ), section 2. R_ij is the importance of code i in a
    random forest (scikit-learn's) that tells the value of factor j; informativeness is its accuracy on a quarter of the
    items, drawn by the seed and held out, averaged over the factors (the paper: the error).

    Raises:
        UserError: z and v do not match, or a factor has a single value.
    """
    from sklearn.ensemble import RandomForestClassifier

    z, v = checked(z, v)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    test, train = order[: len(z) // 4], order[len(z) // 4 :]
    columns, right = [], []
    for j in range(v.shape[1]):
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=LEAF, max_features=min(TRIED, z.shape[1]), random_state=seed
        )
        forest.fit(z[train].numpy(), v[train, j].numpy())
        columns.append(torch.from_numpy(forest.feature_importances_))
        right.append(forest.score(z[test].numpy(), v[test, j].numpy()))
    return *disentangled(torch.stack(columns, 1)), math.fsum(right) / len(right)


def disentangled(r: Tensor) -> tuple[float, float]:
    """Return the disentanglement and the completeness of importances R (L, K) of codes for factors."""
    rho = r.sum(1) / r.sum().clamp(min=1e-300)  # ρ_i: a code that tells nothing does not count
    told = r.sum(0) > 0  # a factor of which nothing is told is not complete
    disentanglement = (rho * (1 - entropy(r, 1))).sum()  # Σ_i ρ_i D_i, D_i = 1 − H_K(P_i.)
    completeness = torch.where(told, 1 - entropy(r, 0), 0).mean()  # C_j = 1 − H_D(P̃_.j)
    return disentanglement.item(), completeness.item()


def entropy(r: Tensor, axis: int) -> Tensor:
    """Return the entropy along an axis of r over its sum, in units of the uniform law's, 0 … 1."""
    p = r / r.sum(axis, keepdim=True).clamp(min=1e-300)
    return -torch.special.xlogy(p, p).sum(axis) / math.log(max(r.shape[axis], 2))


# --- separated attribute predictability -------------------------------------------------------------------------------


def sap(z: Tensor, v: Tensor, *, categorical: Sequence[int] = ()) -> float:
    """Return the mean gap between the two codes that predict each factor best, of z (N, L) and v (N, K), 0 … 1.

    Kumar et al. 2018 (https://arxiv.org/abs/1711.00848), section 3: the score of code i for factor j is the R² of the linear
    regression of v_j on z_i; for the columns named categorical, whose values have no order, the balanced accuracy of
    thresholds on z_i, which lie midway between the means of the classes.

    Raises:
        UserError: z and v do not match, or a factor has a single value.
    """
    z, v = checked(z, v)
    centred, target = z - z.mean(0), v.double() - v.double().mean(0)
    spread = centred.square().sum(0)[:, None] * target.square().sum(0)  # (L, K)
    # numbers that differ by rounding alone are one constant: it predicts nothing
    live = (centred.square().mean(0) > (1e-12 * z.abs().amax(0)).square())[:, None]
    score = torch.where(
        live, (centred.T @ target).square() / torch.where(live, spread, 1), 0
    )  # (L, K)
    for j in categorical:
        score[:, j] = threshold_accuracy(z, v[:, j])
    gaps = [first - second for first, second in map(two_largest, score.unbind(1))]
    return math.fsum(gaps) / len(gaps)


def threshold_accuracy(z: Tensor, y: Tensor) -> Tensor:
    """Return the balanced accuracy (L,) of telling y (N,) from each code of z (N, L) by the nearest mean of a class."""
    classes = y.unique()
    means = torch.stack([z[y == c].mean(0) for c in classes])  # (C, L)
    nearest, best = torch.full_like(z, torch.inf), torch.zeros(z.shape, dtype=torch.int64)
    for c, mean in enumerate(means):
        distance = (z - mean).abs()
        best = torch.where(distance < nearest, c, best)
        nearest = torch.minimum(nearest, distance)
    return torch.stack([(best[y == c] == i).double().mean(0) for i, c in enumerate(classes)]).mean(
        0
    )


# --- what they share --------------------------------------------------------------------------------------------------


def checked(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes as float64 (N, L) and the factors numbered from 0 on (N, K), on the CPU."""
    if z.dim() != 2 or v.dim() != 2 or len(z) != len(v):
        raise UserError(
            f"codes {tuple(z.shape)} and factors {tuple(v.shape)} must be (N, L) and (N, K)"
        )
    if not z.isfinite().all():
        raise UserError("the codes hold values that are not finite numbers")
    numbered = [k.unique(return_inverse=True)[1] for k in v.cpu().unbind(1)]
    for k, column in enumerate(numbered):
        if not column.any():
            raise UserError(
                f"factor {k} has a single value among {len(v)} items, of which no code can tell anything"
            )
    return z.detach().cpu().double(), torch.stack(numbered, 1)


def two_largest(values: Tensor) -> tuple[float, float]:
    """Return the two largest of values (L,); of a single code, the other tells nothing: 0."""
    first, second = torch.cat([values, values.new_zeros(1)]).topk(2).values.tolist()
    return first, second


def jackknife(statistic: Callable[[Tensor], Tensor], n: int, groups: int, seed: int) -> Tensor:
    """Return the standard errors of a statistic of items: delete one of `groups` random groups at a time (Efron 1982).

    Args:
        statistic: of the indices of the items that it sees, (…,) float64.
    """
    parts = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tensor_split(groups)
    left = torch.stack(
        [statistic(torch.cat(parts[:g] + parts[g + 1 :])) for g in range(groups)]
    )  # (G, …)
    return ((groups - 1) * (left - left.mean(0)).square().mean(0)).sqrt()


@torch.no_grad()
def codes(subject: Subject, n: int) -> Tensor:
    """Return the codes (n, L) float64 of the first n held-out items, as the model is fed them."""
    s, model = subject.settings, subject.model
    x = subject.dataset.take(s.split, n, seed=s.seed, device=subject.device).x
    x = x.to(next((p.dtype for p in model.parameters()), x.dtype))
    torch.manual_seed(s.seed)  # of a model whose code is drawn
    return torch.cat(
        [model.encode(part).flatten(1).double().cpu() for part in x.split(s.batch_size)]
    )


def measure(subject: Subject) -> list[Row]:
    """Return MIG, DCI and SAP of the codes of held-out items, with jackknife standard errors.

    The errors are those of the choice of items (10 groups left out in turn; 4 for DCI, whose forests cost most).
    """
    s, dataset = subject.settings, subject.dataset
    v = dataset.factors(s.split, s.n, seed=s.seed)
    z, v = checked(codes(subject, len(v)), v)
    categorical = getattr(dataset, "categorical", ())
    bins, m = binned(z), min(len(v), MOST)

    def cheap(
        i: Tensor,
    ) -> (
        Tensor
    ):  # with the bins of all items: edges that move with the extremes are no error of the gap
        gap = information_gap(bins[i], v[i])
        return torch.tensor([gap, sap(z[i], v[i], categorical=categorical)], dtype=torch.float64)

    def forests(i: Tensor) -> Tensor:
        return torch.tensor(dci(z[i], v[i], seed=s.seed), dtype=torch.float64)

    every, some = torch.arange(len(v)), torch.arange(m)
    (gap, separated), (gap_error, separated_error) = (
        cheap(every),
        jackknife(cheap, len(v), GROUPS, s.seed),
    )
    told, told_error = forests(some), jackknife(forests, m, GROUPS_DCI, s.seed)
    common = {"split": s.split, "seed": s.seed, "codes": z.shape[1]}
    binning = common | {"n": len(v), "bins": BINS}
    forest = common | {"n": m, "forest": f"{TREES} trees"}
    numbers = [
        ("mig", gap, "share", gap_error, binning),
        ("dci_disentanglement", told[0], "share", told_error[0], forest),
        ("dci_completeness", told[1], "share", told_error[1], forest),
        ("dci_informativeness", told[2], "accuracy", told_error[2], forest),
        ("sap", separated, "share", separated_error, common | {"n": len(v)}),
    ]
    return [
        Row(name, float(value), unit, "estimate", float(error), None, "higher", conditions)
        for name, value, unit, error, conditions in numbers
    ]
