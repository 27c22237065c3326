"""Truths of the models of tables: closed forms, bounds, and a distribution that is recovered."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.data.mixed_table import MixedTable
from genlab.errors import UserError
from genlab.models.diffusion.schedule import NoiseSchedule
from genlab.models.tabular.mode_normalization import MAX_ABS_PLACE, ModeNormalizer
from genlab.models.tabular.quantiles import QuantileTransform
from genlab.models.tabular.tabddpm import (
    GaussianDiffusion,
    MultinomialDiffusion,
    TabDDPM,
    noise_betas,
)
from genlab.models.tabular.table_model import TableModel, draw_categories
from genlab.models.tabular.tvae import TVAE
from genlab.spec import Batch, DataSpec

SIZES = (2, 5, 3)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def table_spec(*categories: int, num_classes: int = 0) -> DataSpec:
    return DataSpec(
        (len(categories),), "table", levels=0, categories=categories, num_classes=num_classes
    )


def transition_matrices(T: int, size: int) -> list[Tensor]:
    """Return Q_t (K, K) of each step, from the definition: row x_{t−1}, column x_t."""
    betas = noise_betas("cosine", T)
    return [(1 - b) * torch.eye(size) + b / size * torch.ones(size, size) for b in betas]


# --- multinomial diffusion ------------------------------------------------------------------------


def test_marginals_and_posteriors_are_those_of_the_markov_chain(double):
    T = 7
    process = MultinomialDiffusion(SIZES, noise_betas("cosine", T))
    for c, size in enumerate(SIZES):
        steps = transition_matrices(T, size)
        for t in range(T):
            times = torch.tensor([t])
            product = torch.linalg.multi_dot([torch.eye(size), *steps[: t + 1]])
            before = torch.linalg.multi_dot([torch.eye(size), torch.eye(size), *steps[:t]])
            for x0, xt in itertools.product(range(size), repeat=2):
                codes0, codes = (torch.zeros(1, len(SIZES), dtype=torch.long) for _ in range(2))
                codes0[0, c], codes[0, c] = x0, xt
                certain = process.one_hot(codes0, torch.float64)
                column = slice(int(process.starts[c]), int(process.starts[c]) + size)
                torch.testing.assert_close(
                    process.q(certain, times)[0, column], product[x0], rtol=1e-12, atol=1e-12
                )
                joint = before[x0] * steps[t][:, xt]
                found = process.log_posterior(certain, codes, times)[0, column].exp()
                torch.testing.assert_close(found, joint / joint.sum(), rtol=1e-10, atol=1e-12)


def test_kl_terms_sum_to_the_bound_of_an_enumerated_chain(double):
    """L_T + Σ_t E L_t − log p is KL(q ‖ p) over whole paths, summed over all of them."""
    T, size = 3, 3
    process = MultinomialDiffusion((size,), noise_betas("cosine", T))
    steps = transition_matrices(T, size)
    torch.manual_seed(0)
    predicted = torch.rand(T, size, size).softmax(-1)  # p(x_0 | x_t), any
    reverse = [  # row x_t, column x_{t−1}
        process.log_posterior(
            predicted[t], torch.arange(size)[:, None], torch.full((size,), t)
        ).exp()
        for t in range(T)
    ]
    for x0 in range(size):
        likelihood, gap = 0.0, 0.0
        bound = process.prior_kl(process.one_hot(torch.tensor([[x0]]), torch.float64)).item()
        for path in itertools.product(range(size), repeat=T):
            q = math.prod(steps[t][(x0, *path)[t], path[t]].item() for t in range(T))
            p = math.prod(reverse[t][path[t], (x0, *path)[t]].item() for t in range(T)) / size
            likelihood += p
            gap += q * math.log(q / p)
        for t in range(T):
            certain = process.one_hot(torch.full((size, 1), x0), torch.float64)
            weights = process.q(certain[:1], torch.tensor([t]))[0]
            codes = torch.arange(size)[:, None]
            kl = process.step_kl(certain, predicted[t], codes, torch.full((size,), t))
            bound += (weights * kl[:, 0]).sum().item()
        assert bound == pytest.approx(gap, rel=1e-10)
        assert bound >= -math.log(likelihood) - 1e-12


def test_numbers_diffuse_as_in_ddpm(double):
    """The same tables and posterior as the schedule of the images' diffusion models."""
    T = 20
    for name in ("cosine", "linear"):
        process, reference = GaussianDiffusion(noise_betas(name, T)), NoiseSchedule(name, T)
        z0, eps = torch.randn(2, 50, 3)
        for time in range(T):
            t = torch.full((50,), time)
            zt = process.q_sample(z0, t, eps)
            torch.testing.assert_close(zt, reference.q_sample(z0, t, eps), rtol=1e-12, atol=1e-12)
            mean, _ = reference.q_posterior(z0, zt, t)
            found = process.posterior_mean(zt, eps, t, limit=math.inf)
            torch.testing.assert_close(found, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_draws_follow_their_probabilities(seed):
    torch.manual_seed(seed)
    process = MultinomialDiffusion(SIZES, noise_betas("cosine", 4))
    p = process.log_softmax(2 * torch.randn(1, sum(SIZES))).exp()
    n = 40_000
    codes = process.draw(p.expand(n, -1))
    for c, size in enumerate(SIZES):
        start = int(process.starts[c])
        truth = p[0, start : start + size]
        for found in (codes[:, c], draw_categories(truth.expand(n, -1))):
            frequency = torch.bincount(found, minlength=size) / n
            assert (frequency - truth).abs().max() < 5 * 0.5 / math.sqrt(n)


# --- transformations of numbers -------------------------------------------------------------------


def test_quantiles_invert_and_give_a_normal_distribution(double):
    generator = torch.Generator().manual_seed(0)
    skewed = torch.rand(5000, generator=generator).pow(3).mul(1e5)
    ties = torch.randint(4, (5000,), generator=generator).double()
    mostly_zero = torch.where(torch.rand(5000, generator=generator) < 0.9, 0.0, skewed)
    x = torch.stack([skewed, ties, mostly_zero, torch.full((5000,), 7.0)], 1)
    transform = QuantileTransform(4, 200)
    transform.fit(x)
    z = transform(x)
    inside = (z.abs() < transform.max_abs).all(1)
    torch.testing.assert_close(transform.inverse(z)[inside], x[inside], rtol=1e-9, atol=1e-6)
    assert abs(z[:, 0].mean()) < 0.01 and z[:, 0].std() == pytest.approx(1, abs=0.02)
    assert len(z[:, 1].unique()) == 4 and (z[:, 3] == 0).all()
    # P(x = 0) = 0.9, so its middle is the quantile 0.45
    zeros = (mostly_zero == 0).double().mean().item()
    expected = torch.special.ndtri(torch.tensor(zeros / 2)).item()
    assert z[:, 2].median().item() == pytest.approx(expected, abs=0.02)


def test_quantiles_equal_those_of_scikit_learn_inside(double):
    from sklearn.preprocessing import QuantileTransformer

    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(1)).exp().round(decimals=1)
    transform = QuantileTransform(2, 300)
    transform.fit(x)
    reference = QuantileTransformer(n_quantiles=300, output_distribution="normal", subsample=None)
    expected = torch.from_numpy(reference.fit_transform(x.numpy()))
    inside = (expected.abs() < 2.5) & (x > x.amin(0)) & (x < x.amax(0))
    torch.testing.assert_close(transform(x)[inside], expected[inside], rtol=1e-9, atol=1e-9)


