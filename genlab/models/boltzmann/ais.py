"""log Z of a machine with two sides of units: over all states of one side, or by annealed importance sampling.

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


def kept(ask: Callable[[Any], Estimate]) -> Callable[[Any], Estimate]:
    """Keep a module's log Z until one of its parameters changes: a bound asks for it with every batch."""

    @wraps(ask)
    def answer(self: Any) -> Estimate:
        weights = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self.__dict__.get("_log_z", (None,))[0] != weights:
            self.__dict__["_log_z"] = weights, ask(self)
        return self.__dict__["_log_z"][1]

    return answer


@torch.no_grad()
def enumerated(W: Tensor, b: Tensor, c: Tensor) -> float:
    """Return log Z in nats of the RBM (W (H, D), b (D,), c (H,)), summed over all 2^H states of its hidden side."""
    W, b, c = W.double(), b.double(), c.double()
    # Z = Σ_h exp(hᵀc) Π_i (1 + exp(b_i + hᵀW_i)); in parts, to bound the memory
    bits = torch.arange(len(c), device=W.device)
    parts = []
    for some in torch.arange(2 ** len(c), device=W.device).split(4096):
        h = (some[:, None] >> bits & 1).to(W)  # (4096, H)
        parts.append((h @ c + softplus(torch.addmm(b, h, W)).sum(1)).logsumexp(0))
    return torch.stack(parts).logsumexp(0).item()


@torch.no_grad()
def ais(
    W: Tensor, b: Tensor, c: Tensor, *, b_base: Tensor, chains: int, temperatures: int
) -> Estimate:
    """Return an estimate of log Z in nats of the RBM (W (H, D), b (D,), c (H,)), with its standard error.

    The chains go from a base model with no weights and visible biases `b_base` (D,) to the RBM through
    p*_β(v) = exp((1 − β) b_baseᵀv + β bᵀv) Π_j (1 + exp(β(c_j + W_j v))), as in section 4.1; the base has
    idle hidden units. The memory is that of one set of chains.
    """
    betas = schedule(temperatures)
    log_w = torch.zeros(chains, dtype=torch.float64, device=W.device)
    v = (torch.rand_like(p := b_base.sigmoid().expand(chains, -1)) < p).to(
        W
    )  # (M, D) from the base model
    for low, high in pairwise(betas):
        a = linear(v, W, c)  # (M, H)
        # w ← w p*_high(v) / p*_low(v)
        log_w += (high - low) * (v @ (b - b_base)) + (softplus(high * a) - softplus(low * a)).sum(1)
        # v ← a Gibbs step that leaves p_high as it is
        p = (high * a).sigmoid_()
        h = (torch.rand_like(p) < p).to(W)
        p = torch.addmm(torch.lerp(b_base, b, high), h, W, alpha=high).sigmoid_()
        v = (torch.rand_like(p) < p).to(W)
    return estimate(log_w, softplus(b_base.double()).sum().item() + len(c) * math.log(2))


def estimate(log_w: Tensor, log_z_base: float) -> Estimate:
    """Return log Z = log Z_base + log mean(w) of the chains' weights (M,), with its standard error.

    By the delta method sd(log mean w) = sd(w) / (√M mean(w)).
    """
    log_mean = log_w.logsumexp(0) - math.log(len(log_w))
    error = (log_w - log_mean).exp().std() / math.sqrt(len(log_w))
    return Estimate(log_z_base + log_mean.item(), error.item(), "estimate")


def schedule(temperatures: int) -> list[float]:
    """Return β from 0 to 1, closer together towards 1 as in section 5.1: 500 to 0.5, 4,000 to 0.9, 10,000 to 1."""
    cut = lambda share: max(1, round(temperatures * share / 14_500))  # noqa: E731
    parts = ((0.0, 0.5, cut(500)), (0.5, 0.9, cut(4_000)), (0.9, 1.0, cut(10_000)))
    return [low + (high - low) * i / n for low, high, n in parts for i in range(n)] + [1.0]
