"""The context of metrics: a model or given samples, with a dataset.

Samples, held-out items and their features are computed once and shared by the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.console import track
from genlab.data.dataset import slice_batch
from genlab.metrics import features, forecast_samples
from genlab.metrics.base import Settings, mean_and_error
from genlab.metrics.cache import content_hash, load_cached_or_compute
from genlab.model import GenerativeModel
from genlab.seeding import derive_seed
from genlab.spec import Batch

# "generated", "real", "train", "half", "other_half", or "fresh0", "fresh1", …; see MetricContext
ItemSet = str
MAX_TRAIN_ITEMS = 60_000  # training items that samples are compared with
MAX_FLOOR_SETS = 4  # sets of real items in the place of samples
MAX_REPEATED_FLOOR_ITEMS = 1_000  # items of a set of which there are several
# Numbers of the random streams that the draws of the sets come from, apart from the samples' own.
NOISE_STREAMS = {"real": 101, "fresh": 102, "train": 103}


class Floor(NamedTuple):
    """The real items that take the place of samples: `num_sets` sets of `size` items."""

    source: Literal["split", "train", "halves"]
    size: int
    num_sets: int


class MetricContext:
    """A model, or samples that were drawn elsewhere, with the data that it is compared with.

    Sets of items: `generated` are n samples; `real` the first n items of the split shuffled by the
    seed; `train` the training items; `fresh0`, `fresh1`, … real items in the place of samples, or
    `half` and `other_half` of the held-out items (see `floor`).

    Samples are compared with items that are prepared as for training: mirrored, cropped and
    binarized where training does so, without dequantization noise, which the samples lose too.
    Means of binary pixels are compared with gray levels, the probabilities that the binary items
    are drawn by. Of a distribution whose split lists all items, items are drawn with replacement.

    Args:
        model: in evaluation mode; None if only samples are given.
        samples: x (N, *shape) in the data's range, with labels if each was drawn for a class.
        training: numbers from the run's log: seconds, items_per_s, memory_mb, steps.
        translated: whether the samples are translations of held-out sources, whose targets are
            neither mirrored nor cropped.
    """

    def __init__(
        self,
        dataset: Any,
        settings: Settings,
        *,
        model: Any = None,
        samples: Batch | None = None,
        training: dict[str, Any] | None = None,
        translated: bool = False,
    ) -> None:
        self.dataset, self.settings, self.samples = dataset, settings, samples
        self.model: Any = model
        self.training, self.translated = training or {}, translated
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

    @cached_property
    def samples_are_means(self) -> bool:
        """Whether the samples are means of p(x|z), without its noise.

        Of given samples it is known only where the data has binary pixels: means are not binary.
        """
        if self.model is not None:
            return isinstance(self.model, GenerativeModel) and self.model.samples_are_means
        is_drawn = self.dataset.with_gray_levels() is not self.dataset
        if self.samples is None or self.translated or not is_drawn:
            return False
        x = self.spec.to_bytes(self.samples.x)
        return bool(((x > 0) & (x < 255)).any())

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

    @cached_property
    def forecasts(self) -> forecast_samples.ForecastSamples:
        """Draws of the futures of n held-out windows of a series, beside those of baselines."""
        return forecast_samples.draw_forecasts(self.model, self.dataset, self.settings, self.device)

    @property
    def covers_distribution(self) -> bool:
        """Whether the held-out items are the whole distribution: a mean over them is exact."""
        return self.dataset.lists_distribution and self.settings.n >= self._split_size

    def mean_and_error(self, values: Tensor) -> tuple[float, float | None]:
        """Return the mean of values (N,) of held-out items and its standard error.

        The error is 0 where the items are the whole distribution.
        """
        mean, error = mean_and_error(values)
        return mean, 0.0 if self.covers_distribution else error

    @cached_property
    def floor(self) -> Floor:
        """Where the real items come from that take the place of samples.

        A set of them has as many items as the samples, because most distances depend on the
        numbers: other held-out items if they make as many sets, else training items. The mean over
        several sets is less noisy. Two halves of the held-out items are used if there are too few
        training items.
        """
        n = len(self.generated)
        num_held = MAX_FLOOR_SETS * n + n if self.dataset.lists_distribution else self._split_size
        num_train = self.dataset.size("train") if self.settings.split != "train" else 0
        most = MAX_FLOOR_SETS if n <= MAX_REPEATED_FLOOR_ITEMS else 1
        num_sets = min(most, num_held // n - 1)
        if num_sets >= min(most, max(1, num_train // n)):
            return Floor("split", n, num_sets)
        if num_train > num_held // 2:
            return Floor("train", min(n, num_train), max(1, min(most, num_train // n)))
        return Floor("halves", num_held // 2, 1)

    def floor_sets(self) -> tuple[list[ItemSet], ItemSet]:
        """Return the names of the sets of `floor`, and of the items that they are compared with."""
        if self.floor.source == "halves":
            return ["other_half"], "half"
        return [f"fresh{k}" for k in range(self.floor.num_sets)], "real"

    def floor_distance(
        self, space: str, least: int, distance: Callable[[Tensor, Tensor], Sequence[float]]
    ) -> list[float] | None:
        """Return distances of real items to real items in a feature space: `Row.real_vs_real`.

        It is the value that a perfect sampler would reach. In Inception's space, whose features
        take long, it is that of one set.

        Args:
            least: the fewest items of a set for which they are defined; None is returned if there
                are fewer.
            distance: of items in the place of samples (N, D), and of real items (M, D).
        """
        names, real_name = self.floor_sets()
        if min(self.floor.size, self._num_real) < least:
            return None
        real = self.features(space, real_name)
        sets = names[:1] if space == "inception" else names
        values = [distance(self.features(space, name), real) for name in sets]
        return [sum(parts) / len(parts) for parts in zip(*values, strict=True)]

    @property
    def num_heldout(self) -> int:
        """The number of held-out items that are used: n, or all of a smaller split."""
        return min(self.settings.n, self._split_size)

    @property
    def _split_size(self) -> int:
        return self.dataset.size(self.settings.split)

    @property
    def _num_real(self) -> int:
        """The number of items that samples are compared with."""
        n = len(self.generated)
        return n if self.dataset.lists_distribution else min(n, self._split_size)

    @cached_property
    def _heldout(self) -> Batch:
        n, floor = len(self.generated), self.floor
        more = {"split": n * floor.num_sets, "halves": 2 * floor.size - n}.get(floor.source, 0)
        return self._items_like_samples(self.settings.split, n + max(0, more), "real")

    @cached_property
    def _fresh_train_items(self) -> Batch:
        return self._items_like_samples("train", self.floor.size * self.floor.num_sets, "fresh")

    def _items_like_samples(self, split: str, n: int, which: ItemSet) -> Batch:
        """Return n items of a split, prepared as samples are compared with them."""
        if self.spec.kind != "image":
            return self.dataset.head(split, n, seed=self.settings.seed)
        source = self.dataset.with_gray_levels() if self.samples_are_means else self.dataset
        # sets that shared their draws would be too near to each other
        seed = derive_seed(self.settings.seed, NOISE_STREAMS[which])
        # a set without repetitions is not a sample of a distribution that is listed
        if self.dataset.lists_distribution and which != "train":
            generator = torch.Generator().manual_seed(seed)
            index = torch.randint(self.dataset.size(split), (n,), generator=generator)
        else:
            index = self.dataset.head_indices(split, n, seed=self.settings.seed)
        batch: Batch = source.items_like_samples(
            split, index, seed=seed, augment=not self.translated
        )
        if which == "train" and self.dataset.is_flipped_in_training and not self.translated:
            # both directions of each item, either of which a model may have copied
            y = None if batch.y is None else batch.y.repeat(2)
            return Batch(torch.cat([batch.x, batch.x.flip(-1)]), y)
        return batch

    def _range_of(self, which: ItemSet) -> tuple[int, int] | None:
        """Return the first and last index + 1 of a set within the held-out items, or None."""
        n, m = len(self.generated), self.floor.size
        if which.startswith("fresh"):
            if self.floor.source != "split":
                return None
            k = int(which.removeprefix("fresh"))
            return (k + 1) * n, (k + 2) * n
        return {"real": (0, n), "half": (0, m), "other_half": (m, 2 * m)}.get(which)

    def items(self, which: ItemSet) -> Batch:
        """Return items as metrics use them, without dequantization noise.

        Images are bytes uint8 (N, C, H, W), other items float32 (N, D).
        """
        if which == "generated":
            x = self.generated.x
            if self.spec.kind == "image":
                x = self.spec.to_bytes(x)
            return Batch(x, self.generated.y)
        if which == "train":
            return self._items_like_samples("train", MAX_TRAIN_ITEMS, "train")
        if (part := self._range_of(which)) is not None:
            return slice_batch(self._heldout, *part)
        k, size = int(which.removeprefix("fresh")), self.floor.size
        return slice_batch(self._fresh_train_items, k * size, (k + 1) * size)

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
        part = self._range_of(which)
        if part is not None and (space != "inception" or not which.startswith("fresh")):
            # parts of the same held-out items; Inception's features of unused ones would take long
            if (space, "heldout") not in self._features:
                end = None if space != "inception" else max(self._num_real, 2 * self.floor.size)
                x = self._heldout.x[:end]
                self._features[space, "heldout"] = self._extract(space, x, cache=True)
            x, logits = self._features[space, "heldout"]
            return x[slice(*part)], None if logits is None else logits[slice(*part)]
        if (space, which) not in self._features:
            x = self.items(which).x
            self._features[space, which] = self._extract(space, x, cache=which != "generated")
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
        real = self._num_real
        conditions: dict[str, Any] = dict(self.extractor(space).conditions) if space else {}
        conditions |= {
            "n": n if n == real else f"{n} against {real}",
            "split": s.split,
            "seed": s.seed,
        }
        if s.sampler:
            conditions["sampler"] = format_sampler_options(s.sampler)
        if self.samples_are_means:
            conditions["samples"] = "means of p(x|z)"
        if words := self._words_for_heldout():
            conditions["held-out"] = words
        if words := self._words_for_floor(space):
            conditions["real_vs_real"] = words
        return conditions | more

    def _words_for_floor(self, space: str | None) -> str:
        """Return the numbers of items of `floor_distance`; "" if they are those of the samples."""
        floor = self.floor
        if floor.source == "halves":
            return f"{floor.size} against {floor.size}" if floor.size >= 2 else ""
        of = "training items" if floor.source == "train" else "held-out items"
        sets = f"{floor.num_sets} sets of " * (floor.num_sets > 1 and space != "inception")
        if not sets and floor.source == "split":
            return ""
        return f"{sets}{floor.size} {of} against {self._num_real}"

    def _words_for_heldout(self) -> str:
        """Return how the items that samples are compared with were drawn; "" if as they are."""
        if self.translated:
            return ""
        source = self.dataset.with_gray_levels() if self.samples_are_means else self.dataset
        words = list(source.words_for_draws())
        if source is not self.dataset:
            words.insert(0, "gray levels")
        if self.dataset.lists_distribution:
            words.append("drawn with replacement")
        return ", ".join(words)


def format_sampler_options(sampler: dict[str, Any]) -> str:
    """Return the options of a sampler as one word of a number's conditions."""
    return " ".join(f"{k}={v}" for k, v in sampler.items())
