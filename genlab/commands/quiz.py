"""genlab quiz: a page on which a person guesses which items are real and which are drawn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from genlab.commands.sample import validated_sampler_options
from genlab.comparison.quiz_page import Quiz, write_quiz_page
from genlab.console import Progress
from genlab.errors import UserError
from genlab.inference.items_and_codes import Split
from genlab.inference.output_files import CommandRequest, write_and_print_output_files
from genlab.inference.requirements import require_command_support
from genlab.inference.results import (
    make_picture_caption,
    output_folder_of_run,
    run_record_fields,
)
from genlab.inference.two_sample_test import (
    MIN_ITEMS,
    accuracy_and_error,
    predict_real_images,
    predict_real_texts,
)
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, DataSpec, Positive
from genlab.tables import format_with_error
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture, make_plot_picture
from genlab.viz.sheets import draw_text_image, save_picture_as_sheet

REAL, DRAWN = "real", "drawn"


class QuizItems(NamedTuple):
    """Real and drawn items as they are shown: images (N, H, W, C) of bytes, or texts."""

    real: Any
    drawn: Any


def quiz(
    run: LoadedRun,
    *,
    n: Annotated[int, Ge(2), Le(200)] = 20,
    classifier_items: Annotated[int, Ge(MIN_ITEMS)] = 1000,
    characters: Positive = 200,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a page that mixes held-out items and samples, and counts a person's hits.

    A classifier that is trained on such items, but not on the shown ones, is measured beside.

    Args:
        n: items that are shown, half of them real.
        classifier_items: real items, and as many samples, for the classifier.
        characters: of a text that are shown.
        sampler: options of the model's `sample`.

    Raises:
        UserError: the model does not draw images or texts, or the split has too few items.
    """
    request = CommandRequest.from_command_call(quiz, [run], locals())
    require_command_support(run, "quiz")
    if n % 2:
        raise UserError(f"n={n} is odd: half of the items are real; give n={n + 1}")
    available = run.dataset.size(split)
    num_items = min(classifier_items, available)
    if num_items < max(n // 2, MIN_ITEMS):
        raise UserError(
            f"the {split} split of {run.dataset_name} has {available} items; "
            f"n={n} needs {n // 2}, and the classifier {MIN_ITEMS}; give split=train"
        )
    options = validated_sampler_options(run, sampler or {})
    settings = Settings(split=split, n=num_items, seed=seed, sampler=options)
    items = load_quiz_items(MetricContext(run.dataset, settings, model=run.model), characters)
    predict = predict_real_texts if run.spec.kind == "tokens" else predict_real_images
    with Progress("training the classifier"):
        predicted = predict(items.real, items.drawn, seed=seed)
    accuracy, error = accuracy_and_error(predicted, num_items)

    is_real = np.random.default_rng(seed).permutation(np.arange(n) < n // 2)  # (n,)
    places = np.where(is_real, np.cumsum(is_real), np.cumsum(~is_real)) - 1  # in its own set
    taken_for_real = predicted[np.where(is_real, places, num_items + places)]
    classifier_hits = int((taken_for_real == is_real).sum())
    shown = [
        (items.real if real else items.drawn)[place]
        for real, place in zip(is_real, places, strict=True)
    ]
    record = run_record_fields(run, seed) | {
        "split": split,
        "sampler": options,
        "n": n,
        "classifier_items": 2 * num_items,
        "classifier_accuracy": {"value": accuracy, "error": error},
        "classifier_hits": classifier_hits,
        "is_real": is_real.tolist(),
    }
    page = Quiz(
        shown,
        is_real.tolist(),
        taken_for_real.tolist(),
        title=f"Which is real? {run.name} on {run.dataset_name}",
        classifier_accuracy=format_with_error(100 * accuracy, 100 * error),
        classifier_items=2 * num_items,
    )
    print(
        f"classifier: {format_with_error(100 * accuracy, 100 * error)} % of {2 * num_items:,} "
        f"items right, {classifier_hits} of the {n} on the page; chance: 50 %"
    )
    write_and_print_output_files(
        request,
        output_folder_of_run(run, output_dir),
        "quiz",
        record,
        {
            ".html": partial(write_quiz_page, page),
            "_answers.png": partial(
                save_picture_as_sheet,
                make_answers_picture(items, n // 2, record["classifier_accuracy"]),
                caption=make_picture_caption("real and drawn", run, seed),
            ),
        },
        picture=".html",
    )
    return record


def load_quiz_items(context: MetricContext, characters: int) -> QuizItems:
    """Return all items that the classifier receives; the first ones are shown too.

    Real items are prepared as metrics prepare them: without the noise of dequantization, and with
    gray levels if the samples are means. Drawn gray levels are rounded to those of the data, which
    would tell them apart at once.
    """
    if context.spec.kind == "tokens":
        real, drawn = (context.items(which).x.long() for which in ("real", "generated"))
        texts = (item_pictures.decode_tokens_to_texts(x, context.spec) for x in (real, drawn))
        return QuizItems(*([text[:characters] for text in part] for part in texts))
    byte_spec = replace(context.spec, range=(0.0, 255.0), dequantized=False)
    source = context.dataset.with_gray_levels() if context.samples_are_means else context.dataset
    return QuizItems(
        *(
            round_to_levels(item_pictures.to_uint8_images(context.items(which).x, byte_spec), spec)
            for which, spec in (("real", source.spec), ("generated", source.spec))
        )
    )


def round_to_levels(images: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Return bytes (N, H, W, C) at the nearest of the data's gray levels."""
    if not 2 <= spec.levels < 256:
        return images
    step = 255 / (spec.levels - 1)
    rounded: np.ndarray = np.round(np.round(images / step) * step).astype(np.uint8)
    return rounded


def make_answers_picture(items: QuizItems, n: int, accuracy: dict[str, float]) -> Picture:
    """Return the first n real and n drawn items in two named rows, or as two texts."""
    score = format_with_error(100 * accuracy["value"], 100 * accuracy["error"])
    note = f"a classifier tells them apart with an accuracy of {score} %; chance is 50 %"
    if isinstance(items.real, list):
        parts = [
            f"{name.upper()}\n\n" + "\n\n".join(texts[: min(n, 4)])
            for name, texts in ((REAL, items.real), (DRAWN, items.drawn))
        ]
        return make_plot_picture(draw_text_image(("\n" + "=" * 60 + "\n").join(parts)), note)
    images = np.concatenate([items.real[:n], items.drawn[:n]])
    return make_picture(images, columns=n, row_names=[REAL, DRAWN], note=note)
