"""What a model costs: its parameters, what its training took, and what a sample takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from genlab.metrics import Row
from genlab.metrics.context import Subject

TRAINING = {  # key of `subject.training` -> name, unit, tag, better
    "seconds": ("training_seconds", "s", "exact", "lower"),
    "items_per_s": ("training_items_per_s", "items/s", "estimate", "higher"),
    "memory_mb": ("peak_memory", "MB", "exact", "lower"),
}


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives: none for samples without their model."""
    if subject.model is None:
        return []
    names = ["parameters"]
    names += [name for key, (name, *_) in TRAINING.items() if key in subject.training]
    if "sample" in subject.abilities and subject.samples is None:
        names.append("sampling_seconds")
        if any(True for _ in subject.model.parameters()):
            names.append("network_evaluations")
    return names


def measure(subject: Subject) -> list[Row]:
    """Return what the model, its training and its sampling cost; no row has a floor or a standard error.

    parameters: all that the optimizers may change. training_seconds, training_items_per_s (median over the log) and
    peak_memory (of the process, or on a GPU of its allocations): from the run's own log. sampling_seconds: of 1,000
    samples, by the time that the drawn ones took in batches. network_evaluations: see `network_evaluations`.
    """
    wanted, settings, found = rows(subject), subject.settings, []
    n = sum(p.numel() for p in subject.model.parameters())
    found.append(Row("parameters", n, "", better="neither"))
    where = {key: subject.training[key] for key in ("steps", "device") if key in subject.training}
    for key, (name, unit, tag, better) in TRAINING.items():
        if name in wanted:
            found.append(
                Row(name, subject.training[key], unit, tag, better=better, conditions=where)
            )
    said = (
        {"sampler": " ".join(f"{k}={v}" for k, v in settings.sampler.items())}
        if settings.sampler
        else {}
    )
    if "sampling_seconds" in wanted:
        drawn = len(subject.drawn)
        how = {
            "n": drawn,
            "batch_size": min(drawn, settings.batch_size),
            "device": device(subject),
            **said,
        }
        found.append(
            Row(
                "sampling_seconds",
                subject.draw_seconds / drawn * 1000,
                "s/1,000",
                "estimate",
                conditions=how,
            )
        )
    if "network_evaluations" in wanted:
        uses = network_evaluations(subject.model, seed=settings.seed, **settings.sampler)
        found.append(Row("network_evaluations", uses, "per sample", conditions=said))
    return found


def device(subject: Subject) -> str:
    """Return where the model draws, as it is said beside a time."""
    if subject.device.type == "cuda":
        return torch.cuda.get_device_name(subject.device)
    return f"{subject.device.type}, {torch.get_num_threads()} threads"


def network_evaluations(model: nn.Module, *, seed: int = 0, **sampler: Any) -> int:
    """Return how often drawing one sample makes the network run: the uses of the most used weight.

    Counted for each weight are the torch functions that take it and return a tensor, in one `model.sample(1)`. A weight
    is a parameter with two axes or more (a vector, as a bias or a scale, may enter one evaluation twice), or any where
    there are no others. So it is 1 for the generator of a GAN and for a flow's inverse in one pass, T for ancestral
    diffusion, D for an autoregressive draw of D values one by one, and twice the Gibbs steps of an RBM, whose W is used
    in both directions. A weight that a layer shares with another counts in both; both halves of a guided step of
    diffusion run in one call and count once. A parametrised weight counts as often as it is computed.

    Args:
        sampler: arguments of `model.sample`.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(
        model
    )  # which leaves behind what torch.compile made, inside which nothing can be counted
    counter = Uses(model)
    with torch.no_grad(), counter:
        model.sample(1, **sampler)
    return counter.most


class Uses(TorchFunctionMode):
    """While entered, counts the uses of each weight of a model, which it adds hooks to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        computed = [m for m in model.modules() if isinstance(m, ParametrizationList)]
        parts = {id(p) for m in computed for p in m.parameters()}
        own = [p for p in model.parameters() if id(p) not in parts]
        weights = [p for p in own if p.ndim > 1]
        self.counts = {id(p): 0 for p in (weights if weights or computed else own)}
        for module in computed:
            module.register_forward_hook(self.computed)

    def computed(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.counts[id(module)] = self.counts.get(id(module), 0) + 1

    @property
    def most(self) -> int:
        """The uses of the most used weight."""
        return max(self.counts.values(), default=0)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name.startswith("new_") or name.endswith("_like") or not tensors([result]):
            return result  # it looked at a shape, a type or a device
        taken = (
            args[:1] if name == "to" or name.endswith("_as") else (*args, *(kwargs or {}).values())
        )
        for key in {id(t) for t in tensors(taken)} & self.counts.keys():
            self.counts[key] += 1
        return result


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in nested tuples and lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(value)
    return found
