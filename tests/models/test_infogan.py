"""InfoGAN: its bound against the distributions, the parts of its codes, and purity."""

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
from genlab.metrics import cluster_purity
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.models.gan.infogan import InfoGAN
from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, DataSpec

IMAGES = DataSpec((1, 8, 8), num_classes=3, range=(0.0, 1.0))


def small(**options) -> InfoGAN:
    torch.manual_seed(0)
    return InfoGAN(
        IMAGES, **{"latent": 5, "num_categories": 4, "num_continuous": 2, "width": 2, **options}
    ).double()


def batch_of(n: int = 8) -> Batch:
    return Batch(torch.rand(n, *IMAGES.shape, dtype=torch.float64), torch.arange(n) % 3)


@pytest.mark.parametrize("conditional", [False, True])
def test_prior_concatenates_noise_category_continuous_codes_and_class(conditional):
    model = small(conditional=conditional)
    y = torch.arange(6000) % 3 if conditional else None
    noise, category, c, classes = model.prior(6000, y).split(model.code_sizes, 1)
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


def test_code_losses_are_negative_log_q():
    model = small(categorical_weight=0.7, continuous_weight=0.3).eval()
    z, h = model.prior(9), torch.randn(9, 32, dtype=torch.float64)
    log_q, mean, log_var = model.code_posterior(h)
    _, category, c, _ = z.split(model.code_sizes, 1)
    found = model.code_recovery_losses(z, h)
    expected = -Categorical(logits=log_q).log_prob(category.argmax(1)).mean()
    torch.testing.assert_close(found["categorical"], 0.7 * expected)
    expected = -Normal(mean, (log_var / 2).exp()).log_prob(c).sum(1).mean()
    torch.testing.assert_close(found["continuous"], 0.3 * expected)
    assert set(
        small(num_continuous=0).code_recovery_losses(*(small(num_continuous=0).prior(2), h[:2]))
    ) == {"categorical"}


def test_uninformed_q_has_the_entropy_as_loss():
    model = small(continuous_weight=1.0)
    for parameter in model.discriminator.recognition[-1].parameters():
        nn.init.zeros_(parameter)
    z = model.prior(7)
    found = model.code_recovery_losses(z, torch.randn(7, 32, dtype=torch.float64))
    assert found["categorical"].item() == pytest.approx(
        math.log(4), abs=1e-12
    )  # L_I = H(c) − log 4 = 0
    c = z.split(model.code_sizes, 1)[2]
    assert found["continuous"].item() == pytest.approx(
        (c.square().sum(1).mean() / 2 + math.log(2 * math.pi)).item(), abs=1e-12
    )


def test_both_networks_minimize_code_losses_and_only_d_trains_q():
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


def test_encode_combines_the_means_of_q_and_prior():
    model = small(conditional=True).eval()
    x = batch_of(3).x
    noise, category, c, classes = model.encode(x).split(model.code_sizes, 1)
    log_q, mean, _ = model.code_posterior(model.discriminator.extract_features(x))
    torch.testing.assert_close(category, log_q.exp())
    assert (
        torch.equal(c, mean)
        and not noise.any()
        and torch.equal(classes, torch.full_like(classes, 1 / 3))
    )
    assert torch.equal(model.category(model.encode(x)), log_q.argmax(1))
    assert model.decode(model.encode(x)).shape == x.shape


def test_infogan_matches_the_papers_sizes():
    model = InfoGAN(DataSpec((1, 28, 28), range=(0.0, 1.0)))
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
        (DataSpec((1, 30, 30)), {}, r"preprocess\.size=32"),
        (DataSpec((2,), kind="points"), {}, "images"),
        (IMAGES, {"conditional": True, "condition": "concat"}, r"model\.condition=projection"),
    ],
)
def test_unsuitable_data_is_refused(spec, options, says):
    with pytest.raises(UserError, match=says):
        InfoGAN(spec, **options)


# --- commands on codes ------------------------------------------------------------------------


@pytest.fixture
def run_traverse(train_run, tmp_path):
    """A function that runs `genlab traverse` on a conditional InfoGAN.

    It returns the run, the names of the images, and the record with the arrays.
    """
    folder = train_run(
        "model=infogan",
        "model.width=2",
        "model.latent=5",
        "model.num_categories=4",
        "model.conditional=true",
    )
    run = entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})

    def traverse_with(**options):
        record = traverse.traverse(run, **options, output_dir=str(tmp_path / "asked"))
        (arrays,) = (tmp_path / "asked").glob("*.npz")
        with np.load(arrays) as held:
            found = {**record, **{key: torch.from_numpy(held[key]) for key in held}}
        return (
            run,
            {path.stem.rpartition("_")[2] for path in (tmp_path / "asked").glob("*.png")},
            found,
        )

    return traverse_with


