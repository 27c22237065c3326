"""Translation models: networks, losses and updates of pix2pix, CycleGAN, SRGAN, NextFrame."""

import copy
import re
from functools import partial
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from helpers.recipes import build_training_objects
from torch import nn

from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.metrics.features import perceptual
from genlab.metrics.features.classifier import Classifier, ClassifierNetwork
from genlab.metrics.features.perceptual import PerceptualFeatures
from genlab.models.gan.cyclegan import CycleGAN, ImageHistory
from genlab.models.gan.losses import LOSSES
from genlab.models.gan.next_frame import NextFrame, gradient_difference_loss, image_pyramid
from genlab.models.gan.pix2pix import Pix2Pix
from genlab.models.gan.srgan import SRGAN
from genlab.models.gan.trainer import REPORT_AFTER_INTERVALS
from genlab.models.gan.translation_trainer import TranslationTrainer
from genlab.nn.patchgan import PatchGAN, max_num_downsamples
from genlab.nn.pix2pix_unet import Pix2PixUNet
from genlab.nn.residual_generator import ResidualGenerator
from genlab.nn.srresnet import SRResNet, prime_factors, upsample_bicubic
from genlab.spec import Batch, DataSpec


def pair(source: tuple[int, ...], target: tuple[int, ...], kind: str = "image") -> DataSpec:
    return DataSpec(target, kind=kind, source=DataSpec(source, kind=kind))


IMAGES = pair((3, 16, 16), (3, 16, 16))
SMALL = {
    "pix2pix": lambda **o: Pix2Pix(IMAGES, width=4, **o),
    "cyclegan": lambda **o: CycleGAN(IMAGES, width=4, num_blocks=1, **{"history_size": 3, **o}),
    "srgan": lambda **o: SRGAN(
        pair((3, 8, 8), (3, 16, 16)), width=4, num_blocks=1, discriminator_width=4, **o
    ),
    "next_frame": lambda **o: NextFrame(
        pair((4, 1, 16, 16), (2, 1, 16, 16), "video"), width=(4, 4, 4), **o
    ),
}


def small(name: str, **options):
    torch.manual_seed(0)
    return SMALL[name](**options).double()


def batch_of(model, n: int = 4) -> Batch:
    g = torch.Generator().manual_seed(1)

    def shape(s):
        return torch.rand(n, *s.shape, dtype=torch.float64, generator=g) * 2 - 1

    return Batch(shape(model.spec), None, shape(model.spec.source))


