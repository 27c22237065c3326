"""The base class of flows: p(x) = p(z) |det dz/dx| with z = transform(x)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from genlab.abilities import Report, TrajectoryState
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.flow.base_distribution import BaseDistribution, Normal
from genlab.models.flow.conditional_chain import draw_unknown_values
from genlab.models.flow.transforms import Chain, DataDependentInit, Logit, Transform
from genlab.spec import Batch, DataSpec

Alpha = Annotated[float, Interval(gt=0, lt=0.5)]  # the margin of the logit


class Flow(GenerativeModel):
    """An exact density, given by a transform and a base distribution.

    Each flow's file builds the transform as in its paper.

    Args:
        transform: maps x (B, *shape), for images after the logit, to z (B, D).
        alpha: the margin of the logit for images; None disables the logit.
        base: class of the distribution of z.
        conditional: learn p(x|y) with one base distribution per class.
    """

    def __init__(
        self,
        spec: DataSpec,
        transform: Transform,
        *,
        alpha: float | None = None,
        base: type[BaseDistribution] = Normal,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.spec, self.conditional = spec, conditional
        self.transform: Transform = transform
        if spec.kind == "image" and alpha is not None:
            self.logit_transform = True
            self.transform = Chain(Logit(alpha, spec.range), transform)
        self.base = base(spec.dim, num_classes=spec.num_classes if conditional else 0)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,), or log p(x|y), in nats, of x (B, *shape) in data space.

        Without y a conditional flow sums over equally likely classes.
        """
        self.refuse_labels_if_unconditional(y)
        z, ladj = self.transform(x)
        return self.base.log_prob(z, y) + ladj

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x), or −log p(x|y), in nats per sample."""
        return {"loss": -self.log_prob(batch.x, batch.y if self.conditional else None).mean()}

    @torch.no_grad()
    def initialize_from_data(self, x: Tensor) -> None:
        """Initialize the data-dependent layers from data x (B, *shape).

        Each layer is initialized from the output of the layers before it. Without such layers
        nothing changes.
        """

        def initialize_layer(layer: DataDependentInit, inputs: tuple[Tensor, ...]) -> None:
            layer.initialize_from_data(inputs[0])

        layers = [m for m in self.transform.modules() if isinstance(m, DataDependentInit)]
        hooks = [layer.register_forward_pre_hook(initialize_layer) for layer in layers]
        # not __call__, which may be compiled: a compiled call would keep its hooks
        self.transform.forward(x)
        for hook in hooks:
            hook.remove()

    # --- abilities --------------------------------------------------------------------------------

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return z (B, D)."""
        z: Tensor = self.transform(x)[0]
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return x (B, *shape), with images clipped to their range.

        The margin of the logit exceeds the range.
        """
        return self.clip_to_range(self.transform.inverse(z))

    def clip_to_range(self, x: Tensor) -> Tensor:
        """Return x (B, *shape), clipped to the data's range if it is images."""
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, D) of the classes y (n,) if given, otherwise of random classes."""
        self.refuse_labels_if_unconditional(y)
        return self.base.sample(n, y)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, **sampler: Any) -> Tensor:
        """Draw n items (n, *shape) of the classes y (n,) if given, otherwise of random classes."""
        self.refuse_labels_if_unconditional(y)
        return self.decode(self.base.sample(n, y))

    @torch.no_grad()
    def impute(
        self, x: Tensor, known: Tensor, *, draws: int = 1, steps: int | None = None
    ) -> Tensor:
        """Draw the unknown values of points x (B, D) by Markov chains (draws, B, D).

        Args:
            known: bool (B, D).
            steps: updates of each chain; None: 60.
        """
        return draw_unknown_values(self.log_prob, self.sample, x, known, draws=draws, steps=steps)

    # --- trajectories -----------------------------------------------------------------------------

    @torch.no_grad()
    def trajectory(
        self,
        report: Report,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        **sampler: Any,
    ) -> Tensor:
        """Draw n items (n, *shape) as `sample` does, and report z_0, z_1, …, z_K = x."""
        self.refuse_labels_if_unconditional(y)
        z = self.base.sample(n, y) if start is None else start
        total, k = z.new_zeros(len(z)), 0
        log_p = self.base.log_prob(z, y)
        report(self.trajectory_state(k, self.transform.move_back(z), total, log_p))

        def report_step(values: Tensor, ladj: Tensor) -> None:
            nonlocal total, k
            total, k = total + ladj, k + 1
            report(self.trajectory_state(k, values, total, log_p + total))

        return self.clip_to_range(self.transform.inverse_in_steps(z, report_step))

    @torch.no_grad()
    def forward_trajectory(self, report: Report, x: Tensor, *, steps: int | None = None) -> None:
        """Report z_K = x, …, z_0 (n, *shape) of items x (n, *shape)."""
        total, k = x.new_zeros(len(x)), self.transform.num_steps
        report(self.trajectory_state(k, x, total))

        def report_step(values: Tensor, ladj: Tensor) -> None:
            nonlocal total, k
            total, k = total + ladj, k - 1
            report(self.trajectory_state(k, values, total))

        self.transform.forward_in_steps(x, report_step)

    def trajectory_state(
        self, k: int, values: Tensor, log_det: Tensor, log_p: Tensor | None = None
    ) -> TrajectoryState:
        """Return z_k as an image or points; values before the logit are shown as pixels.

        Args:
            values: z_k (n, *shape).
            log_det: log |det| (n,) of the steps so far.
            log_p: log-density (n,) of z_k, in nats.
        """
        num_steps = self.transform.num_steps
        if self.logit_transform and k < num_steps:
            assert isinstance(self.transform, Chain)
            values = self.transform.steps[0].inverse(values)
        numbers: dict[str, float | Tensor] = {"log|det|": log_det}
        if log_p is not None:
            numbers["log p"] = log_p
        name = f"z{to_subscript(k)}" + (" = x" if k == num_steps else "")
        return TrajectoryState(k, name, self.clip_to_range(values), numbers=numbers)

    # --- likelihood in logit space ----------------------------------------------------------------

    def logit_log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the log-density (B,) of logit(alpha + (1 − 2 alpha) u) in nats.

        u are the pixels in [0, 1]. This is the space in which Papamakarios et al. 2017
        (https://arxiv.org/abs/1705.07057) and others report MNIST.

        Raises:
            UserError: this flow does not use a logit.
        """
        if not self.logit_transform:
            raise UserError(f"{flow_class_name(self)} does not use a logit for this data")
        assert isinstance(self.transform, Chain)
        return self.log_prob(x, y) - self.transform.transforms[0](x)[1]

    def refuse_labels_if_unconditional(self, y: Tensor | None) -> None:
        """Raise an error if labels are given to an unconditional flow."""
        if y is not None and not self.conditional:
            raise UserError(
                f"{flow_class_name(self)} was trained without labels, but labels were given; "
                "train it with model.conditional=true"
            )


def to_subscript(number: int) -> str:
    """Return a number in subscript digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def flow_class_name(flow: Flow | type[Flow]) -> str:
    """Return the name of a flow in messages: its class in lower case."""
    return (flow if isinstance(flow, type) else type(flow)).__name__.lower()


def validate_spec(name: str, spec: DataSpec, *, conditional: bool, min_dim: int = 2) -> None:
    """Check that the data has a density, enough values and the required labels.

    Args:
        min_dim: smallest number of values of an item.

    Raises:
        UserError: the message says which option to set.
    """
    if spec.kind not in ("image", "points"):
        raise UserError(
            f"{name} models images or points, not {spec.kind} data of shape {spec.shape}"
        )
    if spec.is_discrete:
        also = " dataset.binarize=none" if spec.levels == 2 else ""
        raise UserError(
            f"{name} is a density, but this data is discrete; set dataset.dequantize=true{also}"
        )
    if spec.dim < min_dim:
        raise UserError(
            f"{name}'s layers need at least two values per item, but this data has {spec.dim}; "
            "use model=affine, gmm or flow_points"
        )
    if conditional and not spec.num_classes:
        raise UserError(
            "model.conditional=true requires labels, but this dataset has none; "
            "set model.conditional=false"
        )
