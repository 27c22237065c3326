"""Datasets: toy distributions, reproducible batches, and images of every format."""

from __future__ import annotations

import math
import os
from itertools import islice
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data.digits import Digits
from genlab.data.fake import Fake
from genlab.data.image_decoding import ImageDecoder
from genlab.data.image_folder import CelebA, ImageFolder
from genlab.data.preprocessing import Preprocessor
from genlab.data.stacked_mnist import StackedMNIST
from genlab.data.tabular import Table
from genlab.data.torchvision_sets import CIFAR10, KMNIST, MNIST
from genlab.data.toy_points import Points
from genlab.errors import UserError


def is_equal(a, b) -> bool:
    labels = (a.y is None and b.y is None) or torch.equal(a.y, b.y)
    return torch.equal(a.x, b.x) and labels


def real_data(*parts: str) -> Path:
    root = os.environ.get("GENLAB_DATA")
    path = Path(root or ".").joinpath(*parts)
    if not root or not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in the folder that GENLAB_DATA names")
    return path


# --- toy distributions ----------------------------------------------------------------------------

ENTROPIES = [  # name, options, entropy in nats if there is a formula
    ("ring", {}, math.log(8) + 1 + math.log(2 * math.pi * 0.1**2)),
    ("ring", {"radius": 1.0, "std": 0.01}, -4.2930),
    ("ring", {"num_modes": 1}, 1 + math.log(2 * math.pi * 0.1**2)),
    ("ring", {"std": 0.5}, None),  # the modes overlap
    ("grid", {}, 0.0653),
    ("grid", {"spacing": 1.0}, 0.0653),
    ("checkerboard", {}, math.log(32)),
    ("moons", {}, None),
    ("spirals", {}, None),
    ("pinwheel", {}, None),
    ("gaussian_1d", {}, 1.4189),
    ("gaussian_1d", {"mean": 1.0, "std": 0.5}, 0.7258),
    ("mixture_1d", {}, 1.8193),
    ("skewed_1d", {}, 1.5772),
    ("skewed_1d", {"scale": 0.5}, 0.8841),
    ("swiss_roll", {"std": 0.2}, None),
]


@pytest.mark.parametrize(("name", "options", "entropy"), ENTROPIES)
def test_toy_distribution_entropy_and_normalization(name, options, entropy):
    points = Points(name=name, n=100, num_heldout=10_000, **options)
    x, _ = points.raw_items_and_labels("test")
    surprise = -points.log_prob(x.double())
    error = (surprise.std() / len(x) ** 0.5).item()
    assert abs(surprise.mean().item() - points.entropy) < 5.5 * error + 1e-6
    if entropy is not None:
        assert points.entropy == pytest.approx(entropy, abs=1e-4)

    step = min(
        points.std or 0.1, 0.05 if name == "pinwheel" else 0.1
    )  # the midpoint sum of Gaussians converges like exp(−2π² (std/step)²)
    reach = 1.5 if step < 0.05 else 6.0
    at = torch.arange(-reach, reach, step, dtype=torch.float64) + step / 2
    if name.endswith("_1d"):
        at, step = torch.linspace(-10, 30, 8001, dtype=torch.float64), 0.005
    dim = points.spec.dim
    if dim == 3:
        # the third coordinate is independent, so that ∫ p(x, z) dx dy dz is a product
        at = torch.arange(-4.2, 4.2, step, dtype=torch.float64)
        plane = torch.cartesian_prod(at, at, torch.zeros(1, dtype=torch.float64))
        line = torch.cat([plane[:1, :2].expand(len(at), 2), at[:, None]], 1)
        in_plane, height = (points.log_prob(part).exp().sum().item() for part in (plane, line))
        mass = in_plane * height / points.log_prob(plane[:1]).exp().item() * step**3
    else:
        grid = torch.cartesian_prod(*[at] * dim).view(-1, dim)
        mass = points.log_prob(grid).exp().sum().item() * step**dim
    assert mass == pytest.approx(1, abs=1e-6)


def test_unknown_distribution_options_are_refused():
    with pytest.raises(UserError, match="moons does not have dataset.radius"):
        Points(name="moons", radius=1.0)