def neighbor_distance(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean squared difference of each item to the previous one."""
    return (
        torch.stack([(a - b).square() for a, b in zip(x, [x[-1], *x[:-1]], strict=True)])
        .mean()
        .sqrt()
    )


def trainer_of(model, **options) -> TranslationTrainer:
    adam = partial(torch.optim.Adam, lr=1e-2)
    device = Device(name="cpu", precision="fp64")
    return TranslationTrainer(
        model, adam, TranslationTrainer.Options(**options), seed=0, device=device
    )


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("halved", "field"), [(0, 7), (1, 16), (2, 34), (3, 70)])
def test_patchgan_receptive_field(halved, field):
    torch.manual_seed(0)
    net = PatchGAN(1, width=4, num_downsamples=halved).double()
    # instance norm looks at the whole image: what a value sees of it is the convolutions'
    plain = nn.Sequential(*(m for m in net if not isinstance(m, nn.InstanceNorm2d)))
    x = torch.randn(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    y = plain(x)
    (gradient,) = torch.autograd.grad(y[0, 0, y.shape[2] // 2, y.shape[3] // 2], x)
    seen = gradient[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]
    r = 1  # by hand, from the last layer to the first: r ← (r − 1)·stride + kernel
    for m in reversed([m for m in net if isinstance(m, nn.Conv2d)]):
        r = (r - 1) * m.stride[0] + m.kernel_size[0]
    assert r == field


@pytest.mark.parametrize(("side", "times"), [(8, 1), (16, 2), (28, 3), (64, 3), (256, 3)])
def test_small_images_have_fewer_downsamples(side, times):
    assert max_num_downsamples((side, 2 * side)) == times
    assert (
        min(
            PatchGAN(3, width=2, num_downsamples=times)(torch.zeros(2, 3, side, 2 * side)).shape[2:]
        )
        >= 1
    )


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (30, 21), (64, 64)])
@pytest.mark.parametrize("net", ["unet", "residual"])
def test_generators_keep_the_image_size(net, size):
    torch.manual_seed(0)
    fake_x = (
        Pix2PixUNet(2, 3, width=2, num_levels=3, dropout=0)
        if net == "unet"
        else ResidualGenerator(2, 3, width=2, num_blocks=1)
    )
    x = torch.randn(2, 2, *size)
    assert fake_x(x).shape == (2, 3, *size)
    h, w = size
    if h % fake_x.size_multiple or w % fake_x.size_multiple:
        edged = nn.functional.pad(
            x, (0, -w % fake_x.size_multiple, 0, -h % fake_x.size_multiple), mode="replicate"
        )
        torch.testing.assert_close(fake_x(x), fake_x(edged)[..., :h, :w])


def test_pix2pix_unet_matches_the_papers_layers():
    with torch.device("meta"):
        net = Pix2PixUNet(3, 3)
    ways = {"down": nn.Conv2d, "up": nn.ConvTranspose2d}
    layers = {
        k: [m for m in getattr(net, k).modules() if isinstance(m, t)] for k, t in ways.items()
    }
    assert [m.out_channels for m in layers["down"]] == [64, 128, 256, 512, 512, 512, 512, 512]
    assert [m.in_channels for m in layers["up"]] == [512, 1024, 1024, 1024, 1024, 512, 256, 128]
    assert [any(type(m).__name__ == "AlwaysOnDropout" for m in up) for up in net.up] == [
        True
    ] * 3 + [False] * 5


@pytest.mark.parametrize(("factor", "steps"), [(2, [2]), (3, [3]), (4, [2, 2]), (6, [2, 3])])
@pytest.mark.parametrize("stages", [True, False])
def test_srresnet_pixel_shuffles(factor, steps, stages):
    assert prime_factors(factor) == steps
    net = SRResNet(3, 3, factor, width=4, num_blocks=1, kernel_size=3, staged_upsampling=stages)
    shuffles = [m for m in net.modules() if isinstance(m, nn.PixelShuffle)]
    assert [m.upscale_factor for m in shuffles] == (steps if stages else [factor])
    x = torch.randn(2, 3, 7, 5)
    assert net(x).shape == (2, 3, 7 * factor, 5 * factor)


def test_pixel_shuffle_order():
    x = torch.arange(2 * 9 * 2 * 2.0).view(1, 18, 2, 2)
    y = nn.PixelShuffle(3)(x)
    for c, i, j in [
        (0, 0, 0),
        (1, 4, 5),
        (0, 5, 2),
        (1, 3, 1),
    ]:  # y[c, 3h + a, 3w + b] = x[9c + 3a + b, h, w]
        assert y[0, c, i, j] == x[0, 9 * c + 3 * (i % 3) + j % 3, i // 3, j // 3]


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_residual_starts_as_bicubic_interpolation(factor):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 9)
    net = SRResNet(3, 3, factor, width=4, num_blocks=1, bicubic_residual=True)
    assert torch.equal(net(x), upsample_bicubic(x, factor))
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # Keys's kernel reproduces a straight line
    within = upsample_bicubic(ramp, factor)[0, 0, 0, 4 * factor : -4 * factor]
    line = (torch.arange(4 * factor, 12 * factor) + 0.5) / factor - 0.5
    torch.testing.assert_close(within, line, atol=1e-5, rtol=0)


# --- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "relativistic"])
@pytest.mark.parametrize("name", ["pix2pix", "srgan", "next_frame"])
def test_losses_are_the_sum_of_their_parts(name, loss):
    model = small(
        name, loss=loss, adversarial_weight=0.7, **({"dropout": 0.0} if name == "pix2pix" else {})
    ).eval()
    batch = batch_of(model)
    fake_x, target = model.generator(batch.cond), model.target_like_generator_output(batch.x)
    real, fake = model.discriminator(batch.cond, target), model.discriminator(batch.cond, fake_x)
    d, g = model.discriminator_loss(batch), model.generator_loss(batch)
    torch.testing.assert_close(d["loss"], LOSSES[loss].discriminator(real, fake))
    errors = sum(model.reconstruction_losses(fake_x, target).values())
    torch.testing.assert_close(g["loss"], errors + 0.7 * LOSSES[loss].generator(fake, real))
    torch.testing.assert_close(model.loss(batch)["loss"], errors)
    torch.testing.assert_close(
        g["loss"], sum(v for k, v in g.items() if k not in ("loss", "diversity_ratio"))
    )

    def last(x):
        return x if isinstance(x, torch.Tensor) else x[-1]

    torch.testing.assert_close(
        g["diversity_ratio"], neighbor_distance(last(fake_x)) / neighbor_distance(last(target))
    )


def test_pix2pix_l1_weight_and_dropout_noise():
    model = small("pix2pix", l1_weight=7.0)
    a, b = torch.rand(2, 3, 3, 8, 8)
    torch.testing.assert_close(model.reconstruction_losses(a, b)["l1"], 7 * (a - b).abs().mean())
    cond = batch_of(model).cond
    model.eval()
    assert not torch.equal(model.translate(cond), model.translate(cond))
    still = small("pix2pix", dropout=0.0).eval()
    assert torch.equal(still.translate(cond), still.translate(cond))


def test_srgan_uses_content_loss_in_the_adversarial_stage_only():
    def content(x):
        return 3 * x[:, :1]

    model = small("srgan", content_features=content).eval()
    batch = batch_of(model)
    fake_x = model.generator(batch.cond)
    square = (fake_x - batch.x).square()
    torch.testing.assert_close(model.loss(batch)["loss"], square.mean())
    torch.testing.assert_close(
        model.generator_loss(batch)["content"], 9 / 4 * square[:, :1].mean()
    )  # in [0, 1]


def test_perceptual_features_without_vgg19_are_a_classifiers(monkeypatch, capsys):
    torch.manual_seed(0)
    network = ClassifierNetwork((1, 8, 8), 10).eval()
    fake_x = Classifier(network, 1.0, 0.9, "digits test", torch.device("cpu"))
    monkeypatch.setattr(perceptual, "find_vgg19_weights", lambda: None)
    monkeypatch.setattr(
        perceptual.Classifier, "load_or_train_for_dataset", lambda data, device: fake_x
    )
    data = SimpleNamespace(spec=DataSpec((1, 8, 8), num_classes=10))
    content = PerceptualFeatures(data=data)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    y = content(x)
    torch.testing.assert_close(y, network.body[:6](x.mean(1, keepdim=True)))  # colors as gray
    y.square().sum().backward()
    assert x.grad.abs().max() > 0 and not any(
        p.requires_grad for p in network.body[:6].parameters()
    )
    said = capsys.readouterr().err
    assert (
        "genlab's classifier" in said and "90.0% on digits test" in said and "network=vgg19" in said
    )
    content(x)
    assert capsys.readouterr().err == ""  # printed once
    assert copy.deepcopy(content) is content
    with pytest.raises(UserError, match=r"model\.content_features=null"):
        PerceptualFeatures(data=None)(x)


def test_perceptual_features_are_vgg19s_if_its_weights_are_on_disk(monkeypatch, tmp_path, capsys):
    from torchvision.models import vgg19

    torch.manual_seed(0)
    with torch.device("meta"):
        names = {k: v.shape for k, v in vgg19().features[:36].state_dict().items()}
    state = {}
    for k, shape in names.items():
        is_weight = len(shape) > 1
        state[f"features.{k}"] = (
            torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 if is_weight else torch.zeros(shape)
        )
    torch.save(state, tmp_path / "vgg19.pth")
    monkeypatch.setattr(perceptual, "find_vgg19_weights", lambda: tmp_path / "vgg19.pth")
    content = PerceptualFeatures()
    x = torch.rand(1, 1, 16, 16, requires_grad=True)
    before = torch.get_rng_state()
    y = content(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert y.shape == (1, 512, 1, 1) and y.min() >= 0 and "VGG19" in capsys.readouterr().err
    gray = (
        x.expand(-1, 3, -1, -1) - torch.tensor(perceptual.CHANNEL_MEAN).view(3, 1, 1)
    ) / torch.tensor(perceptual.CHANNEL_STD).view(3, 1, 1)
    torch.testing.assert_close(y, content.features.features(gray) / 12.75)
    y.sum().backward()
    assert x.grad.abs().max() > 0
    with pytest.raises(UserError, match=r"network=vgg19"):
        PerceptualFeatures()(x[..., :8, :8])  # too small for it, and there is no classifier


@pytest.mark.parametrize("alpha", [1, 2])
def test_gradient_difference_loss_matches_formula(alpha):
    torch.manual_seed(0)
    y, z = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    rows, columns = [], []
    for b in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    if i:
                        step_y = (y[b, c, i, j] - y[b, c, i - 1, j]).abs()
                        step_z = (z[b, c, i, j] - z[b, c, i - 1, j]).abs()
                        rows.append((step_y - step_z).abs() ** alpha)
                    if j:
                        step_y = (y[b, c, i, j - 1] - y[b, c, i, j]).abs()
                        step_z = (z[b, c, i, j - 1] - z[b, c, i, j]).abs()
                        columns.append((step_y - step_z).abs() ** alpha)
    by_hand = torch.stack(rows).mean() + torch.stack(columns).mean()
    torch.testing.assert_close(gradient_difference_loss(y, z, alpha), by_hand)
    assert (
        gradient_difference_loss(y, y + 3, alpha) < 1e-12
        and gradient_difference_loss(y, -y, alpha) < 1e-12
    )


@pytest.mark.parametrize(("side", "scales"), [(8, 2), (16, 3), (28, 3), (64, 4)])
def test_next_frame_generates_every_scale(side, scales):
    spec = pair((4, 1, side, side), (2, 1, side, side), "video")
    model = NextFrame(spec, width=(4, 4, 4, 4)).eval()
    past, x = torch.rand(3, 4, 1, side, side), torch.rand(3, 2, 1, side, side)
    fake_x = model.generator(past)
    assert [tuple(m.shape) for m in fake_x] == [
        (3, 2, side >> k, side >> k) for k in reversed(range(scales))
    ]
    target = model.target_like_generator_output(x)
    assert torch.equal(target[-1].view_as(x), x)
    torch.testing.assert_close(target[-2], nn.functional.avg_pool2d(x.flatten(1, 2), 2))
    assert model.discriminator(past, target).shape == (3, scales)
    assert torch.equal(model.translate(past), fake_x[-1].clamp(-1, 1).view(3, 2, 1, side, side))


def test_image_pyramid_keeps_the_mean():
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for level in image_pyramid(x, 3):
        torch.testing.assert_close(level.mean((2, 3)), x.mean((2, 3)))


# --- regularization ---------------------------------------------------------------------------

REGULARIZERS = [
    {"r1": 1.0},
    {"gradient_penalty": 10.0},
    {"spectral_norm": True},
    {"weight_clip": 0.05},
]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_every_loss_works_with_every_regularizer_and_network(name, loss, regularizer):
    if "gradient_penalty" in regularizer and name == "srgan":
        with pytest.raises(UserError, match="batch normalization.*regularizer=r1"):
            trainer_of(small(name, loss=loss, **regularizer))
        return
    trainer = trainer_of(small(name, loss=loss, **regularizer))
    model = trainer.model
    logs = [trainer.train_step(iter([batch_of(model)])) for _ in range(2)]
    assert all(torch.isfinite(v) for log in logs for v in log.values())
    for optimizer in trainer.optimizers.values():
        assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
    if "weight_clip" in regularizer:
        assert max(p.abs().max() for p in model.discriminator.parameters()) <= 0.05
    if "spectral_norm" in regularizer:
        weights = [
            m.weight
            for m in model.eval().discriminator.modules()
            if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        assert weights and all(
            torch.linalg.matrix_norm(w.flatten(1), 2) < 1.5 for w in weights
        )  # after two steps of the power iteration


def discriminators_and_inputs(model, batch):
    """Return each discriminator, as a function to its mean logits (B,), and its real data."""

    def mean(logits):
        return logits.reshape(len(logits), -1).mean(1)

    if isinstance(model, CycleGAN):
        truths = {"target": batch.x, "source": batch.cond}
        return [
            (lambda x, name=name: mean(model.discriminator[name](x)), x)
            for name, x in truths.items()
        ]
    return [
        (
            lambda x: mean(model.discriminator(batch.cond, model.target_like_generator_output(x))),
            batch.x,
        )
    ]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("weight", [0, 1, 4])
def test_r1_is_the_gradient_of_the_mean_logit(name, weight):
    plain, model = (
        small(name, r1=r1, **({"history_size": 0} if name == "cyclegan" else {})).eval()
        for r1 in (0.0, 3.0)
    )
    batch, expected = batch_of(model), 0
    for D, x in discriminators_and_inputs(model, batch):
        x = x.clone().requires_grad_()
        slopes = [
            torch.autograd.grad(v, x, retain_graph=True)[0][i] for i, v in enumerate(D(x))
        ]  # of each sample separately
        expected = expected + torch.stack([s.square().sum() for s in slopes]).mean()
    losses = []
    for one in (plain, model):
        torch.manual_seed(1)  # pix2pix has dropout noise
        losses.append(one.discriminator_loss(batch, penalty_scale=weight))
    found = sum(v for k, v in losses[1].items() if k.partition("/")[0] == "r1")
    assert (found > 0) == (weight > 0)
    torch.testing.assert_close(losses[1]["loss"], losses[0]["loss"] + weight * 3 / 2 * expected)


def test_gradient_penalty_covers_all_scales_together():
    model = small("next_frame", gradient_penalty=2.0).eval()
    batch = batch_of(model)
    fake_x, target = model.generator(batch.cond), model.target_like_generator_output(batch.x)
    torch.manual_seed(1)
    found = model.discriminator_loss(batch)["gradient_penalty"]
    torch.manual_seed(1)
    share = torch.rand(len(batch.x), dtype=torch.float64).view(-1, 1, 1, 1)
    between = [
        (share * a + (1 - share) * b).detach().requires_grad_()
        for a, b in zip(target, fake_x, strict=True)
    ]
    slopes = torch.autograd.grad(model.discriminator(batch.cond, between).mean(1).sum(), between)
    length = torch.stack([s.square().sum((1, 2, 3)) for s in slopes]).sum(0).sqrt()
    torch.testing.assert_close(found, (length - 1).square().mean())
    assert len(between) == 3 and found > 0


@pytest.mark.parametrize("name", SMALL)
def test_mode_collapse_is_reported_with_suggestions(name):
    model = small(name).eval()
    trainer = trainer_of(model)
    for p in model.generator.parameters():
        torch.nn.init.zeros_(p)
    said = []
    for n in (1, 4):
        logs = model.generator_loss(batch_of(model, n))
        means = {
            key: value.item()
            for key, value in logs.items()
            if key.partition("/")[0] == "diversity_ratio"
        }
        assert len(means) == (
            0 if n == 1 else 2 if name == "cyclegan" else 1
        )  # a single sample has no neighbor
        said += [note for _ in range(REPORT_AFTER_INTERVALS) for note in trainer.diagnose(means)]
    (note,) = said
    assert "mode collapse" in note
    tries = re.findall(r"[+]+[\w.]+=[\w.-]+", note)
    against_collapse = f"++model.adversarial_weight={model.adversarial_weight / 2:g}"
    if name == "cyclegan":
        against_collapse = "++model.cycle_weight=20"
    assert tries == ["++model.r1=0.1", "++model.spectral_norm=true", against_collapse]
    for override in tries:  # each is an option of the model
        key, value = override.removeprefix("++model.").split("=")
        small(name, **{key: value == "true" or float(value)})


# --- CycleGAN ---------------------------------------------------------------------------------


class Affine(nn.Module):
    """x → a x + b."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Parameter(torch.tensor(a).double()),
            nn.Parameter(torch.tensor(b).double()),
        )

    def forward(self, x):
        return self.a * x + self.b


