"""MADE, PixelCNN and PixelCNN++ against the definition: every picture of a tiny size is enumerated."""

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
from genlab.spec import Batch, Spec

CNN = {"channels": 6, "layers": 2, "first_kernel": 5, "hidden": 6}
PP = {"channels": 4, "blocks": 1, "scales": 2, "components": 3}
EIGHT = {"masks": 8, "order_agnostic": True, "connectivity_agnostic": True}
MODELS = {  # name -> class, options, shape, levels
    "made": (MADE, {"hidden": (64,)}, (1, 3, 3), 2),
    "fvsbn": (MADE, {"hidden": ()}, (1, 3, 3), 2),
    "made_levels": (MADE, {"hidden": (32, 32), "likelihood": "categorical"}, (3, 1, 2), 3),
    "made_orders": (MADE, {"hidden": (16, 16), **EIGHT}, (1, 2, 3), 2),
    "made_connections": (
        MADE,
        {"hidden": (16,), "masks": 3, "connectivity_agnostic": True},
        (1, 2, 2),
        2,
    ),
    "pixelcnn": (PixelCNN, CNN, (1, 3, 3), 2),
    "pixelcnn_rgb": (PixelCNN, {**CNN, "likelihood": "categorical"}, (3, 1, 2), 3),
    "pixelcnn_shallow": (PixelCNN, {**CNN, "layers": 0}, (1, 2, 2), 2),
    "pixelcnn_pp": (PixelCNNpp, PP, (1, 3, 3), 2),
    "pixelcnn_pp_grey": (PixelCNNpp, PP, (1, 2, 2), 3),
    "pixelcnn_pp_rgb": (PixelCNNpp, PP, (3, 2, 1), 3),
}
each = pytest.mark.parametrize("name", MODELS)