def test_mode_specific_normalization_inverts_in_every_mode(double):
    generator = torch.Generator().manual_seed(0)
    modes = torch.randint(3, (4000,), generator=generator)
    centers, stds = torch.tensor([-10.0, 0.0, 30.0]), torch.tensor([1.0, 0.2, 4.0])
    x = (centers[modes] + stds[modes] * torch.randn(4000, generator=generator))[:, None]
    normalizer = ModeNormalizer(1, 10)
    normalizer.fit(x, seed=0)
    # the modes are those of the data
    used = normalizer.is_used[0]
    for center, std in zip(centers.tolist(), stds.tolist(), strict=True):
        nearest = (normalizer.means[0][used] - center).abs().min().item()
        assert nearest < std
    log_p = normalizer.log_responsibilities(x)
    torch.testing.assert_close(log_p.logsumexp(-1), torch.zeros(4000, 1))
    for mode in used.nonzero()[:, 0].tolist():
        chosen = torch.full_like(x, mode, dtype=torch.long)
        place = normalizer.normalize(x, chosen)
        inside = place.abs() < MAX_ABS_PLACE
        back = normalizer.denormalize(place, chosen)
        torch.testing.assert_close(back[inside], x[inside], rtol=1e-12, atol=1e-12)
        # four standard deviations are 1
        mean, std = normalizer.parameters_of(chosen[:1], x.dtype)
        at_end = normalizer.denormalize(torch.ones(1, 1), chosen[:1])
        torch.testing.assert_close(at_end, (mean + 4 * std).clamp(max=x.max()))


