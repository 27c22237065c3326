"""The folder of the YAML files that ship with genlab."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def config_folder() -> Path:
    """Return the folder of the YAML files that ship with genlab."""
    return Path(find_spec("genlab.configs").submodule_search_locations[0])
