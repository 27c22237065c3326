"""The decoder that the text and the pixel models share: p(x) = Π p(x_t | start, x_1 … x_{t−1}), a token at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.nn.transformer import Cache, Transformer

Pick = Callable[[Tensor], Tensor]  # logits (B, vocab) -> the next tokens (B,)


class Decoder(nn.Module):
    """A transformer over a start token and the tokens so far, and the logits of the token after each of them.

    The first token is predicted from the start token alone, so that the probability is that of the whole sequence.

    Args:
        vocab: how many tokens there are.
        context: places of the transformer, the start token's counted.
        starts: start tokens: one for each class, or one.
        rotary: places by rotations of queries and keys instead of learned vectors (Su et al. 2021).
        tied: the weights that read a token also score it (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).
    """

    def __init__(
        self,
        vocab: int,
        *,
        context: int,
        starts: int,
        layers: int,
        heads: int,
        width: int,
        dropout: float,
        bias: bool,
        tied: bool,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                f"model.width={width} cannot be cut into model.heads={heads} equal parts"
            )
        if rotary and width // heads % 2:
            raise UserError(
                f"model.rotary=true turns pairs, and model.width / model.heads = {width // heads} is odd"
            )
        self.vocab, self.context = vocab, context
        self.start, self.tokens = nn.Embedding(starts, width), nn.Embedding(vocab, width)
        self.transformer = Transformer(
            width,
            layers=layers,
            heads=heads,
            places=context,
            dropout=dropout,
            bias=bias,
            rotary=rotary,
        )
        self.scores = None if tied else nn.Linear(width, vocab, bias=False)
        for embedding in (self.start, self.tokens):
            nn.init.normal_(embedding.weight, std=0.02)
        if not tied:
            nn.init.zeros_(self.scores.weight)  # all tokens alike at first

    def logits(self, h: Tensor) -> Tensor:
        """Return the scores (…, vocab) of the next token from the transformer's h (…, width)."""
        return F.linear(h, (self.tokens if self.scores is None else self.scores).weight)

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        """Return logits (B, T, vocab) of the tokens x (B, T), each from those before it and the start (B,)."""
        before = torch.cat([self.start(start)[:, None], self.tokens(x[:, :-1])], 1)  # (B, T, width)
        return self.logits(self.transformer(before))

    def log_probs(self, x: Tensor, start: Tensor) -> Tensor:
        """Return log p of each token of x (B, T) given those before it: (B, T), in nats."""
        return -F.cross_entropy(
            self(x, start).flatten(0, 1), x.flatten(), reduction="none"
        ).view_as(x)

    @torch.no_grad()
    def extend(
        self,
        x: Tensor,
        n: int,
        start: Tensor,
        pick: Pick,
        *,
        forced: Tensor | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Return x (B, T) with n more tokens (B, T + n), each picked given those before it.

        Past the context the window slides by halves: when it is full, the start token and the newest half of a context
        take its place, so that a token always sees at least half a context, and a new token costs the work of one place.

        Args:
            forced: (B, T + n), what a token is set to in place of a pick where this is not negative.
            cache: keep keys and values; False computes the whole window anew for each token, for the same tokens.
        """
        T, half = x.shape[1], max(1, self.context // 2)
        out = torch.cat([x, x.new_zeros(len(x), n)], 1)
        first = max(
            0, T + 1 - self.context
        )  # the window: the start token in the place before token `first`
        held = Cache(self.context)
        for t in range(T, T + n):
            if t - first + 1 > self.context:
                first, held = t - half + 1, Cache(self.context)
            seen = (
                first + held.at - 1
            )  # tokens that the cache holds, the start token being one more
            new = self.tokens(out[:, max(first, seen) : t])
            if not held.at:
                new = torch.cat([self.start(start)[:, None], new], 1)
            h = self.transformer(new, held if cache else None)[:, -1]  # (B, width)
            token = pick(self.logits(h))
            out[:, t] = (
                token if forced is None else torch.where(forced[:, t] < 0, token, forced[:, t])
            )
        return out

    def parameter_groups(self) -> list[dict]:
        """Return the matrices, which weight decay draws to 0, and the vectors (scales and biases), which it leaves."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        return (
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
            if vectors
            else [{"params": matrices}]
        )


def sharpened(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return the logits (B, V) of what is drawn from: others are −∞.

    Args:
        temperature: p becomes p^(1/temperature), normalised; 0: the most probable token alone.
        top_k: only the k most probable tokens (Fan, Lewis & Dauphin 2018, https://arxiv.org/abs/1805.04833).
        top_p: only the fewest tokens whose probabilities sum to at least p (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751, equation 3), after temperature and top_k.
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
        logits = logits.masked_fill(
            p.cumsum(-1) - p >= top_p, -torch.inf
        )  # what came before is enough
    return torch.empty_like(logits).scatter_(-1, order, logits)


def drawn(logits: Tensor) -> Tensor:
    """Draw a token (B,) of each row of logits (B, V)."""
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]
