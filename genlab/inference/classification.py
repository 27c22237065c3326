"""Classification of items: numbers and pictures, and Bayes' rule over captions."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.inference.likelihood_scores import (
    Score,
    score_items_under_each_condition,
)
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.results import common_output_folder, make_picture_caption, run_record_fields
from genlab.runs.loaded_run import LoadedRun
from genlab.seeding import derive_seed
from genlab.spec import Batch, DataSpec
from genlab.tables import format_with_error, print_wrapped
from genlab.viz import item_pictures
from genlab.viz.figures import (
    DATA_COLOR,
    FONT_SIZE,
    SAMPLE_COLOR,
    canvas_to_picture,
    escape_figure_label,
    make_canvas_and_axes,
    save_canvas_as_png,
)
from genlab.viz.picture import Picture
from genlab.viz.sheets import save_picture_as_sheet

MAX_LEVEL_NAME = 4  # characters; longer names of classes stand upright below the plot
MAX_LABELED_CLASSES = 20  # the counts of more classes would not be readable in a plot
DRAWS = 4  # evaluations of a random score, from which the error of a difference is estimated
MAX_ITEMS_SHOWN = 6
MAX_PROMPT_SHOWN = 32  # characters of a prompt beside its bar
DECIDED_ERRORS = 2  # standard errors by which the best prompt must lead
RIGHT_COLOR = "#1b7f3b"
NO_CLASS = "no class"  # of prompts that name none


def class_names(spec: DataSpec) -> list[str]:
    """Return the name, or the number, of each class."""
    return [spec.class_name(k) for k in range(spec.num_classes)]


def classification_metrics(log_p: Tensor, y: Tensor) -> dict[str, Any]:
    """Return accuracy with its error and by class, mean −log p(y|x), and confusion matrix.

    The matrix has a row for each true class and a column for each predicted class.
    """
    from sklearn.metrics import confusion_matrix

    predicted = log_p.argmax(1)
    accuracy = (predicted == y).double().mean().item()
    counts = confusion_matrix(y, predicted, labels=range(log_p.shape[1]))
    class_accuracy = counts.diagonal() / counts.sum(1).clip(min=1)
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(y)),
        "nll_of_labels": -log_p.gather(1, y[:, None]).mean().item(),
        "accuracy_of_class": class_accuracy.tolist(),
        "confusion": counts.tolist(),
    }


def plot_confusion_matrix(
    counts: np.ndarray, class_names: list[str], caption: str, path: Path
) -> None:
    """Plot a confusion matrix: one row per true class, each cell with its count."""
    canvas, (axes,) = make_canvas_and_axes(8, 8)
    fraction = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= MAX_LABELED_CLASSES:
        for i, j in zip(*counts.nonzero(), strict=True):
            color = "w" if fraction[i, j] > 0.5 else "k"
            axes.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, c=color)
        names = [escape_figure_label(name) for name in class_names]
        axes.set_yticks(range(len(counts)), names)
        is_long = max(map(len, names)) > MAX_LEVEL_NAME
        axes.set_xticks(range(len(counts)), names, rotation=90 if is_long else 0)
    axes.set(xlabel="predicted class", ylabel="true class")
    save_canvas_as_png(canvas, path, caption=caption)


# --- captions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptScores:
    """Scores of items under prompts, from one or several evaluations of a random score.

    Attributes:
        log_joint: log p(x, c) (N, K) float64, the mean of the evaluations and the log prior.
        lead: log p(x, c) of the best prompt minus that of the second (N,).
        lead_error: standard error of the lead over the evaluations (N,): 0 of an exact score, NaN
            of a single evaluation of a random one.
    """

    log_joint: Tensor
    lead: Tensor
    lead_error: Tensor

    @property
    def log_posterior(self) -> Tensor:
        """log p(c|x) (N, K)."""
        return self.log_joint - self.log_joint.logsumexp(1, keepdim=True)


def normalize_prior(prior: Sequence[float] | None, prompts: Sequence[str]) -> Tensor:
    """Return the prior p(c) (K,) float64 of the prompts: uniform if None.

    Raises:
        UserError: it does not have a weight of each prompt, or they sum to 0.
    """
    if prior is None:
        return torch.full((len(prompts),), 1 / len(prompts), dtype=torch.float64)
    weights = torch.tensor(list(prior), dtype=torch.float64)
    if len(weights) != len(prompts) or not weights.sum():
        raise UserError(
            f"prior={list(prior)}: give one weight for each of the {len(prompts)} prompts, not all "
            "of them 0"
        )
    return weights / weights.sum()


# Bayes' rule: p(c|x) ∝ p(c) p(x|c). Of a bound or an estimate, every prompt gets the same noise
# (Li et al. 2023, https://arxiv.org/abs/2303.16203, section 3.2), so the error is that of the
# differences between prompts, which is far smaller than that of the scores.
def score_prompts(
    run: LoadedRun,
    score: Score,
    x: Tensor,
    tokens: Tensor,
    *,
    prior: Tensor,
    draws: int,
    batch_size: int,
    seed: int,
) -> PromptScores:
    """Return the scores of items x (N, *shape) under captions.

    Args:
        tokens: of the captions (K, length).
        prior: p(c) (K,).
        draws: evaluations with different noise.
    """
    draws = 1 if score.tag == "exact" else draws
    scores = torch.stack(
        [
            score_items_under_each_condition(
                run, score, x, tokens, batch_size=batch_size, seed=derive_seed(seed, draw)
            )
            for draw in range(draws)
        ]
    )  # (draws, N, K)
    log_joint = scores.mean(0) + prior.log()
    best = log_joint.topk(min(2, len(tokens)), 1)
    lead = best.values[:, 0] - best.values[:, -1]
    index = best.indices.expand(draws, -1, -1)
    values = scores.gather(2, index)
    differences = values[..., 0] - values[..., -1]  # (draws, N)
    if score.tag == "exact":
        error = torch.zeros_like(lead)
    elif draws == 1:
        error = torch.full_like(lead, math.nan)
    else:
        error = differences.std(0) / math.sqrt(draws)
    return PromptScores(log_joint, lead, error)


def classify_by_prompts(
    run: LoadedRun,
    request: CommandRequest,
    score: Score,
    batch: Batch,
    index: Tensor,
    prompts: list[str],
    tokens: Tensor,
    *,
    options: dict[str, Any],
    output_dir: str | None,
) -> dict[str, Any]:
    """Classify items among captions, print and write the result, and return the record.

    Args:
        index: numbers of the items in their split.
        tokens: of the captions (K, length).
        options: split, prior, draws, batch_size, seed and elbo_timesteps of the command.
    """
    prior = normalize_prior(options["prior"], prompts)
    draws = options["draws"] or DRAWS
    found = score_prompts(
        run,
        score,
        batch.x,
        tokens,
        prior=prior,
        draws=draws,
        batch_size=options["batch_size"],
        seed=options["seed"],
    )
    log_p = found.log_posterior
    rule = f"Bayes' rule over {score}, among {len(prompts)} prompts"
    counts = log_p.argmax(1).bincount(minlength=len(prompts)).tolist()
    record: dict[str, Any] = run_record_fields(run, options["seed"]) | {
        "split": options["split"],
        "n": len(batch),
        "rule": rule,
        "tag": score.tag,
        "draws": 1 if score.tag == "exact" else draws,
        "elbo_timesteps": options["elbo_timesteps"],
        "prompts": prompts,
        "prior": prior.tolist(),
        "items_of_prompt": counts,
        "mean_posterior": log_p.exp().mean(0).tolist(),
        "lead": found.lead.mean().item(),
        "standard_error_of_lead": found.lead_error.mean().item(),
        "decided": (found.lead > DECIDED_ERRORS * found.lead_error).double().mean().item(),
    }
    print_wrapped(f"{rule}: {len(batch):,} items of {run.dataset_name} {options['split']}")
    for prompt, count in zip(prompts, counts, strict=True):
        print_wrapped(f"  {prompt}: {count:,}")
    lead = format_with_error(record["lead"], record["standard_error_of_lead"])
    print_wrapped(
        f"the best prompt leads by {lead} on average; in {record['decided']:.0%} of the items by "
        f"more than {DECIDED_ERRORS} standard errors"
    )
    caption = make_picture_caption("classify among prompts", run, options["seed"])
    files: dict[str, Writer] = {
        ".png": partial(
            save_picture_as_sheet,
            plot_posteriors(run, batch, log_p, prompts),
            caption=f"{caption}\n{rule}",
        ),
        ".csv": partial(
            atomic_write, data=posterior_table_as_csv(run, batch, index, found, prompts)
        ),
    }
    truth = measure_against_named_classes(run, batch, log_p, prompts)
    if truth is not None:
        names = truth.pop("classes")
        shown = format_with_error(truth["accuracy"], truth["standard_error"])
        print_wrapped(f"accuracy {shown} on the {truth['n']:,} items whose class a prompt names")
        record["truth"] = truth | {"classes": names}
        title = f"classify: {run.name} on {run.dataset_name}, accuracy {shown}\n{rule}"
        files["_confusion.png"] = partial(
            plot_confusion_matrix, np.array(truth["confusion"]), names, title
        )
    folder = common_output_folder([run], "classify", output_dir)
    write_and_print_output_files(request, folder, f"{options['split']}_prompts", record, files)
    return record


def measure_against_named_classes(
    run: LoadedRun, batch: Batch, log_p: Tensor, prompts: list[str]
) -> dict[str, Any] | None:
    """Return how often the best prompt names an item's class; None if no class is named.

    Only items whose class is named count. Prompts of one class share its probability, and those
    that name no class are one more class, which is never right.

    Args:
        log_p: log p(c|x) (N, K).
    """
    if batch.y is None:
        return None
    named = [run.dataset.class_named_in(prompt) for prompt in prompts]
    classes = sorted({k for k in named if k is not None})
    y = batch.y.cpu()
    is_counted = torch.isin(y, torch.tensor(classes, dtype=y.dtype))
    if not is_counted.any():
        return None
    columns = [[i for i, k in enumerate(named) if k == label] for label in classes]
    names = [run.spec.class_name(k) for k in classes]
    if others := [i for i, k in enumerate(named) if k is None]:
        columns.append(others)
        names.append(NO_CLASS)
    by_class = torch.stack([log_p[:, column].logsumexp(1) for column in columns], 1)
    number = torch.tensor([classes.index(k) if k in classes else 0 for k in y.tolist()])
    measured = classification_metrics(by_class[is_counted], number[is_counted])
    return {"n": int(is_counted.sum()), "classes": names, **measured}


def posterior_table_as_csv(
    run: LoadedRun, batch: Batch, index: Tensor, found: PromptScores, prompts: list[str]
) -> bytes:
    """Return a row for each item: its best prompt, the lead of it, and p(c|x) of each prompt."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    has_classes = batch.y is not None and run.spec.num_classes > 0
    names = ["index", *(["class"] if has_classes else []), "prompt", "probability"]
    names += ["lead", "standard_error_of_lead", *(f"p({prompt})" for prompt in prompts)]
    writer.writerow(names)
    p = found.log_posterior.exp()
    best = p.max(1)
    for i, number in enumerate(index.tolist()):
        label = (
            [run.spec.class_name(int(batch.y[i]))] if has_classes and batch.y is not None else []
        )
        numbers = [best.values[i], found.lead[i], found.lead_error[i], *p[i]]
        writer.writerow(
            [number, *label, prompts[best.indices[i]], *(f"{value:.6g}" for value in numbers)]
        )
    return out.getvalue().encode("utf-8", "replace")


