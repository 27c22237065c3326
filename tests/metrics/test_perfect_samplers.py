"""A perfect sampler, which returns new true items, scores the floor of every metric.

For each kind of data the samples are items of the validation split, prepared as a model learns
them. They take the path of a model's samples, and that of samples in a file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.commands.evaluate import evaluate_samples
from genlab.data.binary_toy import BarsAndStripes, Parity
from genlab.data.captions import Captions
from genlab.data.digits import Digits, read_digits
from genlab.data.external_samples import read_samples
from genlab.data.fake import Fake
from genlab.data.image_folder import ImageFolder
from genlab.data.preprocessing import Preprocessor
from genlab.data.shapes2d import Shapes
from genlab.data.table_units import TableUnits
from genlab.data.tabular import Table
from genlab.data.toy_points import Points
from genlab.metrics.base import Row, Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import measure_metrics
from genlab.model import GenerativeModel
from genlab.spec import Batch, DataSpec
from genlab.viz import item_pictures

UNIT = {"range": (0.0, 1.0)}


def digits(**options) -> Digits:
    return Digits(test=0.3, validation=0.3, **options)


def integer_table(folder: Path) -> Table:
    """Return a table with a column of few integers, one of many, and one of real numbers."""
    generator = np.random.default_rng(0)
    columns = [generator.poisson(2, 3000), generator.normal(0, 40, 3000).round()]
    columns.append(columns[0] + generator.normal(0, 1, 3000))
    lines = [f"{a:.0f},{b:.0f},{c:.5f}" for a, b, c in zip(*columns, strict=True)]
    (folder / "t.csv").write_text("\n".join(["few,many,real", *lines]))
    return Table(path=str(folder / "t.csv"), label="none", test=0.3, validation=0.3)


def patches(folder: Path) -> ImageFolder:
    """Return patches of images whose middle is unlike their border."""
    images, _ = read_digits()
    for i, image in enumerate(images[:900]):
        larger = np.zeros((12, 12), np.uint8)
        larger[2:10, 2:10] = image[0].mul(15).numpy()
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(larger).save(folder / f"images/{i}.png")
    return ImageFolder(path=str(folder / "images"), patch_size=6, test=0.3, validation=0.3)


QUICK = {
    "gray": lambda folder: digits(),
    "drawn binary": lambda folder: digits(binarize="dynamic", **UNIT),
    "dequantized": lambda folder: digits(dequantize=True),
    "whole distribution": lambda folder: BarsAndStripes(size=4, **UNIT),
    "table": integer_table,
}
SLOW = {
    "threshold": lambda folder: digits(binarize="threshold", **UNIT),
    "dequantized in [0, 1]": lambda folder: digits(dequantize=True, **UNIT),
    "drawn binary, dequantized": lambda folder: digits(binarize="dynamic", dequantize=True),
    "drawn binary, mirrored": lambda folder: digits(binarize="dynamic", flip=True, **UNIT),
    "mirrored": lambda folder: digits(flip=True),
    "resized": lambda folder: digits(size=12),
    "patches": patches,
    "color": lambda folder: Fake(shape=(3, 5, 5), n=4000),
    "color, dequantized": lambda folder: Fake(shape=(3, 5, 5), n=4000, dequantize=True),
    "shapes": lambda folder: Shapes(n=3000, size=12, validation=0.3, test=0.3),
    "captions": lambda folder: Captions(
        base=digits(binarize="dynamic", **UNIT),
        class_names=[*"abcdefghij"],
        templates=["a {}"],
        heldout_templates=[],
    ),
    "modes": lambda folder: Points(name="grid", n=3000, num_heldout=1000),
    "points": lambda folder: Points(name="moons", n=3000, num_heldout=1000),
    "parity": lambda folder: Parity(bits=5, **UNIT),
}


class TrueItems(GenerativeModel):
    """A model whose samples are items of the validation split, prepared as in training.

    Args:
        means: return the gray levels of binary items, as a model of pixel means.
    """

    def __init__(self, dataset, *, means: bool = False, conditional: bool = False) -> None:
        super().__init__()
        self.spec, self.weight = dataset.spec, torch.nn.Parameter(torch.zeros(()))
        self.samples_are_means = means
        self.dataset = [dataset.with_gray_levels() if means else dataset]
        self.conditional = conditional

    def sample(self, n, y=None):
        (dataset,) = self.dataset
        if dataset.lists_distribution:
            index = torch.randint(dataset.size("validation"), (n,))
            return dataset.items("validation", index).x
        return next(dataset.batches("validation", n, seed=77)).x


def measure_rows(dataset, n: int, features, **options) -> list[Row]:
    settings = Settings(n=n, features=features, batch_size=n)
    measured = measure_metrics(MetricContext(dataset, settings, **options))
    assert not measured.skipped
    return [row for rows in measured.rows.values() for row in rows]


def distance_from_floor(row: Row) -> float:
    """Return how many standard errors a number is away from that of true items."""
    if row.name.startswith("data_copying"):
        assert row.real_vs_real == 0.5
    difference = row.value - row.real_vs_real
    error = row.error or 0.0
    if row.name.startswith("nearest_train"):
        error *= 2**0.5  # the mean of as many held-out items has the same error
    return difference / max(error, 0.01 * abs(row.real_vs_real), 1e-12)


def assert_rows_on_floor(rows: list[Row], least: int = 1) -> None:
    compared = [row for row in rows if row.real_vs_real is not None]
    assert len(compared) >= least
    distances = {row.name: abs(distance_from_floor(row)) for row in compared}
    far = {name: distance for name, distance in distances.items() if not distance <= 2}
    # one of twenty is farther away by chance
    assert len(far) <= 1 and all(distance < 3 for distance in far.values()), far


def value_features(dataset) -> tuple[str]:
    return ("pixels",) if dataset.spec.kind == "image" else ("coordinates",)


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)])
def test_true_items_score_the_floor(kind, tmp_path):
    dataset = (QUICK | SLOW)[kind](tmp_path)
    rows = measure_rows(dataset, 250, value_features(dataset), model=TrueItems(dataset))
    assert_rows_on_floor(rows, least=11)


@pytest.mark.parametrize("kind", ["drawn binary", "gray"])
@pytest.mark.parametrize("dtype", ["items", "bytes", "means"])
def test_true_items_in_a_file_score_the_floor(kind, dtype, tmp_path, capsys):
    """Also as bytes, and as the gray levels that binary items are drawn by."""
    dataset = QUICK[kind](tmp_path)
    source = dataset.with_gray_levels() if dtype == "means" else dataset
    x = source.head("validation", 200, seed=5).x
    arrays = {"x": x.numpy(), "range": np.array(dataset.spec.range)}
    if dtype == "bytes":
        arrays = {"x": dataset.spec.to_bytes(x).numpy()}
    np.savez(tmp_path / "s.npz", **arrays)
    options = {"features": ["pixels"], "metrics": ["frechet", "energy_distance", "mmd"]}
    evaluate_samples(
        str(tmp_path / "s.npz"), dataset, output_file=str(tmp_path / "m.json"), **options
    )
    record = json.loads((tmp_path / "m.json").read_text())
    fields = {field.name for field in dataclasses.fields(Row)}
    rows = [Row(**{k: v for k, v in row.items() if k in fields}) for row in record["metrics"]]
    assert_rows_on_floor(rows, least=3)
    drawn = kind == "drawn binary" and dtype != "means"
    assert all(("held-out" in row.conditions) == (kind == "drawn binary") for row in rows)
    assert all(("drawn" in row.conditions.get("held-out", "")) == drawn for row in rows)
    assert all(("samples" in row.conditions) == (kind != "gray" and not drawn) for row in rows)


def test_means_are_compared_with_gray_levels():
    dataset = digits(binarize="dynamic", **UNIT)
    rows = measure_rows(dataset, 200, ("pixels",), model=TrueItems(dataset, means=True))
    assert_rows_on_floor(rows, least=11)
    rows = [row for row in rows if row.real_vs_real is not None]  # not those of the cost
    assert {row.conditions.get("samples") for row in rows} == {"means of p(x|z)"}
    assert {row.conditions.get("held-out") for row in rows} == {"gray levels"}
    wrong = TrueItems(dataset, means=True)
    wrong.samples_are_means = False
    (row, *_) = measure_rows(dataset, 200, ("pixels",), model=wrong)
    assert distance_from_floor(row) > 10, "means are not items"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gray", "drawn binary", "mirrored", "captions"])
def test_true_items_score_the_floor_of_the_classifier(kind, tmp_path):
    dataset = (QUICK | SLOW)[kind](tmp_path)
    x = dataset.items_like_samples("validation", dataset.head_indices("validation", 250, seed=3))
    samples = Batch(dataset.spec.from_bytes(x.x.float()), x.y)
    rows = measure_rows(dataset, 250, ("classifier",), samples=samples)
    names = {row.name for row in rows}
    assert {"class_mode_count", "class_kl", "class_accuracy"} <= names
    assert_rows_on_floor(rows, least=15)


def test_rows_of_a_table_keep_their_value_in_csv(tmp_path):
    dataset = integer_table(tmp_path)
    x = dataset.head("validation", 300).x
    units = TableUnits.from_dataset(dataset)
    content = units.to_csv(x, dataset.spec)
    assert torch.equal(read_samples_of_csv(content, tmp_path, dataset, units), x)
    assert units.to_csv(read_samples_of_csv(content, tmp_path, dataset, units), dataset.spec) == (
        content
    )


def read_samples_of_csv(content: bytes, folder: Path, dataset, units) -> torch.Tensor:
    (folder / "samples.csv").write_bytes(content)
    return read_samples(folder / "samples.csv", dataset.spec, units).x


@pytest.mark.parametrize("range_", [(-1.0, 1.0), (0.0, 1.0), (-0.3, 1.7)])
@pytest.mark.parametrize(
    ("levels", "binarize"), [(2, "none"), (17, "none"), (256, "none"), (17, "threshold")]
)
@pytest.mark.parametrize("dequantize", [False, True])
def test_bytes_are_the_inverse_of_the_preparation(levels, binarize, dequantize, range_):
    """Of every level, also at the ends of its bin; the noise of dequantization does not show."""
    prepare = Preprocessor(levels=levels, range=range_, binarize=binarize, dequantize=dequantize)
    spec = DataSpec(
        (1, levels, 64), levels=prepare.num_levels_out, range=range_, dequantized=dequantize
    )
    k = torch.arange(levels, dtype=torch.uint8)[None, None, :, None].expand(9, 1, levels, 64)
    x = prepare(k, torch.Generator().manual_seed(0))
    stored = prepare.levels_to_bytes(k)
    assert torch.equal(spec.to_bytes(x), stored)
    assert torch.equal(spec.to_bytes(spec.from_bytes(stored.float())), stored)
    pixels = item_pictures.to_uint8_images(x, spec)
    assert torch.equal(torch.from_numpy(pixels).permute(0, 3, 1, 2), stored)
    if dequantize:
        width = (range_[1] - range_[0]) / spec.levels
        ends = range_[0] + width * (torch.arange(spec.levels) + torch.tensor([[0.0], [1 - 2**-16]]))
        expected = torch.arange(spec.levels).expand(2, -1)
        assert torch.equal(spec.dequantized_levels(ends.float()).long(), expected)


def test_numbers_of_a_whole_distribution_have_no_error():
    """The mean over all items that there are is exact; a part of them has an error."""

    class Uniform(TrueItems):
        def log_prob(self, x, y=None):
            return torch.linspace(-1, -3, len(x))

    dataset = BarsAndStripes(size=3, **UNIT)
    for n, is_exact in ((16, True), (1000, True), (10, False)):
        settings = Settings(n=n)
        context = MetricContext(dataset, settings, model=Uniform(dataset))
        rows = measure_metrics(context, ["likelihood"]).rows["likelihood"]
        assert {row.name for row in rows} == {"nll", "kl_to_truth", "bits_per_dim"}
        assert all((row.error == 0.0) == is_exact for row in rows)
