"""Sheets: enlarged by whole numbers, with captions that are never cut, read back exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genlab.spec import DataSpec
from genlab.viz import figures, item_pictures, latents, sheets
from genlab.viz.picture import make_picture

RNG = np.random.default_rng(0)
LONG = "a caption that is much longer than the picture is wide " * 6


def random_images(n: int, height: int, width: int, channels: int = 1) -> np.ndarray:
    return RNG.integers(0, 256, (n, height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("n", "height", "width", "columns"),
    [
        (64, 28, 28, None),
        (64, 8, 8, None),
        (64, 32, 32, None),
        (64, 64, 64, None),
        (256, 28, 28, None),
        (1, 3, 3, None),
        (7, 5, 90, 1),
        (64, 1, 9, 1),
        (4, 300, 300, 2),
    ],
)
def test_grid_is_enlarged_by_a_whole_number_and_read_back(n, height, width, columns, tmp_path):
    """64 images are at least 800 pixels wide; the file gives every pixel back."""
    images = random_images(n, height, width, 3 if width == 64 else 1)
    picture = make_picture(images, columns=columns)
    sheet = sheets.save_picture_as_sheet(picture, tmp_path / "x.png", caption=LONG)
    if n == 64 and columns is None:
        assert sheet.shape[1] >= 800
    assert max(sheet.shape) <= 2400, "a sheet fits a screen or two"
    read = sheets.read_picture_from_sheet_png((tmp_path / "x.png").read_bytes())
    assert read is not None and read.columns == picture.columns
    assert np.array_equal(read.images, np.broadcast_to(images, (*images.shape[:3], 3)))
    assert read.grid_without_names.shape[1] == picture.columns * (width + 1) + 1


@pytest.mark.parametrize(
    "name",
    ["row", "a very long name of a row or a column", "x" * 80, "Кириллица Ω", "中文", "\x07"],
)
def test_names_and_captions_are_never_cut(name, tmp_path, monkeypatch):
    """All characters are drawn, in several lines if needed; those without a glyph are escaped."""
    drawn: list[str] = []
    wrap_text = sheets.wrap_text

    def record(text: str, width: float, font: object) -> list[str]:
        lines = wrap_text(text, width, font)
        assert all(font.getlength(line) <= width + 1 for line in lines)
        drawn.extend(lines)
        return lines

    monkeypatch.setattr(sheets, "wrap_text", record)
    picture = make_picture(random_images(4, 8, 8), row_names=[name] * 2, column_names=["a", name])
    sheet, _ = sheets.draw_sheet_and_layout(picture, f"{name}\n{name}")
    squeezed = "".join(drawn).replace(" ", "")
    expected = sheets.escape_missing_glyphs(name, sheets.load_font("DejaVuSans.ttf", 14)).replace(
        " ", ""
    )
    assert squeezed.count(expected) >= 4 and sheet.std() > 0


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Größe Ωμ Кот", "Größe Ωμ Кот"),
        ("年齢", r"\u5e74\u9f62"),
        ("𒀀", r"\U00012000"),
        ("a\tb", r"a\tb"),
        ("\udc80", "?"),
    ],
)
def test_characters_without_a_glyph_are_escaped(text, drawn):
    assert sheets.escape_missing_glyphs(text) == drawn


@pytest.mark.parametrize(
    "layout",
    [
        {"n": 10**6},
        {"width": 10**5},
        {"scale": 0},
        {"left": -1},
        {"columns": "x"},
        {"top": 10**5},
        None,
    ],
)
def test_file_that_lies_about_its_images_is_not_a_sheet(layout, tmp_path):
    """It is shown as it is."""
    picture = make_picture(random_images(4, 8, 8))
    pixels, honest = sheets.draw_sheet_and_layout(picture)
    info = PngInfo()
    text = "no JSON" if layout is None else json.dumps(vars(honest) | layout)
    info.add_text(sheets.PNG_KEY, text)
    Image.fromarray(pixels).save(tmp_path / "x.png", pnginfo=info)
    assert sheets.read_picture_from_sheet_png((tmp_path / "x.png").read_bytes()) is None
    item_pictures.write_image_as_png(random_images(1, 8, 8)[0], tmp_path / "plain.png")
    assert sheets.read_picture_from_sheet_png((tmp_path / "plain.png").read_bytes()) is None
    assert sheets.read_picture_from_sheet_png(b"\x89PNG\r\n\x1a\n cut") is None


# --- plots ----------------------------------------------------------------------------------------


@pytest.fixture
def axes_of(monkeypatch):
    """Collect the axes of the figures that a test draws."""
    found = []
    canvas_to_picture = figures.canvas_to_picture

    def record(canvas, note=""):
        found.extend(canvas.figure.axes)
        return canvas_to_picture(canvas, note)

    for module in (figures, latents):
        monkeypatch.setattr(module, "canvas_to_picture", record)
    return found


def legend_texts(axes) -> list[str]:
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_plots_of_points_have_axes_a_legend_and_equal_aspect(axes_of):
    spec = DataSpec((2,), kind="points")
    item_pictures.render_items_as_picture(torch.randn(30, 2), spec, reals=torch.randn(30, 2))
    item_pictures.render_items_as_picture(torch.randn(30, 2), spec, name="data")
    latents.plot_paths(torch.randn(3, 5, 2), ["z0", "_z1", "$z2"], background=torch.randn(4, 2))
    latents.plot_codes(RNG.normal(size=(30, 6)), np.arange(30) % 3, class_names=("cat", "犬", "_x"))
    scatter, reals, paths, codes = axes_of
    assert legend_texts(scatter) == ["data", "samples"] and legend_texts(reals) == ["data"]
    assert len(legend_texts(paths)) == 4, "a name with a leading underscore is in the legend too"
    assert legend_texts(codes)[:2] == ["cat", r"\u72ac"] and len(legend_texts(codes)) == 3
    for axes in axes_of:
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_aspect() == 1


@pytest.mark.parametrize("dimensions", [1, 4])
def test_points_of_other_dimensions(dimensions, axes_of):
    """A single coordinate is a histogram; of many the caption says that two are shown."""
    spec = DataSpec((dimensions,), kind="points")
    picture = item_pictures.render_items_as_picture(
        torch.randn(9, dimensions), spec, reals=torch.zeros(9, dimensions)
    )
    (axes,) = axes_of
    assert legend_texts(axes) == ["data", "samples"]
    assert axes.get_ylabel() == ("density" if dimensions == 1 else "x₂")
    assert ("4 coordinates" in picture.note) == (dimensions == 4)


def test_points_in_space_have_one_scatter_plot_each(axes_of):
    reals = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    points = torch.cat([reals[:9] / 2, torch.full((1, 3), 99.0)])
    spec = DataSpec((3,), kind="points")
    picture = item_pictures.render_items_as_picture(points, spec, reals=reals)
    assert [axes.get_title() for axes in axes_of] == ["data", "samples"]
    assert all(axes.get_zlabel() == "x₃" for axes in axes_of)
    assert axes_of[0].get_xlim() == axes_of[1].get_xlim() and axes_of[1].get_xlim()[1] < 99
    assert "outside of the axes" in picture.note


def test_columns_of_a_table_are_histograms_in_their_units(axes_of):
    columns = [
        type("Column", (), {"name": f"c{j} [$]", "mean": 100.0, "scale": 2.0})() for j in range(14)
    ]
    x = torch.randn(50, 14)
    spec = DataSpec((14,), kind="points")
    picture = item_pictures.render_items_as_picture(x, spec, reals=x, columns=columns)
    assert len(axes_of) == 12 and "2 more columns" in picture.note
    assert axes_of[0].get_xlabel() == r"c0 [\$]" and 95 < np.mean(axes_of[0].get_xlim()) < 105


def test_histograms_have_axes(tmp_path: Path, axes_of):
    canvas, (axes,) = figures.make_canvas_and_axes(6, 4)
    figures.plot_histograms(axes, {"normal": torch.randn(20), "one value": torch.ones(3)}, "log p")
    figures.save_canvas_as_png(canvas, tmp_path / "x.png", caption="likelihood")
    assert axes.get_xlabel() == "log p" and axes.get_ylabel() == "density"
    assert len(axes.get_yticks()) > 1 and legend_texts(axes) == ["normal", "one value"]
