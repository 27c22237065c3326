"""VAE variants against exact results: sums of parts, enumeration, NumPy's covariance."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.recipes import build_training_objects, states_equal
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from genlab.abilities import abilities
from genlab.config.instantiate import validate_kwargs
from genlab.data.dataset import Dataset
from genlab.errors import UserError
from genlab.metrics import active_units
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import measure
from genlab.models.vae.cvae import CVAE
from genlab.models.vae.dip_vae import DIPVAE
from genlab.models.vae.iwae import IWAE
from genlab.models.vae.tc_vae import TCVAE
from genlab.models.vae.vae import VAE, gaussian_kl
from genlab.spec import Batch, DataSpec

BINARY = DataSpec((1, 4, 4), levels=2, range=(0.0, 1.0), num_classes=3)
POINTS = DataSpec((5,), kind="points", levels=0, num_classes=3)
SMALL = {"hidden": (6, 7), "latent": 3}


def build(kind: type, spec: DataSpec = BINARY, **options):
    torch.manual_seed(0)
    return kind(spec, **(SMALL | options)).double()


def data(n: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.bernoulli(torch.full((n, 1, 4, 4), 0.3, dtype=torch.float64))


def code(n: int, latent: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mean and log-variance of n different posteriors, and one sample of each."""
    torch.manual_seed(2)
    mean, log_var = 2 * torch.randn(n, latent).double(), torch.randn(n, latent).double()
    return mean, log_var, mean + (0.5 * log_var).exp() * torch.randn_like(mean)


# --- importance-weighted autoencoders -------------------------------------------------------------


def gradients(model: VAE, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


def test_iwae_with_one_sample_has_the_gradient_of_the_elbo():
    """On average over many samples, since IWAE samples the KL that the VAE has in closed form."""
    iwae, vae = build(IWAE, iwae_samples=1), build(VAE)
    x = data(2).repeat(30_000, 1, 1, 1)
    # a cheap likelihood that does not depend on the decoder
    iwae.log_likelihood = vae.log_likelihood = lambda x, z, y=None: -(z - 0.3).square().sum(-1)
    encoder = list(iwae.encoder.parameters())
    a = torch.autograd.grad(iwae.loss(Batch(x))["loss"], encoder)
    b = torch.autograd.grad(vae.loss(Batch(x))["loss"], list(vae.encoder.parameters()))
    for mine, expected in zip(a, b, strict=True):
        torch.testing.assert_close(mine, expected, atol=0.03, rtol=0.03)
    torch.manual_seed(3)
    loss = iwae.loss(Batch(x))
    torch.testing.assert_close(loss["loss"], loss["negative_elbo"])


def test_iwae_gradient_is_the_weighted_sum_of_log_weight_gradients():
    """Burda et al. 2016, eq. 14: Σ_i w̃_i ∇ log w_i with normalised weights w̃."""
    iwae, x = build(IWAE, iwae_samples=6), data(4)
    torch.manual_seed(3)
    found = gradients(iwae, iwae.loss(Batch(x))["loss"])
    torch.manual_seed(3)
    log_w = iwae.log_importance_weights(x, 6)  # (6, 4)
    expected = gradients(iwae, -(log_w.softmax(0).detach() * log_w).sum(0).mean())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_iwae_loss_is_the_bound_and_decreases_with_k():
    x, values = data(20), []
    for k in (1, 5, 50):
        iwae = build(IWAE, iwae_samples=k)
        torch.manual_seed(3)
        loss = iwae.loss(Batch(x))["loss"]
        torch.manual_seed(3)
        torch.testing.assert_close(-iwae.iwae(x, k).mean(), loss)
        values.append(
            torch.stack([iwae.loss(Batch(x))["loss"].detach() for _ in range(100)]).mean().item()
        )
    assert values[0] > values[1] > values[2]


def test_kl_weight_scales_the_log_ratio_of_prior_and_posterior():
    iwae, x = build(IWAE, iwae_samples=4), data(3)
    draws = []
    for kl_weight in (0.0, 0.25, 1.0):
        torch.manual_seed(3)
        draws.append(iwae.log_importance_weights(x, 4, kl_weight=kl_weight))
    torch.testing.assert_close(draws[1], draws[0] + 0.25 * (draws[2] - draws[0]))


# --- β-TCVAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_train_items", [None, 7, 1000])
@pytest.mark.parametrize("latent", [1, 3])
def test_kl_decomposition_sums_to_the_kl(num_train_items, latent):
    model = build(TCVAE)
    model.num_train_items = num_train_items
    mean, log_var, z = code(7, latent)
    parts = model.decompose_kl(mean, log_var, z)
    q, p = Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0)
    torch.testing.assert_close(
        sum(parts), (q.log_prob(z) - p.log_prob(z)).sum(1), atol=1e-10, rtol=0
    )
    if latent == 1:
        torch.testing.assert_close(parts[1], torch.zeros(7).double(), atol=1e-10, rtol=0)