@pytest.mark.parametrize(("inverse", "consistent"), [((0.5, -0.5), True), ((0.5, 0.0), False)])
def test_inverse_generators_have_no_cycle_loss(inverse, consistent):
    model = small("cyclegan", identity_weight=0.0)
    model.generator = nn.ModuleDict({"G": Affine(2.0, 1.0), "F": Affine(*inverse)})
    batch = batch_of(model)
    cycle = model.loss(batch)["cycle"].item()
    # F(G(x)) = x + 1/2 and G(F(y)) = y + 1 of the pair that is not inverse
    assert cycle == pytest.approx(0.0 if consistent else 10 * (0.5 + 1.0), abs=1e-12)
    back = model.translate(model.translate(batch.cond), backward=True)
    torch.testing.assert_close(back, batch.cond + (0.0 if consistent else 0.5))


def test_cyclegan_losses_match_formulas():
    model = small("cyclegan", history_size=0).eval()
    batch = batch_of(model)
    G, F = model.generator["G"], model.generator["F"]
    Dx, Dc = model.discriminator["target"], model.discriminator["source"]

    def l1(a, b):
        return (a - b).abs().mean()

    game = (Dx(G(batch.cond)) - 1).square().mean() + (Dc(F(batch.x)) - 1).square().mean()
    cycle = l1(F(G(batch.cond)), batch.cond) + l1(G(F(batch.x)), batch.x)
    identity = l1(G(batch.x), batch.x) + l1(F(batch.cond), batch.cond)
    torch.testing.assert_close(
        model.generator_loss(batch)["loss"], game + 10 * cycle + 5 * identity
    )
    pairs = (Dx, batch.x, G(batch.cond)), (Dc, batch.cond, F(batch.x))
    d = sum(((D(a) - 1).square().mean() + D(b).square().mean()) / 2 for D, a, b in pairs)
    torch.testing.assert_close(model.discriminator_loss(batch)["loss"], d)


