"""Image GPT: Chen et al. 2020, "Generative pretraining from pixels".

https://proceedings.mlr.press/v119/chen20s.html.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import Report, TrajectoryState
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.autoregressive.gpt import Decoder, sample_token
from genlab.spec import Batch, DataSpec, Fraction, Positive


class GPTPixels(GenerativeModel):
    """A decoder-only transformer over pixels in raster order, each a token of its level.

    It does not use convolutions or the 2-D structure. The colors of a pixel come in turn, red,
    green and blue, instead of the paper's palette of 512 colors, so that the probability is that of
    the data's levels.

    Args:
        num_layers: number of blocks.
        num_heads: attention heads of each block.
        width: dimension of a token.
        dropout: share of the features that are dropped in training.
        conditional: learn p(x|y) with one start token per class.

    Raises:
        UserError: the data is not images with discrete levels; it lacks labels although the model
            is conditional, or the width is not a multiple of the heads.
    """

    inpaints_in_steps = False

    @classmethod
    def gray_level_options(cls, spec: DataSpec, options: dict[str, Any]) -> dict[str, Any]:
        return {"preprocess.binarize": "none"}

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_layers: Positive = 24,
        num_heads: Positive = 8,
        width: Positive = 512,
        dropout: Fraction = 0.0,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        validate_spec(spec, conditional)
        self.spec, self.conditional = spec, conditional
        self.decoder = Decoder(
            spec.levels,
            context_length=spec.dim,
            num_starts=spec.num_classes if conditional else 1,
            num_layers=num_layers,
            num_heads=num_heads,
            width=width,
            dropout=dropout,
            bias=True,
            tie_weights=False,
        )

    # --- images as sequences ----------------------------------------------------------------------

    def images_to_tokens(self, x: Tensor) -> Tensor:
        """Return the levels (B, H·W·C) int64 of images x (B, C, H, W) in raster order."""
        low, high = self.spec.range
        levels = ((x - low) * ((self.spec.levels - 1) / (high - low))).round().long()
        return levels.permute(0, 2, 3, 1).flatten(1)

    def tokens_to_images(self, tokens: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of levels (B, H·W·C)."""
        (c, h, w), (low, high) = self.spec.shape, self.spec.range
        levels = tokens.view(-1, h, w, c).permute(0, 3, 1, 2).to(self.decoder.start.weight.dtype)
        return low + (high - low) * levels / (self.spec.levels - 1)

    def start_tokens(self, n: int, y: Tensor | None) -> Tensor:
        """Return the start tokens (n,) of the classes y if given, otherwise of random classes."""
        if y is not None and not self.conditional:
            raise UserError(
                "this gpt_pixels was trained without labels, but labels were given; "
                "train it with model.conditional=true"
            )
        num_starts, device = self.decoder.start.num_embeddings, self.decoder.start.weight.device
        if y is not None:
            return y.to(device)
        if self.conditional:
            return torch.randint(num_starts, (n,), device=device)
        return torch.zeros(n, dtype=torch.long, device=device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters with and without weight decay."""
        return self.decoder.parameter_groups()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x_t | x_1 … x_{t−1}) in nats per value.

        This is the paper's equation 1 divided by the length.
        """
        start = self.start_tokens(len(batch), batch.y if self.conditional else None)
        return {"loss": -self.decoder.token_log_probs(self.images_to_tokens(batch.x), start).mean()}

    # --- abilities --------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) or log p(x|y) (B,) in nats.

        Without y a conditional model averages over equally likely classes.
        """
        tokens = self.images_to_tokens(x)
        if self.conditional and y is None:
            classes = torch.arange(self.spec.num_classes, device=x.device)
            by_class = [
                self.decoder.token_log_probs(tokens, k.expand(len(x))).sum(1) for k in classes
            ]
            return torch.stack(by_class).logsumexp(0) - math.log(self.spec.num_classes)
        return self.decoder.token_log_probs(tokens, self.start_tokens(len(x), y)).sum(1)

    def sample(
        self, n: int, y: Tensor | None = None, *, cache: bool = True, **sampler: Any
    ) -> Tensor:
        """Draw n images (n, C, H, W), of the classes y (n,) if given, pixel by pixel.

        Args:
            cache: see `Decoder.extend`.
        """
        return self.trajectory(None, n, y, cache=cache)

    def trajectory(
        self,
        report: Report | None,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        cache: bool = True,
        **sampler: Any,
    ) -> Tensor:
        """Draw n images as `sample` does, and report them before each value is drawn."""
        first = self.start_tokens(n, y)
        empty = torch.empty(n, 0, dtype=torch.long, device=first.device)

        def report_draw(number: int, tokens: Tensor, logits: Tensor) -> None:
            if report is not None:
                drawn = (torch.arange(self.spec.dim) < number).expand(n, -1)
                channels, height, width = self.spec.shape
                known = drawn.view(n, height, width, channels).permute(0, 3, 1, 2)
                unit = "pixels" if channels == 1 else "values"
                report(
                    TrajectoryState(
                        number,
                        f"{number:,} {unit}",
                        self.tokens_to_images(tokens),
                        known=known,
                        next_probs=logits.softmax(-1),
                    )
                )

        tokens = self.decoder.extend(
            empty,
            self.spec.dim,
            first,
            sample_token,
            cache=cache,
            report=None if report is None else report_draw,
        )
        images = self.tokens_to_images(tokens)
        if report is not None:
            report(TrajectoryState(self.spec.dim, "all pixels", images))
        return images

    def inpaint(
        self, x: Tensor, known: Tensor, y: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor:
        """Return x (B, C, H, W) with the values where `known` is False drawn in raster order.

        A value is drawn given the values before it. This is exact if all known values come first,
        as in an upper half.
        """
        start = self.start_tokens(len(x), y)
        known = known.expand_as(x).permute(0, 2, 3, 1).flatten(1)
        forced = torch.where(known, self.images_to_tokens(x), -1)
        empty = forced[:, :0]
        tokens = self.decoder.extend(empty, self.spec.dim, start, sample_token, forced=forced)
        return self.tokens_to_images(tokens)


def validate_spec(spec: DataSpec, conditional: bool) -> None:
    """Check that the data is images with discrete levels, and with labels if conditional."""
    if spec.kind != "image":
        raise UserError(f"gpt_pixels needs images, not {spec.kind} data of shape {spec.shape}")
    if not spec.is_discrete:
        raise UserError(
            "gpt_pixels needs discrete levels, but this data is continuous; "
            "set dataset.dequantize=false"
        )
    if conditional and not spec.num_classes:
        raise UserError(
            "model.conditional=true requires labels, but this dataset has none; "
            "set model.conditional=false"
        )
