"""The VAE against a linear-Gaussian model, a sum over codes and PyTorch's divergences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.vae import vae as vae_module
from genlab.models.vae.iwae import IWAE
from genlab.models.vae.vae import VAE, gaussian_kl, reparameterize
from genlab.spec import Batch, DataSpec

BINARY = DataSpec((1, 8, 8), levels=2, range=(0.0, 1.0))
POINTS = DataSpec((5,), kind="points", levels=0)
SMALL = {"hidden": (6, 7), "latent": 3}
CASES = [  # spec, options
    (BINARY, {}),
    (BINARY, {"network": "conv", "activation": "relu"}),
    (DataSpec((3, 9, 13), levels=2, range=(0.0, 1.0)), {"network": "conv", "hidden": (4, 6, 8)}),
    (
        DataSpec((1, 9, 8), levels=2, range=(0.0, 1.0)),
        {"network": "conv", "hidden": (4, 6), "dense": (7, 5)},
    ),
    (DataSpec((3, 8, 8), dequantized=True), {"likelihood": "gaussian"}),
    (
        DataSpec((3, 28, 28), dequantized=True, range=(0.0, 1.0)),
        {"likelihood": "gaussian", "sigma": 0.1, "network": "conv"},
    ),
    (POINTS, {"likelihood": "gaussian", "activation": "softplus"}),
    (POINTS, {"likelihood": "gaussian", "hidden": ()}),
]


def build(spec: DataSpec, **options) -> VAE:
    torch.manual_seed(0)
    return VAE(spec, **(SMALL | options)).double()


def data(spec: DataSpec, n: int) -> torch.Tensor:
    torch.manual_seed(1)
    if spec.levels == 2:
        return torch.bernoulli(torch.full((n, *spec.shape), 0.3, dtype=torch.float64))
    if spec.kind == "points":
        return torch.randn(n, *spec.shape, dtype=torch.float64)
    low, high = spec.range
    return low + (high - low) * torch.rand(n, *spec.shape, dtype=torch.float64)


def linear_gaussian(*, sigma: float = 0.7) -> tuple[VAE, MultivariateNormal]:
    """Return probabilistic PCA as a VAE with the true posterior, and the exact p(x).

    p(x) = N(b, W Wᵀ + sigma² I). The columns of W are orthogonal, so that the true posterior has a
    diagonal covariance.
    """
    vae = build(POINTS, hidden=(), likelihood="gaussian", sigma=sigma)
    orthogonal = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64)).Q
    w, b = orthogonal * torch.tensor([2.0, 1.0, 0.5]), torch.randn(5, dtype=torch.float64)
    precision = torch.eye(3, dtype=torch.float64) + w.mT @ w / sigma**2  # of p(z|x), (3, 3)
    to_mean = torch.linalg.solve(precision, w.mT) / sigma**2
    with torch.no_grad():
        vae.decoder[0].weight.copy_(w)
        vae.decoder[0].bias.copy_(b)
        vae.encoder[1].weight.copy_(torch.cat([to_mean, torch.zeros(3, 5)]))
        vae.encoder[1].bias.copy_(torch.cat([-to_mean @ b, -precision.diagonal().log()]))
        vae.log_sigma.fill_(math.log(sigma))
    return vae, MultivariateNormal(b, w @ w.mT + sigma**2 * torch.eye(5, dtype=torch.float64))


def exact_elbo(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """The expected ELBO: log p(x|z) is quadratic, so the mean over 2L points ±√L σ is exact."""
    mean, log_var = vae.posterior(x)
    latent = mean.shape[1]
    points = torch.cat([torch.eye(latent), -torch.eye(latent)]).double() * latent**0.5
    draws = [vae.log_likelihood(x, mean + (0.5 * log_var).exp() * eps) for eps in points]
    return torch.stack(draws).mean(0) - gaussian_kl(mean, log_var)


def test_bounds_equal_the_exact_density_at_the_true_posterior():
    vae, density = linear_gaussian()
    x = data(POINTS, 20)
    exact = density.log_prob(x)
    torch.testing.assert_close(exact_elbo(vae, x), exact, atol=1e-9, rtol=0)
    for k in (1, 7):  # p(x, z) / q(z|x) = p(x) for every z
        torch.testing.assert_close(vae.iwae(x, k), exact, atol=1e-9, rtol=0)
    many = torch.stack([vae.elbo(x).detach() for _ in range(2000)])
    assert ((many.mean(0) - exact).abs() < 5 * many.std(0) / 2000**0.5).all()


@pytest.mark.parametrize("shift, spread", [(0.5, 0.0), (0.0, 1.0), (-0.4, -0.4)])
def test_bounds_are_below_the_exact_density_and_increase_with_k(shift, spread):
    """A wrong posterior costs KL(q ‖ p(z|x)), which is known; more samples reduce the gap."""
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


def test_iwae_of_a_bernoulli_model_converges_to_the_integral_over_its_code():
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


def test_iwae_in_chunks_equals_iwae_at_once(monkeypatch):
    """10 samples in chunks of 3 give the bound of the same samples together."""
    vae = build(BINARY)
    x = data(BINARY, 2)
    monkeypatch.setattr(vae_module, "MAX_DECODED_VALUES", 3 * x.numel())
    torch.manual_seed(2)
    in_parts = vae.iwae(x, 10)
    torch.manual_seed(2)
    weights = torch.cat([vae.log_importance_weights(x, k) for k in (3, 3, 3, 1)])
    torch.testing.assert_close(in_parts, weights.logsumexp(0) - math.log(10), atol=1e-12, rtol=0)


def test_kl_matches_torch_distributions():
    mean, log_var = torch.randn(2, 6, 4, dtype=torch.float64)
    unit = Normal(torch.zeros(4).double(), 1.0)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), unit).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_var), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("spec, options", CASES)
def test_likelihood_matches_torch_distributions(spec, options):
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
def test_beta_changes_only_the_loss(beta):
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
def test_outputs_have_the_shape_and_range_of_the_data_and_every_parameter_has_a_gradient(
    spec, options
):
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
        "inpaint",
        "impute",
    }
    assert vae.sample(3).shape == (3, *spec.shape) and vae.sample(3).dtype == torch.float64
    assert vae.decode(vae.encode(x)).shape == x.shape
    assert vae.elbo(x).shape == vae.iwae(x, 3).shape == (4,)
    if spec.kind == "image":
        assert spec.range[0] <= vae.sample(50).min() and vae.sample(50).max() <= spec.range[1]


@pytest.mark.parametrize(
    "spec, options, fix",
    [
        (DataSpec((1, 8, 8), range=(0.0, 1.0)), {}, "preprocess.binarize=dynamic"),
        (DataSpec((1, 8, 8), levels=2), {}, r"preprocess.range=\[0,1\]"),
        (POINTS, {}, "model.likelihood=gaussian"),
        (DataSpec((1, 8, 8)), {"likelihood": "gaussian"}, "preprocess.dequantize=true"),
        (BINARY, {"likelihood": "gaussian"}, "preprocess.binarize=none"),
        (BINARY, {"network": "conv", "hidden": (4, 4, 4, 4)}, "model.hidden"),
        (POINTS, {"network": "conv", "likelihood": "gaussian"}, "model.network=mlp"),
        (DataSpec((9,), kind="tokens"), {}, "images and points"),
        (BINARY, {"dense": (4,)}, "model.hidden"),
    ],
)
def test_rejects_data_that_does_not_fit(spec, options, fix):
    with pytest.raises(UserError, match=fix):
        VAE(spec, **options)


# Kingma et al. 2016, eq. 15, and the warm-up of Sønderby et al. 2016


@pytest.mark.parametrize("free", [0.0, 0.02, 0.1, 10.0])
def test_kl_below_free_bits_has_neither_cost_nor_gradient(free):
    vae, x = build(BINARY, free_bits=free, beta=2.0), data(BINARY, 6)
    mean, log_var = vae.posterior(x)
    unit = Normal(torch.zeros(3).double(), 1.0)
    kl = kl_divergence(Normal(mean, (0.5 * log_var).exp()), unit).mean(0)  # (latent,)
    losses = vae.loss(Batch(x))
    expected = losses["distortion"] + 2 * sum(max(free, k.item()) for k in kl)
    torch.testing.assert_close(losses["loss"], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(losses["rate"], kl.sum(), atol=1e-12, rtol=0)
    kl_term, _ = vae.weighted_kl_and_parts(mean, log_var, mean)
    moves = torch.autograd.grad(kl_term, mean)[0].abs().sum(0) > 0
    assert moves.tolist() == [k.item() > free for k in kl]
    assert free != 0.02 or 0 < moves.sum() < 3, "this case must have dimensions on both sides"


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_kl_weight_scales_the_kl_term(kl_weight):
    vae, x = build(BINARY, beta=4.0), data(BINARY, 6)
    losses = vae.loss(Batch(x), kl_weight)
    torch.testing.assert_close(
        losses["loss"], losses["distortion"] + kl_weight * 4 * losses["rate"]
    )


def test_rejects_labels():
    with pytest.raises(UserError, match="labels"):
        build(BINARY).sample(2, torch.tensor([0, 1]))


def test_score_function_gradient_has_the_mean_of_the_pathwise_gradient():
    """Both estimate ∇ E_q[log p(x|z)], the values are equal, and only the variances differ."""
    torch.manual_seed(0)
    spec = DataSpec((3,), kind="points", levels=0)
    vae = build(spec, latent=2, hidden=(4,), likelihood="gaussian")
    n = 40_000
    x = torch.randn(1, 3, dtype=torch.float64).expand(n, 3)
    gradients, variances = {}, {}
    for name in VAE.gradient_estimators:
        vae.gradient = name
        torch.manual_seed(1)
        mean, log_var = (part.detach().requires_grad_() for part in vae.posterior(x))
        z = reparameterize(mean, log_var)
        value = vae.expected_log_likelihood(Batch(x), mean, log_var, z)
        assert torch.equal(value, vae.log_likelihood(x, z))
        g = torch.cat(torch.autograd.grad(value.sum(), (mean, log_var)), 1)  # (n, 4)
        gradients[name], variances[name] = g.mean(0), g.var(0)
    error = ((variances["pathwise"] + variances["score_function"]) / n).sqrt()
    difference = gradients["pathwise"] - gradients["score_function"]
    assert (difference.abs() < 4 * error).all()
    assert (variances["score_function"] > 2 * variances["pathwise"]).all()


def test_terms_of_the_loss_can_be_left_out():
    spec = DataSpec((3,), kind="points", levels=0)
    x = Batch(torch.randn(6, 3, dtype=torch.float64))
    vae = build(spec, latent=2, likelihood="gaussian", reconstruction_weight=0.0)
    found = vae.loss(x)
    assert torch.equal(found["loss"], found["rate"])
    found["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.decoder.parameters())
    vae = build(spec, latent=2, likelihood="gaussian", beta=0.0)
    found = vae.loss(x)
    assert torch.equal(found["loss"], found["distortion"])
    with pytest.raises(UserError, match="model=vae"):
        IWAE(spec, latent=2, likelihood="gaussian", reconstruction_weight=0.0)
