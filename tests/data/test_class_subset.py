"""Classes by name or number: of a DataSpec, and of datasets without some classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genlab.data.image_folder import ImageFolder
from genlab.data.shapes2d import Shapes
from genlab.data.torchvision_sets import CIFAR10_CLASSES, KMNIST, MNIST, FashionMNIST
from genlab.errors import UserError
from genlab.spec import DataSpec


def spec(*names: str, num_classes: int = 0) -> DataSpec:
    """Return the DataSpec of images with these classes."""
    return DataSpec((1, 4, 4), num_classes=num_classes or len(names), class_names=names)


@pytest.mark.parametrize(
    ("names", "typed", "number"),
    [
        (("cat", "dog"), "dog", 1),
        (("cat", "dog"), "Dog", 1),
        (("cat", "dog"), 1, 1),
        (("cat", "dog"), "1", 1),
        (("cat", "Cat"), "Cat", 1),
        (("3", "7"), 7, 1),
        (("01", "02"), 2, 1),
        (("1", "2", "10"), "10", 2),
        (("False", "True"), True, 1),
        (("0.5", "1.5"), 1.5, 1),
        (("Ankle boot", "T-shirt/top"), "ankle boot", 0),
        (("caf\u00e9", "thé"), "cafe\u0301", 0),
    ],
)
def test_a_class_is_given_by_name_or_number(
    names: tuple[str, ...], typed: Any, number: int
) -> None:
    """A name wins over a number, and letter case matters only where names differ by it alone."""
    assert spec(*names).class_number(typed) == number


@pytest.mark.parametrize(
    ("of", "typed", "words"),
    [
        (spec("cat", "dog"), "dgo", r"label=dgo: no such class \(did you mean 'dog'\?\).*cat, dog"),
        (spec("cat", "dog"), 2, "label=2: no such class; the classes are cat, dog"),
        (spec("1", "2", "10"), 0, "the classes are 1, 2, 10"),
        (spec("cat", "Cat"), "CAT", "no such class"),
        (spec(num_classes=10), 10, "the classes are 0 to 9"),
        (spec(num_classes=10), -1, "the classes are 0 to 9"),
        (spec(num_classes=10), "dog", "the classes are 0 to 9"),
        (spec(num_classes=10), 1.5, "the classes are 0 to 9"),
        (spec(), 0, "does not have classes"),
        (spec(*(f"n{i}" for i in range(99))), "x", r"n0, .*, n11, …$"),
    ],
)
def test_unknown_classes_are_refused(of: DataSpec, typed: Any, words: str) -> None:
    """The message lists the classes, but not a thousand of them."""
    with pytest.raises(UserError, match=words):
        of.class_number(typed)


def test_public_datasets_have_class_names() -> None:
    """The classes of photographs, clothes and characters have names, digits are numbers."""
    assert len(set(CIFAR10_CLASSES)) == len(set(FashionMNIST.class_names)) == 10
    assert len(set(KMNIST.class_names)) == 10 and MNIST.class_names == ()
    assert Shapes().spec.class_number("heart") == 2


@pytest.mark.parametrize(
    ("options", "counts", "note"),
    [
        ({"classes": "dog"}, [0, 8, 0], "trained on the classes dog"),
        ({"classes": ("cat", 2)}, [8, 0, 8], "trained on the classes cat, fish"),
        ({"class_fraction": {"dog": 0.5}}, [8, 4, 8], "cat, fish, 0.5 of dog"),
        ({"class_fraction": {1: 0.5, "Fish": 0.0}}, [8, 4, 0], "cat, 0.5 of dog"),
    ],
)
def test_classes_of_training_by_name(
    options: dict, counts: list[int], note: str, tmp_path: Path
) -> None:
    """`dataset.classes` and `dataset.class_fraction` take names, and the summary says them."""
    for name in ("cat", "dog", "fish"):
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.new("L", (4, 4), 10 * i).save(tmp_path / name / f"{i}.png")
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0, **options)
    assert data.splits["train"].y.bincount(minlength=3).tolist() == counts
    assert note in data.notes[-1]
    with pytest.raises(UserError, match="dataset.classes=bird: no such class"):
        ImageFolder(path=str(tmp_path), classes="bird")


def test_classes_get_the_numbers_of_another_dataset(tmp_path: Path) -> None:
    """A folder without some classes is measured with the numbers of the run's training."""
    for name in ("dog", "fish"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0)
    data.renumber_classes(("cat", "dog", "fish"))
    assert data.splits["train"].y.tolist() == [1, 2] and data.spec.num_classes == 3
    with pytest.raises(UserError, match="has the class dog, but the run was trained on cat"):
        data.renumber_classes(("cat", "fish"))
