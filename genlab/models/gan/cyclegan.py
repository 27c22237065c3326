"""CycleGAN: Zhu et al. 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks.

https://arxiv.org/abs/1703.10593
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import ToRange, fixed, spread_of
from genlab.models.gan.dcgan import initialise
from genlab.models.gan.losses import LOSSES, Name
from genlab.models.gan.regularizers import Restrained
from genlab.models.gan.translation import same_size
from genlab.nn.patchgan import PatchGAN, halvings
from genlab.nn.residual_generator import ResidualGenerator
from genlab.spec import Batch, Count, NonNegative, Positive, Spec


class CycleGAN(Restrained):
    """G from sources to targets, F from targets to sources, a discriminator for each set, and F(G(x)) ≈ x, G(F(y)) ≈ y.

    A batch's source and target need not belong together.

    Args:
        width: maps of the first layer of all four networks.
        blocks: residual blocks of G and F; None: 9 from 256 pixels a side, 6 below (appendix 7.2).
        cycle: λ of the cycle's L1 distance.
        identity: λ of ‖G(y) − y‖₁ + ‖F(x) − x‖₁, which keeps colours; 0: none.
        history: images that each discriminator's history holds (Shrivastava et al. 2017).
        restraints: what holds both discriminators smooth, see `Restrained`.

    Raises:
        UserError: the data has no sources, or they are no images of the targets' size; or `identity` with sources of other
            channels.
    """

    multiple = ResidualGenerator.multiple

    def __init__(
        self,
        spec: Spec,
        *,
        width: Positive = 64,
        blocks: Positive | None = None,
        cycle: NonNegative = 10.0,
        identity: NonNegative = 5.0,
        adversarial: NonNegative = 2.0,
        history: Count = 50,
        loss: Name = "least_squares",
        **restraints,
    ) -> None:
        same_size(spec, type(self).__name__)
        source, target = spec.source.shape, spec.shape
        if identity and source[0] != target[0]:
            raise UserError(f"CycleGAN's identity loss needs sources and targets of the same channels, and these have "
                            f"{source[0]} and {target[0]}; set model.identity=0")  # fmt: skip
        super().__init__(**restraints)
        self.spec, self.objective = spec, LOSSES[loss]
        self.cycle, self.identity, self.adversarial = cycle, identity, adversarial
        blocks = blocks or (9 if min(target[1:]) >= 256 else 6)

        def generator(from_: Spec, to: Spec) -> nn.Module:
            net = ResidualGenerator(from_.shape[0], to.shape[0], width=width, blocks=blocks)
            return nn.Sequential(net, ToRange(*to.range))

        patches = {"width": width, "halvings": halvings(target[1:])}
        self.generator = nn.ModuleDict(
            {"G": generator(spec.source, spec), "F": generator(spec, spec.source)}
        )
        self.discriminator = nn.ModuleDict(
            {"source": PatchGAN(source[0], **patches), "target": PatchGAN(target[0], **patches)}
        )
        self.history = nn.ModuleDict(
            {"source": History(history, source), "target": History(history, target)}
        )
        self.apply(initialise)
        self.restrained(self.discriminator)

    # --- the game -------------------------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        """Return both discriminators' losses, on G's and F's images of now and before.

        Args:
            penalty: the weight of the gradient penalties: 0 leaves them out.
        """
        with torch.no_grad(), fixed(self.generator):
            made = {
                "target": self.generator["G"](batch.cond),
                "source": self.generator["F"](batch.x),
            }
        losses, logs = [], {}
        for name, true in (("target", batch.x), ("source", batch.cond)):
            D, x, shown = (
                self.discriminator[name],
                self.sloped(true, penalty),
                self.history[name](made[name]),
            )
            real, fake = D(x), D(shown)  # (B, 1, h, w)
            loss = self.objective.discriminator(real, fake)
            paid, found = self.penalties(D, real, x, x, shown, penalty)
            losses.append(sum(paid, loss))
            judged = self.objective.judged(real, fake, loss) | found
            logs |= {f"{key}/{name}": value for key, value in judged.items()}
        return {"loss": sum(losses), **logs}

    # eq. 3: L(G, F, D_X, D_Y) = L_GAN(G, D_Y) + L_GAN(F, D_X) + λ L_cyc(G, F)
    def generator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        """Return what G and F minimise together; the discriminators are left untouched."""
        fakes = {"target": self.generator["G"](batch.cond), "source": self.generator["F"](batch.x)}
        adversarial = batch.x.new_zeros(())
        for name, true in (("target", batch.x), ("source", batch.cond)):
            D = self.discriminator[name]
            with fixed(D):
                with torch.no_grad():
                    real = D(true) if self.objective.paired else None
                adversarial = adversarial + self.adversarial * self.objective.generator(
                    D(fakes[name]), real
                )
        errors = self.errors(batch, fakes["target"], fakes["source"])
        spread = spread_of(fakes["target"], batch.x, "/target") | spread_of(
            fakes["source"], batch.cond, "/source"
        )
        return {
            "loss": sum(errors.values(), adversarial),
            "adversarial": adversarial,
            **errors,
            **spread,
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return what G and F minimise without an adversary."""
        errors = self.errors(batch, self.generator["G"](batch.cond), self.generator["F"](batch.x))
        return {"loss": sum(errors.values()), **errors}

    def errors(self, batch: Batch, made_x: Tensor, made_cond: Tensor) -> dict[str, Tensor]:
        """Return the weighted cycle loss of G's and F's images, and the identity loss, if there is one."""
        G, F = self.generator["G"], self.generator["F"]
        # eq. 2: L_cyc(G, F) = E‖F(G(x)) − x‖₁ + E‖G(F(y)) − y‖₁
        errors = {
            "cycle": self.cycle
            * (distance(F(made_x), batch.cond) + distance(G(made_cond), batch.x))
        }
        if self.identity:  # section 5.2
            errors["identity"] = self.identity * (
                distance(G(batch.x), batch.x) + distance(F(batch.cond), batch.cond)
            )
        return errors

    def wider(self) -> list[str]:
        """Return the override by which the cycle counts for more: no way leads back from images that are all alike."""
        return [f"++model.cycle={2 * self.cycle or 10:g}"]

    # --- abilities ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, cond: Tensor, *, backward: bool = False) -> Tensor:
        """Return G of each source (B, …), or backward F of each target."""
        return self.generator["F" if backward else "G"](cond)


class History(nn.Module):
    """The last images that a generator made, of which a discriminator sees half: Shrivastava et al. 2017, section 2.3.

    https://arxiv.org/abs/1612.07828. As long as it is not full an image is kept and shown. Then each is shown itself, or
    with probability ½ takes the place of one kept, drawn evenly, which is shown instead.
    """

    apart = ("images", "count")  # of each shard of a joint batch

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))  # (size, C, H, W)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return images for the discriminator (B, C, H, W), in place of those made now."""
        size = len(self.images)
        if not size:
            return x
        shown = []
        for new in x.split(1):  # tensors throughout: no wait for the device
            full = self.count >= size
            slot = torch.where(full, torch.randint(size, (), device=x.device), self.count)[None]
            swap = full & (torch.rand((), device=x.device) < 0.5)
            old = self.images.index_select(0, slot)
            self.images.index_copy_(0, slot, torch.where(full & ~swap, old, new.to(old)))
            self.count.add_(~full)
            shown.append(torch.where(swap, old.to(new), new))
        return torch.cat(shown)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()
