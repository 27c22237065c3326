"""The width of what a command prints."""

from __future__ import annotations


def too_wide(text: str, columns: int) -> list[str]:
    """Return the lines that are wider than a terminal, except paths and commands to be copied."""
    return [
        line
        for line in text.splitlines()
        if len(line) > columns and "/" not in line and not line.strip().startswith("genlab ")
    ]
