"""Generative Adversarial Text to Image Synthesis: Reed et al. 2016.

https://arxiv.org/abs/1605.05396: GAN-CLS, a discriminator that also judges whether the caption
matches, and GAN-INT, a generator that is also trained on captions between captions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import Noise, diversity_ratio_logs, frozen_running_statistics
from genlab.models.gan.dcgan import (
    DiscriminatorFeatures,
    Generator,
    halved_side_channels,
    initialize_weights,
    require_square_power_of_two_images,
)
from genlab.models.gan.losses import LOSSES, LossName
from genlab.models.gan.regularizers import DiscriminatorRegularization, sum_losses
from genlab.nn.text_encoder import TextEncoder
from genlab.spec import Batch, DataSpec, Decay, Fraction, NonNegative, Positive


class TextGAN(DiscriminatorRegularization):
    """DCGAN's networks conditioned on a caption t by its vector φ(t).

    A code (B, latent + text_width) is the noise z followed by φ(t), so codes between those of two
    captions are captions between captions. φ belongs to the discriminator, whose loss trains it; G
    receives its vectors without gradient. Captions are bytes (B, L) int64, padded with 0.

    Args:
        latent: dimension of the noise z.
        width: number of maps at half the image's side.
        text_width, text_layers, text_heads: sizes of the text encoder φ.
        text_dim: dimension to which each network projects φ(t).
        interpolation: β of GAN-INT: the caption's share of a vector between two captions.
        interpolation_weight: weight of GAN-INT in G's loss; 0 disables it.
        label_dropout: share of the captions withheld in training. `sample` without a prompt draws
            as for a withheld caption, from all images.
        regularization: of D; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks captions, or its images are not square with a side of 16, 32, 64 …
    """

    text_conditional = True

    generator: TextGenerator
    discriminator: TextDiscriminator

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: Positive = 100,
        width: Positive = 128,
        text_width: Positive = 256,
        text_layers: Positive = 2,
        text_heads: Positive = 4,
        text_dim: Positive = 128,
        noise: Noise = "normal",
        loss: LossName = "non_saturating",
        interpolation: Fraction = 0.5,
        interpolation_weight: NonNegative = 1.0,
        label_dropout: Decay = 0.1,
        **regularization: Any,
    ) -> None:
        super().__init__(**regularization)
        if spec.source is None or spec.source.kind != "tokens":
            raise UserError(
                "text_gan needs images with captions: dataset=captions, or "
                "dataset=captioned_folder dataset.path=…"
            )
        require_square_power_of_two_images(spec, "text_gan")
        if text_width % text_heads:
            raise UserError(
                f"model.text_width={text_width} must be a multiple of model.text_heads={text_heads}"
            )
        self.spec, self.source = spec, spec.source
        self.latent, self.noise, self.objective = latent, noise, LOSSES[loss]
        self.interpolation, self.interpolation_weight = interpolation, interpolation_weight
        self.label_dropout = label_dropout
        channels = halved_side_channels(spec, width)
        images = Generator(spec, latent + text_dim, channels[::-1])
        self.generator = TextGenerator(images, latent, project_text(text_width, text_dim))
        self.generator.apply(initialize_weights)
        encoder = TextEncoder(
            spec.source.shape[0], width=text_width, num_layers=text_layers, num_heads=text_heads
        )
        judge = MatchingDiscriminator(
            spec.shape[0],
            channels,
            text_width,
            text_dim,
            bias=not self.objective.is_shift_invariant,
        )
        judge.apply(initialize_weights)
        self.apply_spectral_norm_if_enabled(judge)
        self.discriminator = TextDiscriminator(encoder, judge)

    # --- losses -----------------------------------------------------------------------------------

    # Algorithm 1, GAN-CLS: with s_r = D(x, φ(t)), s_w = D(x, φ(t̂)), s_f = D(G(z, φ(t)), φ(t)),
    # L_D = log s_r + (log(1 − s_w) + log(1 − s_f))/2, which D maximizes.
    def discriminator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return D's loss on matching, mismatching and fake pairs; G and its statistics are kept.

        The mismatching caption of an image is that of the next image of the batch. A single image
        has none.

        Args:
            penalty_scale: factor of the gradient penalties. 0 leaves them out.
        """
        captions = batch_captions(batch)
        text = self.discriminator.encode_text(self.drop_captions_randomly(captions))
        with torch.no_grad(), frozen_running_statistics(self.generator):
            fake_x = self.generator(torch.cat([self.draw_noise(len(batch)), text.detach()], 1))
        D = partial(self.discriminator, text=text)
        x = self.enable_gradient_for_r1(batch.x, penalty_scale)
        real, fake = D(x), D(fake_x)  # (B,)
        loss = self.objective.discriminator(real, fake)
        logs: dict[str, Tensor] = {}
        if len(batch) > 1:
            other = self.discriminator.encode_text(captions.roll(1, 0))
            wrong = self.discriminator(x, text=other)
            loss = (loss + self.objective.discriminator(real, wrong)) / 2
            logs = {"D(x, wrong)": (torch.sigmoid(wrong) if self.has_probability else wrong).mean()}
        logs = self.objective.discriminator_log_entries(real, fake, loss) | logs
        # the graph of φ(t) is that of the loss
        fixed = partial(self.discriminator, text=text.detach())
        penalties, penalty_logs = self.weighted_penalties(
            fixed, real, x, (x, fake_x), penalty_scale
        )
        return {"loss": sum(penalties, loss), **logs, **penalty_logs}

    # Algorithm 1 with GAN-INT (eq. 5): G also minimizes E log(1 − D(G(z, βφ(t₁) + (1 − β)φ(t₂)))).
    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return G's loss on the captions of a batch and on vectors between them; D is kept."""
        D, captions = self.discriminator, batch_captions(batch)
        with torch.no_grad(), frozen_running_statistics(D):
            text = D.encode_text(self.drop_captions_randomly(captions))
        texts = {"adversarial": (1.0, text)}
        if self.interpolation_weight and len(batch) > 1:
            between = torch.lerp(text.roll(1, 0), text, self.interpolation)
            texts["interpolated"] = (self.interpolation_weight, between)
        losses: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        for name, (weight, vectors) in texts.items():
            fake_x = self.generator(torch.cat([self.draw_noise(len(batch)), vectors], 1))
            with frozen_running_statistics(D):
                fake = D(fake_x, text=vectors)
                with torch.no_grad():
                    real = D(batch.x, text=text) if self.objective.needs_real else None
            losses[name] = weight * self.objective.generator(fake, real)
            logs = logs or diversity_ratio_logs(fake_x, batch.x)
        return {"loss": sum_losses(losses.values()), **losses, **logs}

    @property
    def has_probability(self) -> bool:
        """Whether σ(logit) is D's probability that a pair is real."""
        return self.objective.has_probability

    def drop_captions_randomly(self, captions: Tensor) -> Tensor:
        """Replace a random share `label_dropout` of the captions (B, L) by empty ones."""
        if not self.label_dropout:
            return captions
        keep = torch.rand(len(captions), device=captions.device) >= self.label_dropout
        return captions * keep[:, None]

    def draw_noise(self, n: int) -> Tensor:
        """Draw the noise z (n, latent) of codes."""
        z = next(self.parameters()).new_empty(n, self.latent)
        return z.normal_() if self.noise == "normal" else z.uniform_(-1, 1)

    # --- abilities --------------------------------------------------------------------------------

    @torch.no_grad()
    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, latent + text_width): noise, and the vectors of captions.

        Args:
            y: captions (n, L); None leaves them empty.
        """
        z = self.draw_noise(n)
        if y is None:
            y = torch.zeros(n, *self.source.shape, dtype=torch.int64)
        return torch.cat([z, self.discriminator.encode_text(y.to(z.device)).to(z)], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) (B, *shape) of codes z (B, latent + text_width)."""
        return self.generator(z)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, **sampler: Any) -> Tensor:
        """Draw n images (n, *shape) for the captions y (n, L), or as without a caption."""
        return self.decode(self.prior(n, y))


