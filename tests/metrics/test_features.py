"""Fréchet and kernel distances and the Inception score, against known values."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from genlab.data.dataset import Dataset
from genlab.errors import UserError
from genlab.metrics import features, frechet, inception_score, kid_mmd
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.features.inception import Inception, find_or_download_weights
from genlab.spec import Batch, DataSpec


def sample_normal(n: int, mean: Tensor, cov: Tensor, *, exact: bool = False) -> Tensor:
    """Draw n items (N, D) of N(mean, cov); `exact`: with just these moments."""
    w = torch.randn(n, len(mean)).double()
    if exact:
        w -= w.mean(0)
        w = torch.linalg.solve_triangular(
            torch.linalg.cholesky(w.T @ w / (n - 1)), w.T, upper=False
        ).T
    values, vectors = torch.linalg.eigh(cov)
    return mean + w @ (vectors * values.clamp(min=0).sqrt()).T


def vector(*values: object) -> Tensor:
    return torch.tensor(values).double()


A, B = vector([2.0, 0.9], [0.9, 1.0]), vector([0.5, -0.6], [-0.6, 3.0])
LINE = vector([1.0, 2.0], [2.0, 4.0])  # singular
ZERO = torch.zeros(2).double()

# --- Fréchet distance -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cov_x", "cov_y"),
    [(A, A), (A, 4 * A), (A, B), (B, A), (A, LINE), (LINE, B), (LINE, LINE), (0 * A, B)],
)
def test_frechet_distance_of_two_normals_is_the_closed_form(cov_x, cov_y):
    """Of 2 × 2 matrices Tr √M is √(Tr M + 2 √det M); the two of a case need not commute."""
    shift = vector(1.0, -2.0)
    product = cov_x @ cov_y
    root = (product.trace() + 2 * product.det().clamp(min=0).sqrt()).sqrt()
    known = 5 + (cov_x.trace() + cov_y.trace() - 2 * root).item()
    value, error = frechet.frechet_distance_and_error(
        sample_normal(50, ZERO, cov_x, exact=True), sample_normal(70, shift, cov_y, exact=True)
    )
    assert value == pytest.approx(known, abs=1e-6 if product.det() < 1e-9 else 1e-10)
    assert 0 < error < math.inf


@pytest.mark.parametrize(
    ("n", "m", "d"), [(300, 200, 30), (20, 300, 30), (20, 25, 30), (300, 20, 30)]
)
def test_frechet_distance_equals_scipy_for_any_rank(n, m, d):
    from scipy.linalg import eigvals

    x, y = (
        torch.randn(n, d).double(),
        (0.3 + torch.randn(m, d) @ torch.randn(d, d) / d**0.5).double(),
    )
    root = (eigvals(x.T.cov().numpy() @ y.T.cov().numpy()).astype(complex) ** 0.5).real.sum()
    known = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - 2 * root
    assert frechet.frechet_distance_and_error(x, y)[0] == pytest.approx(known.item(), rel=1e-6)
    assert frechet.frechet_distance_and_error(x, x)[0] < 1e-9
    assert frechet.frechet_distance_and_error(x, x + 0.5)[0] == pytest.approx(d / 4, rel=1e-9)


def test_frechet_distance_of_equal_distributions_has_the_stated_bias():
    n, m, d = 400, 600, 8
    found = [
        frechet.frechet_distance_and_error(torch.randn(n, d), torch.randn(m, d))[0]
        for _ in range(60)
    ]
    assert sum(found) / len(found) == pytest.approx((1 / n + 1 / m) * d * (d + 5) / 4, rel=0.1)


# --- kernel distances -----------------------------------------------------------------------------


def cubic_mean(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """Return E (xᵀy/D + 1)³ of independent normal x and y, from their first three moments."""

    def moments(mean: Tensor, cov: Tensor) -> list[Tensor]:
        outer, mixed = torch.outer(mean, mean), torch.einsum("ij,k->ijk", cov, mean)
        third = (
            torch.einsum("ij,k->ijk", outer, mean)
            + mixed
            + mixed.permute(0, 2, 1)
            + mixed.permute(2, 0, 1)
        )
        return [torch.ones(()).double(), mean, cov + outer, third]

    pairs = zip(moments(mean_x, cov_x), moments(mean_y, cov_y), strict=True)
    return sum(
        math.comb(3, k) * (a * b).sum().item() / len(mean_x) ** k for k, (a, b) in enumerate(pairs)
    )


def gaussian_mean(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """Return E exp(−|x − y|² / 2σ²) of independent normal x and y, σ = 1.5."""
    c, delta = cov_x + cov_y + 1.5**2 * torch.eye(len(mean_x)), mean_x - mean_y
    return (
        1.5 ** len(delta) / c.det().sqrt() * (-0.5 * delta @ torch.linalg.solve(c, delta)).exp()
    ).item()


def mmd(x: Tensor, y: Tensor) -> tuple[float, float]:
    return kid_mmd.gaussian_mmd_and_error(x, y, 1.5)


@pytest.mark.parametrize(
    ("distance", "mean"),
    [(kid_mmd.kernel_inception_distance_and_error, cubic_mean), (mmd, gaussian_mean)],
)
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_kernel_distance_of_two_normals_is_the_closed_form(distance, mean, shift):
    p, q = (ZERO, A), (vector(shift, shift), B)
    known = mean(*p, *p) + mean(*q, *q) - 2 * mean(*p, *q)
    found = torch.tensor(
        [distance(sample_normal(200, *p), sample_normal(300, *q)) for _ in range(40)]
    )
    assert abs(found[:, 0].mean() - known) < 4 * found[:, 0].std() / math.sqrt(40)
    value, error = distance(sample_normal(2500, *p), sample_normal(2000, *q))
    assert abs(value - known) < 4 * error < 0.5 * known


@pytest.mark.parametrize("distance", [kid_mmd.kernel_inception_distance_and_error, mmd])
def test_kernel_distance_of_equal_distributions_is_unbiased(distance):
    found = torch.tensor(
        [distance(0.7 * torch.randn(80, 6), 0.7 * torch.randn(120, 6)) for _ in range(200)]
    )
    assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / math.sqrt(200)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std().item(), rel=0.25)


@pytest.mark.parametrize(
    "similar", [kid_mmd.cubic_kernel, lambda x, y: kid_mmd.gaussian_kernel(x, y, 2.0)]
)
def test_kernel_distance_is_the_mean_over_pairs_in_chunks_of_any_size(similar, monkeypatch):
    x, y = torch.randn(23, 5).double(), 0.4 + torch.randn(31, 5).double()
    between = lambda a, b: sum(similar(p[None], q[None]).item() for p in a for q in b)  # noqa: E731
    within = lambda a: between(a, a) - sum(similar(p[None], p[None]).item() for p in a)  # noqa: E731
    known = within(x) / (23 * 22) + within(y) / (31 * 30) - 2 * between(x, y) / (23 * 31)
    whole = kid_mmd.squared_mmd_and_error(x, y, similar)
    assert whole[0] == pytest.approx(known, abs=1e-12)
    monkeypatch.setattr(kid_mmd, "KERNEL_CHUNK_ROWS", 7)
    assert kid_mmd.squared_mmd_and_error(x, y, similar) == pytest.approx(whole, rel=1e-9)


def test_bandwidth_is_the_median_distance_of_different_items():
    assert (
        kid_mmd.median_pairwise_distance(vector([0.0], [1.0], [1.0], [5.0])) == 4
    )  # 1, 1, 5, 4, 4
    assert kid_mmd.median_pairwise_distance(torch.zeros(3, 2)) == 1, "all distances are zero"


# --- Inception score ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "known", "off"),
    [
        (
            1e3 * torch.eye(5).repeat(200, 1),
            5,
            0.03,
        ),  # certain, classes equally frequent up to the shuffling of splits
        (
            torch.full((100, 5), -math.inf).index_fill(1, torch.tensor([2]), 0.0),
            1,
            1e-9,
        ),  # certain, always the same class
        (torch.zeros(100, 5), 1, 1e-9),  # uncertain
    ],
)
def test_inception_score_of_certain_and_constant_predictions(logits, known, off):
    score, error = inception_score.inception_score_and_error(logits, splits=2)
    assert score == pytest.approx(known, abs=off) and score <= known + 1e-9
    assert error == pytest.approx(0, abs=off)


# --- shared properties ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distance",
    [frechet.frechet_distance_and_error, kid_mmd.kernel_inception_distance_and_error, mmd],
)
@pytest.mark.parametrize(
    ("n", "m", "d", "shift"), [(200, 100, 2, 0.6), (150, 300, 12, 0.6), (200, 300, 2, 0.0)]
)
def test_standard_error_is_the_deviation_over_replicates(distance, n, m, d, shift):
    mix = torch.randn(d, d) / d**0.5

    def draw() -> tuple[Tensor, Tensor]:
        x = (torch.randn(n, d) @ mix).relu()
        return x, (shift + 1.6 * torch.randn(m, d) @ mix).relu()

    found = torch.tensor([distance(*draw()) for _ in range(150)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std().item(), rel=0.25)


def test_frechet_standard_error_equals_the_jackknife():
    """The distributions differ only in their covariance."""
    x, y = sample_normal(300, ZERO, A), sample_normal(200, ZERO, B)
    without = lambda t: (t[torch.arange(len(t)) != i] for i in range(len(t)))  # noqa: E731
    of_x = torch.tensor([frechet.frechet_distance_and_error(part, y)[0] for part in without(x)])
    of_y = torch.tensor([frechet.frechet_distance_and_error(x, part)[0] for part in without(y)])
    jackknife = math.sqrt(299 * of_x.var(correction=0) + 199 * of_y.var(correction=0))
    assert frechet.frechet_distance_and_error(x, y)[1] == pytest.approx(jackknife, rel=0.02)


def test_inception_score_error_is_the_deviation_over_replicates():
    found = torch.tensor(
        [inception_score.inception_score_and_error(2 * torch.randn(500, 6)) for _ in range(200)]
    )
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std().item(), rel=0.25)


def test_inception_score_of_fewer_real_items_uses_equal_splits(monkeypatch):
    labels = torch.arange(300) % 10

    def extractor(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = 1e3 * torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 10).float()
        return x.flatten(1), logits

    extractor.name, extractor.key, extractor.conditions = "pixels", "brightness", {}
    monkeypatch.setitem(features.EXTRACTORS, "inception", lambda *_: extractor)
    x = labels.byte()[:, None, None, None].expand(-1, 3, 2, 2)
    context = MetricContext(
        GivenImages(x[:60]),
        Settings(n=300, features=("inception",)),
        samples=Batch(x.float() / 127.5 - 1),
    )
    (row,) = inception_score.measure(context)
    assert row.real_vs_real == pytest.approx(row.value, rel=0.15), (
        "in 10 splits of 6 it would be under 6"
    )
    assert (row.conditions["splits"], row.conditions["real_vs_real"]) == (10, "60 held-out items")


def test_too_few_items_are_refused_and_nan_stays_nan():
    for distance in (
        frechet.frechet_distance_and_error,
        kid_mmd.kernel_inception_distance_and_error,
        mmd,
    ):
        with pytest.raises(UserError, match="at least 2 real items; there is 1"):
            distance(torch.randn(9, 2), torch.randn(1, 2))
        assert all(map(math.isnan, distance(torch.randn(9, 2), torch.full((9, 2), math.nan))))
    with pytest.raises(UserError, match="over 10 splits requires at least 10 items; there are 4"):
        inception_score.inception_score_and_error(torch.randn(4, 3))


# --- the numbers of torch-fidelity ----------------------------------------------------------------


class GivenImages(Dataset):
    """A dataset of given images uint8 (N, 3, H, W)."""

    name = "held"

    def __init__(self, x: Tensor, channels: int = 3) -> None:
        self.x, self.spec = x, DataSpec((channels, *x.shape[2:]), num_classes=0)

    def size(self, split: str) -> int:
        return len(self.x) if split != "train" else 0

    def head_indices(self, split: str, n: int | None = None, *, seed: int = 0) -> Tensor:
        return torch.arange(len(self.x))[:n]

    def items_like_samples(
        self, split: str, index: Tensor, *, seed: int = 0, augment: bool = True
    ) -> Batch:
        return Batch(self.x[index])


def write_images(n: int, folder: Path, *, bright: float) -> Tensor:
    """Write n RGB images of smooth noise to a folder and return them, uint8 (N, 3, 12, 12)."""
    x = torch.nn.functional.interpolate(torch.randn(n, 3, 4, 4), 12, mode="bilinear")
    x = ((0.5 + bright + 0.25 * x).clamp(0, 1) * 255).round().byte()
    folder.mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")
    return x


def torch_fidelity_metrics(one: Path, other: Path, **options: object) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    common = {
        "cuda": False,
        "cache": False,
        "verbose": False,
        "save_cpu_ram": True,
    }  # the last: without workers
    return calculate_metrics(
        input1=str(one), input2=str(other), isc=True, kid=True, **common, **options
    )


def substitute_extractor() -> type:
    """Return an extractor that is registered with torch-fidelity.

    It has random features of the scale of Inception's, with logits.
    """
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Substitute(FeatureExtractorBase):
        def __init__(
            self,
            name: str = "substitute",
            features_list: tuple[str, ...] = ("2048", "logits"),
            **_: object,
        ) -> None:
            super().__init__(name, features_list)
            generator = torch.Generator().manual_seed(0)
            self.weights = torch.randn(432, 160, generator=generator) / 432**0.5
            self.head = torch.randn(160, 10, generator=generator)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "2048", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "2048"

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            pooled = (0.3 + 2 * (x.flatten(1).float() / 255 - 0.5) @ self.weights).relu()
            return tuple(
                {"2048": pooled, "logits": pooled @ self.head}[name] for name in self.features_list
            )

    FEATURE_EXTRACTORS_REGISTRY.pop("substitute", None)
    register_feature_extractor("substitute", Substitute)
    return Substitute


def test_fid_kid_and_inception_score_equal_torch_fidelity(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    drawn, real = (
        write_images(320, tmp_path / "drawn", bright=0.1),
        write_images(320, tmp_path / "real", bright=0.0),
    )
    extractor = substitute_extractor()()
    extractor.key, extractor.conditions = "substitute", {"features": "substitute"}
    monkeypatch.setitem(features.EXTRACTORS, "inception", lambda dataset, device: extractor)
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    settings = Settings(n=320, features=("inception",), batch_size=50)
    context = MetricContext(GivenImages(real), settings, samples=Batch(drawn.float() / 127.5 - 1))
    measures = (frechet.measure, kid_mmd.measure_kid, inception_score.measure)
    fid, kid, score = (row for measure in measures for row in measure(context))

    theirs = torch_fidelity_metrics(
        tmp_path / "drawn",
        tmp_path / "real",
        fid=True,
        feature_extractor="substitute",
        kid_subset_size=200,
    )
    assert fid.value == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3)
    assert kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-3)
    assert score.value == pytest.approx(theirs["inception_score_mean"], abs=1e-3)
    assert score.error == pytest.approx(theirs["inception_score_std"] / 3, abs=1e-3), (
        "its deviation divides by 10, not 9"
    )
    whole = torch_fidelity_metrics(
        tmp_path / "drawn",
        tmp_path / "real",
        feature_extractor="substitute",
        kid_subset_size=320,
        kid_subsets=1,
    )
    assert kid.value == pytest.approx(whole["kernel_inception_distance_mean"], abs=1e-6)
    assert [fid.name, kid.name, score.name] == ["fid", "kid", "inception_score"]
    assert (
        all(row.value > row.real_vs_real + 3 * row.error for row in (fid, kid))
        and score.real_vs_real > 1
    )
    assert [row.better for row in (fid, kid, score)] == ["lower", "lower", "higher"]


def test_metrics_give_the_rows_that_they_name():
    settings = Settings(n=100, features=("pixels",))
    x = torch.randint(0, 256, (200, 3, 4, 4)).byte()
    context = MetricContext(
        GivenImages(x), settings, samples=Batch(2 * torch.rand(100, 3, 4, 4) - 1)
    )
    pairs = [
        (frechet.row_names, frechet.measure),
        (kid_mmd.kid_row_names, kid_mmd.measure_kid),
        (kid_mmd.mmd_row_names, kid_mmd.measure_mmd),
    ]
    for row_names, measure in pairs:
        found = measure(context)
        assert [row.name for row in found] == row_names(context) and len(found) == 1
        assert (
            found[0].error > 0
            and found[0].real_vs_real is not None
            and found[0].conditions["features"] == "pixels"
        )
    assert inception_score.row_names(context) == [], "pixels do not give class logits"


# --- Inception's weights --------------------------------------------------------------------------

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """Empty caches of genlab and torch; returns the path of the weights."""
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "cache" / "inception" / WEIGHTS


def random_weights() -> dict[str, Tensor]:
    """Return weights of the network's shapes that keep the scale of the activations."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = theirs.FeatureExtractorInceptionV3("made up", ["2048"])
    for name, weight in network.named_parameters():
        if weight.ndim == 4:
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
        elif name == "fc.weight":
            weight.normal_(0, 0.3)
    return network.state_dict()


