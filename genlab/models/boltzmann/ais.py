"""log Z of an RBM, by enumeration of one layer or by annealed importance sampling (AIS).

AIS: Salakhutdinov & Murray 2008, https://doi.org/10.1145/1390156.1390266.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate
from genlab.console import track
from genlab.nn.precision import full_precision, in_full_precision

MIN_EFFECTIVE_CHAINS = 20.0  # below it the error of an estimate is not reliable
STATES_PER_CHUNK = 4096  # hidden states that are summed at a time


def cache_log_partition(method: Callable[[Any], Estimate]) -> Callable[[Any], Estimate]:
    """Cache a module's log Z until a parameter changes: bounds need it for every batch."""

    @wraps(method)
    def cached_method(self: Any) -> Estimate:
        versions = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self.__dict__.get("_log_z", (None,))[0] != versions:
            with full_precision(next(self.parameters())):
                self.__dict__["_log_z"] = versions, method(self)
        return self.__dict__["_log_z"][1]

    return cached_method


@torch.no_grad()
@in_full_precision
def enumerate_log_partition(W: Tensor, b: Tensor, c: Tensor) -> float:
    """Return log Z in nats of an RBM, summed over all 2^H states of its hidden layer.

    Args:
        W: weights (H, D).
        b: visible biases (D,).
        c: hidden biases (H,).
    """
    W, b, c = W.double(), b.double(), c.double()
    # Z = Σ_h exp(hᵀc) Π_i (1 + exp(b_i + hᵀW_i)), in chunks to bound the memory
    bits = torch.arange(len(c), device=W.device)
    parts = []
    for numbers in torch.arange(2 ** len(c), device=W.device).split(STATES_PER_CHUNK):
        h = (numbers[:, None] >> bits & 1).to(W)  # (4096, H)
        parts.append((h @ c + softplus(torch.addmm(b, h, W)).sum(1)).logsumexp(0))
    return torch.stack(parts).logsumexp(0).item()


@torch.no_grad()
@in_full_precision
def ais_log_partition(
    W: Tensor, b: Tensor, c: Tensor, *, b_base: Tensor, num_chains: int, num_temperatures: int
) -> Estimate:
    """Return an AIS estimate of log Z in nats of an RBM, with its standard error.

    The chains go from a base model without weights to the RBM through
    p*_β(v) = exp((1 − β) b_baseᵀv + β bᵀv) Π_j (1 + exp(β(c_j + W_j v))), as in section 4.1. The
    hidden units of the base model are on with probability 1/2. The memory is that of one set of
    chains.

    Args:
        W: weights (H, D).
        b: visible biases (D,).
        c: hidden biases (H,).
        b_base: visible biases (D,) of the base model.
    """
    betas = ais_inverse_temperatures(num_temperatures)
    log_w = torch.zeros(num_chains, dtype=torch.float64, device=W.device)
    p = b_base.sigmoid().expand(num_chains, -1)
    v = (torch.rand_like(p) < p).to(W)  # (M, D) from the base model
    for low, high in track(
        pairwise(betas), "annealed importance sampling", len(betas) - 1, unit="temperatures"
    ):
        a = linear(v, W, c)  # (M, H)
        # w ← w p*_high(v) / p*_low(v)
        log_w += (high - low) * (v @ (b - b_base)) + (softplus(high * a) - softplus(low * a)).sum(1)
        # v ← a Gibbs step that leaves p_high invariant
        p = (high * a).sigmoid_()
        h = (torch.rand_like(p) < p).to(W)
        p = torch.addmm(torch.lerp(b_base, b, high), h, W, alpha=high).sigmoid_()
        v = (torch.rand_like(p) < p).to(W)
    log_z_base = softplus(b_base.double()).sum().item() + len(c) * math.log(2)
    return ais_estimate_from_log_weights(log_w, log_z_base)


def ais_estimate_from_log_weights(log_w: Tensor, log_z_base: float) -> Estimate:
    """Return log Z_base + log mean(w) of the chains' weights (M,), with its standard error.

    By the delta method sd(log mean w) = sd(w) / (√M mean(w)). It cannot exceed 1, which it reaches
    if one chain has all the weight, however far away log Z is. So the estimate also has the
    effective number of chains (Σw)²/Σw² (Kong 1992; Neal 2001, section 5), and a note where it is
    small. The mean of w is unbiased, so that the estimate of log Z is too low on average, and
    log p too high.
    """
    n = len(log_w)
    log_mean = log_w.logsumexp(0) - math.log(n)
    error = (log_w - log_mean).exp().std() / math.sqrt(n)
    effective = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp().item()
    note = ""
    if effective < MIN_EFFECTIVE_CHAINS:
        note = (
            f"log Z is estimated by {effective:.2g} effective chains of {n}: it is likely too low, "
            "so that the likelihoods are too good by more than their errors say; train with a "
            "larger model.num_temperatures"
        )
    return Estimate(log_z_base + log_mean.item(), error.item(), "estimate", note, effective)


def ais_inverse_temperatures(n: int) -> list[float]:
    """Return n + 1 values of β from 0 to 1, denser toward 1 as in section 5.1.

    For n = 14,500: 500 up to 0.5, 4,000 up to 0.9 and 10,000 up to 1.
    """
    betas = []
    for low, high, share in ((0.0, 0.5, 500), (0.5, 0.9, 4_000), (0.9, 1.0, 10_000)):
        steps = max(1, round(n * share / 14_500))
        betas += [low + (high - low) * i / steps for i in range(steps)]
    return [*betas, 1.0]
