"""Residual and conditional GANs: blocks against formulas, sizes, and Stacked MNIST."""

import math

import numpy as np
import pytest
import torch
from helpers.recipes import build_training_objects
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, one_hot, relu

from genlab.data.stacked_mnist import StackedMNIST
from genlab.errors import UserError
from genlab.metrics import features
from genlab.metrics.features import classifier
from genlab.models.gan.acgan import ACGAN
from genlab.models.gan.cgan import CGAN, Maxout
from genlab.models.gan.resnet_gan import DownBlock, ResNetGAN, UpBlock
from genlab.nn.conditional_batch_norm import ConditionalBatchNorm
from genlab.spec import Batch, DataSpec

IMAGES = DataSpec((1, 16, 16), num_classes=3, range=(0.0, 1.0))


def small(**options) -> ResNetGAN:
    torch.manual_seed(0)
    sizes = {"latent": 4, "channels": (8, 6, 4), "discriminator_channels": (4, 6, 6)}
    return ResNetGAN(IMAGES, **(sizes | options)).double()


# --- conditional batch normalization ----------------------------------------------------------


def conditional_norm(classes: int = 3) -> ConditionalBatchNorm:
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(2, classes).double()
    for parameter in (norm.scale, norm.shift):
        nn.init.normal_(parameter)
    return norm


def test_conditional_norm_equals_a_loop_over_samples():
    norm = conditional_norm().train()
    x, y = torch.randn(6, 2, 3, 3, dtype=torch.float64) * 2 + 1, torch.tensor([0, 2, 1, 2, 2, 0])
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    whole = norm(x, one_hot(y, 3).double())
    for i, k in enumerate(y):
        for c in range(2):
            expected = (
                norm.scale[k, c] * (x[i, c] - mean[c]) / (variance[c] + norm.norm.eps).sqrt()
                + norm.shift[k, c]
            )
            torch.testing.assert_close(whole[i, c], expected)
    torch.testing.assert_close(norm.norm.running_mean, 0.1 * mean)


def test_conditional_norm_is_linear_in_the_class_weights():
    norm = conditional_norm().eval()
    x, weights = (
        torch.randn(4, 2, 3, 3, dtype=torch.float64),
        torch.rand(4, 3, dtype=torch.float64).softmax(1),
    )
    each = torch.stack([norm(x, one_hot(torch.full((4,), k), 3).double()) for k in range(3)])
    torch.testing.assert_close(norm(x, weights), torch.einsum("bk,kbchw->bchw", weights, each))


def test_conditional_norm_without_classes_is_batch_norm():
    norm, plain = ConditionalBatchNorm(2).double(), nn.BatchNorm2d(2).double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    assert torch.equal(norm(x), plain(x)) and {n for n, _ in norm.named_parameters()} == {
        "norm.weight",
        "norm.bias",
    }


# --- blocks -----------------------------------------------------------------------------------


def conv(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


def test_up_block_matches_formula():
    torch.manual_seed(0)
    block = UpBlock(3, 5, 0).double().eval()
    nn.init.normal_(block.shortcut.bias)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def up(h):
        return interpolate(h, scale_factor=2, mode="nearest")

    def norm(h):
        return h / math.sqrt(1 + 1e-5)

    expected = conv(block.conv2, relu(norm(conv(block.conv1, up(relu(norm(x))))))) + conv(
        block.shortcut, up(x)
    )
    torch.testing.assert_close(block(x, None), expected)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("outputs", [3, 5])
def test_down_block_matches_formula(first, halve, outputs):
    torch.manual_seed(0)
    block = DownBlock(3, outputs, downsample=halve, is_first=first).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    h = conv(block.conv2, relu(conv(block.conv1, x if first else relu(x))))
    learned = halve or outputs != 3
    assert isinstance(block.shortcut, nn.Conv2d) == learned
    whole = h + (conv(block.shortcut, x) if learned else x)
    torch.testing.assert_close(block(x), avg_pool2d(whole, 2) if halve else whole)
    assert block.conv1.out_channels == (outputs if first else 3)


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "halvings"), [(8, 1), (32, 2), (64, 4), (128, 5)])
def test_resnet_gan_shapes(side, halvings):
    spec = DataSpec((3, side, side), range=(0.0, 1.0))
    maps = (4,) * (side.bit_length() - 2)
    model = ResNetGAN(
        spec,
        latent=3,
        channels=maps,
        discriminator_channels=(4,) * halvings + (6,),
        num_downsamples=halvings,
    ).eval()
    x = model.sample(2)
    assert x.shape == (2, 3, side, side) and x.min() >= 0 and x.max() <= 1
    assert model.discriminator(x).shape == (2,) and model.discriminator.extract_features(
        x
    ).shape == (2, 6)
    assert model.discriminator.features.blocks(x).shape[2:] == (side >> halvings,) * 2


