"""The update rule of a two-player game: Algorithm 1 of Goodfellow et al. 2014."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from genlab.models.gan.regularizers import Restrained
from genlab.spec import Batch, Positive, PositiveFloat
from genlab.training.trainer import Trainer

WINDOWS = 10  # logged means in a row that make an ailment
WON = "the discriminator has won: it is sure of every item, and G learns little from it"
COLLAPSED = "mode collapse: the samples differ far less than the data"


class GANTrainer(Trainer):
    """k updates of D on fresh batches, then one of G, on a model with `discriminator_loss` and `generator_loss`.

    Both take the batch and the weight of their gradient penalties, which is 0 where those are left out. A model with
    `constrain` is asked to bring D back to where its weights may be after each of D's updates.
    """

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        k: Positive = 1  # updates of D for each of G
        # steps between the gradient penalties, each then weighing as much more (Karras et al. 2020); two numbers: D's, and G's
        penalty_every: Positive | tuple[Positive, Positive] = 1
        discriminator_rate: PositiveFloat = (
            1.0  # D's learning rate in parts of G's (two time scales; Heusel et al. 2017)
        )

    def configure(self) -> None:
        self.optimizers["discriminator"] = self.optimizer(self.model.discriminator.parameters())
        self.optimizers["generator"] = self.optimizer(self.model.generator.parameters())
        every = self.options.penalty_every
        self.every = dict(
            zip(
                ("discriminator", "generator"),
                every if isinstance(every, tuple) else (every, every),
                strict=True,
            )
        )
        lazy = (
            {"discriminator", "generator"}
            if getattr(self.model, "path_length", 0)
            else {"discriminator"}
        )  # who has penalties
        factors = {name: lazy_rate(k) if name in lazy else 1.0 for name, k in self.every.items()}
        factors["discriminator"] *= self.options.discriminator_rate
        for name, factor in factors.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = group["lr"] * factor
        if augment := getattr(self.model, "augment", None):
            augment.shards = self.ranks.size * self.options.accumulate
        self.since: dict[str, int] = {}  # ailment -> logged means in a row that showed it

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        penalty = {player: 0 if self.at % k else k for player, k in self.every.items()}
        # (1) update D, k times: maximise log D(x) + log(1 − D(G(z)))
        for _ in range(self.options.k):
            shards = self.pull(batches)
            d = self.descend(
                "discriminator",
                partial(self.model.discriminator_loss, penalty=penalty["discriminator"]),
                shards,
            )
            if constrain := getattr(self.model, "constrain", None):
                constrain()
        # (2) update G: make D believe its samples
        g = self.descend(
            "generator", partial(self.model.generator_loss, penalty=penalty["generator"]), shards
        )
        return {"loss/discriminator": d.pop("loss"), "loss/generator": g.pop("loss"), **d, **g}

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return the ailments that have lasted for as many logged means as make one."""
        found = []
        for ailment, ill in ailments(means).items():
            self.since[ailment] = self.since.get(ailment, 0) + 1 if ill else 0
            if self.since[ailment] == WINDOWS:
                *others, last = self.mends(ailment)
                found.append(
                    f"{ailment}; try {' or '.join([', '.join(others), last] if others else [last])}"
                )
        return found

    def mends(self, ailment: str) -> list[str]:
        """Return what to try against an ailment: overrides that this model takes, none weaker than what it has."""
        slower = f"++trainer.discriminator_rate={self.options.discriminator_rate / 2:g}"
        if not isinstance(
            self.model, Restrained
        ):  # a game of somebody's own, whose options nobody here knows
            return [slower]
        firmer = self.model.firmer()
        if ailment == COLLAPSED:
            return [*firmer, *self.model.wider(), "another model.loss"]
        return [*(firmer or self.model.augmented()), slower]


# Karras et al. 2020, https://arxiv.org/abs/1912.04958, appendix B: there a penalty after k updates is one more update, and a
# rate of cλ and β^c, c = k / (k + 1), make up for it. Here it joins one of the k, so that β is the paper's memory from batch to
# batch as it is. Adam divides by √v, v the mean square of the gradients g: with S the sum over k batches, v is S / (k + 1) there
# and S / k here, and what these batches do together, cλ Σg √((k + 1) / S) there, a rate of √c λ does here.
def lazy_rate(k: int) -> float:
    """Return the share of the learning rate that moves a player as far as the paper does, of a penalty every k updates."""
    return (k / (k + 1)) ** 0.5 if k > 1 else 1.0


def ailments(means: dict[str, float]) -> dict[str, bool]:
    """Return each known ailment of a game, and whether the mean losses show it.

    `advantage` is the share of its loss that D has rid itself of, `spread` the distance between samples in parts of that
    between data; of two Ds, or two Gs, each has its own behind a stroke: `advantage/source`.
    """
    of = lambda name: [value for key, value in means.items() if key.partition("/")[0] == name]  # noqa: E731
    return {
        WON: max(of("advantage"), default=0) > 0.99,
        COLLAPSED: min(of("spread"), default=1) < 0.2,
    }
