"""The VAE against what is known exactly: a linear-Gaussian model, a sum over a grid of codes, PyTorch's divergences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae import vae as vae_module
from genlab.models.vae.vae import VAE, gaussian_kl
from genlab.spec import Batch, Spec

BINARY = Spec((1, 8, 8), levels=2, range=(0.0, 1.0))
POINTS = Spec((5,), kind="points", levels=0)
SMALL = {"hidden": (6, 7), "latent": 3}
CASES = [  # spec, options
    (BINARY, {}),
    (BINARY, {"network": "conv", "activation": "relu"}),
    (Spec((3, 9, 13), levels=2, range=(0.0, 1.0)), {"network": "conv", "hidden": (4, 6, 8)}),
    (
        Spec((1, 9, 8), levels=2, range=(0.0, 1.0)),
        {"network": "conv", "hidden": (4, 6), "dense": (7, 5)},
    ),
    (Spec((3, 8, 8), dequantised=True), {"likelihood": "gaussian"}),
    (
        Spec((3, 28, 28), dequantised=True, range=(0.0, 1.0)),
        {"likelihood": "gaussian", "sigma": 0.1, "network": "conv"},
    ),
    (POINTS, {"likelihood": "gaussian", "activation": "softplus"}),
    (POINTS, {"likelihood": "gaussian", "hidden": ()}),
]


def build(spec: Spec, **options) -> VAE:
    torch.manual_seed(0)
    return VAE(spec, **(SMALL | options)).double()


def data(spec: Spec, n: int) -> torch.Tensor:
    torch.manual_seed(1)
    if spec.levels == 2:
        return torch.bernoulli(torch.full((n, *spec.shape), 0.3, dtype=torch.float64))
    if spec.kind == "points":
        return torch.randn(n, *spec.shape, dtype=torch.float64)
    low, high = spec.range
    return low + (high - low) * torch.rand(n, *spec.shape, dtype=torch.float64)


def linear_gaussian(*, sigma: float = 0.7) -> tuple[VAE, MultivariateNormal]:
    """Return probabilistic PCA as a VAE with the true posterior, and the exact p(x) = N(b, W Wᵀ + sigma² I).

    The columns of W are orthogonal, so that the true posterior has a diagonal covariance.
    """
    vae = build(POINTS, hidden=(), likelihood="gaussian", sigma=sigma)
    orthogonal = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64)).Q
    w, b = orthogonal * torch.tensor([2.0, 1.0, 0.5]), torch.randn(5, dtype=torch.float64)
    precision = torch.eye(3, dtype=torch.float64) + w.mT @ w / sigma**2  # of p(z|x), (3, 3)
    to_mean = torch.linalg.solve(precision, w.mT) / sigma**2
    with torch.no_grad():
        vae.decoder[0].weight.copy_(w), vae.decoder[0].bias.copy_(b)
        vae.encoder[1].weight.copy_(torch.cat([to_mean, torch.zeros(3, 5)]))
        vae.encoder[1].bias.copy_(torch.cat([-to_mean @ b, -precision.diagonal().log()]))
        vae.log_sigma.fill_(math.log(sigma))
    return vae, MultivariateNormal(b, w @ w.mT + sigma**2 * torch.eye(5, dtype=torch.float64))


def exact_elbo(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """The ELBO's expectation: log p(x|z) is quadratic here, so that the mean over 2L points ±√L σ is exact."""
    mean, log_var = vae.posterior(x)
    latent = mean.shape[1]
    points = torch.cat([torch.eye(latent), -torch.eye(latent)]).double() * latent**0.5
    draws = [vae.log_likelihood(x, mean + (0.5 * log_var).exp() * eps) for eps in points]
    return torch.stack(draws).mean(0) - gaussian_kl(mean, log_var)


