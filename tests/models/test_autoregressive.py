"""MADE, PixelCNN and PixelCNN++ against the definition, with all tiny images enumerated."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from genlab.errors import UserError
from genlab.models.autoregressive.likelihoods import Bernoulli, Categorical, MixtureOfLogistics
from genlab.models.autoregressive.made import MADE
from genlab.models.autoregressive.pixelcnn import PixelCNN
from genlab.models.autoregressive.pixelcnn_pp import PixelCNNpp
from genlab.spec import Batch, DataSpec

CNN = {"channels": 6, "num_layers": 2, "first_kernel_size": 5, "head_channels": 6}
PP = {"channels": 4, "num_blocks": 1, "num_scales": 2, "num_components": 3}
EIGHT_MASKS = {"num_masks": 8, "order_agnostic": True, "connectivity_agnostic": True}
MODELS = {  # name -> class, options, shape, levels
    "made": (MADE, {"hidden": (64,)}, (1, 3, 3), 2),
    "fvsbn": (MADE, {"hidden": ()}, (1, 3, 3), 2),
    "made_levels": (MADE, {"hidden": (32, 32), "likelihood": "categorical"}, (3, 1, 2), 3),
    "made_orders": (MADE, {"hidden": (16, 16), **EIGHT_MASKS}, (1, 2, 3), 2),
    "made_connections": (
        MADE,
        {"hidden": (16,), "num_masks": 3, "connectivity_agnostic": True},
        (1, 2, 2),
        2,
    ),
    "pixelcnn": (PixelCNN, CNN, (1, 3, 3), 2),
    "pixelcnn_rgb": (PixelCNN, {**CNN, "likelihood": "categorical"}, (3, 1, 2), 3),
    "pixelcnn_shallow": (PixelCNN, {**CNN, "num_layers": 0}, (1, 2, 2), 2),
    "pixelcnn_pp": (PixelCNNpp, PP, (1, 3, 3), 2),
    "pixelcnn_pp_gray": (PixelCNNpp, PP, (1, 2, 2), 3),
    "pixelcnn_pp_rgb": (PixelCNNpp, PP, (3, 2, 1), 3),
}
each_model = pytest.mark.parametrize("name", MODELS)


def build(
    name: str,
    *,
    shape: tuple[int, ...] | None = None,
    range=(0.0, 1.0),
    classes: int = 0,
    **options,
):
    """Return a float64 model in eval mode with large random weights."""
    cls, defaults, tiny, levels = MODELS[name]
    torch.manual_seed(0)
    spec = DataSpec(shape or tiny, levels=levels, range=range, num_classes=classes)
    model = cls(spec, conditional=classes > 0, **{**defaults, **options}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model


def all_images(spec: DataSpec) -> torch.Tensor:
    """Return all images (levels**D, *shape) in lexicographic order of their values."""
    low, high = spec.range
    values = [low + (high - low) * i / (spec.levels - 1) for i in range(spec.levels)]
    return torch.tensor(list(product(values, repeat=spec.dim)), dtype=torch.float64).unflatten(
        1, spec.shape
    )


def value_order(model) -> torch.Tensor:
    """Return the position (C, H, W) of each value: raster order, or MADE's first order."""
    c, h, w = model.spec.shape
    if isinstance(model, MADE):
        return model.degrees_0[0].view(c, h, w)
    return torch.arange(c * h * w).view(h, w, c).permute(2, 0, 1)


