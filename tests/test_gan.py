"""GANs: the losses against their formulas, the game's rules, the networks' shapes."""

import math
from functools import partial
from typing import get_args

import pytest
import torch

from genlab.errors import UserError
from genlab.models.gan.dcgan import DCGAN
from genlab.models.gan.game import fixed
from genlab.models.gan.gan import GAN
from genlab.models.gan.losses import LOSSES, Name, r1_penalty
from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, Spec
from genlab.training.device import Device

POINTS = Spec((2,), kind="points", levels=0, classes=3)
IMAGES = Spec((1, 16, 16), classes=3, range=(0.0, 1.0))


def small(name: str, **options):
    if name == "gan":
        return GAN(POINTS, latent=4, hidden=(8,), discriminator_hidden=(8,), dropout=0.2, **options)
    return DCGAN(IMAGES, latent=4, width=4, **options)


def batch_of(model, n: int = 6) -> Batch:
    dtype = next(model.parameters()).dtype
    return Batch(torch.rand(n, *model.spec.shape, dtype=dtype), torch.arange(n) % 3)


def trainer_of(model, **options) -> GANTrainer:
    adam = partial(torch.optim.Adam, lr=1e-2)
    return GANTrainer(model, adam, GANTrainer.Options(**options), seed=0, device=Device(name="cpu", precision="fp64"))


def test_every_loss_has_a_name():
    assert set(get_args(Name)) == set(LOSSES)


@pytest.mark.parametrize(
    ("name", "generator"),
    [("minimax", lambda d: (1 - d).log().mean()), ("non_saturating", lambda d: -d.log().mean())],
)
def test_losses_are_their_formulas(name, generator):
    torch.manual_seed(0)
    real, fake = torch.randn(2, 50, dtype=torch.float64)
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    value = d_real.log().mean() + (1 - d_fake).log().mean()
    torch.testing.assert_close(LOSSES[name].discriminator(real, fake), -value)
    torch.testing.assert_close(LOSSES[name].generator(fake), generator(d_fake))


def test_the_best_discriminator_is_p_over_p_plus_q():
    # two Gaussians on a grid, as counts: the empirical distributions then are exact
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    p, q = ((1e4 * torch.exp(-((x - m) ** 2) / 2)).round().long() + 1 for m in (-0.5, 0.5))
    assert p.sum() == q.sum()
    real, fake = (torch.arange(41).repeat_interleave(n) for n in (p, q))
    logit = (p.double() / q).log().requires_grad_()  # σ(log p/q) = p/(p + q)
    loss = LOSSES["minimax"].discriminator(logit[real], logit[fake])
    (gradient,) = torch.autograd.grad(loss, logit)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-13, rtol=0)
    # V(D*, G) = −log 4 + 2 JSD(p‖q) (theorem 1)
    P, Q = p.double() / p.sum(), q.double() / q.sum()
    jsd = ((P * (2 * P / (P + Q)).log()).sum() + (Q * (2 * Q / (P + Q)).log()).sum()) / 2
    assert -loss.item() == pytest.approx(-math.log(4) + 2 * jsd.item(), abs=1e-12)


def test_the_value_at_the_equilibrium_is_minus_log_4():
    logit = torch.zeros(7, dtype=torch.float64)  # p = q, so D* = 1/2
    assert -LOSSES["minimax"].discriminator(logit, logit).item() == pytest.approx(-math.log(4), abs=1e-15)


def test_r1_is_the_squared_gradient_on_data():
    torch.manual_seed(0)
    A = torch.randn(3, 3, dtype=torch.float64)
    A = A + A.T
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    real = (x @ A * x).sum(1) / 2  # ∇D = A x
    torch.testing.assert_close(r1_penalty(real, x), (x @ A).square().sum(1).mean())


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_r1_enters_the_loss_with_half_its_weight(name):
    losses = []
    for r1 in (0.0, 3.0):
        torch.manual_seed(0)
        model = small(name, r1=r1).double().eval()
        torch.manual_seed(1)
        losses.append(model.discriminator_loss(batch_of(model)))
    torch.testing.assert_close(losses[1]["loss"], losses[0]["loss"] + 1.5 * losses[1]["r1"])


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("player", "opponent"), [("discriminator", "generator"), ("generator", "discriminator")])
def test_an_update_leaves_the_opponent_as_it_was(name, conditional, player, opponent):
    torch.manual_seed(0)
    trainer = trainer_of(small(name, conditional=conditional, r1=0.1))
    model = trainer.model.train()
    state = lambda who: {k: v.clone() for k, v in getattr(model, who).state_dict().items()}  # noqa: E731
    mine, theirs = state(player), state(opponent)
    trainer.descend(player, getattr(model, f"{player}_loss"), [batch_of(model)])
    assert all(torch.equal(v, theirs[k]) for k, v in state(opponent).items())
    moved = {k for k, v in state(player).items() if not torch.equal(v, mine[k])}
    assert moved >= {k for k, _ in getattr(model, player).named_parameters() if "label" not in k}
    assert all(p.grad is None for p in getattr(model, opponent).parameters())


