"""BM and GRBM against enumeration and quadrature; the bars and parity datasets."""

import itertools
import math
from functools import partial

import pytest
import torch
from helpers.recipes import build_training_objects

from genlab.abilities import abilities
from genlab.data.binary_toy import BarsAndStripes, Parity
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.models.boltzmann import bm as bm_module
from genlab.models.boltzmann.bm import BM
from genlab.models.boltzmann.grbm import GRBM
from genlab.models.boltzmann.trainer import CDTrainer
from genlab.spec import Batch, DataSpec
from genlab.viz.rbm import plot_rbm_filters_and_chains

D = 4
SPEC = DataSpec((1, 2, 2), levels=2, range=(0.0, 1.0))


def states(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64).view(
        2**n, n
    )


V = states(D)
X = V.view(-1, *SPEC.shape)


def bm(hidden: int = 3, scale: float = 1.0, *, sampled: bool = False, **options) -> BM:
    """Return a BM with random couplings; `sampled` disables the enumeration of states."""
    torch.manual_seed(0)
    limit = bm_module.MAX_ENUMERATED_UNITS
    bm_module.MAX_ENUMERATED_UNITS = 0 if sampled else limit
    try:
        model = BM(SPEC, hidden=hidden, num_chains=6, **options).double()
    finally:
        bm_module.MAX_ENUMERATED_UNITS = limit
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model


def joint(model: BM) -> torch.Tensor:
    """Return −E(s) (2^N,) of every state, as a sum over pairs."""
    s, J = states(D + model.hidden), model.J
    pairs = list(itertools.combinations(range(s.shape[1]), 2))
    return s @ model.b + sum(J[k] * s[:, i] * s[:, j] for k, (i, j) in enumerate(pairs))


def log_p(model: BM) -> torch.Tensor:
    """Return log p(v) (2^D,) by a sum over all states."""
    log_joint = joint(model).view(2**D, -1).logsumexp(1)
    return log_joint - log_joint.logsumexp(0)


# --- the general Boltzmann machine ----------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 3])
def test_log_z_and_probabilities_are_sums_over_all_states(hidden):
    model = bm(hidden)
    assert model.log_partition().value == pytest.approx(joint(model).logsumexp(0).item(), rel=1e-13)
    torch.testing.assert_close(model.log_prob(X), log_p(model), rtol=1e-12, atol=1e-12)
    assert model.log_prob(X).exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(
        -model.energy(X) - model.log_partition().value, log_p(model), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        -model.joint_energy(states(D + hidden)), joint(model), rtol=1e-12, atol=1e-12
    )


