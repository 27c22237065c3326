"""The update rule of a two-player game: Algorithm 1 of Goodfellow et al. 2014."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from genlab.models.gan.game import Game
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
        penalty_every: Positive = 1  # steps between the gradient penalties, each then weighing as much more (Karras et al. 2020)
        discriminator_rate: PositiveFloat = 1.0  # D's learning rate in parts of G's (two time scales; Heusel et al. 2017)

    def configure(self) -> None:
        self.optimizers["discriminator"] = self.optimizer(self.model.discriminator.parameters())
        self.optimizers["generator"] = self.optimizer(self.model.generator.parameters())
        for group in self.optimizers["discriminator"].param_groups:
            group["lr"] = group["lr"] * self.options.discriminator_rate
        if augment := getattr(self.model, "augment", None):
            augment.shards = self.ranks.size * self.options.accumulate
        self.since: dict[str, int] = {}  # ailment -> logged means in a row that showed it

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        penalty = self.options.penalty_every if self.at % self.options.penalty_every == 0 else 0
        # (1) update D, k times: maximise log D(x) + log(1 − D(G(z)))
        for _ in range(self.options.k):
            shards = self.pull(batches)
            d = self.descend("discriminator", partial(self.model.discriminator_loss, penalty=penalty), shards)
            if constrain := getattr(self.model, "constrain", None):
                constrain()
        # (2) update G: make D believe its samples
        g = self.descend("generator", partial(self.model.generator_loss, penalty=penalty), shards)
        return {"loss/discriminator": d.pop("loss"), "loss/generator": g.pop("loss"), **d, **g}

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return the ailments that have lasted for as many logged means as make one."""
        found = []
        for ailment, ill in ailments(means).items():
            self.since[ailment] = self.since.get(ailment, 0) + 1 if ill else 0
            if self.since[ailment] == WINDOWS:
                *others, last = self.mends(ailment)
                found.append(f"{ailment}; try {' or '.join([', '.join(others), last] if others else [last])}")
        return found

    def mends(self, ailment: str) -> list[str]:
        """Return what to try against an ailment: overrides that this model takes, none weaker than what it has."""
        slower = f"++trainer.discriminator_rate={self.options.discriminator_rate / 2:g}"
        if not isinstance(self.model, Game):  # a translation, whose D takes no regulariser
            return [slower]
        firmer = self.model.firmer()
        if ailment == COLLAPSED:
            return [*firmer, *self.model.wider(), "another model.loss"]
        return [*(firmer or self.model.augmented()), slower]


def ailments(means: dict[str, float]) -> dict[str, bool]:
    """Return each known ailment of a game, and whether the mean losses show it.

    `advantage` is the share of its loss that D, or one of two, has rid itself of, `spread` the distance between samples in
    parts of that between data.
    """
    advantage = max((value for key, value in means.items() if key.partition("/")[0] == "advantage"), default=0)
    return {
        WON: advantage > 0.99,
        COLLAPSED: means.get("spread", 1) < 0.2,
    }
