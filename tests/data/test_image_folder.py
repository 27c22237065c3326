"""Folders of images: which images, splits and classes are read, and what is left out."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data.image_decoding import ImageDecoder, read_image_header
from genlab.data.image_files import sort_class_names
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError
from genlab.runs import migrations


def write_images(folder: Path, *names: str, n: int = 4) -> None:
    """Write n gray images of 4×4 into each subfolder."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = random.integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def sizes(data: ImageFolder) -> list[int]:
    """Return the number of items in train, validation and test."""
    return list(data.describe().splits.values())


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10"],
        ["-1", "0.5", "10"],
        ["001", "02", "3"],
        ["class_2", "class_10"],
        ["1_cat", "10_dog"],
        ["2024-1-5", "2024-1-15"],
        ["Cat", "ant", "bee"],
        ["é", "ü"],
    ],
)
def test_class_folders_are_in_the_order_of_their_numbers(names: list[str], tmp_path: Path) -> None:
    """The labels are numbers in this order, whatever order the file system has."""
    assert sort_class_names(reversed(names)) == names
    write_images(tmp_path, *reversed(names), n=2)
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0)
    assert data.spec.class_names == tuple(names)
    folders = [path.parent.name for path in data.source_files]
    assert [names[y] for y in data.splits["train"].y.tolist()] == folders


def test_decomposed_letters_of_macos_are_the_same_class(tmp_path: Path) -> None:
    """A class folder may be written é with one character or with two."""
    write_images(tmp_path, "train/e\u0301", "train/a", "test/\u00e9")
    data = ImageFolder(path=str(tmp_path))
    assert data.spec.class_names == ("a", "\u00e9")
    assert data.spec.class_number("e\u0301") == 1
    assert data.splits["test"].y.tolist() == [1] * 4


def make_links(folder: Path) -> None:
    """Write class folders a and b with links to files and folders, inside and outside."""
    write_images(folder / "photos", "a", "b")
    write_images(folder, "outside")
    photos = folder / "photos"
    (photos / "a" / "again.png").symlink_to(photos / "a" / "0.png")
    (photos / "a" / "broken.png").symlink_to(photos / "none.png")
    (photos / "b" / "loop").symlink_to(photos)
    (photos / "c").symlink_to(folder / "outside")
    (photos / "d").symlink_to(photos / "a")


def make_junk(folder: Path) -> None:
    """Write class folders a and b with what file systems and cameras put beside images."""
    write_images(folder / "photos", "a", "b", ".ipynb_checkpoints", "__MACOSX/a", "@eaDir/a")
    a = folder / "photos" / "a"
    for name in ("x.heic", "y.txt", "z.npy", "none", ".DS_Store", "._0.png", "Thumbs.db"):
        (a / name).write_text("")
    (a / "zero.png").write_bytes(b"")
    (a / "upper.PNG").write_bytes((a / "0.png").read_bytes())
    (folder / "photos" / "empty" / "deeper").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "images", "left_out"),
    [
        (
            make_junk,
            9,
            {
                "in a hidden or system folder": 12,
                "hidden": 3,
                "unsupported suffix .heic": 1,
                "unsupported suffix .txt": 1,
                "unsupported suffix .npy": 1,
                "without a suffix": 1,
                "unreadable": 1,
                "folder without images": 1,
            },
        ),
        (
            make_links,
            12,
            {
                "link to another image of the folder": 1,
                "broken link": 1,
                "link to a folder that is read already": 2,
            },
        ),
    ],
)
def test_what_is_left_out_is_counted_by_reason(
    make: Callable[[Path], None], images: int, left_out: dict[str, int], tmp_path: Path
) -> None:
    """Every file is an item, or is counted with the reason why it is not."""
    make(tmp_path)
    data = ImageFolder(path=str(tmp_path / "photos"))
    assert sum(sizes(data)) == images == data.describe().files
    assert {r: e["count"] for r, e in data.left_out.to_json().items()} == left_out
    assert data.spec.class_names == ("a", "b", "c")[: 2 + (make is make_links)]


