"""The autoencoder against principal components, its layers, and the pictures of a latent space."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.autoencoder.autoencoder import Autoencoder
from genlab.models.vae.vae import VAE
from genlab.spec import Batch, Spec
from genlab.tasks import latent

IMAGE = Spec((1, 8, 8), range=(0.0, 1.0), levels=17)
POINTS = Spec((6,), kind="points", levels=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_linear_autoencoder_is_pca(k):
    """Without hidden layers the optimum is PCA: its squared error, and the subspace of its first k components."""
    torch.manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.5, 0.7, 0.4, 0.2], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    x = torch.randn(400, 6, dtype=torch.float64) * scales @ rotation.T + 1
    centred = x - x.mean(0)
    _, s, axes = torch.linalg.svd(centred, full_matrices=False)
    least = s[k:].square().sum().item() / len(x)  # PCA's squared error an item

    model = Autoencoder(POINTS, hidden=(), latent=k, output="linear").double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe")

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
        (Spec((3, 9, 13), range=(0.0, 1.0)), {"network": "conv", "hidden": (4, 6), "output": "linear"}),
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
    if spec.kind == "image":
        assert r.min() >= 0 and r.max() <= 1
    if options.get("output") != "linear" or spec.kind == "points":  # a linear output's pixels are cut only when shown
        assert model.loss(Batch(x))["loss"].item() == pytest.approx((x - r).square().sum().item() / 7, rel=1e-12)
    assert abilities(model) == {"encode", "decode"}


def test_the_papers_layers():
    """784-1000-500-250-30 and back: Hinton & Salakhutdinov 2006, figure 1."""
    model = Autoencoder(Spec((1, 28, 28), range=(0.0, 1.0)))
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    widths = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    assert shapes == [(b, a) for a, b in pairwise(widths)]


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (Spec((1, 8, 8)), {}, "dataset.range=[0,1]"),
        (POINTS, {}, "model.output=linear"),
        (IMAGE, {"network": "conv", "hidden": ()}, "model.network=mlp"),
        (IMAGE, {"network": "conv", "hidden": (4, 4, 4, 4)}, "model.network=mlp"),
        (Spec((5,), kind="tokens", vocab=3), {}, "images or points"),
    ],
)
def test_refusals_name_the_mend(spec, options, words):
    with pytest.raises(UserError) as refusal:
        Autoencoder(spec, **options)
    assert words in str(refusal.value)


# --- the pictures -----------------------------------------------------------------------------------------------------


class Data:
    """Twenty held-out items with labels."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def take(self, split: str, n: int, *, seed: int) -> Batch:
        torch.manual_seed(seed)
        return Batch(torch.rand(min(n, 20), *self.spec.shape), torch.arange(min(n, 20)) % 3)


def models():
    square = Spec((2,), kind="points", levels=0)
    yield Autoencoder(IMAGE, hidden=(8,), latent=2), {"latent", "manifold", "reconstructions"}
    yield Autoencoder(IMAGE, hidden=(8,), latent=3), {"latent", "reconstructions"}
    yield Autoencoder(square, hidden=(8,), latent=2, output="linear"), {"latent", "manifold", "reconstructions"}
    yield VAE(square, hidden=(8,), latent=2, likelihood="gaussian"), {"latent", "manifold", "reconstructions"}
    yield VAE(Spec((1, 8, 8), levels=2, range=(0.0, 1.0)), latent=1), {"latent", "reconstructions"}
    only_encodes = Autoencoder(IMAGE, hidden=(8,), latent=5)
    only_encodes.decode = None
    yield only_encodes, {"latent"}
    yield torch.nn.Linear(2, 2), set()


@pytest.mark.parametrize(("model", "names"), list(models()))
def test_latent_pictures_that_fit(model, names):
    spec = getattr(model, "spec", IMAGE)
    found = latent.latent_pictures(model, Data(spec), n=30, seed=1)
    assert set(found) == names
    again = latent.latent_pictures(model, Data(spec), n=30, seed=1)
    for name, picture in found.items():
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 0
        assert (picture == again[name]).all()


def test_a_priors_axes_are_its_quantiles():
    """Evenly in probability from −2σ to 2σ of N(0, I): Φ⁻¹ of evenly spaced levels."""
    torch.manual_seed(0)
    a, b = latent.prior_axes(torch.randn(latent.DRAWS, 2), side=5)
    edge = torch.special.ndtr(torch.tensor(-2.0))
    expected = torch.special.ndtri(torch.linspace(edge, 1 - edge, 5))
    torch.testing.assert_close(a, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(b, expected, atol=0.03, rtol=0)


def test_a_manifold_has_the_first_code_to_the_right_and_the_second_upwards():
    spec = Spec((1, 1, 1), range=(0.0, 1.0))
    axes = torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.25, 0.5])
    picture = latent.manifold(lambda z: (z[:, 0] + z[:, 1]).view(-1, 1, 1, 1), spec, axes)
    cell = picture.shape[1] // 2
    values = picture[cell // 2 :: cell, cell // 2 :: cell, 0] / 255
    np.testing.assert_allclose(values, [[0.5, 1.0], [0.25, 0.75], [0.0, 0.5]], atol=0.003)


def test_the_plane_of_many_dimensions_is_that_of_most_variance():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 4)) * [0.1, 3.0, 0.1, 1.0]
    plane, title = latent.projected(z, None)
    assert "of 4" in title
    for found, expected in zip(plane.T, (z[:, 1], z[:, 3]), strict=True):
        assert abs(np.corrcoef(found, expected)[0, 1]) > 0.99


def test_reconstructions_stand_below_their_originals():
    x = torch.arange(6.0).view(6, 1, 1, 1) / 10
    picture = latent.reconstructions(x, 1 - x, Spec((1, 1, 1), range=(0.0, 1.0)), columns=3)
    cell = (picture.shape[1] - 2) // 3
    values = picture[cell // 2 :: cell, cell // 2 :: cell, 0][:4, :3] / 255
    np.testing.assert_allclose(values, [[0, 0.1, 0.2], [1, 0.9, 0.8], [0.3, 0.4, 0.5], [0.7, 0.6, 0.5]], atol=0.01)
