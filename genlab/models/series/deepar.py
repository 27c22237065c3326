"""DeepAR: Probabilistic Forecasting with Autoregressive Recurrent Networks.

Salinas, Flunkert, Gasthaus & Januschowski 2020, https://arxiv.org/abs/1704.04110
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.series.base import LinearOfPast, SeriesModel, WindowScale
from genlab.nn.precision import in_full_precision
from genlab.spec import Batch, Count, DataSpec, Decay, Positive, PositiveFloat

LOG_2PI = math.log(2 * math.pi)
State = tuple[Tensor, Tensor]  # of the LSTM, each (layers, B, hidden)


class DeepAR(SeriesModel):
    """A recurrent network whose output is the distribution of the next value.

    The future is drawn value by value, and log p(x | past) is exact: the sum over its steps.
    Several networks are an equal mixture of such forecasts; each draw comes from one of them.

    Args:
        hidden: units of the LSTM in each layer.
        num_layers: layers of the LSTM.
        num_components: Gaussians of the mixture; 1 is the paper's Gaussian.
        lags: the mean gets a linear function of so many last values, and of the features; 0 and no
            `averages` disable it.
        averages: the linear function sees the means of so many last values as well.
        members: networks that are trained side by side from different starts, a deep ensemble
            (Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474).
        dropout: fraction of the units that are dropped between the layers and before the output.
        min_deviation: smallest deviation of a Gaussian, in units of the standardized values.
        scale: see `SeriesModel`.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: Positive = 40,
        num_layers: Positive = 3,
        num_components: Positive = 1,
        lags: Count = 0,
        averages: tuple[Positive, ...] = (),
        members: Positive = 1,
        dropout: Decay = 0.0,
        min_deviation: PositiveFloat = 1e-3,
        scale: WindowScale = "none",
    ) -> None:
        super().__init__(spec, scale=scale)
        if max((lags, *averages)) > self.context:
            raise UserError(
                f"model.lags={lags} and model.averages={list(averages)} need more than the "
                f"{self.context} steps before; set a larger dataset.context_steps"
            )
        # values before a step that its distribution needs beside the state of the LSTM
        self.num_recent = max(1, lags, *averages)
        self.members = nn.ModuleList()
        for _ in range(members):
            linear = None
            if lags or averages:
                linear = LinearOfPast(self.num_columns, self.num_features, lags, averages)
            lstm = nn.LSTM(
                self.num_columns + self.num_features,
                hidden,
                num_layers,
                batch_first=True,
                dropout=dropout if num_layers > 1 else 0.0,
            )
            self.members.append(
                NextValue(lstm, self.num_columns, num_components, dropout, min_deviation, linear)
            )

    def log_prob_by_step(self, batch_x: Tensor, cond: Tensor) -> Tensor:
        """Return log p of each value given all before, of each member (M, B, L … P + H)."""
        past, features = self.split_condition(cond)
        shift, scale = self.location_and_scale(past)
        values = (torch.cat([past, batch_x], 1) - shift) / scale
        first = self.num_recent
        log_p = []
        for member in self.members:
            theta, _ = member(values[:, :-1], features[:, first:])
            log_p.append(theta.log_prob(values[:, first:]) - scale.log().sum(2))
        return torch.stack(log_p)

    # eq. 2: L = Σ_i Σ_t log p(z_{i,t} | θ(h_{i,t})), over the past as well as the future
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.cond is not None
        log_p = self.log_prob_by_step(batch.x, batch.cond)
        nll = -log_p.mean((1, 2))  # of each member
        # the sum of the members' losses trains each of them separately
        return {"loss": nll.sum() - (nll.sum() - nll.mean()).detach()}

    # --- abilities --------------------------------------------------------------------------------

    # p(x | past) = 1/M Σ_m Π_t p_m(x_t | x_{<t}, past)
    @in_full_precision
    def forecast_log_prob(self, x: Tensor, cond: Tensor) -> Tensor:
        log_p = self.log_prob_by_step(x, cond)[:, :, self.context - self.num_recent :].sum(2)
        return torch.logsumexp(log_p, 0) - math.log(len(self.members))

    @torch.no_grad()
    def forecast(self, cond: Tensor, draws: int = 1) -> Tensor:
        past, features = self.split_condition(cond)
        shift, scale = self.location_and_scale(past)
        past = (past - shift) / scale
        if len(self.members) == 1:
            drawn = self.draw(self.members[0], past, features, draws)
        else:  # each draw is that of a random member
            past, features = (part.repeat(draws, 1, 1) for part in (past, features))
            member_of = torch.randint(len(self.members), (len(past),), device=past.device)
            drawn = past.new_zeros(len(past), features.shape[1] - self.context, self.num_columns)
            for i, member in enumerate(self.members):
                chosen = member_of == i
                drawn[chosen] = self.draw(member, past[chosen], features[chosen], 1)
        return drawn.unflatten(0, (draws, len(cond))) * scale + shift

    def draw(self, member: nn.Module, past: Tensor, features: Tensor, draws: int) -> Tensor:
        """Draw futures (draws · B, H, C) value by value, given past values (B, P, C)."""
        first = self.num_recent
        # the state after the past is the same for all draws
        state: State | None = None
        if self.context > first:
            _, state = member(past[:, :-1], features[:, first : self.context])
            state = (state[0].repeat(1, draws, 1), state[1].repeat(1, draws, 1))
        recent = past[:, -first:].repeat(draws, 1, 1)  # (draws · B, L, C)
        features = features.repeat(draws, 1, 1)
        future = []
        for t in range(self.context, features.shape[1]):
            theta, state = member(recent, features[:, t : t + 1], state)
            future.append(theta.sample()[:, 0])
            recent = torch.cat([recent[:, 1:], future[-1][:, None]], 1)
        return torch.stack(future, 1)


