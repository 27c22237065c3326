"""A trained text encoder that stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.errors import UserError

MAKERS = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
KEPT = 10_000  # captions whose vectors are kept


class FrozenEncoder(nn.Module):
    """Captions as bytes (B, L) int64, 0 where there are none, -> vectors (B, T, width), and which say something, bool (B, T).

    Its weights are no part of a checkpoint: a run that is loaded takes them from where they came from. Each caption is encoded
    once; the last of them are kept.

    Args:
        name: of a model on the Hugging Face hub whose weights are safetensors, or a folder that holds one.

    Raises:
        UserError: transformers is not installed, or there is no such model.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                f"model.encoder={name} needs transformers: pip install 'genlab[text]'"
            ) from error
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            maker = getattr(transformers, MAKERS.get(config.model_type, "AutoModel"))
            model = maker.from_pretrained(name, use_safetensors=True)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.encoder={name}: there is no text encoder with safetensors weights: {why}"
            ) from error
        self.held = [
            model.requires_grad_(False).eval()
        ]  # in a list, which keeps it out of parameters and checkpoints
        self.width: int = model.config.hidden_size
        self.longest = min(
            self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512)
        )
        self.known: dict[str, Tensor] = {}

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        captions = [
            bytes(row[row > 0]).decode(errors="ignore")
            for row in text.cpu().to(torch.uint8).numpy()
        ]
        if new := list(dict.fromkeys(caption for caption in captions if caption not in self.known)):
            self.known |= zip(new, self.encoded(new, text.device), strict=True)
        vectors = [self.known[caption].to(text.device) for caption in captions]
        while len(self.known) > KEPT:
            self.known.pop(next(iter(self.known)))
        there = nn.utils.rnn.pad_sequence(
            [text.new_ones(len(v), dtype=torch.bool) for v in vectors], batch_first=True
        )
        return nn.utils.rnn.pad_sequence(vectors, batch_first=True), there

    def __deepcopy__(self, memo: dict) -> FrozenEncoder:
        return self  # nothing of it changes: a running mean of the weights needs no other

    @torch.no_grad()
    def encoded(self, captions: list[str], device: torch.device) -> list[Tensor]:
        """Return the vectors (T, width) of each caption."""
        tokens = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(device)
        mask = tokens["attention_mask"]
        (model,) = self.held
        vectors = model.to(device)(
            input_ids=tokens["input_ids"], attention_mask=mask
        ).last_hidden_state  # (B, T, width)
        return [row[there.bool()] for row, there in zip(vectors, mask, strict=True)]
