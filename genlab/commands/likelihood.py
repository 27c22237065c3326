"""genlab likelihood: log p of each item, as numbers and as a histogram."""

from __future__ import annotations

import math

import torch

from genlab.commands.evaluate import Split
from genlab.data.shuffling import permutation
from genlab.inference.likelihood_scores import (
    LIKELIHOODS,
    conditional,
    figure,
    folder_of,
    histogram,
    save,
    score_of,
    scores,
)
from genlab.inference.results import write_arrays, write_record
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive


def likelihood(
    run: Run,
    *,
    split: Split = "test",
    n: Positive | None = 1000,
    k: Positive = 100,
    terms: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    out: str | None = None,
) -> dict[str, float]:
    """Find log p of n items of a split (None: of all), of a conditional model given their labels; return the summary.

    Writes an .npz with log_prob (n,) in nats, the items' numbers in the split as `index`, and their labels y; the summary as
    JSON; a histogram.

    Raises:
        UserError: the model has no likelihood, exact, bound or estimate.
    """
    score = score_of(run, LIKELIHOODS, k=k, terms=terms, task="likelihood")
    batch = run.dataset.take(split, n, seed=seed)
    torch.manual_seed(seed)
    log_prob = scores(run, score, batch, batch_size=batch_size, labelled=True)

    mean, count = log_prob.mean().item(), len(log_prob)
    record = {
        "model": run.name, "dataset": run.info["dataset"], "step": run.step, "split": split, "n": count, "seed": seed,
        "score": str(score), "tag": score.tag, "given": "the label" if conditional(run) else None, "mean": mean,
        "standard_error": log_prob.std().item() / math.sqrt(count) if count > 1 else None,
        "standard_deviation": log_prob.std().item() if count > 1 else None,
        **{name: torch.quantile(log_prob, q).item() for name, q in QUANTILES.items()},
        "bits_per_dim": run.spec.bits_per_dim(mean),
    }  # fmt: skip
    folder, name = folder_of([run], "likelihood", out), f"{split}_step{run.step}_seed{seed}"
    index = permutation(run.dataset.size(split), seed, 0)[:n]
    labels = {} if batch.y is None else {"y": batch.y.cpu().numpy()}
    write_arrays(folder / f"{name}.npz", log_prob=log_prob.numpy(), index=index.numpy(), **labels)
    canvas, (axes,) = figure(6, 4)
    histogram(axes, {f"{run.name} on {run.info['dataset']} {split}": log_prob}, str(score))
    error = f" ± {record['standard_error']:.2g}" if count > 1 else ""
    print(
        f"{run.name} on {run.info['dataset']} {split}: mean {mean:.4f}{error} nats of {count:,} items, {score.tag} ({score})"
    )
    print(folder / f"{name}.npz")
    save(canvas, folder / f"{name}.png")
    write_record(record, folder / f"{name}.json")
    return record


QUANTILES = {"lowest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "highest": 1.0}
