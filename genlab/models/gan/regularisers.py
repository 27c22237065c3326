"""What keeps a discriminator smooth: penalties on its gradient, clipped weights, spectral normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


# Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, eq. 9: R1 = γ/2 E_data |∇_x D(x)|², with D the logit.
def r1_penalty(real: Tensor, x: Tensor) -> Tensor:
    """Return E|∇_x D(x)|² (scalar) of the logits `real` (B,) of data x (B, …), which needs requires_grad."""
    return gradient(real, x).square().sum(1).mean()


# Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, eq. 3: λ E (|∇_x̂ D(x̂)| − 1)², x̂ = εx + (1 − ε)G(z), ε ~ U[0, 1].
def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor, fake_x: Tensor) -> Tensor:
    """Return E(|∇_x̂ D(x̂)| − 1)² (scalar) at random points between data x (B, …) and samples (B, …)."""
    epsilon = torch.rand(len(x), *(1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
    between = (epsilon * x + (1 - epsilon) * fake_x).detach().requires_grad_()
    return (gradient(critic(between), between).norm(dim=1) - 1).square().mean()


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return ∇_x value (B, D) of values (B,) that each depend on their own x (B, …) alone, differentiable again."""
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return slope.flatten(1)


# Arjovsky et al. 2017, Algorithm 1: w ← clip(w, −c, c).
@torch.no_grad()
def clip_weights(net: nn.Module, c: float) -> None:
    """Move every weight of `net` into [−c, c], which bounds its Lipschitz constant."""
    torch._foreach_clamp_min_(list(net.parameters()), -c)
    torch._foreach_clamp_max_(list(net.parameters()), c)


# Miyato et al. 2018, https://arxiv.org/abs/1802.05957, eq. 8: W / σ(W), σ(W) its largest singular value by power iteration.
def spectrally_normalised(net: nn.Module) -> nn.Module:
    """Divide the weight of every linear, convolutional and embedding layer of `net` by its spectral norm, in place."""
    for layer in list(net.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
            spectral_norm(layer)
    return net
