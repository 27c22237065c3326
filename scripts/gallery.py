"""Make the contact sheet of the README: samples of small models in four titled columns.

    python scripts/gallery.py [--runs FOLDER] [--out docs/images/gallery.png]

Trains the runs of COLUMNS in turn, about half an hour on one CPU core, and draws samples of
each. With --runs the runs are kept in that folder, and runs that are there already are used again.
MNIST and Shakespeare are read from GENLAB_DATA; without it, their columns are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from genlab.builders.entrypoints import load_run
from genlab.runs.loaded_run import LoadedRun

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images" / "gallery.png"
MAX_BYTES = 300_000
FIGURE_INCHES = (16.0, 7.0)
DPI = 100
IMAGES_PER_SIDE = 6  # of the grid of images in a panel
NUM_POINTS = 6_000  # samples in a panel of points
TEXT_COLUMNS, TEXT_LINES = 42, 39
PROMPT = "\n"

MACHINE_OPTIONS = ("device=cpu", "device.threads=1", "trainer.preview_every=0")


@dataclass(frozen=True)
class Panel:
    """One panel of the sheet: its title, and the `genlab train` options of its run."""

    title: str
    options: tuple[str, ...]
    kind: str = "images"  # images | points | density | text
    extent: float = 4.2  # panels of points show [-extent, extent]²

    @property
    def folder(self) -> str:
        """The name of the run folder."""
        return "-".join(word.rpartition("=")[2].strip("[]") for word in self.options)

    @property
    def command(self) -> str:
        return " ".join(["genlab train", *self.options])


@dataclass(frozen=True)
class Column:
    """A titled column of panels."""

    title: str
    panels: tuple[Panel, ...]
    needs_data: bool = False  # reads files from GENLAB_DATA


DIGITS = (
    Panel("VAE", ("model=vae", "trainer.steps=4000")),
    Panel("DCGAN", ("experiment=dcgan_digits", "trainer.steps=1800")),
    Panel("DDPM", ("model=ddpm_small", "trainer.steps=2000")),
    Panel("RBM", ("model=rbm", "model.hidden=256", "trainer.steps=8000")),
    Panel(
        "MAF",
        ("model=maf", "model.hidden=[256]", "optimizer.lr=1e-3", "trainer.steps=4000"),
    ),
    Panel(
        "image GPT",
        (
            "model=gpt_pixels",
            "model.num_layers=4",
            "trainer.batch_size=32",
            "trainer.steps=600",
        ),
    ),
)
MNIST = (
    Panel("VAE", ("model=vae", "dataset=mnist", "trainer.steps=8000")),
    Panel("DCGAN", ("experiment=dcgan_mnist", "trainer.steps=1500", "trainer.ema_decay=0.99")),
    Panel(
        "DDPM",
        (
            "experiment=ddpm_mnist",
            "trainer.steps=1000",
            "trainer.batch_size=32",
            "trainer.ema_decay=0.99",
        ),
    ),
    Panel("RBM", ("model=rbm", "dataset=mnist", "trainer.steps=10000")),
    Panel("MADE", ("model=made", "dataset=mnist", "trainer.steps=6000")),
    Panel("mixture of Bernoullis", ("model=bernoulli_mixture", "dataset=mnist")),
)
POINTS = (
    Panel(
        "spline flow: density",
        ("model=nsf", "dataset=points", "dataset.name=checkerboard", "trainer.steps=2500"),
        kind="density",
    ),
    Panel(
        "RealNVP: density",
        ("model=realnvp_points", "dataset=ring", "trainer.steps=2500"),
        kind="density",
        extent=2.8,
    ),
    Panel(
        "GAN: samples",
        ("experiment=gan_grid25", "trainer.steps=6000"),
        kind="points",
        extent=4.8,
    ),
    Panel(
        "EDM: samples",
        ("model=edm_points", "dataset=points", "dataset.name=spirals", "trainer.steps=4000"),
        kind="points",
    ),
    Panel(
        "flow matching: samples",
        ("model=flow_points", "dataset=points", "dataset.name=pinwheel", "trainer.steps=4000"),
        kind="points",
    ),
    Panel(
        "Gaussian mixture",
        ("model=gmm", "model.num_components=12", "dataset=points", "dataset.name=moons"),
        kind="density",
        extent=2.2,
    ),
)
TEXT = (Panel("GPT on Shakespeare", ("experiment=gpt_text_cpu",), kind="text"),)
COLUMNS = (
    Column("digits, 8×8", DIGITS),
    Column("MNIST", MNIST, needs_data=True),
    Column("densities in the plane", POINTS),
    Column("text", TEXT, needs_data=True),
)


def train_or_resume_run(panel: Panel, folder: Path) -> None:
    """Train the run of a panel, or resume one that was interrupted."""
    if (folder / "run.json").exists():
        words = [f"resume={folder}"]
    else:
        words = [*panel.options, *MACHINE_OPTIONS, f"out={folder}"]
    print(panel.command, flush=True)
    subprocess.run([sys.executable, "-m", "genlab", "train", *words], check=True)


# --- drawing --------------------------------------------------------------------------------------


def tile_images(x: torch.Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """Arrange gray images (N, 1, H, W) in a square grid of bytes, with a gap of one pixel."""
    low, high = value_range
    images = ((x[:, 0] - low) / (high - low)).clamp(0, 1).mul(255).byte().numpy()
    n, height, width = images.shape
    side = int(n**0.5)
    sheet = np.full((side * (height + 1) - 1, side * (width + 1) - 1), 90, dtype=np.uint8)
    for i, image in enumerate(images[: side * side]):
        top, left = (i // side) * (height + 1), (i % side) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def draw_images(axes: Axes, run: LoadedRun, panel: Panel) -> None:
    x = run.model.sample(IMAGES_PER_SIDE**2).cpu().float()
    sheet = tile_images(x, run.spec.range)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def draw_points(axes: Axes, run: LoadedRun, panel: Panel) -> None:
    x = run.model.sample(NUM_POINTS).cpu().float().numpy()
    axes.set_facecolor("black")
    axes.scatter(*x.T, s=1.5, alpha=0.35, color="#fbb061", linewidths=0)
    limits = (-panel.extent, panel.extent)
    axes.set(xlim=limits, ylim=limits, aspect=1)


def draw_density(axes: Axes, run: LoadedRun, panel: Panel) -> None:
    """Draw the model's density p(x) on a grid."""
    line = torch.linspace(-panel.extent, panel.extent, 200)
    grid = torch.cartesian_prod(line, line)  # (200², 2), the first coordinate outermost
    log_p = torch.cat([run.model.log_prob(part) for part in grid.split(4000)])
    density = log_p.exp().reshape(200, 200).T.numpy()
    axes.imshow(density, cmap="inferno", origin="lower", vmax=np.quantile(density, 0.995))


