"""Image GPT: Chen et al. 2020, "Generative pretraining from pixels", https://proceedings.mlr.press/v119/chen20s.html."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.autoregressive.gpt import Decoder, drawn
from genlab.spec import Batch, Fraction, Positive, Spec


class GPTPixels(nn.Module):
    """A decoder-only transformer over pixels in raster order, each a token of its level; no convolution, no notion of 2-D.

    Colours are taken in turn, red, green and blue of a pixel before the next one, instead of from the paper's palette of
    512 colours, so that the probability is that of the data's own levels.

    Args:
        layers, heads, width: blocks, attention heads in each, and values of a token's vector.
        dropout: share of the values that are dropped in training.
        conditional: p(x|y), by a start token for each class.

    Raises:
        UserError: the data is no image of discrete levels, has no classes where they are asked for, or a width that the
            heads cannot share.
    """

    def __init__(
        self, spec: Spec, *, layers: Positive = 24, heads: Positive = 8, width: Positive = 512, dropout: Fraction = 0.0,
        conditional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check(spec, conditional)
        self.spec, self.conditional = spec, conditional
        self.decoder = Decoder(
            spec.levels, context=spec.dim, starts=spec.classes if conditional else 1, layers=layers, heads=heads, width=width,
            dropout=dropout, bias=True, tied=False,
        )  # fmt: skip

    # --- images as sequences ----------------------------------------------------------------------------------------

    def tokens(self, x: Tensor) -> Tensor:
        """Return the levels (B, H·W·C) int64 of images x (B, C, H, W), in raster order, a pixel's channels in turn."""
        low, high = self.spec.range
        levels = ((x - low) * ((self.spec.levels - 1) / (high - low))).round().long()
        return levels.permute(0, 2, 3, 1).flatten(1)

    def images(self, tokens: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of levels (B, H·W·C)."""
        (c, h, w), (low, high) = self.spec.shape, self.spec.range
        levels = tokens.view(-1, h, w, c).permute(0, 3, 1, 2).to(self.decoder.start.weight.dtype)
        return low + (high - low) * levels / (self.spec.levels - 1)

    def start(self, n: int, y: Tensor | None) -> Tensor:
        """Return the start tokens (n,): of the classes y; without them, of classes drawn evenly."""
        if y is not None and not self.conditional:
            raise UserError(
                "this gpt_pixels knows no classes, and classes were given; train it with model.conditional=true"
            )
        starts, device = self.decoder.start.num_embeddings, self.decoder.start.weight.device
        if y is not None:
            return y.to(device)
        return (
            torch.randint(starts, (n,), device=device)
            if self.conditional
            else torch.zeros(n, dtype=torch.long, device=device)
        )

    def parameter_groups(self) -> list[dict]:
        """Return the parameters with and without weight decay."""
        return self.decoder.parameter_groups()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x_t | x_1 … x_{t−1}) in nats a value (the paper's equation 1 over its length)."""
        start = self.start(len(batch), batch.y if self.conditional else None)
        return {"loss": -self.decoder.log_probs(self.tokens(batch.x), start).mean()}

    # --- abilities --------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) or log p(x|y) (B,) in nats; a conditional model's p(x) is the mean over evenly likely classes."""
        tokens = self.tokens(x)
        if self.conditional and y is None:
            classes = torch.arange(self.spec.classes, device=x.device)
            each = [self.decoder.log_probs(tokens, k.expand(len(x))).sum(1) for k in classes]
            return torch.stack(each).logsumexp(0) - math.log(self.spec.classes)
        return self.decoder.log_probs(tokens, self.start(len(x), y)).sum(1)

    def sample(self, n: int, y: Tensor | None = None, *, cache: bool = True) -> Tensor:
        """Draw n images (n, C, H, W), of the classes y (n,) if given, pixel by pixel."""
        start = self.start(n, y)
        nothing = torch.empty(n, 0, dtype=torch.long, device=start.device)
        return self.images(self.decoder.extend(nothing, self.spec.dim, start, drawn, cache=cache))

    def complete(self, x: Tensor, known: Tensor, y: Tensor | None = None) -> Tensor:
        """Return x (B, C, H, W) with the values where `known` (B, C, H, W) is False drawn in raster order.

        A value is drawn given those before it alone: exact where all that is known comes first, as an upper half does.
        """
        start = self.start(len(x), y)
        known = known.expand_as(x).permute(0, 2, 3, 1).flatten(1)
        forced = torch.where(known, self.tokens(x), -1)
        nothing = forced[:, :0]
        return self.images(self.decoder.extend(nothing, self.spec.dim, start, drawn, forced=forced))


def check(spec: Spec, conditional: bool) -> None:
    """Refuse what is no image of discrete levels, and classes where the data has none."""
    if spec.kind != "image":
        raise UserError(
            f"gpt_pixels takes images, and this is {spec.kind} data of shape {spec.shape}"
        )
    if not spec.discrete:
        raise UserError(
            "gpt_pixels gives probabilities of levels and this data is continuous; set dataset.dequantise=false"
        )
    if conditional and not spec.classes:
        raise UserError(
            "model.conditional=true needs classes, and this data has none; set model.conditional=false"
        )