def test_bounds_meet_the_exact_density_at_the_true_posterior():
    vae, density = linear_gaussian()
    x = data(POINTS, 20)
    exact = density.log_prob(x)
    torch.testing.assert_close(exact_elbo(vae, x), exact, atol=1e-9, rtol=0)
    for k in (1, 7):  # p(x, z) / q(z|x) = p(x) for every z
        torch.testing.assert_close(vae.iwae(x, k), exact, atol=1e-9, rtol=0)
    many = torch.stack([vae.elbo(x).detach() for _ in range(2000)])
    assert ((many.mean(0) - exact).abs() < 5 * many.std(0) / 2000**0.5).all()


@pytest.mark.parametrize("shift, spread", [(0.5, 0.0), (0.0, 1.0), (-0.4, -0.4)])
def test_bounds_stay_below_the_exact_density_and_rise_with_k(shift, spread):
    """A wrong posterior costs KL(q ‖ p(z|x)), which is known; more draws win it back."""
    vae, density = linear_gaussian()
    x = data(POINTS, 50)
    exact = density.log_prob(x)
    mean, log_var = vae.posterior(x)
    right = Normal(mean.detach(), (0.5 * log_var.detach()).exp())
    with torch.no_grad():
        vae.encoder[1].bias += torch.cat([torch.full((3,), shift), torch.full((3,), spread)])
    mean, log_var = vae.posterior(x)
    gap = kl_divergence(Normal(mean, (0.5 * log_var).exp()), right).sum(1)
    torch.testing.assert_close(exact_elbo(vae, x), exact - gap, atol=1e-9, rtol=0)
    bounds = [torch.stack([vae.iwae(x, k) for _ in range(200)]).mean() for k in (1, 5, 50)]
    assert bounds[0] < bounds[1] < bounds[2] < exact.mean() + 0.01
    assert vae.iwae(x, 20_000).mean() == pytest.approx(exact.mean().item(), abs=0.05)


def test_iwae_of_a_bernoulli_model_is_the_integral_over_its_code():
    vae = build(BINARY, latent=1, hidden=(5,))
    x = data(BINARY, 4)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        logits = vae.decoder(z)[:, None]  # (4001, 1, D)
        joint = Bernoulli(logits=logits).log_prob(x.flatten(1)).sum(-1) + Normal(0.0, 1.0).log_prob(
            z
        )  # (4001, 4)
        exact = joint.logsumexp(0) + math.log(z[1] - z[0])
    torch.testing.assert_close(vae.iwae(x, 50_000), exact, atol=0.02, rtol=0)
    assert (vae.iwae(x, 50_000) > torch.stack([vae.elbo(x) for _ in range(500)]).mean(0)).all()


def test_iwae_in_parts_is_iwae_at_once(monkeypatch):
    """With the true posterior shifted, 10 draws in parts of 3 give the bound that the same draws give together."""
    vae = build(BINARY)
    x = data(BINARY, 2)
    monkeypatch.setattr(vae_module, "VALUES_AT_ONCE", 3 * x.numel())
    torch.manual_seed(2)
    in_parts = vae.iwae(x, 10)
    torch.manual_seed(2)
    weights = torch.cat([vae.log_weights(x, k) for k in (3, 3, 3, 1)])
    torch.testing.assert_close(in_parts, weights.logsumexp(0) - math.log(10), atol=1e-12, rtol=0)


def test_kl_is_that_of_the_distributions():
    mean, log_var = torch.randn(2, 6, 4, dtype=torch.float64)
    unit = Normal(torch.zeros(4).double(), 1.0)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), unit).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_var), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("spec, options", CASES)
def test_likelihood_is_that_of_the_distributions(spec, options):
    vae = build(spec, **options)
    x, z = data(spec, 4), vae.prior(4)
    out = vae.decoder(z)
    p = Bernoulli(logits=out) if spec.levels == 2 else Normal(out, vae.log_sigma.exp())
    torch.testing.assert_close(
        vae.log_likelihood(x, z), p.log_prob(x.flatten(1)).sum(1), atol=1e-9, rtol=1e-12
    )
    if spec.levels == 2:
        torch.testing.assert_close(vae.decode(z).flatten(1), p.mean)