# --- batches --------------------------------------------------------------------------------------

SETS = {
    "digits": lambda: Digits(dequantize=True, flip=True),
    "dynamic": lambda: Fake(n=100, num_classes=3, binarize="dynamic"),
    "plain": lambda: Fake(n=7),
    "points": lambda: Points(n=50, num_heldout=10),
}


@pytest.mark.parametrize("name", SETS)
def test_batches_are_reproducible(name):
    """Batch k depends only on (seed, k), shards join to it, an epoch has each item once.

    The global random state is not used.
    """
    data = SETS[name]()
    state = torch.get_rng_state()
    whole = list(islice(data.batches("train", 24, seed=3), 8))
    assert torch.equal(state, torch.get_rng_state())
    assert all(len(batch) == 24 for batch in whole)
    assert all(
        map(is_equal, whole[5:], islice(SETS[name]().batches("train", 24, seed=3, start=5), 3))
    )
    assert not is_equal(whole[0], next(data.batches("train", 24, seed=4)))

    every = list(islice(data.batches("train", 24, seed=3, shard=range(3), num_shards=3), 24))
    alone = list(islice(data.batches("train", 24, seed=3, shard=1, num_shards=3), 8))
    assert all(map(is_equal, every[1::3], alone))
    joint = torch.cat([batch.x for batch in every[:3]])
    if name in ("plain", "points"):
        assert torch.equal(joint, whole[0].x)
    if name != "plain":
        assert torch.equal(torch.cat([batch.y for batch in every[:3]]), whole[0].y)

    if name == "plain":  # 7 items: positions 0 … 6 are one epoch, 7 … 13 the next
        raw = data.preprocess(data.raw_items_and_labels("train")[0], torch.Generator())
        for epoch in (whole[0].x[:7], whole[0].x[7:14]):
            assert torch.equal(epoch.flatten(1).unique(dim=0), raw.flatten(1).unique(dim=0))


@pytest.mark.parametrize("name", SETS)
def test_ordered_pass_does_not_depend_on_the_batch_size(name):
    """It has each item once, in order, with the same noise; `head` is reproducible."""
    data = SETS[name]()
    n = data.size("train")
    one, many = (list(data.batches("train", b, seed=1, shuffle=False)) for b in (n, 6))
    assert len(one) == 1 and torch.equal(one[0].x, torch.cat([b.x for b in many]))
    assert len(many[-1]) == (n % 6 or 6)
    assert is_equal(many[1], next(data.batches("train", 6, seed=1, shuffle=False, start=1)))
    cut = list(data.batches("train", 6, seed=1, shuffle=False, shard=[0, 1], num_shards=2))
    assert torch.equal(torch.cat([b.x for b in cut]), one[0].x)
    assert is_equal(data.head("test", 5, seed=2), data.head("test", 5, seed=2))
    assert len(data.head("test", None)) == len(data.head("test", 10**9)) == data.size("test")


