"""text_gan: GAN-CLS, GAN-INT and sampling from captions (Reed et al. 2016)."""

from __future__ import annotations

import pytest
import torch

from genlab.data.captions import caption_spec, encode_captions_as_bytes
from genlab.errors import UserError
from genlab.models.gan.losses import LOSSES
from genlab.models.gan.text_gan import TextGAN
from genlab.spec import Batch, DataSpec

LENGTH = 12
SPEC = DataSpec((1, 16, 16), source=caption_spec(LENGTH))
WORDS = ["a zero", "one", "the two", "three", "a four"]


def small(**options) -> TextGAN:
    torch.manual_seed(0)
    sizes = {"latent": 5, "width": 4, "text_width": 8, "text_layers": 1, "text_heads": 2}
    model = TextGAN(SPEC, **{**sizes, "text_dim": 6, "label_dropout": 0.0, **options})
    return model.double().eval()


def batch(n: int = 4) -> Batch:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, *SPEC.shape, dtype=torch.float64, generator=g) * 2 - 1
    return Batch(x, None, encode_captions_as_bytes(WORDS[:n], LENGTH))


def codes(model: TextGAN, text: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.randn(len(text), model.latent, dtype=torch.float64), text], 1)


def test_discriminator_loss_is_that_of_algorithm_1():
    model, data = small(loss="minimax"), batch()
    D = model.discriminator
    torch.manual_seed(3)
    found = model.discriminator_loss(data)
    torch.manual_seed(3)
    text = D.encode_text(data.cond)
    fake_x = model.generator(codes(model, text))
    wrong_text = D.encode_text(data.cond[[3, 0, 1, 2]])  # that of the next image
    s_r, s_w, s_f = (
        D(*pair).sigmoid() for pair in ((data.x, text), (data.x, wrong_text), (fake_x, text))
    )
    by_hand = -(s_r.log() + ((1 - s_w).log() + (1 - s_f).log()) / 2).mean()
    torch.testing.assert_close(found["loss"], by_hand, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["D(x, wrong)"], s_w.mean())
    torch.testing.assert_close(found["D(x)"], s_r.mean())


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5])
def test_generator_loss_has_captions_between_captions(beta):
    model, data = small(interpolation=beta, interpolation_weight=0.7), batch()
    D = model.discriminator
    torch.manual_seed(3)
    found = model.generator_loss(data)
    torch.manual_seed(3)
    text = D.encode_text(data.cond)
    mixed = beta * text + (1 - beta) * text[[3, 0, 1, 2]]
    total = 0
    for weight, vectors in ((1.0, text), (0.7, mixed)):
        fake = D(model.generator(codes(model, vectors)), vectors)
        total = total - weight * fake.sigmoid().log().mean()
    torch.testing.assert_close(found["loss"], total, rtol=1e-12, atol=0)
    plain = small(interpolation_weight=0.0).generator_loss(data)
    assert "interpolated" not in plain and found["interpolated"] > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularizer", [{"r1": 1.0}, {"spectral_norm": True}], ids=str)
def test_every_loss_trains_the_encoder_by_the_discriminator_only(loss, regularizer):
    model, data = small(loss=loss, label_dropout=0.3, **regularizer).train(), batch()
    D, G = model.discriminator, model.generator
    for player, opponent, losses in (
        (D, G, model.discriminator_loss(data)),
        (G, D, model.generator_loss(data)),
    ):
        model.zero_grad()
        losses["loss"].backward()
        grads = {name: p.grad for name, p in player.named_parameters()}
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
        if player is G:
            assert all(p.grad is None for p in D.encoder.parameters())
        else:
            assert all(p.grad is None for p in opponent.parameters())
            assert D.encoder.bytes.weight.grad.abs().max() > 0


def test_an_image_alone_has_no_mismatching_caption():
    model, data = small(), batch(1)
    found = model.discriminator_loss(data)
    assert "D(x, wrong)" not in found and torch.isfinite(found["loss"])
    assert "interpolated" not in model.generator_loss(data)


def test_samples_follow_the_seed_and_the_prompt():
    model = small()
    for p in model.parameters():  # weights at which the caption matters
        torch.nn.init.normal_(p, std=0.3)
    one, two = (encode_captions_as_bytes([word] * 3, LENGTH) for word in ("a one", "a two"))

    def draw(y):
        torch.manual_seed(0)
        return model.sample(3, y)

    assert torch.equal(draw(one), draw(one)) and not torch.equal(draw(one), draw(two))
    assert torch.equal(draw(None), draw(torch.zeros_like(one)))  # no prompt is an empty caption
    padded = torch.cat([one, torch.zeros(3, 0, dtype=torch.int64)], 1)
    torch.testing.assert_close(
        model.discriminator.encode_text(padded), model.discriminator.encode_text(one[:, :5])
    )
    code = model.prior(3, one)
    assert torch.equal(model.decode(code), model.generator(code)) and code.shape == (3, 5 + 8)


def test_withheld_captions_are_empty():
    model = small(label_dropout=0.5)
    captions = torch.ones(2000, LENGTH, dtype=torch.int64)
    empty = (model.drop_captions_randomly(captions) == 0).all(1)
    assert empty.double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (DataSpec((1, 16, 16)), {}, "dataset=captions"),
        (DataSpec((1, 20, 20), source=caption_spec(8)), {}, "set dataset.size=32"),
        (SPEC, {"text_width": 10}, "multiple of model.text_heads=4"),
    ],
)
def test_refusals_name_the_fix(spec, options, said):
    with pytest.raises(UserError, match=said):
        TextGAN(spec, **options)
