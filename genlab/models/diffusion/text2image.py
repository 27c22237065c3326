"""Images from text: a diffusion model whose U-Net attends to an encoded caption.

Cross-attention: Rombach et al. 2022, 2112.10752, section 3.3; a frozen encoder and guidance:
Saharia et al. 2022, 2205.11487.
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
from genlab.models.diffusion.pretrained_text_encoder import PretrainedTextEncoder
from genlab.nn.text_encoder import TextEncoder
from genlab.spec import Batch, DataSpec, Positive


class Text2Image(DDPM):
    """A DDPM of p(image | caption) with captions as bytes (B, L) int64, padded with 0.

    Args:
        backbone: a U-Net with attention on at least one level.
        text_encoder: a frozen pretrained encoder: the name of a CLIP, T5 or similar model on the
            Hugging Face hub, or its folder. None: a transformer that reads bytes and is trained
            with the model.
        text_width, text_layers, text_heads: sizes of that transformer.
        options: of `genlab.models.diffusion.ddpm.DDPM`.

    Raises:
        UserError: the data lacks captions, or the backbone does not support text.
    """

    text_conditional = True

    def __init__(
        self,
        spec: DataSpec,
        *,
        backbone: Callable[..., Any] | None = None,
        text_encoder: str | None = None,
        text_width: Positive = 128,
        text_layers: Positive = 3,
        text_heads: Positive = 4,
        **options: Any,
    ) -> None:
        if spec.source is None or spec.source.kind != "tokens":
            raise UserError(
                "text2image needs images with captions: dataset=captions, or "
                "dataset=captioned_folder dataset.path=…"
            )
        if options.get("conditional"):
            raise UserError(
                "text2image is conditioned on captions and not on classes; "
                "set model.conditional=false"
            )
        if text_width % text_heads:
            raise UserError(
                f"model.text_width={text_width} must be a multiple of model.text_heads={text_heads}"
            )
        backbone = backbone or unet
        function: Any = backbone.func if isinstance(backbone, partial) else backbone
        if function is not unet:
            raise UserError(
                f"backbone={function.__name__} does not support text; "
                "choose backbone=unet or unet_small"
            )
        encoder: TextEncoder | PretrainedTextEncoder
        if text_encoder:
            encoder = PretrainedTextEncoder(text_encoder)
        else:
            encoder = TextEncoder(
                spec.source.shape[0], width=text_width, num_layers=text_layers, num_heads=text_heads
            )
        super().__init__(spec, backbone=partial(backbone, context_dim=encoder.width), **options)
        self.network = TextConditionedNetwork(self.network, encoder)

    def batch_condition(self, batch: Batch) -> Tensor | None:
        return batch.cond

    def null_condition(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)  # an empty caption


class TextConditionedNetwork(nn.Module):
    """A denoising network with a text encoder in front of it.

    (x_t, t, captions (B, L) or None) -> (B, outputs, …).
    """

    def __init__(self, network: nn.Module, encoder: TextEncoder | PretrainedTextEncoder) -> None:
        super().__init__()
        self.network, self.encoder = network, encoder

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
        vectors, mask = self.encoder(y)
        prediction: Tensor = self.network(x, t, context=(vectors.to(x.dtype), mask))
        return prediction
