"""Standard datasets that torchvision downloads: MNIST, its two variants, and CIFAR-10."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.data.dataset import Split
from genlab.data.image_dataset import NO_VALIDATION, Images, resize_images
from genlab.data.image_decoding import ImageDecoder
from genlab.data.image_files import StreamedImages, UnreadableImages, find_images_with_labels
from genlab.data.summary import LeftOut
from genlab.errors import UserError
from genlab.spec import Fraction
from genlab.untrusted.files import read_bytes, refuse_links_and_special_files


def ensure_downloaded(
    name: str, root: Path, files: list[Path], download: Callable[[], Any] | None, by_hand: str
) -> None:
    """Download a dataset whose files are not all there.

    Args:
        download: downloads the dataset below `root`; None does not download.
        by_hand: what to put where instead, as "the four files … into root/MNIST/raw".

    Raises:
        UserError: the files are missing and cannot be downloaded; the message says what to put
            where.
    """
    if all(file.exists() for file in files):
        return
    reason = ""
    if download is not None:
        try:
            download()
        except Exception as error:  # no network, a full disk, a changed address: same way out
            words = " ".join(str(error).split())[:200] or type(error).__name__
            reason = f" (the download failed: {words})"
        else:
            return
    raise UserError(
        f"{name} is not in {root}{reason}; download it where there is a network with"
        f" `genlab train dataset={name} dataset.download=true`, or put {by_hand}"
        " (dataset.root or the environment variable GENLAB_DATA names the folder)"
    )


@dataclass(kw_only=True, eq=False)
class TorchvisionImages(Images):
    """A dataset with an official test split; `validation` of the training images are held out.

    Args:
        root: the folder that the files are in, or are downloaded to.
        download: whether to download missing files.
        validation: fraction of the training images held out by the seed `split_seed`; 0 trains on
            all of them.
    """

    root: str = "data"
    download: bool = True
    validation: Fraction = 0.1

    def make_downloader(self, class_name: str) -> Callable[[], Any] | None:
        """Return a function that downloads torchvision's class, or None if disabled."""

        def download() -> None:
            from torchvision import datasets  # takes two seconds to import: only where it is used

            getattr(datasets, class_name)(self.root, download=True)

        return download if self.download else None

    def set_official_splits(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        num_classes: int,
        class_names: Sequence[str] = (),
    ) -> None:
        """Set the uint8 images (N, C, H, W) and labels (N,) of the two official splits."""
        (x, y), (x_test, y_test) = ((resize_images(x, self.side), y) for x, y in (train, test))
        splits = {
            **self.split_train_and_validation(x, y, self.validation),
            "test": Split(x_test, y_test),
        }
        self.set_image_splits(
            splits,
            shape=x.shape[1:],
            num_classes=num_classes,
            class_names=class_names,
            hints=NO_VALIDATION,
        )


def read_idx_file(path: Path) -> Tensor:
    """Return the uint8 array in a file of the IDX format: sizes, then bytes.

    http://yann.lecun.com/exdb/mnist
    """
    data = np.frombuffer(bytearray(read_bytes(path)), dtype=np.uint8)
    axes = int(data[3]) if len(data) > 3 else 0
    shape = tuple(data[4 : 4 + 4 * axes].view(">u4").tolist()) if len(data) >= 4 + 4 * axes else ()
    if not shape or data[2] != 8 or len(data) != 4 + 4 * axes + math.prod(shape):
        raise UserError(
            f"{path} is damaged: it is not a complete IDX file of bytes; replace it with a fresh "
            "one"
        )
    return torch.from_numpy(data[4 + 4 * axes :].reshape(shape))


@dataclass(kw_only=True, eq=False)
class MNIST(TorchvisionImages):
    """Handwritten digits: LeCun et al. 1998, 60,000 + 10,000 gray images of 28×28, 10 classes."""

    validation: Fraction = 1 / 12
    name = "mnist"
    commonly_binarized = True
    folder: ClassVar[str] = "MNIST"  # torchvision's name of the class and of its folder
    class_names: ClassVar[Sequence[str]] = ()  # the digits are numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        root = Path(self.root).expanduser()
        raw = root / self.folder / "raw"
        names = [
            f"{part}-{kind}-ubyte"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ]
        files = [raw / name for name in names]
        by_hand = f"the four files {', '.join(names)} into {raw}"
        ensure_downloaded(self.name, root, files, self.make_downloader(self.folder), by_hand)
        x, y, x_test, y_test = (read_idx_file(file) for file in files)
        for images, labels, file in ((x, y, files[1]), (x_test, y_test, files[3])):
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"{file} is damaged: it does not have one label per image; replace it with a "
                    "fresh one"
                )
        self.source_files = files
        self.set_official_splits(
            (x.unsqueeze(1), y.long()), (x_test.unsqueeze(1), y_test.long()), 10, self.class_names
        )


class FashionMNIST(MNIST):
    """Clothes in the format of MNIST: Xiao et al. 2017, https://arxiv.org/abs/1708.07747."""

    name = "fashion_mnist"
    folder: ClassVar[str] = "FashionMNIST"
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )


class KMNIST(MNIST):
    """Cursive Japanese characters in the format of MNIST.

    Clanuwat et al. 2018, https://arxiv.org/abs/1812.01718.
    """

    name = "kmnist"
    folder: ClassVar[str] = "KMNIST"
    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(kw_only=True, eq=False)
class CIFAR10(TorchvisionImages):
    """Small color photographs: Krizhevsky 2009, 50,000 + 10,000 images of 32×32, 10 classes.

    Read from torchvision's folder `cifar-10-batches-py`, or else from PNG files
    `cifar10_png/{train,test}/<class>/`.
    """

    name = "cifar10"

    def __post_init__(self) -> None:
        super().__post_init__()
        root = Path(self.root).expanduser()
        folders = [root / "cifar10_png" / part for part in ("train", "test")]
        batches = root / "cifar-10-batches-py"
        if not batches.exists() and all(folder.is_dir() for folder in folders):
            train, test = (self.read_png_folder(folder) for folder in folders)
        else:
            by_hand = f"the files of cifar-10-python.tar.gz into {batches}"
            downloader = self.make_downloader("CIFAR10")
            ensure_downloaded(self.name, root, [batches / "batches.meta"], downloader, by_hand)
            train, test = (self.read_official_split(train=part) for part in (True, False))
        self.set_official_splits(train, test, 10, CIFAR10_CLASSES)

    def read_official_split(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Return the images uint8 (N, 3, 32, 32) and labels (N,) of torchvision's files."""
        from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

        # torchvision unpickles these files only if they have the checksums of the originals
        refuse_links_and_special_files(Path(self.root, "cifar-10-batches-py"), "dataset")
        try:
            part = TorchvisionCIFAR10(self.root, train=train)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the files of cifar10 in {self.root}/cifar-10-batches-py are damaged: {error}"
            ) from error
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        return x, torch.tensor(part.targets)

    @staticmethod
    def read_png_folder(folder: Path) -> tuple[Tensor, Tensor]:
        """Return the images uint8 (N, 3, 32, 32) and labels (N,) of class folders of PNG files."""
        images = find_images_with_labels(folder)
        decoder = ImageDecoder(channels=3, side=32, crop=None)
        files = StreamedImages(
            images.paths, decoder, UnreadableImages(folder, LeftOut(), strict=True)
        )
        assert images.labels is not None
        return files.decode_all_readable()[0], images.labels
