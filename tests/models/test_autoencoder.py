"""Autoencoders against PCA and the Wiener filter, and the plots of a latent space."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.autoencoder.autoencoder import Autoencoder
from genlab.models.autoencoder.dae import DenoisingAutoencoder
from genlab.models.autoencoder.sparse_ae import SparseAutoencoder, bernoulli_kl
from genlab.models.vae.vae import VAE
from genlab.spec import Batch, DataSpec
from genlab.viz import latents

IMAGE = DataSpec((1, 8, 8), range=(0.0, 1.0), levels=17)
POINTS = DataSpec((6,), kind="points", levels=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_linear_autoencoder_is_pca(k):
    """Without hidden layers the optimum has PCA's squared error and principal subspace."""
    torch.manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.5, 0.7, 0.4, 0.2], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    x = torch.randn(400, 6, dtype=torch.float64) * scales @ rotation.T + 1
    centered = x - x.mean(0)
    _, s, axes = torch.linalg.svd(centered, full_matrices=False)
    least = s[k:].square().sum().item() / len(x)  # PCA's squared error per item

    model = Autoencoder(POINTS, hidden=(), latent=k, output="linear").double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = model.loss(Batch(x))["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    found = model.loss(Batch(x))["loss"].item()
    assert least * (1 - 1e-10) <= found <= least * (1 + 1e-3)
    span = torch.linalg.qr(model.decoder[-1].weight.detach()).Q  # (6, k)
    cosines = torch.linalg.svdvals(axes[:k] @ span)
    assert cosines.clamp(max=1).acos().max() < 0.01


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (IMAGE, {}),
        (IMAGE, {"network": "conv", "hidden": (4, 6), "activation": "silu", "latent": 2}),
        (
            DataSpec((3, 9, 13), range=(0.0, 1.0)),
            {"network": "conv", "hidden": (4, 6), "output": "linear"},
        ),
        (POINTS, {"hidden": (5,), "output": "linear", "latent": 1}),
    ],
)
def test_loss_is_the_squared_error_of_the_reconstruction(spec, options):
    torch.manual_seed(0)
    model = Autoencoder(spec, **({"hidden": (20, 10), "latent": 3} | options)).double()
    x = torch.rand(7, *spec.shape, dtype=torch.float64)
    z = model.encode(x)
    assert z.shape == (7, options.get("latent", 3))
    r = model.decode(z)
    assert r.shape == x.shape
    if options.get("output") != "linear":
        assert r.min() >= 0 and r.max() <= 1
    assert model.loss(Batch(x))["loss"].item() == pytest.approx(
        (x - r).square().sum().item() / 7, rel=1e-12
    )
    assert abilities(model) == {"encode", "decode"}


def test_default_layers_are_those_of_the_paper():
    """784-1000-500-250-30 and back: Hinton & Salakhutdinov 2006, figure 1."""
    model = Autoencoder(DataSpec((1, 28, 28), range=(0.0, 1.0)))
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    widths = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    assert shapes == [(b, a) for a, b in pairwise(widths)]


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (DataSpec((1, 8, 8)), {}, "preprocess.range=[0,1]"),
        (POINTS, {}, "model.output=linear"),
        (IMAGE, {"network": "conv", "hidden": ()}, "model.network=mlp"),
        (IMAGE, {"network": "conv", "hidden": (4, 4, 4, 4)}, "model.network=mlp"),
        (DataSpec((5,), kind="tokens", vocab=3), {}, "images and points"),
    ],
)
def test_errors_name_the_fix(spec, options, words):
    with pytest.raises(UserError) as refusal:
        Autoencoder(spec, **options)
    assert words in str(refusal.value)


# --- plots ----------------------------------------------------------------------------------------


