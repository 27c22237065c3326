"""Checks of a run's JSON files: run.json, evaluations, stats.jsonl and state.json.

A file of another person may have any types and any characters. What is read from it is checked
here, so that its readers need not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.untrusted.text import replace_unprintable

MAX_COUNT = 2**62

Check = Callable[[Any], bool]


# --- types ----------------------------------------------------------------------------------------


def is_text(value: Any) -> bool:
    """Whether a value is text without characters that control a terminal."""
    return isinstance(value, str) and value.isprintable()


def is_any_text(value: Any) -> bool:
    """Whether a value is text; it may be a path with any characters."""
    return isinstance(value, str)


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer that fits 64 bits, and not a boolean."""
    return type(value) is int and abs(value) < 2**64


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 on, and not a boolean."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_number(value: Any) -> bool:
    """Whether a value is a number, maybe not finite, and not a boolean."""
    return type(value) is float or is_whole_number(value)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a finite number, and not a boolean."""
    return is_number(value) and math.isfinite(value)


def is_mapping(value: Any) -> bool:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def is_list_of(check: Check) -> Check:
    """Return the check that a value is a list of such values."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def is_mapping_to(check: Check) -> Check:
    """Return the check that a value is a JSON object with such values."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def is_optional(check: Check) -> Check:
    """Return the check that a value is such a value or null."""
    return lambda value: value is None or check(value)


def is_choice(value: Any) -> bool:
    """Whether a value is the choice of a config group: a name, several, or none."""
    return value is None or is_text(value) or is_list_of(is_text)(value)


def is_fingerprint(value: Any) -> bool:
    """Whether a value may be the fingerprint of a dataset: counts, and a digest."""
    return (
        isinstance(value, dict)
        and all(is_count(v) or is_text(v) for v in value.values())
        and all(is_count(value.get(split)) for split in ("train", "validation", "test"))
    )


# --- files ----------------------------------------------------------------------------------------

# Fields of run.json, all of them optional in older runs.
METADATA_CHECKS: dict[str, Check] = {
    "model": is_text,
    "dataset": is_text,
    "choices": is_mapping_to(is_choice),
    "command": is_list_of(is_any_text),
    "started": is_text,
    "start_folder": is_optional(is_any_text),
    "spec": is_mapping,
    "data": is_optional(is_fingerprint),
    "device": is_text,
    "versions": is_mapping_to(is_text),
    "commit": is_optional(is_text),
    "seed": is_whole_number,
    "processes": lambda value: is_count(value) and value > 0,
    "fitted_options": is_mapping,
}
# Fields of a record of numbers, such as metrics.json.
RECORD_CHECKS: dict[str, Check] = {
    "metrics": is_list_of(is_mapping),
    "absent": is_mapping_to(is_any_text),
    "settings": is_mapping,
    "step": is_count,
}
OPTIONAL_RECORD_CHECKS: dict[str, Check] = {"pictures": is_optional(is_mapping_to(is_any_text))}
ROW_CHECKS: dict[str, Check] = {
    "metric": is_any_text,
    "name": is_any_text,
    "unit": is_any_text,
    "tag": is_any_text,
    "value": is_optional(is_number),
}
OPTIONAL_ROW_CHECKS: dict[str, Check] = {
    "real_vs_real": is_optional(is_number),
    "error": is_optional(is_number),
    "better": is_any_text,
    "conditions": is_optional(is_mapping),
    "parts": is_optional(is_mapping_to(is_optional(is_number))),
    "note": is_any_text,
}


def check_fields(content: Mapping[str, Any], checks: Mapping[str, Check], path: Path) -> None:
    """Check the fields that a JSON object has.

    Raises:
        UserError: names the first that genlab does not write so.
    """
    if wrong := wrong_fields(content, checks):
        raise UserError(f"{path} is unreadable: its {wrong[0]} is not as genlab writes it")


def wrong_fields(content: Mapping[str, Any], checks: Mapping[str, Check]) -> list[str]:
    """Return the names of the fields that a JSON object has and that fail their check."""
    return [
        key for key, is_valid in checks.items() if key in content and not is_valid(content[key])
    ]


def is_valid_record(record: Any) -> bool:
    """Whether a record of numbers has the fields that are read, with the right types."""
    if not isinstance(record, dict) or not record.keys() >= RECORD_CHECKS.keys():
        return False
    if wrong_fields(record, RECORD_CHECKS | OPTIONAL_RECORD_CHECKS):
        return False
    return all(map(is_valid_record_row, record["metrics"]))


def is_valid_record_row(row: Any) -> bool:
    """Whether a row of a record has the fields that are read, with the right types."""
    if not isinstance(row, dict) or not row.keys() >= ROW_CHECKS.keys():
        return False
    return not wrong_fields(row, ROW_CHECKS | OPTIONAL_ROW_CHECKS)


def replace_unprintable_texts(value: Any) -> Any:
    """Return JSON values with every text, keys included, as it may be printed."""
    if isinstance(value, str):
        return replace_unprintable(value)
    if isinstance(value, dict):
        return {
            replace_unprintable(str(key)): replace_unprintable_texts(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [replace_unprintable_texts(inner) for inner in value]
    return value
