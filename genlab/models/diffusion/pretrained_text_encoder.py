"""A frozen text encoder from the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError

# The class of transformers that holds only the text encoder, by model type.
ENCODER_CLASSES = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
MAX_CACHED_CAPTIONS = 10_000


class PretrainedTextEncoder(nn.Module):
    """A frozen text encoder of captions.

    Captions as bytes (B, L) int64, padded with 0 -> vectors (B, T, width), and the mask of the
    vectors that are not padding, bool (B, T).

    Its weights are not part of a checkpoint: a loaded run takes them from their original source.
    Each caption is encoded once; the vectors of the latest captions are cached.

    Args:
        name: name of a model on the Hugging Face hub with safetensors weights, or the folder of
            one.

    Raises:
        UserError: transformers is not installed, or the model is missing.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                f"model.text_encoder={name} needs transformers: pip install 'genlab[text]'"
            ) from error
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            encoder_class = getattr(
                transformers, ENCODER_CLASSES.get(config.model_type, "AutoModel")
            )
            model = encoder_class.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False
            )
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.text_encoder={name}: found no text encoder with safetensors weights: "
                f"{reason}"
            ) from error
        # a list keeps the model out of this module's parameters and checkpoints
        self._model = [model.requires_grad_(False).eval()]
        self.width: int = model.config.hidden_size
        self.max_tokens = min(
            self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512)
        )
        self.cache: dict[str, Tensor] = {}

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        captions = [
            bytes(row[row > 0]).decode(errors="ignore")
            for row in text.cpu().to(torch.uint8).numpy()
        ]
        new = list(dict.fromkeys(caption for caption in captions if caption not in self.cache))
        if new:
            self.cache |= zip(new, self.encode_captions(new, text.device), strict=True)
        vectors = [self.cache[caption].to(text.device) for caption in captions]
        while len(self.cache) > MAX_CACHED_CAPTIONS:
            self.cache.pop(next(iter(self.cache)))
        masks = [text.new_ones(len(v), dtype=torch.bool) for v in vectors]
        return (
            nn.utils.rnn.pad_sequence(vectors, batch_first=True),
            nn.utils.rnn.pad_sequence(masks, batch_first=True),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> PretrainedTextEncoder:
        return self  # it never changes, so the EMA of the model shares it

    @torch.no_grad()
    def encode_captions(self, captions: list[str], device: torch.device) -> list[Tensor]:
        """Return the vectors (T, width) of each caption."""
        tokens = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(device)
        mask = tokens["attention_mask"]
        model = self._model[0].to(device)
        output = model(input_ids=tokens["input_ids"], attention_mask=mask)
        vectors = output.last_hidden_state  # (B, T, width)
        return [row[keep.bool()] for row, keep in zip(vectors, mask, strict=True)]