def test_a_frequent_value_is_a_mode_of_its_own(double):
    generator = torch.Generator().manual_seed(0)
    amounts = 500 + 100 * torch.randn(1000, generator=generator)
    is_zero = torch.rand(1000, generator=generator) < 0.7
    x = torch.stack([torch.where(is_zero, 0.0, amounts), torch.full((1000,), 3.0)], 1)
    normalizer = ModeNormalizer(2, 5)
    normalizer.fit(x, seed=0)
    assert normalizer.means[0, 0] == 0 and normalizer.means[1, 0] == 3
    share = normalizer.log_weights[0, 0].exp().item()
    assert share == pytest.approx(is_zero.double().mean().item())
    assert normalizer.log_weights.exp().sum(1).tolist() == pytest.approx([1, 1])
    modes = normalizer.log_responsibilities(x).argmax(-1)
    assert ((modes[:, 0] == 0) == is_zero).all()
    # noise in the place does not change it, and others stay within the rows
    place = torch.full_like(x, 0.3)
    decoded = normalizer.denormalize(place, modes)
    assert decoded[is_zero, 0].abs().max() < 0.1 and (decoded[:, 1] - 3).abs().max() < 1e-6
    far = normalizer.denormalize(torch.full_like(x, 50.0), modes)
    assert far[:, 0].max() <= x[:, 0].max()


# --- whole models ---------------------------------------------------------------------------------


def discrete_table(n: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return rows of two columns, their classes, and the exact P(y, a, b)."""
    random = np.random.default_rng(0)
    truth = random.dirichlet(np.full(2 * 3 * 2, 0.7)).reshape(2, 3, 2)
    cells = random.choice(truth.size, size=n, p=truth.ravel())
    y, a, b = np.unravel_index(cells, truth.shape)
    return torch.tensor(np.stack([a, b], 1)).float(), torch.tensor(y), truth


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda spec: TabDDPM(spec, timesteps=20, hidden=(64, 64), embedding=32), 0.03),
        pytest.param(
            lambda spec: TVAE(spec, hidden=(64, 64), latent=2), 0.06, marks=pytest.mark.slow
        ),
    ],
    ids=["tabddpm", "tvae"],
)
def test_recovers_the_exact_distribution_of_a_small_discrete_table(make, tolerance):
    torch.manual_seed(0)
    x, y, truth = discrete_table(20_000)
    steps, lr = 600, 1e-2
    model: TableModel = make(table_spec(3, 2, num_classes=2))
    model.fit_columns(x, y, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        index = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        model.loss(Batch(x[index], y[index]))["loss"].backward()
        optimizer.step()
    model.eval()
    n = 10_000
    classes = model.draw_classes(n)
    drawn = model.sample(n, classes).long()
    found = np.zeros_like(truth)
    np.add.at(found, (classes.numpy(), drawn[:, 0].numpy(), drawn[:, 1].numpy()), 1 / n)
    assert np.abs(found - truth).sum() / 2 < tolerance
    if "elbo" in abilities(model):  # the bound is below the exact entropy, and near it
        conditional = truth / truth.sum((1, 2), keepdims=True)
        log_p = np.log(conditional[y.numpy(), x[:, 0].long().numpy(), x[:, 1].long().numpy()])
        bound = model.elbo(x[:4000], y[:4000]).mean().item()
        assert log_p[:4000].mean() - 0.05 < bound < log_p[:4000].mean() + 0.03


@pytest.mark.parametrize("model", [TabDDPM, TVAE])
@pytest.mark.parametrize("categories", [(0, 0), (4, 2), (0, 3, 0)], ids=str)
def test_any_mixture_of_columns_has_a_loss_and_samples(model, categories):
    torch.manual_seed(0)
    built = model(table_spec(*categories), hidden=(16,), conditional=False)
    columns = [torch.randint(k, (64,)).float() if k else torch.randn(64) for k in categories]
    x = torch.stack(columns, 1)
    built.fit_columns(x, None, seed=0)
    assert built.loss(Batch(x))["loss"].isfinite()
    drawn = built.sample(50)
    assert drawn.shape == (50, len(categories)) and drawn.isfinite().all()
    for i, k in enumerate(categories):
        assert not k or set(drawn[:, i].tolist()) <= set(range(k))
    assert ("elbo" in abilities(built)) == (model is TabDDPM and all(categories))


@pytest.mark.parametrize("model", [TabDDPM, TVAE])
def test_refuses_other_data_and_missing_labels(model):
    with pytest.raises(UserError, match="dataset=mixed_table"):
        model(DataSpec((2,), "points", levels=0))
    with pytest.raises(UserError, match=r"model\.conditional=false"):
        model(table_spec(2, 0))


def test_the_fit_of_the_columns_is_part_of_the_checkpoint():
    table = MixedTable()
    x, y = table.raw_items_and_labels("train")
    for model in (TabDDPM, TVAE):
        first = model(table.spec, hidden=(8,))
        first.fit_columns(x, y, seed=0)
        torch.testing.assert_close(first.class_fractions, torch.bincount(y) / len(y))
        second = model(table.spec, hidden=(8,))
        second.load_state_dict(first.state_dict())
        drawn = []
        for each in (first, second):
            torch.manual_seed(1)
            drawn.append(each.sample(20))
        assert torch.equal(*drawn)
