"""ProGAN and StyleGAN2: layers against loops, growth, styles, lazy regularization."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.models.gan.progan import ProGAN
from genlab.models.gan.progressive_trainer import ProgressiveTrainer
from genlab.models.gan.stylegan2 import StyleGAN2, mix_styles
from genlab.models.gan.trainer import GANTrainer, lazy_regularization_lr_factor
from genlab.nn import stylegan_layers
from genlab.nn.conv import upsample_nearest, upsample_then_conv2d
from genlab.nn.minibatch_stddev import MinibatchStddev
from genlab.spec import Batch, DataSpec

SPEC = DataSpec((1, 16, 16), num_classes=3)
TINY = {
    "progan": {"latent": 6, "channel_max": 5, "loss": "wasserstein", "gradient_penalty": 10.0},
    "stylegan2": {"latent": 6, "channel_max": 5, "num_mapping_layers": 2, "r1": 1.0},
}


def small(name: str, spec: DataSpec = SPEC, **options):
    torch.manual_seed(0)
    return {"progan": ProGAN, "stylegan2": StyleGAN2}[name](spec, **TINY[name] | options).double()


def batch_of(spec: DataSpec, n: int = 4) -> Batch:
    torch.manual_seed(1)
    low, high = spec.range
    return Batch(
        low + (high - low) * torch.rand(n, *spec.shape, dtype=torch.float64),
        torch.arange(n) % max(1, spec.num_classes),
    )


def perturb_noise_and_mean_style(model):
    """Return a StyleGAN2 with nonzero noise strengths, biases and mean style."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("strength", "bias")):
                p.add_(0.3 * torch.randn_like(p))
        model.running_w.normal_()
    return model.eval()