def test_fixed_normalises_by_the_batch_and_records_nothing():
    norm = torch.nn.BatchNorm2d(2).double().train()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64) + 4
    with fixed(norm):
        y = norm(x)
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_mean, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(norm(x), y)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_k_updates_of_d_with_fresh_batches_then_one_of_g(k, accumulate, monkeypatch):
    torch.manual_seed(0)
    trainer = trainer_of(small("gan"), k=k, accumulate=accumulate)
    batches = [batch_of(trainer.model) for _ in range(20)]
    seen = {"discriminator": [], "generator": []}
    for who, log in seen.items():
        method = getattr(trainer.model, f"{who}_loss")
        monkeypatch.setattr(trainer.model, f"{who}_loss", lambda b, m=method, log=log: (log.append(b.y), m(b))[1])
    logs = trainer.step(iter(batches))
    assert len(seen["discriminator"]) == k * accumulate and len(seen["generator"]) == accumulate
    assert trainer.pulled == k
    assert [o.state_dict()["state"][0]["step"].item() for o in trainer.optimizers.values()] == [k, 1]
    assert {"loss/discriminator", "loss/generator", "D(x)", "D(G(z))"} <= set(logs) and "loss" not in logs


@pytest.mark.parametrize("side", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_shapes(side, channels):
    spec = Spec((channels, side, side), range=(0.0, 1.0))
    model = DCGAN(spec, width=2)
    maps = [m.out_channels for m in model.generator.layers if isinstance(m, torch.nn.ConvTranspose2d)]
    assert maps == [2 * side // 8 >> i for i in range(len(maps) - 1)] + [channels]
    x = model.eval().sample(3)
    assert x.shape == (3, channels, side, side) and x.min() >= 0 and x.max() <= 1
    assert model.discriminator(x).shape == (3,)
    four = model.generator.layers[0](torch.zeros(1, 100, 1, 1))
    assert four.shape[2:] == (4, 4)


def test_dcgan_has_the_papers_sizes():
    model = DCGAN(Spec((3, 64, 64)))
    maps = [m.out_channels for m in model.generator.layers if isinstance(m, torch.nn.ConvTranspose2d)]
    assert maps == [1024, 512, 256, 128, 3] and model.latent == 100
    weight = model.discriminator.layers[2].weight
    assert weight.mean().item() == pytest.approx(0, abs=1e-3) and weight.std().item() == pytest.approx(0.02, rel=1e-2)


@pytest.mark.parametrize(
    ("model", "spec", "options", "says"),
    [
        (DCGAN, Spec((1, 28, 28)), {}, r"dataset\.size=32"),
        (DCGAN, Spec((1, 8, 8)), {}, r"dataset\.size=16"),
        (DCGAN, Spec((3, 64, 48)), {}, r"dataset\.size=64"),
        (DCGAN, Spec((2,), kind="points"), {}, "images"),
        (GAN, Spec((64,), kind="tokens", vocab=65), {}, "tokens"),
        (GAN, Spec((2,), kind="points"), {"conditional": True}, r"model\.conditional=false"),
    ],
)
def test_refuses_what_does_not_fit(model, spec, options, says):
    with pytest.raises(UserError, match=says):
        model(spec, **options)


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_samples_are_decoded_codes(name, noise):
    model = small(name, conditional=True, noise=noise).double().eval()
    y = torch.tensor([0, 1, 2, 1])
    torch.manual_seed(0)
    x = model.sample(4, y)
    torch.manual_seed(0)
    z = model.prior(4, y)
    assert torch.equal(x, model.decode(z)) and x.dtype == torch.float64
    assert torch.equal(z[:, 4:].argmax(1), y) and (noise == "normal" or z[:, :4].abs().max() <= 1)
    other = model.decode(torch.cat([z[:, :4], z[:, 4:].roll(1, 1)], 1))
    assert not torch.allclose(x, other)  # the class matters to G …
    assert not torch.allclose(model.discriminator(x, y), model.discriminator(x, (y + 1) % 3))  # … and to D
    drawn = model.prior(3000)[:, 4:].mean(0)
    torch.testing.assert_close(drawn, torch.full_like(drawn, 1 / 3), atol=0.04, rtol=0)
    with pytest.raises(UserError, match=r"model\.conditional=true"):
        small(name).sample(4, y)
