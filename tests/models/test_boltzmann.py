"""The RBM: energies, partition function, gradients and the Gibbs chain against enumeration."""

import itertools
from functools import partial

import pytest
import torch

from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.models.boltzmann.ais import schedule
from genlab.models.boltzmann.rbm import RBM
from genlab.models.boltzmann.trainer import CDTrainer
from genlab.spec import Batch, Spec

D, H = 4, 3


def states(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def rbm(visible: int = D, hidden: int = H, scale: float = 1.0, **options) -> RBM:
    torch.manual_seed(0)
    model = RBM(
        Spec((1, visible // 2, 2), levels=2, range=(0.0, 1.0)), hidden=hidden, **options
    ).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model.requires_grad_()


def joint(model: RBM) -> torch.Tensor:
    """−E(v, h) of every pair of states (2^D, 2^H)."""
    v, h = states(model.W.shape[1]), states(model.W.shape[0])
    return (v @ model.b)[:, None] + (h @ model.c)[None] + v @ model.W.T @ h.T


def test_free_energy_sums_over_the_hidden_states():
    model = rbm()
    x = states(D).view(-1, 1, D // 2, 2)
    torch.testing.assert_close(-model.energy(x), joint(model).logsumexp(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (2, 5), (14, 13)])
def test_both_sides_give_the_same_partition_function(visible, hidden):
    model = rbm(visible, hidden)
    sides = [model.enumerate_log_partition(over=side) for side in ("visible", "hidden")]
    assert sides[0] == pytest.approx(sides[1], rel=1e-13)
    assert model.log_partition()[:3] == (model.enumerate_log_partition(), None, "exact")
    if visible + hidden < 10:
        assert sides[0] == pytest.approx(joint(model).logsumexp((0, 1)).item(), rel=1e-13)


def test_probabilities_sum_to_one():
    model = rbm()
    log_p = -model.free_energy(states(D)) - model.log_partition().value
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_conditionals_are_those_of_the_joint():
    model = rbm()
    v, h = states(D), states(H)
    p = joint(model).exp()  # (2^D, 2^H)
    given_v, given_h = p / p.sum(1, keepdim=True), p / p.sum(0, keepdim=True)
    torch.testing.assert_close(model.encode(v.view(-1, 1, D // 2, 2)), given_v @ h)
    torch.testing.assert_close(model.decode(h).flatten(1), given_h.T @ v)


def test_the_gradient_is_the_contrastive_statistic():
    model = rbm()
    v, v_model = torch.rand(2, 9, D, dtype=torch.float64).round()
    model.loss(Batch(v.view(-1, 1, D // 2, 2)), v_model)["loss"].backward()
    p, q = model.p_hidden(v), model.p_hidden(v_model)
    torch.testing.assert_close(-model.W.grad, p.T @ v / 9 - q.T @ v_model / 9)
    torch.testing.assert_close(-model.b.grad, v.mean(0) - v_model.mean(0))
    torch.testing.assert_close(-model.c.grad, p.mean(0) - q.mean(0))


def test_with_the_models_own_expectation_it_is_the_likelihoods_gradient():
    model = rbm()
    v = torch.rand(9, D, dtype=torch.float64).round()
    parameters = list(model.parameters())
    # log Z = log Σ_v exp(−F(v)), differentiated by autograd
    nll = model.free_energy(v).mean() + (-model.free_energy(states(D))).logsumexp(0)
    exact = torch.autograd.grad(nll, parameters)
    p = (-model.free_energy(states(D)) - model.log_partition().value).exp().detach()
    expected = model.free_energy(v).mean() - (p * model.free_energy(states(D))).sum()
    for a, b in zip(exact, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def transitions(model: RBM) -> torch.Tensor:
    """P[v, v'] of one Gibbs step, from the model's conditionals (2^D, 2^D)."""
    v, h = states(D), states(H)
    bernoulli = lambda p, s: (p[:, None] * s + (1 - p[:, None]) * (1 - s)).prod(2)  # noqa: E731
    return bernoulli(model.p_hidden(v), h) @ bernoulli(model.p_visible(h), v)


def test_gibbs_leaves_the_distribution_as_it_is():
    model = rbm()
    P = transitions(model)
    pi = (-model.free_energy(states(D)) - model.log_partition().value).exp()
    torch.testing.assert_close(P.sum(1), torch.ones(2**D, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(pi @ P, pi, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_the_sampler_makes_these_transitions(k):
    model = rbm()
    n = 40_000
    P = torch.linalg.matrix_power(transitions(model), k).detach()
    power = 2 ** torch.arange(D - 1, -1, -1, dtype=torch.float64)
    for row in (0, 6, 15):
        v = model.gibbs(states(D)[row].expand(n, -1), k)
        share = torch.bincount((v @ power).long(), minlength=2**D) / n
        assert ((share - P[row]).abs() <= 5 * (P[row] * (1 - P[row]) / n).sqrt() + 1e-9).all()


def test_sample_gives_probabilities_that_average_to_the_models_means():
    model = rbm(scale=0.7)
    n = 20_000
    x = model.sample(n, steps=30)
    assert (
        x.shape == (n, 1, D // 2, 2) and x.dtype == torch.float64 and x.min() >= 0 and x.max() <= 1
    )
    pi = (-model.free_energy(states(D)) - model.log_partition().value).exp()
    torch.testing.assert_close(
        x.flatten(1).mean(0), (pi @ states(D)).detach(), rtol=0, atol=5 * 0.5 / n**0.5
    )


@pytest.mark.parametrize(
    ("visible", "hidden", "scale"), [(4, 3, 1.0), (12, 16, 0.5), (30, 10, 0.3)]
)
def test_ais_is_within_its_error_of_the_enumeration(visible, hidden, scale):
    model = rbm(visible, hidden, scale)
    estimate = model.ais(chains=200, temperatures=600)
    assert estimate.tag == "estimate" and 0 < estimate.error < 0.1
    assert abs(estimate.value - model.enumerate_log_partition()) < 4 * estimate.error


def test_large_models_are_estimated():
    model = rbm(22, 21, 0.1)
    model.ais = partial(model.ais, chains=10, temperatures=20)
    assert model.log_partition().tag == "estimate"


def test_the_schedule_rises_from_0_to_1():
    betas = schedule(14_500)
    assert len(betas) == 14_501 and betas[0] == 0 and betas[-1] == 1 and betas == sorted(betas)
    assert betas[500] == 0.5 and betas[4_500] == 0.9


def trainer_of(**options) -> CDTrainer:
    device = Device(name="cpu", precision="fp64")
    model = rbm(chains=4)
    return CDTrainer(
        model,
        partial(torch.optim.SGD, lr=0.1),
        CDTrainer.Options(batch_size=6, **options),
        device=device,
    )


def batches():
    g = torch.Generator().manual_seed(0)
    while True:
        yield Batch(torch.rand(6, 1, D // 2, 2, dtype=torch.float64, generator=g).round())


@pytest.mark.parametrize("persistent", [True, False])
def test_chains_go_on_only_where_they_persist(persistent, monkeypatch):
    trainer = trainer_of(persistent=persistent, k=3)
    starts, ends = [], []
    gibbs = trainer.model.gibbs
    monkeypatch.setattr(
        trainer.model,
        "gibbs",
        lambda v, k: (starts.append(v.clone()), ends.append(gibbs(v, k)), ends[-1])[2],
    )
    data = batches()
    trainer.step(data)
    trainer.at += 1
    trainer.step(data)
    if persistent:
        assert torch.equal(starts[1], ends[0]) and torch.equal(trainer.model.chains, ends[1])
    else:
        shown = batches()
        assert all(torch.equal(start, next(shown).x.flatten(1)) for start in starts)


def test_the_base_rate_is_the_mean_of_the_data_seen():
    trainer = trainer_of()
    data = batches()
    for _ in range(3):
        trainer.step(data)
        trainer.at += 1
    shown = batches()
    mean = torch.cat([next(shown).x.flatten(1) for _ in range(3)]).mean(0)
    torch.testing.assert_close(trainer.model.base_rate, mean)


def test_the_visible_biases_start_at_the_logit_of_the_mean():
    trainer = trainer_of()
    x = next(batches()).x
    trainer.watch([Batch(x)])
    p = x.flatten(1).mean(0).clamp(1 / 6, 5 / 6)
    torch.testing.assert_close(trainer.model.b.detach(), (p / (1 - p)).log())


def test_shards_share_the_chains():
    trainer = trainer_of(accumulate=2)
    chains = trainer.model.chains.clone()
    trainer.step(batches())
    assert trainer.model.chains.shape == chains.shape and trainer.pulled == 1
    with pytest.raises(UserError, match=r"model\.chains=6"):
        trainer_of(accumulate=3)


@pytest.mark.parametrize(
    "spec", [Spec((1, 8, 8)), Spec((1, 8, 8), levels=2), Spec((2,), kind="points", levels=0)]
)
def test_refuses_data_that_is_not_binary(spec):
    with pytest.raises(UserError, match=r"dataset\.binarize=dynamic dataset\.range=\[0,1\]"):
        RBM(spec)


def test_refuses_classes_and_unknown_samplers():
    with pytest.raises(UserError, match="no classes"):
        rbm().sample(2, torch.tensor([0, 1]))
    with pytest.raises(UserError, match="no sampler 'ddim'"):
        rbm().sample(2, sampler="ddim")
