"""GANs: losses against formulas, regularization, augmentation, updates and shapes."""

import math
import re
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers.kinds import first_of_each_kind
from helpers.recipes import (
    CONFIGS,
    RECIPES,
    build_training_objects,
    compose_config,
    model_class,
    small_overrides,
)

from genlab.builders.factory import make_device, make_model, make_trainer
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.models.gan import augment
from genlab.models.gan.augment import (
    AUGMENTATIONS,
    AdaptiveAugmentation,
    DiffAugment,
    NoAugmentation,
    flip_luma,
    luma,
    rotate_hue,
    scale_saturation,
    translate_pixels,
)
from genlab.models.gan.base import frozen_running_statistics
from genlab.models.gan.dcgan import DCGAN
from genlab.models.gan.discriminator import Condition
from genlab.models.gan.gan import GAN
from genlab.models.gan.losses import LOSSES, LossName
from genlab.models.gan.regularizers import (
    add_spectral_norm,
    clip_weights,
    gradient_penalty,
    r1_penalty,
)
from genlab.models.gan.trainer import REPORT_AFTER_INTERVALS, GANTrainer
from genlab.nn.batch_norm import batch_norm_layers
from genlab.nn.minibatch_stddev import MinibatchStddev
from genlab.spec import Batch, DataSpec

POINTS = DataSpec((2,), kind="points", levels=0, num_classes=3)
IMAGES = DataSpec((1, 16, 16), num_classes=3, range=(0.0, 1.0))


def small(name: str, **options):
    if name == "gan":
        return GAN(POINTS, latent=4, hidden=(8,), discriminator_hidden=(8,), dropout=0.2, **options)
    return DCGAN(IMAGES, latent=4, width=4, **options)


def batch_of(model, n: int = 6) -> Batch:
    dtype = next(model.parameters()).dtype
    return Batch(torch.rand(n, *model.spec.shape, dtype=dtype), torch.arange(n) % 3)


def trainer_of(model, **options) -> GANTrainer:
    adam = partial(torch.optim.Adam, lr=1e-2)
    return GANTrainer(
        model,
        adam,
        GANTrainer.Options(**options),
        seed=0,
        device=Device(name="cpu", precision="fp64"),
    )


def test_every_loss_has_a_name():
    assert set(get_args(LossName)) == set(LOSSES)


# name -> losses of D and of G, as functions of D's logits a (real) and b (fake)
FORMULAS = {
    "minimax": (
        lambda a, b: -(a.sigmoid().log() + (1 - b.sigmoid()).log()),
        lambda a, b: (1 - b.sigmoid()).log(),
    ),
    "non_saturating": (
        lambda a, b: -(a.sigmoid().log() + (1 - b.sigmoid()).log()),
        lambda a, b: -b.sigmoid().log(),
    ),
    "least_squares": (
        lambda a, b: 0.5 * (a - 1) ** 2 + 0.5 * b**2,
        lambda a, b: 0.5 * (b - 1) ** 2,
    ),
    "hinge": (lambda a, b: (1 - a).clamp(min=0) + (1 + b).clamp(min=0), lambda a, b: -b),
    "wasserstein": (lambda a, b: b - a, lambda a, b: -b),
    "relativistic": (lambda a, b: -(a - b).sigmoid().log(), lambda a, b: -(b - a).sigmoid().log()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_match_formulas(name):
    torch.manual_seed(0)
    real, fake = torch.randn(2, 50, dtype=torch.float64)
    d, g = FORMULAS[name]
    loss, zero = LOSSES[name], torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(loss.discriminator(real, fake), d(real, fake).mean())
    torch.testing.assert_close(loss.generator(fake, real), g(real, fake).mean())
    if not loss.needs_real:
        assert loss.generator(fake, None) == loss.generator(fake, real)
    assert loss.discriminator(zero, zero).item() == pytest.approx(loss.chance_loss, abs=1e-15)


# the optimal logit of D at a point, given the densities p and q of real and fake data there
OPTIMA = {
    "minimax": lambda p, q: (p / q).log(),  # D = p/(p + q)
    "non_saturating": lambda p, q: (p / q).log(),
    "least_squares": lambda p, q: p / (p + q),  # Mao et al. 2017, eq. 5
    "hinge": lambda p, q: (p - q).sign(),  # Lim & Ye 2017, lemma 1
}


@pytest.mark.parametrize("name", OPTIMA)
def test_optimal_discriminator_minimizes_the_loss(name):
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    p, q = (torch.exp(-((x - m) ** 2) / 2) for m in (-0.5, 0.5))
    p, q = p / p.sum(), q / q.sum()
    best = OPTIMA[name](p, q)
    d = FORMULAS[name][0]

    def value(logit):
        # E_p and E_q on the grid: the loss is the sum of a real and a fake part
        zero = torch.zeros_like(logit)
        return (
            p * (d(logit, zero) - d(zero, zero)) + q * (d(zero, logit) - d(zero, zero))
        ).sum() + d(zero[0], zero[0])

    torch.manual_seed(0)
    least = value(best)
    for scale in (1e-3, 1e-1, 1.0):
        assert value(best + scale * torch.randn_like(best)) > least
    if name == "hinge":  # 2 − 2 TV(p, q) (Lim & Ye 2017)
        assert least.item() == pytest.approx(2 - (p - q).abs().sum().item(), abs=1e-12)
    if name == "least_squares":  # ½ Σ pq/(p + q)
        assert least.item() == pytest.approx((p * q / (p + q)).sum().item() / 2, abs=1e-12)


def test_optimal_relativistic_discriminator_is_the_log_density_ratio():
    """D classifies pairs (x, y) from p ⊗ q against pairs from q ⊗ p.

    So the optimum is C(x) − C(y) = log p(x)q(y) / q(x)p(y): C = log p/q + any constant, and the
    minimal loss is log 2 − JSD(p ⊗ q ‖ q ⊗ p).
    """
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)
    p, q = ((15 * torch.exp(-((x - m) ** 2) / 2)).round().long() + 1 for m in (-0.5, 0.5))
    assert p.sum() == q.sum()
    # repetition makes the empirical distributions exact
    real, fake = (torch.arange(25).repeat_interleave(n) for n in (p, q))
    pairs = torch.cartesian_prod(real, fake)

    def value(C):
        return LOSSES["relativistic"].discriminator(C[pairs[:, 0]], C[pairs[:, 1]])

    best = (p.double() / q).log().requires_grad_()
    least = value(best)
    (slope,) = torch.autograd.grad(least, best)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-13, rtol=0)
    assert value(best + 3).item() == pytest.approx(least.item(), abs=1e-13)
    torch.manual_seed(0)
    for scale in (1e-3, 1e-1, 1.0):
        assert value(best + scale * torch.randn_like(best)) > least
    P = torch.outer(p.double() / p.sum(), q.double() / q.sum())
    jsd = (P * (2 * P / (P + P.T)).log()).sum()  # the other half is equal by symmetry
    assert least.item() == pytest.approx(math.log(2) - jsd.item(), abs=1e-12)


