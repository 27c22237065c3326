"""scripts/gallery.py: its commands compose, and its picture is small enough for a README."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.cli_runner import run_here
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import gallery

PANELS = [panel for column in gallery.COLUMNS for panel in column.panels]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.folder)
def test_training_command_composes(panel, tmp_path):
    result = run_here(
        "train", *panel.options, *gallery.MACHINE_OPTIONS, "--cfg", "job", cwd=tmp_path
    )
    assert result.code == 0, result.err


def test_panels_have_distinct_folders():
    assert len({panel.folder for panel in PANELS}) == len(PANELS)


def test_sheet_shows_samples_of_a_run(train_run, tmp_path):
    options = ("model=vae", "model.hidden=[8]")
    panel = gallery.Panel("VAE", options)
    run = train_run(*options)
    (tmp_path / panel.folder).symlink_to(run)
    figure = gallery.draw_sheet([gallery.Column("digits", (panel,))], tmp_path)
    gallery.save_palette_png(figure, tmp_path / "gallery.png")
    width, height = Image.open(tmp_path / "gallery.png").size
    assert (width, height) == tuple(round(gallery.DPI * side) for side in gallery.FIGURE_INCHES)
    assert (tmp_path / "gallery.png").stat().st_size <= gallery.MAX_BYTES


def test_tiled_images_have_gaps_of_one_pixel():
    sheet = gallery.tile_images(torch.ones(4, 1, 8, 8), (0.0, 1.0))
    assert sheet.shape == (17, 17)
    assert (sheet[:8, :8] == 255).all() and (sheet[8] != 255).all()


def test_picture_of_the_readme_is_small():
    assert 10_000 < gallery.OUT.stat().st_size <= gallery.MAX_BYTES
