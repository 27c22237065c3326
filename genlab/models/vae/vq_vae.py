"""The VQ-VAE of van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.nn.conv import halved
from genlab.spec import Batch, Count, Decay, NonNegative, Positive, PositiveFloat, Spec

DOWN = 2  # stride-2 convolutions: a code has a quarter of the image's sides


class Block(nn.Module):
    """The paper's residual block (section 4.1): x + conv1×1(relu(conv3×3(relu(x)))), of a map (B, C, h, w)."""

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


class VQVAE(nn.Module):
    """An autoencoder whose code is a map of h × w codebook vectors, h and w a quarter of the image's sides.

    It is a codec: a prior over `indices(x)` (B, h, w) or over `encode(x)` (B, D, h, w) makes it a generator, whose draws
    `decode(lookup(indices))` or `decode(z)` turns into images. `loss` leaves the codebook as it is; the trainer moves it
    by `update`, with the statistics of the joint batch.

    Args:
        channels: width of the convolutions; blocks: residual blocks on each side.
        codes: K, the number of codebook vectors; latent: D, their dimension.
        beta: weight of the commitment loss (equation 3).
        decay: γ of the codebook's running means (appendix A.1).
        dead: a code is dead when its running count is below this share of what it has when all are used equally.
        variance: of the data in its range; the squared error is measured in it, so that beta's weight is the same.

    Raises:
        UserError: the data is no image, or too small to be halved twice.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        channels: Positive = 256,
        blocks: Count = 2,
        codes: Positive = 512,
        latent: Positive = 64,
        beta: NonNegative = 0.25,
        decay: Decay = 0.99,
        dead: PositiveFloat = 0.1,
        variance: PositiveFloat = 0.25,
    ) -> None:
        super().__init__()
        if spec.kind != "image" or min(spec.shape[1:]) < 2**DOWN:
            raise UserError(
                f"vq_vae halves an image {DOWN} times, and this is {spec.kind} data of shape {spec.shape}"
            )
        self.spec, self.beta, self.decay, self.dead, self.variance = (
            spec,
            beta,
            decay,
            dead,
            variance,
        )
        c, *size = spec.shape
        full, half, quarter = halved(size, DOWN)
        odd = [
            (a[0] % 2, a[1] % 2) for a in (half, full)
        ]  # the row and column that halving dropped
        self.grid = quarter  # (h, w) of a code
        self.encoder = nn.Sequential(
            nn.Conv2d(c, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            *(Block(channels) for _ in range(blocks)),
            nn.Conv2d(channels, latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, channels, 3, padding=1),
            *(Block(channels) for _ in range(blocks)),
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, output_padding=odd[0]),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, c, 4, stride=2, padding=1, output_padding=odd[1]),
        )
        # m and N of appendix A.1; with N = 0 every code is dead, so that the first update draws all from the first batch
        self.register_buffer("codebook", torch.randn(codes, latent))  # e = m / N
        self.register_buffer("sums", torch.zeros(codes, latent))  # m
        self.register_buffer("counts", torch.zeros(codes))  # N

    # --- the objective ----------------------------------------------------------------------------------------------

    def nearest(self, z_e: Tensor) -> Tensor:
        """Return the index (B, h, w) of the codebook vector nearest to each of z_e (B, D, h, w): equation 1."""
        flat = z_e.permute(0, 2, 3, 1)  # (B, h, w, D)
        # ‖z − e‖² less ‖z‖², which is the same for every e
        return (self.codebook.square().sum(1) - 2 * flat @ self.codebook.T).argmin(-1)

    def quantise(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_q (B, D, h, w), through which the gradient passes straight to z_e, and the indices (B, h, w)."""
        index = self.nearest(z_e)
        z_q = self.lookup(index)
        return z_e + (z_q - z_e).detach(), index

    # eq. 3 with the Gaussian likelihood, a value; the codebook's own term is the running mean of appendix A.1
    def objective(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the losses, and what the codebook's update needs: vectors z_e (T, D) and their indices (T,)."""
        z_e = self.encoder(x)
        z_q, index = self.quantise(z_e)
        reconstruction = F.mse_loss(self.decoder(z_q), x) / self.variance
        commitment = F.mse_loss(z_e, z_q.detach())
        loss = reconstruction + self.beta * commitment
        vectors = z_e.detach().permute(0, 2, 3, 1).flatten(0, 2)
        return (
            {"loss": loss, "reconstruction": reconstruction, "commitment": commitment},
            vectors,
            index.flatten(),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the reconstruction's mean squared error + beta · the commitment's."""
        return self.objective(batch.x)[0]

    def statistics(self, vectors: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many (K,) vectors (T, D) each code was given, and their sums (K, D)."""
        vectors = vectors.to(self.sums)
        n = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(vectors[:, 0]))
        return n, torch.zeros_like(self.sums).index_add_(0, index, vectors)

    # eqs. 6 to 8: N ← γ N + (1 − γ) n,  m ← γ m + (1 − γ) Σ z,  e = m / N
    @torch.no_grad()
    def update(self, n: Tensor, total: Tensor, candidates: Tensor) -> Tensor:
        """Move the codebook by a joint batch's statistics; return how many codes were dead.

        Each dead code starts anew at one of the `candidates` (C, D), with twice the count at which a code is dead, so that
        it soon follows what it is given, or dies again (revival: Dhariwal et al. 2020, https://arxiv.org/abs/2005.00341).
        """
        self.counts.lerp_(n, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        least = self.dead * n.sum() / len(n)
        dead = self.counts < least
        at = torch.randint(len(candidates), (len(n),), device=n.device)
        self.counts.copy_(torch.where(dead, 2 * least, self.counts))
        self.sums.copy_(
            torch.where(dead[:, None], 2 * least * candidates[at].to(self.sums), self.sums)
        )
        self.codebook.copy_(self.sums / self.counts[:, None])
        return dead.sum()

    # --- abilities --------------------------------------------------------------------------------------------------

    def indices(self, x: Tensor) -> Tensor:
        """Return the codebook indices (B, h, w) int64 of x (B, *shape)."""
        return self.nearest(self.encoder(x))

    def lookup(self, index: Tensor) -> Tensor:
        """Return the codebook vectors (B, D, h, w) of indices (B, h, w)."""
        return self.codebook[index].permute(0, 3, 1, 2)

    def encode(self, x: Tensor) -> Tensor:
        """Return the quantised code z_q (B, D, h, w) of x (B, *shape)."""
        return self.lookup(self.indices(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return the image (B, *shape), cut to its range, of codes (B, D, h, w), each moved to the nearest vector."""
        return self.decoder(self.lookup(self.nearest(z))).clamp(*self.spec.range)


def perplexity(n: Tensor) -> Tensor:
    """Return exp of the entropy of the shares n / Σ n (K,): the number of codes in use, were all used equally."""
    return torch.special.entr(n / n.sum()).sum().exp()
