"""Imputation against Gaussians, whose conditional distributions are known, and EM with gaps."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.classical.full_batch import TrainingItems
from genlab.models.classical.gmm import GMM
from genlab.models.classical.pca import PCA
from genlab.models.diffusion.conditional_particles import draw_unknown_values as draw_by_particles
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.networks import mlp
from genlab.models.diffusion.schedule import CLEAN, NoiseLevel
from genlab.models.flow.affine import AffineFlow
from genlab.models.flow.conditional_chain import draw_unknown_values as draw_by_chains
from genlab.models.vae.cvae import CVAE
from genlab.models.vae.vae import VAE
from genlab.spec import Batch, DataSpec

pytestmark = pytest.mark.usefixtures("float64")

DIM = 3
SPEC = DataSpec((DIM,), kind="points", levels=0)
INCOMPLETE = DataSpec((DIM,), kind="points", levels=0, has_missing=True)
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.2, 0.5], [0.3, 0.5, 0.9]], dtype=torch.float64)
X = torch.tensor([[1.0, 9.0, 9.0], [9.0, 0.5, 0.4], [9.0, 9.0, 9.0]], dtype=torch.float64)
KNOWN = X != 9


def conditional(mean: torch.Tensor, cov: torch.Tensor, x: torch.Tensor, known: torch.Tensor):
    """Return mean (U,) and covariance (U, U) of the unknown values, by the block formula."""
    gain = cov[~known][:, known] @ torch.linalg.inv(cov[known][:, known])
    return (
        mean[~known] + gain @ (x[known] - mean[known]),
        cov[~known][:, ~known] - gain @ cov[known][:, ~known],
    )


def assert_conditional(drawn: torch.Tensor, mean=MEAN, cov=COV, *, atol: float) -> None:
    """Check the draws (draws, B, D) of X against the Gaussian's conditional distributions."""
    assert (drawn[:, KNOWN] == X[KNOWN]).all()
    for b, known in enumerate(KNOWN):
        values = drawn[:, b, ~known]
        wanted_mean, wanted_cov = conditional(mean, cov, X[b], known)
        torch.testing.assert_close(values.mean(0), wanted_mean, atol=atol, rtol=0)
        torch.testing.assert_close(values.T.cov().reshape_as(wanted_cov), wanted_cov, atol=2 * atol,
                                   rtol=0)  # fmt: skip
        assert len(values.unique(dim=0)) == len(values)  # no two draws are the same


def gaussian_mixture(**options) -> GMM:
    """Return a mixture whose components all are N(MEAN, COV)."""
    model = GMM(SPEC, **options)
    for i in range(len(model.mean)):
        model.mean[i] = MEAN
        model.covariance.fit_second_moment(COV, i, reg_covar=0.0)
    return model


def gaussian_pca() -> tuple[PCA, torch.Tensor]:
    """Return a PCA of two components, and its covariance."""
    model = PCA(SPEC, latent=2)
    model.mean[0] = MEAN
    model.covariance.fit_second_moment(COV, 0, reg_covar=0.0)
    return model, model.covariance.matrix(0)


def gaussian_flow() -> AffineFlow:
    """Return a flow whose density is N(MEAN, COV): a Gaussian with another transform of z."""
    model = AffineFlow(SPEC)
    model.log_prob = lambda x, y=None: torch.distributions.MultivariateNormal(MEAN, COV).log_prob(x)
    model.sample = lambda n, y=None: torch.distributions.MultivariateNormal(MEAN, COV).sample((n,))
    return model


def linear_vae() -> tuple[VAE, torch.Tensor, torch.Tensor]:
    """Return a VAE with a linear decoder and a poor encoder, and the moments of its p(x)."""
    model = VAE(SPEC, hidden=(), latent=2, likelihood="gaussian", sigma=0.5)
    (decoder,) = (m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear))
    (encoder,) = (m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[0.9, 0.0], [0.6, 0.5], [-0.2, 0.6]]))
        decoder.bias.copy_(MEAN)
        encoder.weight.zero_()  # q(z|x) = N(0, 0.8): acceptance has to repair it
        encoder.bias.copy_(torch.tensor([0.0, 0.0, math.log(0.8), math.log(0.8)]))
        cov = decoder.weight @ decoder.weight.T + 0.25 * torch.eye(DIM)
    return model, MEAN, cov


