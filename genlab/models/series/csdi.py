"""CSDI: Conditional Score-based Diffusion Models for Probabilistic Time Series Imputation.

Tashiro, Song, Song & Ermon 2021, https://arxiv.org/abs/2107.03502; here as a forecaster, as in
its section 6.2.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.console import track
from genlab.errors import UserError
from genlab.models.series.base import SeriesModel, WindowScale
from genlab.nn.broadcast import expand_like
from genlab.nn.embeddings import sinusoidal_embedding
from genlab.spec import Batch, DataSpec, Decay, Positive, PositiveFloat

MIN_BETA = 1e-4  # β_1 of the paper
MAX_ROWS = 4096  # windows that are denoised together, to bound the memory


class CSDI(SeriesModel):
    """Diffusion of the whole future at once, conditioned on the past.

    Args:
        channels: of the residual layers.
        num_layers: residual layers, each with a transformer over time.
        num_heads: attention heads; they divide `channels`.
        timesteps: T, the number of noise levels.
        max_beta: β_T of the quadratic schedule.
        embedding: size of the embeddings of the noise level and of the position.
        dropout: fraction of the units that the transformers drop.
        scale: see `SeriesModel`.
    """

    forecasts_in_many_passes: ClassVar[bool] = True
    alphas_bar: Tensor
    betas: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: Positive = 64,
        num_layers: Positive = 4,
        num_heads: Positive = 8,
        timesteps: Positive = 50,
        max_beta: PositiveFloat = 0.5,
        embedding: Positive = 128,
        dropout: Decay = 0.0,
        scale: WindowScale = "none",
    ) -> None:
        super().__init__(spec, scale=scale)
        if channels % num_heads:
            raise UserError(f"model.num_heads={num_heads} must divide model.channels={channels}")
        if max_beta >= 1:
            raise UserError(f"model.max_beta={max_beta:g} must be below 1")
        # eq. 13 (appendix): β_t = ((T − t)/(T − 1) √β_1 + (t − 1)/(T − 1) √β_T)²
        betas = torch.linspace(MIN_BETA**0.5, max_beta**0.5, timesteps, dtype=torch.float64) ** 2
        self.register_buffer("betas", betas.float())
        self.register_buffer("alphas_bar", torch.cumprod(1 - betas, 0).float())
        self.network = CSDINetwork(
            self.num_columns,
            self.num_features,
            channels=channels,
            num_layers=num_layers,
            num_heads=num_heads,
            embedding=embedding,
            dropout=dropout,
        )

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.betas)

    def predict_noise(self, x: Tensor, t: Tensor, past: Tensor, features: Tensor) -> Tensor:
        """Return ε_θ(x_t, t | past) (B, H, C) of noisy futures x (B, H, C) at the levels t (B,)."""
        eps: Tensor = self.network(x, t, past, features)
        return eps

    # eq. 8: min E ‖ε − ε_θ(x_t^ta, t | x_0^co)‖²  with  x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.cond is not None
        past, features = self.split_condition(batch.cond)
        shift, scale = self.location_and_scale(past)
        x0, past = (batch.x - shift) / scale, (past - shift) / scale
        t = torch.randint(self.timesteps, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        alpha_bar = expand_like(self.alphas_bar[t], x0)
        x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        return {"loss": (noise - self.predict_noise(x, t, past, features)).square().mean()}

    # algorithm 2: x_{t−1} = (x_t − β_t/√(1 − ᾱ_t) ε_θ) / √(1 − β_t) + σ_t z,
    #              σ_t² = (1 − ᾱ_{t−1})/(1 − ᾱ_t) β_t
    @torch.no_grad()
    def forecast(self, cond: Tensor, draws: int = 1) -> Tensor:
        past, features = self.split_condition(cond)
        shift, scale = self.location_and_scale(past)
        past = ((past - shift) / scale).repeat(draws, 1, 1)
        features = features.repeat(draws, 1, 1)
        parts = list(zip(past.split(MAX_ROWS), features.split(MAX_ROWS), strict=True))
        drawn = [
            self.denoise_from_noise(*part) for part in track(parts, "forecasting", unit="batches")
        ]
        return torch.cat(drawn).unflatten(0, (draws, len(cond))) * scale + shift

    def denoise_from_noise(self, past: Tensor, features: Tensor) -> Tensor:
        """Draw a future (B, H, C) for each past (B, P, C)."""
        x = torch.randn(len(past), self.horizon, self.num_columns).to(past)
        before = torch.cat([self.alphas_bar.new_ones(1), self.alphas_bar[:-1]])
        for t in reversed(range(self.timesteps)):
            eps = self.predict_noise(x, torch.full((len(x),), t, device=x.device), past, features)
            beta, alpha_bar = self.betas[t], self.alphas_bar[t]
            x = (x - beta / (1 - alpha_bar).sqrt() * eps) / (1 - beta).sqrt()
            if t:
                sigma = ((1 - before[t]) / (1 - alpha_bar) * beta).sqrt()
                x = x + sigma * torch.randn_like(x)
        return x


class CSDINetwork(nn.Module):
    """The noise of a future (B, H, C), given the past (B, P, C) and features (B, P + H, F).

    Each step of the window is a token with three inputs, as in the paper: the given value, which is
    0 in the future, the noisy value, which is 0 in the past, and which of them it is.
    """

    def __init__(
        self,
        num_columns: int,
        num_features: int,
        *,
        channels: int,
        num_layers: int,
        num_heads: int,
        embedding: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.input = nn.Linear(2 * num_columns, channels)
        self.level = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        side = embedding + num_features + 1
        self.layers = nn.ModuleList(
            [
                ResidualLayer(channels, embedding, side, num_heads, dropout)
                for _ in range(num_layers)
            ]
        )
        self.output = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.last = nn.Linear(channels, num_columns)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, t: Tensor, past: Tensor, features: Tensor) -> Tensor:
        num_past, window = past.shape[1], features.shape[1]
        given = F.pad(past, (0, 0, 0, window - num_past))  # (B, P + H, C)
        noisy = F.pad(x, (0, 0, num_past, 0))
        h = F.relu(self.input(torch.cat([given, noisy], 2)))
        position = torch.arange(window, device=x.device)
        is_given = (position < num_past).to(x)[:, None]
        side = torch.cat([sinusoidal_embedding(position, self.embedding).to(x), is_given], 1)
        side = torch.cat([side.expand(len(x), -1, -1), features], 2)  # (B, P + H, S)
        level = self.level(sinusoidal_embedding(t, self.embedding).to(x))  # (B, E)
        skips: list[Tensor] = []
        for layer in self.layers:
            h, skip = layer(h, level, side)
            skips.append(skip[:, num_past:])
        total = torch.stack(skips).sum(0) / math.sqrt(len(skips))
        out: Tensor = self.last(self.output(total))
        return out


class ResidualLayer(nn.Module):
    """A residual layer of CSDI (figure 6 of the paper): a transformer over time, and a gate."""

    def __init__(
        self, channels: int, embedding: int, side: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.level = nn.Linear(embedding, channels)
        self.time = nn.TransformerEncoderLayer(
            channels, num_heads, channels, dropout, activation="gelu", batch_first=True
        )
        self.middle = nn.Linear(channels, 2 * channels)
        self.side = nn.Linear(side, 2 * channels)
        self.output = nn.Linear(channels, 2 * channels)

    def forward(self, h: Tensor, level: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next h (B, T, channels) and what is added to the output, of the same shape."""
        y = self.time(h + self.level(level)[:, None])
        gate, value = (self.middle(y) + self.side(side)).chunk(2, 2)
        residual, skip = self.output(gate.sigmoid() * value.tanh()).chunk(2, 2)
        return (h + residual) / math.sqrt(2), skip
