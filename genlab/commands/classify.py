"""genlab classify: classify held-out items, by Bayes' rule or the model's own p(y|x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.batching import map_batched
from genlab.commands.sample import encode_prompts
from genlab.config.instantiate import parameters_and_type_hints
from genlab.config.recipes import Recipe, nearest_recipe_names, nearest_recipes_with
from genlab.console import track
from genlab.errors import UserError
from genlab.inference.classification import (
    class_names,
    classification_metrics,
    classify_by_prompts,
    plot_confusion_matrix,
)
from genlab.inference.items_and_codes import Split
from genlab.inference.likelihood_scores import (
    CLASS_SCORES,
    LIKELIHOODS,
    class_frequencies,
    find_supported_score,
    score_items,
    score_items_under_each_class,
)
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.results import common_output_folder, make_table_rows_csv_writers
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, DataSpec, NonNegative, Positive
from genlab.tables import format_with_error, print_wrapped

ClassScore = Literal["density", "noise", "bound"]
CLASS_ABILITIES = {"log_prob", "eps_mse", "iwae", "elbo"}  # one of them gives log p(x|y)
DENSITY_ABILITIES = {"log_prob", "elbo", "iwae", "log_partition"}


def classify(
    runs: list[LoadedRun],
    *,
    prompts: list[str | int | float] | None = None,
    prior: list[NonNegative] | None = None,
    draws: Positive | None = None,
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

    A model of images given captions classifies among captions, p(c|x) ∝ p(c) p(x|c).

    Args:
        prompts: captions; None is one of each class, where captions are made from classes.
        prior: weight p(c) of each prompt; None: equal.
        draws: evaluations of a random score with different noise, which is the same for all
            prompts: they give the error of the differences between prompts. None is 4.
        score: what stands for log p(x|y) of a single run; None is the model's own p(y|x), or else
            the first of these that it supports.

    Raises:
        UserError: the model cannot classify, or the runs do not have one class each, or captions
            are given and the model is not conditioned on captions.
    """
    request = CommandRequest.from_command_call(classify, runs, locals())
    first = runs[0]
    if len(runs) == 1 and first.model.text_conditional:
        common = {"split": split, "batch_size": batch_size, "seed": seed}
        of_prompts = {"prior": prior, "draws": draws, "elbo_timesteps": elbo_timesteps}
        return classify_among_captions(
            first,
            request,
            None if prompts is None else [str(prompt) for prompt in prompts],
            n=n,
            score=score,
            iwae_samples=iwae_samples,
            options=common | of_prompts,
            output_dir=output_dir,
        )
    for name, value in {"prompts": prompts, "prior": prior, "draws": draws}.items():
        if value is not None:
            given = [str(each) for each in value] if isinstance(value, list) else [str(value)]
            encode_prompts(first, given, name)  # raises the error that names such models
            raise UserError(f"{name}= is for one run, given by run=, and not for runs=")
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
        joint, rule = log_joint_and_rule_of_runs(runs, batch, **options)  # (N, classes)
    else:
        joint, rule = log_joint_and_rule_of_run(first, batch, score=score, seed=seed, **options)

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
        **classification_metrics(log_p, batch.y.cpu()),
    }
    folder = common_output_folder(runs, "classify", output_dir)
    shown = format_with_error(record["accuracy"], record["standard_error"])
    print_wrapped(
        f"{rule}: accuracy {shown} on {len(batch):,} items of {first.dataset_name} {split}"
    )
    models = ", ".join(dict.fromkeys(run.name for run in runs))
    caption = f"classify: {models} on {first.dataset_name}, accuracy {shown}\n{rule}"
    counts = np.array(record["confusion"])
    files: dict[str, Writer] = {
        ".png": partial(plot_confusion_matrix, counts, class_names(first.spec), caption)
    }
    rows = first.dataset.file_row_numbers(split, first.dataset.head_indices(split, n, seed=seed))
    files |= make_table_rows_csv_writers(
        first, batch, rows, predicted_classes_and_probabilities(log_p, first.spec)
    )
    write_and_print_output_files(request, folder, split, record, files)
    return record


