"""genlab classify: the class of each held-out item, by Bayes' rule over densities or by the model's own p(y|x)."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.commands.evaluate import Split
from genlab.config.instantiate import locate
from genlab.config.recipes import able, recipes
from genlab.errors import UserError
from genlab.inference.likelihood_scores import (
    CLASS_SCORES,
    LIKELIHOODS,
    Kind,
    class_scores,
    class_shares,
    conditional,
    figure,
    folder_of,
    over,
    save,
    score_of,
    scores,
)
from genlab.inference.results import write_record
from genlab.runs.loaded_run import Run
from genlab.spec import Batch, Count, Positive


def classify(
    runs: list[Run],
    *,
    split: Split = "test",
    n: Positive | None = None,
    k: Positive = 100,
    terms: Positive | None = 20,
    by: Literal["density", "noise", "bound"] | None = None,
    seed: Count = 0,
    batch_size: Positive = 250,
    out: str | None = None,
) -> dict[str, Any]:
    """Classify n held-out items (None: all), by one run, or by several of which each was trained on one class alone.

    Bayes' rule: p(y|x) ∝ p(y) p(x|y), with the classes' shares in training as p(y). A diffusion model takes for log p(x|y) minus
    the squared error with which it foretells the noise (Li et al. 2023), or its bound where by=bound.

    Args:
        by: what one model's log p(x|y) is; None: its own p(y|x), or else the first of these that it has.

    Raises:
        UserError: the model cannot tell classes, or the runs are not one a class.
    """
    first = runs[0]
    if not first.spec.classes:
        raise UserError(f"{first.info['dataset']} has no classes to tell apart")
    batch = first.dataset.take(split, n, seed=seed)
    torch.manual_seed(seed)
    how = {"k": k, "terms": terms, "batch_size": batch_size}
    several = len(runs) > 1
    if several and by:
        raise UserError(
            f"by={by} chooses among the scores of one run; several are told apart by their likelihood"
        )
    joint, said = (
        one_a_class(runs, batch, **how)
        if several
        else by_one(first, batch, by=by, seed=seed, **how)
    )  # (N, classes)

    log_p = joint - joint.logsumexp(1, keepdim=True)
    record = {
        "runs": [str(run.folder.path) for run in runs], "models": [run.name for run in runs], "dataset": first.info["dataset"],
        "step": [run.step for run in runs], "split": split, "n": len(batch), "terms": terms, "seed": seed, "rule": said,
        **judged(log_p, batch.y.cpu()),
    }  # fmt: skip
    folder, name = (
        folder_of(runs, "classify", out),
        f"{split}_seed{seed}" if runs[1:] else f"{split}_step{first.step}_seed{seed}",
    )
    print(f"{said}: accuracy {record['accuracy']:.4f} ± {record['standard_error']:.2g} on {len(batch):,} items of "
          f"{first.info['dataset']} {split}")  # fmt: skip
    draw(
        np.array(record["confusion"]), f"accuracy {record['accuracy']:.4f}", folder / f"{name}.png"
    )
    write_record(record, folder / f"{name}.json")
    return record


def by_one(
    run: Run,
    batch: Batch,
    *,
    k: int,
    terms: int | None,
    batch_size: int,
    by: Kind | None = None,
    seed: int = 0,
) -> tuple[Tensor, str]:
    """Return log p(x, y), or log p(y|x) (N, classes), of one model, and which of the two it is."""
    if by is None and "classify" in abilities(run.model):
        with torch.no_grad():
            return over(
                run, batch, batch_size, lambda x, _: run.model.classify(x)
            ), "the model's own p(y|x)"
    if not conditional(run) or not abilities(run.model) & {
        "log_prob",
        "noise_error",
        "iwae",
        "elbo",
    }:
        mend = f"give runs=[…], one run a class (dataset.only=<class>), of {', '.join(able_by_bayes())}"
        raise UserError(f"{run.name} tells no classes: train with model.conditional=true where the recipe has it "
                        f"({', '.join(able_by_class())}), or {mend}; models with their own p(y|x): "
                        f"{', '.join(able('classify')) or 'none'}")  # fmt: skip
    score = score_of(
        run, {by: CLASS_SCORES[by]} if by else CLASS_SCORES, k=k, terms=terms, task=by or "score"
    )
    joint = (
        class_scores(run, score, batch, batch_size=batch_size, seed=seed) + class_shares(run).log()
    )
    return joint, f"Bayes' rule over {score}"


def one_a_class(
    runs: list[Run], batch: Batch, *, k: int, terms: int | None, batch_size: int
) -> tuple[Tensor, str]:
    """Return log p(x, y) (N, classes) of one model a class; a class without a model has −∞.

    Raises:
        UserError: a run was trained on several classes, or two on the same, or their data or scores differ.
    """
    joint, said, total = (
        torch.full((len(batch), runs[0].spec.classes), -math.inf).double(),
        set(),
        0,
    )
    for run in runs:
        seen = run.dataset.splits["train"].y.unique().tolist()
        if len(seen) != 1:
            raise UserError(f"{run.folder.path} was trained on {len(seen)} classes; Bayes' rule over several runs takes one a "
                            "class: train each with dataset.only=<class>")  # fmt: skip
        if run.spec != runs[0].spec or run.info["dataset"] != runs[0].info["dataset"]:
            raise UserError(
                f"{run.folder.path} and {runs[0].folder.path} were trained on data of different forms"
            )
        if joint[0, seen[0]] > -math.inf:
            raise UserError(
                f"{run.folder.path}: another of the runs was trained on class {seen[0]} too"
            )
        score = score_of(run, LIKELIHOODS, k=k, terms=terms, task="likelihood")
        said.add(str(score))
        n = run.dataset.size("train")
        joint[:, seen[0]] = scores(
            run, score, batch, batch_size=batch_size, labelled=True
        ) + math.log(n)
        total += n
    return joint - math.log(
        total
    ), f"Bayes' rule over {' and '.join(sorted(said))}, one run a class"


def able_by_bayes() -> list[str]:
    """Return the recipes whose model has a density or a bound of one."""
    return [
        r.name for r in recipes() if r.abilities() & {"log_prob", "elbo", "iwae", "log_partition"}
    ]


def able_by_class() -> list[str]:
    """Return those of them that have a conditional form."""
    targets = {r.name: locate({"_target_": r.target}, f"model={r.name}") for r in recipes()}
    return [
        name
        for name in able_by_bayes()
        if "conditional" in inspect.signature(targets[name]).parameters
    ]


def judged(log_p: Tensor, y: Tensor) -> dict[str, Any]:
    """Return accuracy, its standard error, that of each class, the labels' mean −log p(y|x), and the counts [true][found]."""
    from sklearn.metrics import confusion_matrix

    found = log_p.argmax(1)
    accuracy = (found == y).double().mean().item()
    counts = confusion_matrix(y, found, labels=range(log_p.shape[1]))
    of_class = counts.diagonal() / counts.sum(1).clip(min=1)
    return {
        "accuracy": accuracy, "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(y)),
        "nll_of_labels": -log_p.gather(1, y[:, None]).mean().item(),
        "accuracy_of_class": of_class.tolist(), "confusion": counts.tolist(),
    }  # fmt: skip


def draw(counts: np.ndarray, title: str, path: Any) -> None:
    """Write the confusion matrix as a picture: a row a true class, each cell with its count."""
    canvas, (axes,) = figure(6, 6)
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    classes = range(len(counts))
    if len(counts) <= 20:  # more would not be readable
        for i in classes:
            for j in classes:
                if counts[i, j]:
                    axes.text(
                        j,
                        i,
                        counts[i, j],
                        ha="center",
                        va="center",
                        fontsize=8,
                        c="w" if share[i, j] > 0.5 else "k",
                    )
        axes.set(xticks=classes, yticks=classes)
    axes.set(xlabel="class found", ylabel="true class", title=title)
    save(canvas, path)