def batch_captions(batch: Batch) -> Tensor:
    """Return the captions (B, L) of a batch."""
    assert batch.cond is not None
    return batch.cond


def project_text(text_width: int, text_dim: int) -> nn.Module:
    """Return the layer that makes φ(t) (B, text_width) smaller: (B, text_dim)."""
    return nn.Sequential(nn.Linear(text_width, text_dim), nn.LeakyReLU(0.2))


class TextGenerator(nn.Module):
    """G: codes (B, latent + text_width) to images (B, C, S, S)."""

    def __init__(self, images: Generator, latent: int, project: nn.Module) -> None:
        super().__init__()
        self.latent = latent
        self.project, self.images = project, images

    def forward(self, code: Tensor) -> Tensor:
        z, text = code[:, : self.latent], code[:, self.latent :]
        return self.images(torch.cat([z, self.project(text)], 1))


class MatchingDiscriminator(nn.Module):
    """Images (B, C, S, S) and vectors of captions (B, text_width) to logits (B,).

    The projected vector is repeated at each place of the last 4×4 maps and concatenated to them;
    a 1×1 convolution, batch normalization and leaky ReLU follow (section 4.1, figure 2).
    """

    def __init__(
        self, in_channels: int, channels: list[int], text_width: int, text_dim: int, *, bias: bool
    ) -> None:
        super().__init__()
        self.features = DiscriminatorFeatures(in_channels, channels)
        self.project = project_text(text_width, text_dim)
        self.join = nn.Sequential(
            nn.Conv2d(channels[-1] + text_dim, channels[-1], 1, bias=False),
            nn.BatchNorm2d(channels[-1]),
            nn.LeakyReLU(0.2),
        )
        self.head = nn.Conv2d(channels[-1], 1, 4, bias=bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.features(x)
        maps = self.project(text)[:, :, None, None].expand(-1, -1, *h.shape[2:])
        return self.head(self.join(torch.cat([h, maps], 1))).flatten()


class TextDiscriminator(nn.Module):
    """D: images (B, C, S, S) and vectors of captions (B, text_width) to logits (B,).

    Its text encoder makes the vector of a caption: the mean of the vectors of its bytes.
    """

    def __init__(self, encoder: TextEncoder, judge: MatchingDiscriminator) -> None:
        super().__init__()
        self.encoder, self.judge = encoder, judge

    def encode_text(self, captions: Tensor) -> Tensor:
        """Return φ(t) (B, text_width) of captions t (B, L)."""
        vectors, mask = self.encoder(captions)
        weights = mask[..., None].to(vectors)
        return (vectors * weights).sum(1) / weights.sum(1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = self.judge(x, text)
        return logits
