"""This process's place among those that train one model, as whoever started them says it. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from genlab.errors import UserError

PORTS = 15_000, 32_000  # below those that Linux gives to connections
ALONE = {
    "WORLD_SIZE": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
}  # what a process of its own is told


@dataclass(frozen=True)
class World:
    """Which of `size` processes this is, which of those on its machine, and where the first one can be met."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    bound: bool = False  # whether a scheduler may have given each process its own GPUs to see

    def gpu(self, visible: int) -> int:
        """Return which of the GPUs that this process sees is its own."""
        return 0 if self.bound and visible == 1 else self.local_rank


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Return the place that torchrun's variables give, or those of a SLURM step with several tasks, or of submitit.

    A SLURM job's own shell (`sbatch`, `salloc`) has variables of the job's tasks too, and is none of them: only a step, which
    `srun` starts, counts.

    Raises:
        UserError: WORLD_SIZE without RANK, or a variable that is no number.
    """
    e = environment
    try:
        if "RANK" in e and "WORLD_SIZE" in e:  # torchrun, or set by hand
            return World(
                rank=int(e["RANK"]),
                size=int(e["WORLD_SIZE"]),
                local_rank=int(e.get("LOCAL_RANK", e["RANK"])),
                local_size=int(e.get("LOCAL_WORLD_SIZE", 1)),
                address=e.get("MASTER_ADDR", "127.0.0.1"),
                port=int(e.get("MASTER_PORT", PORTS[0])),
            )
        if int(e.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            node = int(e.get("SLURM_NODEID", 0))
            return World(
                rank=int(e["SLURM_PROCID"]),
                size=int(e["SLURM_STEP_NUM_TASKS"]),
                local_rank=int(e["SLURM_LOCALID"]),
                local_size=tasks(e["SLURM_STEP_TASKS_PER_NODE"])[node],
                address=e.get("MASTER_ADDR", first_host(e["SLURM_STEP_NODELIST"])),
                port=int(
                    e.get(
                        "MASTER_PORT",
                        port(
                            e["SLURM_JOB_ID"], e["SLURM_STEP_ID"], e.get("SLURM_RESTART_COUNT", "0")
                        ),
                    )
                ),
                bound=True,
            )
        if int(e.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:  # jobs on this machine, without a scheduler
            return World(
                rank=int(e["SUBMITIT_LOCAL_GLOBALID"]),
                size=int(e["SUBMITIT_LOCAL_NTASKS"]),
                local_rank=int(e["SUBMITIT_LOCAL_LOCALID"]),
                local_size=int(e["SUBMITIT_LOCAL_NTASKS"]),
                port=port(e["SUBMITIT_LOCAL_JOB_ID"]),
            )
        if int(e.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                f"WORLD_SIZE={e['WORLD_SIZE']} without RANK: start the processes with torchrun or srun, or set both"
            )
    except (ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the environment does not say which process this is: {type(error).__name__} {error}"
        ) from error
    return World()


def first_host(nodes: str) -> str:
    """Return the first name in a list of SLURM's: n[03-05,7],m1 begins with n03."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).partition(",")[0]


def tasks(counts: str) -> list[int]:
    """Return how many tasks each node has, of what SLURM writes as 2(x3),1."""
    found: list[int] = []
    for part in counts.split(","):
        n, _, times = part.rstrip(")").partition("(x")
        found += [int(n)] * int(times or 1)
    return found


def port(job: str, step: str = "0", restart: str = "0") -> int:
    """Return a port of a job's step: jobs and steps near each other have different ones."""
    low, high = PORTS
    return low + (16 * int(job) + int(step) + 5 * int(restart)) % (high - low)
