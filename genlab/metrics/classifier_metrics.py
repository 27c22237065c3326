"""Metrics by a classifier of the data's classes, or by one trained on samples.

They measure which classes samples have, whether these are the requested ones, and how much a
classifier learns from samples only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import Row, binomial_standard_error
from genlab.metrics.cache import content_hash, load_cached_or_compute
from genlab.metrics.context import ItemSet, MetricContext
from genlab.metrics.features.classifier import classifier_accuracy, train_classifier
from genlab.metrics.mode_coverage import reverse_kl

NUM_BOOTSTRAPS = 200
# Images that the classifier of `cas` sees in training, which bounds its time.
CAS_IMAGES_SEEN = 100_000
CACHE_VERSION = "1"


def has_labeled_image_samples(context: MetricContext) -> bool:
    """Whether there are samples of images with labels."""
    return (
        "sample" in context.abilities
        and context.spec.kind == "image"
        and context.spec.num_classes > 1
    )


def predict_classes(context: MetricContext, which: ItemSet) -> tuple[Tensor, int]:
    """Return the classes (N, parts) that the classifier predicts, and the number of classes K.

    There is one part, or one per channel for stacked data.
    """
    if not context.dataset.stacked:
        logits = context.logits("classifier", which)[:, None]  # (N, 1, K)
    else:
        extractor, size = context.extractor("classifier"), context.settings.batch_size
        parts: list[Any] = [
            extractor(part.flatten(0, 1)[:, None])[1] for part in context.items(which).x.split(size)
        ]
        logits = torch.cat(parts).unflatten(0, (-1, context.spec.shape[0]))  # (N, C, K)
    return logits.argmax(-1), logits.shape[-1]


# --- class coverage -------------------------------------------------------------------------------


def class_coverage_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_class_coverage` gives."""
    return ["class_mode_count", "class_kl"] if has_labeled_image_samples(context) else []


def count_class_combinations(classes: Tensor, k: int) -> Tensor:
    """Return how often each combination of classes occurs (k**parts,) in classes (N, parts)."""
    place_values = k ** torch.arange(classes.shape[1])
    return torch.bincount(classes @ place_values, minlength=k ** classes.shape[1]).double()


def independent_combination_probs(classes: Tensor, k: int) -> Tensor:
    """Return the probability of each combination (k**parts,) of independent parts.

    They are estimated from the classes (N, parts) of real items. A class that no real item has
    counts as half an item, so that a sample of it is improbable rather than impossible.
    """
    probs = torch.ones(1, dtype=torch.float64)
    for part in classes.T:
        counts = torch.bincount(part, minlength=k).double().clamp_(min=0.5)
        # the first part varies fastest, as in `count_class_combinations`
        probs = torch.outer(counts / counts.sum(), probs).flatten()
    return probs


