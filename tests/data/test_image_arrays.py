"""Image sets in .npy and .npz files: layouts, ranges, labels and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genlab.data.image_arrays import convert_to_gray_or_rgb, make_square_images
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (12, 6, 6), dtype=np.uint8)
COLOR = RANDOM.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
Y = np.arange(12) % 3


def read(folder: Path, arrays: dict[str, np.ndarray], **options: Any) -> ImageFolder:
    """Return the dataset of a .npz file; all images are in train without split names."""
    np.savez(folder / "set.npz", **arrays)
    options = {"validation": 0.0, "test": 0.0} | options
    return ImageFolder(path=str(folder / "set.npz"), **options)


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (GRAY, GRAY[:, None]),
        (GRAY[..., None], GRAY[:, None]),
        (COLOR, COLOR.transpose(0, 3, 1, 2)),
        (COLOR.transpose(0, 3, 1, 2), COLOR.transpose(0, 3, 1, 2)),
        (GRAY > 127, (GRAY[:, None] > 127) * 255),
        (GRAY > 127, (GRAY[:, None] > 127) * 255),
        ((GRAY > 127).astype(np.uint8), (GRAY[:, None] > 127) * 255),
        (GRAY.astype(np.int64), GRAY[:, None]),
        (GRAY / 255, GRAY[:, None]),
        (GRAY.astype(np.float32), GRAY[:, None]),
        (GRAY.astype(np.uint16) * 257, GRAY[:, None]),
        (GRAY[:, :4, :4], GRAY[:, None, :4, :4]),
    ],
)
def test_layouts_and_number_formats(x: np.ndarray, wanted: np.ndarray, tmp_path: Path) -> None:
    """Bytes, integers and floats in any of the three layouts become the same pixels."""
    data = read(tmp_path, {"x": x})
    assert np.array_equal(data.raw_items_and_labels("train")[0].numpy(), wanted)
    np.save(tmp_path / "set.npy", x)
    assert len(ImageFolder(path=str(tmp_path / "set.npy")).splits["train"]) == 10


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    """A fourth channel is the opacity."""
    x = np.zeros((12, 6, 6, 4), dtype=np.uint8)
    x[:6, ..., 3] = 255
    data = read(tmp_path, {"x": x})
    pixels = data.raw_items_and_labels("train")[0]
    assert int(pixels[:6].max()) == 0 and int(pixels[6:].min()) == 255
    assert "transparency" in data.notes[0]


@pytest.mark.parametrize(
    ("arrays", "classes", "y"),
    [
        ({"x": GRAY, "y": Y}, (), Y),
        ({"arr_0": GRAY, "arr_1": Y}, (), Y),
        ({"images": GRAY, "labels": Y[:, None].astype(float)}, (), Y),
        ({"x": GRAY, "y": np.eye(3)[Y]}, (), Y),
        ({"x": GRAY, "y": Y * 5 + 2}, ("2", "7", "12"), Y),
        ({"x": GRAY, "y": np.array(["dog", "cat"] * 6)}, ("cat", "dog"), np.array([1, 0] * 6)),
        ({"x": GRAY, "y": np.array(["2", "10"] * 6)}, ("2", "10"), np.array([0, 1] * 6)),
        ({"x": GRAY, "y": Y, "class_names": np.array(["a", "b", "c"])}, ("a", "b", "c"), Y),
        ({"x": GRAY, "y": Y % 2 == 0}, (), (Y % 2 == 0).astype(int)),
    ],
)
def test_labels(
    arrays: dict[str, np.ndarray], classes: tuple[str, ...], y: np.ndarray, tmp_path: Path
) -> None:
    """Labels are numbers, names or one-hot vectors; other values than 0, 1, … are names."""
    data = read(tmp_path, arrays)
    assert data.spec.class_names == classes
    assert data.spec.num_classes == len(np.unique(y))
    assert data.raw_items_and_labels("train")[1].tolist() == y.tolist()
    assert not data.left_out.counts


@pytest.mark.parametrize("style", ["x_{}", "{}_images"])
def test_names_of_arrays_say_the_splits(style: str, tmp_path: Path) -> None:
    """As in mnist.npz of Keras, x_train, and in MedMNIST, train_images."""
    label = "y_{}" if style.startswith("x") else "{}_labels"
    arrays = {style.format(s): GRAY[:n] for s, n in (("train", 12), ("val", 4), ("test", 6))}
    arrays |= {label.format(s): Y[:n, None] for s, n in (("train", 12), ("val", 4), ("test", 6))}
    data = read(tmp_path, arrays | {"ids": Y})
    assert list(data.describe().splits.values()) == [12, 4, 6]
    assert data.raw_items_and_labels("test")[1].tolist() == Y[:6].tolist()
    assert data.left_out.to_json() == {"unused array": {"count": 1, "examples": ["ids"]}}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": GRAY * 2.0 - 200}, r"set them, as dataset.file_range=\["),
        ({"x": GRAY.astype(float) / 16}, r"dataset.file_range=\[0,16\]"),
        ({"x": GRAY.astype(np.uint16) * 16}, r"dataset.file_range=\[0,4095\]"),
        ({"x": GRAY // 16}, r"dataset.file_range=\[0,15\], or dataset.file_range=\[0,255\]"),
        ({"x": np.full((9, 6, 6), np.nan)}, "not finite"),
        ({"x": GRAY.reshape(12, 36)}, r"reshape the rows to \(12, 6, 6\)"),
        ({"x": np.zeros((64, 60, 3))}, "is one image, or 64"),
        ({"x": GRAY[:, :4]}, "dataset.crop=center"),
        ({"x": GRAY, "y": Y[:5]}, "12 images and 5 labels"),
        ({"x": GRAY, "y": np.arange(12)}, "12 different values.*dataset.labels=false"),
        ({"x": GRAY, "y": Y / 2}, "not integers; dataset.labels=false"),
        ({"x": GRAY, "y": np.ones((12, 4))}, "not one per image"),
        ({"x_train": GRAY, "y_train": Y, "x_test": GRAY}, "images of test do not have labels"),
        ({"a": GRAY, "b": GRAY}, "name the training images x"),
        ({"x": GRAY, "x_test": COLOR}, "different shapes"),
        ({"x": GRAY[:0]}, "has the shape"),
        ({"x": GRAY, "y": np.array([{}] * 12, dtype=object)}, "plain numbers"),
    ],
)
def test_unclear_arrays_are_refused(
    arrays: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    """The message says what the file has, and what to set."""
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, arrays)
    if "labels=false" in str(error.value):
        assert read(tmp_path, arrays, labels=False).spec.num_classes == 0


def test_the_suggested_range_works(tmp_path: Path) -> None:
    """With the option that the message names, the images are read."""
    data = read(tmp_path, {"x": GRAY.astype(float) / 16}, file_range=(0.0, 16.0))
    assert int(data.raw_items_and_labels("train")[0].max()) > 240


def test_samples_of_genlab_are_a_training_set(tmp_path: Path) -> None:
    """The range that `genlab sample` writes beside its samples is obeyed."""
    x = GRAY[:, None] / 127.5 - 1
    data = read(tmp_path, {"x": x, "range": np.array([-1.0, 1.0])})
    assert (
        np.abs(data.raw_items_and_labels("train")[0].numpy().astype(int) - GRAY[:, None]).max() <= 1
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.csv", "for a table, use dataset=table"),
        ("x.zip", "give a folder of images, or an array"),
        ("x.npy", "not a NumPy file"),
    ],
)
def test_other_files_are_refused(name: str, words: str, tmp_path: Path) -> None:
    """A file that is not an array of images is named, with what to give instead."""
    (tmp_path / name).write_text("1")
    with pytest.raises(UserError, match=words):
        ImageFolder(path=str(tmp_path / name))


@pytest.mark.parametrize(
    ("crop", "side", "shape"),
    [("center", None, 4), ("pad", None, 8), ("stretch", 4, 4), ("center", 2, 2), ("pad", 4, 4)],
)
def test_images_that_are_not_square(crop: str, side: int | None, shape: int) -> None:
    """Arrays are cropped, padded and resized as files are."""
    x = torch.arange(32, dtype=torch.uint8).view(1, 1, 4, 8)
    square = make_square_images(x, side, crop)
    assert square.shape == (1, 1, shape, shape) and square.dtype == torch.uint8
    if (crop, side) == ("pad", None):
        assert torch.equal(square[..., 2:6, :], x)
    if (crop, side) == ("center", None):
        assert torch.equal(square, x[..., 2:6])


def test_channels_are_converted() -> None:
    """Gray is repeated, and color is weighted as Pillow does."""
    gray = torch.tensor([[[[200]]]], dtype=torch.uint8)
    assert convert_to_gray_or_rgb(gray, 3).flatten().tolist() == [200] * 3
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert convert_to_gray_or_rgb(red, 1).item() == 76
    assert convert_to_gray_or_rgb(red, None) is red
