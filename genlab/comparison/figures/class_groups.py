"""Groups: the composition of the training batches, and the error of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.comparison.figures.registry import FigureRun
from genlab.errors import UserError
from genlab.metrics.base import binomial_standard_error
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Positive
from genlab.viz.figures import (
    FONT_SIZE,
    canvas_to_picture,
    escape_figure_label,
    make_canvas_and_axes,
)
from genlab.viz.picture import Picture

RUN_COLORS = ("#8a93a1", "#1f4e9c", "#e07b39", "#4f9d69", "#8f6bb3")
WARNING_COLOR = "#b3261e"
BAR_ROOM = 0.8  # of the distance between two classes
BATCH_SIZE = 500


@dataclass(frozen=True)
class Groups:
    """The numbers of one run that a figure shows.

    Attributes:
        shares: fraction (classes,) of the training batches.
        errors: fraction (classes,) of the held-out items of each class that are misclassified; NaN
            for a class without held-out items.
        standard_errors: of the errors.
        effective_items: exp of the entropy of the probabilities of the training items.
        num_items: training items.
    """

    shares: Tensor
    errors: list[float]
    standard_errors: list[float]
    effective_items: float
    num_items: int


def draw_groups(runs: list[FigureRun], *, handful: Positive = 10) -> Picture:
    """Return the share of each class in the batches of each run, and the error of each class.

    A run that resamples its items has their probabilities in its checkpoint; other runs draw all
    items equally often.

    Args:
        handful: warn where the batches consist of fewer effective items.
    """
    groups = {run.label: measure_groups(run.run) for run in runs}
    spec = runs[0].run.spec
    shown = [k for k in range(spec.num_classes) if any(g.shares[k] > 0 for g in groups.values())]
    names = [escape_figure_label(f"class {spec.class_name(k)}") for k in shown]
    canvas, (composition, error, effective) = make_canvas_and_axes(15, 5.4, 3)
    width = BAR_ROOM / len(groups)
    for j, (label, group) in enumerate(groups.items()):
        places = [i + (j + 0.5) * width - BAR_ROOM / 2 for i in range(len(shown))]
        style = {"color": RUN_COLORS[j % len(RUN_COLORS)], "label": escape_figure_label(label)}
        shares = [group.shares[k].item() for k in shown]
        bars = composition.bar(places, shares, width, **style)
        composition.bar_label(bars, [f"{share:.1%}" for share in shares], fontsize=10)
        rates = [group.errors[k] for k in shown]
        spreads = [group.standard_errors[k] for k in shown]
        bars = error.bar(places, rates, width, yerr=spreads, capsize=3, **style)
        error.bar_label(bars, [f"{rate:.1%}" for rate in rates], fontsize=10, padding=2)
        is_handful = group.effective_items < handful
        color = WARNING_COLOR if is_handful else style["color"]
        bars = effective.bar([j], [group.effective_items], 0.7, color=color)
        text = f"{group.effective_items:.3g} of {group.num_items:,}"
        effective.bar_label(bars, [f"{text}\na handful" if is_handful else text], fontsize=10)
    composition.axhline(1 / len(shown), color="0.3", ls="--", lw=1.2, label="balanced")
    composition.set(ylabel="fraction of the batch", title="composition of the batches")
    error.set(ylabel="misclassified held-out items", title="error of each group")
    effective.axhline(handful, color=WARNING_COLOR, ls="--", lw=1.2)
    effective.set(ylabel="effective number of items", title="items that fill the batches")
    effective.set_yscale("log")
    effective.set_xticks(range(len(groups)), [escape_figure_label(label) for label in groups])
    for axes in (composition, error):
        axes.set_xticks(range(len(shown)), names)
    for axes in (composition, error, effective):
        axes.title.set_size(FONT_SIZE + 1)
        axes.margins(y=0.16)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.figure.legend(
        *composition.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(groups) + 1,
        fontsize=FONT_SIZE,
        frameon=False,
    )
    few = [label for label, group in groups.items() if group.effective_items < handful]
    note = "bars of the error: binomial standard error"
    if few:
        note += (
            f". Warning: {', '.join(few)}: fewer than {handful} items fill the batches; raise "
            "trainer.alpha or lower model.latent"
        )
    return canvas_to_picture(canvas, note)


@torch.no_grad()
def measure_groups(run: LoadedRun) -> Groups:
    """Return the shares and errors of the classes of a run.

    Raises:
        UserError: the data lacks classes, or the model does not classify.
    """
    if not run.spec.num_classes or "classify" not in abilities(run.model):
        raise UserError(
            f"figures: kind=groups needs classes and a model that classifies; {run.name} on "
            f"{run.dataset_name} does not"
        )
    _, labels = run.dataset.raw_items_and_labels("train")
    found = run.folder.load_checkpoint().get("weights")
    probabilities = (
        torch.full((len(labels),), 1 / len(labels), dtype=torch.float64) if found is None else found
    )
    shares = torch.zeros(run.spec.num_classes, dtype=torch.float64)
    shares.index_add_(0, labels.cpu(), probabilities.double())
    batch = run.dataset.head("test")
    parts = batch.x.split(BATCH_SIZE)
    predicted = torch.cat(
        [run.model.classify(part.to(run.device.torch)).argmax(1).cpu() for part in parts]
    )
    errors, standard_errors = [], []
    for k in range(run.spec.num_classes):
        of_class = batch.y.cpu() == k
        n = int(of_class.sum())
        rate = (predicted[of_class] != k).double().mean().item() if n else float("nan")
        errors.append(rate)
        standard_errors.append(binomial_standard_error(rate, n) if n else float("nan"))
    effective = torch.special.entr(probabilities.double()).sum().exp().item()
    return Groups(shares, errors, standard_errors, effective, len(labels))
