"""VQ-VAE: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.nn.conv import halved_sizes
from genlab.nn.precision import full_precision
from genlab.spec import Batch, Count, DataSpec, Decay, NonNegative, Positive, PositiveFloat

NUM_DOWNSAMPLINGS = 2  # stride-2 convolutions: a code has a quarter of the image's height and width


class ResidualBlock(nn.Module):
    """The residual block of section 4.1: x + conv1×1(relu(conv3×3(relu(x)))), x (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class VQVAE(GenerativeModel):
    """An autoencoder whose code is a grid of h × w codebook vectors.

    h and w are a quarter of the image's height and width. The model is a codec: together with a
    prior over `encode_indices(x)` (B, h, w) or over `encode(x)` (B, D, h, w) it generates images by
    `decode(codebook_vectors(indices))` or `decode(z)`. `loss` does not change the codebook; the
    trainer calls `update_codebook` with the statistics of the joint batch.

    Args:
        channels: width of the convolutions.
        num_blocks: residual blocks in the encoder and in the decoder.
        num_codes: K, the number of codebook vectors.
        latent: D, their dimension.
        beta: weight of the commitment loss (equation 3).
        codebook_decay: γ, the decay of the codebook's moving averages (appendix A.1).
        dead_code_threshold: a code is dead, and is restarted, when its average count is below this
            fraction of the count under uniform use.
        variance: variance of the data in its range; the squared error is divided by it, so
            that beta has the same effect on all datasets.

    Raises:
        UserError: the data are not images, or the images are too small to be halved twice.
    """

    codebook: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: Positive = 256,
        num_blocks: Count = 2,
        num_codes: Positive = 512,
        latent: Positive = 64,
        beta: NonNegative = 0.25,
        codebook_decay: Decay = 0.99,
        dead_code_threshold: PositiveFloat = 0.1,
        variance: PositiveFloat = 0.25,
    ) -> None:
        super().__init__()
        if spec.kind != "image" or min(spec.shape[1:]) < 2**NUM_DOWNSAMPLINGS:
            raise UserError(
                f"VQVAE halves an image {NUM_DOWNSAMPLINGS} times, but this dataset has "
                f"{spec.kind} data of shape {spec.shape}"
            )
        self.spec, self.beta, self.variance = spec, beta, variance
        self.codebook_decay, self.dead_code_threshold = codebook_decay, dead_code_threshold
        c, height, width = spec.shape
        full, half, quarter = halved_sizes((height, width), NUM_DOWNSAMPLINGS)
        self.grid = quarter  # (h, w) of a code
        # the row and column that halving an odd size drops
        half_padding, full_padding = ((h % 2, w % 2) for h, w in (half, full))
        self.encoder = nn.Sequential(
            nn.Conv2d(c, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            *(ResidualBlock(channels) for _ in range(num_blocks)),
            nn.Conv2d(channels, latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, channels, 3, padding=1),
            *(ResidualBlock(channels) for _ in range(num_blocks)),
            nn.ConvTranspose2d(
                channels, channels, 4, stride=2, padding=1, output_padding=half_padding
            ),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, c, 4, stride=2, padding=1, output_padding=full_padding),
        )
        # m and N of appendix A.1. With N = 0 every code is dead, so that the first update sets all
        # codes to vectors of the first batch.
        self.register_buffer("codebook", torch.randn(num_codes, latent))  # e = m / N
        self.register_buffer("sums", torch.zeros(num_codes, latent))  # m
        self.register_buffer("counts", torch.zeros(num_codes))  # N

    # --- objective --------------------------------------------------------------------------------

    def nearest_indices(self, z_e: Tensor) -> Tensor:
        """Return the index (B, h, w) of the codebook vector nearest to each of z_e (B, D, h, w).

        Equation 1, in full precision: bf16 would choose another code for one vector in ten.
        """
        flat = z_e.permute(0, 2, 3, 1).to(self.codebook.dtype)  # (B, h, w, D)
        with full_precision(flat):
            # ‖z − e‖² without ‖z‖², which is the same for every e
            return (self.codebook.square().sum(1) - 2 * flat @ self.codebook.T).argmin(-1)

    def quantize(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_q (B, D, h, w) and its indices (B, h, w).

        The gradient passes from z_q straight through to z_e.
        """
        indices = self.nearest_indices(z_e)
        z_q = self.codebook_vectors(indices)
        return z_e + (z_q - z_e).detach(), indices

    # eq. 3 with the Gaussian likelihood, per value; the moving averages of appendix A.1 replace the
    # codebook loss
    def losses_and_assignments(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the losses, the encoder's vectors z_e (T, D) and their code indices (T,).

        The codebook update needs the vectors and indices.
        """
        z_e = self.encoder(x)
        z_q, indices = self.quantize(z_e)
        reconstruction = F.mse_loss(self.decoder(z_q), x) / self.variance
        commitment = F.mse_loss(z_e, z_q.detach())
        losses = {
            "loss": reconstruction + self.beta * commitment,
            "reconstruction": reconstruction,
            "commitment": commitment,
        }
        vectors = z_e.detach().permute(0, 2, 3, 1).flatten(0, 2)
        return losses, vectors, indices.flatten()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scaled mean squared error of the reconstruction + beta · commitment loss."""
        return self.losses_and_assignments(batch.x)[0]

    def code_counts_and_sums(self, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many vectors (T, D) each code received (K,), and their sums (K, D)."""
        vectors = vectors.to(self.sums)
        ones = torch.ones_like(vectors[:, 0])
        counts = torch.zeros_like(self.counts).index_add_(0, indices, ones)
        return counts, torch.zeros_like(self.sums).index_add_(0, indices, vectors)

    # eqs. 6 to 8: N ← γ N + (1 − γ) n,  m ← γ m + (1 − γ) Σ z,  e = m / N
    @torch.no_grad()
    def update_codebook(self, counts: Tensor, sums: Tensor, candidates: Tensor) -> Tensor:
        """Update the codebook by a joint batch's statistics; return the number of dead codes.

        Each dead code restarts at a random row of the `candidates` (C, D), with twice the threshold
        count, so that it soon follows the vectors assigned to it or dies again (restarts: Dhariwal
        et al. 2020, https://arxiv.org/abs/2005.00341).

        Args:
            counts: (K,), see `code_counts_and_sums`.
            sums: (K, D), likewise.
        """
        self.counts.lerp_(counts, 1 - self.codebook_decay)
        self.sums.lerp_(sums, 1 - self.codebook_decay)
        threshold = self.dead_code_threshold * counts.sum() / len(counts)
        is_dead = self.counts < threshold
        picks = torch.randint(len(candidates), (len(counts),), device=counts.device)
        restarted_sums = 2 * threshold * candidates[picks].to(self.sums)
        self.counts.copy_(torch.where(is_dead, 2 * threshold, self.counts))
        self.sums.copy_(torch.where(is_dead[:, None], restarted_sums, self.sums))
        self.codebook.copy_(self.sums / self.counts[:, None])
        return is_dead.sum()

    # --- abilities --------------------------------------------------------------------------------

    def encode_indices(self, x: Tensor) -> Tensor:
        """Return the codebook indices (B, h, w) int64 of x (B, *shape)."""
        return self.nearest_indices(self.encoder(x))

    def codebook_vectors(self, indices: Tensor) -> Tensor:
        """Return the codebook vectors (B, D, h, w) of indices (B, h, w)."""
        return self.codebook[indices].permute(0, 3, 1, 2)

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the quantized code z_q (B, D, h, w) of x (B, *shape)."""
        return self.codebook_vectors(self.encode_indices(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, *shape), clamped to their range, of codes (B, D, h, w).

        Each code vector is first replaced by the nearest codebook vector.
        """
        z_q = self.codebook_vectors(self.nearest_indices(z))
        return self.decoder(z_q).clamp(*self.spec.range)


def codebook_perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of the code frequencies, given counts (K,).

    It equals the number of codes in use if all of them are used equally.
    """
    return torch.special.entr(counts / counts.sum()).sum().exp()
