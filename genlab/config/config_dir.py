"""The folder of the YAML files that ship with genlab."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def config_folder() -> Path:
    """Return the folder of the YAML files that ship with genlab."""
    spec = find_spec("genlab.configs")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))