# --- layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "with_bias"), [((1, 1), True), ((3, 5), True), ((4, 4), False)])
def test_upsample_conv2d_equals_upsampling_and_convolution(size, with_bias):
    """The value, the gradients and the second gradients agree with upsampling first."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, *size).double(), torch.randn(4, 3, 3, 3).double()
    given = [x, weight, *([torch.randn(4).double()] if with_bias else [])]
    given = [g.requires_grad_() for g in given]

    def first(x, weight, bias=None):
        return F.conv2d(upsample_nearest(x), weight, bias, padding=1)

    assert torch.allclose(upsample_then_conv2d(*given), first(*given), rtol=1e-12, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(f(*given).square().sum(), given, create_graph=True)
        for f in (upsample_then_conv2d, first)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-11)
    ours, theirs = (torch.autograd.grad(g[0].square().sum(), weight)[0] for g in (ours, theirs))
    assert torch.allclose(ours, theirs, rtol=1e-11)


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_equalized_linear_scale_and_learning_rate(rate):
    torch.manual_seed(0)
    layer = stylegan_layers.EqualizedLinear(400, 300, gain=2**0.5, lr_mult=rate).double()
    plain = torch.nn.init.kaiming_normal_(
        torch.empty(300, 400, dtype=torch.float64), nonlinearity="relu"
    )
    effective = layer(torch.eye(400, dtype=torch.float64)).T
    assert effective.std().item() == pytest.approx(plain.std().item(), rel=0.02)
    assert effective.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    # a step of Adam moves each stored weight by lr, and the effective one by lr · rate · √(2/in)
    adam = torch.optim.Adam([layer.weight], lr=1e-3, eps=1e-30)
    layer(torch.rand(5, 400, dtype=torch.float64)).square().sum().backward()
    adam.step()
    moved = (layer(torch.eye(400, dtype=torch.float64)).T - effective).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * rate * (2 / 400) ** 0.5))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 0)])
def test_equalized_conv2d_scales_its_weights(kernel, stride, padding):
    torch.manual_seed(0)
    layer = stylegan_layers.EqualizedConv2d(
        4, 3, kernel, gain=2**0.5, stride=stride, padding=padding
    ).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    weight = layer.weight * (2 / (4 * kernel**2)) ** 0.5
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, stride, padding))


def test_pixel_norm_gives_unit_mean_square():
    torch.manual_seed(0)
    a = torch.randn(2, 7, 3, 3, dtype=torch.float64) * 50
    b = stylegan_layers.PixelNorm()(a)
    torch.testing.assert_close(b.square().mean(1), torch.ones(2, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(b / b[:, :1], a / a[:, :1])


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_conv2d_equals_a_loop_over_samples(up, demodulate, kernel):
    if up and kernel == 1:
        pytest.skip("only 3×3 convolutions double the side")
    torch.manual_seed(0)
    layer = stylegan_layers.ModulatedConv2d(
        4, 3, kernel, 5, upsample=up, demodulate=demodulate
    ).double()
    x, w = torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    s = layer.affine(w)
    for b in range(3):
        weight = layer.weight / (4 * kernel**2) ** 0.5 * s[b][None, :, None, None]  # eq. 1
        if demodulate:  # eq. 3
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:  # zeros between the values, the filter with gain 4, then the convolution
            spread = torch.zeros(4, 12, 12, dtype=torch.float64)
            spread[:, ::2, ::2] = x[b]
            spread = F.pad(spread, (3, 3, 3, 3))
            whole = F.conv2d(
                F.conv2d(spread[:, None], TAPS[None, None] * 4)[:, 0][None], weight.flip(2, 3)
            )
            torch.testing.assert_close(layer(x, w)[b], whole[0, :, :12, :12])
        else:
            torch.testing.assert_close(
                layer(x, w)[b], F.conv2d(x[b : b + 1], weight, padding=kernel // 2)[0]
            )


K = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
TAPS = K[:, None] * K / 64


def test_demodulation_keeps_unit_variance():
    torch.manual_seed(0)
    layer = stylegan_layers.ModulatedConv2d(8, 4, 3, 5).double()
    x, w = (
        torch.randn(2, 8, 200, 200, dtype=torch.float64),
        3 * torch.randn(2, 5, dtype=torch.float64),
    )
    inside = layer(x, w)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(
        inside.var((2, 3)), torch.ones(2, 4, dtype=torch.float64), atol=0.05, rtol=0
    )


def test_filtered_resampling_by_hand():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1))
    for i, j in product(range(3), repeat=2):
        patch = padded[..., 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        torch.testing.assert_close(
            stylegan_layers.downsample_filtered(x)[..., i, j], (patch * TAPS).sum((2, 3))
        )
    # inside the borders upsampling is bilinear, with weights 3/4 and 1/4
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(
        stylegan_layers.upsample_filtered(x)[..., 1:-1, 1:-1], bilinear[..., 1:-1, 1:-1]
    )
    # the two are adjoint, up to the gain of 4
    y = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(
        (stylegan_layers.upsample_filtered(x) * y).sum(),
        4 * (x * stylegan_layers.downsample_filtered(y)).sum(),
    )


@pytest.mark.parametrize(("n", "size"), [(8, 4), (6, 3), (7, 1), (2, 2)])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_minibatch_stddev_equals_a_loop(n, size, shape):
    torch.manual_seed(0)
    x = torch.randn(n, *shape, dtype=torch.float64)
    out = MinibatchStddev(4)(x)
    assert torch.equal(out[:, :3], x) and out.shape == (n, 4, *shape[1:])
    groups = n // size
    for i in range(n):
        group = x[i % groups :: groups]
        s = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[i, 3], torch.full(shape[1:], s.item(), dtype=torch.float64))


# --- both models ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("range_", [(-1.0, 1.0), (0.0, 1.0)])
def test_shapes_ranges_and_gradients(name, side, channels, range_):
    spec = DataSpec((channels, side, side), range=range_)
    model = small(name, spec)
    batch = batch_of(spec)
    losses = {
        "discriminator": model.discriminator_loss(batch),
        "generator": model.generator_loss(batch),
    }
    for player, loss in losses.items():
        loss["loss"].backward(inputs=list(getattr(model, player).parameters()))
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert all(name == "progan" and ("to_image" in n or "from_image" in n) for n in idle), idle
    x = model.eval().sample(2)
    assert x.shape == (2, *spec.shape) and x.min() >= range_[0] and x.max() <= range_[1]
    z = model.prior(2)
    assert torch.equal(model.decode(z), model.decode(z))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("condition", ["projection", "auxiliary"])
def test_class_reaches_both_networks(name, condition):
    model = small(name, conditional=True, condition=condition).eval()
    batch = batch_of(SPEC)
    torch.manual_seed(2)
    z = model.prior(1, torch.tensor([0]))
    other = z.clone()
    other[:, -3:] = torch.tensor([0.0, 0.0, 1.0])
    assert not torch.allclose(model.decode(z), model.decode(other))
    logs = model.discriminator_loss(batch) | model.generator_loss(batch)
    assert ("classification" in logs) == (condition == "auxiliary")
    if condition == "projection":
        assert not torch.allclose(
            *(model.discriminator(batch.x, torch.full((4,), k)) for k in (0, 2))
        )


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("spec", "options", "fix"),
    [
        (DataSpec((1, 28, 28)), {}, "dataset.size=32"),
        (DataSpec((3, 16, 24)), {}, "dataset.size=32"),
        (DataSpec((2,), kind="points"), {}, "dataset=digits"),
        (SPEC, {"spectral_norm": True}, "model.spectral_norm=false"),
    ],
)
def test_unsuitable_data_is_refused(name, spec, options, fix):
    with pytest.raises(UserError, match=fix):
        small(name, spec, **options)


@pytest.mark.parametrize("name", TINY)
def test_channels_last_gives_equal_results(name):
    model = small(name).eval()
    z, x = model.prior(2), batch_of(SPEC).x
    plain = model.decode(z), model.discriminator(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        (model.decode(z), model.discriminator(x.to(memory_format=torch.channels_last))), plain
    )


# --- ProGAN -----------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 2])
def test_fade_in_interpolates_between_resolutions(top):
    model = small("progan").eval()
    z = model.prior(3)
    at = {}
    for level in (top - 1, top - 1 + 1e-6, top - 0.5, top - 1e-6, top):
        model.set_growth_level(level)
        x = model.generator(z)
        at[level] = x, model.discriminator(x)
    (small_x, _), (begun_x, _), (half_x, _), (nearly_x, nearly_d), (x, d) = at.values()
    assert small_x.shape[-1] * 2 == begun_x.shape[-1] == x.shape[-1] == 4 << top
    doubled = small_x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        begun_x, doubled, atol=1e-4, rtol=0
    )  # α = 0: the old image, upsampled
    torch.testing.assert_close(nearly_x, x, atol=1e-4, rtol=0)  # α = 1: the new image
    torch.testing.assert_close(half_x, (doubled + x) / 2)
    torch.testing.assert_close(nearly_d, d, atol=1e-4, rtol=0)
    model.set_growth_level(
        top - 1 + 1e-6
    )  # D at α = 0 equals the smaller D on the downsampled image
    shrunk = model.discriminator(x)
    model.set_growth_level(top - 1)
    torch.testing.assert_close(shrunk, model.discriminator(F.avg_pool2d(x, 2)), atol=1e-4, rtol=0)


def test_real_images_fade_in_like_samples():
    model = small("progan")
    batch = batch_of(SPEC)
    for level, side in ((0, 4), (0.25, 8), (1, 8), (1.75, 16), (2, 16)):
        model.set_growth_level(level)
        x = F.adaptive_avg_pool2d(batch.x, side)
        if alpha := level % 1:
            x = (1 - alpha) * F.interpolate(F.avg_pool2d(x, 2), scale_factor=2) + alpha * x
        torch.testing.assert_close(model.downscale_batch(batch).x, x)


def test_drift_penalty_is_added():
    losses = []
    for drift in (0.0, 0.5):
        model = small("progan", drift_weight=drift)
        torch.manual_seed(2)
        losses.append(model.discriminator_loss(batch_of(SPEC))["loss"])
    real = model.discriminator(batch_of(SPEC).x)
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * real.square().mean())


def test_level_follows_the_step():
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))
    options = ProgressiveTrainer.Options(fade_steps=4, hold_steps=2, ema_decay=0.9)
    trainer = ProgressiveTrainer(
        small("progan"), adam, options, device=Device(name="cpu", precision="fp64")
    )
    levels = [trainer.growth_level_at(at) for at in range(16)]
    assert levels == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1.25, 1.5, 1.75, 2, 2, 2, 2, 2]
    assert trainer.resolution_starts == [0, 2, 8]
    trainer.global_step = 3
    logs = trainer.step(iter([batch_of(SPEC)]))
    trainer.ema.update(trainer.model, 3)
    assert logs["level"] == 0.5 and trainer.eval_model().generator.level == 0.5
    assert trainer.eval_model().sample(2).shape == (2, *SPEC.shape)


@pytest.mark.parametrize(("resets", "expected"), [(False, []), (True, [2, 5, 8, 11])])
def test_moments_are_forgotten_when_a_fade_in_begins_and_ends(resets, expected):
    """As in the authors' code, whose levels of detail change at the same moments."""
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))
    options = ProgressiveTrainer.Options(fade_steps=4, hold_steps=2, reset_optimizers=resets)
    trainer = ProgressiveTrainer(
        small("progan"), adam, options, device=Device(name="cpu", precision="fp64")
    )
    for step in range(16):
        trainer.global_step = step
        trainer.step(iter([batch_of(SPEC)]))
        ages = [
            max(state["step"].item() for state in optimizer.state.values())
            for optimizer in trainer.optimizers.values()
        ]
        since = step - max((at for at in expected if at <= step), default=0)
        assert ages == [since + 1] * 2