def test_kl_decomposition_is_exact_for_a_batch_of_all_items():
    model = build(TCVAE)
    mean, log_var, z = code(7)
    each, sd = Categorical(torch.ones(7).double()), (0.5 * log_var).exp()
    q_z = MixtureSameFamily(each, Independent(Normal(mean, sd), 1)).log_prob(z)
    q_zj = sum(
        MixtureSameFamily(each, Normal(mean[:, j], sd[:, j])).log_prob(z[:, j]) for j in range(3)
    )
    q_zx, p_z = Normal(mean, sd).log_prob(z).sum(1), Normal(0.0, 1.0).log_prob(z).sum(1)
    for num_train_items in (None, 7):
        model.num_train_items = num_train_items
        for found, expected in zip(
            model.decompose_kl(mean, log_var, z), (q_zx - q_z, q_z - q_zj, q_zj - p_z), strict=True
        ):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("batch", [2, 4])
def test_batch_estimate_of_the_aggregate_posterior_is_unbiased(batch):
    """The mean over all batches of 6 items that contain item 0 is q(z_0) = 1/6 Σ_n q(z_0|n)."""
    model = build(TCVAE)
    model.num_train_items = 6
    mean, log_var, z = code(6)
    log_q = Normal(mean, (0.5 * log_var).exp()).log_prob(z[0]).sum(1)  # (6,)
    shares = model.minibatch_stratified_log_weights(batch, like=z)[0]
    estimates = [
        (shares + log_q[[0, *others]]).exp().sum()
        for others in combinations(range(1, 6), batch - 1)
    ]
    torch.testing.assert_close(
        torch.stack(estimates).mean(), log_q.exp().mean(), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(shares.exp().sum(), torch.ones(()).double())


def test_equal_weights_are_beta_times_the_kl():
    """α = β = γ is a β-VAE with a sampled KL."""
    model = build(TCVAE, alpha=3.0, beta=3.0, gamma=3.0)
    mean, log_var, _ = code(5)
    draws = torch.stack(
        [model.weighted_kl_and_parts(mean, log_var, code_of(mean, log_var))[0] for _ in range(4000)]
    )
    assert abs(draws.mean() - 3 * gaussian_kl(mean, log_var).mean()) < 4 * draws.std() / 4000**0.5


def code_of(mean: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    return mean + (0.5 * log_var).exp() * torch.randn_like(mean)


# --- DIP-VAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["i", "ii"])
def test_dip_regularizer_matches_numpys_covariance(variant):
    model = build(DIPVAE, variant=variant, off_diagonal_weight=2.0, diagonal_weight=5.0)
    mean, log_var, z = code(9)
    c = np.cov(mean.numpy().T, bias=True)
    c = c + np.diag(log_var.exp().mean(0).numpy()) if variant == "ii" else c
    off = sum(c[i, j] ** 2 for i in range(3) for j in range(3) if i != j)
    expected = (
        gaussian_kl(mean, log_var).mean().item() + 2 * off + 5 * ((np.diag(c) - 1) ** 2).sum()
    )
    assert model.weighted_kl_and_parts(mean, log_var, z)[0].item() == pytest.approx(
        expected, rel=1e-12
    )


def test_dip_variant_ii_is_the_covariance_of_sampled_codes():
    """The total covariance, equation 5."""
    model = build(DIPVAE, variant="ii")
    mean, log_var, _ = code(4)
    many = code_of(mean.repeat(200_000, 1), log_var.repeat(200_000, 1))
    torch.testing.assert_close(
        model.code_covariance(mean, log_var), torch.cov(many.T), atol=0.05, rtol=0.02
    )


# --- conditional VAE ------------------------------------------------------------------------------


def test_label_embedding_acts_as_a_column_of_the_first_layer():
    """W (x + e_y) + b equals a layer of (x, one-hot y) whose columns for y are W e_y."""
    model, x, y = build(CVAE), data(6), torch.arange(6) % 3
    first = model.encoder[1]
    columns = first.weight @ model.label.weight.T  # (6, classes)
    side_by_side = torch.cat([x.flatten(1), torch.nn.functional.one_hot(y, 3)], 1)
    out = side_by_side @ torch.cat([first.weight, columns], 1).T + first.bias
    mean, log_var = model.encoder[2:](out).chunk(2, 1)
    for found, expected in zip(model.posterior(x, y), (mean, log_var), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_cvae_bounds_converge_to_p_of_x_given_y_and_to_their_mixture():
    """Against a sum over a grid of one-dimensional codes."""
    model, x = build(CVAE, latent=1), data(3)
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        exact = []
        for c in range(3):
            y = torch.full((3,), c)
            log_p = model.log_likelihood(x, z[:, None].expand(-1, 3, -1), y)  # (2001, 3)
            exact.append(
                (log_p + Normal(0.0, 1.0).log_prob(z)).logsumexp(0) + math.log(z[1] - z[0])
            )
            torch.testing.assert_close(model.iwae(x, 20_000, y), exact[c], atol=0.02, rtol=0)
            assert (torch.stack([model.elbo(x, y) for _ in range(500)]).mean(0) < exact[c]).all()
        marginal = torch.stack(exact).logsumexp(0) - math.log(3)
        torch.testing.assert_close(model.iwae(x, 20_000), marginal, atol=0.02, rtol=0)
        assert (torch.stack([model.elbo(x) for _ in range(500)]).mean(0) < marginal).all()


@pytest.mark.parametrize(
    "spec, options",
    [
        (BINARY, {}),
        (BINARY, {"network": "conv", "hidden": (4,)}),
        (POINTS, {"likelihood": "gaussian"}),
    ],
)
def test_cvae_code_contains_the_class(spec, options):
    model = build(CVAE, spec, **options)
    x = data(4).flatten(1)[:, : spec.dim].view(4, *spec.shape)
    y = torch.tensor([0, 1, 2, 1])
    z = model.encode(x, y)
    assert torch.equal(z[:, 3:].argmax(1), y) and model.decode(z).shape == x.shape
    torch.testing.assert_close(z[:, :3], model.posterior(x, y)[0])
    assert torch.equal(model.prior(4, y)[:, 3:].argmax(1), y)
    known = torch.ones_like(x, dtype=torch.bool)
    known[:, 0] = False
    filled = model.inpaint(x, known, steps=2)
    assert torch.equal(filled[known], x[known]) and not torch.equal(filled, x)
    found = model.encode(x)[:, 3:].argmax(1)
    mean, log_var = zip(*(model.posterior(x, torch.full((4,), c)) for c in range(3)), strict=True)
    bounds = [
        model.log_likelihood(x, m, torch.full((4,), c)) - gaussian_kl(m, v)
        for c, (m, v) in enumerate(zip(mean, log_var, strict=True))
    ]
    assert torch.equal(found, torch.stack(bounds).argmax(0))
    model.loss(Batch(x, y))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_variants_have_the_abilities_of_the_vae():
    for kind in (IWAE, TCVAE, DIPVAE, CVAE):
        given_cells = set() if kind is CVAE else {"impute"}
        assert abilities(build(kind)) == given_cells | {
            "sample",
            "encode",
            "decode",
            "prior",
            "posterior",
            "elbo",
            "iwae",
            "inpaint",
        }


@pytest.mark.parametrize(
    "kind, options, fix",
    [
        (IWAE, {"beta": 2.0}, "model.beta=1"),
        (IWAE, {"free_bits": 0.1}, "model.free_bits=0"),
        (TCVAE, {"free_bits": 0.1}, "model.free_bits=0"),
        (CVAE, {"spec": DataSpec((1, 4, 4), levels=2, range=(0.0, 1.0))}, "model=vae"),
    ],
)
def test_rejects_options_without_effect(kind, options, fix):
    with pytest.raises(UserError, match=fix):
        build(kind, **options)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"latent": 0}, "model.latent=0"),
        ({"laten": 3}, "latent"),
        ({"iwae_samples": 0}, "model.iwae_samples=0"),
    ],
)
def test_options_of_the_base_class_are_validated(values, words):
    assert validate_kwargs(
        IWAE, {"iwae_samples": 3, "hidden": [4, 5], "likelihood": "gaussian"}, "model", skip=1
    )["hidden"] == (4, 5)
    with pytest.raises(UserError, match=words):
        validate_kwargs(IWAE, values, "model", skip=1)


