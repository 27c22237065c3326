"""What keeps a discriminator smooth: penalties on its gradient, clipped weights, spectral normalisation; and who takes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genlab.errors import UserError
from genlab.spec import NonNegative

Shown = (
    Tensor | list[Tensor]
)  # what D is shown of items: (B, …), or one of these for each of several scales


# Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, eq. 9: R1 = γ/2 E_data |∇_x D(x)|², with D the logit.
def r1_penalty(real: Tensor, x: Tensor) -> Tensor:
    """Return E|∇_x D(x)|² (scalar) of the logits `real` (B, …) of data x (B, …), which needs requires_grad."""
    return gradient(real, x).square().sum(1).mean()


# Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, eq. 3: λ E (|∇_x̂ D(x̂)| − 1)², x̂ = εx + (1 − ε)G(z), ε ~ U[0, 1].
def gradient_penalty(critic: Callable[[Shown], Tensor], x: Shown, fake_x: Shown) -> Tensor:
    """Return E(|∇_x̂ D(x̂)| − 1)² (scalar) at random points between data x and samples, each (B, …), or one for each scale.

    The scales of an item are one point, and its gradient is that of all of them together.
    """
    scales = list(zip(each(x), each(fake_x), strict=True))
    first = scales[0][0]
    epsilon = torch.rand(len(first), dtype=first.dtype, device=first.device)
    share = lambda a: epsilon.view(-1, *(1,) * (a.ndim - 1))  # noqa: E731
    between = [(share(a) * a + (1 - share(a)) * b).detach().requires_grad_() for a, b in scales]
    value = critic(between[0] if isinstance(x, Tensor) else between)
    return (gradient(value, between).norm(dim=1) - 1).square().mean()


def gradient(logits: Tensor, x: Shown) -> Tensor:
    """Return ∇_x D (B, D) of logits (B, …) that each depend on their own x alone, differentiable again.

    Of an item with several logits, of patches or of scales, D is their mean, as it is in the losses.
    """
    value = logits.reshape(len(logits), -1).mean(1)  # (B,)
    slopes = torch.autograd.grad(value.sum(), each(x), create_graph=True)
    return torch.cat([slope.flatten(1) for slope in slopes], 1)


def each(x: Shown) -> list[Tensor]:
    """Return an item's scales, one or several, as a list."""
    return [x] if isinstance(x, Tensor) else x


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


class Restrained(nn.Module):
    """What all two-player models share: a discriminator that may be held smooth, whatever its network and the loss.

    Args:
        r1: γ of γ/2 E|∇D(x)|² on data (Mescheder et al. 2018).
        gradient_penalty: λ of λ E(|∇D(x̂)| − 1)² between data and samples (Gulrajani et al. 2017).
        clip: c to which D's weights are clipped after each of its updates (Arjovsky et al. 2017); 0: not.
        spectral: divide D's weights by their spectral norm (Miyato et al. 2018).

    Raises:
        UserError: `spectral`, and the weights are scaled as they are used.
    """

    discriminator: nn.Module
    equalised_rate = (
        False  # D's weights are scaled as they are used, which spectral normalisation would undo
    )

    def __init__(
        self,
        *,
        r1: NonNegative = 0.0,
        gradient_penalty: NonNegative = 0.0,
        clip: NonNegative = 0.0,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if spectral and self.equalised_rate:
            raise UserError(f"{type(self).__name__}'s weights have an equalised learning rate, which spectral normalisation "
                            "would undo; set model.spectral=false")  # fmt: skip
        self.r1, self.gradient_penalty, self.clip, self.spectral = (
            r1,
            gradient_penalty,
            clip,
            spectral,
        )

    def restrained(self, discriminator: nn.Module) -> nn.Module:
        """Return a discriminator whose weights are drawn, changed in place as the options say."""
        return spectrally_normalised(discriminator) if self.spectral else discriminator

    def sloped(self, x: Tensor, penalty: float) -> Tensor:
        """Return data x (B, …), fit for R1's gradient if it is going to be asked for."""
        return x.detach().requires_grad_() if self.r1 * penalty else x

    def penalties(
        self,
        D: Callable[[Shown], Tensor],
        real: Tensor,
        x: Tensor,
        shown: Shown,
        fake: Shown,
        penalty: float,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the weighted penalties (scalars) that D's loss pays, and each without its weight by name.

        Args:
            D: of items as they are shown, to logits (B, …).
            real: the logits (B, …) of the data x (B, …), which `sloped` gave.
            shown: the data as D is shown them, and `fake`: G's.
            penalty: their weight beside the options': 0 leaves them out, k makes up for k − 1 times left out.
        """
        paid, found = [], {}
        if self.r1 * penalty:
            found["r1"] = r1_penalty(
                real, x
            )  # at the data themselves, through what D is shown of them
            paid.append(self.r1 * penalty / 2 * found["r1"])
        if self.gradient_penalty * penalty:
            found["gradient_penalty"] = gradient_penalty(D, shown, fake)
            paid.append(self.gradient_penalty * penalty * found["gradient_penalty"])
        return paid, found

    def constrain(self) -> None:
        """Bring D back to where its weights may be, after an update of it."""
        if self.clip:
            clip_weights(self.discriminator, self.clip)

    # --- what to try where the game goes wrong ------------------------------------------------------------------------

    def firmer(self) -> list[str]:
        """Return overrides that hold D back more; none where a penalty or a clip already holds its slope, which R1 would change.

        They set one value each: a `+regulariser=` would take away what another has set.
        """
        if self.r1:
            return [f"++model.r1={2 * self.r1:g}"]
        if self.gradient_penalty or self.clip:
            return []
        spectral = ["++model.spectral=true"] if not (self.equalised_rate or self.spectral) else []
        return ["++model.r1=0.1", *spectral]

    def wider(self) -> list[str]:
        """Return overrides, of other options than these, that go against samples which are all alike."""
        return []

    def augmented(self) -> list[str]:
        """Return overrides that show D more than the images themselves."""
        return []
