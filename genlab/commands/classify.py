"""genlab classify: classify held-out items, by Bayes' rule or the model's own p(y|x)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.batching import map_batched
from genlab.config.instantiate import accepted_parameters
from genlab.config.recipes import list_recipes, models_with
from genlab.errors import UserError
from genlab.inference.likelihood_scores import (
    CLASS_SCORES,
    LIKELIHOODS,
    class_frequencies,
    find_score,
    score_classes,
    score_items,
)
from genlab.inference.queries import Split
from genlab.inference.results import common_output_folder, write_record
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, Positive
from genlab.viz.figures import make_figure, save_figure

ClassScore = Literal["density", "noise", "bound"]
CLASS_ABILITIES = {"log_prob", "eps_mse", "iwae", "elbo"}  # one of them gives log p(x|y)
DENSITY_ABILITIES = {"log_prob", "elbo", "iwae", "log_partition"}
MAX_LABELED_CLASSES = 20  # the counts of more classes would not be readable in a plot


def classify(
    runs: list[LoadedRun],
    *,
    split: Split = "test",
    n: Positive | None = None,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    score: ClassScore | None = None,
    seed: Count = 0,
    batch_size: Positive = 250,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Classify n held-out items (None: all), by one run or by several with one class each.

    Bayes' rule: p(y|x) ∝ p(y) p(x|y), with the class frequencies in training as p(y). For a
    diffusion model log p(x|y) is minus the squared error of the predicted noise (Li et al. 2023),
    or the bound if score=bound.

    Args:
        score: what stands for log p(x|y) of a single run; None is the model's own p(y|x), or else
            the first of these that it supports.

    Raises:
        UserError: the model cannot classify, or the runs do not have one class each.
    """
    first = runs[0]
    if not first.spec.num_classes:
        raise UserError(f"{first.dataset_name} does not have classes")
    batch = first.dataset.head(split, n, seed=seed)
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "iwae_samples": iwae_samples,
        "elbo_timesteps": elbo_timesteps,
        "batch_size": batch_size,
    }
    if len(runs) > 1:
        if score:
            raise UserError(
                f"score={score} selects a score of one run; several runs are compared by likelihood"
            )
        joint, rule = log_joint_of_runs(runs, batch, **options)  # (N, classes)
        name = f"{split}_seed{seed}"
    else:
        joint, rule = log_joint_of_run(first, batch, score=score, seed=seed, **options)
        name = f"{split}_step{first.step}_seed{seed}"

    log_p = joint - joint.logsumexp(1, keepdim=True)
    record = {
        "runs": [str(run.folder.path) for run in runs],
        "models": [run.name for run in runs],
        "dataset": first.dataset_name,
        "step": [run.step for run in runs],
        "split": split,
        "n": len(batch),
        "elbo_timesteps": elbo_timesteps,
        "seed": seed,
        "rule": rule,
        **classification_results(log_p, batch.y.cpu()),
    }
    folder = common_output_folder(runs, "classify", output_dir)
    title = f"accuracy {record['accuracy']:.4f}"
    print(
        f"{rule}: {title} ± {record['standard_error']:.2g} on {len(batch):,} items of "
        f"{first.dataset_name} {split}"
    )
    plot_confusion(np.array(record["confusion"]), title, folder / f"{name}.png")
    write_record(record, folder / f"{name}.json")
    return record


def log_joint_of_run(
    run: LoadedRun,
    batch: Batch,
    *,
    score: ClassScore | None,
    iwae_samples: int,
    elbo_timesteps: int | None,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, str]:
    """Return log p(x, y) or log p(y|x) (N, classes) of one model, and which of the two it is.

    Raises:
        UserError: the model does not classify; names the models that do.
    """
    available = abilities(run.model)
    if score is None and "classify" in available:

        def classify_batch(x: Tensor) -> Tensor:
            return run.model.classify(run.device.to_device(Batch(x)).x).double().cpu()

        log_p = map_batched(classify_batch, batch.x, batch_size=batch_size)
        return log_p, "the model's own p(y|x)"
    if not run.model.conditional or not available & CLASS_ABILITIES:
        raise UserError(
            f"{run.name} does not classify: train with model.conditional=true where the recipe has "
            f"that option ({', '.join(conditional_models())}), or give runs=[…], one run per class "
            f"(dataset.classes=<class>), of {', '.join(density_models())}; models with their own "
            f"p(y|x): {', '.join(models_with('classify')) or 'none'}"
        )
    found = find_score(
        run,
        {score: CLASS_SCORES[score]} if score else CLASS_SCORES,
        iwae_samples=iwae_samples,
        elbo_timesteps=elbo_timesteps,
        purpose=score or "score",
    )
    log_p = score_classes(run, found, batch.x, batch_size=batch_size, seed=seed)
    return log_p + class_frequencies(run).log(), f"Bayes' rule over {found}"


def log_joint_of_runs(
    runs: list[LoadedRun],
    batch: Batch,
    *,
    iwae_samples: int,
    elbo_timesteps: int | None,
    batch_size: int,
) -> tuple[Tensor, str]:
    """Return log p(x, y) (N, classes) of one model per class; a class without a model has −∞.

    Raises:
        UserError: a run was trained on several classes, two runs on the same, or their data or
            scores differ.
    """
    joint = torch.full((len(batch), runs[0].spec.num_classes), -math.inf, dtype=torch.float64)
    scores, total = set(), 0
    for run in runs:
        classes = run.dataset.splits["train"].y.unique().tolist()
        if len(classes) != 1:
            raise UserError(
                f"{run.folder.path} was trained on {len(classes)} classes; Bayes' rule over "
                "several runs takes one a class: train each with dataset.classes=<class>"
            )
        if run.spec != runs[0].spec or run.dataset_name != runs[0].dataset_name:
            raise UserError(
                f"{run.folder.path} and {runs[0].folder.path} were trained on different data"
            )
        (label,) = classes
        if joint[0, label] > -math.inf:
            raise UserError(
                f"{run.folder.path}: another of the runs was also trained on class {label}"
            )
        score = find_score(
            run,
            LIKELIHOODS,
            iwae_samples=iwae_samples,
            elbo_timesteps=elbo_timesteps,
            purpose="likelihood",
        )
        scores.add(str(score))
        n = run.dataset.size("train")
        log_prob = score_items(run, score, batch, batch_size=batch_size, use_labels=True)
        joint[:, label] = log_prob + math.log(n)
        total += n
    rule = f"Bayes' rule over {' and '.join(sorted(scores))}, one run per class"
    return joint - math.log(total), rule


def density_models() -> list[str]:
    """Return the recipes whose models have a density or a bound of it."""
    return [recipe.name for recipe in list_recipes() if recipe.abilities() & DENSITY_ABILITIES]


def conditional_models() -> list[str]:
    """Return the recipes of `density_models` that have the option model.conditional."""
    return [
        recipe.name
        for recipe in list_recipes()
        if recipe.abilities() & DENSITY_ABILITIES
        and "conditional" in (p.name for p in accepted_parameters(recipe.model)[0])
    ]


def classification_results(log_p: Tensor, y: Tensor) -> dict[str, Any]:
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


def plot_confusion(counts: np.ndarray, title: str, path: Path) -> None:
    """Plot a confusion matrix: one row per true class, each cell with its count."""
    canvas, (axes,) = make_figure(6, 6)
    fraction = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= MAX_LABELED_CLASSES:
        for i, j in zip(*counts.nonzero(), strict=True):
            color = "w" if fraction[i, j] > 0.5 else "k"
            axes.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, c=color)
        axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    print(save_figure(canvas, path))
