"""Reflow: Liu et al. 2023, https://arxiv.org/abs/2209.03003: a flow trained on the pairs that another flow's ODE made."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.spec import Batch, Positive, Spec


class RectifiedFlow(FlowMatching):
    """A flow whose noise and data are paired as a teacher's ODE pairs them (algorithm 1), so that its paths are nearly straight.

    The teacher, a flow matching model or a rectified flow, stays as it is; its network is where this one starts, with the
    same conditions.

    Args:
        teacher: the model that makes the pairs. A run brings its own (`teacher.run`).
        solver: the teacher's sampler by which it makes a pair, one without noise; in `solver_steps` steps.
        steps: of this model's sampling, where nobody says.

    Raises:
        UserError: there is no teacher, it is no such model, or the solver draws noise.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        teacher: Callable[..., nn.Module] | None = None,
        solver: str = "heun",
        solver_steps: Positive = 50,
        steps: Positive = 10,
    ) -> None:
        if teacher is None:
            raise UserError(
                "rectified_flow needs a trained teacher: give teacher.run=<run folder> of a flow_matching run"
            )
        made = teacher(spec)
        if not isinstance(made, FlowMatching):
            raise UserError(
                f"{type(made).__name__}'s paths are no straight lines; choose a run of flow_matching as teacher.run"
            )
        if solver not in made.samplers or solver == "ancestral":
            ways = ", ".join(name for name in made.samplers if name != "ancestral")
            raise UserError(
                f"model.solver={solver} makes no pairs of noise and data; choose one of {ways}"
            )
        how = {
            name: getattr(made, name)
            for name in ("times", "clip", "conditional", "drop_label", "guidance")
        }
        super().__init__(spec, backbone=lambda *_, **__: deepcopy(made.network), steps=steps, **how)
        self.name = "rectified_flow"
        self.teacher = made.requires_grad_(False).eval()
        self.solver, self.solver_steps = solver, solver_steps

    def train(self, mode: bool = True) -> RectifiedFlow:
        """Set the model's mode; the teacher is never trained."""
        super().train(mode)
        self.teacher.eval()
        return self

    def start(self) -> None:
        """Begin with the teacher's weights."""
        self.network.load_state_dict(self.teacher.network.state_dict())

    # algorithm 1: (Z_0, Z_1) with Z_1 the end of dZ_t = v(Z_t, t) dt from Z_0 ~ N(0, I)
    @torch.no_grad()
    def led(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the items (B, *shape) to which the teacher's ODE leads from the noise (B, *shape), of the classes y (B,)."""
        follow, levels = (
            self.teacher.sampler(self.solver),
            self.teacher.levels(self.solver_steps, self.solver),
        )
        return follow(self.teacher.denoiser(y if self.conditional else None, 1.0), noise, levels)

    def noise(self, batch: Batch) -> Tensor:
        """Return the noise (B, …) that each item's ODE began at; of an item that no teacher made, where its ODE leads back to."""
        return (
            self.teacher.encode(batch.x, steps=self.solver_steps)
            if batch.cond is None
            else batch.cond
        )
