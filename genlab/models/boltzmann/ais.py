"""Annealed importance sampling of an RBM's log Z: Salakhutdinov & Murray 2008, https://doi.org/10.1145/1390156.1390266."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate


@torch.no_grad()
def ais(W: Tensor, b: Tensor, c: Tensor, *, b_base: Tensor, chains: int, temperatures: int) -> Estimate:
    """Return an estimate of log Z in nats of the RBM (W (H, D), b (D,), c (H,)), with its standard error.

    The chains go from a base model with no weights and visible biases `b_base` (D,) to the RBM through
    p*_β(v) = exp((1 − β) b_baseᵀv + β bᵀv) Π_j (1 + exp(β(c_j + W_j v))), as in section 4.1; the base has
    idle hidden units. The memory is that of one set of chains.
    """
    betas = schedule(temperatures)
    log_w = torch.zeros(chains, dtype=torch.float64, device=W.device)
    v = (torch.rand_like(p := b_base.sigmoid().expand(chains, -1)) < p).to(W)  # (M, D) from the base model
    for low, high in pairwise(betas):
        a = linear(v, W, c)  # (M, H)
        # w ← w p*_high(v) / p*_low(v)
        log_w += (high - low) * (v @ (b - b_base)) + (softplus(high * a) - softplus(low * a)).sum(1)
        # v ← a Gibbs step that leaves p_high as it is
        p = (high * a).sigmoid_()
        h = (torch.rand_like(p) < p).to(W)
        p = torch.addmm(torch.lerp(b_base, b, high), h, W, alpha=high).sigmoid_()
        v = (torch.rand_like(p) < p).to(W)
    # Z ≈ Z_base · mean(w); by the delta method sd(log mean w) = sd(w) / (√M mean(w))
    log_z_base = softplus(b_base.double()).sum() + len(c) * math.log(2)
    log_mean = log_w.logsumexp(0) - math.log(chains)
    error = (log_w - log_mean).exp().std() / math.sqrt(chains)
    return Estimate((log_z_base + log_mean).item(), error.item(), "estimate")


def schedule(temperatures: int) -> list[float]:
    """Return β from 0 to 1, closer together towards 1 as in section 5.1: 500 to 0.5, 4,000 to 0.9, 10,000 to 1."""
    cut = lambda share: max(1, round(temperatures * share / 14_500))  # noqa: E731
    parts = ((0.0, 0.5, cut(500)), (0.5, 0.9, cut(4_000)), (0.9, 1.0, cut(10_000)))
    return [low + (high - low) * i / n for low, high, n in parts for i in range(n)] + [1.0]