def test_image_history_statistics():
    torch.manual_seed(0)
    n, size = 4000, 50
    history = ImageHistory(size, (1, 1, 1))
    x = torch.arange(1.0, n + 1).view(n, 1, 1, 1)
    shown = torch.cat([history(part) for part in x.split(7)])  # batches that do not divide the size
    assert torch.equal(shown[:size], x[:size])  # it fills
    assert history.count == size
    kept = set(history.images.flatten().tolist())
    assert len(kept) == size
    # what was returned later than it was generated came from the history, each image at most once
    late = (shown < x)[size:].flatten()
    assert not (shown > x).any()
    assert late.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / (n - size) ** 0.5)
    old = shown[size:].flatten()[late]
    assert len(old.unique()) == len(old) and not kept & set(old.tolist())
    # an image stays for a geometric time: a swap (½) of its slot (1/size), 2·size on average
    age = (x - shown)[size:].flatten()[late]
    assert age.mean().item() == pytest.approx(2 * size, rel=0.1)


def test_image_history_resumes():
    x = torch.rand(9, 1, 2, 2)
    torch.manual_seed(0)
    one = ImageHistory(3, (1, 2, 2))
    one(x[:4])
    two = ImageHistory(3, (1, 2, 2))
    two.load_state_dict(one.state_dict())
    state = torch.get_rng_state()
    a = one(x[4:])
    torch.set_rng_state(state)
    assert torch.equal(a, two(x[4:])) and torch.equal(one.images, two.images)
    assert torch.equal(ImageHistory(0, (1, 2, 2))(x), x)