def plot_posteriors(run: LoadedRun, batch: Batch, log_p: Tensor, prompts: list[str]) -> Picture:
    """Plot the first items, each beside a bar p(c|x) for each prompt; the best bar is dark.

    The bars of prompts that name the item's class have green labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = min(MAX_ITEMS_SHOWN, len(batch))
    across = min(2, n)
    down = -(-n // across)
    height = max(1.8, 0.34 * len(prompts) + 0.5)
    figure = Figure(figsize=(6.4 * across, height * down + 0.3), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(
        down, 2 * across, squeeze=False, gridspec_kw={"width_ratios": [1, 1.4] * across}
    )
    images = item_pictures.to_uint8_images(batch.x[:n], run.spec)
    named = [run.dataset.class_named_in(prompt) for prompt in prompts]
    labels = [escape_figure_label(shorten_prompt(prompt)) for prompt in prompts]
    for i in range(down * across):
        picture, bars = grid[i // across, 2 * (i % across)], grid[i // across, 2 * (i % across) + 1]
        picture.axis("off")
        if i >= n:
            bars.axis("off")
            continue
        picture.imshow(images[i].squeeze(), cmap="gray", vmin=0, vmax=255)
        p = log_p[i].exp().tolist()
        best = int(log_p[i].argmax())
        colors = [SAMPLE_COLOR if k == best else DATA_COLOR for k in range(len(p))]
        bars.barh(range(len(p)), p, color=colors)
        bars.set_yticks(range(len(p)), labels, fontsize=FONT_SIZE)
        bars.invert_yaxis()
        bars.set_xlim(0, 1)
        bars.tick_params(axis="x", labelsize=FONT_SIZE - 2)
        if i // across == down - 1 or i + across >= n:
            bars.set_xlabel("p(prompt | image)", fontsize=FONT_SIZE)
        for tick, label in zip(bars.get_yticklabels(), named, strict=True):
            if batch.y is not None and label is not None and label == int(batch.y[i]):
                tick.set_color(RIGHT_COLOR)
                tick.set_fontweight("bold")
    has_truth = batch.y is not None and any(label is not None for label in named)
    note = "the prompt of an image's own class is green" if has_truth else ""
    return canvas_to_picture(canvas, note)


def shorten_prompt(prompt: str) -> str:
    """Return a prompt as a label: its end tells more than its beginning."""
    return prompt if len(prompt) <= MAX_PROMPT_SHOWN else f"…{prompt[-MAX_PROMPT_SHOWN:]}"
