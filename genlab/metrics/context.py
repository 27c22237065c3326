"""What is measured: a model's samples, or anybody's, against a dataset; what the measures share is computed once."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from genlab.abilities import abilities
from genlab.metrics import features
from genlab.metrics.cache import cached, digest
from genlab.spec import Batch

if TYPE_CHECKING:
    from genlab.metrics import Settings

Which = Literal["drawn", "real", "half", "other_half", "train"]
TRAIN = 60_000  # training items that samples are held against, at most


class Subject:
    """A model, or samples that it drew elsewhere, with the data that it is held against.

    `drawn` are n samples; `real` n items of the split shuffled by the seed; `half` and `other_half` two disjoint sets of
    held-out items, n each where the split has so many: what a distance between them gives is the floor of that distance.

    Args:
        model: in evaluation mode; None where only samples are given.
        samples: x (N, *shape) in the data's range, and labels where each was drawn for a class.
        training: what the run's own log says: seconds, items_per_s, memory_mb, steps.
        folder: where a measure may leave a picture; None: nowhere.
    """

    def __init__(
        self,
        dataset: Any,
        settings: Settings,
        *,
        model: nn.Module | None = None,
        samples: Batch | None = None,
        training: dict[str, float] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.dataset, self.settings, self.model, self.samples = dataset, settings, model, samples
        self.training, self.folder = training or {}, folder
        self.spec = dataset.spec
        self.name = type(model).__name__ if model is not None else "samples"
        self.draw_seconds: float | None = None  # of drawing `drawn`, once it is drawn
        self._features: dict[tuple[str, Which], tuple[Tensor, Tensor | None]] = {}
        self._extractors: dict[str, features.Extractor] = {}

    # --- what it can be asked ---------------------------------------------------------------------------------------

    @property
    def abilities(self) -> set[str]:
        """The model's verbs; samples alone can only be looked at."""
        return abilities(self.model) if self.model is not None else {"sample"}

    @property
    def conditional(self) -> bool:
        """Whether each sample was drawn for a class."""
        return (
            self.samples.y is not None
            if self.samples is not None
            else getattr(self.model, "conditional", False)
        )

    @property
    def spaces(self) -> list[str]:
        """The names of the feature spaces to measure in."""
        if self.settings.features is None:
            return [features.default(self.dataset)]
        return [features.check(name, self.dataset) for name in self.settings.features]

    @property
    def device(self) -> torch.device:
        parameter = next(self.model.parameters(), None) if self.model is not None else None
        return torch.device("cpu") if parameter is None else parameter.device

    # --- items --------------------------------------------------------------------------------------------------------

    @cached_property
    def drawn(self) -> Batch:
        """n samples in the data's range, on the CPU; of a conditional model, of classes as frequent as in training."""
        began = time.monotonic()
        drawn = self.draw(self.settings.n)
        self.draw_seconds = time.monotonic() - began
        return drawn

    def shown(self, n: int) -> Batch:
        """Return the first n samples to be looked at, or, where no measure drew any, no more than n of them."""
        if "drawn" not in self.__dict__:
            return self.draw(min(n, self.settings.n))
        return Batch(self.drawn.x[:n], None if self.drawn.y is None else self.drawn.y[:n])

    @torch.no_grad()
    def draw(self, n: int) -> Batch:
        """Return n samples, the same ones each time, or the first n of those given."""
        s = self.settings
        if self.samples is not None:
            y = self.samples.y
            return Batch(self.samples.x[:n], None if y is None else y[:n])
        torch.manual_seed(s.seed)
        labels = None
        if self.conditional:
            seen = self.dataset.take("train", TRAIN, seed=s.seed).y
            labels = seen[torch.randint(len(seen), (n,))]
        parts = []
        for i in range(0, n, s.batch_size):
            y = None if labels is None else labels[i : i + s.batch_size].to(self.device)
            parts.append(self.model.sample(min(s.batch_size, n - i), y, **s.sampler).float().cpu())
        return Batch(torch.cat(parts), labels)

    def held(self, n: int) -> Batch:
        """Return the first n held-out items as the measures see them: images as bytes, without the noise of training."""
        s = self.settings
        if self.spec.kind == "image":
            return self.dataset.shown(s.split, n, seed=s.seed)
        return self.dataset.take(s.split, n, seed=s.seed)

    @property
    def floor_size(self) -> int:
        """The items in each of the two disjoint sets whose distance is the floor."""
        return min(len(self.drawn), self.dataset.size(self.settings.split) // 2)

    @cached_property
    def _held(self) -> Batch:
        return self.held(max(len(self.drawn), 2 * self.floor_size))

    def items(self, which: Which) -> Batch:
        """Return items as the measures see them: images as bytes uint8 (N, C, H, W), others as they are, float32 (N, D)."""
        n, m = len(self.drawn), self.floor_size
        if which == "drawn":
            x = self.drawn.x
            return Batch(
                to_bytes(x, self.spec.range) if self.spec.kind == "image" else x, self.drawn.y
            )
        if which == "train":
            if self.spec.kind == "image":
                return self.dataset.shown("train", TRAIN, seed=self.settings.seed)
            return self.dataset.take("train", TRAIN, seed=self.settings.seed)
        where = {"real": slice(0, n), "half": slice(0, m), "other_half": slice(m, 2 * m)}[which]
        return Batch(self._held.x[where], None if self._held.y is None else self._held.y[where])

    # --- features -----------------------------------------------------------------------------------------------------

    def extractor(self, space: str) -> features.Extractor:
        """Return the extractor of a feature space."""
        if space not in self._extractors:
            self._extractors[space] = features.spaces()[space](self.dataset, self.device)
        return self._extractors[space]

    def features(self, space: str, which: Which) -> Tensor:
        """Return the features (N, D) float64 of items; of real items they are kept on disk."""
        return self._extracted(space, which)[0].double()

    def logits(self, space: str, which: Which) -> Tensor:
        """Return the class logits (N, K) of items; the space must tell classes."""
        logits = self._extracted(space, which)[1]
        assert logits is not None, f"{space} tells no classes"
        return logits

    def _extracted(self, space: str, which: Which) -> tuple[Tensor, Tensor | None]:
        if which in ("half", "other_half", "real"):  # parts of one whole
            n, m = len(self.drawn), self.floor_size
            both = self._whole(space)
            where = {"real": slice(0, n), "half": slice(0, m), "other_half": slice(m, 2 * m)}[which]
            return both[0][where], None if both[1] is None else both[1][where]
        if (space, which) not in self._features:
            self._features[space, which] = self._extract(
                space, self.items(which).x, keep=which == "train"
            )
        return self._features[space, which]

    def _whole(self, space: str) -> tuple[Tensor, Tensor | None]:
        if (space, "real") not in self._features:
            self._features[space, "real"] = self._extract(space, self._held.x, keep=True)
        return self._features[space, "real"]

    def _extract(self, space: str, x: Tensor, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        extractor = self.extractor(space)

        def make() -> dict[str, Tensor]:
            parts = [extractor(part) for part in x.split(self.settings.batch_size)]
            whole = {"features": torch.cat([f for f, _ in parts])}
            return whole | (
                {} if parts[0][1] is None else {"logits": torch.cat([z for _, z in parts])}
            )

        keep = keep and extractor.name not in (
            "pixels",
            "coordinates",
        )  # which cost nothing to have anew
        found = cached("features", digest(extractor.key, x), make) if keep else make()
        return found["features"], found.get("logits")

    # --- what is said with a number -------------------------------------------------------------------------------------

    def conditions(self, space: str | None = None, **more: Any) -> dict[str, Any]:
        """Return the conditions of a number that compares samples with held-out items."""
        s, n = self.settings, len(self.drawn)
        real = min(n, self.dataset.size(s.split))
        said: dict[str, Any] = dict(self.extractor(space).conditions) if space else {}
        said |= {"n": n if n == real else f"{n} against {real}", "split": s.split, "seed": s.seed}
        if s.sampler:
            said["sampler"] = " ".join(f"{k}={v}" for k, v in s.sampler.items())
        if self.floor_size < n:
            said["floor"] = f"{self.floor_size} against {self.floor_size}"
        return said | more


def to_bytes(x: Tensor, range_: tuple[float, float]) -> Tensor:
    """Return images (N, C, H, W) in a range as bytes, as a PNG would hold them."""
    low, high = range_
    return ((x - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
