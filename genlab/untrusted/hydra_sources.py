"""Keep Hydra inside the folders of group files: those of genlab and of --config-dir.

Hydra joins a group and a choice to a folder without looking at them, so `model=../../gift/evil`
would read a file that is in none of its folders, and import what it names.
"""

from __future__ import annotations

from typing import Any

from genlab.untrusted.configs import refuse_path_as_choice


def confine_config_groups() -> None:
    """Let Hydra find a group file by its name only, in this process, for every caller.

    The methods are those by which Hydra looks for any config; they are private to it.
    """
    from hydra._internal.config_repository import ConfigRepository

    if getattr(ConfigRepository, "is_confined", False):
        return
    find, list_options = ConfigRepository._find_object_source, ConfigRepository.get_group_options

    def find_object_source(self: ConfigRepository, config_path: str, object_type: Any) -> Any:
        refuse_path_as_choice(config_path)
        return find(self, config_path, object_type)

    def get_group_options(self: ConfigRepository, group_name: str, *args: Any, **kw: Any) -> Any:
        refuse_path_as_choice(group_name)
        return list_options(self, group_name, *args, **kw)

    # set by name: to mypy, both are methods that cannot be assigned
    for name, method in {
        "_find_object_source": find_object_source,
        "get_group_options": get_group_options,
        "is_confined": True,
    }.items():
        setattr(ConfigRepository, name, method)