def class_frequency_kl_and_error(
    generated: Tensor, real: Tensor, k: int, *, seed: int = 0
) -> tuple[float, float]:
    """Return KL(generated ‖ real) in nats of two sets of classes, and its standard error.

    The reverse KL divergence of Srivastava et al. 2017 (https://arxiv.org/abs/1705.07761) and Lin
    et al. 2018 (https://arxiv.org/abs/1712.04086). Two samples of the same distribution give about
    (k − 1)/2 · (1/N + 1/M) if all classes occur. The error is a bootstrap over both sets, up to √3
    too large there.

    Args:
        generated: classes of samples (N, parts), each below k.
        real: classes of real items (M, parts).
    """
    generator = torch.Generator().manual_seed(seed)

    def resample(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    bootstraps = []
    for _ in range(NUM_BOOTSTRAPS):
        counts = count_class_combinations(resample(generated), k)
        bootstraps.append(reverse_kl(counts, independent_combination_probs(resample(real), k)))
    value = reverse_kl(
        count_class_combinations(generated, k), independent_combination_probs(real, k)
    )
    return value.item(), torch.stack(bootstraps).std().item()


def measure_class_coverage(context: MetricContext) -> list[Row]:
    """Return the number of classes among n samples, and the divergence of their frequencies.

    For stacked data the classes are combinations. The classifier also predicts the classes of the
    real items. `real_vs_real` is the value of real items in the place of the samples.
    """
    fresh_names, fresh_real_name = context.floor_sets()
    (generated, k), (real, _), (fresh_real, _) = (
        predict_classes(context, which) for which in ("generated", "real", fresh_real_name)
    )
    counts = count_class_combinations(generated, k)
    fresh_counts = [
        count_class_combinations(predict_classes(context, name)[0], k) for name in fresh_names
    ]
    kl, error = class_frequency_kl_and_error(generated, real, k, seed=context.settings.seed)
    probs = independent_combination_probs(fresh_real, k)
    real_kl = torch.stack([reverse_kl(part, probs) for part in fresh_counts]).mean().item()
    num_real_modes = torch.stack([(part > 0).sum() for part in fresh_counts]).double().mean()
    conditions = context.make_conditions("classifier")
    return [
        Row(
            "class_mode_count",
            float((counts > 0).sum()),
            f"of {len(counts)}",
            "estimate",
            real_vs_real=num_real_modes.item(),
            better="higher",
            conditions=conditions,
        ),
        Row("class_kl", kl, "nats", "estimate", error, real_kl, conditions=conditions),
    ]


# --- accuracy of conditional samples --------------------------------------------------------------


def class_accuracy_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_class_accuracy` gives."""
    is_applicable = (
        has_labeled_image_samples(context) and context.conditional and not context.dataset.stacked
    )
    return ["class_accuracy"] if is_applicable else []


def measure_class_accuracy(context: MetricContext) -> list[Row]:
    """Return how often the classifier predicts the class that a sample was drawn for.

    It has a binomial error. `real_vs_real` is the classifier's accuracy on held-out items, which
    perfect samples would reach.
    """
    generated, real = (classifier_label_accuracy(context, which) for which in ("generated", "real"))
    conditions = context.make_conditions("classifier") | CLASSIFIER_ON_HELDOUT
    return [
        Row(
            "class_accuracy",
            generated,
            "share",
            "estimate",
            error=binomial_standard_error(generated, len(context.generated)),
            real_vs_real=real,
            better="higher",
            conditions=conditions,
        )
    ]


CLASSIFIER_ON_HELDOUT = {"real_vs_real": "the classifier on held-out items"}


def classifier_label_accuracy(context: MetricContext, which: ItemSet) -> float:
    """Return the fraction of items whose label the classifier predicts."""
    predicted, _ = predict_classes(context, which)
    labels = context.items(which).y
    assert labels is not None
    return (predicted[:, 0] == labels).double().mean().item()


def prompt_accuracy_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_prompt_accuracy` gives."""
    is_applicable = (
        has_labeled_image_samples(context)
        and context.model is not None
        and context.model.text_conditional
        and context.dataset.caption_templates()
    )
    if not is_applicable:
        return []
    names = ["prompt_accuracy"]
    if context.dataset.caption_templates(heldout=True):
        names.append("heldout_prompt_accuracy")
    return names


@torch.no_grad()
def measure_prompt_accuracy(context: MetricContext) -> list[Row]:
    """Return how often the classifier predicts the class that a sample's prompt names.

    prompt_accuracy uses the templates of training, heldout_prompt_accuracy those that no training
    item has. All classes and templates are equally frequent. The error is binomial. `real_vs_real`
    is the classifier's accuracy on held-out items.
    """
    real_accuracy = classifier_label_accuracy(context, "real")
    s = context.settings
    rows = []
    for name in prompt_accuracy_row_names(context):
        heldout = name == "heldout_prompt_accuracy"
        templates = context.dataset.caption_templates(heldout=heldout)
        value = prompt_accuracy_of_templates(context, templates)
        conditions = context.extractor("classifier").conditions | {
            "n": s.n,
            "seed": s.seed,
            "templates": len(templates),
        }
        rows.append(
            Row(
                name,
                value,
                "share",
                "estimate",
                error=binomial_standard_error(value, s.n),
                real_vs_real=real_accuracy,
                better="higher",
                conditions=conditions | CLASSIFIER_ON_HELDOUT,
            )
        )
    return rows


def prompt_accuracy_of_templates(context: MetricContext, templates: list[str]) -> float:
    """Return how often the classifier predicts the class in a prompt made by the templates."""
    data, s = context.dataset, context.settings
    extractor = context.extractor("classifier")
    captions = torch.stack([data.encode_class_captions(template) for template in templates], 1)
    prompts = captions.flatten(0, 1)  # class by class
    labels = torch.arange(data.spec.num_classes).repeat_interleave(len(templates))
    torch.manual_seed(s.seed)
    correct = []
    for index in (torch.arange(s.n) % len(prompts)).split(s.batch_size):
        x = context.model.sample(len(index), prompts[index].to(context.device), **s.sampler)
        logits = extractor(context.spec.to_bytes(x.cpu()))[1]
        assert logits is not None
        correct.append(logits.argmax(-1) == labels[index])
    return torch.cat(correct).double().mean().item()


# --- classification accuracy score ----------------------------------------------------------------


def classification_accuracy_score_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_classification_accuracy_score` gives."""
    is_applicable = (
        has_labeled_image_samples(context)
        and context.conditional
        and not context.dataset.stacked
        and context.dataset.size("train")
    )
    return ["cas"] if is_applicable else []


def measure_classification_accuracy_score(context: MetricContext) -> list[Row]:
    """Return the accuracy on held-out items of a classifier that is trained on n samples only.

    The classification accuracy score of Ravuri & Vinyals 2019 (https://arxiv.org/abs/1905.10887),
    with this project's small classifier instead of their ResNet. The labels are the classes that
    the samples were drawn for. `real_vs_real` is the accuracy of the same classifier trained on the
    same number of real items. The error is binomial over the held-out items; the single training,
    from a fixed seed, is part of the number.
    """
    generated, train, real = (context.items(which) for which in ("generated", "train", "real"))

    def accuracy_after_training(x: Tensor, y: Any) -> float:
        network = train_classifier(
            x, y, context.spec.num_classes, images=CAS_IMAGES_SEEN, device=context.device
        )
        assert real.y is not None
        return classifier_accuracy(network, real.x, real.y, device=context.device)

    value = accuracy_after_training(generated.x, generated.y)
    n = min(len(generated), len(train))
    assert train.y is not None and real.y is not None
    x, y = train.x[:n], train.y[:n]
    key = content_hash(CACHE_VERSION, str(CAS_IMAGES_SEEN), x, y, real.x, real.y)
    cached = load_cached_or_compute(
        "trained_on_real", key, lambda: {"accuracy": accuracy_after_training(x, y)}
    )
    conditions = context.make_conditions(images=CAS_IMAGES_SEEN)
    conditions["real_vs_real"] = f"trained on {n} real items"
    return [
        Row(
            "cas",
            value,
            "share",
            "estimate",
            error=binomial_standard_error(value, len(real)),
            real_vs_real=cached["accuracy"],
            better="higher",
            conditions=conditions,
        )
    ]