def test_exact_conditional_of_mixtures_and_pca() -> None:
    torch.manual_seed(0)
    for model in (
        gaussian_mixture(num_components=1),
        gaussian_mixture(num_components=3, covariance="full"),
    ):
        assert_conditional(model.impute(X, KNOWN, draws=8000), atol=0.05)
    pca, cov = gaussian_pca()
    assert_conditional(pca.impute(X, KNOWN, draws=8000), cov=cov, atol=0.05)


def test_component_is_drawn_from_its_posterior() -> None:
    model = gaussian_mixture(num_components=2)
    model.mean[0, :] = torch.tensor([-2.0, -5.0, 0.0])
    model.mean[1, :] = torch.tensor([1.0, 5.0, 0.0])
    model.weight[0] = torch.tensor([0.8, 0.2])
    torch.manual_seed(0)
    x, known = torch.zeros(1, DIM), torch.tensor([[True, False, False]])
    drawn = model.impute(x, known, draws=20_000)
    log_joint = torch.tensor([math.log(0.8) - 2.0, math.log(0.2) - 0.5])  # variance of x_0 is 1
    share = (drawn[:, 0, 1] < -1.4).double().mean()  # 3 deviations from the means given x_0 = 0
    assert share.item() == pytest.approx(log_joint.softmax(0)[0].item(), abs=0.015)


def test_chains_of_flows_and_vaes() -> None:
    torch.manual_seed(0)
    assert_conditional(gaussian_flow().impute(X, KNOWN, draws=1000, steps=40), atol=0.12)
    vae, mean, cov = linear_vae()
    assert_conditional(vae.impute(X, KNOWN, draws=1500, steps=100), mean, cov, atol=0.1)


def test_chains_visit_separate_modes_as_often_as_they_are_likely() -> None:
    modes = torch.tensor([[0.0, 4.0], [0.0, -4.0]])
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.7, 0.3])),
        torch.distributions.MultivariateNormal(modes, 0.1 * torch.eye(2)),
    )
    torch.manual_seed(0)
    drawn = draw_by_chains(
        mixture.log_prob,
        lambda n: mixture.sample((n,)),
        torch.zeros(1, 2),
        torch.tensor([[True, False]]),
        draws=1000,
        steps=40,
    )
    assert (drawn[:, 0, 1] > 0).double().mean().item() == pytest.approx(0.7, abs=0.05)
    assert drawn[:, 0, 1].abs().std().item() == pytest.approx(0.1**0.5, abs=0.04)


def test_particles_of_a_diffusion() -> None:
    angles = [0.999 * math.pi / 2 * i / 50 for i in range(50, 0, -1)]
    levels = [NoiseLevel(a, math.cos(a), math.sin(a)) for a in angles] + [CLEAN]

    def denoise(x: torch.Tensor, t: float) -> torch.Tensor:
        alpha, variance = math.cos(t), math.sin(t) ** 2
        gain = alpha * COV @ torch.linalg.inv(alpha**2 * COV + variance * torch.eye(DIM))
        return MEAN + (x - alpha * MEAN) @ gain.T

    torch.manual_seed(0)
    drawn = draw_by_particles(denoise, X, KNOWN, levels, draws=500, num_particles=24)
    assert_conditional(drawn, atol=0.2)  # of finitely many particles and steps
    one = draw_by_particles(denoise, X, KNOWN, levels, draws=500, num_particles=1)
    wanted = conditional(MEAN, COV, X[0], KNOWN[0])[0]
    error = [(part[:, 0, ~KNOWN[0]].mean(0) - wanted).abs().max() for part in (drawn, one)]
    assert error[0] < error[1] / 2  # without weights the known values have too little effect


# --- training with missing cells ------------------------------------------------------------------


