"""That all processes of a training begin at the same step of the same one."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

from genlab.commands.train import flat
from genlab.config.instantiate import shown
from genlab.data.dataset import SPLITS
from genlab.data.fingerprint import fingerprint, whereabouts
from genlab.distributed.process_group import Ranks
from genlab.errors import UserError
from genlab.runs.checkpoint_io import checksum

Plain = dict[str, Any]
DEVICE = ("fsdp", "precision")  # of the device, what the messages between processes depend on


def refuse_unlike(
    ranks: Ranks,
    config: Plain,
    dataset: Any,
    *,
    but: Collection[str],
    state: Plain | None,
    part: Plain | None,
) -> None:
    """Refuse processes that do not stand at the same step of the same training, as where one reads a disk of its own.

    Args:
        but: options, or groups of them, in which they may differ.
        state: what this process goes on from; None: it begins.
        part: the weights of another run's model that a new one is built around; None: there is none.

    Raises:
        UserError: names the first process that differs from rank 0, and in what.
    """
    if ranks.size == 1:
        return
    device = {f"device.{key}": config["device"].get(key) for key in DEVICE}
    options = {
        key: value
        for key, value in flat(config).items()
        if not {key, key.partition(".")[0]} & set(but)
    } | device
    data = fingerprint(dataset)
    mine = {
        "step": f"{state['step']:,}" if state else "0 without a checkpoint",
        **{key: shown(value) for key, value in options.items()},
        **{f"{split} items": f"{data[split]:,}" for split in SPLITS},
        "sum of the data": data["digest"],
        "sum of the checkpoint": checksum(state["model"]) if state else "none",
        "sum of the part": checksum(part) if part else "none",
    }
    (host, _, first), *others = ranks.all((socket.gethostname(), whereabouts(dataset), mine))
    for rank, (there, where, theirs) in enumerate(others, 1):
        keys = [key for key in first | theirs if first.get(key) != theirs.get(key)]
        if keys:
            differ = ", ".join(
                f"{key} {theirs.get(key, 'missing')} instead of {first.get(key, 'missing')}"
                for key in keys[:3]
            )
            raise UserError(
                f"rank {rank} on {there}, which reads {where}, would not train what rank 0 on {host} does: {differ}; give all "
                "processes the same run folder, data and recipes"
            )
