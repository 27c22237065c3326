"""genlab likelihood: compute log p of each item, and plot a histogram."""

from __future__ import annotations

import math
from typing import Any

import torch

from genlab.data.shuffling import permutation
from genlab.inference.likelihood_scores import LIKELIHOODS, find_score, score_items
from genlab.inference.queries import Split
from genlab.inference.results import (
    common_output_folder,
    describe_run,
    write_arrays,
    write_record,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.viz.figures import make_figure, plot_histograms, save_figure

QUANTILES = {"lowest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "highest": 1.0}


def likelihood(
    run: LoadedRun,
    *,
    split: Split = "test",
    n: Positive | None = 1000,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Compute log p of n items of a split (None: all) in nats; return a summary.

    For a conditional model it is log p(x|y) with the item's label. Writes an .npz file with
    log_prob (n,), the indices of the items in the split and their labels y; the summary as JSON; a
    histogram.

    Args:
        iwae_samples: importance samples of an IWAE bound.
        elbo_timesteps: sampled timesteps of a diffusion bound; None uses all.

    Raises:
        UserError: the model has neither an exact likelihood nor a bound or an estimate.
    """
    score = find_score(
        run,
        LIKELIHOODS,
        iwae_samples=iwae_samples,
        elbo_timesteps=elbo_timesteps,
        purpose="likelihood",
    )
    batch = run.dataset.head(split, n, seed=seed)
    torch.manual_seed(seed)
    log_prob = score_items(run, score, batch, batch_size=batch_size, use_labels=True)

    mean, count = log_prob.mean().item(), len(log_prob)
    std = log_prob.std().item() if count > 1 else None
    record = describe_run(run, seed) | {
        "split": split,
        "n": count,
        "score": str(score),
        "tag": score.tag,
        "given": "the label" if run.model.conditional else None,
        "mean": mean,
        "standard_error": None if std is None else std / math.sqrt(count),
        "standard_deviation": std,
        **{name: torch.quantile(log_prob, q).item() for name, q in QUANTILES.items()},
        "bits_per_dim": run.spec.bits_per_dim(mean),
    }
    folder = common_output_folder([run], "likelihood", output_dir)
    name = f"{split}_step{run.step}_seed{seed}"
    arrays = {
        "log_prob": log_prob.numpy(),
        "index": permutation(run.dataset.size(split), seed, 0)[:n].numpy(),
    }
    if batch.y is not None:
        arrays["y"] = batch.y.cpu().numpy()
    write_arrays(folder / f"{name}.npz", **arrays)
    canvas, (axes,) = make_figure(6, 4)
    title = f"{run.name} on {run.dataset_name} {split}"
    plot_histograms(axes, {title: log_prob}, str(score))
    error = "" if std is None else f" ± {record['standard_error']:.2g}"
    print(f"{title}: mean {mean:.4f}{error} nats of {count:,} items, {score.tag} ({score})")
    print(folder / f"{name}.npz")
    print(save_figure(canvas, folder / f"{name}.png"))
    write_record(record, folder / f"{name}.json")
    return record
