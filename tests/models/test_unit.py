"""UNIT: two VAEs with a shared latent space (Liu et al. 2017)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal, kl_divergence

from genlab.errors import UserError
from genlab.models.gan.losses import LOSSES
from genlab.models.gan.unit import UNIT
from genlab.spec import Batch, DataSpec

SPEC = DataSpec((3, 16, 16), source=DataSpec((1, 16, 16), range=(0.0, 1.0)))


def small(**options) -> UNIT:
    torch.manual_seed(0)
    return UNIT(SPEC, **{"width": 4, "num_blocks": 1, **options}).double().eval()


def batch(n: int = 3) -> Batch:
    g = torch.Generator().manual_seed(1)
    x, cond = (
        torch.rand(n, *shape, dtype=torch.float64, generator=g)
        for shape in (SPEC.shape, SPEC.source.shape)
    )
    return Batch(2 * x - 1, None, cond)


def test_losses_are_those_of_the_paper():
    weights = {"kl_weight": 0.2, "reconstruction_weight": 3.0}
    weights |= {"cycle_kl_weight": 0.5, "cycle_weight": 7.0, "adversarial_weight": 1.5}
    model, data = small(**weights), batch()
    torch.manual_seed(5)
    found = model.generator_loss(data)
    torch.manual_seed(5)

    # in the order of the draws: both codes, then the codes of both translations
    def posterior(x, domain):
        return Normal(model.encode_domain(x, domain), torch.ones((), dtype=torch.float64))

    def draw(q):
        return q.mean + torch.randn_like(q.mean)

    def kl(q):
        return kl_divergence(q, Normal(torch.zeros_like(q.mean), 1.0)).mean()

    def nll(mean, x):  # of a Laplace distribution, up to its constant
        one = torch.ones((), dtype=torch.float64)
        return -(Laplace(mean, one).log_prob(x) - Laplace(one * 0, one).log_prob(one * 0)).mean()

    x1, x2 = data.cond, data.x
    q2, q1 = posterior(x2, "target"), posterior(x1, "source")
    z2, z1 = draw(q2), draw(q1)
    x12, x21 = model.decode_domain(z1, "target"), model.decode_domain(z2, "source")
    q12, q21 = posterior(x12, "target"), posterior(x21, "source")
    z12, z21 = draw(q12), draw(q21)
    vae = 0.2 * (kl(q1) + kl(q2))
    vae = vae + 3 * (nll(model.decode_domain(z1, "source"), x1))
    vae = vae + 3 * nll(model.decode_domain(z2, "target"), x2)
    cycle = 0.5 * (kl(q1) + kl(q12) + kl(q2) + kl(q21))
    cycle = cycle + 7 * nll(model.decode_domain(z12, "source"), x1)
    cycle = cycle + 7 * nll(model.decode_domain(z21, "target"), x2)
    D1, D2 = model.discriminator["source"], model.discriminator["target"]
    game = -1.5 * (D1(x21).sigmoid().log().mean() + D2(x12).sigmoid().log().mean())
    torch.testing.assert_close(found["loss"], vae + cycle + game, rtol=1e-10, atol=0)
    torch.testing.assert_close(found["adversarial"], game)
    torch.manual_seed(5)
    torch.testing.assert_close(model.loss(data)["loss"], vae + cycle, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_discriminators_judge_translations_only(loss):
    model, data = small(loss=loss), batch()
    torch.manual_seed(2)
    found = model.discriminator_loss(data)["loss"]
    torch.manual_seed(2)
    fakes = model.translate_both_ways(data)
    expected = 0
    for domain, x in (("target", data.x), ("source", data.cond)):
        D = model.discriminator[domain]
        expected = expected + LOSSES[loss].discriminator(D(x), D(fakes[domain]))
    torch.testing.assert_close(found, expected)


def test_both_domains_meet_in_one_latent_space():
    model, data = small(), batch()
    shared = set(model.generator.shared_encoder.parameters())
    shared |= set(model.generator.shared_decoder.parameters())
    data.cond.requires_grad_(), data.x.requires_grad_()
    for backward, source in ((False, data.cond), (True, data.x)):
        out = model.decode_domain(
            model.encode_domain(source, "target" if backward else "source"),
            "source" if backward else "target",
        )
        assert torch.equal(model.translate(source, backward=backward), out)
        low, high = (SPEC.source if backward else SPEC).range
        assert out.min() >= low and out.max() <= high
        grads = torch.autograd.grad(out.sum(), list(shared))
        assert all(grad.abs().max() > 0 for grad in grads)
    z = model.encode(data.x)
    assert z.shape == (3, 16, 4, 4)
    assert torch.equal(model.decode(z), model.decode_domain(z, "target"))


def test_perfect_autoencoders_have_no_loss_but_the_kl():
    model = small(kl_weight=0.3, cycle_kl_weight=0.0)
    square = Batch(torch.rand(2, 3, 8, 8).double(), None, torch.rand(2, 3, 8, 8).double())
    identity = nn.ModuleDict({"source": nn.Identity(), "target": nn.Identity()})
    networks = model.generator
    networks.encoder = networks.decoder = identity
    networks.shared_encoder = networks.shared_decoder = nn.Identity()
    with pytest.MonkeyPatch.context() as patch:  # codes without noise
        patch.setattr("genlab.models.gan.unit.draw_codes", lambda means: means)
        found = model.loss(square)
    assert found["reconstruction"] == found["cycle"] == 0
    expected = 0.3 * (square.x.square().mean() + square.cond.square().mean()) / 2
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(model.translate(square.cond), square.cond)


def test_sizes_that_do_not_halve_twice_are_refused():
    for size, fit in (((18, 16), 20), ((10, 10), 12)):
        spec = DataSpec((1, *size), source=DataSpec((1, *size)))
        with pytest.raises(UserError, match=f"preprocess.size={fit}"):
            UNIT(spec)
    with pytest.raises(UserError, match="dataset=pairs"):
        UNIT(DataSpec((1, 16, 16)))
