"""TVAE: a VAE of mixed tables; Xu et al. 2019, https://arxiv.org/abs/1907.00503."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.models.tabular.mode_normalization import NO_LOG_WEIGHT, ModeNormalizer
from genlab.models.tabular.table_model import TableModel, draw_categories
from genlab.nn.mlp import MLP
from genlab.spec import Batch, DataSpec, Positive, PositiveFloat

INITIAL_STD = 0.1  # δ of a number's place within its mode
STD_RANGE = (0.01, 1.0)


class TVAE(TableModel):
    """Variational autoencoder of the rows of a table.

    A number is a mode of its column's mixture and a place in it (`ModeNormalizer`). The decoder
    gives the logits of modes and categories, and the mean of a Gaussian of the place.

    Args:
        hidden: widths of the encoder's layers; the decoder mirrors them.
        latent: dimension of z.
        num_modes: the most modes of a column of numbers.
        reconstruction_weight: of −log p(x|z) in the loss, beside the KL term.
        conditional: learn p(x | y); encoder and decoder receive the class y.
    """

    log_stds: nn.Parameter  # (N,) log δ

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: tuple[Positive, ...] = (128, 128),
        latent: Positive = 128,
        num_modes: Positive = 10,
        reconstruction_weight: PositiveFloat = 2.0,
        conditional: bool = True,
    ) -> None:
        super().__init__(spec, conditional=conditional, name="TVAE")
        self.latent, self.num_modes = latent, num_modes
        self.reconstruction_weight = reconstruction_weight
        self.modes = ModeNormalizer(self.num_numbers, num_modes)
        width = self.num_numbers * (1 + num_modes) + self.num_one_hot
        classes = spec.num_classes if conditional else 0
        self.encoder = MLP(width + classes, hidden, 2 * latent)
        self.decoder = MLP(latent + classes, hidden[::-1], width)
        if self.num_numbers:
            self.log_stds = nn.Parameter(torch.full((self.num_numbers,), math.log(INITIAL_STD)))

    def fit_numbers(self, x: Tensor, seed: int) -> None:
        if self.num_numbers:
            self.modes.fit(x, seed)

    # --- rows as the networks receive and give them -----------------------------------------------

    # section 4.2: the mode is drawn by its probability
    def draw_modes(self, numbers: Tensor) -> Tensor:
        """Draw the modes (B, N) of numbers (B, N)."""
        return draw_categories(self.modes.log_responsibilities(numbers).exp())

    def to_network_row(self, place: Tensor, modes: Tensor, codes: Tensor) -> Tensor:
        """Return places (B, N), modes (B, N) and categories (B, C) as one row (B, width)."""
        one_hot = F.one_hot(modes, self.num_modes).to(place.dtype).flatten(1)
        return torch.cat([place, one_hot, self.codes_to_one_hot(codes, place.dtype)], 1)

    def decoded_parts(self, z: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the mean of the places, and log-probabilities of modes and of each category.

        Args:
            z: codes (B, latent).
            classes: one-hot (B, num_classes).

        Returns:
            (B, N), (B, N, K), and for each categorical column (B, its size).
        """
        out = self.decoder(torch.cat([z, classes], 1)).to(z.dtype)
        n, k = self.num_numbers, self.num_modes
        place, modes, categories = out.split([n, n * k, self.num_one_hot], 1)
        modes = modes.unflatten(1, (n, k)) if n else modes.reshape(len(z), 0, k)
        modes = modes.masked_fill(~self.modes.is_used, NO_LOG_WEIGHT).log_softmax(-1)
        parts = categories.split(self.sizes.tolist(), 1) if self.num_categorical else ()
        return place.tanh(), modes, [part.log_softmax(1) for part in parts]

    # --- objective --------------------------------------------------------------------------------

    def code_distribution(self, row: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z | row, y)."""
        mean, log_var = self.encoder(torch.cat([row, classes], 1)).to(row.dtype).chunk(2, dim=1)
        return mean, log_var

    # section 4.4
    def log_likelihood(
        self, z: Tensor, classes: Tensor, place: Tensor, modes: Tensor, codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log p (B,) of the numbers' places and modes, and of the categories, in nats."""
        mean, log_modes, log_categories = self.decoded_parts(z, classes)
        numbers = z.new_zeros(len(z))
        if self.num_numbers:
            log_std = self.log_stds.clamp(*map(math.log, STD_RANGE))
            squares = ((place - mean) * (-log_std).exp()).square()
            gaussian = -0.5 * squares - log_std - 0.5 * math.log(2 * math.pi)
            numbers = (gaussian + log_modes.gather(-1, modes[..., None])[..., 0]).sum(1)
        categories = z.new_zeros(len(z))
        for column, log_p in enumerate(log_categories):
            categories = categories + log_p.gather(1, codes[:, column : column + 1])[:, 0]
        return numbers, categories

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return reconstruction_weight · distortion + KL, in nats per row."""
        numbers, codes = self.split_columns(batch.x)
        modes = self.draw_modes(numbers)
        place = self.modes.normalize(numbers, modes)
        classes = self.class_one_hot(batch.y, numbers)
        mean, log_var = self.code_distribution(self.to_network_row(place, modes, codes), classes)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        of_numbers, of_categories = self.log_likelihood(z, classes, place, modes, codes)
        distortion = -(of_numbers + of_categories).mean()
        rate = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1).mean()
        loss = self.reconstruction_weight * distortion + rate
        return {"loss": loss, "rate": rate, "distortion": distortion}

    # --- abilities --------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n rows (n, D): codes, then modes, places and categories."""
        like = self.modes.means
        z = torch.randn(n, self.latent, dtype=like.dtype, device=like.device)
        classes = self.class_one_hot(y, z)
        mean, log_modes, log_categories = self.decoded_parts(z, classes)
        modes = draw_categories(log_modes.exp())
        place = mean
        if self.num_numbers:
            std = self.log_stds.exp().clamp(*STD_RANGE)
            place = (mean + std * torch.randn_like(mean)).clamp(-1, 1)
        codes = [draw_categories(log_p.exp()) for log_p in log_categories]
        columns = torch.stack(codes, 1) if codes else modes.new_zeros(n, 0)
        return self.join_columns(self.modes.denormalize(place, modes), columns)
