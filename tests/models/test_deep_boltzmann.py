"""DBN and DBM against enumeration: log Z, p(x), gradients, bounds, chains and stages."""

import itertools
from functools import partial

import pytest
import torch

from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.models.boltzmann.dbm import DBM
from genlab.models.boltzmann.dbn import DBN
from genlab.models.boltzmann.trainer import GreedyTrainer
from genlab.spec import Batch, DataSpec

SPEC = DataSpec((1, 2, 2), levels=2, range=(0.0, 1.0))
D = 4


def states(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


V = states(D)
X = V.view(-1, *SPEC.shape)


def randomize(model, scale: float = 1.0):
    model = model.double()
    torch.manual_seed(1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model


def dbm(scale: float = 1.0, hidden=(3, 2), **options) -> DBM:
    torch.manual_seed(0)
    return randomize(DBM(SPEC, hidden=hidden, num_chains=4, **options), scale)


def dbn(scale: float = 1.0, hidden=(3, 2), **options) -> DBN:
    torch.manual_seed(0)
    return randomize(DBN(SPEC, hidden=hidden, num_chains=4, **options), scale)


def joint(model: DBM) -> torch.Tensor:
    """Return −E(v, h, g) of every triple of states (2^D, 2^H, 2^G)."""
    h, g = states(model.U.shape[1]), states(model.U.shape[0])
    below = (V @ model.first.b)[:, None] + (h @ model.first.c)[None] + V @ model.first.W.T @ h.T
    return below[:, :, None] + ((g @ model.a)[None] + h @ model.U.T @ g.T)[None]


def state_probs(p: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Return the probability (N, 2^n) of states s (2^n, n) under each row of means p (N, n)."""
    return (p[:, None] * s + (1 - p[:, None]) * (1 - s)).prod(2)


def log_p_dbn(model: DBN) -> torch.Tensor:
    """Return log p(v) (2^D,) of every v: p(v | h) … p of the top RBM, summed over h."""
    top = model.layers[-1]
    h = states(len(top.b))
    log_p = -top.free_energy(h)
    log_p = log_p - log_p.logsumexp(0)
    for layer in reversed(model.layers[:-1]):
        below = states(len(layer.b))
        log_p = (state_probs(layer.visible_probs(h), below).log() + log_p[:, None]).logsumexp(0)
        h = below
    return log_p.detach()


def log_p_dbm(model: DBM) -> torch.Tensor:
    log_p = joint(model).logsumexp((1, 2))
    return (log_p - log_p.logsumexp(0)).detach()


DEEP = {
    "dbn": (dbn, log_p_dbn),
    "dbn of three": (partial(dbn, hidden=(3, 4, 2)), log_p_dbn),
    "dbm": (dbm, log_p_dbm),
    "dbm wide": (partial(dbm, hidden=(5, 3)), log_p_dbm),
}


# --- the probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(3, 2), (5, 2), (2, 7)])
def test_dbm_partition_function_is_the_sum_over_all_states(hidden):
    model = dbm(hidden=hidden)
    assert model.log_partition().tag == "exact"
    assert model.log_partition().value == pytest.approx(
        joint(model).logsumexp((0, 1, 2)).item(), rel=1e-13
    )


def test_log_partition_is_cached_until_a_weight_changes():
    model = dbm(hidden=(3, 2))
    first = model.log_partition()
    assert model.log_partition() is first
    with torch.no_grad():
        model.U.mul_(2)
    assert model.log_partition().value == pytest.approx(
        joint(model).logsumexp((0, 1, 2)).item(), rel=1e-13
    )


@pytest.mark.parametrize("hidden", [(6, 5), (4, 12)])
def test_dbm_ais_is_within_its_error_of_the_exact_value(hidden):
    model = dbm(0.7, hidden)
    estimate = model.ais_log_partition(num_chains=200, num_temperatures=400)
    assert estimate.tag == "estimate" and 0 < estimate.error < 0.2
    assert abs(estimate.value - model.log_partition().value) < 4 * estimate.error


def test_dbm_free_energy_sums_over_the_first_hidden_layer():
    model = dbm()
    g = states(2)
    s = torch.cat([V.repeat_interleave(len(g), 0), g.repeat(len(V), 1)], 1)
    torch.testing.assert_close(
        -model.free_energy(s), joint(model).logsumexp(1).flatten(), rtol=1e-13, atol=1e-13
    )


# --- the bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEEP)
def test_bounds_are_below_the_exact_value_and_tighten(name):
    make, log_p = DEEP[name]
    model, exact = make(0.7), log_p(make(0.7))
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.manual_seed(0)
    n = 4000
    draws = model.elbo(X.repeat(n, 1, 1, 1)).view(n, -1)
    elbo, error = draws.mean(0), draws.std(0) / n**0.5
    assert (elbo < exact + 4 * error).all() and (elbo < exact - 1e-3).any()
    iwae = model.iwae(X.repeat(200, 1, 1, 1), 100).view(200, -1)
    ratio = (iwae - exact).exp()  # the mean weight over p(x), whose mean is 1
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 200**0.5).all() and ratio.std() > 1e-6
    assert (iwae.mean(0) > elbo - 4 * error).all() and (
        iwae.mean(0) < exact + 5 * iwae.std(0) / 200**0.5
    ).all()


def test_mean_field_bound_is_minus_the_expected_energy_plus_the_entropy():
    model = dbm()
    mu, nu = model.mean_field(V, 50)
    q = (
        state_probs(mu, states(3))[:, :, None] * state_probs(nu, states(2))[:, None]
    )  # (2^D, 2^H, 2^G)
    expected = (q * (joint(model) - q.log())).sum((1, 2)) - model.log_partition().value
    torch.testing.assert_close(model.elbo(X), expected.detach(), rtol=1e-10, atol=1e-10)


def test_mean_field_is_a_stationary_point_of_the_bound():
    model = dbm(0.5)
    mu, nu = (m.detach().requires_grad_() for m in model.mean_field(V, 200))

    def entropy(p):
        return -(p * p.log() + (1 - p) * (1 - p).log()).sum(1)

    bound = (mu * model.hidden_logits(V, nu)).sum(1) + nu @ model.a + entropy(mu) + entropy(nu)
    for gradient in torch.autograd.grad(bound.sum(), (mu, nu)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_dbm_without_a_second_layer_equals_its_rbm():
    model = dbm()
    torch.nn.init.zeros_(model.U)
    log_p = -model.first.energy(X) - model.first.log_partition().value
    torch.testing.assert_close(model.elbo(X), log_p, rtol=1e-12, atol=1e-12)


def test_dbn_layer_initialized_by_transpose_keeps_the_distribution():
    model = dbn(hidden=(3, 6))
    torch.nn.init.zeros_(model.layers[1].W)
    torch.nn.init.zeros_(model.layers[1].c)
    model.init_stage(1)
    below = model.layers[0]
    log_p = (-below.energy(X) - below.log_partition().value).detach()
    torch.testing.assert_close(log_p_dbn(model), log_p, rtol=1e-12, atol=1e-12)
    # q(h | x) is then the posterior, so one sample of the bound is exact
    torch.testing.assert_close(model.elbo(X), log_p, rtol=1e-12, atol=1e-12)


# --- the gradient ---------------------------------------------------------------------------------


def test_dbm_contrast_is_the_gradient_of_the_variational_bound():
    model = dbm(num_updates=200)
    parameters = list(model.parameters())
    mu, nu = model.mean_field(V, 200)
    # the bound at fixed q, differentiated by autograd, without its constants, the entropies
    log_z = joint(model).logsumexp((0, 1, 2))
    bound = V @ model.first.b + (mu * model.hidden_logits(V, nu)).sum(1) + nu @ model.a
    exact = torch.autograd.grad(log_z - bound.mean(), parameters)
    # the same from the loss, with every state of (v, g) weighted by its probability
    g = states(2)
    s = torch.cat([V.repeat_interleave(len(g), 0), g.repeat(len(V), 1)], 1)
    p = (-model.free_energy(s) - log_z).exp().detach()
    data = model.free_energy(torch.cat([V, nu], 1)).mean()
    loss = model.loss(Batch(X), s)["loss"]  # uniform over s: replace the mean by p
    loss = loss + model.free_energy(s).mean() - (p * model.free_energy(s)).sum()
    assert loss.item() == pytest.approx((data - (p * model.free_energy(s)).sum()).item(), rel=1e-12)
    for a, b in zip(exact, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# --- the chains -----------------------------------------------------------------------------------


def test_dbm_gibbs_matches_its_transition_matrix():
    model = dbm()
    g, h = states(2), states(3)
    s = torch.cat([V.repeat_interleave(len(g), 0), g.repeat(len(V), 1)], 1)  # (2^(D + G), D + G)
    up = state_probs(model.hidden_logits(s[:, :D], s[:, D:]).sigmoid(), h)
    down = (
        state_probs(model.first.visible_probs(h), V)[:, :, None]
        * state_probs(model.top_layer_probs(h), g)[:, None]
    ).flatten(1)
    P = (up @ down).detach()
    pi = joint(model).logsumexp(1).flatten().softmax(0).detach()
    torch.testing.assert_close(pi @ P, pi, rtol=0, atol=1e-12)
    n, row = 40_000, 37
    drawn = model.gibbs(s[row].expand(n, -1), 1)
    share = (
        torch.bincount((drawn @ 2.0 ** torch.arange(5, -1, -1).double()).long(), minlength=64) / n
    )
    assert ((share - P[row]).abs() <= 5 * (P[row] * (1 - P[row]) / n).sqrt() + 1e-9).all()


@pytest.mark.parametrize("name", DEEP)
def test_samples_and_chains_average_to_the_means_of_the_model(name):
    make, log_p = DEEP[name]
    model, n = make(0.7), 20_000
    torch.manual_seed(0)
    x = model.sample(n, steps=40)
    means = log_p(model).exp() @ V
    torch.testing.assert_close(x.flatten(1).mean(0), means, rtol=0, atol=5 * 0.5 / n**0.5)
    x = model.gibbs_chain(X[5:6].expand(n, -1, -1, -1), 40)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(x.flatten(1).mean(0), means, rtol=0, atol=5 * 0.5 / n**0.5)


@pytest.mark.parametrize("name", ["dbm", "rbm"])
def test_inpainting_draws_the_unknown_given_the_known(name):
    model = dbm(0.7) if name == "dbm" else dbm(0.7).first
    log_p = log_p_dbm(model) if name == "dbm" else -model.free_energy(V).detach()
    known = torch.tensor([[True, False], [False, True]])
    x, n = X[9:10], 20_000  # 1 0 / 0 1: the known ones are 1 and 1
    if name == "rbm":
        x, known, model.spec = x.flatten(1), known.flatten(), model.spec
    agrees = (V[:, [0, 3]] == 1).all(1)
    means = log_p.masked_fill(~agrees, -torch.inf).softmax(0) @ V
    torch.manual_seed(0)
    drawn = model.inpaint(x.expand(n, *x.shape[1:]), known, steps=40).flatten(1)
    assert (drawn[:, [0, 3]] == 1).all()
    torch.testing.assert_close(drawn.mean(0), means, rtol=0, atol=5 * 0.5 / n**0.5)


# --- the stages -----------------------------------------------------------------------------------


def data():
    g = torch.Generator().manual_seed(0)
    while True:
        yield Batch(torch.rand(8, *SPEC.shape, dtype=torch.float64, generator=g).round())


def trainer_of(make, **options) -> GreedyTrainer:
    options = {
        "batch_size": 8,
        "steps": 8,
        "lr_schedule": "linear",
        "stage_starts": (0, 4),
        **options,
    }
    device = Device(name="cpu", precision="fp64")
    return GreedyTrainer(
        make(0.1), partial(torch.optim.SGD, lr=0.1), GreedyTrainer.Options(**options), device=device
    )


def run_steps(trainer, steps: int) -> list[float]:
    batches, rates = data(), []
    for _ in range(trainer.global_step):
        next(batches)
    for _ in range(steps):
        trainer.train_step(batches)
        name = list(trainer.model.stage_modules)[
            trainer.options.stage_starts[1] < trainer.global_step
        ]
        rates.append(trainer.optimizers[name].param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("make", [dbn, dbm])
def test_stage_trains_only_its_layers_with_its_own_schedule(make):
    trainer = trainer_of(make, stage_lr_mults=(1.0, 0.5))
    first, second = trainer.model.layers if make is dbn else (trainer.model.first, None)
    start = first.W.clone()
    top = second.W.clone() if second else trainer.model.U.clone()
    rates = run_steps(trainer, 4)
    assert not torch.equal(first.W, start) and torch.equal(
        second.W if second else trainer.model.U, top
    )
    trained = first.W.clone()
    rates += run_steps(trainer, 4)
    assert not torch.equal(second.W if second else trainer.model.U, top)
    assert torch.equal(first.W, trained) is (make is dbn)
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.05, 0.0375, 0.025, 0.0125])


@pytest.mark.parametrize("make", [partial(dbn, hidden=(3, 6)), dbm])
def test_second_stage_starts_at_the_likelihood_of_the_first(make):
    trainer = trainer_of(make, stage_lr_mults=(1.0, 1e-12))
    run_steps(trainer, 4)
    model = trainer.model
    first = model.layers[0] if isinstance(model, DBN) else model.first
    log_p = -first.energy(X) - first.log_partition().value
    top = model.U if isinstance(model, DBM) else model.layers[1].W
    torch.nn.init.normal_(top, std=1e-3)
    run_steps(trainer, 1)
    torch.testing.assert_close(model.elbo(X), log_p, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [dbn, dbm])
@pytest.mark.parametrize("stop", [3, 4, 6])
def test_resume_within_a_stage_is_bit_exact(make, stop):
    whole, first, second = (trainer_of(make) for _ in range(3))
    run_steps(whole, 8)
    run_steps(first, stop)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(99)
    run_steps(second, 8 - stop)
    for a, b in zip(
        whole.model.state_dict().values(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("stage_starts", [(0,), (0, 0), (1, 2), (0, 5, 2)])
def test_rejects_wrong_stage_starts(stage_starts):
    with pytest.raises(UserError, match=r"trainer\.stage_starts=.*the stages layer1, layer2"):
        trainer_of(dbn, stage_starts=stage_starts)


@pytest.mark.parametrize("model", [DBN, DBM])
def test_rejects_labels_other_samplers_and_data_that_is_not_binary(model):
    with pytest.raises(UserError, match=r"preprocess\.binarize=dynamic"):
        model(DataSpec((1, 8, 8)))
    small = dbn() if model is DBN else dbm()
    with pytest.raises(UserError, match="not class-conditional"):
        small.sample(2, torch.tensor([0, 1]))
    with pytest.raises(UserError, match="does not support sampler=ddim"):
        small.sample(2, sampler="ddim")