def test_inception_equals_torch_fidelity_with_the_same_weights(tmp_path, empty_cache):
    empty_cache.parent.mkdir(parents=True)
    torch.save(random_weights(), empty_cache)
    drawn, real = (
        write_images(4, tmp_path / "drawn", bright=0.1),
        write_images(4, tmp_path / "real", bright=0.0),
    )
    extractor = Inception(GivenImages(drawn), torch.device("cpu"))
    (x, logits), (y, _) = extractor(drawn), extractor(real)
    assert (x.shape, logits.shape, x.dtype) == ((4, 2048), (4, 1008), torch.float32)
    theirs = torch_fidelity_metrics(
        tmp_path / "drawn", tmp_path / "real", feature_extractor_weights_path=str(empty_cache),
        kid_subset_size=4, kid_subsets=1, isc_splits=2,
    )  # fmt: skip
    kid, _ = kid_mmd.kernel_inception_distance_and_error(x, y)
    score, _ = inception_score.inception_score_and_error(logits, splits=2)
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-6)
    assert score == pytest.approx(theirs["inception_score_mean"], abs=1e-3) and score > 1.001
    gray, same = extractor(drawn[:1, :1]), extractor(drawn[:1, :1].repeat(1, 3, 1, 1))
    assert torch.equal(gray[0], same[0])
    assert extractor.conditions == {"features": f"inception {extractor.key[:6]}"}


