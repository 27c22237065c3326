"""TabDDPM: Kotelnikov et al. 2023, https://arxiv.org/abs/2209.15421.

Gaussian diffusion of the numbers and multinomial diffusion of the categories, denoised by one MLP.
Times count from 0: t = 0 is the papers' t = 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.models.tabular.quantiles import QuantileTransform
from genlab.models.tabular.table_model import TableModel
from genlab.nn.embeddings import TimeEmbedding
from genlab.nn.mlp import MLP
from genlab.spec import Batch, DataSpec, Decay, Positive


def noise_betas(name: Literal["cosine", "linear"], T: int) -> Tensor:
    """Return β (T,) float64 of a noise schedule.

    "cosine": ᾱ_t = f(t)/f(0) with f(t) = cos²((t/T + 0.008)/1.008 · π/2) (Nichol & Dhariwal 2021,
    https://arxiv.org/abs/2102.09672, eq. 17). "linear": Ho et al. 2020, scaled by 1000/T.
    """
    if name == "linear":
        scale = 1000 / T
        return torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=0.999)
    t = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


class GaussianDiffusion(nn.Module):
    """Diffusion of numbers (B, N): Ho, Jain & Abbeel 2020, https://arxiv.org/abs/2006.11239."""

    betas: Tensor  # (T,)
    alphas_bar: Tensor  # (T,)
    alphas_bar_before: Tensor  # (T,) ᾱ_{t−1}

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        alphas_bar = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=betas.dtype), alphas_bar[:-1]])
        for name, table in {
            "betas": betas,
            "alphas_bar": alphas_bar,
            "alphas_bar_before": before,
        }.items():
            self.register_buffer(name, table.to(torch.get_default_dtype()), persistent=False)

    # equation 4
    def q_sample(self, z0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε at times t (B,)."""
        alpha_bar = self.alphas_bar[t][:, None].to(z0.dtype)
        return alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * eps

    # equations 7 and 15
    def posterior_mean(self, z: Tensor, eps: Tensor, t: Tensor, limit: float) -> Tensor:
        """Return the mean of q(z_{t−1} | z_t, z_0) for the z_0 that a noise ε implies.

        Args:
            limit: of |z_0|.
        """
        beta, alpha_bar, before = (
            table[t][:, None].to(z.dtype)
            for table in (self.betas, self.alphas_bar, self.alphas_bar_before)
        )
        z0 = ((z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-limit, limit)
        weighted = before.sqrt() * beta * z0 + (1 - beta).sqrt() * (1 - before) * z
        return weighted / (1 - alpha_bar)


class MultinomialDiffusion(nn.Module):
    """Diffusion of categories to uniform ones: Hoogeboom et al. 2021, 2102.05379, section 4.

    Distributions of C columns are probabilities (B, ΣK), one column after another. In each step a
    category is kept with probability 1 − β_t, and otherwise drawn uniformly.
    """

    sizes: Tensor  # (C,) K of each column
    starts: Tensor  # (C,) where each column starts among the ΣK values
    column: Tensor  # (ΣK,) the column of each value
    kept_in_step: Tensor  # (T,) 1 − β_t
    kept_until: Tensor  # (T,) ᾱ_t
    kept_before: Tensor  # (T,) ᾱ_{t−1}

    def __init__(self, sizes: tuple[int, ...], betas: Tensor) -> None:
        super().__init__()
        self.T = len(betas)
        indices = {
            "sizes": list(sizes),
            "starts": [sum(sizes[:c]) for c in range(len(sizes))],
            "column": [c for c, size in enumerate(sizes) for _ in range(size)],
        }
        for name, index in indices.items():
            self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)
        alphas_bar = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=alphas_bar.dtype), alphas_bar[:-1]])
        for name, kept in {
            "kept_in_step": 1 - betas,
            "kept_until": alphas_bar,
            "kept_before": before,
        }.items():
            self.register_buffer(name, kept.to(torch.get_default_dtype()), persistent=False)

    # --- columns side by side ---

    def sum_columns(self, values: Tensor) -> Tensor:
        """Return the sum (B, C) over each column of values (B, ΣK)."""
        sums = values.new_zeros(len(values), len(self.sizes))
        return sums.index_add(1, self.column, values)

    def spread(self, values: Tensor) -> Tensor:
        """Return values (B, C) of columns as (B, ΣK)."""
        return values.index_select(1, self.column)

    def one_hot(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the certain distribution (B, ΣK) of categories (B, C)."""
        flat = torch.zeros(len(codes), len(self.column), dtype=dtype, device=codes.device)
        return flat.scatter_(1, codes + self.starts, 1.0)

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (B, ΣK) of logits (B, ΣK), column by column."""
        parts = logits.split(self.sizes.tolist(), 1) if len(self.sizes) else [logits]
        return torch.cat([part.log_softmax(1) for part in parts], 1)

    def draw(self, p: Tensor) -> Tensor:
        """Draw a category of each column (B, C) from probabilities (B, ΣK)."""
        sums = F.pad(p.cumsum(1), (1, 0))  # before each value, and at the end
        start, end = sums[:, self.starts], sums[:, self.starts + self.sizes]
        threshold = start + torch.rand_like(start) * (end - start)
        is_below = (sums[:, 1:] <= self.spread(threshold)).to(p.dtype)
        return torch.minimum(self.sum_columns(is_below).long(), self.sizes - 1)

    # --- the process ---

    def mix_with_uniform(self, p: Tensor, kept: Tensor, t: Tensor) -> Tensor:
        """Return κ p + (1 − κ)/K (B, ΣK), with κ (B,) from a table at times t (B,)."""
        kappa = kept[t].to(p.dtype)[:, None]
        return kappa * p + (1 - kappa) / self.sizes[self.column].to(p.dtype)

    # equation 12
    def q(self, x0: Tensor, t: Tensor) -> Tensor:
        """Return q(x_t | x_0) (B, ΣK) of a distribution of x_0 (B, ΣK)."""
        return self.mix_with_uniform(x0, self.kept_until, t)

    # equation 13: q(x_{t−1} | x_t, x_0) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x_0)
    def log_posterior(self, x0: Tensor, codes: Tensor, t: Tensor) -> Tensor:
        """Return log q(x_{t−1} | x_t, x_0) (B, ΣK) of x_t (B, C) and a distribution of x_0."""
        tiny = torch.finfo(x0.dtype).tiny
        step = self.mix_with_uniform(self.one_hot(codes, x0.dtype), self.kept_in_step, t)
        before = self.mix_with_uniform(x0, self.kept_before, t).clamp(min=tiny)
        total = self.sum_columns(step * before)
        return step.log() + before.log() - self.spread(total.log())

    # equation 14; at t = 0, where q is certain, it is −log p(x_0 | x_1)
    def step_kl(self, x0: Tensor, predicted: Tensor, codes: Tensor, t: Tensor) -> Tensor:
        """Return L_t: KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) (B, C) in nats.

        Args:
            x0: the certain distribution of x_0 (B, ΣK).
            predicted: probabilities of x_0 given x_t (B, ΣK).
            codes: x_t (B, C).
        """
        log_q = self.log_posterior(x0, codes, t)
        difference = log_q - self.log_posterior(predicted, codes, t)
        return self.sum_columns(log_q.exp() * difference)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """Return L_T: KL(q(x_T | x_0) ‖ uniform) (B, C) in nats."""
        q = self.q(x0, torch.full((len(x0),), self.T - 1, device=x0.device))
        return self.sum_columns(torch.special.xlogy(q, q * self.sizes[self.column]))


class Denoiser(nn.Module):
    """The MLP of section 4.2: a projection of the row plus time and class, then hidden layers."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: tuple[int, ...],
        embedding: int,
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, embedding)
        self.condition = TimeEmbedding(embedding, embedding, num_classes=num_classes)
        self.layers = MLP(embedding, hidden, outputs, dropout=dropout)

    def forward(self, row: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Return the outputs (B, outputs) of a noisy row (B, inputs) at times t (B,)."""
        out: Tensor = self.layers(self.project(row) + self.condition(t, y))
        return out


class TabDDPM(TableModel):
    """Diffusion of the rows of a table, numbers and categories together.

    Numbers are mapped to N(0, 1) by their quantiles, and the network predicts their noise. It also
    predicts the clean categories.

    Args:
        timesteps: T.
        noise_schedule: of both diffusions: cosine | linear.
        hidden: widths of the network's hidden layers.
        embedding: width of the time's and the class's embedding.
        dropout: fraction of the hidden units dropped in training.
        num_quantiles: knots of the map of a column of numbers.
        conditional: learn p(x | y) of the classes y.
    """

    elbo_over_timesteps = True

    def __init__(
        self,
        spec: DataSpec,
        *,
        timesteps: Positive = 100,
        noise_schedule: Literal["cosine", "linear"] = "cosine",
        hidden: tuple[Positive, ...] = (256, 1024, 1024, 1024, 1024, 256),
        embedding: Positive = 128,
        dropout: Decay = 0.0,
        num_quantiles: Positive = 1000,
        conditional: bool = True,
    ) -> None:
        super().__init__(spec, conditional=conditional, name="TabDDPM")
        self.T, betas = timesteps, noise_betas(noise_schedule, timesteps)
        self.gaussian = GaussianDiffusion(betas)
        self.quantiles = QuantileTransform(self.num_numbers, max(2, num_quantiles))
        sizes = tuple(size for size in spec.categories if size)
        self.multinomial = MultinomialDiffusion(sizes, betas)
        width = self.num_numbers + self.num_one_hot
        self.denoiser = Denoiser(
            width,
            width,
            hidden=hidden,
            embedding=embedding,
            num_classes=spec.num_classes if conditional else 0,
            dropout=dropout,
        )
        if self.num_numbers:  # the bound of a density would need the slopes of the quantiles
            self.elbo = None  # type: ignore[assignment, method-assign]

    def fit_numbers(self, x: Tensor, seed: int) -> None:
        self.quantiles.fit(x)

    def predict(
        self, numbers: Tensor, codes: Tensor, t: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the noise of the numbers (B, N), and p(x_0 | x_t) (B, ΣK) of the categories.

        Args:
            numbers: z_t (B, N).
            codes: categories x_t (B, C).
            t: times (B,).
        """
        row = torch.cat([numbers, self.multinomial.one_hot(codes, numbers.dtype)], 1)
        out = self.denoiser(row, t, y).to(numbers.dtype)
        eps, logits = out.split([self.num_numbers, self.num_one_hot], 1)
        return eps, self.multinomial.log_softmax(logits).exp()

    # section 4.1: L = L_simple + Σ_i L_i / C
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the noise's squared error plus the mean bound of a categorical column in nats."""
        numbers, codes = self.split_columns(batch.x)
        z0, x0 = self.quantiles(numbers), self.multinomial.one_hot(codes, numbers.dtype)
        t = torch.randint(self.T, (len(z0),), device=z0.device)
        eps = torch.randn_like(z0)
        zt = self.gaussian.q_sample(z0, t, eps)
        xt = self.multinomial.draw(self.multinomial.q(x0, t))
        y = batch.y if self.conditional else None
        predicted_eps, predicted_x0 = self.predict(zt, xt, t, y)
        losses = {}
        if self.num_numbers:
            losses["mse"] = F.mse_loss(predicted_eps, eps)
        if self.num_categorical:
            kl = self.multinomial.step_kl(x0, predicted_x0, xt, t).mean()
            losses["categories"] = self.T * kl + self.multinomial.prior_kl(x0).mean()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    # --- abilities --------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return −(L_T + Σ_t L_t) (B,) in nats of rows without numbers, with one draw per term."""
        numbers, codes = self.split_columns(x)
        x0 = self.multinomial.one_hot(codes, x.dtype)
        y = self.classes_for_samples(len(x), y)
        times = torch.arange(self.T) if num_terms is None else torch.randint(self.T, (num_terms,))
        bound = self.multinomial.prior_kl(x0).sum(1)
        for time in times.tolist():
            t = torch.full((len(x),), time, device=x.device)
            xt = self.multinomial.draw(self.multinomial.q(x0, t))
            _, predicted = self.predict(numbers, xt, t, y)
            kl = self.multinomial.step_kl(x0, predicted, xt, t).sum(1)
            bound = bound + kl * (self.T / len(times))
        return -bound

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n rows (n, D) by the reverse process, ancestral in both diffusions."""
        like = self.quantiles.knots
        z = torch.randn(n, self.num_numbers, dtype=like.dtype, device=like.device)
        x = self.multinomial.draw(like.new_ones(n, self.num_one_hot))  # uniform
        y = self.classes_for_samples(n, y)
        for time in reversed(range(self.T)):
            t = torch.full((n,), time, device=like.device)
            eps, predicted = self.predict(z, x, t, y)
            z = self.gaussian.posterior_mean(z, eps, t, self.quantiles.max_abs)
            if time:
                z = z + self.gaussian.betas[time].sqrt() * torch.randn_like(z)
            x = self.multinomial.draw(self.multinomial.log_posterior(predicted, x, t).exp())
        return self.join_columns(self.quantiles.inverse(z), x)