@pytest.mark.parametrize("beta", [0.0, 0.25, 4.0])
def test_beta_weighs_the_loss_alone(beta):
    vae, plain = build(BINARY, beta=beta), build(BINARY)
    x = data(BINARY, 5)
    torch.manual_seed(3)
    losses = vae.loss(Batch(x))
    torch.testing.assert_close(losses["loss"], losses["distortion"] + beta * losses["rate"])
    torch.manual_seed(3)
    bound = vae.elbo(x)
    torch.manual_seed(3)
    torch.testing.assert_close(bound, plain.elbo(x), atol=0, rtol=0)
    torch.testing.assert_close(bound.mean(), -losses["distortion"] - losses["rate"])


@pytest.mark.parametrize("spec, options", CASES)
def test_abilities_keep_the_data_s_shape_and_range_and_every_parameter_learns(spec, options):
    vae = build(spec, **options)
    x = data(spec, 4)
    vae.loss(Batch(x))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())
    assert abilities(vae) == {
        "sample",
        "encode",
        "decode",
        "prior",
        "posterior",
        "elbo",
        "iwae",
        "complete",
    }
    assert vae.sample(3).shape == (3, *spec.shape) and vae.sample(3).dtype == torch.float64
    assert vae.decode(vae.encode(x)).shape == x.shape
    assert vae.elbo(x).shape == vae.iwae(x, 3).shape == (4,)
    if spec.kind == "image":
        assert spec.range[0] <= vae.sample(50).min() and vae.sample(50).max() <= spec.range[1]


@pytest.mark.parametrize(
    "spec, options, mend",
    [
        (Spec((1, 8, 8), range=(0.0, 1.0)), {}, "dataset.binarize=dynamic"),
        (Spec((1, 8, 8), levels=2), {}, r"dataset.range=\[0,1\]"),
        (POINTS, {}, "model.likelihood=gaussian"),
        (Spec((1, 8, 8)), {"likelihood": "gaussian"}, "dataset.dequantise=true"),
        (BINARY, {"likelihood": "gaussian"}, "dataset.binarize=none"),
        (BINARY, {"network": "conv", "hidden": (4, 4, 4, 4)}, "model.hidden"),
        (POINTS, {"network": "conv", "likelihood": "gaussian"}, "model.network=mlp"),
        (Spec((9,), kind="tokens"), {}, "images or points"),
        (BINARY, {"dense": (4,)}, "model.hidden"),
    ],
)
def test_refuses_data_that_does_not_fit(spec, options, mend):
    with pytest.raises(UserError, match=mend):
        VAE(spec, **options)


# Kingma et al. 2016, eq. 15, and the warm-up of Sønderby et al. 2016


@pytest.mark.parametrize("free", [0.0, 0.02, 0.1, 10.0])
def test_free_bits_cost_nothing_and_pull_nothing(free):
    vae, x = build(BINARY, free_bits=free, beta=2.0), data(BINARY, 6)
    mean, log_var = vae.posterior(x)
    unit = Normal(torch.zeros(3).double(), 1.0)
    kl = kl_divergence(Normal(mean, (0.5 * log_var).exp()), unit).mean(0)  # (latent,)
    losses = vae.loss(Batch(x))
    expected = losses["distortion"] + 2 * sum(max(free, k.item()) for k in kl)
    torch.testing.assert_close(losses["loss"], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(losses["rate"], kl.sum(), atol=1e-12, rtol=0)
    penalty, _ = vae.penalty(mean, log_var, mean)
    moves = torch.autograd.grad(penalty, mean)[0].abs().sum(0) > 0
    assert moves.tolist() == [k.item() > free for k in kl]
    assert free != 0.02 or 0 < moves.sum() < 3, "a case with dimensions on both sides"


@pytest.mark.parametrize("warmth", [0.0, 0.3, 1.0])
def test_warmth_weighs_what_is_added_to_the_distortion(warmth):
    vae, x = build(BINARY, beta=4.0), data(BINARY, 6)
    losses = vae.loss(Batch(x), warmth)
    torch.testing.assert_close(losses["loss"], losses["distortion"] + warmth * 4 * losses["rate"])


def test_refuses_classes():
    with pytest.raises(UserError, match="classes"):
        build(BINARY).sample(2, torch.tensor([0, 1]))
