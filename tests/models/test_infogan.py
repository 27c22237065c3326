"""InfoGAN: its bound against the distributions, the parts of its codes, and the purity of what it finds."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn.functional import one_hot

from genlab.builders import entrypoints
from genlab.commands import traverse
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.metrics import Settings, cluster_purity
from genlab.metrics.context import Subject
from genlab.models.gan.infogan import InfoGAN
from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, Spec

IMAGES = Spec((1, 8, 8), classes=3, range=(0.0, 1.0))


def small(**options) -> InfoGAN:
    torch.manual_seed(0)
    return InfoGAN(
        IMAGES, **{"latent": 5, "categories": 4, "continuous": 2, "width": 2, **options}
    ).double()


def batch_of(n: int = 8) -> Batch:
    return Batch(torch.rand(n, *IMAGES.shape, dtype=torch.float64), torch.arange(n) % 3)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_code_is_noise_a_category_continuous_codes_and_the_class(conditional):
    model = small(conditional=conditional)
    y = torch.arange(6000) % 3 if conditional else None
    noise, category, c, classes = model.prior(6000, y).split(model.sizes, 1)
    assert torch.equal(category.sum(1), torch.ones(6000).double()) and set(
        category.unique().tolist()
    ) == {0, 1}
    torch.testing.assert_close(category.mean(0), torch.full((4,), 0.25).double(), atol=0.03, rtol=0)
    assert (
        c.abs().max() <= 1
        and c.var(0).sub(1 / 3).abs().max() < 0.02
        and noise.var(0).sub(1).abs().max() < 0.1
    )
    assert classes.shape[1] == 3 * conditional and (
        not conditional or torch.equal(classes.argmax(1), y)
    )


def test_what_is_recovered_is_minus_the_log_of_q():
    model = small(categorical_weight=0.7, continuous_weight=0.3).eval()
    z, h = model.prior(9), torch.randn(9, 32, dtype=torch.float64)
    log_q, mean, log_var = model.recognised(h)
    _, category, c, _ = z.split(model.sizes, 1)
    found = model.recovered(z, h)
    expected = -Categorical(logits=log_q).log_prob(category.argmax(1)).mean()
    torch.testing.assert_close(found["categorical"], 0.7 * expected)
    expected = -Normal(mean, (log_var / 2).exp()).log_prob(c).sum(1).mean()
    torch.testing.assert_close(found["continuous"], 0.3 * expected)
    assert set(small(continuous=0).recovered(*(small(continuous=0).prior(2), h[:2]))) == {
        "categorical"
    }


def test_a_q_that_knows_nothing_pays_the_entropy():
    model = small(continuous_weight=1.0)
    for parameter in model.discriminator.recognition[-1].parameters():
        nn.init.zeros_(parameter)
    z = model.prior(7)
    found = model.recovered(z, torch.randn(7, 32, dtype=torch.float64))
    assert found["categorical"].item() == pytest.approx(
        math.log(4), abs=1e-12
    )  # L_I = H(c) − log 4 = 0
    c = z.split(model.sizes, 1)[2]
    assert found["continuous"].item() == pytest.approx(
        (c.square().sum(1).mean() / 2 + math.log(2 * math.pi)).item(), abs=1e-12
    )


def test_both_players_pay_and_only_d_learns_to_read():
    model = small().train()
    for player, opponent in (("discriminator", "generator"), ("generator", "discriminator")):
        model.zero_grad()
        losses = getattr(model, f"{player}_loss")(batch_of())
        parts = [v for k, v in losses.items() if k.startswith(("categorical", "continuous"))]
        assert len(parts) == 2
        theirs = list(getattr(model, opponent).parameters())
        mine = list(getattr(model, player).parameters())
        gradients = torch.autograd.grad(sum(parts), mine, retain_graph=True, allow_unused=True)
        reading = {id(p) for p in model.discriminator.recognition.parameters()}
        for p, g in zip(mine, gradients, strict=True):
            assert g is not None or (player == "discriminator" and p.shape[0] == 1), (
                "all but D's own head"
            )
            assert id(p) not in reading or g.abs().max() > 0
        losses["loss"].backward(inputs=mine)
        assert all(p.grad is None for p in theirs)


def test_encode_is_the_mean_that_q_and_the_prior_tell():
    model = small(conditional=True).eval()
    x = batch_of(3).x
    noise, category, c, classes = model.encode(x).split(model.sizes, 1)
    log_q, mean, _ = model.recognised(model.discriminator.seen(x))
    torch.testing.assert_close(category, log_q.exp())
    assert (
        torch.equal(c, mean)
        and not noise.any()
        and torch.equal(classes, torch.full_like(classes, 1 / 3))
    )
    assert torch.equal(model.category(model.encode(x)), log_q.argmax(1))
    assert model.decode(model.encode(x)).shape == x.shape


def test_infogan_has_the_papers_sizes():
    model = InfoGAN(Spec((1, 28, 28), range=(0.0, 1.0)))
    shapes = [
        tuple(m.weight.shape)
        for m in model.generator
        if hasattr(m, "weight") and m.weight.dim() > 1
    ]
    assert shapes == [(1024, 74), (7 * 7 * 128, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    D = model.discriminator
    shapes = [
        tuple(m.weight.shape) for m in D.features if hasattr(m, "weight") and m.weight.dim() > 1
    ]
    assert shapes == [(64, 1, 4, 4), (128, 64, 4, 4), (1024, 7 * 7 * 128)]
    assert [m.out_features for m in D.recognition if isinstance(m, nn.Linear)] == [
        128,
        14,
    ] and D.head.in_features == 1024


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        (Spec((1, 30, 30)), {}, r"prepare\.size=32"),
        (Spec((2,), kind="points"), {}, "images"),
        (IMAGES, {"conditional": True, "condition": "concat"}, r"model\.condition=projection"),
    ],
)
def test_refuses_what_does_not_fit(spec, options, says):
    with pytest.raises(UserError, match=says):
        InfoGAN(spec, **options)


# --- what its codes can be asked --------------------------------------------------------------------------------------


@pytest.fixture
def moved(trained, tmp_path):
    """`moved(item=3)` asks `genlab traverse` of a conditional InfoGAN: its run, its pictures' names, and what it wrote."""
    folder = trained(
        "model=infogan",
        "model.width=2",
        "model.latent=5",
        "model.categories=4",
        "model.conditional=true",
    )
    run = entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})

    def ask(**options):
        record = traverse.traverse(run, **options, out=str(tmp_path / "asked"))
        (arrays,) = (tmp_path / "asked").glob("*.npz")
        with np.load(arrays) as held:
            found = {**record, **{key: torch.from_numpy(held[key]) for key in held}}
        return (
            run,
            {path.stem.rpartition("_")[2] for path in (tmp_path / "asked").glob("*.png")},
            found,
        )

    return ask


