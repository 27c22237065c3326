"""Plain values from YAML against a constructor's type hints: the names it knows, their types, their ranges."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any, get_type_hints

from genlab.errors import UserError, did_you_mean

# What a config may name without more ado. PyTorch's optimizers only by their own names: torch.optim.Adam, not
# torch.optim.os.system, which Python would find just as well.
OURS = re.compile(r"genlab(\.\w+)+|torch\.optim\.[A-Z]\w*")


def locate(node: dict[str, Any], where: str) -> Any:
    """Return the class or function that `node["_target_"]` names.

    Raises:
        UserError: it names none, or one that only passes through a genlab module.
    """
    name = node.get("_target_")
    if (
        not isinstance(name, str)
        or "." not in name
        or not all(part.isidentifier() for part in name.split("."))
    ):
        raise UserError(f"{where} needs a _target_ such as package.module.Class, not {name!r}")
    if not OURS.fullmatch(name) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own model is often a file beside the config
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name) and error.name != module:
            raise  # the module is there, and something that it needs is not
        raise UserError(f"{where}._target_={name}: there is no module '{module}'") from error
    except AttributeError as error:
        known = vars(importlib.import_module(module))
        raise UserError(
            f"{where}._target_={name}: {module} has no '{attribute}'{did_you_mean(attribute, known)}"
        ) from error
    home = str(getattr(found, "__module__", None) or "").split(".")[0]
    if OURS.fullmatch(name) and home not in ("genlab", "torch"):
        raise UserError(f"{where}._target_={name} is not genlab's own")
    if home in sys.stdlib_module_names or not callable(found):
        raise UserError(
            f"{where}._target_={name} is no class or function of a model, a network or a data set"
        )
    return found


def refuse_targets(config: Any, *, allowed: tuple[str, ...], where: str, path: str = "") -> None:
    """Refuse a config, wherever in it, that names a class of a package that the user has not allowed.

    Raises:
        UserError: names the key and the class.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            inside = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                ours = isinstance(value, str) and OURS.fullmatch(value)
                users = isinstance(value, str) and value.split(".")[0] in allowed
                if not (ours or users):
                    mend = "if you trust it, give allow=[package]"
                    raise UserError(
                        f"{where}: {inside} names {value!r}, which is not genlab's; {mend}"
                    )
            refuse_targets(value, allowed=allowed, where=where, path=inside)
    elif isinstance(config, list):
        for i, value in enumerate(config):
            refuse_targets(value, allowed=allowed, where=where, path=f"{path}[{i}]")


def arguments(
    target: Callable[..., Any], values: dict[str, Any], where: str, *, skip: int = 0
) -> dict[str, Any]:
    """Return `values` in the types that `target` asks for.

    Args:
        where: the config's path to the values, for messages.
        skip: the leading parameters that the caller gives.

    Raises:
        UserError: an unknown name, a wrong type, a value out of range, or a missing one.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    if not isinstance(values, dict):
        raise UserError(
            f"{where}={shown(values)}: it has options of its own, as {where}.option=value"
        )
    parameters, hints = taken(target)
    known = {
        p.name: p for p in parameters[skip:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    path = lambda name: f"{where}.{name}" if where else name  # noqa: E731
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name == "_target_":
            continue
        if name not in known:
            listed = ", ".join(known) or "none"
            raise UserError(
                f"unknown option '{path(name)}'{did_you_mean(name, known)}; {where or 'there'} has {listed}"
            )
        value = nested(value)
        if name not in hints:
            checked[name] = value
            continue
        try:
            try:
                adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
            except PydanticUserError:  # a type that brings its own configuration
                adapter = TypeAdapter(hints[name])
            checked[name] = adapter.validate_python(value)
        except ValidationError as error:
            wrong = error.errors()[0]
            said = (e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
            at = (
                () if wrong["type"] == "missing" else wrong["loc"]
            )  # too short: the fault is the whole's
            inside = "".join(f"[{part}]" for part in at if isinstance(part, int))
            found = shown(wrong["input"] if inside else value)
            raise UserError(
                f"{path(name)}{inside}={found}: {'; or '.join(dict.fromkeys(said))}"
            ) from error
    missing = [n for n, p in known.items() if n not in checked and p.default is p.empty]
    if missing:
        raise UserError(f"{path(missing[0])} is not set; give {path(missing[0])}=…")
    return checked


def taken(target: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return what a function or a class takes, and the type hints; where a constructor hands **options on, its base's too."""
    # A dataclass keeps its hints on the class, so that each resolves in the module that wrote it.
    written_on = target if is_dataclass(target) or not isinstance(target, type) else target.__init__
    parameters, hints = (
        list(inspect.signature(target).parameters.values()),
        get_type_hints(written_on, include_extras=True),
    )
    if isinstance(target, type) and any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = {p.name for p in parameters}
        above, hints_above = taken(target.__base__)
        parameters, hints = (
            parameters + [p for p in above if p.name not in known],
            hints_above | hints,
        )
    return parameters, hints


def shown(value: Any) -> str:
    """Return a value as it would be typed."""
    if value is None:
        return "null"
    return str(value) if isinstance(value, str | int | float) else repr(value)


def nested(value: Any) -> Any:
    """Return a value with the objects that it names inside it (`_target_`) made."""
    if isinstance(value, dict) and "_target_" in value:
        target = locate(value, "a nested object")
        if OURS.fullmatch(value["_target_"]) and not makes(target):
            raise UserError(
                f"_target_={value['_target_']} is no network, model or data set, which alone may stand in an option"
            )
        if value.get("_partial_"):  # its first argument comes from the one who calls it
            own = {key: inside for key, inside in value.items() if key != "_partial_"}
            return partial(target, **arguments(target, own, value["_target_"], skip=1))
        return construct(target, value, value["_target_"])
    if isinstance(value, dict):
        return {k: nested(v) for k, v in value.items()}
    if isinstance(value, list):
        return [nested(v) for v in value]
    return value


def makes(target: Any) -> bool:
    """Return whether a class or function of genlab's makes a network, a model or a data set, and does nothing else.

    A config may be a stranger's, and genlab has functions that write files and start processes.
    """
    if isinstance(target, type):
        return any(
            verb in vars(kind)
            for kind in target.__mro__[:-1]
            for verb in ("forward", "batches", "__call__")
        )
    return target.__module__.startswith(("genlab.models.", "genlab.nn."))


def construct(target: Callable[..., Any], values: dict[str, Any], where: str, *given: Any) -> Any:
    """Return `target(*given, **values)`, with the values checked against its type hints."""
    options = arguments(target, values, where, skip=len(given))
    return target(*given, **options)