def test_optimal_critic_gives_the_wasserstein_distance():
    torch.manual_seed(0)
    x = torch.randn(1000, dtype=torch.float64)
    # W1 of a set and its copy moved by 0.7 is 0.7; D(x) = −x has slope 1 and reaches it
    value = -LOSSES["wasserstein"].discriminator(-x, -(x + 0.7))
    assert value.item() == pytest.approx(0.7, abs=1e-12)
    for slope in torch.linspace(
        -1, 1, 9, dtype=torch.float64
    ):  # no linear critic of slope ≤ 1 is better
        assert -LOSSES["wasserstein"].discriminator(slope * x, slope * (x + 0.7)) <= value + 1e-12


def test_optimal_discriminator_is_p_over_p_plus_q():
    # two Gaussians on a grid, as counts, which makes the empirical distributions exact
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


def test_value_at_equilibrium_is_minus_log_4():
    logit = torch.zeros(7, dtype=torch.float64)  # p = q, so D* = 1/2
    assert -LOSSES["minimax"].discriminator(logit, logit).item() == pytest.approx(
        -math.log(4), abs=1e-15
    )


def test_r1_is_the_squared_gradient_on_data():
    torch.manual_seed(0)
    A = torch.randn(3, 3, dtype=torch.float64)
    A = A + A.T
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    real = (x @ A * x).sum(1) / 2  # ∇D = A x
    torch.testing.assert_close(r1_penalty(real, x), (x @ A).square().sum(1).mean())


@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic(slope):
    torch.manual_seed(0)
    w = torch.randn(12, dtype=torch.float64)
    w = (slope * w / w.norm()).requires_grad_()
    x, fake_x = torch.randn(2, 7, 3, 2, 2, dtype=torch.float64)
    value = gradient_penalty(lambda t: t.flatten(1) @ w, x, fake_x)
    assert value.item() == pytest.approx((slope - 1) ** 2, abs=1e-12)
    # it is differentiable: ∂(|w| − 1)²/∂w = 2(|w| − 1) w/|w|
    (grad_w,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(grad_w, 2 * (slope - 1) * w / slope)


def test_gradient_penalty_interpolates_real_and_fake():
    x, fake_x = torch.zeros(500, 2, dtype=torch.float64), torch.ones(500, 2, dtype=torch.float64)
    seen = []
    torch.manual_seed(0)
    gradient_penalty(lambda t: (seen.append(t), t.sum(1))[1], x, fake_x)
    (t,) = seen
    assert torch.equal(t[:, 0], t[:, 1]) and 0 <= t.min() < 0.05 and 0.95 < t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: torch.nn.Linear(7, 5),
        lambda: torch.nn.Conv2d(3, 4, 3),
        lambda: torch.nn.Embedding(6, 4),
    ],
)
def test_spectral_norm_divides_by_the_largest_singular_value(layer):
    torch.manual_seed(0)
    net = layer().double()
    plain = net.weight.detach().clone().flatten(1)
    net = add_spectral_norm(net).train()
    for _ in range(200):
        weight = net.weight  # each access is a step of the power iteration
    torch.testing.assert_close(weight.detach().flatten(1), plain / torch.linalg.svdvals(plain)[0])


def test_weight_clip_bounds_every_weight():
    torch.manual_seed(0)
    model = small("dcgan", loss="wasserstein", weight_clip=0.01)
    trainer_of(model).step(iter([batch_of(model.double())]))
    weights = torch.cat([p.detach().flatten() for p in model.discriminator.parameters()])
    assert weights.abs().max() <= 0.01 and (weights.abs() == 0.01).float().mean() > 0.1
    layer = torch.nn.Linear(9, 9)
    before = layer.weight.detach().clone()
    clip_weights(layer, 0.05)
    torch.testing.assert_close(layer.weight.detach(), before.clamp(-0.05, 0.05))


# name -> the factor of its weight in the loss
PENALTIES = {"r1": 0.5, "gradient_penalty": 1.0}


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("weight", [0, 1, 4])
def test_penalties_enter_the_loss_with_their_weight(name, penalty, weight):
    losses = []
    for strength in (0.0, 3.0):
        torch.manual_seed(0)
        model = small(name, **{penalty: strength}).double().eval()
        torch.manual_seed(1)
        losses.append(model.discriminator_loss(batch_of(model), penalty_scale=weight))
    part = PENALTIES[penalty] * 3 * weight * losses[1].get(penalty, 0)
    torch.testing.assert_close(losses[1]["loss"], losses[0]["loss"] + part)
    assert (penalty in losses[1]) == (weight > 0)


REGULARIZERS = [
    {},
    {"r1": 1.0},
    {"gradient_penalty": 10.0},
    {"spectral_norm": True},
    {"weight_clip": 0.05},
    {"minibatch_stddev": True},
    {"augment": "diffaugment"},
    {"augment": "ada"},
]
CONDITIONING = [{}, *({"conditional": True, "condition": way} for way in get_args(Condition))]


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_every_loss_works_with_every_regularizer_and_network(name, loss, regularizer):
    if "augment" in regularizer and name == "gan":
        with pytest.raises(UserError, match=r"model\.augment=none"):
            small(name, **regularizer)
        return
    if regularizer == {"augment": "ada"} and loss in ("wasserstein", "relativistic"):
        with pytest.raises(UserError, match="minimax, non_saturating, least_squares or hinge"):
            small(name, loss=loss, **regularizer)
        return
    if "gradient_penalty" in regularizer and name == "dcgan":
        with pytest.raises(UserError, match="batch normalization.*regularizer=r1"):
            trainer_of(small(name, loss=loss, **regularizer))
        return
    for way in CONDITIONING:
        torch.manual_seed(0)
        trainer = trainer_of(small(name, loss=loss, **regularizer, **way))
        logs = trainer.train_step(iter([batch_of(trainer.model)]))
        assert all(torch.isfinite(v) for v in logs.values())
        for optimizer in trainer.optimizers.values():
            assert all(
                p.grad is not None for group in optimizer.param_groups for p in group["params"]
            )


