"""The cost of a model: its parameters, its training, and its sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext, format_sampler_options

# key of `context.training` -> row name, unit, tag, which direction is better
TRAINING_ROWS: dict[str, tuple[str, str, str, Literal["lower", "higher"]]] = {
    "seconds": ("training_seconds", "s", "exact", "lower"),
    "items_per_s": ("training_items_per_s", "items/s", "estimate", "higher"),
    "memory_mb": ("peak_memory", "MB", "exact", "lower"),
}


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives: none for samples without their model."""
    if context.model is None:
        return []
    names = ["parameters"]
    names += [name for key, (name, *_) in TRAINING_ROWS.items() if key in context.training]
    if "sample" in context.abilities and context.samples is None:
        names.append("sampling_seconds")
        if any(True for _ in context.model.parameters()):
            names.append("network_evaluations")
    return names


def measure(context: MetricContext) -> list[Row]:
    """Return the cost of the model, its training and its sampling.

    parameters: all that the optimizers may change. training_seconds, training_items_per_s (median
    over the log) and peak_memory (of the process, or on a GPU of its allocations): from the run's
    log. sampling_seconds: per 1,000 samples, from the time of drawing the samples in batches.
    network_evaluations: see `count_network_evaluations`. No row has a standard error.
    """
    names, settings = row_names(context), context.settings
    model = context.model
    num_parameters = sum(p.numel() for p in model.parameters())
    rows = [Row("parameters", num_parameters, "", better="neither")]
    where: dict[str, Any] = {
        key: context.training[key] for key in ("steps", "device") if key in context.training
    }
    for key, (name, unit, tag, better) in TRAINING_ROWS.items():
        if name in names:
            value = context.training[key]
            rows.append(Row(name, value, unit, tag, better=better, conditions=where))
    sampler = {"sampler": format_sampler_options(settings.sampler)} if settings.sampler else {}
    if "sampling_seconds" in names:
        n = len(context.generated)
        assert context.sampling_seconds is not None
        conditions = {
            "n": n,
            "batch_size": min(n, settings.batch_size),
            "device": describe_device(context.device),
            **sampler,
        }
        seconds = context.sampling_seconds / n * 1000
        rows.append(Row("sampling_seconds", seconds, "s/1,000", "estimate", conditions=conditions))
    if "network_evaluations" in names:
        count = count_network_evaluations(model, seed=settings.seed, **settings.sampler)
        rows.append(Row("network_evaluations", count, "per sample", conditions=sampler))
    return rows


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def count_network_evaluations(model: nn.Module, *, seed: int = 0, **sampler: Any) -> int:
    """Return how often drawing one sample runs the network: the uses of its most used weight.

    For each weight the torch functions are counted that take it and return a tensor, during one
    `model.sample(1)`. A weight is a parameter with at least two axes (a vector, such as a bias or a
    scale, may occur twice in one evaluation), or any parameter if others do not exist.

    So the count is 1 for a GAN's generator and for a flow's inverse in one pass, T for ancestral
    diffusion, D for autoregressive sampling of D values, and twice the Gibbs steps of an RBM, whose
    W is used in both directions. A weight that is shared by two layers counts in both. Both halves
    of a guided diffusion step run in one call and count once. A parametrized weight counts as often
    as it is computed.

    Args:
        sampler: options of `model.sample`.
    """
    torch.manual_seed(seed)
    # the copy leaves behind what torch.compile made, inside which nothing can be counted
    model = copy.deepcopy(model)
    counter = WeightUseCounter(model)
    with torch.no_grad(), counter:
        model.sample(1, **sampler)  # type: ignore[operator]  # a model with the ability to sample
    return counter.max_count


class WeightUseCounter(TorchFunctionMode):
    """While entered, counts the uses of each weight of a model, to which it adds hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parametrizations = [m for m in model.modules() if isinstance(m, ParametrizationList)]
        parametrized = {id(p) for m in parametrizations for p in m.parameters()}
        plain = [p for p in model.parameters() if id(p) not in parametrized]
        weights = [p for p in plain if p.ndim > 1]
        self.counts = {id(p): 0 for p in (weights if weights or parametrizations else plain)}
        for module in parametrizations:
            module.register_forward_hook(self.count_parametrization)

    def count_parametrization(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Count one computation of a parametrized weight; a forward hook."""
        self.counts[id(module)] = self.counts.get(id(module), 0) + 1

    @property
    def max_count(self) -> int:
        """The uses of the most used weight."""
        return max(self.counts.values(), default=0)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name.startswith("new_") or name.endswith("_like") or not flatten_tensors([result]):
            return result  # it only used a shape, a type or a device
        inputs: Iterable[Any] = (*args, *(kwargs or {}).values())
        if name == "to" or name.endswith("_as"):
            inputs = args[:1]
        for key in {id(t) for t in flatten_tensors(inputs)} & self.counts.keys():
            self.counts[key] += 1
        return result


def flatten_tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in nested tuples and lists."""
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += flatten_tensors(value)
    return tensors
