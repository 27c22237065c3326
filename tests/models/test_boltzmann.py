"""RBMs against enumeration: energies, partition function, gradients and Gibbs chains."""

import itertools
from functools import partial

import pytest
import torch

from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.models.boltzmann.ais import (
    ais_estimate_from_log_weights,
    ais_inverse_temperatures,
)
from genlab.models.boltzmann.grbm import GRBM
from genlab.models.boltzmann.rbm import RBM
from genlab.models.boltzmann.trainer import CDTrainer
from genlab.spec import Batch, DataSpec

D, H = 4, 3


def states(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def rbm(visible: int = D, hidden: int = H, scale: float = 1.0, **options) -> RBM:
    torch.manual_seed(0)
    model = RBM(
        DataSpec((1, visible // 2, 2), levels=2, range=(0.0, 1.0)), hidden=hidden, **options
    ).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model.requires_grad_()


def joint(model: RBM) -> torch.Tensor:
    """Return −E(v, h) of every pair of states (2^D, 2^H)."""
    v, h = states(model.W.shape[1]), states(model.W.shape[0])
    return (v @ model.b)[:, None] + (h @ model.c)[None] + v @ model.W.T @ h.T


def test_free_energy_sums_over_the_hidden_states():
    model = rbm()
    x = states(D).view(-1, 1, D // 2, 2)
    torch.testing.assert_close(-model.energy(x), joint(model).logsumexp(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (2, 5), (14, 13)])
def test_enumeration_over_either_layer_gives_the_same_partition_function(visible, hidden):
    model = rbm(visible, hidden)
    log_z, log_z_hidden = (
        model.enumerate_log_partition(over=layer) for layer in ("visible", "hidden")
    )
    assert log_z == pytest.approx(log_z_hidden, rel=1e-13)
    assert model.log_partition()[:3] == (model.enumerate_log_partition(), None, "exact")
    if visible + hidden < 10:
        assert log_z == pytest.approx(joint(model).logsumexp((0, 1)).item(), rel=1e-13)


def test_probabilities_sum_to_one():
    model = rbm()
    log_p = -model.free_energy(states(D)) - model.log_partition().value
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_conditionals_match_the_joint_distribution():
    model = rbm()
    v, h = states(D), states(H)
    p = joint(model).exp()  # (2^D, 2^H)
    given_v, given_h = p / p.sum(1, keepdim=True), p / p.sum(0, keepdim=True)
    torch.testing.assert_close(model.encode(v.view(-1, 1, D // 2, 2)), given_v @ h)
    torch.testing.assert_close(model.decode(h).flatten(1), given_h.T @ v)


def test_loss_gradient_is_the_contrastive_statistic():
    model = rbm()
    v, v_model = torch.rand(2, 9, D, dtype=torch.float64).round()
    model.loss(Batch(v.view(-1, 1, D // 2, 2)), v_model)["loss"].backward()
    p, q = model.hidden_probs(v), model.hidden_probs(v_model)
    torch.testing.assert_close(-model.W.grad, p.T @ v / 9 - q.T @ v_model / 9)
    torch.testing.assert_close(-model.b.grad, v.mean(0) - v_model.mean(0))
    torch.testing.assert_close(-model.c.grad, p.mean(0) - q.mean(0))


def test_loss_gradient_with_exact_model_expectation_is_the_likelihood_gradient():
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


def transition_matrix(model: RBM) -> torch.Tensor:
    """Return P[v, v'] (2^D, 2^D) of one Gibbs step, from the model's conditionals."""
    v, h = states(D), states(H)

    def probability(p, s):
        return (p[:, None] * s + (1 - p[:, None]) * (1 - s)).prod(2)

    return probability(model.hidden_probs(v), h) @ probability(model.visible_probs(h), v)


def test_gibbs_leaves_the_distribution_invariant():
    model = rbm()
    P = transition_matrix(model)
    pi = (-model.free_energy(states(D)) - model.log_partition().value).exp()
    torch.testing.assert_close(P.sum(1), torch.ones(2**D, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(pi @ P, pi, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_gibbs_samples_match_the_transition_matrix(k):
    model = rbm()
    n = 40_000
    P = torch.linalg.matrix_power(transition_matrix(model), k).detach()
    power = 2 ** torch.arange(D - 1, -1, -1, dtype=torch.float64)
    for row in (0, 6, 15):
        v = model.gibbs(states(D)[row].expand(n, -1), k)
        share = torch.bincount((v @ power).long(), minlength=2**D) / n
        assert ((share - P[row]).abs() <= 5 * (P[row] * (1 - P[row]) / n).sqrt() + 1e-9).all()


def test_samples_average_to_the_means_of_the_model():
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
def test_ais_is_within_its_error_of_the_exact_value(visible, hidden, scale):
    model = rbm(visible, hidden, scale)
    estimate = model.ais_log_partition(num_chains=200, num_temperatures=600)
    assert estimate.tag == "estimate" and 0 < estimate.error < 0.1
    assert abs(estimate.value - model.enumerate_log_partition()) < 4 * estimate.error


@pytest.mark.parametrize(
    ("log_w", "effective", "error"),
    [([0.3] * 50, 50, 0), ([0.0] * 99 + [60.0], 1, 1), ([0.0] * 90 + [40.0] * 10, 10, 0.3)],
)
def test_ais_says_how_many_chains_have_the_weight(log_w, effective, error):
    """The error by the delta method does not exceed 1 where one chain has all the weight."""
    estimate = ais_estimate_from_log_weights(torch.tensor(log_w, dtype=torch.float64), 2.0)
    assert estimate.effective_chains == pytest.approx(effective)
    assert estimate.error == pytest.approx(error, abs=0.02)
    words = f"{effective:.2g} effective chains of {len(log_w)}"
    assert (words in estimate.note) == bool(estimate.note) == (effective < 20)


def test_log_partition_of_large_models_is_estimated():
    model = rbm(22, 21, 0.1)
    model.ais_log_partition = partial(model.ais_log_partition, num_chains=10, num_temperatures=20)
    assert model.log_partition().tag == "estimate"


def test_inverse_temperatures_increase_from_0_to_1():
    betas = ais_inverse_temperatures(14_500)
    assert len(betas) == 14_501 and betas[0] == 0 and betas[-1] == 1 and betas == sorted(betas)
    assert betas[500] == 0.5 and betas[4_500] == 0.9


def trainer_of(**options) -> CDTrainer:
    device = Device(name="cpu", precision="fp64")
    model = rbm(num_chains=4)
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
def test_only_persistent_chains_continue(persistent, monkeypatch):
    trainer = trainer_of(persistent=persistent, cd_steps=3)
    starts, ends = [], []
    gibbs = trainer.model.gibbs

    def recorded_gibbs(v, num_steps):
        starts.append(v.clone())
        ends.append(gibbs(v, num_steps))
        return ends[-1]

    monkeypatch.setattr(trainer.model, "gibbs", recorded_gibbs)
    data = batches()
    trainer.step(data)
    trainer.global_step += 1
    trainer.step(data)
    if persistent:
        assert torch.equal(starts[1], ends[0]) and torch.equal(trainer.model.chains, ends[1])
    else:
        shown = batches()
        assert all(torch.equal(start, next(shown).x.flatten(1)) for start in starts)


def test_base_rate_is_the_mean_of_the_training_data():
    trainer = trainer_of()
    data = batches()
    for _ in range(3):
        trainer.step(data)
        trainer.global_step += 1
    shown = batches()
    mean = torch.cat([next(shown).x.flatten(1) for _ in range(3)]).mean(0)
    torch.testing.assert_close(trainer.model.base_rate, mean)


def test_visible_biases_are_initialized_to_the_logit_of_the_mean():
    trainer = trainer_of()
    x = next(batches()).x
    trainer.update_data_stats([Batch(x)])
    p = x.flatten(1).mean(0).clamp(1 / 6, 5 / 6)
    torch.testing.assert_close(trainer.model.b.detach(), (p / (1 - p)).log())


def test_chains_are_split_over_the_shards():
    trainer = trainer_of(grad_accum_steps=2)
    chains = trainer.model.chains.clone()
    trainer.step(batches())
    assert trainer.model.chains.shape == chains.shape and trainer.batches_consumed == 1
    with pytest.raises(UserError, match=r"model\.num_chains=6"):
        trainer_of(grad_accum_steps=3)


@pytest.mark.parametrize(
    "spec",
    [DataSpec((1, 8, 8)), DataSpec((1, 8, 8), levels=2), DataSpec((2,), kind="points", levels=0)],
)
def test_rejects_data_that_is_not_binary(spec):
    with pytest.raises(UserError, match=r"preprocess\.binarize=dynamic preprocess\.range=\[0,1\]"):
        RBM(spec)


def test_rejects_labels_and_unknown_samplers():
    with pytest.raises(UserError, match="not class-conditional"):
        rbm().sample(2, torch.tensor([0, 1]))
    with pytest.raises(UserError, match="does not support sampler=ddim"):
        rbm().sample(2, sampler="ddim")


def test_grbm_variance_of_data_far_from_zero():
    """E[v²] − E[v]² in single precision was off by more than the variance."""
    torch.manual_seed(0)
    model = GRBM(DataSpec((3,), kind="points", levels=0), hidden=4)
    scale, offset = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1e4, -300.0])
    batches = torch.randn(30, 32, 3) * scale + offset
    for step, x in enumerate(batches):
        model.update_data_stats(model.batch_data_stats(x), step=step, batch_size=32)
    exact = batches.flatten(0, 1).double()
    torch.testing.assert_close(
        model.base_var.double(), exact.var(0, correction=0), rtol=1e-2, atol=0
    )
    torch.testing.assert_close(model.base_rate.double(), exact.mean(0), rtol=1e-5, atol=1e-4)