def test_lazy_penalties_are_scaled_by_their_interval(monkeypatch):
    trainer = trainer_of(small("gan", r1=2.0), lazy_reg_interval=3)
    asked = []
    method = trainer.model.discriminator_loss
    monkeypatch.setattr(
        trainer.model,
        "discriminator_loss",
        lambda b, penalty_scale: (asked.append(penalty_scale), method(b, penalty_scale))[1],
    )
    logs = [trainer.train_step(iter([batch_of(trainer.model)])) for _ in range(7)]
    assert asked == [3, 0, 0, 3, 0, 0, 3]
    assert [i for i, log in enumerate(logs) if "r1" in log] == [0, 3, 6]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_d_lr_mult_scales_the_discriminator_learning_rate(schedule):
    trainer = trainer_of(small("gan"), d_lr_mult=4.0, lr_schedule=schedule, steps=4)
    for _ in range(3):
        trainer.train_step(iter([batch_of(trainer.model)]))
        d, g = (o.param_groups[0]["lr"] for o in trainer.optimizers.values())
        assert d == pytest.approx(4 * g)


@pytest.mark.parametrize(
    ("means", "says"),
    [
        ({"d_advantage": 0.995, "diversity_ratio": 1.0}, "the discriminator has won"),
        ({"d_advantage/source": 0.5, "d_advantage/target": 0.995}, "the discriminator has won"),
        ({"d_advantage": 0.3, "diversity_ratio": 0.05}, "mode collapse"),
        ({"d_advantage": 0.5, "diversity_ratio": 0.9}, None),
    ],
)
def test_lasting_failure_modes_are_reported_once(means, says):
    trainer = trainer_of(small("gan"))
    notes_by_call = [trainer.diagnose(means) for _ in range(3 * REPORT_AFTER_INTERVALS)]
    named = [i for i, notes in enumerate(notes_by_call) if notes]
    assert named == ([REPORT_AFTER_INTERVALS - 1] if says else [])
    assert not says or (
        says in notes_by_call[REPORT_AFTER_INTERVALS - 1][0]
        and "try +" in notes_by_call[REPORT_AFTER_INTERVALS - 1][0]
    )
    # a healthy interval resets the count
    trainer.diagnose({"d_advantage": 0.0, "diversity_ratio": 1.0})
    assert any(trainer.diagnose(means) for _ in range(REPORT_AFTER_INTERVALS)) == bool(says)


def test_logged_diversity_ratio_and_advantage():
    torch.manual_seed(0)
    model = small("gan").double()
    batch = batch_of(model, 64)
    torch.nn.init.zeros_(model.generator[-2].weight)  # every sample is the same point
    assert model.generator_loss(batch)["diversity_ratio"] == 0
    model.decode = model.generator = torch.nn.Sequential(torch.nn.Linear(4, 2).double())
    torch.testing.assert_close(
        model.discriminator_loss(batch)["d_advantage"],
        1 - (model.discriminator_loss(batch)["loss"].detach() / math.log(4)),
        atol=0.05,
        rtol=0,
    )


@pytest.mark.parametrize("augment", ["diffaugment", "ada"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_differentiable_and_keeps_the_shape(augment, channels):
    torch.manual_seed(0)
    change = AUGMENTATIONS[augment]()
    if augment == "ada":
        change.running_p.fill_(0.8)
    x = torch.rand(16, channels, 12, 16, requires_grad=True)
    y = change(x)
    assert y.shape == x.shape and not torch.equal(y, x)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0
    torch.manual_seed(1)
    first = change(x)
    torch.manual_seed(1)
    assert torch.equal(first, change(x))


def test_translate_pixels_equals_roll_inside():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 6, 7)
    down, right = torch.tensor([0, 2, -1]), torch.tensor([0, -3, 2])
    y = translate_pixels(x, down, right)
    assert torch.equal(y[0], x[0])
    for i in (1, 2):
        d, r = int(down[i]), int(right[i])
        rows, columns = slice(max(d, 0), 6 + min(d, 0)), slice(max(r, 0), 7 + min(r, 0))
        kept = torch.zeros_like(y[i])
        kept[:, rows, columns] = x[i].roll((d, r), (1, 2))[:, rows, columns]
        assert torch.equal(y[i], kept)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (9, 13)])