@pytest.mark.parametrize(
    ("options", "y"), [({}, 0), ({"y": 7}, 7), ({"item": 3}, 0), ({"item": 3, "y": 7}, 7)], ids=str
)
def test_traverse_goes_through_the_values_of_a_choice_and_moves_none(moved, options, y):
    run, pictures, found = moved(n=100, frames=3, **options)
    model, z = run.model, found["start"]
    assert pictures >= {"category", "class"}
    _, category, c, classes = z.split(model.sizes)
    assert torch.equal(classes, one_hot(torch.tensor(y), 10).float())
    assert category.sum() == 1 and set(category.tolist()) == {0, 1}
    assert sorted(found["dims"].tolist()) == [*range(5), 9, 10], "noise and continuous codes"
    if "item" in options:
        mean = model.encode(run.dataset.items("test", torch.tensor([3])).x)
        assert category.argmax() == model.category(mean)[0] and torch.equal(
            c, mean[0].split(model.sizes)[2]
        )
    for name, size, first in (("category", 4, 5), ("class", 10, 11)):
        codes = z.repeat(size, 1)
        codes[:, first : first + size] = torch.eye(size)
        with torch.no_grad():
            torch.testing.assert_close(found[name], model.decode(codes))
            apart = (found[name] - model.decode(z[None])).double().square().flatten(1).sum(1)
        torch.testing.assert_close(found["effect"][first : first + size], apart)
        assert apart[z[first : first + size].argmax()] < 1e-4 * apart.max(), (
            "the start has a value of its own"
        )


