"""The standard sets that torchvision knows how to download: MNIST and its two look-alikes, and CIFAR-10."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.data.dataset import Split
from genlab.data.image_dataset import NO_VALIDATION, Images, resized
from genlab.data.image_decoding import Reader
from genlab.data.image_files import Files, Unreadable, list_images
from genlab.errors import UserError
from genlab.spec import Fraction


def ensure(
    name: str, root: Path, files: list[Path], fetch: Callable[[], Any] | None, what: str
) -> None:
    """Download a set whose files are not all there.

    Args:
        fetch: downloads the set below `root`; None where that is not wanted.
        what: the files in words, as "the four files … into root/MNIST/raw".

    Raises:
        UserError: the files are missing and cannot be downloaded; the line says what to put where.
    """
    if all(file.exists() for file in files):
        return
    reason = ""
    if fetch is not None:
        try:
            fetch()
        except (
            Exception
        ) as error:  # no network, a full disk, a changed address: the user is told the same way out
            reason = f" (the download failed: {' '.join(str(error).split())[:200] or type(error).__name__})"
        else:
            return
    raise UserError(
        f"{name} is not in {root}{reason}; download it where there is a network with"
        f" `genlab train dataset={name} dataset.download=true`, or put {what}"
        " (dataset.root or the environment variable GENLAB_DATA names the folder)"
    )


@dataclass(kw_only=True, eq=False)
class Downloaded(Images):
    """A set with an official test split, of which `validation` of the training images are held out.

    Args:
        root: the folder that holds the set, or will.
        download: whether to download what is missing.
        validation: share of the training images held out by the seed `split_seed`; 0 trains on all of them.
    """

    root: str = "data"
    download: bool = True
    validation: Fraction = 0.1

    def fetch(self, source: str) -> Callable[[], Any] | None:
        """Return what downloads torchvision's class `source` into the root, or None where that is not wanted."""

        def download() -> None:
            from torchvision import datasets  # takes two seconds to import: only where it is used

            getattr(datasets, source)(self.root, download=True)

        return download if self.download else None

    def hold_downloaded(
        self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int
    ) -> None:
        """Take the uint8 images (N, C, H, W) and labels (N,) of the two official splits."""
        (x, y), (x_test, y_test) = ((resized(x, self.side), y) for x, y in (train, test))
        splits = {**self.held_out(x, y, self.validation), "test": Split(x_test, y_test)}
        self.hold_images(splits, shape=x.shape[1:], classes=classes, missing=NO_VALIDATION)


def idx(path: Path) -> Tensor:
    """Return the uint8 array in a file of the IDX format (http://yann.lecun.com/exdb/mnist): sizes, then bytes."""
    data = np.fromfile(path, dtype=np.uint8)
    axes = int(data[3]) if len(data) > 3 else 0
    shape = tuple(data[4 : 4 + 4 * axes].view(">u4").tolist()) if len(data) >= 4 + 4 * axes else ()
    if not shape or data[2] != 8 or len(data) != 4 + 4 * axes + math.prod(shape):
        raise UserError(
            f"{path} is damaged: it is not a whole IDX file of bytes; put a fresh one there"
        )
    return torch.from_numpy(data[4 + 4 * axes :].reshape(shape))


@dataclass(kw_only=True, eq=False)
class MNIST(Downloaded):
    """Handwritten digits: LeCun et al. 1998, 60,000 + 10,000 grey images of 28×28, 10 classes."""

    validation: Fraction = 1 / 12
    name = "mnist"
    folder: ClassVar[str] = "MNIST"  # torchvision's name of the class and of its folder

    def __post_init__(self) -> None:
        super().__post_init__()
        root = Path(self.root)
        raw = root / self.folder / "raw"
        names = [
            f"{part}-{kind}-ubyte"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ]
        files = [raw / name for name in names]
        ensure(
            self.name,
            root,
            files,
            self.fetch(self.folder),
            f"the four files {', '.join(names)} into {raw}",
        )
        x, y, x_test, y_test = (idx(file) for file in files)
        for images, labels, where in ((x, y, raw / names[1]), (x_test, y_test, raw / names[3])):
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"{where} is damaged: it is not the labels of as many images; put a fresh one there"
                )
        self.sources = files
        self.hold_downloaded((x.unsqueeze(1), y.long()), (x_test.unsqueeze(1), y_test.long()), 10)


class FashionMNIST(MNIST):
    """Clothes in the format of MNIST: Xiao et al. 2017, https://arxiv.org/abs/1708.07747."""

    name = "fashion_mnist"
    folder: ClassVar[str] = "FashionMNIST"


class KMNIST(MNIST):
    """Cursive Japanese characters in the format of MNIST: Clanuwat et al. 2018, https://arxiv.org/abs/1812.01718."""

    name = "kmnist"
    folder: ClassVar[str] = "KMNIST"


@dataclass(kw_only=True, eq=False)
class CIFAR10(Downloaded):
    """Small colour photographs: Krizhevsky 2009, 50,000 + 10,000 images of 32×32, 10 classes.

    Read from torchvision's folder `cifar-10-batches-py`, else from PNG files `cifar10_png/{train,test}/<class>/`.
    """

    name = "cifar10"

    def __post_init__(self) -> None:
        super().__post_init__()
        root = Path(self.root)
        folders = [root / "cifar10_png" / part for part in ("train", "test")]
        batches = root / "cifar-10-batches-py"
        if not batches.exists() and all(folder.is_dir() for folder in folders):
            train, test = (self.pngs(folder) for folder in folders)
        else:
            what = f"the files of cifar-10-python.tar.gz into {batches}"
            ensure(self.name, root, [batches / "batches.meta"], self.fetch("CIFAR10"), what)
            train, test = (self.official(part) for part in (True, False))
        self.hold_downloaded(train, test, 10)

    def official(self, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import CIFAR10 as Source

        try:
            part = Source(self.root, train=train)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the files of cifar10 in {self.root}/cifar-10-batches-py are damaged: {error}"
            ) from error
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(
            part.targets
        )

    @staticmethod
    def pngs(folder: Path) -> tuple[Tensor, Tensor]:
        found = list_images(folder)
        files = Files(
            found.paths, Reader(channels=3, side=32, crop=None), Unreadable(folder, strict=True)
        )
        return files.load()[0], found.labels