@pytest.mark.parametrize(
    ("tree", "options", "classes", "reason"),
    [
        ({"a": 4, "b": 4, "": 1}, {}, ("a", "b"), "beside the class folders: 1: 0.png"),
        ({"a": 1, "b": 1, "": 4}, {}, (), "are not classes, because most images (4 of 6)"),
        ({"a": 1, "b": 1, "": 4}, {"labels": True}, ("a", "b"), "beside the class folders: 4"),
        ({"a": 4, "b": 4}, {"labels": False}, (), ""),
        ({"a": 4}, {"labels": True}, ("a",), ""),
        ({"a": 4}, {}, (), "all images are in a/"),
        ({"set/photos/a": 4, "set/photos/b": 4}, {}, ("a", "b"), "all images are in set/photos/"),
        ({"a/x": 2, "a/y": 2, "b/x": 4}, {}, ("a", "b"), ""),
    ],
)
def test_subfolders_are_classes(
    tree: dict[str, int], options: dict, classes: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    """The summary says where it is not obvious whether the subfolders are classes."""
    for name, n in tree.items():
        write_images(tmp_path, name, n=n)
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0, **options)
    assert data.spec.class_names == classes and data.spec.num_classes == len(classes)
    assert reason in "\n".join(data.describe().lines())


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "options", "found"),
    [
        (["training/a", "training/b", "testing/a", "testing/b"], {}, [8, 0, 8]),
        (["Train/a", "Train/b", "TEST/a", "dev/b"], {}, [8, 4, 4]),
        (["set/train", "set/valid", "set/test"], {}, [4, 4, 4]),
        (["a/train", "a/test", "b/train", "b/test"], {}, [8, 0, 8]),
        (["train", "car"], {"split_folders": True}, [4, 0, 0]),
        (["train", "car"], {"split_folders": False}, [8, 0, 0]),
        (["train/a", "train/b", "test"], {}, [8, 0, 0]),
        (["train/images/a", "train/images/b", "test/images/a"], {}, [8, 0, 4]),
    ],
)
def test_split_folders(folders: list[str], options: dict, found: list[int], tmp_path: Path) -> None:
    """Folders are splits by their names, in any letter case, around or inside of the classes."""
    write_images(tmp_path, *folders)
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0, **options)
    assert sizes(data) == found
    used = sum(found) + sum(data.left_out.counts.values())
    assert used == 4 * len(folders)


@pytest.mark.parametrize(
    ("folders", "words", "remedy"),
    [
        (["train", "car"], "is a split or a class", {"split_folders": True}),
        (["test", "car", "bus"], "is a split or a class", {"split_folders": False}),
        (["test/a", "test/b"], "not train/", {"split_folders": False}),
        (["train", "val", "validation"], "are both validation", {"split_folders": False}),
        (["train/a", "train/b", "test/c"], "not one of the class folders", {"labels": False}),
        (["train", "Train", "test"], "are both train", {"split_folders": False}),
    ],
)
def test_unclear_folders_are_refused_with_a_remedy_that_works(
    folders: list[str], words: str, remedy: dict, tmp_path: Path
) -> None:
    """What cannot be known is asked for in one line, and the option that it names helps."""
    write_images(tmp_path, *folders)
    with pytest.raises(UserError, match=words) as error:
        ImageFolder(path=str(tmp_path))
    ((option, value),) = remedy.items()
    assert f"dataset.{option}={str(value).lower()}" in str(error.value)
    assert sum(sizes(ImageFolder(path=str(tmp_path), **remedy))) > 0