# --- StyleGAN2 --------------------------------------------------------------------------------


def test_mix_styles_at_first_and_last_layer():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    assert torch.equal(mix_styles(a, b, torch.zeros(3)), b) and torch.equal(
        mix_styles(a, b, torch.full((3,), 6)), a
    )
    last = mix_styles(a, b, torch.full((3,), 5))
    assert torch.equal(last[:, :5], a[:, :5]) and torch.equal(last[:, 5:], b[:, 5:])
    each = mix_styles(a, b, torch.tensor([0, 3, 6]))
    assert torch.equal(each, torch.stack([b[0], torch.cat([a[1, :3], b[1, 3:]]), a[2]]))


def test_last_style_changes_the_last_resolution_only():
    model = perturb_noise_and_mean_style(small("stylegan2"))
    w = model.styles(model.prior(2)).contiguous()
    assert w.shape == (2, 6, 6)  # 2 · log2(16) − 2 layers
    other = model.styles(model.prior(2))
    torch.testing.assert_close(
        model.synthesize(mix_styles(w, other, torch.zeros(2))), model.synthesize(other)
    )
    last = mix_styles(w, other, torch.full((2,), 5))
    g = model.generator.synthesis
    seen = []
    for part in (g.blocks[-1][1], g.to_image[1]):
        part.register_forward_hook(lambda _m, _i, out: seen.append(out))
    before, after = model.synthesize(w), model.synthesize(last)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(
        seen[:2], seen[2:]
    )  # the maps before the last toRGB, and the image of the side before