def test_resnet_gan_matches_the_papers_sizes():
    model = ResNetGAN(DataSpec((3, 32, 32)))

    def count(net):
        return sum(p.numel() for p in net.parameters())

    def block(i, o, hidden):
        return 9 * i * hidden + hidden + 9 * hidden * o + o

    norms, w = 4 * 256, 256
    up = block(w, w, w) + w * w + w + norms
    assert count(model.generator) == 129 * 16 * w + 3 * up + 2 * w + 9 * w * 3 + 3
    first, halving, same = (
        block(3, 128, 128) + 3 * 128 + 128,
        block(128, 128, 128) + 128 * 128 + 128,
        block(128, 128, 128),
    )
    assert count(model.discriminator) == first + halving + 2 * same + 129


def test_sum_pooling_is_mean_pooling_times_positions():
    a, b = small(pool="sum").discriminator, small(pool="mean").discriminator
    x = torch.rand(2, *IMAGES.shape, dtype=torch.float64)
    torch.testing.assert_close(
        a.extract_features(x), 16 * b.extract_features(x)
    )  # 16×16 halved twice


@pytest.mark.parametrize("condition", ["projection", "auxiliary", "concat"])
def test_spectral_norm_covers_every_layer_of_d(condition):
    D = small(spectral_norm=True, conditional=True, condition=condition).discriminator
    layers = [m for m in D.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
    assert len(layers) == 10 and all(
        hasattr(m, "parametrizations") for m in layers
    )  # 8 of the blocks, the head, the class


def test_class_enters_g_only_through_normalization():
    model = small(conditional=True).eval()
    z = model.prior(3, torch.tensor([0, 1, 2]))
    other = torch.cat([z[:, :4], z[:, 4:].roll(1, 1)], 1)
    assert torch.equal(model.decode(z), model.decode(other)), (
        "at first all classes have the same scales"
    )
    nn.init.normal_(model.generator.blocks[0].norm1.shift)
    assert not torch.allclose(model.decode(z), model.decode(other))


@pytest.mark.parametrize(
    ("loss", "has"), [("wasserstein", False), ("relativistic", False), ("hinge", True)]
)
def test_shift_invariant_losses_have_no_head_bias(loss, has):
    assert (small(loss=loss).discriminator.head.bias is not None) == has


def test_maxout_is_the_maximum_of_its_pieces():
    torch.manual_seed(0)
    layer, x = Maxout(3, (4, 5)).double(), torch.randn(6, 3, dtype=torch.float64)
    pieces = [[layer.linear(x)[:, 5 * unit + k] for k in range(5)] for unit in range(4)]
    expected = torch.stack([torch.stack(p).max(0).values for p in pieces], 1)
    assert torch.equal(layer(x), expected)


def test_cgan_matches_the_papers_sizes():
    model = CGAN(DataSpec((1, 28, 28), num_classes=10, range=(0.0, 1.0)))

    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert count(model.generator) == 101 * 200 + 11 * 1000 + 1201 * 1200 + 1201 * 784
    assert count(model.discriminator) == 785 * 240 * 5 + 11 * 50 * 5 + 291 * 240 * 4 + 241
    x, y = model.eval().sample(4, torch.arange(4)), torch.arange(4)
    assert not torch.allclose(model.discriminator(x, y), model.discriminator(x, y + 1))


def test_acgan_matches_the_papers_sizes():
    model = ACGAN(DataSpec((3, 32, 32), num_classes=10, range=(0.0, 1.0))).eval()
    maps = [tuple(m.weight.shape) for m in model.generator if isinstance(m, nn.ConvTranspose2d)]
    assert (
        maps == [(384, 192, 5, 5), (192, 96, 5, 5), (96, 3, 5, 5)]
        and model.generator[0].in_features == 110
    )
    convs = [m for m in model.discriminator.features if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [16, 32, 64, 128, 256, 512] and [
        c.stride[0] for c in convs
    ] == [2, 1] * 3
    assert (
        model.discriminator.class_head.out_features == 10
        and model.discriminator.head.in_features == 512 * 16
    )
    losses = model.discriminator_loss(Batch(model.sample(4), torch.arange(4)))
    assert "classification" in losses


@pytest.mark.parametrize(
    ("make", "spec", "options", "says"),
    [
        (ResNetGAN, DataSpec((1, 28, 28)), {}, r"32×32.*preprocess\.size=32"),
        (
            ResNetGAN,
            DataSpec((1, 32, 32)),
            {"channels": (8, 8)},
            r"preprocess\.size=8 or model\.channels=\[8,8,8,8\]",
        ),
        (ResNetGAN, DataSpec((1, 32, 32)), {"num_downsamples": 5}, r"model\.num_downsamples=5"),
        (ResNetGAN, DataSpec((2,), kind="points"), {}, "images"),
        (CGAN, DataSpec((1, 8, 8)), {}, "labels"),
        (ACGAN, DataSpec((1, 28, 28), num_classes=10), {}, r"preprocess\.size=32"),
        (ACGAN, DataSpec((1, 32, 32), num_classes=10), {"discriminator_channels": (8, 8)}, "six"),
    ],
)
def test_unsuitable_data_is_refused(make, spec, options, says):
    with pytest.raises(UserError, match=says):
        make(spec, **options)


@pytest.mark.parametrize("recipe", ["sngan", "projection_gan"])
def test_learning_rates_decrease_to_zero(recipe):
    _, _, trainer = build_training_objects(
        f"model={recipe}",
        "dataset=fake",
        "dataset.num_classes=3",
        "model.channels=[4,4,4,4]",
        "model.discriminator_channels=[4,4,4,4]",
        "trainer.steps=100",
        "device=cpu",
        "out=unused",
    )
    assert trainer.options.d_steps == 5
    for at, rate in ((0, 2e-4), (50, 1e-4), (99, 2e-6)):
        trainer.global_step = at
        trainer.update_lr()
        groups = [
            group for optimizer in trainer.optimizers.values() for group in optimizer.param_groups
        ]
        assert [group["lr"] for group in groups] == pytest.approx([rate, rate])
        assert all(group["betas"] == (0.0, 0.9) for group in groups)


# --- Stacked MNIST ----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A folder with 60 + 30 images in MNIST's format, with pixels 20 × label."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)

    def head(*sizes):
        return np.array(sizes, dtype=">i4").tobytes()

    for part, n in (("train", 60), ("t10k", 30)):
        y = np.arange(n, dtype=np.uint8) % 10
        x = np.broadcast_to(20 * y[:, None, None], (n, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head(2051, n, 28, 28) + x.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head(2049, n) + y.tobytes())
    return str(tmp_path)


def test_stacked_mnist_stacks_three_digits_with_their_number_as_label(root):
    data = StackedMNIST(root=root, n=500, range=(0.0, 1.0))
    assert data.spec.shape == (3, 28, 28) and data.spec.num_classes == 1000
    assert [data.size(split) for split in ("train", "validation", "test")] == [500, 100, 100]
    for split in ("train", "validation", "test"):
        batch = data.head(split, 50)
        digits = batch.x[:, :, 0, 0].mul(255 / 20).round().long()  # (B, 3)
        assert (
            torch.equal(digits @ torch.tensor([100, 10, 1]), batch.y)
            and batch.x.flatten(2).var(2).max() < 1e-12
        )
        assert torch.equal(data.head_as_uint8_images(split, 50).x[:, :, 0, 0], (20 * digits).byte())
        x, y = data.raw_items_and_labels(split)
        assert torch.equal(x[:, :, 5, 7].long() @ torch.tensor([100, 10, 1]), 20 * y)
    counts = torch.bincount(
        torch.cat([data.raw_items_and_labels("train")[1] // 10**k % 10 for k in range(3)]),
        minlength=10,
    )
    assert counts.min() > 0, "every digit is there"


def test_stacked_mnist_item_depends_on_seed_and_index_only(root):
    few, many, other = (
        StackedMNIST(root=root, n=n, split_seed=s) for n, s in ((40, 0), (400, 0), (40, 1))
    )
    few, many, other = (
        torch.cat([d.raw_items_and_labels("train")[0].flatten(1)[:, ::784]])
        for d in (few, many, other)
    )
    assert torch.equal(few, many[:40]) and not torch.equal(few, other)


def test_stacked_mnist_classifier_sees_one_channel(root, monkeypatch, tmp_path):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        classifier,
        "train_classifier",
        lambda x, y, num_classes, **options: classifier.ClassifierNetwork(
            x.shape[1:], num_classes
        ).eval(),
    )
    data = StackedMNIST(root=root, n=40)
    network = classifier.Classifier.load_or_train_for_dataset(data, torch.device("cpu"))
    assert network(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))[1].shape == (2, 10)
    assert features.default_feature_space(data) == "pixels"
    with pytest.raises(UserError, match="one channel"):
        features.validate_feature_space("classifier", data)
