"""Checks of a loaded checkpoint: every tensor and number against what it replaces.

PyTorch's optimizers trust their state: a fused kernel that receives a moment of one number for a
matrix writes beyond its end. So shapes, types, layouts and values are checked before any of them is
used. The errors name the entry.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.untrusted.text import replace_unprintable

MAX_COUNT = 2**62  # of steps and batches
MAX_NAMES_SHOWN = 3
MAX_DEPTH = 20  # of nested containers
# Options of an optimizer that choose its implementation on this device. They are not read from a
# checkpoint, which may come from another device.
IMPLEMENTATION_OPTIONS = ("fused", "foreach", "capturable", "differentiable")
PROBE_SIDES = (2, 3, 5, 7, 11, 13, 17)  # of a small parameter; they tell its dimensions apart


class InvalidStateError(UserError):
    """A loaded state that does not fit what it replaces."""


# --- tensors --------------------------------------------------------------------------------------


def check_weights(weights: Any, expected: Mapping[str, Any], what: str) -> None:
    """Check loaded weights against the state_dict that they replace.

    Args:
        what: the entry of the checkpoint, such as "model", for messages.

    Raises:
        InvalidStateError: names are unknown or missing, or a tensor does not fit.
    """
    if not isinstance(weights, dict):
        raise InvalidStateError(f"its {what} is not a mapping of names to tensors")
    check_names(weights, expected, what)
    for name, tensor in expected.items():
        entry = f"{what} '{name}'"
        if isinstance(tensor, Tensor):
            check_tensor(weights[name], tensor, entry)
        else:
            check_same_kind(weights[name], tensor, entry)


def check_names(given: Mapping[Any, Any], expected: Iterable[Any], what: str) -> None:
    """Check that a mapping has the expected keys and no others.

    Raises:
        InvalidStateError: names those that are unknown or missing.
    """
    wanted = list(expected)
    if unknown := [name for name in given if name not in wanted]:
        raise InvalidStateError(f"its {what} has {format_names(unknown)}, which is unknown here")
    if missing := [name for name in wanted if name not in given]:
        raise InvalidStateError(f"its {what} lacks {format_names(missing)}")


def format_names(names: list[Any]) -> str:
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(replace_unprintable(repr(name))[:80] for name in names[:MAX_NAMES_SHOWN])
    more = len(names) - MAX_NAMES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def check_tensor(tensor: Any, expected: Tensor, what: str) -> None:
    """Check a loaded tensor against the one that it replaces.

    Numbers of another precision are allowed, since they are converted: a run may continue with
    another device.precision. Values that are not finite are allowed where the replaced tensor has
    such values.

    Raises:
        InvalidStateError: it is not a dense finite tensor of that shape and kind.
    """
    check_dense(tensor, what)
    if tuple(tensor.shape) != tuple(expected.shape):
        raise InvalidStateError(
            f"its {what} has the shape {tuple(tensor.shape)}, and the config needs "
            f"{tuple(expected.shape)}"
        )
    if not is_convertible(tensor.dtype, expected.dtype):
        raise InvalidStateError(f"its {what} has {tensor.dtype}, not {expected.dtype}")
    if not is_finite(tensor) and is_finite(getattr(expected, "to_local", lambda: expected)()):
        raise InvalidStateError(f"its {what} has values that are not finite")


def check_dense(tensor: Any, what: str) -> None:
    """Check that something is a plain tensor with one number in memory for each element.

    Raises:
        InvalidStateError: it is not.
    """
    if type(tensor) not in (Tensor, nn.Parameter):
        raise InvalidStateError(f"its {what} is {type(tensor).__name__}, not a tensor")
    is_plain = tensor.layout is torch.strided and not (
        tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
    )
    if not is_plain or tensor.is_nested:
        raise InvalidStateError(f"its {what} is not a dense tensor")
    if overlaps(tensor):
        raise InvalidStateError(f"its {what} is one number expanded to many, not a full tensor")


def overlaps(tensor: Tensor) -> bool:
    """Whether several elements of a strided tensor may share their memory."""
    dims = sorted(
        (stride, side)
        for stride, side in zip(tensor.stride(), tensor.shape, strict=True)
        if side > 1
    )
    extent = 0  # of the dimensions with smaller strides
    for stride, side in dims:
        if stride <= extent:
            return True
        extent += stride * (side - 1)
    return False


def is_convertible(dtype: torch.dtype, expected: torch.dtype) -> bool:
    """Whether numbers of a type may replace those of another: the same kind, of any precision."""
    kinds = [(d.is_floating_point, d.is_complex) for d in (dtype, expected)]
    return dtype == expected or (kinds[0] == kinds[1] and kinds[0] != (False, False))


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(tensor.isfinite().all())


def check_probabilities(tensor: Any, what: str) -> None:
    """Check loaded weights (N,) by which items are drawn.

    Raises:
        InvalidStateError: they are not finite numbers from 0 on with a positive sum.
    """
    check_dense(tensor, what)
    is_valid = tensor.ndim == 1 and tensor.is_floating_point() and len(tensor) > 0
    if not is_valid or not is_finite(tensor) or tensor.min() < 0 or not 0 < tensor.sum() < math.inf:
        raise InvalidStateError(f"its {what} are not probabilities of items")


def check_plain_values(value: Any, depth: int = 0, what: str = "") -> None:
    """Check that a checkpoint has only plain containers, numbers, texts and dense tensors.

    Raises:
        InvalidStateError: names the entry that is of another type.
    """
    if depth > MAX_DEPTH:
        raise InvalidStateError(f"its {what[:80]} is nested too deeply")
    if isinstance(value, Tensor):
        check_dense(value, what)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise InvalidStateError(f"its {what} has the key {format_value(key)}")
            name = replace_unprintable(str(key))
            check_plain_values(inner, depth + 1, f"{what} '{name}'" if what else name)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_plain_values(inner, depth + 1, f"{what}[{i}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise InvalidStateError(f"its {what} is {format_value(value)}")


# --- optimizers -----------------------------------------------------------------------------------


def checked_optimizer_state(
    state: Any, optimizer: torch.optim.Optimizer, what: str
) -> dict[str, Any]:
    """Return the loaded state of an optimizer, as `optimizer.load_state_dict` may take it.

    Options that choose the implementation are those of `optimizer`, and options that an older
    PyTorch did not write are added.

    Args:
        what: the entry of the checkpoint, such as "optimizer 'model'", for messages.

    Raises:
        InvalidStateError: an entry does not fit the optimizer and its parameters.
    """
    if not isinstance(state, dict):
        raise InvalidStateError(f"its {what} is not a mapping")
    check_names(state, ("state", "param_groups"), what)
    expected = optimizer.state_dict()["param_groups"]
    groups = checked_param_groups(state["param_groups"], expected, optimizer, what)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in expected for number in group["params"]]
    options = {n: group for group in groups for n in group["params"]}
    if not isinstance(state["state"], dict):
        raise InvalidStateError(f"its {what} has a state that is not a mapping")
    if unknown := [
        number for number in state["state"] if not is_count(number) or number not in options
    ]:
        raise InvalidStateError(f"its {what} has a state of {format_names(unknown)}, no parameter")
    probes: dict[Any, dict[str, Any] | None] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        entry = state["state"].get(number, {})
        if entry == {}:  # a parameter that has had no gradient yet
            continue
        group = options[number]
        key = id(group), parameter.ndim
        if key not in probes:
            probes[key] = probe_optimizer_state(optimizer, group, parameter.ndim)
        check_parameter_state(entry, probes[key], parameter, f"{what}, parameter {number}")
    return {"state": state["state"], "param_groups": groups}


def checked_param_groups(
    groups: Any, expected: list[dict[str, Any]], optimizer: torch.optim.Optimizer, what: str
) -> list[dict[str, Any]]:
    """Return the loaded options of an optimizer's groups of parameters.

    Raises:
        InvalidStateError: a group is not as the optimizer's own.
    """
    if not isinstance(groups, list) or len(groups) != len(expected):
        raise InvalidStateError(f"its {what} does not have {len(expected)} groups of parameters")
    checked = []
    for i, (group, own) in enumerate(zip(groups, expected, strict=True)):
        entry = f"{what}, group {i}"
        if not isinstance(group, dict):
            raise InvalidStateError(f"its {entry} is not a mapping")
        check_names({**own, **group}, own, entry)
        group = {**own, **group, **{k: own[k] for k in IMPLEMENTATION_OPTIONS if k in own}}
        params = group["params"]
        is_plain = isinstance(params, list) and all(type(number) is int for number in params)
        if not is_plain or params != own["params"]:
            raise InvalidStateError(f"its {entry} has other parameters than the model")
        for key, value in own.items():
            if key not in ("params", *IMPLEMENTATION_OPTIONS):
                check_same_kind(group[key], value, f"{entry}, {key}")
        check_option_ranges(group, entry)
        make_probe(optimizer, group, (1, 1), entry)  # its constructor checks the options
        checked.append(group)
    return checked


def check_option_ranges(group: dict[str, Any], what: str) -> None:
    """Check the learning rates of a group, which schedules multiply.

    Raises:
        InvalidStateError: one is negative.
    """
    for key in ("lr", "base_lr"):
        if key in group and not 0 <= float(group[key]) < math.inf:
            raise InvalidStateError(f"its {what} has {key}={float(group[key]):g}")


def make_probe(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], shape: tuple[int, ...], what: str
) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    """Return an optimizer of the same kind and options, of one small parameter.

    Raises:
        InvalidStateError: its constructor refuses the options.
    """
    first = optimizer.param_groups[0]["params"][0]
    parameter = nn.Parameter(torch.zeros(shape, device=first.device))
    options = {k: v for k, v in group.items() if k != "params"}
    try:
        probe = type(optimizer)([parameter], **constructor_options(optimizer, options))
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidStateError(f"its {what} has an option out of range: {reason}") from error
    return probe, parameter


def constructor_options(
    optimizer: torch.optim.Optimizer, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that the constructor of an optimizer takes."""
    known = inspect.signature(type(optimizer)).parameters
    return {key: value for key, value in options.items() if key in known}