def incomplete_items(n: int, share: float = 0.3) -> torch.Tensor:
    """Return draws (≤ n, D) of N(MEAN, COV) with missing cells."""
    torch.manual_seed(0)
    x = torch.distributions.MultivariateNormal(MEAN, COV).sample((n,))
    x[torch.rand_like(x) < share] = torch.nan
    return x[~x.isnan().all(1)]


@pytest.mark.parametrize(
    "make",
    [
        partial(GMM, num_components=1, reg_covar=0.0),
        partial(GMM, num_components=3, reg_covar=0.0),
        partial(GMM, num_components=2, reg_covar=0.0, covariance="diagonal"),
        partial(GMM, num_components=2, reg_covar=0.0, covariance="low_rank", rank=1),
    ],
    ids=["full-1", "full-3", "diagonal-2", "low_rank-2"],
)
def test_em_with_missing_cells_increases_the_likelihood(make) -> None:
    items = TrainingItems(lambda: iter([Batch(incomplete_items(200))]), full_batch=True)
    model = make(INCOMPLETE)
    losses = [model.fit_step(items, step=k, seed=0)["loss"].item() for k in range(12)]
    assert all(b <= a + 1e-12 for a, b in pairwise(losses))
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize("batches", [1, 3])
def test_em_with_missing_cells_recovers_a_gaussian(batches: int) -> None:
    x = incomplete_items(4000)
    items = TrainingItems(lambda: map(Batch, x.chunk(batches)), full_batch=batches == 1)
    gmm = GMM(INCOMPLETE, num_components=1, reg_covar=0.0)
    for k in range(12):
        gmm.fit_step(items, step=k, seed=0)
    pca = PCA(INCOMPLETE, latent=2)
    pca.fit_step(items, step=0, seed=0)
    for model in (gmm, pca):
        torch.testing.assert_close(model.mean[0].data, MEAN, atol=0.06, rtol=0)
        torch.testing.assert_close(model.covariance.matrix(0), COV, atol=0.09, rtol=0)
    torch.testing.assert_close(gmm.log_prob(x[:50]), pca.log_prob(x[:50]), atol=0.02, rtol=0)


def test_density_of_known_cells_and_codes() -> None:
    x = incomplete_items(40)
    model, cov = gaussian_pca()
    model.spec = INCOMPLETE
    for row, log_prob, code in zip(x, model.log_prob(x), model.encode(x), strict=True):
        known = ~row.isnan()
        wanted = torch.distributions.MultivariateNormal(MEAN[known], cov[known][:, known])
        torch.testing.assert_close(log_prob, wanted.log_prob(row[known]))
        filled = row.clone()
        filled[~known] = conditional(MEAN, cov, row, known)[0]
        torch.testing.assert_close(code, model.encode(filled[None])[0])


def test_losses_ignore_missing_cells() -> None:
    x = incomplete_items(64)
    ddpm = DDPM(INCOMPLETE, backbone=partial(mlp, hidden=(8,)), timesteps=10)
    vae = VAE(INCOMPLETE, hidden=(8,), latent=2, likelihood="gaussian")
    complete = VAE(SPEC, hidden=(8,), latent=2, likelihood="gaussian")
    complete.load_state_dict(vae.state_dict())
    for model in (ddpm, vae):
        model.loss(Batch(x))["loss"].backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in gradients)
    full, z = x.nan_to_num(), torch.randn(len(x), 2)
    torch.testing.assert_close(vae.log_likelihood(full, z), complete.log_likelihood(full, z))
    by_value = torch.stack([
        vae.log_likelihood(torch.where(torch.arange(DIM) == i, x, torch.nan), z)
        for i in range(DIM)
    ])  # fmt: skip
    torch.testing.assert_close(vae.log_likelihood(x, z), by_value.sum(0))


def test_models_without_the_ability() -> None:
    assert "impute" not in abilities(CVAE)
    with pytest.raises(UserError, match="model.variance=beta"):
        DDPM(INCOMPLETE, backbone=partial(mlp, hidden=(4,)), variance="learned")