# --- trainer and metric ---------------------------------------------------------------------------


def test_kl_warmup_depends_on_the_step_and_continues_on_resume():
    """The weight at step t of a warm-up of n steps is min(1, t/n), also in a resumed run."""

    def trainer():
        return build_training_objects(
            "model=vae", "trainer.kl_warmup=4", "trainer.batch_size=8", "device=cpu", "out=unused"
        )[1:]

    dataset, whole = trainer()
    seen = []
    stream = whole.train_batches(dataset)
    for _ in range(6):
        losses = whole.train_step(stream)
        seen.append(((losses["loss"] - losses["distortion"]) / losses["rate"]).item())
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=2e-2)
    _, first = trainer()
    stream = first.train_batches(dataset)
    for _ in range(2):
        first.train_step(stream)
    _, second = trainer()
    second.load_state_dict(first.state_dict())
    stream = second.train_batches(dataset)
    for _ in range(4):
        second.train_step(stream)
    assert states_equal(whole.state_dict()["model"], second.state_dict()["model"])


def test_trainer_sets_the_number_of_training_items():
    few = (
        "dataset.n=100",
        "preprocess.size=16",
        "trainer.batch_size=8",
        "device=cpu",
        "out=unused",
    )
    _, dataset, trainer = build_training_objects("model=tc_vae", *few)
    assert trainer.model.num_train_items is None
    trainer.train_step(trainer.train_batches(dataset))
    assert trainer.model.num_train_items == 80 == dataset.size("train")