@pytest.mark.parametrize(
    ("options", "y"),
    [({}, 0), ({"label": 7}, 7), ({"item": 3}, 0), ({"item": 3, "label": 7}, 7)],
    ids=str,
)
def test_traverse_enumerates_one_hot_parts(run_traverse, options, y):
    run, pictures, found = run_traverse(n=100, frames=3, **options)
    model, z = run.model, found["start"]
    assert pictures >= {"category", "class"}
    _, category, c, classes = z.split(model.code_sizes)
    assert torch.equal(classes, one_hot(torch.tensor(y), 10).float())
    assert category.sum() == 1 and set(category.tolist()) == {0, 1}
    assert sorted(found["dims"].tolist()) == [*range(5), 9, 10], "noise and continuous codes"
    if "item" in options:
        mean = model.encode(run.dataset.items("test", torch.tensor([3])).x)
        assert category.argmax() == model.category(mean)[0] and torch.equal(
            c, mean[0].split(model.code_sizes)[2]
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
def test_traverse_refuses_dimensions_of_one_hot_parts(run_traverse, dim, name):
    with pytest.raises(UserError, match=rf"dimension {dim} .* its {name}.*leave {dim} out"):
        run_traverse(dims=[0, dim])


# --- purity -----------------------------------------------------------------------------------


def test_purity_by_hand():
    categories, classes = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([2, 2, 1, 0, 2, 1])
    assert cluster_purity.cluster_purity(categories, classes) == pytest.approx((2 + 1 + 1) / 6)
    y = torch.arange(30) % 3
    assert (
        cluster_purity.cluster_purity(y, y) == cluster_purity.cluster_purity((y + 1) % 3, y) == 1
    ), "the names of the categories do not matter"
    assert cluster_purity.cluster_purity(torch.zeros(30).long(), y) == pytest.approx(1 / 3)
    assert cluster_purity.cluster_purity(torch.arange(30), y) == 1, (
        "one category per item has purity 1"
    )


class BrightnessModel(nn.Module):
    """Images of brightness 40 × class; finds a permuted class, and 1 in 10 samples is wrong."""

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


def brightness_classifier(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of bytes (B, 1, 8, 8) of brightness 40 × class, as a classifier does."""
    logits = one_hot(x[:, 0, 0, 0].long() // 40, 3).float()
    return logits, logits


brightness_classifier.conditions = {"features": "brightness_classifier"}


def test_code_purity_and_sample_purity():
    y = torch.arange(50) % 3
    x = (40 / 255 * y[:, None, None, None]).expand(-1, 1, 8, 8)
    data = SimpleNamespace(
        spec=IMAGES, stacked=False, head=lambda split, n, seed, device="cpu": Batch(x[:n], y[:n])
    )
    context = MetricContext(data, Settings(n=30), model=BrightnessModel())
    context._extractors["classifier"] = brightness_classifier
    names = ["code_purity", "code_nmi", "code_ari", "sample_purity"]
    assert cluster_purity.row_names(context) == names
    found, nmi, ari, sampled = cluster_purity.measure(context)
    assert found.value == nmi.value == ari.value == 1 and sampled.value == pytest.approx(0.9)
    assert found.conditions == {"n": 30, "split": "test", "seed": 0, "categories": 3}
    assert sampled.error == pytest.approx(math.sqrt(0.9 * 0.1 / 30))
    data.stacked = True
    assert cluster_purity.row_names(context) == names[:3]
    assert cluster_purity.row_names(SimpleNamespace(model=nn.Linear(1, 1), spec=IMAGES)) == [], (
        "it has no categories"
    )


def test_training_makes_the_category_recoverable():
    torch.manual_seed(0)
    model = InfoGAN(IMAGES, latent=4, num_categories=2, num_continuous=1, width=4).train()
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
    trainer = GANTrainer(model, adam, GANTrainer.Options(batch_size=16), device=Device(name="cpu"))
    bars = torch.zeros(2, 1, 8, 8)  # bright on the left, or on the right
    bars[0, :, :, :4], bars[1, :, :, 4:] = 1, 1
    batch = Batch(bars[torch.arange(16) % 2], torch.arange(16) % 2)
    first, *_, last = [trainer.train_step(iter([batch]))["categorical"].item() for _ in range(120)]
    assert abs(first - math.log(2)) < 0.1 and last < 0.2  # −log Q, from chance level