def probe_optimizer_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], ndim: int
) -> dict[str, Any] | None:
    """Return the state that a small parameter of so many dimensions has after one step.

    None if the optimizer cannot take a step with a gradient of zeros.
    """
    shape = PROBE_SIDES[:ndim]
    try:
        probe, parameter = make_probe(optimizer, group, shape, "")
        parameter.grad = torch.zeros_like(parameter)
        probe.step()
    except Exception:  # an optimizer of the user's own may need anything
        return None
    return dict(probe.state[parameter])


def check_parameter_state(
    entry: Any, probe: dict[str, Any] | None, parameter: Tensor, what: str
) -> None:
    """Check the loaded state of one parameter, such as its moments and its step.

    Args:
        probe: the state of a small parameter; None if it is unknown.

    Raises:
        InvalidStateError: names the entry that does not fit.
    """
    if not isinstance(entry, dict):
        raise InvalidStateError(f"its {what} has a state that is not a mapping")
    if probe is not None:
        check_names(entry, probe, what)
    for name, value in entry.items():
        where = f"{what}, {replace_unprintable(str(name))}"
        like = value if probe is None else probe[name]
        if isinstance(like, Tensor) and isinstance(value, Tensor):
            check_dense(value, where)
            allowed = {tuple(parameter.shape), ()}
            if probe is not None:
                allowed = {shape_from_probe(tuple(like.shape), tuple(parameter.shape))}
            if tuple(value.shape) not in allowed or not is_convertible(value.dtype, like.dtype):
                raise InvalidStateError(
                    f"its {where} has {value.dtype} of the shape {tuple(value.shape)}, and the "
                    f"parameter needs {like.dtype} of {' or '.join(map(str, allowed))}"
                )
            if not is_finite(value):
                raise InvalidStateError(f"its {where} has values that are not finite")
            check_step_count(value, name, where)
        elif isinstance(like, Tensor) and like.ndim == 0:  # an older PyTorch wrote numbers
            check_same_kind(value, 0.0, where)
            check_step_count(torch.tensor(float(value)), name, where)
        else:
            check_same_kind(value, like, where)


