"""The splits and classes that the names of a folder's subfolders say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genlab.data.image_files import (
    SUFFIXES,
    ImageFiles,
    find_images_with_labels_v1,
    is_hidden_or_system_name,
    label_images_by_class_name,
    list_images,
    normalize_to_nfc,
    sort_class_names,
)
from genlab.data.summary import LeftOut
from genlab.errors import UserError
from genlab.untrusted.files import read_bytes, real_path

SPLIT_FOLDERS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
SPLIT_FOLDERS_V1 = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
MAX_FOLDERS_NAMED = 5
LABEL_FILE = "dataset.json"  # of StyleGAN's dataset_tool, whose folders are parts and not classes


def split_from_folder_name(name: str) -> str | None:
    """Return the split that a folder's name says, in any letter case, or None."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


@dataclass
class FolderLayout:
    """Reads which images of a folder are in which split and class.

    Args:
        folder: the folder.
        left_out: the files that are not used are counted in it.
        notes: decisions are appended to it.
        split_folders: whether folders named train, val and test are splits; None decides.
        labels: whether the subfolders are classes; None decides.
    """

    folder: Path
    left_out: LeftOut
    notes: list[str]
    split_folders: bool | None = None
    labels: bool | None = None

    def read_images_by_split(self) -> dict[str, ImageFiles]:
        """Return the images of each split that has a folder; without such folders all are train.

        Raises:
            UserError: images are missing, or it is not clear which folders are splits.
        """
        paths = list_images(self.folder, self.left_out)
        if not paths:
            raise make_no_image_error(self.folder, self.left_out)
        root = self.descend_single_subfolders(self.folder, paths)
        if root != self.folder:
            self.notes.append(f"all images are in {root.relative_to(self.folder)}/")
        if self.has_split_folders_in_class_folders(root, paths):
            return self.label_splits_in_class_folders(root, paths)
        parts = self.group_images_by_split(root, paths)
        splits = {"train": self.label_training_images(*parts.pop("train"))}
        for split, (sub, sub_paths) in parts.items():
            files = self.label_heldout_images(sub, sub_paths, splits["train"].class_names)
            if files is not None:
                splits[split] = files
        return splits

    def descend_single_subfolders(
        self, root: Path, paths: list[Path], known: Iterable[str] = ()
    ) -> Path:
        """Return the folder below `root` that has all images, in several folders or itself.

        Args:
            known: names of classes and splits, which are not entered.
        """
        while True:
            groups = group_by_subfolder(root, paths)
            (name, *others) = groups
            if others or not name or normalize_to_nfc(name) in known:
                return root
            if self.split_folders is not False and split_from_folder_name(name):
                return root
            is_leaf = list(group_by_subfolder(root / name, paths)) == [""]
            if is_leaf and (self.labels or known):
                return root  # the only class
            self.count_empty_folders(root, groups)
            root = root / name

    def count_empty_folders(self, root: Path, groups: Iterable[str]) -> None:
        """Count the subfolders without images, which are not classes."""
        for path in sorted(root.iterdir()):
            is_folder = (
                path.is_dir() and not path.is_symlink() and not is_hidden_or_system_name(path.name)
            )
            if is_folder and path.name not in groups:
                name = str(path.relative_to(self.folder))
                self.left_out.add("folder without images", f"{name}/")

    # --- splits -----------------------------------------------------------------------------------

    def group_images_by_split(
        self, root: Path, paths: list[Path]
    ) -> dict[str, tuple[Path, list[Path]]]:
        """Return the folder and the images of each split.

        Raises:
            UserError: it is not clear which folders are splits; the message says what to set.
        """
        groups = group_by_subfolder(root, paths)
        splits = {name: split for name in groups if (split := split_from_folder_name(name))}
        if not splits or self.split_folders is False:
            if self.split_folders:
                names = ", ".join(f"{name}/" for name in SPLIT_FOLDERS["train"][:1])
                raise UserError(f"dataset.split_folders=true, but {root} does not have {names}")
            return {"train": (root, paths)}
        others = [name for name in groups if name and name not in splits]
        if "train" not in splits.values() or (others and self.split_folders is None):
            raise self.make_unclear_splits_error(root, sorted(splits), others)
        found: dict[str, tuple[Path, list[Path]]] = {}
        for name, split in splits.items():
            if split in found:
                raise UserError(
                    f"{found[split][0]} and {root / name} are both {split}; join them, or set "
                    "dataset.split_folders=false if they are classes"
                )
            found[split] = root / name, groups[name]
        for name in ("", *others):
            for path in groups.get(name, []):
                self.record_left_out_image("beside the folders of the splits", path)
        self.count_empty_folders(root, groups)
        return found

    def make_unclear_splits_error(
        self, root: Path, splits: list[str], others: list[str]
    ) -> UserError:
        """Return the error for folders that may be splits or classes."""
        has_train = any(split_from_folder_name(name) == "train" for name in splits)
        listed = " and ".join(f"{name}/" for name in splits)
        if not others:
            return UserError(
                f"{root} has {listed}, but not train/: give the folder of the training images, as "
                f"dataset.path={root / splits[0]}, or set dataset.split_folders=false"
            )
        names = ", ".join(f"{name}/" for name in others[:MAX_FOLDERS_NAMED])
        names += ", …" if len(others) > MAX_FOLDERS_NAMED else ""
        as_splits = (
            f"dataset.split_folders=true (splits; {names} is left out) or " if has_train else ""
        )
        are = "is a split or a class" if len(splits) == 1 else "are splits or classes"
        return UserError(
            f"{root} has {listed} beside {names}, so that it is not clear whether {listed} {are}: "
            f"set {as_splits}dataset.split_folders=false (classes)"
        )

    def has_split_folders_in_class_folders(self, root: Path, paths: list[Path]) -> bool:
        """Whether each class folder contains the folders of the splits: cat/train/, cat/test/."""
        if self.split_folders is False or self.labels is False:
            return False
        parts = [path.relative_to(root).parts for path in paths]
        return len({p[0] for p in parts}) > 1 and all(
            len(p) > 2 and split_from_folder_name(p[1]) and not split_from_folder_name(p[0])
            for p in parts
        )

    def label_splits_in_class_folders(self, root: Path, paths: list[Path]) -> dict[str, ImageFiles]:
        """Return the labeled images of each split of the layout cat/train/, cat/test/."""
        named: list[tuple[Path, str, str]] = []
        for path in paths:
            name, sub, *_ = path.relative_to(root).parts
            named.append((path, name, sub))
        class_names = sort_class_names(name for _, name, _ in named)
        self.notes.append("the folders of the classes contain the folders of the splits")
        splits = {}
        for split in SPLIT_FOLDERS:
            chosen = [
                (path, name) for path, name, sub in named if split_from_folder_name(sub) == split
            ]
            if chosen:
                names = [normalize_to_nfc(name) for _, name in chosen]
                splits[split] = label_images_by_class_name(
                    [path for path, _ in chosen], names, class_names
                )
        if "train" not in splits:
            raise UserError(f"no class folder of {root} has a folder train/")
        return splits

    # --- classes ----------------------------------------------------------------------------------

    def label_training_images(self, root: Path, paths: list[Path]) -> ImageFiles:
        """Return the training images, labeled if the subfolders are classes.

        Raises:
            UserError: labels are required, and subfolders are missing.
        """
        root = self.descend_single_subfolders(root, paths)
        groups = group_by_subfolder(root, paths)
        beside = groups.pop("", [])
        if self.labels and not groups:
            raise UserError(f"dataset.labels=true, but {root} does not have class folders")
        has_classes = self.labels is not False and len(groups) >= (1 if self.labels else 2)
        if has_classes and self.labels is None and len(beside) > len(paths) - len(beside):
            has_classes = False
            self.notes.append(
                f"the folders {', '.join(list(groups)[:MAX_FOLDERS_NAMED])} are not classes, "
                f"because most images ({len(beside):,} of {len(paths):,}) are beside them; "
                "dataset.labels=true takes them as classes"
            )
        if has_classes and self.labels is None:
            self.refuse_folders_of_stylegan(root, list(groups))
        if not has_classes:
            return ImageFiles(paths)
        self.count_empty_folders(root, groups)
        return self.label_images_by_class_folder(root, paths, sort_class_names(groups))

    def refuse_folders_of_stylegan(self, root: Path, names: list[str]) -> None:
        """Refuse to take folders for classes beside the dataset.json of StyleGAN.

        Raises:
            UserError: there is such a file; says what to set.
        """
        try:
            content = json.loads(read_bytes(root / LABEL_FILE))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(content, dict) and "labels" in content:
            raise UserError(
                f"{root / LABEL_FILE} says the labels of the images, which is not read, so that "
                f"the folders {', '.join(names[:MAX_FOLDERS_NAMED])} are not their classes: set "
                "dataset.labels=false (no labels), or dataset.labels=true if the folders are the "
                "classes"
            )

    def label_heldout_images(
        self, root: Path, paths: list[Path], class_names: list[str]
    ) -> ImageFiles | None:
        """Return the images of a held-out split, or None if they lack the labels of train.

        Raises:
            UserError: a class folder is not one of train.
        """
        if not class_names:
            return ImageFiles(paths)
        top = root
        root = self.descend_single_subfolders(root, paths, class_names)
        groups = group_by_subfolder(root, paths)
        if unknown := [n for n in groups if n and normalize_to_nfc(n) not in class_names]:
            raise UserError(
                f"{root / unknown[0]} is not one of the class folders of train "
                f"({', '.join(class_names[:MAX_FOLDERS_NAMED])}"
                f"{', …' if len(class_names) > MAX_FOLDERS_NAMED else ''}); rename or move it, or "
                "set dataset.labels=false"
            )
        if list(groups) == [""]:
            for path in paths:
                self.record_left_out_image("without a class folder", path)
            self.notes.append(
                f"{top.name}/ is not used, because its images are not in class folders as those of "
                "train are; dataset.labels=false uses it"
            )
            return None
        return self.label_images_by_class_folder(root, paths, class_names)

    def label_images_by_class_folder(
        self, root: Path, paths: list[Path], class_names: list[str]
    ) -> ImageFiles:
        """Return the images in class folders with their labels; those beside are left out."""
        kept, names = [], []
        for path in paths:
            name, *file = path.relative_to(root).parts
            if file:
                kept.append(path)
                names.append(normalize_to_nfc(name))
            else:
                self.record_left_out_image("beside the class folders", path)
        return label_images_by_class_name(kept, names, class_names)

    def record_left_out_image(self, reason: str, path: Path) -> None:
        """Count an image that is not used."""
        self.left_out.add(reason, str(path.relative_to(self.folder)))


