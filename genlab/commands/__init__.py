"""The commands: one file each in this package, listed here with what `genlab --help` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of genlab: where its function is, and its line of help with an example."""

    target: str  # "module:function"
    help: str
    composed: bool = True  # Hydra composes configs/<command>.yaml; otherwise it gets plain words

    def import_function(self) -> Callable[..., Any]:
        """Import and return the command's function."""
        module, _, function = self.target.partition(":")
        return getattr(import_module(module), function)


COMMANDS = {
    "train": Command(
        "genlab.commands.train:train",
        "train a model: genlab train model=dcgan dataset=mnist; resume with resume=latest",
    ),
    "plan": Command(
        "genlab.commands.plan:plan",
        "predict time and memory: genlab plan model=ddpm; with -m the jobs of a sweep",
    ),
    "sample": Command(
        "genlab.commands.sample:sample",
        "draw samples from a run's model: genlab sample run=<folder> n=64 label=3 seed=0",
    ),
    "trajectory": Command(
        "genlab.commands.trajectory:trajectory",
        "show the way from noise to samples: genlab trajectory run=<folder> columns=8",
    ),
    "complete": Command(
        "genlab.commands.complete:complete",
        "continue a text: genlab complete run=<folder> prompt=ROMEO temperature=0.8",
    ),
    "reconstruct": Command(
        "genlab.commands.reconstruct:reconstruct",
        "decode the codes of held-out items: genlab reconstruct run=<folder>",
    ),
    "encode": Command(
        "genlab.commands.encode:encode",
        "write codes as .npz and as a picture: genlab encode run=<folder> split=train",
    ),
    "interpolate": Command(
        "genlab.commands.interpolate:interpolate",
        "walk between two codes: genlab interpolate run=<folder> method=spherical",
    ),
    "traverse": Command(
        "genlab.commands.traverse:traverse",
        "vary one code dimension at a time: genlab traverse run=<folder> range_sigma=3",
    ),
    "arithmetic": Command(
        "genlab.commands.arithmetic:arithmetic",
        "compute a − b + c on codes: genlab arithmetic run=<folder> a=7 b=1 c=0",
    ),
    "mix": Command(
        "genlab.commands.mix:mix",
        "mix styles of two samples: genlab mix run=<folder> truncation=0.7",
    ),
    "project": Command(
        "genlab.commands.project:project",
        "find the code of an image and edit it: genlab project run=<folder> images=me.png",
    ),
    "inpaint": Command(
        "genlab.commands.inpaint:inpaint",
        "fill in hidden parts: genlab inpaint run=<folder> mask=half half=bottom",
    ),
    "impute": Command(
        "genlab.commands.impute:impute",
        "fill in the missing cells of a table: genlab impute run=<folder> draws=5",
    ),
    "denoise": Command(
        "genlab.commands.denoise:denoise",
        "add noise and remove it: genlab denoise run=<folder> noise=masking level=0.5",
    ),
    "translate": Command(
        "genlab.commands.translate:translate",
        "map source images to targets: genlab translate run=<folder> input_dir=photos",
    ),
    "colorize": Command(
        "genlab.commands.colorize:colorize",
        "add color to gray images: genlab colorize run=<folder> input_dir=old",
    ),
    "superres": Command(
        "genlab.commands.superres:superres",
        "enlarge images: genlab superres run=<folder> input_dir=small output_dir=large",
    ),
    "forecast": Command(
        "genlab.commands.forecast:forecast",
        "predict a series or a video: genlab forecast run=<folder> steps=30 draws=100",
    ),
    "evaluate": Command(
        "genlab.commands.evaluate:evaluate",
        "measure a run on held-out data: genlab evaluate run=<folder>",
    ),
    "likelihood": Command(
        "genlab.commands.likelihood:likelihood",
        "log p of items, or of each character: genlab likelihood run=<folder> text=Hello",
    ),
    "density": Command(
        "genlab.commands.density:density",
        "draw the density of points beside the truth: genlab density run=<folder>",
    ),
    "dynamics": Command(
        "genlab.commands.dynamics:dynamics",
        "show how a GAN's D and G move in training: genlab dynamics run=<folder>",
    ),
    "anomaly": Command(
        "genlab.commands.anomaly:anomaly",
        "detect unfamiliar items: genlab anomaly run=<folder> dataset=fashion_mnist",
    ),
    "classify": Command(
        "genlab.commands.classify:classify",
        "classify by Bayes' rule or by the model's p(y|x): genlab classify run=<folder>",
    ),
    "quiz": Command(
        "genlab.commands.quiz:quiz",
        "write a page that asks which items are real: genlab quiz run=<folder> n=20",
    ),
    "compare": Command(
        "genlab.commands.compare:compare",
        "compare runs in a table and an HTML page: genlab compare runs=[a,b,c]",
    ),
    "lectures": Command(
        "genlab.commands.lectures:lectures",
        "list or make the figures of a course: genlab lectures make=all",
    ),
    "info": Command(
        "genlab.commands.info:info",
        "list the commands that a run supports: genlab info run=<folder>",
    ),
    "sweep": Command(
        "genlab.commands.sweep:sweep",
        "manage a sweep: genlab sweep status|best|rerun|resume|work <folder>",
        composed=False,
    ),
    "models": Command(
        "genlab.commands.models:models",
        "list the recipes with their abilities: exact, bound or estimate",
        composed=False,
    ),
    "datasets": Command(
        "genlab.commands.datasets:datasets",
        "list the data sets",
        composed=False,
    ),
    "completion": Command(
        "genlab.commands.completion:completion",
        'print shell completion: eval "$(genlab completion bash)" (or zsh)',
        composed=False,
    ),
}
RENAMED_COMMANDS = {"tasks": "info"}
