"""genlab likelihood: log p of each item with a histogram, or of each character of a text."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genlab.errors import UserError
from genlab.inference.items_and_codes import Split
from genlab.inference.likelihood_scores import LIKELIHOODS, find_supported_score, score_items
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.results import (
    common_output_folder,
    make_picture_caption,
    make_table_rows_csv_writers,
    run_record_fields,
    write_npz,
)
from genlab.inference.text_likelihood import read_text_like_training_data, score_and_write_texts
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.tables import format_with_error, print_wrapped
from genlab.viz.figures import make_canvas_and_axes, plot_histograms, save_canvas_as_png

TypedText = str | int | float  # the command line reads 1605 as a number
QUANTILES = {"lowest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "highest": 1.0}


def likelihood(
    run: LoadedRun,
    *,
    text: TypedText | list[TypedText] | None = None,
    input_file: str | None = None,
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
    histogram; for a table also a CSV file of its rows.

    A text is scored character by character instead: a picture shades each by its surprise, and a
    CSV file has its log p.

    Args:
        text: a text of one's own, or a list of texts.
        input_file: a file with one text.
        iwae_samples: importance samples of an IWAE bound.
        elbo_timesteps: sampled timesteps of a diffusion bound; None uses all.

    Raises:
        UserError: the model has neither an exact likelihood nor a bound or an estimate, or a text
            is given and the model is not one of text.
    """
    request = CommandRequest.from_command_call(likelihood, [run], locals())
    if text is not None or input_file is not None:
        if text is not None and input_file is not None:
            raise UserError("give text= or input_file=, not both")
        path = None if input_file is None else Path(input_file).expanduser()
        if path is None:
            texts = [str(each) for each in (text if isinstance(text, list) else [text])]
        else:
            texts = [read_text_like_training_data(run, path)]
        return score_and_write_texts(
            run, request, texts, seed=seed, input_file=path, output_dir=output_dir
        )
    score = find_supported_score(
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
    error = None if std is None else std / math.sqrt(count)
    if run.dataset.lists_distribution and count == run.dataset.size(split):
        error = 0.0  # the items are the whole distribution
    error = None if error is None else math.hypot(error, score.common_error)
    record = run_record_fields(run, seed) | {
        "split": split,
        "n": count,
        "score": str(score),
        "tag": score.tag,
        "given": "the label" if run.model.conditional else None,
        "mean": mean,
        "standard_error": error,
        "standard_deviation": std,
        **{name: torch.quantile(log_prob, q).item() for name, q in QUANTILES.items()},
        "bits_per_dim": run.spec.bits_per_dim(mean),
    }
    folder = common_output_folder([run], "likelihood", output_dir)
    index = run.dataset.head_indices(split, n, seed=seed)
    arrays = {"log_prob": log_prob.numpy(), "index": index.numpy()}
    if batch.y is not None:
        arrays["y"] = batch.y.cpu().numpy()
    canvas, (axes,) = make_canvas_and_axes(8, 5)
    title = f"{run.name} on {run.dataset_name} {split}"
    plot_histograms(axes, {title: log_prob}, f"{score}, per item")
    shown = format_with_error(mean, error)
    print_wrapped(f"{title}: mean {shown} nats of {count:,} items, {score.tag} ({score})")
    if score.note:
        print_wrapped(score.note)
    files: dict[str, Writer] = {
        ".png": partial(
            save_canvas_as_png, canvas, caption=make_picture_caption("likelihood", run, seed)
        ),
        ".npz": partial(write_npz, arrays=arrays),
    }
    rows = run.dataset.file_row_numbers(split, index)
    files |= make_table_rows_csv_writers(run, batch, rows, {"log_prob": log_prob.tolist()})
    write_and_print_output_files(request, folder, split, record, files)
    return record