def group_by_subfolder(root: Path, paths: list[Path]) -> dict[str, list[Path]]:
    """Return the images below a folder by subfolder; "" has those directly in it."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        name, *file = path.relative_to(root).parts
        groups.setdefault(name if file else "", []).append(path)
    return groups


def make_no_image_error(folder: Path, left_out: LeftOut) -> UserError:
    """Return the error for a folder without an image."""
    found = "".join(f"; {line}" for line in left_out.lines())
    if any(reason.endswith((" .npy", " .npz")) for reason in left_out.counts):
        found += "; an array is read by its name, as dataset.path=<folder>/images.npz"
    return UserError(
        f"no image in {real_path(folder)} or in folders below it; looked for "
        f"{' '.join(f'*{suffix}' for suffix in SUFFIXES)}{found}"
    )


def read_images_by_split_v1(folder: Path) -> dict[str, ImageFiles]:
    """Return the images of each split as genlab up to 0.7 did, for its runs."""
    folders = {
        split: folder / name
        for split, names in SPLIT_FOLDERS_V1.items()
        for name in names
        if (folder / name).is_dir()
    }
    if "train" not in folders:
        folders = {"train": folder}
    splits = {split: find_images_with_labels_v1(sub) for split, sub in folders.items()}
    if not splits["train"].paths:
        raise make_no_image_error(folders["train"], LeftOut())
    for split, files in splits.items():
        if files.paths and files.class_names != splits["train"].class_names:
            raise UserError(
                f"the class folders of {folders[split]} are {files.class_names}, those of "
                f"{folders['train']} {splits['train'].class_names}; they must be the same"
            )
    return splits
