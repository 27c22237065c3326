"""The update rule of GANs: Algorithm 1 of Goodfellow et al. 2014."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from genlab.models.gan.regularizers import DiscriminatorRegularization
from genlab.spec import Batch, Positive, PositiveFloat
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer

# A failure mode is reported when this many consecutive logged means show it.
REPORT_AFTER_INTERVALS = 10
D_ADVANTAGE_LIMIT = 0.99
DIVERSITY_RATIO_LIMIT = 0.2

DISCRIMINATOR_WON = (
    "the discriminator has won: it is certain of every sample, so G receives almost no gradient"
)
MODE_COLLAPSE = "mode collapse: the samples differ far less than the data"


class GANTrainer(Trainer):
    """`d_steps` updates of D on fresh batches, then one of G.

    The model has `discriminator_loss` and `generator_loss`. Both take a batch and `penalty_scale`,
    the factor of their gradient penalties, which is 0 in the steps that leave them out.
    """

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        # updates of D for each update of G
        d_steps: Positive = 1
        # The gradient penalties are computed every so many steps, with a weight that makes up for
        # the others (Karras et al. 2020). Two numbers: D's interval and G's.
        lazy_reg_interval: Positive | tuple[Positive, Positive] = 1
        # G's batch relative to D's (Gulrajani et al. 2017 and Miyato et al. 2018: 2)
        g_batch_mult: Positive = 1
        # D's learning rate relative to G's (two time scales; Heusel et al. 2017)
        d_lr_mult: PositiveFloat = 1.0

    options: Options
    # a DiscriminatorRegularization, or a user's model with the same two losses
    model: Any

    def configure(self) -> None:
        model = self.model
        self.optimizers["discriminator"] = self.make_optimizer(model.discriminator.parameters())
        self.optimizers["generator"] = self.make_optimizer(model.generator.parameters())
        interval = self.options.lazy_reg_interval
        d_interval, g_interval = interval if isinstance(interval, tuple) else (interval, interval)
        self.intervals = {"discriminator": d_interval, "generator": g_interval}
        lr_factors = {
            "discriminator": self.options.d_lr_mult * lazy_regularization_lr_factor(d_interval),
            "generator": 1.0,
        }
        if isinstance(model, DiscriminatorRegularization):
            model.refuse_penalty_through_batch_norm()
            if model.has_generator_penalty:
                lr_factors["generator"] = lazy_regularization_lr_factor(g_interval)
            model.set_num_shards(self.group.size * self.options.grad_accum_steps)
        for name, factor in lr_factors.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = group["lr"] * factor
        # failure mode -> number of consecutive logged means that showed it
        self.failure_counts: dict[str, int] = {}

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        scale = {name: 0 if self.global_step % k else k for name, k in self.intervals.items()}
        d_loss = partial(self.model.discriminator_loss, penalty_scale=scale["discriminator"])
        g_loss = partial(self.model.generator_loss, penalty_scale=scale["generator"])
        # (1) update D, d_steps times: maximize log D(x) + log(1 − D(G(z)))
        for _ in range(self.options.d_steps):
            shards = self.next_batch(batches)
            d_logs = self.optimizer_step("discriminator", d_loss, shards)
            if isinstance(self.model, DiscriminatorRegularization):
                self.model.clip_discriminator_weights()
        # (2) update G: increase D's logits of its samples
        g_logs = self.optimizer_step(
            "generator", g_loss, [batch.repeat(self.options.g_batch_mult) for batch in shards]
        )
        losses = {
            "loss/discriminator": d_logs.pop("loss"),
            "loss/generator": g_logs.pop("loss"),
        }
        return losses | d_logs | g_logs

    def statistics_pass(self, model: Any, batch: Batch) -> None:
        # D normalizes the real and the fake samples, then G its own
        model.discriminator_loss(batch, penalty_scale=0)
        model.generator_loss(batch, penalty_scale=0)

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return the failure modes that now have lasted long enough, with suggestions."""
        notes = []
        for failure, is_present in detect_failure_modes(means).items():
            self.failure_counts[failure] = (
                self.failure_counts.get(failure, 0) + 1 if is_present else 0
            )
            if self.failure_counts[failure] == REPORT_AFTER_INTERVALS:
                *others, last = self.suggest_overrides(failure)
                choices = f"{', '.join(others)} or {last}" if others else last
                notes.append(f"{failure}; try {choices}")
        return notes

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the number of logged means that showed each failure mode."""
        return super().state_dict() | {"failure_counts": dict(self.failure_counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.failure_counts = dict(state.get("failure_counts", {}))  # missing in older checkpoints

    def suggest_overrides(self, failure: str) -> list[str]:
        """Return overrides against a failure mode; none weakens what the model already uses."""
        slower = f"++trainer.d_lr_mult={self.options.d_lr_mult / 2:g}"
        # the options of a user's own model are unknown
        if not isinstance(self.model, DiscriminatorRegularization):
            return [slower]
        stronger = self.model.suggest_regularization()
        if failure == MODE_COLLAPSE:
            return [*stronger, *self.model.suggest_against_collapse(), "another model.loss"]
        return [*(stronger or self.model.augmentation_overrides()), slower]


# Karras et al. 2020, https://arxiv.org/abs/1912.04958, appendix B: in the paper the penalty is one
# more update after k updates, and a learning rate of cλ and β^c, c = k / (k + 1), make up for it.
# Here the penalty joins one of the k updates, so β keeps its meaning per batch. Adam divides by √v,
# where v is the mean square of the gradients g: with S the sum over k batches, v is S / (k + 1) in
# the paper and S / k here. The paper moves by cλ Σg √((k + 1) / S); a rate of √c λ does so here.
def lazy_regularization_lr_factor(k: int) -> float:
    """Return the learning rate factor that matches the paper's updates with a penalty every k."""
    return (k / (k + 1)) ** 0.5 if k > 1 else 1.0


def detect_failure_modes(means: dict[str, float]) -> dict[str, bool]:
    """Return each known failure mode and whether the mean logs show it.

    Args:
        means: `d_advantage` is the share of its loss that D has eliminated, `diversity_ratio` the
            distance between samples relative to that between data. Models with two networks of a
            kind log one each, with a suffix: `d_advantage/source`.
    """
    advantages = [v for key, v in means.items() if key.partition("/")[0] == "d_advantage"]
    ratios = [v for key, v in means.items() if key.partition("/")[0] == "diversity_ratio"]
    return {
        DISCRIMINATOR_WON: max(advantages, default=0) > D_ADVANTAGE_LIMIT,
        MODE_COLLAPSE: min(ratios, default=1) < DIVERSITY_RATIO_LIMIT,
    }
