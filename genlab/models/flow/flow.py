"""What all flows share: p(x) = p(z) |det dz/dx| with z = transform(x). A flow is its transform and its base."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.flow.base_distribution import Base, Normal
from genlab.models.flow.transforms import Chain, Logit, Starts, Transform
from genlab.spec import Batch, Spec

Alpha = Annotated[float, Interval(gt=0, lt=0.5)]  # the logit's margin


class Flow(nn.Module):
    """An exact density: a model file builds the transform as its paper says, and this is the rest.

    Args:
        transform: takes x (B, *shape), for images after the logit, to z (B, D).
        alpha: the logit's margin for images; None: no logit.
        base: the law of z, its class.
        conditional: learn p(x|y), each class with a base of its own.
    """

    def __init__(
        self,
        spec: Spec,
        transform: Transform,
        *,
        alpha: float | None = None,
        base: type[Base] = Normal,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.spec, self.conditional = spec, conditional
        self.squashed = spec.kind == "image" and alpha is not None
        self.transform = Chain(Logit(alpha, spec.range), transform) if self.squashed else transform
        self.base = base(spec.dim, classes=spec.classes if conditional else 0)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,), or log p(x|y), in nats, of x (B, *shape) in its own space.

        Without y a conditional flow sums over evenly likely classes.
        """
        self.refuse_classes(y)
        z, ladj = self.transform(x)
        return self.base.log_prob(z, y) + ladj

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x), or −log p(x|y), in nats a sample."""
        return {"loss": -self.log_prob(batch.x, batch.y if self.conditional else None).mean()}

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the layers that start from data by x (B, *shape), each by what the layers before make of it."""
        layers = [m for m in self.transform.modules() if isinstance(m, Starts)]
        hooks = [m.register_forward_pre_hook(lambda m, given: m.start(given[0])) for m in layers]
        self.transform.forward(
            x
        )  # not its call, which may be compiled, and a compiled call keeps its hooks
        for hook in hooks:
            hook.remove()

    # --- abilities --------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, D)."""
        return self.transform(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return x (B, *shape); an image is cut to its range, past which the logit's margin reaches."""
        x = self.transform.inverse(z)
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def prior(self, n: int) -> Tensor:
        """Draw n codes (n, D) from the base, of classes drawn evenly if it has any."""
        return self.base.sample(n)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n items (n, *shape), of the classes y (n,) if given; a conditional flow draws classes evenly otherwise."""
        self.refuse_classes(y)
        return self.decode(self.base.sample(n, y))

    def logit_log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the log-density (B,) in nats of logit(alpha + (1 − 2 alpha) u), u the pixels in [0, 1].

        The space in which Papamakarios et al. 2017 (https://arxiv.org/abs/1705.07057) and others report MNIST.

        Raises:
            UserError: this flow takes no logit of its data.
        """
        if not self.squashed:
            raise UserError(f"{name_of(self)} takes no logit of this data")
        return self.log_prob(x, y) - self.transform.transforms[0](x)[1]

    def refuse_classes(self, y: Tensor | None) -> None:
        """Refuse labels where there is no p(x|y)."""
        if y is not None and not self.conditional:
            raise UserError(
                f"{name_of(self)} knows no classes, and classes were given; train it with model.conditional=true"
            )


def name_of(flow: Flow | type[Flow]) -> str:
    return (flow if isinstance(flow, type) else type(flow)).__name__.lower()


def check(name: str, spec: Spec, *, conditional: bool, least: int = 2) -> None:
    """Refuse data without a density or with fewer than `least` values, and classes that are not there.

    Raises:
        UserError: says what would be right.
    """
    if spec.kind not in ("image", "points"):
        raise UserError(
            f"{name} takes images or points, and this is {spec.kind} data of shape {spec.shape}"
        )
    if spec.discrete:
        also = " dataset.binarize=none" if spec.levels == 2 else ""
        raise UserError(
            f"{name} is a density and this data is discrete; set dataset.dequantise=true{also}"
        )
    if spec.dim < least:
        raise UserError(
            f"{name}'s layers need at least two values an item, and this data has {spec.dim}"
        )
    if conditional and not spec.classes:
        raise UserError(
            "model.conditional=true needs labels, which this data has not; set model.conditional=false"
        )