def test_weights_are_downloaded_once_and_checked_by_hash(tmp_path, empty_cache):
    source = tmp_path / "source"
    source.mkdir()
    right, wrong = (
        source / f"made-{word}.pth"
        for word in (hashlib.sha256(b"weights").hexdigest()[:8], "01234567")
    )
    for file in (right, wrong):
        file.write_bytes(b"weights")
    path = find_or_download_weights(right.as_uri())
    assert path == empty_cache.parent / right.name and path.read_bytes() == b"weights"
    right.unlink()
    assert find_or_download_weights(right.as_uri()) == path
    with pytest.raises(UserError, match="invalid hash value"):
        find_or_download_weights(wrong.as_uri())
    assert not (empty_cache.parent / wrong.name).exists()
    hub = tmp_path / "hub" / "checkpoints" / wrong.name  # where torch-fidelity puts it
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"weights")
    assert find_or_download_weights(wrong.as_uri()) == hub


def test_inception_errors_say_what_to_do(empty_cache, monkeypatch):
    pixels = GivenImages(torch.zeros(1, 3, 8, 8).byte())

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError) as refused:
        Inception(pixels, torch.device("cpu"))
    message = str(refused.value)
    assert (
        str(empty_cache) in message
        and f"/{WEIGHTS} where there is a network" in message
        and "no route to host" in message
    )
    assert "\n" not in message
    empty_cache.write_bytes(b"cut short")
    with pytest.raises(
        UserError, match=f"{WEIGHTS} does not have torch-fidelity's Inception weights"
    ):
        Inception(pixels, torch.device("cpu"))
    with pytest.raises(UserError, match="gray or RGB images; those of held have 2 channels"):
        Inception(SimpleNamespace(name="held", spec=DataSpec((2, 8, 8))), torch.device("cpu"))
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"pip install 'genlab\[inception\]'"):
        Inception(pixels, torch.device("cpu"))