def classify_among_captions(
    run: LoadedRun,
    request: CommandRequest,
    prompts: list[str] | None,
    *,
    n: int | None,
    score: ClassScore | None,
    iwae_samples: int,
    options: dict[str, Any],
    output_dir: str | None,
) -> dict[str, Any]:
    """Classify items of a run's data among captions; None is a caption of each class.

    Raises:
        UserError: the model has no density, bound or noise error, or no captions are given and the
            data does not make them from classes.
    """
    found = find_supported_score(
        run,
        {score: CLASS_SCORES[score]} if score else CLASS_SCORES,
        iwae_samples=iwae_samples,
        elbo_timesteps=options["elbo_timesteps"],
        purpose=score or "log p(x|caption)",
    )
    captions = list(run.dataset.class_captions()) if prompts is None else prompts
    if len(captions) < 2:
        raise UserError(
            "give prompts=[…] with at least two captions to choose from, such as "
            'prompts=["a cat","a dog"]'
        )
    tokens = encode_prompts(run, captions, "prompts")
    assert tokens is not None
    split, seed = options["split"], options["seed"]
    batch = run.dataset.head(split, n, seed=seed)
    index = run.dataset.head_indices(split, n, seed=seed)
    return classify_by_prompts(
        run,
        request,
        found,
        batch,
        index,
        captions,
        tokens,
        options=options,
        output_dir=output_dir,
    )


def predicted_classes_and_probabilities(log_p: Tensor, spec: DataSpec) -> dict[str, list[Any]]:
    """Return the predicted classes and their probabilities, given log p(y|x) (N, classes)."""
    best = log_p.max(1)
    return {
        "predicted": [spec.class_name(k) for k in best.indices.tolist()],
        "probability": [f"{p:.6g}" for p in best.values.exp().tolist()],
    }


def log_joint_and_rule_of_run(
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

        def name_recipes(fits: Callable[[Recipe], bool]) -> str:
            return ", ".join(nearest_recipe_names(fits, run.spec.kind))

        raise UserError(
            f"{run.name} does not classify: train with model.conditional=true where the recipe has "
            f"that option ({name_recipes(recipe_can_be_conditional)}), or give runs=[…], one run "
            f"per class (dataset.classes=<class>), of {name_recipes(recipe_has_density)}; models "
            f"with their own p(y|x): {', '.join(nearest_recipes_with('classify', run.spec.kind))}"
        )
    found = find_supported_score(
        run,
        {score: CLASS_SCORES[score]} if score else CLASS_SCORES,
        iwae_samples=iwae_samples,
        elbo_timesteps=elbo_timesteps,
        purpose=score or "score",
    )
    log_p = score_items_under_each_class(run, found, batch.x, batch_size=batch_size, seed=seed)
    return log_p + class_frequencies(run).log(), f"Bayes' rule over {found}"


def log_joint_and_rule_of_runs(
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
    for run in track(runs, "classifying", unit="runs"):
        classes = run.dataset.splits["train"].y.unique().tolist()
        if len(classes) != 1:
            raise UserError(
                f"{run.folder.path} was trained on {len(classes)} classes; Bayes' rule over "
                "several runs takes one a class: train each with dataset.classes=<class>"
            )
        if not run.spec.is_same_as(runs[0].spec) or run.dataset_name != runs[0].dataset_name:
            raise UserError(
                f"{run.folder.path} and {runs[0].folder.path} were trained on different data"
            )
        (label,) = classes
        if joint[0, label] > -math.inf:
            raise UserError(
                f"{run.folder.path}: another of the runs was also trained on class {label}"
            )
        score = find_supported_score(
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


def recipe_has_density(recipe: Recipe) -> bool:
    """Whether a recipe's model has a density or a bound of it."""
    return bool(recipe.abilities() & DENSITY_ABILITIES)


def recipe_can_be_conditional(recipe: Recipe) -> bool:
    """Whether a recipe's model has a density, and the option model.conditional."""
    parameters, _ = parameters_and_type_hints(recipe.model)
    return recipe_has_density(recipe) and "conditional" in (p.name for p in parameters)