def build(
    name: str,
    *,
    shape: tuple[int, ...] | None = None,
    range=(0.0, 1.0),
    classes: int = 0,
    **options,
):
    """Return a float64 model, ready to be asked, whose weights are far from small."""
    cls, own, tiny, levels = MODELS[name]
    torch.manual_seed(0)
    spec = Spec(shape or tiny, levels=levels, range=range, classes=classes)
    model = cls(spec, conditional=classes > 0, **{**own, **options}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model


def every_picture(spec: Spec) -> torch.Tensor:
    """Return all pictures (levels**D, *shape) in lexicographic order of their values."""
    low, high = spec.range
    values = [low + (high - low) * i / (spec.levels - 1) for i in range(spec.levels)]
    return torch.tensor(list(product(values, repeat=spec.dim)), dtype=torch.float64).unflatten(
        1, spec.shape
    )


def order(model) -> torch.Tensor:
    """Return the place (C, H, W) of each value: raster order, channel after channel, or the first order of MADE's."""
    c, h, w = model.spec.shape
    if isinstance(model, MADE):
        return model.degrees_0[0].view(c, h, w)
    return torch.arange(c * h * w).view(h, w, c).permute(2, 0, 1)


def fits(observed: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether counts have the expected frequencies: χ² within 5 standard deviations of its mean."""
    statistic = ((observed - expected).square() / expected).sum()
    freedom = len(expected) - 1
    return statistic < freedom + 5 * math.sqrt(2 * freedom)


@each
@pytest.mark.parametrize("classes", [0, 2])
def test_probabilities_of_all_pictures_sum_to_one(name, classes):
    model = build(name, range=(-1.0, 1.0), classes=classes)
    x = every_picture(model.spec)
    with torch.no_grad():
        labels = [torch.full((len(x),), k) for k in range(classes)] or [None]
        p = torch.stack([model.log_prob(x, y).exp() for y in labels])  # (classes, pictures)
        torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-11, rtol=0)
        torch.testing.assert_close(model.log_prob(x).exp(), p.mean(0), atol=1e-13, rtol=1e-9)
    if classes:
        assert (p[0] - p[1]).abs().max() > 1e-3 * p.max(), "the class says nothing"


DEEP = {"channels": 12, "layers": 4, "hidden": 60}
BIG = [
    *[("pixelcnn", shape, DEEP) for shape in [(1, 5, 6), (1, 6, 3), (3, 3, 4)]],
    *[
        ("pixelcnn_rgb", (3, 4, 4), DEEP),
        ("pixelcnn_rgb", (2, 4, 3), {**DEEP, "kernel": 5, "layers": 1}),
    ],
    *[("pixelcnn_pp", shape, {}) for shape in [(1, 5, 7), (1, 8, 4), (3, 3, 4)]],
    ("pixelcnn_pp", (1, 7, 5), {"scales": 3}),
    *[
        ("made", (2, 3, 3), {"hidden": (300,)}),
        ("made", (1, 4, 4), {"hidden": (200, 200)}),
        ("fvsbn", (1, 4, 4), {}),
    ],
]


@pytest.mark.parametrize("name, shape, options", BIG)
def test_jacobian_is_the_order_with_no_blind_spot(name, shape, options):
    """d outputs / d x is not zero exactly where a value (a pixel, where they are drawn whole) comes before another."""
    model = build(name, shape=shape, **options)
    x = torch.rand(4, *shape, dtype=torch.float64)  # a rectified unit may be dead at one picture
    joint = model.likelihood.joint
    jacobian = torch.autograd.functional.jacobian(lambda v: model.outputs(v, None).sum(0), x)
    depends = (
        jacobian.abs().sum((0, -4)).flatten(0, 1 if joint else 2).flatten(1) > 0
    )  # (places or values, D)
    place = order(model)
    at = place[0] if joint else place  # a pixel's outputs know no channel of it
    assert torch.equal(depends, at.flatten()[:, None] > place.flatten())


@pytest.mark.parametrize("k", range(8))
def test_each_set_of_masks_has_its_own_order(k):
    model = build("made_orders", hidden=(300, 300))
    x = torch.rand(1, 1, 2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.outputs(v, None, k), x)
    place = model.degrees_0[k]
    assert torch.equal(jacobian.reshape(6, 6) != 0, place[:, None] > place)
    assert sorted(place.tolist()) == [1, 2, 3, 4, 5, 6]


def test_sets_of_masks_average_as_a_mixture():
    model = build("made_orders")
    x = every_picture(model.spec)
    with torch.no_grad():
        each_order = [
            model.likelihood.log_prob(model.outputs(x, None, k), x).exp() for k in range(8)
        ]
        torch.testing.assert_close(
            model.log_prob(x).exp(), sum(each_order) / 8, atol=1e-14, rtol=1e-10
        )
        losses = {model.loss(Batch(x))["loss"].item() for _ in range(100)}
    expected = {-p.log().mean().item() for p in each_order}
    assert len(losses) == 8 and sorted(losses) == pytest.approx(sorted(expected))


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name != "made_connections"]
)  # a mixture's no pass gives
def test_log_prob_is_the_sum_of_its_conditionals(name):
    """Each factor is asked for alone, what comes after it replaced by other values."""
    model = build(name, range=(-1.0, 1.0), **({"masks": 1} if name == "made_orders" else {}))
    pictures = every_picture(model.spec)
    torch.manual_seed(3)
    x = pictures[torch.randint(len(pictures), (5,))]
    place, total = order(model), torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for p in place.flatten().sort().values[:: len(place) if model.likelihood.joint else 1]:
            other = pictures[torch.randint(len(pictures), (5,))]
            out = model.outputs(torch.where(place < p, x, other), None)
            if model.likelihood.joint:
                i, j = (place[0] == p).nonzero()[0].tolist()
                total += model.likelihood.log_prob(out[:, :, i, j], x[:, :, i, j])
            else:
                c, i, j = (place == p).nonzero()[0].tolist()
                total += model.likelihood.log_prob(out[:, :, c, i, j], x[:, c, i, j])
        torch.testing.assert_close(total, model.log_prob(x), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    "name, y", [*((name, 1) for name in MODELS), ("fvsbn", None), ("pixelcnn_shallow", None)]
)
def test_samples_have_the_probabilities_of_their_class_or_of_all(name, y):
    model = build(name, range=(-1.0, 1.0), classes=2)
    pictures, n = every_picture(model.spec), 6_000
    labels = lambda m: None if y is None else torch.full((m,), y)  # noqa: E731
    torch.manual_seed(1)
    draws = model.sample(n, labels(n))
    with torch.no_grad():
        p = model.log_prob(pictures, labels(len(pictures))).exp()
    observed = torch.bincount(number(draws, model.spec), minlength=len(p)).double()
    often = n * p > 5  # χ² wants no rare cell: they make one together
    pool = lambda v: torch.cat([v[often], v[~often].sum()[None]])  # noqa: E731
    assert fits(pool(observed), pool(n * p).clamp(min=1e-9)) and often.sum() > 3


def number(x: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Return the place (B,) of pictures in `every_picture`."""
    index = Categorical(spec).index(x).flatten(1)
    return (index * spec.levels ** torch.arange(spec.dim - 1, -1, -1)).sum(1)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("made_orders", "made_connections")]
)
def test_complete_keeps_the_known_and_draws_the_rest_given_them(name):
    """Of a prefix of the order; in an RGB picture it ends amid a pixel."""
    model = build(name)
    pictures, n, place = every_picture(model.spec), 4_000, order(model)
    known = place <= place.flatten().sort().values[1 if len(place) == 3 else place.numel() // 2]
    with torch.no_grad():
        p = model.log_prob(pictures).exp()
    x = pictures[p.argmax()]  # what is known of it is nothing rare
    agree = ((pictures == x) | ~known).flatten(1).all(1)
    torch.manual_seed(2)
    hidden = torch.where(
        known, x, torch.full_like(x, float("nan"))
    )  # what is not known is not looked at
    draws = model.complete(hidden.expand(n, *x.shape), known)
    assert torch.equal(draws[:, known], x[known].expand(n, -1))
    observed = torch.bincount(number(draws, model.spec), minlength=len(p)).double()
    conditional = (p / p[agree].sum())[agree]
    often = n * conditional > 5
    pool = lambda v: torch.cat([v[often], v[~often].sum()[None]])  # noqa: E731
    assert observed[~agree].sum() == 0 and often.sum() > 1
    assert fits(pool(observed[agree]), pool(n * conditional).clamp(min=1e-9))


def test_complete_takes_a_mask_for_each_picture():
    model = build("pixelcnn")
    x = every_picture(model.spec)[torch.randperm(512)[:50]]
    known = torch.rand_like(x) < 0.5
    draws = model.complete(x, known)
    assert torch.equal(draws[known], x[known]) and not torch.equal(draws, x)
    assert torch.equal(model.complete(x, torch.ones_like(known)), x)


# --- likelihoods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.0, 4.0), (30.0, 1.0), (0.0, 30.0)])
def test_mixture_of_logistics_sums_to_one_over_256_levels(channels, shift, scale):
    """Of a channel given the ones before it; also where the means are far off the range and the scales at their least."""
    spec = Spec((channels, 1, 1), levels=256, range=(0.0, 1.0))
    likelihood = MixtureOfLogistics(spec, components=4)
    torch.manual_seed(0)
    out = shift + scale * torch.randn(1, likelihood.params, 1, 1, dtype=torch.float64)
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
    first = MixtureOfLogistics(Spec((channels - 1, 1, 1), range=(0.0, 1.0)), components=4)
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
    """Equation 2 of the paper, with its edges, and the means of section 2.2, written out for red, green and blue."""
    likelihood = MixtureOfLogistics(Spec((3, 1, 1)), components=2)
    torch.manual_seed(0)
    out = torch.randn(400, likelihood.params, 1, 1, dtype=torch.float64)
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
    likelihood = MixtureOfLogistics(Spec((3, 2, 2)), components=3)
    torch.manual_seed(0)
    x = torch.tensor([-1.0, 1.0, 0.0039215686]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    for scale in (0.0, 1.0, 50.0):
        out = (scale * torch.randn(3, likelihood.params, 2, 2)).requires_grad_()
        likelihood.log_prob(out, x).sum().backward()
        assert torch.isfinite(out.grad).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_and_values_are_each_others_inverse(levels, bounds):
    likelihood = Categorical(Spec((1, 4, 4), levels=levels, range=bounds))
    index = torch.arange(levels)
    values = likelihood.value(index, torch.zeros(()))
    assert values[0] == bounds[0] and values[-1] == pytest.approx(bounds[1], abs=1e-6)
    assert torch.equal(likelihood.index(values), index)


def test_bernoulli_is_a_categorical_of_two():
    spec = Spec((1, 2, 2), levels=2, range=(-1.0, 1.0))
    logit = torch.randn(5, 1, 1, 2, 2, dtype=torch.float64)
    x = torch.randint(2, (5, 1, 2, 2)).double() * 2 - 1
    two = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(
        Bernoulli(spec).log_prob(logit, x), Categorical(spec).log_prob(two, x)
    )


REFUSALS = [
    (PixelCNN, Spec((1, 4, 4)), {}, "prepare.binarize=dynamic"),
    (MADE, Spec((1, 4, 4)), {}, "model.likelihood=categorical"),
    (PixelCNNpp, Spec((1, 4, 4), dequantised=True), {}, "prepare.dequantise=false"),
    (MADE, Spec((4,), kind="points", levels=0), {}, "take images"),
    (PixelCNN, Spec((1, 4, 4), levels=2), {"conditional": True}, "model.conditional=false"),
    (PixelCNN, Spec((1, 4, 4), levels=2), {"kernel": 4}, "model.kernel=5"),
    (PixelCNN, Spec((3, 4, 4), levels=2), {"channels": 16}, "divisible by 3"),
    (MADE, Spec((1, 4, 4), levels=2), {"masks": 2}, "model.order_agnostic=true"),
]


@pytest.mark.parametrize("cls, spec, options, says", REFUSALS)
def test_refuses_data_and_options_that_do_not_fit(cls, spec, options, says):
    with pytest.raises(UserError, match=says):
        cls(spec, **options)


@each
def test_refuses_classes_that_it_does_not_know(name):
    model = build(name)
    with pytest.raises(UserError, match="model.conditional=true"):
        model.sample(1, torch.tensor([0]))
    with pytest.raises(UserError, match="model.conditional=true"):
        model.log_prob(every_picture(model.spec)[:1], torch.tensor([0]))


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_a_pixelcnn_s_gates_start_with_inputs_of_unit_variance(channels):
    """However deep: with the usual start a gate's output has a third of its input's deviation, and ten of them say nothing."""
    torch.manual_seed(0)
    model = PixelCNN(
        Spec((channels, 16, 16), levels=2, range=(0.0, 1.0)), channels=48, layers=10, hidden=48
    )
    u = torch.randn(8, channels, 16, 16)
    v, h = model.first(torch.nn.functional.pad(u, (0, 0, 1, 0))[:, :, :-1], u, None)
    for layer in model.layers:
        above = layer.vertical(v)[:, :, : v.shape[2]]
        assert 0.6 < above[:, :, 2:].std() < 1.5
        v, h = layer(v, h, None)
    assert 0.6 < h.std() < 2  # a residual sum