class NextValue(nn.Module):
    """The distribution of the next value of a series, given all values before.

    Args:
        lstm: of a value and the features of the step after it.
        num_columns: C, the number of values at each step.
        num_components: K, the number of Gaussians.
        linear: is added to their means.
    """

    def __init__(
        self,
        lstm: nn.LSTM,
        num_columns: int,
        num_components: int,
        dropout: float,
        min_deviation: float,
        linear: LinearOfPast | None,
    ) -> None:
        super().__init__()
        self.num_components, self.min_deviation = num_components, min_deviation
        # of each component: its weight, its mean, and a triangular matrix W with W Wᵀ = Σ⁻¹
        self.sizes = (1, num_columns, num_columns * (num_columns + 1) // 2)
        self.lstm, self.linear = lstm, linear
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(lstm.hidden_size, num_components * sum(self.sizes))

    # eq. 1: h_t = h(h_{t−1}, z_{t−1}, x_t),  p(z_t | θ(h_t))
    def forward(
        self, values: Tensor, features: Tensor, state: State | None = None
    ) -> tuple[Mixture, State]:
        """Return the distribution of the value of each step t, (B, T), and the last state.

        Args:
            values: standardized (B, L − 1 + T, C) of the steps before: t − L … t − 1, where L is
                `DeepAR.num_recent`.
            features: (B, T, F) of the steps t.
        """
        before = values[:, values.shape[1] - features.shape[1] :]
        h, state = self.lstm(torch.cat([before, features], 2), state)
        theta = self.output(self.dropout(h)).to(values.dtype)
        theta = theta.unflatten(2, (self.num_components, -1))
        logits, mean, triangle = theta.split(self.sizes, 3)
        if self.linear is not None:
            mean = mean + self.linear(values, features)[:, :, None]
        return Mixture(logits[..., 0], mean, triangle, self.min_deviation), state


class Mixture:
    """Gaussian mixtures over values (C,), one for each step (B, T).

    Args:
        logits: (B, T, K) of the weights.
        mean: (B, T, K, C).
        triangle: (B, T, K, C (C + 1)/2), the lower triangle of W before its diagonal is made
            positive.
        min_deviation: bounds the diagonal of W.
    """

    def __init__(
        self, logits: Tensor, mean: Tensor, triangle: Tensor, min_deviation: float
    ) -> None:
        self.log_weights, self.mean = logits.log_softmax(-1), mean
        c = mean.shape[-1]
        row, column = torch.tril_indices(c, c, device=mean.device)
        is_diagonal = row == column
        # 1/W_ii is the deviation of a column given those before it: softplus, as in the paper
        deviation = nn.functional.softplus(triangle) + min_deviation
        entries = torch.where(is_diagonal, 1 / deviation, triangle)
        self.log_diagonal = -deviation[..., is_diagonal].log().sum(-1)
        self.whitening = mean.new_zeros(*mean.shape, c)  # W (B, T, K, C, C)
        self.whitening[..., row, column] = entries

    # log N(z; μ, Σ) = log |W| − C/2 log 2π − ½ ‖W (z − μ)‖²
    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density (B, T) of values z (B, T, C)."""
        error = (self.whitening @ (z[..., None, :] - self.mean)[..., None])[..., 0]
        constant = self.log_diagonal - 0.5 * z.shape[-1] * LOG_2PI
        log_normal = constant - 0.5 * error.square().sum(-1)
        return torch.logsumexp(self.log_weights + log_normal, -1)

    def sample(self) -> Tensor:
        """Draw a value (B, T, C) of each step."""
        k = self.log_weights.exp().flatten(0, 1).multinomial(1).view(*self.log_weights.shape[:2], 1)
        pick = k[..., None].expand(*k.shape, self.mean.shape[-1])
        mean = self.mean.gather(2, pick)[:, :, 0]
        whitening = self.whitening.gather(
            2, pick[..., None].expand(*pick.shape, self.mean.shape[-1])
        )[:, :, 0]
        noise = torch.randn_like(mean)
        return (
            mean + torch.linalg.solve_triangular(whitening, noise[..., None], upper=False)[..., 0]
        )