def is_consistent(observed: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether χ² of counts is within 5 standard deviations of its mean."""
    statistic = ((observed - expected).square() / expected).sum()
    freedom = len(expected) - 1
    return statistic < freedom + 5 * math.sqrt(2 * freedom)


@each_model
@pytest.mark.parametrize("classes", [0, 2])
def test_probabilities_of_all_images_sum_to_one(name, classes):
    model = build(name, range=(-1.0, 1.0), classes=classes)
    x = all_images(model.spec)
    with torch.no_grad():
        labels = [torch.full((len(x),), k) for k in range(classes)] or [None]
        p = torch.stack([model.log_prob(x, y).exp() for y in labels])  # (classes, images)
        torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-11, rtol=0)
        torch.testing.assert_close(model.log_prob(x).exp(), p.mean(0), atol=1e-13, rtol=1e-9)
    if classes:
        assert (p[0] - p[1]).abs().max() > 1e-3 * p.max(), "the class has no effect"


DEEP = {"channels": 12, "num_layers": 4, "head_channels": 60}
BIG = [
    *[("pixelcnn", shape, DEEP) for shape in [(1, 5, 6), (1, 6, 3), (3, 3, 4)]],
    *[
        ("pixelcnn_rgb", (3, 4, 4), DEEP),
        ("pixelcnn_rgb", (2, 4, 3), {**DEEP, "kernel_size": 5, "num_layers": 1}),
    ],
    *[("pixelcnn_pp", shape, {}) for shape in [(1, 5, 7), (1, 8, 4), (3, 3, 4)]],
    ("pixelcnn_pp", (1, 7, 5), {"num_scales": 3}),
    *[
        ("made", (2, 3, 3), {"hidden": (300,)}),
        ("made", (1, 4, 4), {"hidden": (200, 200)}),
        ("fvsbn", (1, 4, 4), {}),
    ],
]


@pytest.mark.parametrize("name, shape, options", BIG)
def test_outputs_depend_on_exactly_the_earlier_values(name, shape, options):
    """The Jacobian is nonzero exactly where a value comes before another.

    If whole pixels are drawn, this holds for pixels.
    """
    model = build(name, shape=shape, **options)
    x = torch.rand(4, *shape, dtype=torch.float64)  # a ReLU may be inactive for one image
    joint = model.likelihood.is_joint
    jacobian = torch.autograd.functional.jacobian(
        lambda v: model.likelihood_params(v, None).sum(0), x
    )
    depends = (
        jacobian.abs().sum((0, -4)).flatten(0, 1 if joint else 2).flatten(1) > 0
    )  # (positions or values, D)
    place = value_order(model)
    # the outputs of a pixel do not depend on its own channels
    at = place[0] if joint else place
    assert torch.equal(depends, at.flatten()[:, None] > place.flatten())


@pytest.mark.parametrize("k", range(8))
def test_each_set_of_masks_has_its_own_order(k):
    model = build("made_orders", hidden=(300, 300))
    x = torch.rand(1, 1, 2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.likelihood_params(v, None, k), x)
    place = model.degrees_0[k]
    assert torch.equal(jacobian.reshape(6, 6) != 0, place[:, None] > place)
    assert sorted(place.tolist()) == [1, 2, 3, 4, 5, 6]


def test_model_is_the_mixture_of_its_mask_sets():
    model = build("made_orders")
    x = all_images(model.spec)
    with torch.no_grad():
        each_order = [
            model.likelihood.log_prob(model.likelihood_params(x, None, k), x).exp()
            for k in range(8)
        ]
        torch.testing.assert_close(
            model.log_prob(x).exp(), sum(each_order) / 8, atol=1e-14, rtol=1e-10
        )
        losses = {model.loss(Batch(x))["loss"].item() for _ in range(100)}
    expected = {-p.log().mean().item() for p in each_order}
    assert len(losses) == 8 and sorted(losses) == pytest.approx(sorted(expected))


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name != "made_connections"]
)  # one pass does not give the conditionals of a mixture
def test_log_prob_is_the_sum_of_its_conditionals(name):
    """Each factor is computed separately, with random values after it."""
    model = build(name, range=(-1.0, 1.0), **({"num_masks": 1} if name == "made_orders" else {}))
    images = all_images(model.spec)
    torch.manual_seed(3)
    x = images[torch.randint(len(images), (5,))]
    place, total = value_order(model), torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for p in place.flatten().sort().values[:: len(place) if model.likelihood.is_joint else 1]:
            other = images[torch.randint(len(images), (5,))]
            out = model.likelihood_params(torch.where(place < p, x, other), None)
            if model.likelihood.is_joint:
                i, j = (place[0] == p).nonzero()[0].tolist()
                total += model.likelihood.log_prob(out[:, :, i, j], x[:, :, i, j])
            else:
                c, i, j = (place == p).nonzero()[0].tolist()
                total += model.likelihood.log_prob(out[:, :, c, i, j], x[:, c, i, j])
        torch.testing.assert_close(total, model.log_prob(x), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    "name, y", [*((name, 1) for name in MODELS), ("fvsbn", None), ("pixelcnn_shallow", None)]
)
def test_samples_have_the_probabilities_of_the_model(name, y):
    model = build(name, range=(-1.0, 1.0), classes=2)
    images, n = all_images(model.spec), 6_000

    def labels(m):
        return None if y is None else torch.full((m,), y)

    torch.manual_seed(1)
    draws = model.sample(n, labels(n))
    with torch.no_grad():
        p = model.log_prob(images, labels(len(images))).exp()
    observed = torch.bincount(image_index(draws, model.spec), minlength=len(p)).double()
    often = n * p > 5  # rare cells are pooled for χ²

    def pool(v):
        return torch.cat([v[often], v[~often].sum()[None]])

    assert is_consistent(pool(observed), pool(n * p).clamp(min=1e-9)) and often.sum() > 3


def image_index(x: torch.Tensor, spec: DataSpec) -> torch.Tensor:
    """Return the index (B,) of images in `every_picture`."""
    index = Categorical(spec).values_to_levels(x).flatten(1)
    return (index * spec.levels ** torch.arange(spec.dim - 1, -1, -1)).sum(1)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("made_orders", "made_connections")]
)
def test_inpainting_draws_from_the_conditional_distribution(name):
    """The known values are a prefix of the order, which in an RGB image ends within a pixel."""
    model = build(name)
    images, n, place = all_images(model.spec), 4_000, value_order(model)
    known = place <= place.flatten().sort().values[1 if len(place) == 3 else place.numel() // 2]
    with torch.no_grad():
        p = model.log_prob(images).exp()
    x = images[p.argmax()]  # its known values are not rare
    agree = ((images == x) | ~known).flatten(1).all(1)
    torch.manual_seed(2)
    hidden = torch.where(
        known, x, torch.full_like(x, float("nan"))
    )  # unknown values must not be used
    draws = model.inpaint(hidden.expand(n, *x.shape), known)
    assert torch.equal(draws[:, known], x[known].expand(n, -1))
    observed = torch.bincount(image_index(draws, model.spec), minlength=len(p)).double()
    conditional = (p / p[agree].sum())[agree]
    often = n * conditional > 5

    def pool(v):
        return torch.cat([v[often], v[~often].sum()[None]])

    assert observed[~agree].sum() == 0 and often.sum() > 1
    assert is_consistent(pool(observed[agree]), pool(n * conditional).clamp(min=1e-9))


def test_inpainting_supports_one_mask_per_image():
    model = build("pixelcnn")
    x = all_images(model.spec)[torch.randperm(512)[:50]]
    known = torch.rand_like(x) < 0.5
    draws = model.inpaint(x, known)
    assert torch.equal(draws[known], x[known]) and not torch.equal(draws, x)
    assert torch.equal(model.inpaint(x, torch.ones_like(known)), x)


# --- likelihoods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.0, 4.0), (30.0, 1.0), (0.0, 30.0)])
def test_mixture_of_logistics_sums_to_one_over_256_levels(channels, shift, scale):
    """For a channel given earlier ones; also with means outside the range, minimal scales."""
    spec = DataSpec((channels, 1, 1), levels=256, range=(0.0, 1.0))
    likelihood = MixtureOfLogistics(spec, num_components=4)
    torch.manual_seed(0)
    out = shift + scale * torch.randn(1, likelihood.num_params, 1, 1, dtype=torch.float64)
    x = (
        torch.rand(1, channels, 1, 1, dtype=torch.float64)
        .mul(255)
        .round()
        .div(255)
        .repeat(256, 1, 1, 1)
    )
    x[:, -1, 0, 0] = torch.arange(256) / 255
    joint = likelihood.log_prob(out.expand(256, -1, -1, -1), x)
    assert torch.isfinite(joint).all()
    first = MixtureOfLogistics(DataSpec((channels - 1, 1, 1), range=(0.0, 1.0)), num_components=4)
    weights, means, log_scales, coefficients = out.split(
        [4, 4 * channels, 4 * channels, 2 * channels * (channels - 1)], 1
    )
    keep = 2 * (channels - 1) * (channels - 2)
    head = torch.cat([weights, means[:, :-4], log_scales[:, :-4], coefficients[:, :keep]], 1)
    marginal = (
        first.log_prob(head, x[:1, :-1]) if channels > 1 else torch.zeros(1, dtype=torch.float64)
    )
    torch.testing.assert_close(joint.logsumexp(0)[None], marginal, atol=1e-9, rtol=1e-9)


def test_mixture_of_logistics_is_the_difference_of_sigmoids():
    """Equation 2 of the paper and the means of section 2.2, written out for RGB."""
    likelihood = MixtureOfLogistics(DataSpec((3, 1, 1)), num_components=2)
    torch.manual_seed(0)
    out = torch.randn(400, likelihood.num_params, 1, 1, dtype=torch.float64)
    level = torch.randint(256, (400, 3)).double()
    level[:9], level[9:18] = 0, 255
    u = level / 127.5 - 1  # the data's range is [−1, 1]
    logits, m, s, c = out.flatten(1).split([2, 6, 6, 6], 1)
    m, s, c = m.unflatten(1, (3, 2)), s.unflatten(1, (3, 2)).exp(), c.unflatten(1, (3, 2)).tanh()
    r, g, _ = (u[:, i, None] for i in range(3))
    means = [m[:, 0], m[:, 1] + c[:, 0] * r, m[:, 2] + c[:, 1] * r + c[:, 2] * g]
    p = logits.softmax(1)
    for i in range(3):
        upper = torch.where(
            level[:, i, None] == 255,
            1.0,
            ((u[:, i, None] + 1 / 255 - means[i]) / s[:, i]).sigmoid(),
        )
        lower = torch.where(
            level[:, i, None] == 0, 0.0, ((u[:, i, None] - 1 / 255 - means[i]) / s[:, i]).sigmoid()
        )
        p = p * (upper - lower)
    actual = likelihood.log_prob(out, u[:, :, None, None])
    torch.testing.assert_close(actual, p.sum(1).log(), atol=1e-8, rtol=1e-8)


def test_mixture_of_logistics_has_finite_gradients_in_single_precision():
    likelihood = MixtureOfLogistics(DataSpec((3, 2, 2)), num_components=3)
    torch.manual_seed(0)
    x = torch.tensor([-1.0, 1.0, 0.0039215686]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    for scale in (0.0, 1.0, 50.0):
        out = (scale * torch.randn(3, likelihood.num_params, 2, 2)).requires_grad_()
        likelihood.log_prob(out, x).sum().backward()
        assert torch.isfinite(out.grad).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_and_values_round_trip(levels, bounds):
    likelihood = Categorical(DataSpec((1, 4, 4), levels=levels, range=bounds))
    index = torch.arange(levels)
    values = likelihood.levels_to_values(index, torch.zeros(()))
    assert values[0] == bounds[0] and values[-1] == pytest.approx(bounds[1], abs=1e-6)
    assert torch.equal(likelihood.values_to_levels(values), index)


def test_bernoulli_equals_categorical_with_two_levels():
    spec = DataSpec((1, 2, 2), levels=2, range=(-1.0, 1.0))
    logit = torch.randn(5, 1, 1, 2, 2, dtype=torch.float64)
    x = torch.randint(2, (5, 1, 2, 2)).double() * 2 - 1
    two = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(
        Bernoulli(spec).log_prob(logit, x), Categorical(spec).log_prob(two, x)
    )


ERRORS = [
    (PixelCNN, DataSpec((1, 4, 4)), {}, "preprocess.binarize=dynamic"),
    (MADE, DataSpec((1, 4, 4)), {}, "model.likelihood=categorical"),
    (PixelCNNpp, DataSpec((1, 4, 4), dequantized=True), {}, "preprocess.dequantize=false"),
    (MADE, DataSpec((4,), kind="points", levels=0), {}, "need images"),
    (PixelCNN, DataSpec((1, 4, 4), levels=2), {"conditional": True}, "model.conditional=false"),
    (PixelCNN, DataSpec((1, 4, 4), levels=2), {"kernel_size": 4}, "model.kernel_size=5"),
    (PixelCNN, DataSpec((3, 4, 4), levels=2), {"channels": 16}, "multiples of 3"),
    (MADE, DataSpec((1, 4, 4), levels=2), {"num_masks": 2}, "model.order_agnostic=true"),
]


@pytest.mark.parametrize("cls, spec, options, message", ERRORS)
def test_unsuitable_data_or_options_are_an_error(cls, spec, options, message):
    with pytest.raises(UserError, match=message):
        cls(spec, **options)


@each_model
def test_labels_for_an_unconditional_model_are_an_error(name):
    model = build(name)
    with pytest.raises(UserError, match="model.conditional=true"):
        model.sample(1, torch.tensor([0]))
    with pytest.raises(UserError, match="model.conditional=true"):
        model.log_prob(all_images(model.spec)[:1], torch.tensor([0]))


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_inputs_of_pixelcnn_gates_have_unit_variance_initially(channels):
    """With PyTorch's initialization each of the ten gates would shrink the signal to a third."""
    torch.manual_seed(0)
    model = PixelCNN(
        DataSpec((channels, 16, 16), levels=2, range=(0.0, 1.0)),
        channels=48,
        num_layers=10,
        head_channels=48,
    )
    u = torch.randn(8, channels, 16, 16)
    v, h = model.first(torch.nn.functional.pad(u, (0, 0, 1, 0))[:, :, :-1], u, None)
    for layer in model.layers:
        above = layer.vertical(v)[:, :, : v.shape[2]]
        assert 0.6 < above[:, :, 2:].std() < 1.5
        v, h = layer(v, h, None)
    assert 0.6 < h.std() < 2  # h is a residual sum
