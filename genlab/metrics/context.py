"""The context of metrics: a model or given samples, with a dataset.

Samples, held-out items and their features are computed once and shared by the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.console import track
from genlab.data.dataset import slice_batch
from genlab.metrics import features
from genlab.metrics.base import Settings
from genlab.metrics.cache import content_hash, load_cached_or_compute
from genlab.model import GenerativeModel
from genlab.spec import Batch

ItemSet = Literal["generated", "real", "half", "other_half", "train"]
Distances = TypeVar("Distances")
MAX_TRAIN_ITEMS = 60_000  # training items that samples are compared with


class MetricContext:
    """A model, or samples that were drawn elsewhere, with the data that it is compared with.

    Sets of items: `generated` are n samples; `real` the first n items of the split shuffled by the
    seed; `half` and `other_half` two disjoint sets of held-out items, of n each if the split has
    that many: a distance between these two is the value that a perfect sampler would reach
    (`Row.real_vs_real`); `train` the training items.

    Args:
        model: in evaluation mode; None if only samples are given.
        samples: x (N, *shape) in the data's range, with labels if each was drawn for a class.
        training: numbers from the run's log: seconds, items_per_s, memory_mb, steps.
    """

    def __init__(
        self,
        dataset: Any,
        settings: Settings,
        *,
        model: Any = None,
        samples: Batch | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        self.dataset, self.settings, self.samples = dataset, settings, samples
        self.model: Any = model
        self.training = training or {}
        self.spec = dataset.spec
        self.name = type(model).__name__ if model is not None else "samples"
        self.sampling_seconds: float | None = None  # of drawing `generated`, once it is drawn
        self._features: dict[tuple[str, ItemSet], tuple[Tensor, Tensor | None]] = {}
        self._extractors: dict[str, features.Extractor] = {}

    # --- facts ------------------------------------------------------------------------------------

    @property
    def abilities(self) -> set[str]:
        """The model's abilities; given samples count as the ability to sample."""
        return abilities(self.model) if self.model is not None else {"sample"}

    @property
    def conditional(self) -> bool:
        """Whether each sample is drawn for a class."""
        if self.samples is not None:
            return self.samples.y is not None
        return isinstance(self.model, GenerativeModel) and self.model.conditional

    @property
    def feature_spaces(self) -> list[str]:
        """The names of the feature spaces to measure in."""
        if self.settings.features is None:
            return [features.default_feature_space(self.dataset)]
        return [
            features.validate_feature_space(name, self.dataset) for name in self.settings.features
        ]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        parameter = next(self.model.parameters(), None) if self.model is not None else None
        return torch.device("cpu") if parameter is None else parameter.device

    # --- items ------------------------------------------------------------------------------------

    @cached_property
    def generated(self) -> Batch:
        """n samples in the data's range, on the CPU.

        A conditional model samples classes as frequent as in training.
        """
        start = time.monotonic()
        samples = self.draw_samples(self.settings.n)
        self.sampling_seconds = time.monotonic() - start
        return samples

    def preview_samples(self, n: int) -> Batch:
        """Return the first n samples; if no metric has drawn any, only n are drawn."""
        if "generated" not in self.__dict__:
            return self.draw_samples(min(n, self.settings.n))
        return slice_batch(self.generated, 0, n)

    @torch.no_grad()
    def draw_samples(self, n: int) -> Batch:
        """Return n samples, the same ones each time, or the first n of the given ones."""
        s = self.settings
        if self.samples is not None:
            return slice_batch(self.samples, 0, n)
        torch.manual_seed(s.seed)
        labels = None
        if self.conditional:
            train_labels = self.dataset.head("train", MAX_TRAIN_ITEMS, seed=s.seed).y
            labels = train_labels[torch.randint(len(train_labels), (n,))]
        parts = []
        for i in track(range(0, n, s.batch_size), "drawing samples", unit="batches"):
            y = None if labels is None else labels[i : i + s.batch_size].to(self.device)
            parts.append(self.model.sample(min(s.batch_size, n - i), y, **s.sampler).float().cpu())
        return Batch(torch.cat(parts), labels)

    @property
    def heldout_half_size(self) -> int:
        """The number of items in each of the two disjoint held-out sets."""
        return min(len(self.generated), self.dataset.size(self.settings.split) // 2)

    def distance_between_heldout_halves(
        self, space: str, least: int, distance: Callable[[Tensor, Tensor], Distances]
    ) -> Distances | None:
        """Return distances of the two held-out sets in a feature space: `Row.real_vs_real`.

        Args:
            least: the fewest items of a set for which they are defined; None is returned if there
                are fewer.
        """
        if self.heldout_half_size < least:
            return None
        return distance(self.features(space, "half"), self.features(space, "other_half"))

    @property
    def num_heldout(self) -> int:
        """The number of held-out items that are used: n, or all of a smaller split."""
        return min(self.settings.n, self.dataset.size(self.settings.split))

    @cached_property
    def _heldout(self) -> Batch:
        n = max(len(self.generated), 2 * self.heldout_half_size)
        return self._dataset_head(self.settings.split, n)

    def _dataset_head(self, split: str, n: int) -> Batch:
        head = self.dataset.head_as_uint8_images if self.spec.kind == "image" else self.dataset.head
        return head(split, n, seed=self.settings.seed)

    def _range_of(self, which: ItemSet) -> tuple[int, int]:
        """Return the first and last index + 1 of a set within the held-out items."""
        n, m = len(self.generated), self.heldout_half_size
        return {"real": (0, n), "half": (0, m), "other_half": (m, 2 * m)}[which]

    def items(self, which: ItemSet) -> Batch:
        """Return items as metrics use them, without preprocessing noise.

        Images are bytes uint8 (N, C, H, W), other items float32 (N, D).
        """
        if which == "generated":
            x = self.generated.x
            if self.spec.kind == "image":
                x = images_to_uint8(x, self.spec.range)
            return Batch(x, self.generated.y)
        if which == "train":
            return self._dataset_head("train", MAX_TRAIN_ITEMS)
        return slice_batch(self._heldout, *self._range_of(which))

    # --- features ---------------------------------------------------------------------------------

    def extractor(self, space: str) -> features.Extractor:
        """Return the extractor of a feature space."""
        if space not in self._extractors:
            self._extractors[space] = features.EXTRACTORS[space](self.dataset, self.device)
        return self._extractors[space]

    def features(self, space: str, which: ItemSet) -> Tensor:
        """Return the features (N, D) float64 of items; those of real items are cached on disk."""
        return self._features_and_logits(space, which)[0].double()

    def logits(self, space: str, which: ItemSet) -> Tensor:
        """Return the class logits (N, K) of items; the space must be a classifier's."""
        logits = self._features_and_logits(space, which)[1]
        assert logits is not None, f"{space} does not have class logits"
        return logits

    def _features_and_logits(self, space: str, which: ItemSet) -> tuple[Tensor, Tensor | None]:
        if which in ("half", "other_half", "real"):  # parts of the same held-out items
            if (space, "real") not in self._features:
                self._features[space, "real"] = self._extract(space, self._heldout.x, cache=True)
            x, logits = self._features[space, "real"]
            start, end = self._range_of(which)
            return x[start:end], None if logits is None else logits[start:end]
        if (space, which) not in self._features:
            x = self.items(which).x
            self._features[space, which] = self._extract(space, x, cache=which == "train")
        return self._features[space, which]

    def _extract(self, space: str, x: Tensor, *, cache: bool) -> tuple[Tensor, Tensor | None]:
        extractor = self.extractor(space)

        def compute() -> dict[str, Tensor]:
            parts = [extractor(part) for part in x.split(self.settings.batch_size)]
            result = {"features": torch.cat([f for f, _ in parts])}
            logits = [z for _, z in parts if z is not None]
            return result | ({"logits": torch.cat(logits)} if logits else {})

        if cache and extractor.name not in ("pixels", "coordinates"):  # those are free to compute
            result = load_cached_or_compute("features", content_hash(extractor.key, x), compute)
        else:
            result = compute()
        return result["features"], result.get("logits")

    # --- conditions -------------------------------------------------------------------------------

    def make_conditions(self, space: str | None = None, **more: Any) -> dict[str, Any]:
        """Return the conditions of a number that compares samples with held-out items."""
        s, n = self.settings, len(self.generated)
        real = min(n, self.dataset.size(s.split))
        conditions: dict[str, Any] = dict(self.extractor(space).conditions) if space else {}
        conditions |= {
            "n": n if n == real else f"{n} against {real}",
            "split": s.split,
            "seed": s.seed,
        }
        if s.sampler:
            conditions["sampler"] = format_sampler_options(s.sampler)
        if 2 <= self.heldout_half_size < n:
            conditions["real_vs_real"] = (
                f"{self.heldout_half_size} against {self.heldout_half_size}"
            )
        return conditions | more


def format_sampler_options(sampler: dict[str, Any]) -> str:
    """Return the options of a sampler as one word of a number's conditions."""
    return " ".join(f"{k}={v}" for k, v in sampler.items())


def images_to_uint8(x: Tensor, range_: tuple[float, float]) -> Tensor:
    """Return images (N, C, H, W) in a range as bytes, as a PNG would store them."""
    low, high = range_
    return ((x - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