def test_invalid_batch_requests_are_refused():
    data = Fake()
    for call, words in [
        (lambda: data.batches("trian", 4), "did you mean 'train'"),
        (lambda: data.batches("train", 10, num_shards=4), "cannot be cut into 4 equal parts"),
        (lambda: data.batches("train", 10, num_shards=2, shard=2), "no shard 2"),
        (lambda: Digits(validation=0.0).head("validation", 4), "no validation items"),
        (lambda: Fake(range=(1, 0)), "is empty"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize(
    "make", [Digits, lambda **o: Table(path=str(real_data("tabular", "magic04.data")), **o)]
)
def test_seeded_splits(make):
    """The splits are disjoint and complete, and depend only on `split_seed`."""
    data = make()
    rows = {s: data.raw_items_and_labels(s)[0].flatten(1) for s in ("train", "validation", "test")}
    n = sum(map(len, rows.values()))
    assert len(rows["test"]) == len(rows["validation"]) == round(n / 10)
    assert torch.equal(rows["test"], make().raw_items_and_labels("test")[0].flatten(1))
    assert not torch.equal(
        rows["test"], make(split_seed=1).raw_items_and_labels("test")[0].flatten(1)
    )
    if isinstance(data, Digits):
        assert torch.cat(list(rows.values())).unique(dim=0).shape == (
            1797,
            64,
        )  # all 1,797 digits differ


# --- preprocessing --------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 17, 256])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5)])
def test_preprocessing(levels, interval):
    low, high = interval
    k = torch.arange(levels, dtype=torch.uint8).repeat(20_000 // levels).view(-1, 1, 1, levels)
    share = torch.arange(levels) / (levels - 1)

    def preprocess(**options):
        preprocessor = Preprocessor(levels=levels, range=interval, **options)
        return preprocessor(k, torch.Generator().manual_seed(0))

    torch.testing.assert_close(preprocess()[0, 0, 0], low + share * (high - low))
    assert preprocess().aminmax() == (low, high)

    hard, drawn = preprocess(binarize="threshold"), preprocess(binarize="dynamic")
    assert torch.equal(hard[0, 0, 0], torch.where(share > 0.5, high, low))
    assert set(drawn.unique().tolist()) == {low, high}
    assert (drawn[..., 0] == low).all() and (drawn[..., -1] == high).all()
    ones = (drawn == high).float().mean((0, 1, 2))
    assert ((ones - share).abs() <= 5 * (share * (1 - share) / len(k)).sqrt()).all()

    spread = (preprocess(dequantize=True).double() - low) / (high - low) * levels
    assert low <= preprocess(dequantize=True).min() and preprocess(dequantize=True).max() < high
    u = spread - k
    assert u.min() > -1e-4 and u.max() < 1 + 1e-4
    assert u.mean() == pytest.approx(0.5, abs=0.011) and u.var() == pytest.approx(1 / 12, abs=0.005)


def test_spec_describes_the_preprocessed_data():
    spec = Digits(binarize="dynamic", dequantize=True, range=(0, 1)).spec
    assert (spec.levels, spec.dequantized, spec.range, spec.shape, spec.num_classes) == (
        2,
        True,
        (0.0, 1.0),
        (1, 8, 8),
        10,
    )
    assert Digits().spec.levels == 17 and Digits(size=16).spec.levels == 256
    assert (
        Digits(size=16).spec.shape == (1, 16, 16)
        and Digits(size=16).raw_items_and_labels("train")[0].max() == 255
    )


def test_flip_mirrors_half_of_the_training_images_only():
    data = Fake(n=1000, flip=True)
    raw = data.preprocess(data.raw_items_and_labels("train")[0], torch.Generator())
    batch = data.preprocess(
        data.raw_items_and_labels("train")[0], torch.Generator().manual_seed(0), augment=True
    )
    kept = (batch == raw).flatten(1).all(1)
    assert torch.equal(batch[~kept], raw[~kept].flip(-1)) and 400 < kept.sum() < 600
    assert torch.equal(next(data.batches("train", 1000, shuffle=False)).x, raw)


# --- image files ----------------------------------------------------------------------------------


def write(path: Path, array: np.ndarray | Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """24 gray images 6×6 in two class folders."""
    for i in range(24):
        write(
            tmp_path / "ab"[i % 2] / f"{i:02}.png",
            np.random.default_rng(i).integers(0, 256, (6, 6), dtype=np.uint8),
        )
    return tmp_path


def test_image_formats_are_decoded(tmp_path):
    """Gray, RGB, RGBA, palette, 16-bit, CMYK, 1-bit and rotated files give the right bytes."""
    gray = np.arange(36, dtype=np.uint8).reshape(6, 6) * 7
    color = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    half = np.dstack([color, np.full((6, 6), 51, dtype=np.uint8)])
    palette = Image.fromarray(gray).convert("P")
    palette.putpalette([v for i in range(256) for v in (i, 255 - i, 0)])
    turned = Image.Exif()
    turned[0x0112] = 6  # stored rotated by 90°
    cases = {
        "gray.png": (gray, {}, np.dstack([gray] * 3)),
        "gray.pgm": (gray, {}, np.dstack([gray] * 3)),
        "rgb.png": (color, {}, color),
        "rgba.png": (half, {}, np.round(255 - (255.0 - color) * 0.2)),
        "palette.png": (palette, {}, np.dstack([gray, 255 - gray, 0 * gray])),
        "deep.png": (gray.astype(np.uint16) * 257, {}, np.dstack([gray] * 3)),
        "deep_low.png": (np.full((6, 6), 128, dtype=np.uint16), {}, np.zeros((6, 6, 3))),
        "bit.png": (
            Image.fromarray(gray).point(lambda v: 255 * (v > 100), "1"),
            {},
            np.dstack([(gray > 100) * 255] * 3),
        ),
        "turned.png": (color, {"exif": turned}, np.rot90(color, -1)),
        "hole.png": (color, {"transparency": tuple(color[0, 0].tolist())}, None),
        "cmyk.jpg": (
            Image.new("CMYK", (6, 6), (0, 255, 255, 0)),
            {"quality": 95},
            np.full((6, 6, 3), (254, 0, 0)),
        ),
    }
    for name, (array, options, wanted) in cases.items():
        write(tmp_path / name, array, **options)
        got = (
            ImageDecoder(channels=3, side=None, crop=None)(tmp_path / name)
            .permute(1, 2, 0)
            .numpy()
            .astype(float)
        )
        if wanted is None:
            wanted = color.astype(float)
            wanted[(color == color[0, 0]).all(-1)] = 255
        assert np.abs(got - wanted).max() <= (
            2 if name.endswith("jpg") else 1 if name == "rgba.png" else 0
        ), name
    data = ImageFolder(path=str(tmp_path), test=0.0, validation=0.0)
    assert (
        data.spec.shape == (3, 6, 6)
        and data.spec.num_classes == 0
        and data.size("train") == len(cases)
    )
    assert ImageFolder(path=str(tmp_path), channels=1).spec.shape == (1, 6, 6)
    assert data.describe().left_out_lines == []


@pytest.mark.parametrize(
    ("crop", "size", "wanted"),
    [
        ("center", None, [[2, 3], [6, 7]]),
        ("pad", None, [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]),
        ("center", 1, [[4]]),
        ("stretch", 2, [[2, 4], [6, 7]]),
    ],
)
def test_crop_and_resize(tmp_path, crop, size, wanted):
    write(tmp_path / "wide.png", np.arange(1, 9, dtype=np.uint8).reshape(2, 4))
    data = ImageFolder(path=str(tmp_path), crop=crop, size=size, validation=0.0, test=0.0)
    got = data.raw_items_and_labels("train")[0][0, 0].tolist()
    assert np.abs(np.array(got) - np.array(wanted)).max() <= (crop == "stretch" or size == 1)


def test_images_of_mixed_shapes_require_crop_and_size(tmp_path):
    write(tmp_path / "wide.png", np.zeros((2, 4), dtype=np.uint8))
    write(tmp_path / "big.png", np.zeros((8, 8), dtype=np.uint8))
    for options, words in [
        ({}, "not square.*dataset.crop=center"),
        ({"crop": "center"}, "2 different sizes.*dataset.size="),
        ({"crop": "stretch"}, "stretching needs a size"),
    ]:
        with pytest.raises(UserError, match=words):
            ImageFolder(path=str(tmp_path), **options)


def test_class_folders_and_split_folders(folder, tmp_path_factory):
    data = ImageFolder(path=str(folder))
    assert data.spec.num_classes == 2 and data.spec.shape == (1, 6, 6)
    assert [data.size(s) for s in ("train", "validation", "test")] == [20, 2, 2]
    base = tmp_path_factory.mktemp("split")
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        for i in range(n):
            write(base / split / f"{i}.png", np.full((4, 4), i, dtype=np.uint8))
    data = ImageFolder(path=str(base))
    assert [data.size(s) for s in ("train", "validation", "test")] == [
        5,
        2,
        3,
    ] and data.spec.num_classes == 0


def test_unreadable_images_are_named_and_counted(folder):
    good = (folder / "a" / "00.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(good[: len(good) - 25])  # breaks when decoded
    (folder / "b" / "text.png").write_text("not an image")  # breaks when opened
    data = ImageFolder(path=str(folder))
    assert sum(data.size(s) for s in ("train", "validation", "test")) == 24
    (line,) = data.describe().left_out_lines
    assert line.startswith("left out, unreadable: 2: b/text.png (") and "a/cut.png (" in line
    with pytest.raises(UserError, match="unreadable image .*text.png"):
        ImageFolder(path=str(folder), strict=True)

    streamed = ImageFolder(
        path=str(folder), cache_in_memory=False, workers=0, validation=0.0, test=0.0
    )
    assert len(next(streamed.batches("train", 25)).x) == 25
    assert streamed.describe().left_out_lines == [line]


def test_a_small_file_that_unpacks_to_a_huge_image_is_unreadable(folder, monkeypatch):
    monkeypatch.setattr("genlab.data.image_decoding.MAX_PIXELS", 49)
    write(folder / "a" / "bomb.png", np.zeros((8, 8), dtype=np.uint8))
    (line,) = ImageFolder(path=str(folder)).describe().left_out_lines
    assert line.startswith("left out, unreadable: 1: a/bomb.png (8×8 is over the limit")


def test_image_folder_errors(tmp_path):
    with pytest.raises(UserError, match="dataset.path=<folder>"):
        ImageFolder()
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(path=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no image in .*looked for \*.png"):
        ImageFolder(path=str(tmp_path))
    (tmp_path / "x.png").write_text("")
    with pytest.raises(UserError, match="unreadable: 1: x.png .*no image is left"):
        ImageFolder(path=str(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_equals_memory_bit_for_bit(folder, workers):
    options = dict(path=str(folder), size=4, binarize="dynamic", flip=True)
    held = ImageFolder(**options)
    streamed = ImageFolder(**options, cache_in_memory=False, workers=workers)
    state = torch.get_rng_state()
    order = dict(seed=5, start=2, shard=[0, 2], num_shards=3)
    pairs = [(held.batches("train", 12, **order), streamed.batches("train", 12, **order))]
    pairs += [
        (held.batches("train", 7, shuffle=False), streamed.batches("train", 7, shuffle=False))
    ]
    for ours, theirs in pairs:
        assert all(map(is_equal, islice(ours, 9), islice(theirs, 9)))
    assert is_equal(held.head("train", 9), streamed.head("train", 9))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(UserError, match="dataset.cache_in_memory=true"):
        streamed.raw_items_and_labels("train")


def test_a_dataset_over_the_memory_limit_streams(tmp_path):
    write(tmp_path / "0.png", np.zeros((8, 8), dtype=np.uint8))
    options = dict(path=str(tmp_path), size=1200, validation=0.0, test=0.0, workers=0)
    assert torch.is_tensor(
        ImageFolder(**options, cache_limit_mb=2).raw_items_and_labels("train")[0]
    )
    with pytest.raises(UserError, match="streams"):
        ImageFolder(**options, cache_limit_mb=1).raw_items_and_labels("train")


# --- downloaded datasets --------------------------------------------------------------------------


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("make", "words"), [(KMNIST, "kmnist.*four files"), (CIFAR10, "cifar-10"), (CelebA, "celeba")]
)
def test_a_missing_dataset_says_which_files_to_put_where(
    make, words, download, tmp_path, monkeypatch
):
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, make.__name__, offline)
    with pytest.raises(UserError, match=words) as error:
        make(root=str(tmp_path), download=download)
    assert (
        "dataset.download=true" in str(error.value)
        and ("not known" in str(error.value)) == download
    )


def test_mnist_reads_idx_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = lambda *sizes: np.array(sizes, dtype=">i4").tobytes()  # noqa: E731
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head(2051, 24, 28, 28) + x.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head(2049, 24) + bytes(range(24)))
    data = MNIST(root=str(tmp_path))
    assert [data.size(s) for s in ("train", "validation", "test")] == [22, 2, 24]
    images, labels = data.raw_items_and_labels("train")
    assert torch.equal(images[:, 0], torch.from_numpy(x)[labels])
    with pytest.raises(UserError, match="dataset.validation is 0"):
        MNIST(root=str(tmp_path), validation=0.0).head("validation", 1)
    (raw / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        MNIST(root=str(tmp_path))


def test_celeba_reads_partition_and_attributes(tmp_path):
    base = tmp_path / "celeba"
    names = [f"{i:06}.jpg" for i in range(1, 7)]
    for i, name in enumerate(names):
        write(base / "img_align_celeba" / name, np.full((218, 178, 3), 40 * i, dtype=np.uint8))
    (base / "list_eval_partition.txt").write_text(
        "".join(f"{n} {i // 3 + i // 5}\n" for i, n in enumerate(names))
    )
    rows = "".join(f"{n} -1 {1 if i % 2 else -1}\n" for i, n in enumerate(names))
    (base / "list_attr_celeba.txt").write_text(f"6\nBald Smiling\n{rows}")
    data = CelebA(root=str(tmp_path), size=16, label="Smiling")
    assert [data.size(s) for s in ("train", "validation", "test")] == [3, 2, 1]
    assert data.spec.shape == (3, 16, 16) and data.raw_items_and_labels("train")[1].tolist() == [
        0,
        1,
        0,
    ]
    with pytest.raises(UserError, match="did you mean 'Smiling'"):
        CelebA(root=str(tmp_path), label="Smilling")


def test_real_datasets():
    data = MNIST(root=str(real_data("MNIST").parent))
    assert [data.size(s) for s in ("train", "validation", "test")] == [55_000, 5_000, 10_000]
    assert data.raw_items_and_labels("train")[0].float().mean().item() == pytest.approx(
        0.1307 * 255, abs=0.2
    )


def test_real_image_folders():
    data = ImageFolder(path=str(real_data("orl_faces")), crop="center", size=64)
    assert data.spec.shape == (1, 64, 64) and data.spec.num_classes == 40
    assert sum(data.size(s) for s in ("train", "validation", "test")) == 400
    data = CIFAR10(root=str(real_data("cifar10_png").parent))
    assert data.spec.shape == (3, 32, 32) and data.size("train") + data.size("validation") == 6_000


# --- tables ---------------------------------------------------------------------------------------


def test_table_standardization_and_errors(tmp_path):
    values = np.random.default_rng(0).normal(3, 2, (50, 3))
    lines = [f"{a:.17g}; {b:.17g}; {c:.17g}; {'gh'[i % 2]}" for i, (a, b, c) in enumerate(values)]
    (tmp_path / "t.csv").write_text("\n".join(["length; width; depth; kind", *lines]))
    data = Table(path=str(tmp_path / "t.csv"))
    assert (
        data.spec.shape == (3,)
        and data.spec.num_classes == 2
        and data.spec.levels == 0
        and data.spec.kind == "points"
    )
    x, _ = data.raw_items_and_labels("train")
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3))
    back = (
        torch.cat([data.raw_items_and_labels(s)[0] for s in ("train", "validation", "test")])
        * data.scale
        + data.mean
    )
    np.testing.assert_allclose(np.sort(back.numpy(), 0), np.sort(values, 0), atol=1e-5)

    np.save(tmp_path / "t.npy", values)
    assert Table(path=str(tmp_path / "t.npy"), label="none", skip_columns=(1,)).spec.shape == (2,)
    (tmp_path / "t.data").write_text("1 2 0\n3 4 1\n\n5 nan 1\n")
    for options, words in [
        ({"path": "t.data", "validation": 0.0}, "row 4, column 1: 'nan'"),
        ({"path": "t.csv", "label": "none"}, "row 2, column 3: 'g' is not a finite number.*skip"),
        ({"path": "t.csv", "label": 4}, "no column 4"),
        ({"path": "none.csv"}, "no such file"),
    ]:
        with pytest.raises(UserError, match=words):
            Table(**{**options, "path": str(tmp_path / options["path"])})


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [Digits, MNIST, CIFAR10, CelebA, ImageFolder, Points, Table, Fake, StackedMNIST]
)
def test_yaml_lists_every_option(make):
    """Each YAML has every option of its class, and the type hints resolve at runtime."""
    from dataclasses import fields

    from omegaconf import OmegaConf

    hints = get_type_hints(make.__init__)
    name = "points" if make is Points else make.name
    file = Path(__file__).parents[2] / "configs" / "dataset" / f"{name}.yaml"
    shown = set(OmegaConf.load(file)) - {"_target_"}
    assert shown == {f.name for f in fields(make)} <= set(hints)
