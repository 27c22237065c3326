"""The decoder of the text and pixel models: p(x) = Π_t p(x_t | start, x_1 … x_{t−1})."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.console import track
from genlab.errors import UserError
from genlab.nn.transformer import KVCache, Transformer

WINDOWS_PER_BATCH = 64  # windows of a long text that are scored at a time
TokenSampler = Callable[[Tensor], Tensor]  # logits (B, vocab) -> the next tokens (B,)
# receives the number of drawn tokens, the tokens (B, T + n), and the logits (B, vocab) of the next
DrawReport = Callable[[int, Tensor, Tensor], None]


class Decoder(nn.Module):
    """A transformer over a start token and earlier tokens, with the logits of each next token.

    The first token is predicted from the start token, so that the probability is that of the whole
    sequence.

    Args:
        vocab_size: number of different tokens.
        context_length: positions of the transformer, including the start token's.
        num_starts: number of start tokens: one for each class, or one.
        rotary: encode positions by rotations of queries and keys instead of learned vectors (Su et
            al. 2021).
        tie_weights: use the weights of the token embedding for the logits, too (Press & Wolf 2017,
            https://arxiv.org/abs/1608.05859).
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        context_length: int,
        num_starts: int,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: float,
        bias: bool,
        tie_weights: bool,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(
                f"model.width={width} must be a multiple of model.num_heads={num_heads}"
            )
        if rotary and width // num_heads % 2:
            raise UserError(
                "model.rotary=true rotates pairs, but model.width / model.num_heads = "
                f"{width // num_heads} is odd"
            )
        self.vocab_size, self.context_length = vocab_size, context_length
        self.start, self.tokens = nn.Embedding(num_starts, width), nn.Embedding(vocab_size, width)
        self.transformer = Transformer(
            width,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=context_length,
            dropout=dropout,
            bias=bias,
            rotary=rotary,
        )
        self.scores = None if tie_weights else nn.Linear(width, vocab_size, bias=False)
        for embedding in (self.start, self.tokens):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.scores is not None:
            nn.init.zeros_(self.scores.weight)  # all tokens start equally likely

    def logits(self, h: Tensor) -> Tensor:
        """Return the logits (…, vocab) of the next token from the transformer's h (…, width)."""
        return F.linear(h, (self.tokens if self.scores is None else self.scores).weight)

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        """Return the logits (B, T, vocab) of tokens x (B, T) after the start tokens (B,)."""
        before = torch.cat([self.start(start)[:, None], self.tokens(x[:, :-1])], 1)  # (B, T, width)
        return self.logits(self.transformer(before))

    def token_log_probs(self, x: Tensor, start: Tensor) -> Tensor:
        """Return log p (B, T), in nats, of each token of x (B, T) given the tokens before it."""
        # only the network may run in a lower precision
        logits = self(x, start).flatten(0, 1).to(self.tokens.weight.dtype)
        return -F.cross_entropy(logits, x.flatten(), reduction="none").view_as(x)

    @torch.no_grad()
    def sliding_token_log_probs(self, x: Tensor, start: Tensor) -> Tensor:
        """Return log p (B, T) of each token of sequences x (B, T) of any length.

        Beyond the context the window slides as in `extend`, so that a long sequence is scored under
        the distribution that it would be drawn from.
        """
        C, half = self.context_length, max(1, self.context_length // 2)
        parts = [self.token_log_probs(x[:, :C], start)]
        new = C - half + 1  # tokens that a later window predicts; half − 1 before them are context
        rest, used = x[:, new:], 0
        if rest.shape[1] >= C:
            windows = rest.unfold(1, C, new)  # (B, K, C)
            used = windows.shape[1] * new
            for some in track(windows.split(WINDOWS_PER_BATCH, 1), "scoring", unit="batches"):
                B, k = some.shape[:2]
                scored = self.token_log_probs(some.flatten(0, 1), start.repeat_interleave(k))
                parts.append(scored[:, half - 1 :].reshape(B, k * new))
        if rest.shape[1] - used >= half:
            parts.append(self.token_log_probs(rest[:, used:], start)[:, half - 1 :])
        return torch.cat(parts, 1)

    @torch.no_grad()
    def extend(
        self,
        x: Tensor,
        n: int,
        start: Tensor,
        sample_next: TokenSampler,
        *,
        forced: Tensor | None = None,
        cache: bool = True,
        report: DrawReport | None = None,
    ) -> Tensor:
        """Return x (B, T) with n more tokens (B, T + n), each drawn given the tokens before it.

        Beyond the context the window slides by halves. When it is full, the start token and the
        newest half of a context replace it. So each token depends on at least half a context, and a
        new token costs the work of one position.

        Args:
            sample_next: draws the next tokens (B,) from logits (B, vocab).
            forced: (B, T + n), replaces drawn tokens where it is not negative.
            cache: keep keys and values; False recomputes the whole window for each token, with the
                same result.
            report: is called before each token is drawn.
        """
        T, half = x.shape[1], max(1, self.context_length // 2)
        out = torch.cat([x, x.new_zeros(len(x), n)], 1)
        # the window has the start token in the position before token `first`
        first = max(0, T + 1 - self.context_length)
        kv_cache = KVCache(self.context_length)
        for t in track(range(T, T + n), "sampling", unit="tokens"):
            if t - first + 1 > self.context_length:
                first, kv_cache = t - half + 1, KVCache(self.context_length)
            # the end of the tokens in the cache, which also has the start token
            cached_end = first + kv_cache.length - 1
            new = self.tokens(out[:, max(first, cached_end) : t])
            if not kv_cache.length:
                new = torch.cat([self.start(start)[:, None], new], 1)
            h = self.transformer(new, kv_cache if cache else None)[:, -1]  # (B, width)
            logits = self.logits(h)
            if report is not None:
                report(t - T, out, logits)
            token = sample_next(logits)
            if forced is not None:
                token = torch.where(forced[:, t] < 0, token, forced[:, t])
            out[:, t] = token
        return out

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return matrices, with weight decay, and vectors (scales and biases), without it."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}]
        if vectors:
            groups.append({"params": vectors, "weight_decay": 0.0})
        return groups


def scale_and_filter_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return logits (B, V) scaled by the temperature, with −∞ for excluded tokens.

    Args:
        temperature: p becomes p^(1/temperature), normalized; 0 keeps only the most probable token.
        top_k: keep only the k most probable tokens (Fan, Lewis & Dauphin 2018,
            https://arxiv.org/abs/1805.04833).
        top_p: keep only the fewest tokens whose probabilities sum to at least p (Holtzman et al.
            2020, https://arxiv.org/abs/1904.09751, equation 3), after temperature and top_k.
    """
    if temperature == 0:
        top_k, temperature = 1, 1.0
    if top_k is None and top_p is None:
        return logits / temperature
    logits, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        logits[:, top_k:] = -torch.inf
    if top_p is not None:
        p = logits.softmax(-1)
        # excluded if the tokens before it already suffice
        logits = logits.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, logits)


def sample_token(logits: Tensor) -> Tensor:
    """Draw a token (B,) from each row of logits (B, V)."""
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]
