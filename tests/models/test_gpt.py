"""GPTs against the definitions: causality, normalization, cache, sliding window."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from genlab.errors import UserError
from genlab.models.autoregressive.gpt import scale_and_filter_logits
from genlab.models.autoregressive.gpt_pixels import GPTPixels
from genlab.models.autoregressive.gpt_text import GPTText
from genlab.nn.transformer import CausalAttention, apply_rotary, rotary_cos_sin
from genlab.spec import Batch, DataSpec

SMALL = {"num_layers": 2, "num_heads": 2, "width": 8}


def token_spec(length: int = 6, vocab: int = 3) -> DataSpec:
    return DataSpec((length,), kind="tokens", levels=0, vocab=vocab, symbols="abcdefghij"[:vocab])


def randomize(model: torch.nn.Module, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Return the model with large random parameters, so that tokens are not equally likely."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return model.to(dtype).eval()


def make_text(
    length: int = 6, vocab: int = 3, dtype: torch.dtype = torch.float64, **options
) -> GPTText:
    return randomize(GPTText(token_spec(length, vocab), **(SMALL | options)), dtype)


def make_pixels(
    shape: tuple[int, int, int] = (1, 3, 3),
    levels: int = 2,
    *,
    classes: int = 0,
    dtype=torch.float64,
    **options,
) -> GPTPixels:
    spec = DataSpec(shape, levels=levels, num_classes=classes, range=(-1.0, 1.0))
    return randomize(GPTPixels(spec, **(SMALL | options)), dtype)


# --- probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("rotary", [False, True])
def test_token_depends_only_on_earlier_tokens(rotary):
    model = make_text(7, rotary=rotary)
    decoder, x = model.decoder, torch.tensor([[0, 2, 1, 1, 0, 2, 1]])
    vectors = decoder.tokens(x).detach().requires_grad_()
    before = torch.cat([decoder.start(model.start_tokens(1))[:, None], vectors[:, :-1]], 1)
    logits = decoder.logits(decoder.transformer(before))[0]  # (T, vocab)
    torch.testing.assert_close(logits, decoder(x, model.start_tokens(1))[0])
    reach = torch.stack(
        [
            torch.autograd.grad(logits[t].square().sum(), vectors, retain_graph=True)[0][0]
            .abs()
            .sum(1)
            for t in range(7)
        ]
    )
    assert torch.equal(
        reach > 0, torch.ones(7, 7, dtype=torch.bool).tril(-1)
    )  # all earlier tokens, and no others


def test_attention_matches_its_formula():
    layer = CausalAttention(6, num_heads=2).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(6, -1)
    found = torch.zeros_like(x)
    for b, h, t in itertools.product(range(2), range(2), range(5)):
        part = slice(3 * h, 3 * h + 3)
        weights = (k[b, : t + 1, part] @ q[b, t, part] / math.sqrt(3)).softmax(0)
        found[b, t, part] = weights @ v[b, : t + 1, part]
    torch.testing.assert_close(layer(x), layer.out(found))


def test_products_of_rotated_vectors_depend_only_on_the_distance():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 20, 8)
    rotation = rotary_cos_sin(20, 8).double()
    products = apply_rotary(q, rotation) @ apply_rotary(k, rotation).T  # (20, 20)
    for distance in range(-19, 20):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=0)
    assert products[0].std() > 0.1
    turned = torch.view_as_complex(
        q.unflatten(1, (2, 4)).transpose(1, 2).contiguous()
    )  # (20, 4): pairs as complex numbers
    angles = torch.outer(torch.arange(20.0), 10_000 ** (-torch.arange(4) / 4)).double()
    torch.testing.assert_close(
        apply_rotary(q, rotation)[:, :4],
        (turned * torch.polar(torch.ones_like(angles), angles)).real,
    )


@pytest.mark.parametrize("length", [1, 2, 6])
def test_probabilities_of_all_texts_sum_to_one(length):
    model = make_text(length)
    every = torch.tensor(list(itertools.product(range(3), repeat=length)))
    log_p = model.log_prob(every)
    assert log_p.std() > 0.1 or length == 1
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(model.loss(Batch(every))["loss"], -log_p.mean() / length)


def all_images(model: GPTPixels) -> torch.Tensor:
    levels = torch.linspace(*model.spec.range, model.spec.levels, dtype=torch.float64)
    every = torch.cartesian_prod(*[levels] * model.spec.dim)
    return every.view(-1, *model.spec.shape)


@pytest.mark.parametrize(("shape", "levels"), [((1, 3, 3), 2), ((3, 1, 2), 3), ((1, 2, 2), 5)])
def test_probabilities_of_all_images_sum_to_one(shape, levels):
    model = make_pixels(shape, levels)
    x = all_images(model)
    assert len(x) == levels**model.spec.dim
    torch.testing.assert_close(model.tokens_to_images(model.images_to_tokens(x)), x)
    assert model.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_each_class_has_its_own_distribution():
    model = make_pixels((1, 2, 2), 3, classes=4, conditional=True)
    x = all_images(model)
    each = torch.stack([model.log_prob(x, torch.full((len(x),), k)) for k in range(4)])  # (4, 81)
    torch.testing.assert_close(each.exp().sum(1), torch.ones(4, dtype=torch.float64))
    assert (each[0] - each[1]).abs().max() > 0.1
    torch.testing.assert_close(model.log_prob(x).exp(), each.exp().mean(0))
    y = torch.arange(81) % 4
    loss = model.loss(Batch(x, y))["loss"]
    torch.testing.assert_close(loss, -each[y, torch.arange(81)].mean() / 4)


def test_tokens_alternate_between_colors():
    model = make_pixels((3, 1, 2), 7)
    x = model.tokens_to_images(torch.tensor([[0, 1, 2, 3, 4, 5]]))
    assert (x[0, :, 0] * 3 + 3).round().tolist() == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]  # the two pixels of each channel


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("prompt", "n"), [(0, 12), (5, 30), (12, 15), (20, 9)])
def test_cache_does_not_change_tokens(prompt, n, dtype, rotary):
    model = make_text(12, 10, dtype, rotary=rotary)
    x = torch.randint(10, (3, prompt))
    draws = []
    for cache in (True, False):
        torch.manual_seed(1)
        draws.append(model.extend(x, n, cache=cache))
    assert torch.equal(*draws)
    assert torch.equal(draws[0][:, :prompt], x) and draws[0].shape == (3, prompt + n)
    assert draws[0].unique().numel() > 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cache_does_not_change_pixels(dtype):
    model = make_pixels((3, 4, 5), 16, classes=3, dtype=dtype, conditional=True)
    draws = []
    for cache in (True, False):
        torch.manual_seed(1)
        draws.append(model.sample(4, torch.tensor([0, 1, 2, 0]), cache=cache))
    assert torch.equal(*draws) and draws[0].dtype == dtype


@pytest.mark.parametrize("cache", [True, False])
def test_samples_follow_the_probabilities(cache):
    model = make_text(3, 2)
    every = torch.tensor(list(itertools.product(range(2), repeat=3)))
    p = model.log_prob(every).exp()
    counts = torch.bincount(
        model.sample(20_000, cache=cache) @ torch.tensor([4, 2, 1]), minlength=8
    )
    chi2 = ((counts - 20_000 * p).square() / (20_000 * p)).sum().item()
    assert chi2 < 24.3  # 7 degrees of freedom, p = 0.001


@pytest.mark.parametrize("cache", [True, False])
def test_window_slides_by_halves_beyond_the_context(cache):
    """Each token is the most probable one given the start token and the window."""
    model, context = make_text(8, 10), 8
    x = model.extend(torch.tensor([[3, 1]]), 30, temperature=0.0, cache=cache)[0]
    first, firsts = 0, []
    for t in range(2, 32):
        if t - first == context:  # the start token and 8 tokens exceed the context by one
            first = t - context // 2 + 1
        firsts.append(first)
        logits = model.decoder(torch.cat([x[first:t], x[:1]])[None], model.start_tokens(1))[0, -1]
        assert x[t] == logits.argmax()
    assert sorted(set(firsts)) == [0, 5, 10, 15, 20, 25]  # a new window every 5 tokens


def test_long_prompt_is_cut_to_its_newest_part():
    model, x = make_text(8, 10), torch.randint(10, (2, 50))
    logits = model.decoder(torch.cat([x[:, -7:], x[:, :1]], 1), model.start_tokens(2))[:, -1]
    assert torch.equal(model.extend(x, 1, temperature=0.0)[:, -1], logits.argmax(-1))


def test_inpainting_draws_from_the_conditional_distribution():
    model = make_pixels((1, 2, 2), 3)
    x = all_images(model)[[50]].expand(8_000, 1, 2, 2)
    known = torch.tensor([[[True, True], [False, False]]])
    done = model.inpaint(x, known)
    assert torch.equal(done[:, :, 0], x[:, :, 0])
    every = all_images(model)
    fitting = every[(every[:, :, 0] == x[0, :, 0]).all((1, 2))]  # (9, 1, 2, 2)
    p = (model.log_prob(fitting) - model.log_prob(fitting).logsumexp(0)).exp()
    share = (done.flatten(1)[:, None] == fitting.flatten(1)).all(2).double().mean(0)
    assert (share - p).abs().max() < 4 * math.sqrt(0.25 / 8_000)
    later = model.inpaint(
        x, ~known.flip(1)
    )  # here the known pixels come last and cannot affect earlier ones
    assert torch.equal(later[:, :, 0], x[:, :, 0])


# --- filtering of logits --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 1.0])
def test_filter_logits_matches_its_definition(temperature, top_k, top_p):
    logits = torch.randn(5, 7, dtype=torch.float64)
    found = scale_and_filter_logits(
        logits, temperature=temperature, top_k=top_k, top_p=top_p
    ).softmax(-1)
    for row, p_found in zip(logits, found, strict=True):
        p = (row / temperature).softmax(0)
        kept = sorted(range(7), key=lambda i: -p[i].item())[:top_k]
        if top_p is not None:
            total = sum(p[i].item() for i in kept)
            sums = itertools.accumulate(p[i].item() / total for i in kept)
            kept = kept[
                : 1 + next((i for i, s in enumerate(sums) if s >= top_p - 1e-12), len(kept))
            ]
        expected = torch.zeros(7, dtype=torch.float64)
        expected[kept] = p[kept] / p[kept].sum()
        torch.testing.assert_close(p_found, expected)


def test_temperature_zero_selects_the_most_probable_token():
    logits = torch.randn(100, 9)
    for temperature in (0.0, 1e-4):
        p = scale_and_filter_logits(logits, temperature=temperature).softmax(-1)
        torch.testing.assert_close(p, F.one_hot(logits.argmax(-1), 9).float(), atol=1e-3, rtol=0)


# --- training and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("model", [make_text(bias=True), make_pixels()])
def test_weight_decay_applies_to_matrices_only(model):
    groups = model.parameter_groups()
    assert [p.ndim for p in groups[1]["params"]] == [1] * len(groups[1]["params"]) and groups[1][
        "weight_decay"
    ] == 0
    assert all(p.ndim == 2 for p in groups[0]["params"]) and "weight_decay" not in groups[0]
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_text(num_heads=3), "model.num_heads=3"),
        (lambda: make_pixels(num_heads=3), "model.num_heads=3"),
        (lambda: make_text(num_heads=8, rotary=True), "model.rotary=true"),
        (lambda: GPTText(DataSpec((1, 3, 3))), "dataset=text"),
        (lambda: GPTPixels(token_spec()), "needs images"),
        (lambda: GPTPixels(DataSpec((1, 3, 3), dequantized=True)), "dataset.dequantize=false"),
        (lambda: make_pixels(conditional=True), "model.conditional=false"),
        (lambda: make_text().sample(1, torch.tensor([0])), "does not support labels"),
        (lambda: make_pixels().sample(1, torch.tensor([0])), "model.conditional=true"),
    ],
)
def test_error_names_the_fix(make, message):
    with pytest.raises(UserError, match=message):
        make()