@pytest.mark.parametrize(
    ("dim", "name"), [(5, "category"), (8, "category"), (11, "class"), (20, "class")]
)
def test_a_value_of_a_choice_is_no_dimension(moved, dim, name):
    with pytest.raises(UserError, match=rf"dimension {dim} .* its {name}.*leave {dim} out"):
        moved(dims=[0, dim])


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_purity_by_hand():
    categories, classes = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([2, 2, 1, 0, 2, 1])
    assert cluster_purity.purity(categories, classes) == pytest.approx((2 + 1 + 1) / 6)
    y = torch.arange(30) % 3
    assert cluster_purity.purity(y, y) == cluster_purity.purity((y + 1) % 3, y) == 1, (
        "the names of the categories do not matter"
    )
    assert cluster_purity.purity(torch.zeros(30).long(), y) == pytest.approx(1 / 3)
    assert cluster_purity.purity(torch.arange(30), y) == 1, "a category each tells nothing"


class Finds(nn.Module):
    """A model of images that are 40 × class bright, which finds the class up to its name, and draws one of 10 wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def encode(self, x):
        return one_hot(((x * 255 / 40).mean((1, 2, 3)).round().long() + 1) % 3, 3).float()

    def category(self, z):
        return z.argmax(1)

    def prior(self, n):
        return one_hot(torch.arange(n) % 3, 3).float()

    def decode(self, z):
        y = (self.category(z) + 2) % 3
        y = torch.where(torch.arange(len(z)) % 10 == 0, (y + 1) % 3, y)
        return (40 / 255 * y[:, None, None, None]).expand(-1, 1, 8, 8)

    def sample(self, n, y=None):
        return self.decode(self.prior(n))


def reads(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of bytes (B, 1, 8, 8) that are 40 × class bright, in the form of a classifier."""
    logits = one_hot(x[:, 0, 0, 0].long() // 40, 3).float()
    return logits, logits


reads.conditions = {"features": "reads"}


def test_purity_of_items_and_of_samples():
    y = torch.arange(50) % 3
    x = (40 / 255 * y[:, None, None, None]).expand(-1, 1, 8, 8)
    data = SimpleNamespace(
        spec=IMAGES, take=lambda split, n, seed, device="cpu": Batch(x[:n], y[:n])
    )
    subject = Subject(data, Settings(n=30), model=Finds())
    subject._extractors["classifier"] = reads
    assert cluster_purity.rows(subject) == ["code_purity", "sample_purity"]
    found, made = cluster_purity.measure(subject)
    assert found.value == 1 and made.value == pytest.approx(0.9)
    assert found.conditions == {"n": 30, "split": "test", "seed": 0, "categories": 3}
    assert made.error == pytest.approx(math.sqrt(0.9 * 0.1 / 30))
    data.stacked = True
    assert cluster_purity.rows(subject) == ["code_purity"]
    assert cluster_purity.rows(SimpleNamespace(model=nn.Linear(1, 1), spec=IMAGES)) == [], (
        "it has no categories"
    )


def test_training_makes_the_category_legible():
    torch.manual_seed(0)
    model = InfoGAN(IMAGES, latent=4, categories=2, continuous=1, width=4).train()
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
    trainer = GANTrainer(model, adam, GANTrainer.Options(batch_size=16), device=Device(name="cpu"))
    bars = torch.zeros(2, 1, 8, 8)  # bright on the left, or on the right
    bars[0, :, :, :4], bars[1, :, :, 4:] = 1, 1
    batch = Batch(bars[torch.arange(16) % 2], torch.arange(16) % 2)
    first, *_, last = [trainer.advance(iter([batch]))["categorical"].item() for _ in range(120)]
    assert abs(first - math.log(2)) < 0.1 and last < 0.2  # −log Q, from knowing nothing
