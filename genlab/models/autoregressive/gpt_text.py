"""A character (or byte) GPT: Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.autoregressive.gpt import Decoder, drawn, sharpened
from genlab.spec import Batch, Count, Fraction, NonNegative, Positive, Spec

Share = Annotated[float, Interval(gt=0, le=1)]


class GPTText(nn.Module):
    """A decoder-only transformer over the tokens of a text; its context is the data's window.

    Args:
        layers, heads, width: blocks, attention heads in each, and values of a token's vector.
        dropout: share of the values that are dropped in training.
        bias: whether linear layers and norms have biases.
        rotary: places by rotations of queries and keys (Su et al. 2021, https://arxiv.org/abs/2104.09864) instead of by
            GPT-2's learned vectors.

    Raises:
        UserError: the data is no text, or a width that the heads cannot share.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        layers: Positive = 6,
        heads: Positive = 6,
        width: Positive = 384,
        dropout: Fraction = 0.0,
        bias: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if spec.kind != "tokens":
            raise UserError(
                f"gpt_text takes tokens, and this is {spec.kind} data; set dataset=text dataset.path=<file>"
            )
        self.spec = spec
        self.decoder = Decoder(
            spec.vocab, context=spec.dim, starts=1, layers=layers, heads=heads, width=width, dropout=dropout, bias=bias,
            tied=True, rotary=rotary,
        )  # fmt: skip

    def start(self, n: int) -> Tensor:
        """Return the start token (n,), which stands where a window was cut from a text."""
        return torch.zeros(n, dtype=torch.long, device=self.decoder.start.weight.device)

    def parameter_groups(self) -> list[dict]:
        """Return the parameters with and without weight decay."""
        return self.decoder.parameter_groups()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x_t | x_1 … x_{t−1}) in nats a token."""
        return {"loss": -self.decoder.log_probs(batch.x, self.start(len(batch))).mean()}

    # --- abilities --------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,) in nats, of sequences x (B, T) of at most the context's length."""
        refuse_classes(y)
        return self.decoder.log_probs(x, self.start(len(x))).sum(1)

    def extend(
        self, x: Tensor, n: int, *, temperature: NonNegative = 1.0, top_k: Positive | None = None, top_p: Share | None = None,
        cache: bool = True,
    ) -> Tensor:  # fmt: skip
        """Return the sequences x (B, T) with n more tokens (B, T + n); see `sharpened` and `Decoder.extend`."""
        pick = lambda logits: drawn(
            sharpened(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        )  # noqa: E731
        return self.decoder.extend(x, n, self.start(len(x)), pick, cache=cache)

    def sample(self, n: Count, y: Tensor | None = None, *, cache: bool = True) -> Tensor:
        """Draw n windows (n, T) of text."""
        refuse_classes(y)
        nothing = torch.empty(n, 0, dtype=torch.long, device=self.decoder.start.weight.device)
        return self.extend(nothing, self.spec.dim, cache=cache)


def refuse_classes(y: Tensor | None) -> None:
    """Refuse labels: this model has no p(x|y)."""
    if y is not None:
        raise UserError("gpt_text knows no classes, and classes were given")
