"""A GPT over characters or bytes: Radford et al. 2019 (GPT-2).

"Language models are unsupervised multitask learners".
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from genlab.abilities import Report, TrajectoryState
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.autoregressive.gpt import Decoder, sample_token, scale_and_filter_logits
from genlab.spec import Batch, Count, DataSpec, Fraction, NonNegative, Positive

Share = Annotated[float, Interval(gt=0, le=1)]


class GPTText(GenerativeModel):
    """A decoder-only transformer over the tokens of a text; its context is the data's window.

    Args:
        num_layers: number of blocks.
        num_heads: attention heads of each block.
        width: dimension of a token.
        dropout: share of the features that are dropped in training.
        bias: whether linear layers and norms have biases.
        rotary: encode positions by rotations of queries and keys (Su et al. 2021,
            https://arxiv.org/abs/2104.09864) instead of GPT-2's learned vectors.

    Raises:
        UserError: the data is not text, or the width is not a multiple of the heads.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_layers: Positive = 6,
        num_heads: Positive = 6,
        width: Positive = 384,
        dropout: Fraction = 0.0,
        bias: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if spec.kind != "tokens":
            raise UserError(
                f"gpt_text needs tokens, not {spec.kind} data; set dataset=text dataset.path=<file>"
            )
        self.spec = spec
        self.decoder = Decoder(
            spec.vocab,
            context_length=spec.dim,
            num_starts=1,
            num_layers=num_layers,
            num_heads=num_heads,
            width=width,
            dropout=dropout,
            bias=bias,
            tie_weights=True,
            rotary=rotary,
        )

    def start_tokens(self, n: int) -> Tensor:
        """Return the start tokens (n,), which mark where a window was cut from a text."""
        return torch.zeros(n, dtype=torch.long, device=self.decoder.start.weight.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters with and without weight decay."""
        return self.decoder.parameter_groups()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x_t | x_1 … x_{t−1}) in nats per token."""
        return {
            "loss": -self.decoder.token_log_probs(batch.x, self.start_tokens(len(batch))).mean()
        }

    # --- abilities --------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,) in nats, of sequences x (B, T) no longer than the context."""
        refuse_labels(y)
        return self.decoder.token_log_probs(x, self.start_tokens(len(x))).sum(1)

    def token_log_probs(self, x: Tensor) -> Tensor:
        """Return log p (B, T) in nats of each token of sequences x (B, T) of any length."""
        return self.decoder.sliding_token_log_probs(x, self.start_tokens(len(x)))

    def extend(
        self,
        x: Tensor,
        n: int,
        *,
        temperature: NonNegative = 1.0,
        top_k: Positive | None = None,
        top_p: Share | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Return the sequences x (B, T) with n more tokens (B, T + n).

        Args:
            temperature, top_k, top_p: see `scale_and_filter_logits`.
            cache: see `Decoder.extend`.
        """

        def sample_next(logits: Tensor) -> Tensor:
            return sample_token(
                scale_and_filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            )

        return self.decoder.extend(x, n, self.start_tokens(len(x)), sample_next, cache=cache)

    def sample(
        self, n: Count, y: Tensor | None = None, *, cache: bool = True, **sampler: Any
    ) -> Tensor:
        """Draw n windows (n, T) of text.

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
        """Draw n windows as `sample` does, and report them before each token is drawn."""
        refuse_labels(y)
        empty = torch.empty(n, 0, dtype=torch.long, device=self.decoder.start.weight.device)

        def report_draw(number: int, tokens: Tensor, logits: Tensor) -> None:
            if report is not None:
                known = (torch.arange(tokens.shape[1]) < number).expand_as(tokens)
                name = f"{number:,} tokens"
                next_probs = logits.softmax(-1)
                report(TrajectoryState(number, name, tokens, known=known, next_probs=next_probs))

        tokens = self.decoder.extend(
            empty,
            self.spec.dim,
            self.start_tokens(n),
            sample_token,
            cache=cache,
            report=None if report is None else report_draw,
        )
        if report is not None:
            report(TrajectoryState(self.spec.dim, f"{self.spec.dim:,} tokens", tokens))
        return tokens


def refuse_labels(y: Tensor | None) -> None:
    """Raise an error if labels are given, because the model is unconditional."""
    if y is not None:
        raise UserError("gpt_text does not support labels, but labels were given")