def test_style_mixing_probability_and_crossover():
    model = small("stylegan2", style_mixing_prob=0.75).train()
    w = model.generator.styles(model.prior(2000))
    changed = (w[:, 1:] != w[:, :-1]).any(2)  # (B, L − 1)
    assert changed.sum(1).max() == 1  # one crossover
    assert changed.any(1).double().mean().item() == pytest.approx(0.75, abs=0.04)
    assert (
        changed.double().mean(0).max() / changed.double().mean(0).min() < 1.4
    )  # uniform crossovers
    plain = model.eval().generator.styles(model.prior(5))
    assert torch.equal(plain, plain[:, :1].expand_as(plain))


def test_truncation_moves_styles_toward_the_mean():
    model = perturb_noise_and_mean_style(small("stylegan2"))
    z = model.prior(3)
    w = model.styles(z)
    mean = model.running_w.expand_as(w)
    torch.testing.assert_close(model.styles(z, truncation=0.0), mean)
    torch.testing.assert_close(model.styles(z, truncation=0.25), mean + 0.25 * (w - mean))
    torch.manual_seed(0)
    x = model.sample(3, truncation=0.0)
    with torch.no_grad():  # without noise nothing is left to differ
        for layer in model.modules():
            if hasattr(layer, "strength"):
                layer.strength.zero_()
    same = model.sample(3, truncation=0.0)
    torch.testing.assert_close(
        same[0], same[1], rtol=1e-12, atol=1e-12
    )  # some processors round a batch's rows apart
    assert not torch.allclose(x[0], x[1], rtol=1e-3, atol=1e-3)


def test_mean_style_follows_the_mapping_network():
    model = small("stylegan2", w_avg_decay=0.0).train()
    model.generator_loss(batch_of(SPEC, 64), penalty_scale=0)
    with torch.no_grad():
        w = model.generator.mapping(model.prior(20_000))
    assert (model.running_w - w.mean(0)).norm() < 4 * w.std(0).norm() / 8  # of 64 draws


