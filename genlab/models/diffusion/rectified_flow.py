"""Reflow: Liu et al. 2023, https://arxiv.org/abs/2209.03003.

A flow trained on pairs of noise and data that the ODE of another flow produced.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.spec import Batch, DataSpec, Positive


class RectifiedFlow(FlowMatching):
    """A flow trained on the pairs of noise and data of a teacher's ODE (algorithm 1).

    Its paths are nearly straight. The teacher, a flow matching model or a rectified flow, stays
    frozen. This model starts from its network and has the same conditions.

    Args:
        teacher: builds the model that produces the pairs; `teacher.run` names its run.
        solver: sampler with which the teacher produces a pair; it must be deterministic.
        solver_steps: steps of the solver.
        sampling_steps: default number of sampling steps of this model.

    Raises:
        UserError: the teacher is missing, it is not a flow, or the solver is stochastic.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        teacher: Callable[..., nn.Module] | None = None,
        solver: str = "heun",
        solver_steps: Positive = 50,
        sampling_steps: Positive = 10,
    ) -> None:
        if teacher is None:
            raise UserError(
                "rectified_flow needs a trained teacher: "
                "set teacher.run=<run folder> of a flow_matching run"
            )
        teacher_model = teacher(spec)
        if not isinstance(teacher_model, FlowMatching):
            raise UserError(
                f"the paths of {type(teacher_model).__name__} are not straight lines; "
                "choose a run of flow_matching as teacher.run"
            )
        solvers = [name for name in teacher_model.samplers if name != "ancestral"]
        if solver not in solvers:
            raise UserError(
                f"model.solver={solver} does not map noise to data deterministically; "
                f"choose one of {', '.join(solvers)}"
            )

        def copy_teacher_network(*args: Any, **kwargs: Any) -> nn.Module:
            return deepcopy(teacher_model.network)

        super().__init__(
            spec,
            backbone=copy_teacher_network,
            time_distribution=teacher_model.time_distribution,
            sampling_steps=sampling_steps,
            clip_x0=teacher_model.clip_x0,
            conditional=teacher_model.conditional,
            label_dropout=teacher_model.label_dropout,
            guidance=teacher_model.guidance,
        )
        self.name = "rectified_flow"
        self.teacher: FlowMatching = teacher_model.requires_grad_(False).eval()
        self.solver, self.solver_steps = solver, solver_steps

    def train(self, mode: bool = True) -> RectifiedFlow:
        """Set the model's mode; the teacher always stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def init_from_teacher(self) -> None:
        """Copy the teacher's weights."""
        self.network.load_state_dict(self.teacher.network.state_dict())

    # algorithm 1: (Z_0, Z_1) with Z_1 the end of dZ_t = v(Z_t, t) dt from Z_0 ~ N(0, I)
    @torch.no_grad()
    def teacher_samples(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the items (B, *shape) to which the teacher's ODE maps the noise (B, *shape).

        Args:
            y: classes (B,).
        """
        integrate = self.teacher.make_sampler(self.solver)
        levels = self.teacher.noise_levels(self.solver_steps, self.solver)
        denoise = self.teacher.make_denoiser(y if self.conditional else None, 1.0)
        return integrate(denoise, noise, levels)

    def paired_noise(self, batch: Batch) -> Tensor:
        """Return the noise (B, …) from which the teacher's ODE produced each item.

        For items that the teacher did not produce, the ODE is solved backward.
        """
        if batch.cond is None:
            return self.teacher.encode(batch.x, steps=self.solver_steps)
        return batch.cond