@pytest.mark.parametrize("labels", [[["00000/0.png", 1]], None])
def test_folders_of_stylegan_are_not_classes(labels: list | None, tmp_path: Path) -> None:
    """The dataset_tool of StyleGAN writes folders of parts, and labels in dataset.json."""
    write_images(tmp_path, "00000", "00001")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(UserError, match=r"dataset.labels=false .* dataset.labels=true"):
        ImageFolder(path=str(tmp_path))
    for choice in (True, False):
        assert ImageFolder(path=str(tmp_path), labels=choice).spec.num_classes == 2 * choice
    (tmp_path / "dataset.json").write_text("{}")
    assert ImageFolder(path=str(tmp_path)).spec.num_classes == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.heic", "", r"no image in .*unsupported suffix .heic: 1: photo.heic"),
        ("x.npy", "", r"read by its name, as dataset.path=<folder>/images.npz"),
    ],
)
def test_a_folder_without_images_says_what_it_has(
    name: str, content: str, words: str, tmp_path: Path
) -> None:
    """The message lists the files that are there."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        ImageFolder(path=str(tmp_path))


# --- pixels ---------------------------------------------------------------------------------------


def write_deep_color_png(path: Path, top: int) -> None:
    """Write an RGB image of 4×4 with 16 bits per channel, up to the value `top`."""
    pixels = np.linspace(0, top, 48).round().astype(">u2").reshape(4, 12)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_pixels(path: Path, low: float, high: float, dtype: str) -> None:
    """Write a gray image of 4×4 with values from low to high."""
    if dtype == "color":
        write_deep_color_png(path, int(high))
        return
    values = np.linspace(low, high, 16).reshape(4, 4)
    integers = np.rint(values) if np.dtype(dtype).kind in "iu" else values
    Image.fromarray(integers.astype(dtype)).save(path)


PIXELS = [  # file, lowest and highest value, dtype, and the range that is chosen or suggested
    ("x.tif", 0, 1, "float32", None, (0, 1)),
    ("x.tif", 0.1, 0.9, "float32", None, (0, 1)),
    ("x.tif", 0, 255, "float32", None, (0, 255)),
    ("x.tif", -1, 1, "float32", "[-1,1]", (-1, 1)),
    ("x.tif", -0.4, 2.8, "float32", "[-0.4,2.8]", (-0.4, 2.8)),
    ("x.tif", 0, 16, "float32", "[0,16]", (0, 16)),
    ("x.tif", 0, 255, "int32", None, (0, 255)),
    ("x.tif", 0, 1, "int32", None, (0, 1)),
    ("x.tif", 0, 65535, "int32", None, (0, 65535)),
    ("x.tif", 0, 70000, "int32", "[0,70000]", (0, 70000)),
    ("x.tif", 0, 60000, "uint16", None, (0, 65535)),
    ("x.png", 0, 65535, "uint16", None, (0, 65535)),
    ("x.png", 0, 4095, "uint16", "[0,4095]", (0, 4095)),
    ("x.png", 0, 1000, "uint16", "[0,1023]", (0, 1023)),
    ("x.pgm", 0, 40000, "uint16", None, (0, 65535)),
    ("x.png", 0, 1, "uint8", "[0,1]", (0, 1)),
    ("x.png", 0, 20, "uint8", None, (0, 255)),
    ("x.png", 0, 65535, "color", None, (0, 65535)),
    ("x.png", 0, 4095, "color", "[0,15]", (0, 4095)),
]


@pytest.mark.parametrize(("name", "low", "high", "dtype", "asked", "range_"), PIXELS)
def test_every_number_format_comes_out_right_or_is_refused(
    name: str,
    low: float,
    high: float,
    dtype: str,
    asked: str | None,
    range_: tuple[float, float],
    tmp_path: Path,
) -> None:
    """Pixels are never black in silence, and the option that the message names works."""
    write_pixels(tmp_path / name, low, high, dtype)
    options: dict = {"path": str(tmp_path), "validation": 0.0, "test": 0.0}
    if asked:
        with pytest.raises(UserError) as error:
            ImageFolder(**options)
        assert f"dataset.file_range={asked}" in str(error.value)
        first, last = asked.strip("[]").split(",")
        options["file_range"] = (float(first), float(last))
    pixels = ImageFolder(**options).raw_items_and_labels("train")[0].flatten()
    found = np.array([int(pixels.min()), int(pixels.max())])
    wanted = [255 * (value - range_[0]) / (range_[1] - range_[0]) for value in (low, high)]
    assert np.abs(found - wanted).max() <= (17 if dtype == "color" and asked else 1)


def write_inverted_tiff(path: Path, pixels: np.ndarray) -> None:
    """Write a gray TIFF of 16 bits whose value 0 is white, as of X-rays."""
    Image.fromarray(pixels.astype(np.uint16)).save(path)
    data = path.read_bytes()
    entry = struct.pack("<HHIH", 262, 3, 1, 1)  # PhotometricInterpretation: 0 is black
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HHIH", 262, 3, 1, 0)))


@pytest.mark.parametrize(("top", "options"), [(65535, {}), (4095, {"file_range": (0.0, 4095.0)})])
def test_a_tiff_whose_zero_is_white_is_not_a_negative(
    top: int, options: dict, tmp_path: Path
) -> None:
    """Pillow inverts such files up to 8 bits only."""
    write_inverted_tiff(tmp_path / "x.tif", np.linspace(0, top, 16).round().reshape(4, 4))
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0, **options)
    pixels = data.raw_items_and_labels("train")[0].flatten().tolist()
    assert pixels == [255 - 17 * i for i in range(16)]
    if not options:
        assert "65535 is black and 0 white" in "\n".join(data.describe().lines())
    else:
        with pytest.raises(UserError, match=r"dataset.file_range=\[0,4095\]"):
            ImageFolder(path=str(tmp_path))


def test_nearly_black_bytes_are_noted(tmp_path: Path) -> None:
    """As masks whose values are numbers of classes; the option that the note names works."""
    write_pixels(tmp_path / "x.png", 0, 20, "uint8")
    options: dict = {"path": str(tmp_path), "validation": 0.0, "test": 0.0}
    (note,) = ImageFolder(**options).notes
    assert "no value is above 20 of 255" in note and "dataset.file_range=[0,20]" in note
    data = ImageFolder(**options, file_range=(0.0, 20.0))
    assert int(data.raw_items_and_labels("train")[0].max()) == 255 and not data.notes
    write_pixels(tmp_path / "y.png", 0, 100, "uint8")
    assert not ImageFolder(**options).notes


def test_pixels_that_are_not_finite_are_unreadable(tmp_path: Path) -> None:
    """An image with NaN is counted, not shown."""
    write_pixels(tmp_path / "a.tif", 0, 1, "float32")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "b.tif")
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0)
    assert sizes(data) == [1, 0, 0]
    assert "unreadable: 1: b.tif (pixels that are not finite)" in data.describe().lines()[-1]


def test_floats_of_unknown_range_are_an_error_where_no_option_gives_it(tmp_path: Path) -> None:
    """A command that decodes a single image refuses it instead of showing black."""
    write_pixels(tmp_path / "a.tif", 0, 1, "float32")
    with pytest.raises(ValueError, match="floats of unknown range"):
        ImageDecoder(channels=1, side=None, crop=None)(tmp_path / "a.tif")


def test_notes_of_pages_transparency_gray_and_turned_images(tmp_path: Path) -> None:
    """The first page or frame is read and the others are counted; the rest is noted."""
    colors = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    for name in ("a.tif", "b.gif", "c.webp"):
        colors[0].save(tmp_path / name, save_all=True, append_images=colors[1:])
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "d.png")
    Image.new("L", (4, 4), 100).save(tmp_path / "e.jpg")
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0)
    lines = "\n".join(data.describe().lines())
    assert "later pages or frames of a file: 6: a.tif, b.gif, c.webp" in lines
    assert "1 images have transparency, which is laid over white" in lines
    assert "1 of 5 images are gray, and read as color" in lines
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("L", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (6, 4)).save(tmp_path / "turned.tif", exif=exif)
    for name in ("turned.jpg", "turned.tif"):
        header = read_image_header(tmp_path / name)
        assert (header.width, header.height) == (4, 6)
        assert ImageDecoder(1, 8, "pad")(tmp_path / name).shape == (1, 8, 8)


def test_a_transparent_value_of_16_bits_is_white(tmp_path: Path) -> None:
    """As with 8 bits, transparency is laid over white."""
    x = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369
    Image.fromarray(x).save(tmp_path / "a.png", transparency=0)
    data = ImageFolder(path=str(tmp_path), validation=0.0, test=0.0)
    pixels = data.raw_items_and_labels("train")[0].flatten().tolist()
    assert pixels == [255, *[17 * i for i in range(1, 16)]]
    assert "transparency, which is laid over white" in "\n".join(data.notes)


def test_color_profiles_are_noted(tmp_path: Path) -> None:
    """A profile other than sRGB is not applied, and that is said."""
    ImageCms = pytest.importorskip("PIL.ImageCms")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png", icc_profile=srgb)
    options = {"path": str(tmp_path), "validation": 0.0, "test": 0.0}
    assert not ImageFolder(**options).notes
    wide = srgb.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "b.jpg", icc_profile=wide)
    (note,) = ImageFolder(**options).notes
    assert note.startswith("1 images have a color profile other than sRGB")


# --- runs of older versions -----------------------------------------------------------------------


def test_runs_of_older_versions_keep_their_classes(tmp_path: Path) -> None:
    """Their config gets the rules by which their folder was read."""
    write_images(tmp_path, "1", "2", "10", ".hidden")
    config = {"_target_": "genlab.data.image_folder.ImageFolder", "path": str(tmp_path)}
    old = migrations.keep_old_reading(config)
    assert old["folder_rules"] == 1
    data = ImageFolder(**{key: old[key] for key in ("path", "folder_rules")})
    assert data.spec.class_names == (".hidden", "1", "10", "2")
    assert ImageFolder(path=str(tmp_path)).spec.class_names == ("1", "2", "10")