def test_exact_gradient_is_the_difference_of_the_two_phases():
    model = bm()
    x = X[torch.tensor([1, 1, 6, 13])]
    model.loss(Batch(x))["loss"].backward()
    s, i, j = states(D + 3), *model.pairs
    free = joint(model).softmax(0)
    given = torch.stack(
        [(s[:, :D] == v).all(1) for v in x.flatten(1)]
    )  # (B, 2^N): states that agree with v
    clamped = joint(model).expand_as(given).masked_fill(~given, -torch.inf).softmax(1).mean(0)
    pairs = s[:, i] * s[:, j]
    torch.testing.assert_close(
        -model.J.grad, ((clamped - free) @ pairs).detach(), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(
        -model.b.grad, ((clamped - free) @ s).detach(), rtol=1e-10, atol=1e-12
    )


def test_sampled_loss_has_the_exact_gradient_for_exact_model_states():
    exact, model = bm(0), bm(0, sampled=True)
    model.load_state_dict({**model.state_dict(), "J": exact.J, "b": exact.b})
    x = X[torch.tensor([1, 1, 6, 13])]
    (wanted,) = torch.autograd.grad(exact.loss(Batch(x))["loss"], [exact.J])
    n = 400_000
    torch.manual_seed(1)
    s_model = V[log_p(model).exp().multinomial(n, replacement=True)]
    (found,) = torch.autograd.grad(model.loss(Batch(x), s_model)["loss"], [model.J])
    torch.testing.assert_close(found, wanted, rtol=0, atol=5 * 0.5 / n**0.5)


@pytest.mark.parametrize("clamped", [False, True])
def test_gibbs_leaves_the_distribution_invariant(clamped):
    model, n = bm(), 60_000
    p = joint(model)
    if clamped:
        p = p.masked_fill((states(D + 3)[:, :D] != V[6]).any(1), -torch.inf)
    p = p.softmax(0).detach()
    torch.manual_seed(0)
    s = states(D + 3)[p.multinomial(n, replacement=True)]
    after = model.gibbs(s, 1, free=torch.arange(D + 3) >= D if clamped else None)
    share = (
        torch.bincount(
            (after @ 2.0 ** torch.arange(D + 2, -1, -1).double()).long(), minlength=2 ** (D + 3)
        )
        / n
    )
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()
    assert (after != s).any(1).float().mean() > 0.3
    # and it forgets its initial state
    s = model.gibbs(
        states(D + 3)[48].expand(n, -1), 30, free=torch.arange(D + 3) >= D if clamped else None
    )
    torch.testing.assert_close(s.mean(0), p @ states(D + 3), rtol=0, atol=5 * 0.5 / n**0.5)


@pytest.mark.parametrize("sampled", [False, True])
def test_samples_and_inpainting_follow_the_distribution(sampled):
    model, n = bm(2, 0.7, sampled=sampled), 20_000
    options = {"steps": 30} if sampled else {}
    torch.manual_seed(0)
    x = model.sample(n, **options).flatten(1)
    torch.testing.assert_close(
        x.mean(0), (log_p(model).exp() @ V).detach(), rtol=0, atol=5 * 0.5 / n**0.5
    )
    known = torch.tensor([[True, False], [False, True]])
    agrees = (V[:, 0] == 1) & (V[:, 3] == 0)
    means = log_p(model).masked_fill(~agrees, -torch.inf).softmax(0) @ V
    x = model.inpaint(X[8:9].expand(n, -1, -1, -1), known, **options).flatten(1)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(x.mean(0), means.detach(), rtol=0, atol=5 * 0.5 / n**0.5)


def test_ais_is_within_its_error_of_the_exact_value():
    model = bm(5, 0.7, sampled=True, num_temperatures=300)
    estimate = model.log_partition()
    assert estimate.tag == "estimate" and 0 < estimate.error < 0.1
    assert abs(estimate.value - joint(model).logsumexp(0).item()) < 4 * estimate.error


def test_intractable_sums_are_not_abilities():
    assert {"energy", "log_prob"} <= abilities(bm())
    large = BM(DataSpec((1, 4, 4), levels=2, range=(0.0, 1.0)), hidden=5)
    assert (
        "log_prob" not in abilities(large)
        and "energy" in abilities(large)
        and len(large.chains) == 100
    )
    assert "energy" not in abilities(BM(SPEC, hidden=21))


def test_sampled_phases_learn_a_distribution():
    model = bm(0, 0.01, sampled=True)
    options = CDTrainer.Options(batch_size=12, steps=600, lr_schedule="linear")
    trainer = CDTrainer(
        model,
        partial(torch.optim.SGD, lr=0.3),
        options,
        device=Device(name="cpu", precision="fp64"),
    )
    data = X[torch.tensor([0, 15, 15])].repeat(4, 1, 1, 1)  # all units are equal
    for _ in range(options.steps):
        trainer.train_step(iter([Batch(data)]))
    assert (
        -log_p(model)[torch.tensor([0, 15, 15])].mean().item()
        < math.log(3) - 2 / 3 * math.log(2) + 0.15
    )


# --- binary toy datasets, and the models that learn them ------------------------------------------


def test_bars_and_parity_enumerate_their_distributions():
    bars, parity = BarsAndStripes(range=(0.0, 1.0)), Parity(range=(0.0, 1.0), bits=4)
    x = bars.head("train").x
    assert x.shape == (16, 1, 3, 3) and 16 * bars.entropy == pytest.approx(41.5888, abs=1e-4)
    assert all((row == row[:1]).all() or (row == row[:, :1]).all() for row in x[:, 0])
    assert len(x.flatten(1).unique(dim=0)) == 14
    x = parity.head("test").x
    assert (
        x.shape == (8, 1, 1, 4)
        and (x.sum((1, 2, 3)) % 2 == 0).all()
        and len(x.flatten(1).unique(dim=0)) == 8
    )
    assert parity.entropy == pytest.approx(math.log(8))
    for make in (partial(BarsAndStripes, size=17), partial(Parity, bits=17)):
        with pytest.raises(UserError, match="all (bars|rows) are listed"):
            make()


@pytest.mark.parametrize(
    ("hidden", "low", "high"), [(0, math.log(2) - 1e-6, math.log(2) + 1e-3), (4, 0, 0.15)]
)
def test_parity_needs_hidden_units(hidden, low, high):
    _, dataset, trainer = build_training_objects(
        "experiment=bm_parity",
        f"model.hidden={hidden}",
        "trainer.steps=400",
        "device=cpu",
        "out=unused",
    )
    batches = trainer.train_batches(dataset)
    for _ in range(400):
        trainer.train_step(batches)
    kl = -trainer.model.log_prob(dataset.head("test").x).mean().item() - dataset.entropy
    assert low <= kl <= high


def test_filters_and_chains_are_plotted():
    _, dataset, trainer = build_training_objects(
        "experiment=bm_bars", "model.hidden=4", "device=cpu", "out=unused"
    )
    plots = plot_rbm_filters_and_chains(trainer.model, dataset, seed=0)
    assert set(plots) == {"filters", "chains"}
    for picture in plots.values():
        images = picture.images
        assert images.dtype == "uint8" and images.min() == 0 and images.max() == 255
        assert picture.note
    assert plots["filters"].images.shape[0] == 4
    assert (plots["chains"].num_rows, plots["chains"].columns) == (10, 11)
    assert plots["chains"].column_names[0] == "item" and plots["chains"].column_names[-1] == "1,000"
    assert plot_rbm_filters_and_chains(torch.nn.Linear(2, 2), dataset, seed=0) == {}


# --- Gaussian visible units -----------------------------------------------------------------------


def grbm(visible: int = 2, hidden: int = 3, scale: float = 0.7) -> GRBM:
    torch.manual_seed(0)
    model = GRBM(
        DataSpec((visible,), kind="points", levels=0), hidden=hidden, num_chains=4
    ).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model


def test_grbm_density_is_a_mixture_of_gaussians_and_integrates_to_one():
    model = grbm()
    side = torch.linspace(-14, 14, 1200, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    log_density = (-model.energy(grid) - model.log_partition().value).detach()
    cell = (side[1] - side[0]) ** 2
    assert (log_density.exp().sum() * cell).item() == pytest.approx(1, abs=1e-9)
    # weights p(h), means b + Wᵀh, variances σ²
    h = states(3)
    mean, var = model.visible_mean(h), model.visible_variance
    log_weight = h @ model.c + ((mean.square() - model.b.square()) / (2 * var)).sum(1)
    normal = torch.distributions.Normal(mean, var.sqrt()).log_prob(grid[::9973, None]).sum(2)
    torch.testing.assert_close(
        log_density[::9973], (log_weight.log_softmax(0) + normal).logsumexp(1).detach()
    )


def test_grbm_contrast_with_exact_expectations_is_the_likelihood_gradient():
    model = grbm(1, 3)
    v = torch.randn(7, 1, dtype=torch.float64)
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)[:, None]
    cell = grid[1, 0] - grid[0, 0]
    log_z = (-model.free_energy(grid)).logsumexp(0) + cell.log()
    assert log_z.item() == pytest.approx(model.log_partition().value, abs=1e-9)
    exact = torch.autograd.grad(model.free_energy(v).mean() + log_z, list(model.parameters()))
    p = ((-model.free_energy(grid) - log_z).exp() * cell).detach()
    contrast = model.free_energy(v).mean() - (p * model.free_energy(grid)).sum()
    for a, b in zip(exact, torch.autograd.grad(contrast, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_grbm_gibbs_reaches_the_moments_of_the_mixture():
    model, n = grbm(), 40_000
    h = states(3)
    mean = model.visible_mean(h)
    log_weight = h @ model.c + (
        (mean.square() - model.b.square()) / (2 * model.visible_variance)
    ).sum(1)
    p = log_weight.softmax(0)[:, None]
    torch.manual_seed(0)
    v = model.gibbs(model.sample_initial_states(n), 60)
    first, second = (p * mean).sum(0), (p * (mean.square() + model.visible_variance)).sum(0)
    for drawn, wanted in ((v, first), (v.square(), second)):
        torch.testing.assert_close(
            drawn.mean(0), wanted.detach(), rtol=0, atol=5 * drawn.std(0).max().item() / n**0.5
        )


@pytest.mark.parametrize(("visible", "hidden"), [(2, 3), (6, 10)])
def test_grbm_ais_is_within_its_error_of_the_exact_value(visible, hidden):
    model = grbm(visible, hidden, 0.5)
    model.base_var.fill_(2.0)
    estimate = model.ais_log_partition(num_chains=300, num_temperatures=600)
    assert 0 < estimate.error < 0.2
    assert abs(estimate.value - model.enumerate_log_partition()) < 4 * estimate.error


def test_grbm_is_initialized_from_the_moments_of_the_data():
    model = GRBM(DataSpec((2,), kind="points", levels=0), hidden=3)
    x = torch.randn(2, 500, 2) * 3 + 1
    for step, part in enumerate(x):
        model.update_data_stats(model.batch_data_stats(part), step=step, batch_size=500)
    whole = x.flatten(0, 1)
    torch.testing.assert_close(model.base_rate, whole.mean(0))
    torch.testing.assert_close(model.base_var, whole.var(0, correction=0))
    torch.testing.assert_close(model.b.detach(), x[0].mean(0))
    torch.testing.assert_close(model.z.exp().detach(), x[0].var(0, correction=0))


@pytest.mark.parametrize(
    "spec", [DataSpec((1, 8, 8)), DataSpec((9,), kind="tokens", levels=0, vocab=5)]
)
def test_grbm_rejects_discrete_data(spec):
    with pytest.raises(UserError, match=r"preprocess\.dequantize=true"):
        GRBM(spec)


def test_rejects_labels_and_data_that_is_not_binary():
    with pytest.raises(UserError, match=r"preprocess\.binarize=dynamic"):
        BM(DataSpec((1, 8, 8)))
    for call in (
        lambda m: m.sample(2, torch.tensor([0, 1])),
        lambda m: m.log_prob(X, torch.tensor([0])),
    ):
        with pytest.raises(UserError, match="not class-conditional"):
            call(bm())