class SmallData:
    """Twenty held-out items with labels."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    def head(self, split: str, n: int, *, seed: int) -> Batch:
        torch.manual_seed(seed)
        return Batch(torch.rand(min(n, 20), *self.spec.shape), torch.arange(min(n, 20)) % 3)


class NoiseEncoder(GenerativeModel):
    """A model that encodes in many steps, so that no more items than are shown may be encoded."""

    step_by_step = True
    latent_interpolation = "spherical"

    spec = DataSpec((1, 8, 8), range=(0.0, 1.0))

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, x: torch.Tensor, *, steps: int | None = None) -> torch.Tensor:
        assert len(x) <= latents.MAX_RECONSTRUCTIONS
        return self.scale * x

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z


def models_and_plots():
    square = DataSpec((2,), kind="points", levels=0)
    yield Autoencoder(IMAGE, hidden=(8,), latent=2), {"latent", "manifold", "reconstructions"}
    yield Autoencoder(IMAGE, hidden=(8,), latent=3), {"latent", "reconstructions"}
    yield (
        Autoencoder(square, hidden=(8,), latent=2, output="linear"),
        {"latent", "manifold", "reconstructions"},
    )
    yield (
        VAE(square, hidden=(8,), latent=2, likelihood="gaussian"),
        {"latent", "manifold", "reconstructions"},
    )
    yield (
        VAE(DataSpec((1, 8, 8), levels=2, range=(0.0, 1.0)), latent=1),
        {"latent", "reconstructions"},
    )
    only_encodes = Autoencoder(IMAGE, hidden=(8,), latent=5)
    only_encodes.decode = None
    yield only_encodes, {"latent"}
    yield NoiseEncoder(), {"reconstructions"}
    yield torch.nn.Linear(2, 2), set()


@pytest.mark.parametrize(("model", "names"), list(models_and_plots()))
def test_latent_space_plots_depend_on_the_abilities(model, names):
    spec = getattr(model, "spec", IMAGE)
    found = latents.latent_space_plots(model, SmallData(spec), n=30, seed=1)
    assert set(found) == names
    again = latents.latent_space_plots(model, SmallData(spec), n=30, seed=1)
    for name, picture in found.items():
        grid = picture.grid_without_names
        assert grid.dtype == np.uint8 and grid.ndim == 3 and grid.shape[2] == 3 and grid.std() > 0
        assert (grid == again[name].grid_without_names).all()


def test_prior_axes_are_quantiles():
    """Evenly in probability from −2σ to 2σ of N(0, I): Φ⁻¹ of evenly spaced levels."""
    torch.manual_seed(0)
    a, b = latents.prior_quantile_axes(torch.randn(latents.NUM_PRIOR_CODES, 2), side=5)
    edge = torch.special.ndtr(torch.tensor(-2.0))
    expected = torch.special.ndtri(torch.linspace(edge, 1 - edge, 5))
    torch.testing.assert_close(a, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(b, expected, atol=0.03, rtol=0)


def test_manifold_has_the_first_code_to_the_right_and_the_second_upward():
    spec = DataSpec((1, 1, 1), range=(0.0, 1.0))
    axes = torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.25, 0.5])
    picture = latents.plot_decoded_code_grid(
        lambda z: (z[:, 0] + z[:, 1]).view(-1, 1, 1, 1), spec, axes
    )
    values = picture.grid_without_names[..., 0] / 255
    np.testing.assert_allclose(values, [[0.5, 1.0], [0.25, 0.75], [0.0, 0.5]], atol=0.003)


def test_codes_of_many_dimensions_are_projected_to_the_plane_of_largest_variance():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 4)) * [0.1, 3.0, 0.1, 1.0]
    plane, title, axes = latents.project_to_plane(z, None)
    assert "of 4" in title and axes == ("principal component 1", "principal component 2")
    for found, expected in zip(plane.T, (z[:, 1], z[:, 3]), strict=True):
        assert abs(np.corrcoef(found, expected)[0, 1]) > 0.99


def test_reconstructions_are_shown_below_their_originals():
    x = torch.arange(6.0).view(6, 1, 1, 1) / 10
    picture = latents.plot_reconstructions(
        x, 1 - x, DataSpec((1, 1, 1), range=(0.0, 1.0)), columns=3
    )
    values = picture.images[..., 0].reshape(4, 3) / 255
    assert list(picture.row_names) == ["item", "reconstruction"] * 2
    np.testing.assert_allclose(
        values, [[0, 0.1, 0.2], [1, 0.9, 0.8], [0.3, 0.4, 0.5], [0.7, 0.6, 0.5]], atol=0.01
    )


# --- denoising and sparse autoencoders ------------------------------------------------------------


def corrupt_constant(noise: str, level: float, value: float) -> torch.Tensor:
    """Return 200,000 corrupted values, all equal to `value` before."""
    torch.manual_seed(0)
    model = DenoisingAutoencoder(IMAGE, hidden=(), noise=noise, noise_level=level)
    return model.corrupt(torch.full((3125, *IMAGE.shape), value, dtype=torch.float64)).flatten()


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 1.0])
def test_corruption_has_its_distribution(level):
    n = 200_000
    normal = corrupt_constant("gaussian", level, 0.25)
    assert normal.mean().item() == pytest.approx(0.25, abs=5 * level / n**0.5)
    assert normal.std().item() == pytest.approx(level, rel=0.01, abs=1e-12)
    kept = (normal - 0.25).abs() < level  # one standard deviation
    assert level == 0 or kept.double().mean().item() == pytest.approx(0.6827, abs=0.005)
    masked = corrupt_constant("masking", level, 0.25)
    assert set(masked.unique().tolist()) <= {0.0, 0.25}
    assert (masked == 0).double().mean().item() == pytest.approx(level, abs=0.006)
    salted = corrupt_constant("salt_and_pepper", level, 0.25)
    assert set(salted.unique().tolist()) <= {0.0, 0.25, 1.0}
    for end in (0.0, 1.0):
        assert (salted == end).double().mean().item() == pytest.approx(level / 2, abs=0.006)


def test_denoising_loss_is_the_error_against_the_clean_item():
    torch.manual_seed(0)
    model = DenoisingAutoencoder(
        IMAGE, hidden=(8,), latent=4, noise="salt_and_pepper", noise_level=0.3
    ).double()
    x = torch.rand(7, *IMAGE.shape, dtype=torch.float64)
    torch.manual_seed(1)
    loss = model.loss(Batch(x))["loss"].item()
    torch.manual_seed(1)
    noisy = model.corrupt(x)
    assert loss == pytest.approx((x - model.denoise(noisy)).square().sum().item() / 7, rel=1e-12)
    assert model.denoise(noisy).shape == x.shape and abilities(model) == {
        "encode",
        "decode",
        "denoise",
    }


def test_linear_denoiser_learns_the_wiener_filter():
    """For Gaussian noise on N(0, C) the best linear map is C (C + σ² I)⁻¹."""
    torch.manual_seed(0)
    sd = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5, 0.5])
    model = DenoisingAutoencoder(
        POINTS, hidden=(), latent=6, output="linear", noise="gaussian", noise_level=1.0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 600)
        optimizer.zero_grad()
        model.loss(Batch(torch.randn(512, 6) * sd))["loss"].backward()
        optimizer.step()
    wiener = sd.square() / (sd.square() + 1)
    with torch.no_grad():
        found = model.denoise(torch.eye(6)) - model.denoise(torch.zeros(1, 6))
    torch.testing.assert_close(found, torch.diag(wiener), atol=0.06, rtol=0)


@pytest.mark.parametrize("target", [0.05, 0.3])
def test_kl_sparsity_penalty_matches_torch_distributions(target):
    torch.manual_seed(0)
    model = SparseAutoencoder(
        IMAGE, hidden=(8,), latent=12, sparsity_weight=3.0, sparsity_target=target
    ).double()
    x = torch.rand(9, *IMAGE.shape, dtype=torch.float64)
    z = model.encode(x)
    assert z.min() > 0 and z.max() < 1
    rate = Bernoulli(torch.tensor(target, dtype=torch.float64))
    expected = kl_divergence(rate, Bernoulli(z.mean(0))).sum()
    losses = model.loss(Batch(x))
    torch.testing.assert_close(losses["sparsity"], expected, atol=1e-10, rtol=0)
    error = (x - model.decode(z)).square().sum() / 9
    torch.testing.assert_close(losses["loss"], error + 3 * expected)
    torch.testing.assert_close(
        bernoulli_kl(target, torch.full((1,), target).double()), torch.zeros(1).double()
    )


def test_l1_sparsity_penalty_is_the_sum_of_relu_codes():
    torch.manual_seed(0)
    model = SparseAutoencoder(
        IMAGE, hidden=(), latent=12, sparsity="l1", sparsity_weight=0.5
    ).double()
    x = torch.rand(9, *IMAGE.shape, dtype=torch.float64)
    z = model.encode(x)
    assert z.min() == 0 and (z == 0).any(1).all()
    losses = model.loss(Batch(x))
    torch.testing.assert_close(losses["loss"], losses["error"] + 0.5 * z.abs().sum() / 9)


@pytest.mark.parametrize("sparsity, weight", [("kl", 2.0), ("l1", 0.3)])
def test_sparsity_penalty_halves_the_mean_activation(sparsity, weight):
    torch.manual_seed(0)
    x = torch.rand(256, 5).double() @ torch.rand(5, 64).double()
    x = (x / x.max()).view(-1, 1, 8, 8)
    means = []
    for w in (0.0, weight):
        torch.manual_seed(1)
        model = SparseAutoencoder(
            IMAGE, hidden=(), latent=40, sparsity=sparsity, sparsity_weight=w, sparsity_target=0.05
        ).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            model.loss(Batch(x))["loss"].backward()
            optimizer.step()
        means.append(model.encode(x).mean().item())
    assert means[1] < 0.5 * means[0]


@pytest.mark.parametrize(
    ("kind", "spec", "options", "words"),
    [
        ("dae", IMAGE, {"noise": "masking", "noise_level": 1.5}, "model.noise_level=1.5"),
        ("dae", POINTS, {"noise": "salt_and_pepper", "output": "linear"}, "model.noise=gaussian"),
        ("dae", DataSpec((1, 8, 8)), {}, "preprocess.range=[0,1]"),
        ("sparse_ae", IMAGE, {"sparsity_target": 0.0}, "model.sparsity_target=0"),
    ],
)
def test_errors_of_variants_name_the_fix(kind, spec, options, words):
    with pytest.raises(UserError) as refusal:
        {"dae": DenoisingAutoencoder, "sparse_ae": SparseAutoencoder}[kind](spec, **options)
    assert words in str(refusal.value)
