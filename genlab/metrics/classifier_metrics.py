"""What a classifier of the data's own classes says of samples: which it finds, whether they are the ones asked for, and
what another learns from them alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.cache import cached, digest
from genlab.metrics.context import Subject, to_bytes
from genlab.metrics.features.classifier import accuracy, trained
from genlab.metrics.mode_coverage import reverse_kl

BOOTSTRAPS = 200
IMAGES = 100_000  # seen by the classifier that is trained on samples, at most: the time that it takes is bounded


def fits(subject: Subject) -> bool:
    """Whether samples are images of data with labels."""
    return (
        "sample" in subject.abilities and subject.spec.kind == "image" and subject.spec.classes > 1
    )


def stacked(subject: Subject) -> bool:
    """Whether each channel of an image is an image of its own class, drawn apart from the others, as in Stacked MNIST."""
    return getattr(subject.dataset, "stacked", False)


def predicted(subject: Subject, which: str) -> tuple[Tensor, int]:
    """Return the classes (N, parts) that the classifier gives, of each channel alone where the data is stacked; and K."""
    if not stacked(subject):
        logits = subject.logits("classifier", which)[:, None]  # (N, 1, K)
    else:
        extractor, size = subject.extractor("classifier"), subject.settings.batch_size
        parts = [
            extractor(part.flatten(0, 1)[:, None])[1] for part in subject.items(which).x.split(size)
        ]
        logits = torch.cat(parts).unflatten(0, (-1, subject.spec.shape[0]))  # (N, C, K)
    return logits.argmax(-1), logits.shape[-1]


# --- the classes found -----------------------------------------------------------------------------------------------


def class_modes_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `class_modes` gives."""
    return ["class_modes", "class_kl"] if fits(subject) else []


def counts(classes: Tensor, k: int) -> Tensor:
    """Return how often each combination occurs (k**parts,) in classes (N, parts), of which each is one of k."""
    place = k ** torch.arange(classes.shape[1])
    return torch.bincount(classes @ place, minlength=k ** classes.shape[1]).double()


def law(classes: Tensor, k: int) -> Tensor:
    """Return the weight of each combination (k**parts,) by the classes (N, parts) of real items, whose parts are independent.

    A class that no real item has counts as half an item, so that a sample of it is improbable and not impossible.
    """
    whole = torch.ones(1, dtype=torch.float64)
    for part in classes.T:
        one = torch.bincount(part, minlength=k).double().clamp_(min=0.5)
        whole = torch.outer(
            one / one.sum(), whole
        ).flatten()  # the first part varies fastest, as in `counts`
    return whole


def class_kl(drawn: Tensor, real: Tensor, k: int, *, seed: int = 0) -> tuple[float, float]:
    """Return KL(drawn ‖ real) in nats of the classes (N, parts) of samples and (M, parts) of real items, and its error.

    The reverse KL divergence of Srivastava et al. 2017 (https://arxiv.org/abs/1705.07761) and Lin et al. 2018
    (https://arxiv.org/abs/1712.04086); each class is one of k. Two samples of one law give about (k − 1)/2 · (1/N + 1/M)
    where all classes are seen. Error: bootstrap over both sets, up to √3 too wide there.
    """
    generator = torch.Generator().manual_seed(seed)
    again = lambda x: x[torch.randint(len(x), (len(x),), generator=generator)]  # noqa: E731
    spread = [reverse_kl(counts(again(drawn), k), law(again(real), k)) for _ in range(BOOTSTRAPS)]
    return reverse_kl(counts(drawn, k), law(real, k)).item(), torch.stack(spread).std().item()


def class_modes(subject: Subject) -> list[Row]:
    """Return how many classes (of stacked data: combinations) n samples hold, and how far their histogram is from the real.

    Real items are judged by the same classifier. The floor is that of one held-out half, and of it against the other.
    """
    seed = subject.settings.seed
    (drawn, k), (real, _), (half, _), (other, _) = (
        predicted(subject, which) for which in ("drawn", "real", "half", "other_half")
    )
    found, of_half = counts(drawn, k), counts(half, k)
    kl, error = class_kl(drawn, real, k, seed=seed)
    floor = reverse_kl(of_half, law(other, k)).item()
    conditions = subject.conditions("classifier")
    seen, floor_seen = (float((c > 0).sum()) for c in (found, of_half))
    return [
        Row(
            "class_modes",
            seen,
            f"of {len(found)}",
            "estimate",
            None,
            floor_seen,
            "higher",
            conditions,
        ),
        Row("class_kl", kl, "nats", "estimate", error, floor, "lower", conditions),
    ]