def test_cutout_has_half_the_side(height, width):
    torch.manual_seed(0)
    # so bright that only the cutout and the borders are zero
    x = DiffAugment()(torch.full((2000, 1, height, width), 100.0))
    hole = x[:, 0] == 0
    # without the borders that translation fills
    inside = hole[:, height // 8 : -(height // 8), width // 8 : -(width // 8)]
    rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
    # rounded as in the authors' code
    assert rows.max() == (height + 1) // 2 and columns.max() == (width + 1) // 2
    assert (
        hole[(rows == rows.max()) & (columns == columns.max())].flatten(1).sum(1).min()
        >= rows.max() * columns.max()
    )


def test_cutout_of_a_32_pixel_image_has_16_by_16_pixels(monkeypatch):
    middles = {(-4, 4): 0, (0, 32): 16}  # no translation, the cutout in the middle
    monkeypatch.setattr(
        augment,
        "draw_integer_per_image",
        lambda x, low, high: torch.full((len(x),), middles[low, high]),
    )
    x = DiffAugment()(torch.full((5, 3, 32, 32), 100.0))
    assert ((x == 0).flatten(1).sum(1) == 3 * 16 * 16).all() and (x[:, :, 8:24, 8:24] == 0).all()


class TripledImages(NoAugmentation):
    """Multiply images by 3: an augmentation of known gradient that records its results."""

    def __init__(self) -> None:
        super().__init__()
        self.given = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(3 * x)
        return self.given[-1]


def test_gradient_penalty_interpolates_augmented_images(monkeypatch):
    torch.manual_seed(0)
    model = small("dcgan", gradient_penalty=1.0).double()
    model.augment = TripledImages()
    asked = []

    def noted(D, *ends):
        return (asked.append(ends), ends[0].sum() * 0)[1]

    monkeypatch.setattr("genlab.models.gan.regularizers.gradient_penalty", noted)
    model.discriminator_loss(batch_of(model))
    ((real, fake),) = asked
    assert torch.equal(real, model.augment.given[0]) and torch.equal(fake, model.augment.given[1])


def test_r1_is_the_gradient_at_single_samples_also_with_batch_normalization():
    """Through the statistics of the batch it was 0.64 to 1.66 of that."""
    torch.manual_seed(0)
    model = small("dcgan", r1=1.0).double().train()
    batch = batch_of(model)
    before = {name: buffer.clone() for name, buffer in model.discriminator.named_buffers()}
    found = model.discriminator_loss(batch)["r1"]
    # the same network, with the statistics of this batch as its running statistics
    single = small("dcgan", r1=1.0).double()
    single.load_state_dict(model.state_dict())
    norms = [m for m in single.discriminator.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0

    def keep_biased_variance(layer, inputs, _):  # running_var is the unbiased one
        layer.running_var.copy_(inputs[0].var((0, 2, 3), correction=0))

    hooks = [norm.register_forward_hook(keep_biased_variance) for norm in norms]
    with torch.no_grad():
        single.discriminator.train()(batch.x)
    for hook in hooks:
        hook.remove()
    single.eval()
    gradients = []
    for i in range(len(batch)):
        x = batch.x[i : i + 1].clone().requires_grad_()
        gradients.append(torch.autograd.grad(single.discriminator(x).sum(), x)[0])
    expected = torch.cat(gradients).flatten(1).square().sum(1).mean()
    torch.testing.assert_close(found, expected)
    through_batch = small("dcgan", r1=1.0, penalize_through_batch=True).double()
    through_batch.load_state_dict(model.state_dict())
    old = through_batch.discriminator_loss(batch)["r1"]
    assert abs(old / expected - 1) > 0.05
    # as many updates of the statistics as without the penalty: of real and of fake samples
    counts = [name for name in before if name.endswith("num_batches_tracked")]
    buffers = dict(model.discriminator.named_buffers())
    assert counts and all(buffers[name] - before[name] == 2 for name in counts)


@pytest.mark.parametrize("recipe", ["dcgan", "infogan", "acgan"])
def test_gradient_penalty_through_batch_normalization_is_refused(recipe):
    words = [*small_overrides(recipe), "dataset.size=16"]
    with pytest.raises(UserError, match="D of .* has batch normalization") as refusal:
        build_training_objects(*words, "+regularizer=gradient_penalty")
    for remedy in ("+regularizer=r1", "+regularizer=spectral_norm"):
        assert remedy in str(refusal.value)
        build_training_objects(*words, remedy)


def test_r1_differentiates_through_the_augmentation():
    torch.manual_seed(0)
    model = small("dcgan", r1=1.0).double().eval()
    batch = batch_of(model)
    model.augment = TripledImages()
    found = model.discriminator_loss(batch)["r1"]
    seen = (3 * batch.x).requires_grad_()
    # the chain rule: ∇ D(3x) = 3 (∇D)(3x)
    torch.testing.assert_close(found, 9 * r1_penalty(model.discriminator(seen), seen))


@pytest.mark.parametrize("loss", ["minimax", "non_saturating", "least_squares", "hinge"])
def test_ada_receives_zero_from_an_undecided_discriminator(loss, monkeypatch):
    """With least squares, D is undecided at 1/2, not at 0."""
    model = small("dcgan", loss=loss, augment="ada")
    logits = torch.zeros(1, requires_grad=True)
    descent = torch.optim.SGD([logits], lr=0.1)
    for _ in range(500):  # identical real and fake data
        descent.zero_grad()
        LOSSES[loss].discriminator(logits, logits).backward()
        descent.step()
    received = []
    monkeypatch.setattr(model.augment, "adapt_probability", received.append)
    monkeypatch.setattr(
        model.discriminator, "logits", lambda h, y: logits.expand(len(h)) + 0 * h.flatten(1).sum(1)
    )
    model.discriminator_loss(batch_of(model))
    assert received[0].abs().max() < 1e-3


def test_ada_probability_follows_the_sign_of_the_logits():
    torch.manual_seed(0)
    ada = AdaptiveAugmentation(target=0.6, ramp_images=100)
    x = torch.rand(8, 3, 9, 9)
    torch.testing.assert_close(ada(x), x, atol=1e-5, rtol=0)
    ada.adapt_probability(torch.ones(10))  # r_t = 1 > 0.6: more augmentation
    assert ada.running_p.item() == pytest.approx(0.1)
    ada.adapt_probability(torch.tensor([1.0, -1.0] * 5))  # r_t = 0
    assert ada.running_p.item() == 0
    ada.adapt_probability(torch.ones(1000))
    assert ada.running_p.item() == 1


def reflect(at: float, side: int) -> float:
    """Mirror a coordinate at an image's borders into −0.5 ≤ at ≤ side − 0.5."""
    at = (at + 0.5) % (2 * side)
    return min(at, 2 * side - at) - 0.5


def interpolate_pixel(image: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """Return the bilinear interpolation (C,) of an image (C, H, W) at a position."""
    (_, height, width), value = image.shape, 0
    row, column = reflect(row, height), reflect(column, width)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            share = (1 - abs(row - i)) * (1 - abs(column - j))
            value = value + share * image[:, min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
    return value


# what ADA draws in turn for each of two images, and the map of a point (x, y); None: rotation
DRAWS = [
    (torch.tensor([1.0, -1.0]), lambda x, y, v: (x * v, y)),
    (torch.tensor([0.0, math.pi / 2]), None),
    (torch.tensor([[0.0, 0.0], [1.0, -1.0]]), lambda x, y, v: (x + v[0], y + v[1])),
    (torch.tensor([1.0, 0.8]), lambda x, y, v: (x * v, y * v)),
    (torch.tensor([0.0, 0.7]), None),
    (torch.tensor([1.0, 1.3]), lambda x, y, v: (x * v, y / v)),
    (torch.tensor([0.0, -1.9]), None),
    (torch.tensor([[0.4, -2.3], [0.3, 1.7]]), lambda x, y, v: (x + v[0], y + v[1])),
]


def test_ada_applies_its_affine_maps_in_order(monkeypatch):
    """Each pixel is compared with the one where its maps, from the last to the first, send it."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 13, 9, dtype=torch.float64)
    drawn = iter([values.double() for values, _ in DRAWS])
    ada = AdaptiveAugmentation()
    monkeypatch.setattr(ada, "draw_or_default", lambda draw, default, p=None: next(drawn))
    found = ada.apply_geometry(x)

    def rotate(x, y, v):
        return (x * math.cos(v) - y * math.sin(v), x * math.sin(v) + y * math.cos(v))

    for b in range(2):
        for i in range(13):
            for j in range(9):
                point = (j - 4, i - 6)  # from the center, in pixels
                # x_in = T₁ T₂ … T₈ x_out: a map and its inverse have the same distribution
                for values, transform in reversed(DRAWS):
                    point = (transform or rotate)(*point, values[b].tolist())
                torch.testing.assert_close(
                    found[b, :, i, j], interpolate_pixel(x[b], point[1] + 6, point[0] + 4)
                )


def test_ada_flips_quarter_turns_and_whole_shifts_are_exact(monkeypatch):
    torch.manual_seed(0)
    x = torch.rand(1, 2, 8, 8, dtype=torch.float64)
    plain = [values[:1] for values, _ in DRAWS[:-1]] + [torch.zeros(1, 2)]
    for place, value, expected in (
        (0, [-1.0], x.flip(3)),
        (1, [math.pi / 2], x.rot90(1, (2, 3))),
        (1, [math.pi], x.flip(2, 3)),
        # the mirror repeats the last row
        (2, [[0.0, 1.0]], torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)),
    ):
        ada, drawn = AdaptiveAugmentation(), [t.double() for t in plain]
        drawn[place] = torch.tensor(value, dtype=torch.float64)
        monkeypatch.setattr(ada, "draw_or_default", lambda *how, drawn=drawn: drawn.pop(0))
        torch.testing.assert_close(ada.apply_geometry(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_ada_distributions_match_the_paper(channels, p, monkeypatch):
    """Appendix B: each change is applied with probability p, one of the two rotations too.

    A drawn value may equal the default.
    """
    torch.manual_seed(0)
    ada = AdaptiveAugmentation().double()
    ada.running_p.fill_(p)
    some, drawn = ada.draw_or_default, []
    monkeypatch.setattr(
        ada, "draw_or_default", lambda *how: (drawn.append((some(*how), how[1])), drawn[-1][0])[1]
    )
    # the pixels do not matter here
    monkeypatch.setattr(augment, "affine_warp", lambda x, maps: x[:, :, :1, :1])
    ada.apply_color(
        ada.apply_geometry(torch.zeros((), dtype=torch.float64).expand(20_000, channels, 16, 32))
    )
    changed = [(value != default).view(20_000, -1).any(1) for value, default in drawn]
    value = [v[c] if p else torch.ones(0) for (v, _), c in zip(drawn, changed, strict=True)]
    moved = 1 - 0.5 / 2 * 0.5 / 4  # all but |t| < ½ of up to ±2 rows and of up to ±4 columns
    turn = 1 - math.sqrt(1 - p)
    share = [
        p / 2,
        3 * p / 4,
        p * moved,
        p,
        turn,
        p,
        turn,
        p,
        p,
        p,
        p / 2,
        *[p, p] * (channels == 3),
    ]
    assert len(drawn) == len(share)
    for i, (each, expected) in enumerate(zip(changed, share, strict=True)):
        assert each.double().mean().item() == pytest.approx(expected, abs=0.015), i
    assert (changed[4] | changed[6]).double().mean().item() == pytest.approx(p, abs=0.015)
    if not p:
        return
    whole, moves = value[2], value[7]
    assert torch.equal(whole, whole.round()) and whole.abs().amax(0).tolist() == [
        4,
        2,
    ]  # 1/8 of 32 columns and 16 rows
    spreads = {  # values of each draw and their standard deviation
        "isotropic": (value[3].log2(), 0.2),
        "rotation": (value[4], math.pi / math.sqrt(3)),
        "anisotropic": (value[5].log2(), 0.2),
        "second rotation": (value[6], math.pi / math.sqrt(3)),
        "columns": (moves[:, 0], 32 / 8),
        "rows": (moves[:, 1], 16 / 8),
        "brightness": (value[8], 0.2),
        "contrast": (value[9].log2(), 0.5),
    }
    if channels == 3:
        spreads |= {
            "hue": (value[11], math.pi / math.sqrt(3)),
            "saturation": (value[12].log2(), 1.0),
        }
    for name, (values, spread) in spreads.items():
        assert values.std().item() == pytest.approx(spread, rel=0.05), name
        assert values.mean().abs() < 5 * spread / len(values) ** 0.5, name


def test_ada_color_transforms_match_the_papers_matrices():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    v = torch.full((3,), 3**-0.5, dtype=torch.float64)
    P, K = (
        torch.outer(v, v),
        torch.linalg.cross(v.expand(3, 3), torch.eye(3, dtype=torch.float64)).T,
    )  # vvᵀ, and v × as a matrix

    def apply(matrix):
        return torch.einsum("ij,bjhw->bihw", matrix, x)

    eye, one = torch.eye(3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    close = partial(torch.testing.assert_close, atol=1e-12, rtol=0)
    close(flip_luma(x, one), apply(eye - 2 * P))
    close(flip_luma(flip_luma(x, one), one), x)
    close(flip_luma(x, one) - luma(flip_luma(x, one)), x - luma(x))  # chroma is kept
    close(flip_luma(x, 0 * one), x)
    close(flip_luma(x[:, :1], one), -x[:, :1])
    for angle in (0.0, 0.4, -2.5, math.pi):
        close(rotate_hue(x, angle * one), apply(torch.linalg.matrix_exp(angle * K)))
    close(rotate_hue(x, 2 * math.pi * one), x)
    close(rotate_hue(x, 2 * math.pi / 3 * one), x.roll(1, 1))  # red to green, green to blue
    close(scale_saturation(x, 0.3 * one), apply(P + 0.3 * (eye - P)))
    close(scale_saturation(x, one), x)


@pytest.mark.parametrize("name", ["diffaugment", "ada"])
def test_augmentation_does_not_depend_on_the_image_range(name):
    x, found = torch.rand(6, 3, 8, 8, dtype=torch.float64) * 2 - 1, []
    for span in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)):
        change = AUGMENTATIONS[name](span).double()
        if name == "ada":
            change.running_p.fill_(1)
        low, high = span
        torch.manual_seed(0)
        found.append((change(low + (x + 1) / 2 * (high - low)) - low) / (high - low) * 2 - 1)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_ada_has_second_derivatives():
    ada = AdaptiveAugmentation().double()
    ada.running_p.fill_(1)
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)

    def augment_squared(x):
        torch.manual_seed(0)
        return ada(x).square()

    assert torch.autograd.gradcheck(augment_squared, x) and torch.autograd.gradgradcheck(
        augment_squared, x
    )


def test_ada_samples_pixels_in_full_precision_under_autocast():
    ada, found = AdaptiveAugmentation(), []
    ada.running_p.fill_(1)
    x = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found.append(ada(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_projection_and_auxiliary_conditioning_match_formulas(name):
    torch.manual_seed(0)
    model = small(name, conditional=True, condition="projection").double().eval()
    batch, D = batch_of(model), model.discriminator
    h = D.extract_features(batch.x)
    v = D.embedding.weight[batch.y]
    torch.testing.assert_close(
        D(batch.x, batch.y), D.head(h.flatten(1)).squeeze(1) + (v * h.flatten(1)).sum(1)
    )
    model = small(name, conditional=True, condition="auxiliary").double().eval()
    D = model.discriminator
    logits = D.class_logits(D.extract_features(batch.x))
    assert logits.shape == (6, 3)
    expected = -logits.log_softmax(1)[range(6), batch.y].mean()
    torch.testing.assert_close(model.discriminator_loss(batch)["classification"], expected)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_class_losses_have_their_weights(weight):
    """G's class loss has `g_class_weight`; D may learn the classes of samples too."""
    losses = {}
    for fakes in (False, True):
        torch.manual_seed(0)
        model = small(
            "gan",
            conditional=True,
            condition="auxiliary",
            d_learns_fake_classes=fakes,
            g_class_weight=weight,
        )
        batch = batch_of(model.eval())
        torch.manual_seed(1)
        losses[fakes] = model.discriminator_loss(batch)
    expected = losses[False]["loss"] + losses[True]["classification/fake"]
    torch.testing.assert_close(losses[True]["loss"], expected)
    torch.manual_seed(1)
    z = model.prior(len(batch), batch.y)
    h = model.discriminator.extract_features(model.generator(z))
    class_loss = F.cross_entropy(model.discriminator.class_logits(h), batch.y)
    torch.testing.assert_close(losses[True]["classification/fake"], class_loss)
    torch.manual_seed(1)
    adversarial = model.objective.generator(model.discriminator.logits(h), None)
    torch.testing.assert_close(
        model.generator_loss(batch)["loss"], adversarial + weight * class_loss
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_g_batch_mult_enlarges_only_the_batches_of_g(accumulate, monkeypatch):
    trainer = trainer_of(
        small("gan", conditional=True), g_batch_mult=2, d_steps=2, grad_accum_steps=accumulate
    )
    seen = {"discriminator": [], "generator": []}
    for who, log in seen.items():
        method = getattr(trainer.model, f"{who}_loss")
        monkeypatch.setattr(
            trainer.model,
            f"{who}_loss",
            lambda b, m=method, log=log, **how: (log.append(b.y.tolist()), m(b, **how))[1],
        )
    batch = batch_of(trainer.model, 3)
    trainer.step(iter([batch] * 10))
    assert seen["discriminator"] == [[0, 1, 2]] * 2 * accumulate
    assert seen["generator"] == [[0, 1, 2] * 2] * accumulate


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    ("player", "opponent"), [("discriminator", "generator"), ("generator", "discriminator")]
)
def test_an_update_changes_one_network_only(name, conditional, player, opponent):
    torch.manual_seed(0)
    trainer = trainer_of(small(name, conditional=conditional, r1=0.1))
    model = trainer.model.train()

    def state(who):
        return {k: v.clone() for k, v in getattr(model, who).state_dict().items()}

    mine, theirs = state(player), state(opponent)
    trainer.optimizer_step(player, getattr(model, f"{player}_loss"), [batch_of(model)])
    assert all(torch.equal(v, theirs[k]) for k, v in state(opponent).items())
    moved = {k for k, v in state(player).items() if not torch.equal(v, mine[k])}
    assert moved >= {
        k for k, _ in getattr(model, player).named_parameters() if "embedding" not in k
    }
    assert all(p.grad is None for p in getattr(model, opponent).parameters())


def test_frozen_statistics_normalizes_by_the_batch_and_keeps_buffers():
    norm = torch.nn.BatchNorm2d(2).double().train()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64) + 4
    with frozen_running_statistics(norm):
        y = norm(x)
    assert norm.num_batches_tracked == 0 and torch.equal(
        norm.running_mean, torch.zeros(2, dtype=torch.float64)
    )
    torch.testing.assert_close(norm(x), y)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_d_steps_updates_of_d_then_one_of_g(k, accumulate, monkeypatch):
    torch.manual_seed(0)
    trainer = trainer_of(small("gan"), d_steps=k, grad_accum_steps=accumulate)
    batches = [batch_of(trainer.model) for _ in range(20)]
    seen = {"discriminator": [], "generator": []}
    for who, log in seen.items():
        method = getattr(trainer.model, f"{who}_loss")
        monkeypatch.setattr(
            trainer.model,
            f"{who}_loss",
            lambda b, m=method, log=log, **how: (log.append(b.y), m(b, **how))[1],
        )
    logs = trainer.step(iter(batches))
    assert len(seen["discriminator"]) == k * accumulate and len(seen["generator"]) == accumulate
    assert trainer.batches_consumed == k
    assert [o.state_dict()["state"][0]["step"].item() for o in trainer.optimizers.values()] == [
        k,
        1,
    ]
    assert {"loss/discriminator", "loss/generator", "D(x)", "D(G(z))"} <= set(
        logs
    ) and "loss" not in logs


@pytest.mark.parametrize("side", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_shapes(side, channels):
    spec = DataSpec((channels, side, side), range=(0.0, 1.0))
    model = DCGAN(spec, width=2)
    maps = [
        m.out_channels for m in model.generator.layers if isinstance(m, torch.nn.ConvTranspose2d)
    ]
    assert maps == [2 * side // 8 >> i for i in range(len(maps) - 1)] + [channels]
    x = model.eval().sample(3)
    assert x.shape == (3, channels, side, side) and x.min() >= 0 and x.max() <= 1
    assert model.discriminator(x).shape == (3,)
    four = model.generator.layers[0](torch.zeros(1, 100, 1, 1))
    assert four.shape[2:] == (4, 4)


def test_dcgan_matches_the_papers_sizes():
    model = DCGAN(DataSpec((3, 64, 64)))
    maps = [
        m.out_channels for m in model.generator.layers if isinstance(m, torch.nn.ConvTranspose2d)
    ]
    assert maps == [1024, 512, 256, 128, 3] and model.latent == 100
    weight = model.discriminator.features[2].weight
    assert weight.mean().item() == pytest.approx(
        0, abs=1e-3
    ) and weight.std().item() == pytest.approx(0.02, rel=1e-2)


@pytest.mark.parametrize(
    ("model", "spec", "options", "says"),
    [
        (DCGAN, DataSpec((1, 28, 28)), {}, r"dataset\.size=32"),
        (DCGAN, DataSpec((1, 8, 8)), {}, r"dataset\.size=16"),
        (DCGAN, DataSpec((3, 64, 48)), {}, r"dataset\.size=64"),
        (DCGAN, DataSpec((2,), kind="points"), {}, "images"),
        (GAN, DataSpec((64,), kind="tokens", vocab=65), {}, "tokens"),
        (GAN, DataSpec((2,), kind="points"), {"conditional": True}, r"model\.conditional=false"),
    ],
)
def test_unsuitable_data_is_refused(model, spec, options, says):
    with pytest.raises(UserError, match=says):
        model(spec, **options)


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_samples_are_decoded_prior_codes(name, noise):
    model = small(name, conditional=True, noise=noise).double().eval()
    y = torch.tensor([0, 1, 2, 1])
    torch.manual_seed(0)
    x = model.sample(4, y)
    torch.manual_seed(0)
    z = model.prior(4, y)
    assert torch.equal(x, model.decode(z)) and x.dtype == torch.float64
    assert torch.equal(z[:, 4:].argmax(1), y) and (noise == "normal" or z[:, :4].abs().max() <= 1)
    other = model.decode(torch.cat([z[:, :4], z[:, 4:].roll(1, 1)], 1))
    assert not torch.allclose(x, other)  # G depends on the class
    # and D too
    assert not torch.allclose(model.discriminator(x, y), model.discriminator(x, (y + 1) % 3))
    drawn = model.prior(3000)[:, 4:].mean(0)
    torch.testing.assert_close(drawn, torch.full_like(drawn, 1 / 3), atol=0.04, rtol=0)
    with pytest.raises(UserError, match=r"model\.conditional=true"):
        small(name).sample(4, y)


def make_trainer_of_recipe(*overrides: str) -> GANTrainer:
    """Return the trainer of `genlab train <overrides>` with fewer channels, for 32×32 images."""
    config = compose_config(*overrides, "out=unused", "device=cpu")

    def shrink(maps):
        return min(maps, 8) if isinstance(maps, int) else [shrink(m) for m in maps]

    names = ("channels", "channel_max", "discriminator_channels", "width", "discriminator_width")
    config["model"] |= {
        name: shrink(config["model"][name]) for name in names if name in config["model"]
    }
    model = make_model(config, DataSpec((3, 32, 32), num_classes=10, range=(-1.0, 1.0)))
    return make_trainer(config, model, make_device(config["device"], seed=0))


def all_suggestions(trainer: GANTrainer) -> list[str]:
    """Return the notes of a training with every failure mode."""
    return [
        note
        for _ in range(REPORT_AFTER_INTERVALS)
        for note in trainer.diagnose({"d_advantage": 1.0, "diversity_ratio": 0.0})
    ]


GAN_RECIPES = [  # those of images or points; captions are in test_text_gan
    r
    for r in RECIPES
    if re.search(r"^  name: (gan|progressive)$", (CONFIGS / f"model/{r}.yaml").read_text(), re.M)
    and r != "text_gan"
]
GAN_RUNS = [f"model={recipe}" for recipe in GAN_RECIPES] + [
    f"experiment={path.stem}"
    for path in sorted((CONFIGS / "experiment").glob("*.yaml"))
    if re.search(rf"override /model: ({'|'.join(GAN_RECIPES)})$", path.read_text(), re.M)
]
REGULARIZED_RUNS = [
    *((name,) for name in GAN_RUNS),
    *(
        ("model=dcgan", f"+regularizer={name}")
        for name in ("r1", "spectral_norm", "weight_clip", "minibatch_stddev")
    ),
    (
        "model=dcgan",
        "+regularizer=[r1,minibatch_stddev]",
        "model.loss=hinge",
        "++trainer.d_lr_mult=0.1",
    ),
    ("model=stylegan2", "model.r1=0", "model.augment=ada"),
    ("model=progan", "++model.gradient_penalty=0", "++model.r1=0"),
    ("model=wgan_gp", "model.loss=hinge"),
]


def regularized_kind(case: tuple[tuple[str, ...]]) -> str:
    """Return the options of a run; of an experiment, those of its recipe."""
    (overrides,) = case
    experiment = overrides[0].removeprefix("experiment=")
    if experiment == overrides[0]:
        return " ".join(overrides)
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    return "model=" + re.search(r"override /model: (\w+)", text)[1]


@pytest.mark.parametrize(
    "overrides",
    first_of_each_kind(
        ((overrides,) for overrides in REGULARIZED_RUNS),
        regularized_kind,
        name=lambda case: " ".join(case[0]),
    ),
)
def test_suggestions_build_and_do_not_weaken_regularization(overrides):
    trainer = make_trainer_of_recipe(*overrides)

    def strengths(model) -> list[float]:
        return [
            model.r1,
            model.gradient_penalty,
            -model.weight_clip if model.weight_clip else -math.inf,
            model.spectral_norm,
            model.minibatch_stddev,
            type(model.augment) is not AUGMENTATIONS["none"],
        ]

    notes_by_call = all_suggestions(trainer)
    assert len(notes_by_call) == 2
    for note in notes_by_call:
        what, _, tries = note.partition("; try ")
        assert what.startswith(("the discriminator has won", "mode collapse")) and tries, note
        for override in re.findall(r"[+]+[\w.]+=[\w.]+", tries):
            stronger = make_trainer_of_recipe(*overrides, override)
            now, then = strengths(trainer.model), strengths(stronger.model)
            assert all(b >= a for a, b in zip(now, then, strict=True)), (override, now, then)
            slower = stronger.options.d_lr_mult < trainer.options.d_lr_mult
            assert now != then or slower, f"{override} changes nothing"
        assert "has won" not in what or "d_lr_mult=" in tries


def narrow_model(recipe: str, **options):
    """Return a recipe's model for 32×32 images with other options and all widths at most 8."""
    config = compose_config(f"model={recipe}", "out=unused", "device=cpu")

    def shrink(v):
        return [shrink(m) for m in v] if isinstance(v, list) else min(v, 8) if type(v) is int else v

    config["model"] = {
        name: v if name == "channel_base" else shrink(v) for name, v in config["model"].items()
    } | options
    torch.manual_seed(0)
    return make_model(config, DataSpec((1, 32, 32), num_classes=3, range=(-1.0, 1.0))).double()


def has_effect(model, regularizer: str) -> bool:
    """Whether a regularizer is in a model's D, or adds its exact amount to D's loss."""
    if regularizer in PENALTIES:
        losses = []
        for penalty in (0, 3):
            torch.manual_seed(1)
            losses.append(
                model.eval().discriminator_loss(batch_of(model, 4), penalty_scale=penalty)
            )
        added = [
            PENALTIES[name] * 3 * getattr(model, name) * losses[1][name]
            for name in PENALTIES
            if getattr(model, name)
        ]
        torch.testing.assert_close(losses[1]["loss"], losses[0]["loss"] + sum(added))
        return losses[1][regularizer] > 0
    if regularizer == "spectral_norm":
        D = model.discriminator  # without InfoGAN's Q, which returns no logit
        parts = [part for name, part in D.named_children() if name != "recognition"]
        layers = [
            m
            for part in parts
            for m in part.modules()
            if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
        ]
        return bool(layers) and all(hasattr(m, "parametrizations") for m in layers)
    if regularizer == "weight_clip":
        return (
            max(p.abs().max().item() for p in model.discriminator.parameters()) <= model.weight_clip
        )
    if regularizer == "minibatch_stddev":
        return any(isinstance(m, MinibatchStddev) for m in model.discriminator.modules())
    if regularizer == "augment":
        x = batch_of(model).x
        getattr(model.augment, "running_p", torch.zeros(())).fill_(1)
        return (model.augment(x) - x).abs().mean() > 0.1
    raise AssertionError(regularizer)


@pytest.mark.parametrize("recipe", first_of_each_kind(GAN_RECIPES, model_class))
def test_every_gan_recipe_trains_with_every_loss_and_regularizer(recipe):
    """One step with each loss and R1, and one with each regularizer and the recipe's loss."""
    for options in [*({"loss": loss, "r1": 0.5} for loss in LOSSES), *REGULARIZERS]:
        loss = LOSSES[
            options.get(
                "loss",
                compose_config(f"model={recipe}", "out=unused", "device=cpu")["model"]["loss"],
            )
        ]
        if options.get("augment") == "ada" and loss.is_shift_invariant:
            with pytest.raises(UserError, match="augment=diffaugment"):
                narrow_model(recipe, **options)
            continue
        if "spectral_norm" in options and recipe in ("progan", "stylegan2"):
            with pytest.raises(UserError, match="equalized"):
                narrow_model(recipe, **options)
            continue
        model = narrow_model(recipe, **options)
        D = model.discriminator
        if "gradient_penalty" in options and batch_norm_layers(D):
            with pytest.raises(UserError, match="batch normalization.*regularizer=r1"):
                trainer_of(model)
            continue
        trainer = trainer_of(model)
        before = {name: p.detach().clone() for name, p in D.named_parameters()}
        logs = trainer.train_step(iter([batch_of(model, 4)]))
        assert all(torch.isfinite(v) for v in logs.values()), options
        changed = {name for name, p in D.named_parameters() if not torch.equal(p, before[name])}
        assert (
            any(name.startswith("head.") for name in changed) and len(changed) > len(before) / 2
        ), options
        assert all(has_effect(model, name) for name in options if name != "loss"), options


def test_gan_recipes_are_found():
    assert len(GAN_RECIPES) > 10 and {
        "experiment=dcgan_mnist",
        "experiment=stylegan2_faces",
    } <= set(GAN_RUNS)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("recipe", GAN_RECIPES)
def test_code_choices_are_the_one_hot_parts_of_a_code(recipe, conditional):
    model = make_trainer_of_recipe(
        f"model={recipe}", *["++model.conditional=true"] * conditional
    ).model
    conditional = model.conditional  # some recipes are conditional
    z, named = model.prior(300), torch.zeros(model.code_dim, dtype=torch.bool)
    for part in model.code_choices.values():
        assert torch.equal(z[:, part].sum(1), torch.ones(300)) and not named[part].any()
        named[part] = True
    assert torch.equal(named, ((z == 0) | (z == 1)).all(0))
    assert ("class" in model.code_choices) == conditional and (recipe == "infogan") == (
        "category" in model.code_choices
    )
    if conditional:
        y = torch.arange(300) % 10
        assert torch.equal(model.prior(300, y)[:, model.code_choices["class"]].argmax(1), y)


@pytest.mark.parametrize(
    ("overrides", "won", "collapsed"),
    [
        (
            ("model=dcgan",),
            ["++model.r1=0.1", "++model.spectral_norm=true"],
            ["++model.r1=0.1", "++model.spectral_norm=true", "++model.minibatch_stddev=true"],
        ),
        (
            ("experiment=dcgan_mnist",),
            ["++model.r1=2"],
            ["++model.r1=2", "++model.minibatch_stddev=true"],
        ),
        (("model=stylegan2",), ["++model.r1=20"], ["++model.r1=20"]),
        (("model=wgan_gp",), ["++model.augment=diffaugment"], ["++model.minibatch_stddev=true"]),
        (("model=progan",), ["++model.augment=diffaugment"], []),
        (("model=sngan",), ["++model.r1=0.1"], ["++model.r1=0.1", "++model.minibatch_stddev=true"]),
    ],
)
def test_suggestions_depend_on_the_regularization(overrides, won, collapsed):
    trainer = make_trainer_of_recipe(*overrides)
    half = f"++trainer.d_lr_mult={trainer.options.d_lr_mult / 2:g}"
    found = [re.findall(r"[+]+[\w.]+=[\w.]+", note) for note in all_suggestions(trainer)]
    assert found == [[*won, half], collapsed]