# --- the update rule, and refusals ------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_each_update_changes_one_network_only(name):
    trainer = trainer_of(small(name))
    model = trainer.model.train()
    for player, opponent in (("discriminator", "generator"), ("generator", "discriminator")):

        def state(who):
            return {k: v.clone() for k, v in getattr(model, who).state_dict().items()}

        mine, theirs = state(player), state(opponent)
        trainer.optimizer_step(player, getattr(model, f"{player}_loss"), [batch_of(model)])
        assert all(torch.equal(v, theirs[k]) for k, v in state(opponent).items())
        moved = {k for k, v in state(player).items() if not torch.equal(v, mine[k])}
        assert moved >= {k for k, _ in getattr(model, player).named_parameters()}


@pytest.mark.parametrize("name", SMALL)
def test_reconstruction_stage_comes_first(name):
    trainer = trainer_of(
        small(name), stage_starts=(0, 2), steps=4, lr_schedule="linear", constant_fraction=0.5
    )
    model = trainer.model.train()
    before = {k: v.clone() for k, v in model.discriminator.state_dict().items()}
    batches = iter([batch_of(model)] * 20)
    rates, said = [], []
    for at in range(4):
        if at == 2:
            assert all(
                torch.equal(v, before[k]) for k, v in model.discriminator.state_dict().items()
            )
        said.append("loss/discriminator" in trainer.train_step(batches))
        rates.append(trainer.optimizers["generator"].param_groups[0]["lr"])
    assert said == [False, False, True, True]
    assert rates == pytest.approx(
        [1e-2, 1e-2, 1e-2, 1e-2]
    )  # constant for half of each stage of two steps
    assert any(not torch.equal(v, before[k]) for k, v in model.discriminator.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_winning_discriminator_is_reported(name):
    model = small(name)
    trainer = trainer_of(model)
    for p in model.discriminator.parameters():
        torch.nn.init.zeros_(p)
    judged = model.discriminator_loss(batch_of(model))
    means = {key: value.item() for key, value in judged.items() if key.startswith("d_advantage")}
    assert len(means) == (2 if name == "cyclegan" else 1)
    assert all(
        value == pytest.approx(0.0, abs=1e-12) for value in means.values()
    )  # a logit of 0 is chance level
    said = [trainer.diagnose({**means, max(means): 0.995}) for _ in range(REPORT_AFTER_INTERVALS)]
    assert not any(said[:-1]) and "the discriminator has won" in said[-1][0]
    tries = ["++model.r1=0.1", "++model.spectral_norm=true", "++trainer.d_lr_mult=0.5"]
    assert re.findall(r"[+]+[\w.]+=[\w.]+", said[-1][0]) == tries


def test_constant_fraction_delays_the_schedule():
    trainer = trainer_of(
        small("pix2pix", adversarial_weight=0.0),
        steps=8,
        constant_fraction=0.5,
        stage_starts=(0, 2),
    )
    shares = []
    for at in range(8):
        trainer.global_step = at
        shares.append(trainer.schedule_progress())
    assert shares == pytest.approx(
        [0, 0, 0, 0, 0, 0.25, 0.5, 0.75]
    )  # without a discriminator there is one stage
    assert list(trainer.optimizers) == ["generator"]


def test_each_stage_warms_up_with_fresh_optimizer_state():
    """Adam's statistics of the first stage would make the first adversarial steps too long."""
    model = small("next_frame", adversarial_weight=100.0)
    trainer, lr = (
        trainer_of(model, steps=40, lr_warmup_steps=4, stage_starts=(0, 20), lr_schedule="linear"),
        1e-2,
    )
    batches = iter([batch_of(model)] * 80)
    rates, moved = [], []
    for _ in range(40):
        before = [p.detach().clone() for p in model.generator.parameters()]
        trainer.train_step(batches)
        rates.append(trainer.optimizers["generator"].param_groups[0]["lr"])
        moved.append(
            max(
                (p - q).abs().max().item()
                for p, q in zip(model.generator.parameters(), before, strict=True)
            )
        )
    rise = [lr / 4, lr / 2, 3 * lr / 4, lr]
    fall = [lr * (1 - k / 16) for k in range(16)]
    assert rates == pytest.approx(2 * [*rise, *fall])
    assert moved[20] <= rates[20] * 1.001 and max(moved[20:26]) <= 1.5 * lr


def test_srgan_learning_rates_match_the_paper():
    """10⁻⁴ for 10⁶ steps of the pixel loss and 10⁵ of the GAN, then 10⁻⁵ for as many.

    Ledig et al. 2017, section 3.2.
    """
    _, _, trainer = build_training_objects(
        "model=srgan",
        "model.width=2",
        "model.num_blocks=1",
        "model.discriminator_width=2",
        "model.content_features=null",
        "device=cpu",
        "out=unused",
    )
    rates = {}
    for at in (0, 999_999, 1_000_000, 1_099_999, 1_100_000, 1_199_999):
        trainer.global_step = at
        trainer.update_lr()
        rates[at] = [
            group["lr"]
            for optimizer in trainer.optimizers.values()
            for group in optimizer.param_groups
        ]
    assert [*chain(*rates.values())] == pytest.approx(
        8 * [1e-4] + 4 * [1e-5]
    ) and trainer.options.steps == 1_200_000


REGULARIZER_OF_RECIPE = dict(
    zip(SMALL, ("r1", "gradient_penalty", "spectral_norm", "weight_clip"), strict=True)
)


@pytest.mark.parametrize("recipe", SMALL)
def test_recipes_accept_regularizers_by_name(recipe):
    narrow = {"next_frame": "[2,2,2,2]", "cyclegan": "2", "pix2pix": "2", "srgan": "2"}[recipe]
    plain = ("model.content_features=null",) * (recipe == "srgan")
    name = REGULARIZER_OF_RECIPE[recipe]
    for choice in (name, "none"):
        typed = (
            f"model={recipe}",
            f"model.width={narrow}",
            *plain,
            f"+regularizer={choice}",
            "device=cpu",
            "out=unused",
        )
        model = build_training_objects(*typed)[2].model
        held = {key: getattr(model, key) for key in REGULARIZER_OF_RECIPE.values()}
        assert {key for key, value in held.items() if value} == (
            {name} if choice == name else set()
        )


@pytest.mark.parametrize("name", SMALL)
def test_translate_keeps_the_range_and_accepts_other_sizes(name):
    model = small(name).eval()
    batch = batch_of(model)
    x = model.translate(5 * batch.cond)
    assert x.shape == batch.x.shape and x.abs().max() <= 1 and not x.requires_grad
    size = [3 * side for side in batch.cond.shape[-2:]]
    wide = model.translate(torch.zeros(1, *batch.cond.shape[1:-2], *size, dtype=torch.float64))
    assert wide.shape[-2:] == torch.Size(3 * side for side in batch.x.shape[-2:])


NO_SOURCE = DataSpec((3, 16, 16))
DIFFERENT_CHANNELS = pair((1, 16, 16), (3, 16, 16))


@pytest.mark.parametrize(
    ("model", "spec", "options", "says"),
    [
        *((m, NO_SOURCE, {}, "dataset=pairs") for m in (Pix2Pix, CycleGAN, SRGAN, NextFrame)),
        (Pix2Pix, pair((3, 8, 8), (3, 16, 16)), {}, "model=srgan"),
        (CycleGAN, pair((3, 4, 4), (3, 4, 4)), {}, "at least 8"),
        (CycleGAN, DIFFERENT_CHANNELS, {}, r"model\.identity_weight=0"),
        (SRGAN, IMAGES, {}, "dataset=superres"),
        (SRGAN, pair((3, 8, 8), (3, 16, 24)), {}, "integer multiple"),
        (SRGAN, pair((1, 8, 8), (3, 16, 16)), {}, "dataset=superres"),
        (NextFrame, pair((3, 8, 8), (3, 16, 16)), {}, "as high and wide"),
        *(
            (
                Pix2Pix,
                IMAGES,
                {"adversarial_weight": 0.0, **regularizer},
                rf"model\.{next(iter(regularizer))} .* model\.adversarial_weight=0",
            )
            for regularizer in REGULARIZERS
        ),
        (
            NextFrame,
            IMAGES,
            {"error_weight": 0, "gradient_difference_weight": 0, "adversarial_weight": 0},
            r"model\.error_weight=1",
        ),
    ],
)
def test_unsuitable_data_is_refused(model, spec, options, says):
    with pytest.raises(UserError, match=says):
        model(spec, **options)


@pytest.mark.parametrize("starts", [(1,), (0, 0), (0, 2, 3)])
def test_invalid_stage_starts_are_refused(starts):
    with pytest.raises(UserError, match=r"trainer\.stage_starts"):
        trainer_of(small("pix2pix"), stage_starts=starts)
