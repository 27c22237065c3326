"""Images from a text: a diffusion model whose U-Net attends to what an encoder makes of a caption.

Cross-attention: Rombach et al. 2022, 2112.10752, section 3.3; a frozen encoder and guidance: Saharia et al. 2022, 2205.11487.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.networks import unet
from genlab.models.diffusion.pretrained_text_encoder import FrozenEncoder
from genlab.nn.text_encoder import TextEncoder
from genlab.spec import Batch, Positive, Spec


class Text2Image(DDPM):
    """A DDPM of p(image | caption), whose conditions are captions as bytes (B, L) int64, 0 where there are none.

    Args:
        backbone: a U-Net with attention at one level at least.
        encoder: a trained encoder that stays as it is: the name of a CLIP, T5 or like model on the Hugging Face hub, or its
            folder; None: a transformer that reads bytes and is trained with the model.
        text_width, text_layers, text_heads: of that transformer.
        options: of `genlab.models.diffusion.ddpm.DDPM`.

    Raises:
        UserError: the data has no captions, or the backbone reads no text.
    """

    prompted = True

    def __init__(
        self,
        spec: Spec,
        *,
        backbone: Callable[..., Any] | None = None,
        encoder: str | None = None,
        text_width: Positive = 128,
        text_layers: Positive = 3,
        text_heads: Positive = 4,
        **options: Any,
    ) -> None:
        if spec.source is None or spec.source.kind != "tokens":
            raise UserError(
                "text2image needs images with captions: dataset=captions, or dataset=captioned_folder dataset.path=…"
            )
        if options.get("conditional"):
            raise UserError(
                "text2image is told captions, and no classes: set model.conditional=false"
            )
        if text_width % text_heads:
            raise UserError(
                f"model.text_width={text_width} must be a multiple of model.text_heads={text_heads}"
            )
        backbone = backbone or unet
        maker = backbone.func if isinstance(backbone, partial) else backbone
        if maker is not unet:
            raise UserError(
                f"backbone={maker.__name__} reads no text; choose backbone=unet or unet_small"
            )
        own = {"width": text_width, "layers": text_layers, "heads": text_heads}
        reads = FrozenEncoder(encoder) if encoder else TextEncoder(spec.source.shape[0], **own)
        super().__init__(spec, backbone=partial(backbone, context=reads.width), **options)
        self.network = Reader(self.network, reads)

    def told(self, batch: Batch) -> Tensor | None:
        return batch.cond

    def untold(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)  # a caption of no bytes


class Reader(nn.Module):
    """A text encoder before a network: (x_t, t, captions (B, L) or None) -> (B, outputs, …)."""

    def __init__(self, network: nn.Module, encoder: TextEncoder | FrozenEncoder) -> None:
        super().__init__()
        self.network, self.encoder = network, encoder

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
        vectors, there = self.encoder(y)
        return self.network(x, t, context=(vectors.to(x.dtype), there))