class Codes(torch.nn.Module):
    """A model whose posterior means are the data times `scale`, of log-variance −1."""

    def __init__(self, scale: list[float]) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def posterior(self, x, y=None):
        mean = x * self.scale
        return mean, torch.full_like(mean, -1.0)


class Items(Dataset):
    spec, name = DataSpec((3,), kind="points", levels=0), "items"

    def head(self, split, n, *, seed, device=None):
        torch.manual_seed(seed)
        return Batch(torch.randn(n, 3).double())

    def size(self, split):
        return 700


@pytest.mark.parametrize(
    "scale, active", [([1.0, 0.05, 0.3], 2), ([0.0, 0.0, 0.01], 0), ([2.0, 2.0, 2.0], 3)]
)
def test_active_units_are_counted_and_a_collapse_is_noted(scale, active):
    context = MetricContext(Items(), Settings(n=700, seed=1), model=Codes(scale))
    (kl, units), *rest = measure(context, ["active_units"]).values()
    assert not rest and units.value == active and ("collapse" in units.note) == (active == 0)
    x = Items().head("", 700, seed=1).x
    expected = 0.5 * ((x * torch.tensor(scale)).square() + math.exp(-1) - 1 + 1).mean(0)
    assert list(kl.parts.values()) == pytest.approx(expected.tolist(), rel=1e-6)
    assert kl.value == pytest.approx(sum(kl.parts.values()), rel=1e-12)
    assert active_units.is_active_dimension(x * torch.tensor(scale)).sum() == active