def draw_text(axes: Axes, run: LoadedRun, panel: Panel) -> None:
    """Draw a generated text as text."""
    prompt = torch.tensor([run.spec.to_tokens(PROMPT)])
    tokens = run.model.extend(prompt, 2 * TEXT_COLUMNS * TEXT_LINES, temperature=0.8)
    text = run.spec.to_text(tokens[0].tolist()).strip()
    lines = [
        part for line in text.splitlines() for part in textwrap.wrap(line, TEXT_COLUMNS) or [""]
    ]
    axes.text(
        0.0,
        1.0,
        "\n".join(lines[:TEXT_LINES]),
        family="monospace",
        fontsize=9,
        va="top",
        linespacing=1.25,
        transform=axes.transAxes,
    )


DRAW: dict[str, Any] = {
    "images": draw_images,
    "points": draw_points,
    "density": draw_density,
    "text": draw_text,
}


@torch.no_grad()
def draw_panel(axes: Axes, panel: Panel, folder: Path) -> None:
    """Draw samples of a run into a panel."""
    run = load_run({"run": str(folder)})
    run.model.eval()
    torch.manual_seed(0)
    DRAW[panel.kind](axes, run, panel)
    axes.set_title(panel.title, fontsize=10.5, pad=4)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_sheet(columns: list[Column], runs: Path) -> Figure:
    """Return the figure: one column of panels for each kind of data."""
    figure = Figure(figsize=FIGURE_INCHES, dpi=DPI)
    parts = figure.subfigures(1, len(columns), wspace=0.0)
    for part, column in zip(np.atleast_1d(parts), columns, strict=True):
        part.suptitle(column.title, fontsize=15, fontweight="bold", y=0.985)
        rows, width = (1, 1) if len(column.panels) == 1 else (-(-len(column.panels) // 2), 2)
        grid = part.subplots(rows, width, squeeze=False)
        part.subplots_adjust(left=0.02, right=0.98, top=0.89, bottom=0.01, wspace=0.05, hspace=0.14)
        for axes in grid.flat[len(column.panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, column.panels, strict=False):
            draw_panel(axes, panel, runs / panel.folder)
    return figure


def save_palette_png(figure: Figure, path: Path) -> None:
    """Save a figure as a PNG with a palette, with as many colors as MAX_BYTES permits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.png"
        figure.savefig(full, facecolor="white")
        image = Image.open(full).convert("RGB")
    for colors in (256, 128, 64, 32, 16):
        image.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return
    raise SystemExit(f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs; existing ones are reused")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    has_data = "GENLAB_DATA" in os.environ
    columns = [column for column in COLUMNS if has_data or not column.needs_data]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        runs = (arguments.runs or Path(temporary)).resolve()
        for panel in (panel for column in columns for panel in column.panels):
            if not (runs / panel.folder / "done").exists():
                train_or_resume_run(panel, runs / panel.folder)
                (runs / panel.folder / "done").touch()
        save_palette_png(draw_sheet(columns, runs), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