# --- the classes asked for -------------------------------------------------------------------------------------------


def class_accuracy_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `class_accuracy` gives."""
    return (
        ["class_accuracy"] if fits(subject) and subject.conditional and not stacked(subject) else []
    )


def class_accuracy(subject: Subject) -> list[Row]:
    """Return the share of n conditional samples that the classifier gives the class they were drawn for, binomial error.

    The floor is the classifier's accuracy on held-out items: what samples of the data itself would reach.
    """
    share, floor = (
        (predicted(subject, which)[0][:, 0] == subject.items(which).y).double().mean().item()
        for which in ("drawn", "real")
    )
    error = binomial(share, len(subject.drawn))
    conditions = subject.conditions("classifier") | {"floor": "the classifier on held-out items"}
    return [Row("class_accuracy", share, "share", "estimate", error, floor, "higher", conditions)]


def prompt_accuracy_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `prompt_accuracy` gives."""
    if not (
        fits(subject)
        and getattr(subject.model, "prompted", False)
        and hasattr(subject.dataset, "templates")
    ):
        return []
    return ["prompt_accuracy", *(["unseen_prompt_accuracy"] if subject.dataset.unseen else [])]


@torch.no_grad()
def prompt_accuracy(subject: Subject) -> list[Row]:
    """Return the share of n samples that the classifier gives the class that their prompt names, binomial error.

    prompt_accuracy: by the templates of training; unseen_prompt_accuracy: by those that no training item had. Every class is
    asked for equally often, and every template. The floor is the classifier's accuracy on held-out items.
    """
    data, s = subject.dataset, subject.settings
    extractor = subject.extractor("classifier")
    floor = (predicted(subject, "real")[0][:, 0] == subject.items("real").y).double().mean().item()
    found = []
    for name, templates in zip(
        prompt_accuracy_rows(subject), (data.templates, data.unseen), strict=False
    ):
        prompts = torch.stack([data.captions(template) for template in templates], 1).flatten(
            0, 1
        )  # class by class
        labels = torch.arange(data.spec.classes).repeat_interleave(len(templates))
        index = torch.arange(s.n) % len(prompts)
        torch.manual_seed(s.seed)
        right = []
        for part in index.split(s.batch_size):
            x = subject.model.sample(len(part), prompts[part].to(subject.device), **s.sampler)
            said = extractor(to_bytes(x.float().cpu(), subject.spec.range))[1].argmax(-1)
            right.append(said == labels[part])
        share = torch.cat(right).double().mean().item()
        conditions = dict(extractor.conditions) | {
            "n": s.n,
            "seed": s.seed,
            "templates": len(templates),
        }
        conditions |= {"floor": "the classifier on held-out items"}
        found.append(
            Row(name, share, "share", "estimate", binomial(share, s.n), floor, "higher", conditions)
        )
    return found


# --- what can be learned from samples --------------------------------------------------------------------------------


def train_on_generated_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `train_on_generated` gives."""
    can = (
        fits(subject)
        and subject.conditional
        and not stacked(subject)
        and subject.dataset.size("train")
    )
    return ["train_on_generated"] if can else []


def train_on_generated(subject: Subject) -> list[Row]:
    """Return the accuracy on held-out items of a classifier trained on n samples with the classes they were drawn for.

    The classification accuracy score of Ravuri & Vinyals 2019 (https://arxiv.org/abs/1905.10887), with this project's
    small classifier in place of their ResNet. The floor is the same trained on as many real training items. Error:
    binomial over the held-out items; the one training, from a fixed seed, is part of the number.
    """
    drawn, train, real = (subject.items(which) for which in ("drawn", "train", "real"))

    def learned(x: Tensor, y: Tensor) -> float:
        network = trained(x, y, subject.spec.classes, images=IMAGES, device=subject.device)
        return accuracy(network, real.x, real.y, device=subject.device)

    share = learned(drawn.x, drawn.y)
    n = min(len(drawn), len(train))
    x, y = train.x[:n], train.y[:n]
    key = digest("1", str(IMAGES), x, y, real.x, real.y)
    floor = cached("trained_on_real", key, lambda: {"accuracy": learned(x, y)})["accuracy"]
    conditions = subject.conditions(images=IMAGES) | {"floor": f"trained on {n} real items"}
    return [
        Row(
            "train_on_generated",
            share,
            "share",
            "estimate",
            binomial(share, len(real)),
            floor,
            "higher",
            conditions,
        )
    ]


def binomial(share: float, n: int) -> float:
    """Return the standard error of a share of n items."""
    return math.sqrt(share * (1 - share) / n)