def test_path_length_penalty_of_a_linear_generator(monkeypatch):
    model = small("stylegan2", style_mixing_prob=0.0)
    torch.manual_seed(0)
    A = torch.randn(6 * 6, 256, dtype=torch.float64)
    monkeypatch.setattr(
        model.generator.synthesis, "forward", lambda w: (w.flatten(1) @ A).view(-1, 1, 16, 16)
    )
    z = model.prior(3)
    torch.manual_seed(1)
    penalty = model.path_length_penalty(z)
    torch.manual_seed(1)
    y = torch.randn(3, 256, dtype=torch.float64) / 16
    lengths = (y @ A.T).view(3, 6, 6).square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(model.running_length, 0.01 * lengths.mean())
    torch.testing.assert_close(penalty, (lengths - model.running_length).square().mean())


def test_lazy_regularizers_are_skipped_between_intervals():
    model = small("stylegan2")
    batch = batch_of(SPEC)
    logs = {p: (model.discriminator_loss(batch, p), model.generator_loss(batch, p)) for p in (0, 8)}
    assert "r1" not in logs[0][0] and "path_length" not in logs[0][1]
    assert "r1" in logs[8][0] and "path_length" in logs[8][1]
    trainer = GANTrainer(
        model, partial(torch.optim.Adam, lr=1e-3), GANTrainer.Options(lazy_reg_interval=2),
        device=Device(name="cpu", precision="fp64"),
    )  # fmt: skip
    seen = []
    for _ in range(3):
        seen.append("path_length" in trainer.step(iter([batch])))
        trainer.global_step += 1
    assert seen == [True, False, True]


@pytest.mark.parametrize(
    ("options", "every", "rates"),
    [
        ({}, 1, (1, 1)),
        ({}, (3, 2), (3 / 4, 2 / 3)),
        ({}, 4, (4 / 5, 4 / 5)),
        ({"path_length_weight": 0.0}, (3, 2), (3 / 4, 1)),  # G has no lazy penalty
    ],
)
def test_lazy_intervals_and_learning_rates_of_each_network(options, every, rates):
    model = small("stylegan2", **options)
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))
    trainer = GANTrainer(
        model,
        adam,
        GANTrainer.Options(lazy_reg_interval=every, d_lr_mult=0.5),
        device=Device(name="cpu", precision="fp64"),
    )
    groups = [
        trainer.optimizers[player].param_groups[0] for player in ("discriminator", "generator")
    ]
    assert [g["lr"] for g in groups] == pytest.approx(
        [0.5e-3 * rates[0] ** 0.5, 1e-3 * rates[1] ** 0.5]
    )
    assert all(g["betas"] == (0.0, 0.99) for g in groups)
    logs = [trainer.train_step(iter([batch_of(SPEC)])) for _ in range(7)]
    of_d, of_g = every if isinstance(every, tuple) else (every, every)
    assert [i for i, log in enumerate(logs) if "r1" in log] == list(range(0, 7, of_d))
    assert [i for i, log in enumerate(logs) if "path_length" in log] == (
        list(range(0, 7, of_g)) if not options else []
    )


@pytest.mark.parametrize("k", [2, 8])
def test_lazy_learning_rate_factor_matches_the_papers_updates(k):
    """Compare the paper's schedule, one further update for the penalty, with ours.

    The paper makes k updates and one on k times the penalty, by Adam with cλ and β^c; here the
    penalty is part of one of the k updates.
    """
    c, moved = k / (k + 1), {}
    for way, rate, beta in (
        ("paper", c, 0.99**c),
        ("here", lazy_regularization_lr_factor(k), 0.99),
        ("plain", 1, 0.99),
        ("c", c, 0.99),
    ):
        torch.manual_seed(0)
        weights = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([weights], lr=1e-3 * rate, betas=(0.0, beta))

        def descend(gradient, weights=weights, adam=adam):
            weights.grad = gradient
            adam.step()

        for at in range(800):
            main, penalty = (
                0.1 + torch.randn(1000).double(),
                k * (0.05 + 0.5 * torch.randn(1000).double()),
            )
            if way == "paper":
                descend(main)
                if at % k == 0:
                    descend(penalty)
            else:
                descend(main + penalty if at % k == 0 else main)
        moved[way] = weights.detach()
    far = {way: -w.mean().item() for way, w in moved.items()}
    assert far["here"] == pytest.approx(far["paper"], rel=0.015)
    assert far["plain"] > 1.04 * far["paper"] and far["c"] < 0.96 * far["paper"]
    assert torch.corrcoef(torch.stack([moved["here"], moved["paper"]]))[0, 1] > 0.98
