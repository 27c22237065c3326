"""Check that all ranks start from the same config, data and checkpoint."""

from __future__ import annotations

import socket
from typing import Any

from genlab.config.dotted_keys import flatten_config
from genlab.config.instantiate import format_cli_value
from genlab.config.override_keys import DATA_PATH_KEYS, RUNTIME_KEYS, root_key
from genlab.data.dataset import SPLITS
from genlab.data.fingerprint import data_location, dataset_fingerprint
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError
from genlab.runs.checkpoint_io import state_dict_crc32

Plain = dict[str, Any]
# Options of the device that change what the ranks send to each other.
SHARED_DEVICE_OPTIONS = ("fsdp", "precision")
MAX_SHOWN_DIFFERENCES = 3


def check_ranks_agree(
    group: ProcessGroup,
    config: Plain,
    dataset: Any,
    *,
    state: Plain | None,
    part_weights: Plain | None,
) -> None:
    """Refuse ranks that would not train the same, as when one reads another disk.

    Args:
        state: the checkpoint that this rank continues from; None for a new run.
        part_weights: the weights of another run's model that a new one is built around.

    Raises:
        UserError: names the first rank that differs from rank 0, and the differences.
    """
    if group.size == 1:
        return
    summary = summarize_training_setup(config, dataset, state, part_weights)
    everyone = group.all_gather((socket.gethostname(), data_location(dataset), summary))
    (main_host, _, main_summary), *others = everyone
    for rank, (host, place, theirs) in enumerate(others, 1):
        keys = [k for k in main_summary | theirs if main_summary.get(k) != theirs.get(k)]
        if keys:
            differences = ", ".join(
                f"{key} {theirs.get(key, 'missing')} instead of {main_summary.get(key, 'missing')}"
                for key in keys[:MAX_SHOWN_DIFFERENCES]
            )
            raise UserError(
                f"rank {rank} on {host}, which reads {place}, would not train the same as rank 0 "
                f"on {main_host}: {differences}; give all processes the same run folder, data and "
                "recipes"
            )


def summarize_training_setup(
    config: Plain, dataset: Any, state: Plain | None, part_weights: Plain | None
) -> dict[str, str]:
    """Return what must be equal on all ranks, as short texts by name."""
    options = {
        key: value
        for key, value in flatten_config(config).items()
        if key not in DATA_PATH_KEYS and root_key(key) not in RUNTIME_KEYS
    }
    options |= {f"device.{key}": config["device"].get(key) for key in SHARED_DEVICE_OPTIONS}
    data = dataset_fingerprint(dataset)
    return {
        "step": f"{state['step']:,}" if state else "0 without a checkpoint",
        **{key: format_cli_value(value) for key, value in options.items()},
        **{f"{split} items": f"{data[split]:,}" for split in SPLITS},
        "checksum of the data": data["digest"],
        "checksum of the checkpoint": state_dict_crc32(state["model"]) if state else "none",
        "checksum of the codec or teacher": state_dict_crc32(part_weights)
        if part_weights
        else "none",
    }