def shape_from_probe(shape: tuple[int, ...], parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a state of a parameter, given that of the small parameter's state."""
    sides = dict(zip(PROBE_SIDES, parameter_shape, strict=False))
    return tuple(sides.get(side, side) for side in shape)


def check_step_count(value: Tensor, name: Any, what: str) -> None:
    """Check the number of steps of a parameter, and moments that are means of squares.

    Raises:
        InvalidStateError: it is negative.
    """
    is_count_or_square = name == "step" or str(name).endswith(("_sq", "square_avg", "sum"))
    if is_count_or_square and value.numel() and float(value.min()) < 0:
        raise InvalidStateError(f"its {what} is negative")
    if name == "step" and float(value) > MAX_COUNT:
        raise InvalidStateError(f"its {what} is too large")


# --- numbers and other entries --------------------------------------------------------------------


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on, and no boolean."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def check_same_kind(value: Any, expected: Any, what: str) -> None:
    """Check a loaded value against the one that it replaces: its type, its keys, its length.

    Raises:
        InvalidStateError: it is of another kind, or not finite.
    """
    if isinstance(expected, Tensor):
        check_tensor(value, expected, what)
    elif isinstance(expected, bool) or expected is None or isinstance(expected, str):
        if type(value) is not type(expected):
            raise InvalidStateError(f"its {what} is {format_value(value)}, not {expected!r}")
    elif isinstance(expected, int | float):
        if type(value) not in (int, float) or not is_finite_number(value):
            raise InvalidStateError(f"its {what} is {format_value(value)}, not a finite number")
    elif isinstance(expected, dict):
        if not isinstance(value, dict):
            raise InvalidStateError(f"its {what} is {format_value(value)}, not a mapping")
        check_names(value, expected, what)
        for key, inner in expected.items():
            check_same_kind(value[key], inner, f"{what}, {key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(expected):
            raise InvalidStateError(
                f"its {what} is {format_value(value)}, not {len(expected)} values"
            )
        for i, (inner, own) in enumerate(zip(value, expected, strict=True)):
            check_same_kind(inner, own, f"{what}[{i}]")
    elif type(value) is not type(expected):
        raise InvalidStateError(f"its {what} is {format_value(value)}")


def format_value(value: Any) -> str:
    """Return a value for a message: a short one as it is, else its type."""
    if isinstance(value, Tensor):
        return "a tensor"
    is_short = value is None or isinstance(value, str | int | float)
    text = replace_unprintable(repr(value)) if is_short else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}…"


def is_finite_number(value: int | float) -> bool:
    """Whether a number is finite as a float."""
    return abs(value) <= sys.float_info.max


def check_scaler_state(state: Any, expected: dict[str, Any]) -> None:
    """Check the state of a gradient scaler.

    It is empty where none is used, as on another device.

    Raises:
        InvalidStateError: it lacks a number, or one is out of range.
    """
    what = "scaler"
    if not isinstance(state, dict):
        raise InvalidStateError(f"its {what} is not a mapping")
    if not state and not expected:
        return
    if expected:
        check_names(state, expected, what)
    for key, value in state.items():
        name = replace_unprintable(str(key))
        check_same_kind(value, 0.0, f"{what}, {name}")
        if value < 0 or (value == 0 and key != "_growth_tracker"):
            raise InvalidStateError(f"its {what}, {name} is {value:g}")


def check_counters(state: dict[str, Any]) -> None:
    """Check the numbers of a trainer's state: steps, seed, seconds, best evaluation, losses.

    Raises:
        InvalidStateError: names the one that is out of range.
    """
    for key in ("step", "batches_consumed"):
        if not is_count(state[key]):
            raise InvalidStateError(f"its {key} is {format_value(state[key])}")
    if type(state["seed"]) is not int or not -(2**63) <= state["seed"] < 2**64:
        raise InvalidStateError(f"its seed is {format_value(state['seed'])}")
    check_same_kind(state["seconds"], 0.0, "seconds")
    if state["seconds"] < 0:
        raise InvalidStateError(f"its seconds is {state['seconds']:g}")
    if (best := state["best"]) is not None:
        check_names(best, ("value", "step", "since"), "best")
        if type(best["value"]) not in (int, float):
            raise InvalidStateError(f"its best, value is {format_value(best['value'])}")
        for key in ("step", "since"):
            check_same_kind(best[key], 0, f"best, {key}")
            if best[key] < 0:
                raise InvalidStateError(f"its best, {key} is negative")
    for losses in state["unlogged_losses"]:
        for name, value in losses.items():
            if not isinstance(name, str) or type(value) not in (int, float):
                raise InvalidStateError("its unlogged_losses are not names with numbers")


def check_shard_buffers(state: Any, expected: Mapping[str, Tensor]) -> None:
    """Check the buffers that each shard of a batch has, of shape (shards, …) each.

    Args:
        expected: the present ones, of any number of shards.

    Raises:
        InvalidStateError: names the buffer that does not fit.
    """
    what = "per_shard_buffers"
    if not isinstance(state, dict):
        raise InvalidStateError(f"its {what} is not a mapping of names to tensors")
    if not state:  # missing in the first checkpoints of format 1
        return
    check_names(state, expected, what)
    for name, own in expected.items():
        entry = f"{what} '{name}'"
        check_dense(state[name], entry)
        if not state[name].ndim or not len(state[name]):
            raise InvalidStateError(f"its {entry} is empty")
        check_tensor(state[name][:1], own[:1], entry)
        if not is_finite(state[name]):
            raise InvalidStateError(f"its {entry} has values that are not finite")
