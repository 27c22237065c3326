"""A tree of models: branches with notes, and at their ends the models of each family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from genlab.viz.figures import escape_figure_label

LINE_INCHES = 0.25  # height of a line of models
LEVEL_INCHES = 2.7  # width of a level
FAMILY_INCHES, MODEL_INCHES = 1.35, 1.52  # widths of the columns of families and models
MODELS_ACROSS = 5
BRANCH_GAP = 1.0  # lines between two branches
MIN_BRANCH_LINES = 2.2  # for a name and a note
TITLE_SIZE, NODE_SIZE, MODEL_SIZE = 19, 13, 11.5  # of letters, in points
COLORS = ("#1f4e9c", "#b5541c", "#2f7d4c", "#6d7683")


@dataclass
class Branch:
    """A node of the tree, with further branches or with models.

    Attributes:
        note: below the name.
        families: family -> names of models.
    """

    name: str
    note: str = ""
    branches: list[Branch] = field(default_factory=list)
    families: dict[str, list[str]] = field(default_factory=dict)

    @property
    def lines(self) -> float:
        """The height in lines."""
        if self.branches:
            gaps = BRANCH_GAP * (len(self.branches) - 1)
            return sum(branch.lines for branch in self.branches) + gaps
        return max(MIN_BRANCH_LINES, sum(map(count_lines, self.families.values())))

    @property
    def depth(self) -> int:
        """The number of levels of branches."""
        return 1 + max((child.depth for child in self.branches), default=0)


def count_lines(models: Sequence[str]) -> int:
    """Return the lines that models fill."""
    return -(-len(models) // MODELS_ACROSS)


def draw_tree(root: Branch, title: str) -> Any:
    """Return a matplotlib figure of a tree from left to right."""
    from matplotlib.figure import Figure

    models_left = LEVEL_INCHES * root.depth
    width = models_left + FAMILY_INCHES + MODEL_INCHES * MODELS_ACROSS
    height = LINE_INCHES * (root.lines + 5)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    axes.text(0.25, height - 0.25, title, fontsize=TITLE_SIZE, va="top", weight="bold")
    draw_branch(axes, root, 0.25, height - 4 * LINE_INCHES, models_left, None)
    return figure


def draw_branch(
    axes: Any, branch: Branch, left: float, top: float, models_left: float, color: str | None
) -> float:
    """Draw a branch below `top`, and return the height of its middle.

    Args:
        models_left: where the families begin.
        color: None gives each of its branches its own.
    """
    middle = top - branch.lines * LINE_INCHES / 2
    right, child_top = left + LEVEL_INCHES, top
    for k, child in enumerate(branch.branches):
        own = color or COLORS[k % len(COLORS)]
        place = draw_branch(axes, child, right, child_top, models_left, own)
        bend = right - 0.35
        draw_line(axes, [left + 0.3, bend, right], [middle, place, place])
        child_top -= (child.lines + BRANCH_GAP) * LINE_INCHES
    if branch.families:
        draw_line(axes, [left + 0.3, models_left - 0.12], [middle, middle])
        draw_families(axes, branch.families, models_left, middle)
    box = {"boxstyle": "round,pad=0.4", "fc": color or "0.2", "ec": "none"}
    name = f"{branch.name}\n{branch.note}" if branch.note else branch.name
    axes.text(left, middle, name, size=NODE_SIZE, va="center", color="white", bbox=box, zorder=3)
    return middle


def draw_line(axes: Any, x: list[float], y: list[float]) -> None:
    """Draw a line behind the names."""
    axes.plot(x, y, color="0.6", lw=1.4, zorder=1, solid_joinstyle="round")


def draw_families(axes: Any, families: dict[str, list[str]], left: float, middle: float) -> None:
    """Draw the models of each family in columns, around the height `middle`."""
    lines = sum(map(count_lines, families.values()))
    y = middle + (lines - 1) / 2 * LINE_INCHES
    for family, models in families.items():
        axes.text(left, y, family, size=MODEL_SIZE, va="center", color="0.35", style="italic")
        for i, model in enumerate(models):
            row, column = divmod(i, MODELS_ACROSS)
            place = (left + FAMILY_INCHES + column * MODEL_INCHES, y - row * LINE_INCHES)
            axes.text(*place, escape_figure_label(model), size=MODEL_SIZE, va="center")
        y -= count_lines(models) * LINE_INCHES
