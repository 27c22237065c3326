"""Sweepers of `-m`: probe the choices, show the plan, launch, or do jobs as a worker.

Hydra's own sweeper plans a command's jobs. It would compose every one of them before the first
starts; here each choice is composed once, and a job's config when the job starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import filter_overrides
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from genlab.config.override_keys import override_key
from genlab.sweeps.hydra_launchers import LocalLauncher, format_status_counts
from genlab.sweeps.job_monitor import print_status
from genlab.sweeps.job_state import current_states
from genlab.sweeps.sweep_folder import SweepFolder
from genlab.sweeps.sweep_preview import print_search_preview, print_sweep_preview


def probe_each_choice_once() -> None:
    """Let Hydra's basic sweeper compose only as few jobs as have every choice."""

    def validate_batch_is_legal(self: BasicSweeper, batch: Sequence[Sequence[str]]) -> None:
        assert self.hydra_context is not None
        groups = self.hydra_context.config_loader.get_group_options
        Sweeper.validate_batch_is_legal(self, probe_jobs(batch, lambda key: bool(groups(key))))

    setattr(BasicSweeper, "validate_batch_is_legal", validate_batch_is_legal)  # noqa: B010


def probe_jobs(
    jobs: Sequence[Sequence[str]], is_group: Callable[[str], bool]
) -> list[Sequence[str]]:
    """Return jobs that have every choice of a group, and every option beside it.

    The values of an option that is not a group do not change what is composed.

    Args:
        is_group: whether a key names a group of config files.
    """
    group_keys: dict[str, bool] = {}
    seen: set[str] = set()
    probes = []
    for job in jobs:
        features = set()
        for override in job:
            key = override_key(override).partition("@")[0]
            if key not in group_keys:
                group_keys[key] = "." not in key and is_group(key)
            features.add(override if group_keys[key] else override.partition("=")[0])
        if not features <= seen:
            seen |= features
            probes.append(job)
    return probes


# --- in the place of a command's sweeper ----------------------------------------------------------


def replace_sweeper_by_worker(
    slots: Sequence[str | None], *, until_s: float | None, tries: int
) -> None:
    """Let Hydra start a worker where it would start the sweeper of a command.

    So the jobs' configs are composed as by the command itself, whatever sweeper planned them.

    Args:
        slots: the GPU of each job at a time; None leaves the GPUs as they are.
        until_s: seconds after which the jobs save and the worker ends.
    """
    deadline = None if until_s is None else time.monotonic() + until_s

    class WorkSweeper:
        def __init__(self, **setup: Any) -> None:
            self.launcher = LocalLauncher(n=None, gpus=None, tries=tries, only=None)
            self.launcher.setup(**setup)

        def sweep(self, arguments: list[str]) -> None:
            sweep = SweepFolder(Path(str(self.launcher.config.hydra.sweep.dir)))
            worker = self.launcher.work(sweep, slots, deadline=deadline)
            counts = format_status_counts(current_states(sweep.jobs()))
            print_status(f"{sweep.path}: this worker did {worker.num_ended} jobs; {counts}")

    replace_sweeper(WorkSweeper)


def replace_sweeper_by_preview() -> None:
    """Let Hydra show a sweep's plan where it would start the sweeper of a command."""

    class PreviewSweeper:
        def __init__(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
            self.config, self.loader = config, hydra_context.config_loader

        def sweep(self, arguments: list[str]) -> None:
            options = plain_section(self.config.hydra.sweeper)
            folder = SweepFolder(Path(str(self.config.hydra.sweep.dir)))
            params = [
                f"{key}={'null' if value is None else value}"
                for key, value in (options.get("params") or {}).items()
            ]
            overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(
                [*params, *arguments]
            )
            if "n_trials" in options:
                print_search_preview(folder, [str(o.input_line) for o in overrides], options)
                return
            (jobs,) = BasicSweeper.split_arguments(overrides, None)
            launcher = plain_section(self.config.hydra.launcher)
            print_sweep_preview(folder, [filter_overrides(job) for job in jobs], launcher)

    replace_sweeper(PreviewSweeper)


def plain_section(section: Any) -> dict[str, Any]:
    """Return a section of a config as plain values."""
    plain = OmegaConf.to_container(section, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def replace_sweeper(kind: Callable[..., Any]) -> None:
    """Let Hydra create an object of this class where it would create a command's sweeper."""
    setattr(Plugins.instance(), "instantiate_sweeper", kind)  # noqa: B010  # mypy: a method


def restore_sweeper() -> None:
    """Let Hydra create a command's sweeper again, in a process that runs several commands."""
    vars(Plugins.instance()).pop("instantiate_sweeper", None)
