"""Densities and searches in full precision under autocast."""

from __future__ import annotations

import pytest
import torch
from helpers.recipes import build_training_objects, small_overrides

from genlab.models.vae.vq_vae import VQVAE
from genlab.spec import DataSpec

# Every value of these densities is computed in full precision; of the others the networks run in
# bf16, whose rounding of 0.4 % moves a value's log-density by up to 0.004 nats.
EXACT = ["affine", "bernoulli_mixture", "bm", "gmm", "pca"]
NETWORKS = ["cvae", "glow", "gpt_text", "iaf", "iwae", "m2", "made", "maf_points", "nice", "nsf"]
NETWORKS += ["realnvp", "realnvp_points", "vae", "vae_conv"]
SLOW = ["beta_vae", "debias_vae", "dip_vae", "flow_points", "gpt_pixels", "maf", "pixelcnn"]
SLOW += ["pixelcnn_pp", "tc_vae", "vae_iwae", "ddpm_points", "edm_points"]


@pytest.mark.parametrize(
    "recipe", [*EXACT, *NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_likelihood_under_bf16_is_that_of_fp32(recipe):
    """1×1 convolutions and triangular maps rounded z itself: −3 nats on MNIST."""
    _, dataset, trainer = build_training_objects(*small_overrides(recipe))
    model, x = trainer.model.eval(), trainer.device.to_device(dataset.head("train", 16)).x
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # far from initial values, at which many maps do nothing
            if p.requires_grad and recipe != "maf":
                p.add_(0.05 * torch.randn_like(p))

    @torch.no_grad()
    def likelihood() -> torch.Tensor:
        torch.manual_seed(1)
        if hasattr(model, "log_prob"):
            return model.log_prob(x)
        return model.elbo(x, num_terms=3)

    exact = likelihood()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = likelihood()
    assert rounded.dtype == exact.dtype == torch.float32
    dim = dataset.spec.dim
    tolerance = 1e-4 if recipe in EXACT else 0.02 + 0.004 * dim
    assert (rounded - exact).abs().max() < tolerance
    assert (rounded - exact).mean().abs() < max(tolerance / 4, 1e-4 * exact.abs().mean())


def test_codes_are_searched_in_full_precision():
    """In bf16 one code in ten was another one than that of `encode_indices`."""
    torch.manual_seed(0)
    model = VQVAE(DataSpec((1, 8, 8)), channels=8, num_codes=256, latent=16)
    z = torch.randn(64, 16, 2, 2).bfloat16()
    direct = (z.float().permute(0, 2, 3, 1)[..., None, :] - model.codebook).square().sum(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.nearest_indices(z)
        coarse = (z.permute(0, 2, 3, 1) @ model.codebook.T).float()
    assert torch.equal(found, direct.argmin(-1))
    coarse = (model.codebook.square().sum(1) - 2 * coarse).argmin(-1)
    assert (coarse != found).float().mean() > 0.01  # the test would see it
