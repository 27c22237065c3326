"""Rank and world size from the environment variables of torchrun, SLURM or submitit.

Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from genlab.errors import UserError

PORT_RANGE = 15_000, 32_000  # below the ports that Linux assigns to outgoing connections
# environment variables of a process that trains by itself, whatever started its parent
SINGLE_PROCESS_ENV = {
    "WORLD_SIZE": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
}


@dataclass(frozen=True)
class DistributedEnv:
    """The rank of this process, overall and on its machine, and the address of rank 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    gpus_may_be_bound: bool = False  # a scheduler may show each process only its own GPUs

    def gpu_index(self, num_visible: int) -> int:
        """Return the index of this process's GPU among the visible ones."""
        return 0 if self.gpus_may_be_bound and num_visible == 1 else self.local_rank


def read_environment(environment: Mapping[str, str] = os.environ) -> DistributedEnv:
    """Return the rank and size that torchrun, a SLURM step or submitit has set.

    The shell of a SLURM job (`sbatch`, `salloc`) has variables of the job's tasks too, but is not
    one of them. Only a step, started by `srun`, counts.

    Raises:
        UserError: WORLD_SIZE without RANK, or a variable that is not a number.
    """
    e = environment
    try:
        if "RANK" in e and "WORLD_SIZE" in e:  # torchrun, or set by hand
            return _read_torchrun(e)
        if int(e.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return _read_slurm(e)
        if int(e.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:  # jobs on this machine, without a scheduler
            return _read_submitit(e)
        if int(e.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                f"WORLD_SIZE={e['WORLD_SIZE']} without RANK: start the processes with torchrun or "
                "srun, or set both"
            )
    except UserError:
        raise
    except (ValueError, KeyError) as error:
        raise UserError(
            "the rank of this process cannot be read from the environment: "
            f"{type(error).__name__} {error}"
        ) from error
    return DistributedEnv()


def _read_torchrun(e: Mapping[str, str]) -> DistributedEnv:
    return DistributedEnv(
        rank=int(e["RANK"]),
        size=int(e["WORLD_SIZE"]),
        local_rank=int(e.get("LOCAL_RANK", e["RANK"])),
        local_size=int(e.get("LOCAL_WORLD_SIZE", 1)),
        address=e.get("MASTER_ADDR", "127.0.0.1"),
        port=int(e.get("MASTER_PORT", PORT_RANGE[0])),
    )


def _read_slurm(e: Mapping[str, str]) -> DistributedEnv:
    node = int(e.get("SLURM_NODEID", 0))
    port = derive_master_port(
        e["SLURM_JOB_ID"], e["SLURM_STEP_ID"], e.get("SLURM_RESTART_COUNT", "0")
    )
    return DistributedEnv(
        rank=int(e["SLURM_PROCID"]),
        size=int(e["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(e["SLURM_LOCALID"]),
        local_size=parse_slurm_task_counts(e["SLURM_STEP_TASKS_PER_NODE"])[node],
        address=e.get("MASTER_ADDR", first_slurm_host(e["SLURM_STEP_NODELIST"])),
        port=int(e.get("MASTER_PORT", port)),
        gpus_may_be_bound=True,
    )


def _read_submitit(e: Mapping[str, str]) -> DistributedEnv:
    return DistributedEnv(
        rank=int(e["SUBMITIT_LOCAL_GLOBALID"]),
        size=int(e["SUBMITIT_LOCAL_NTASKS"]),
        local_rank=int(e["SUBMITIT_LOCAL_LOCALID"]),
        local_size=int(e["SUBMITIT_LOCAL_NTASKS"]),
        port=derive_master_port(e["SUBMITIT_LOCAL_JOB_ID"]),
    )


def first_slurm_host(nodes: str) -> str:
    """Return the first name in SLURM's list of nodes: n03 of "n[03-05,7],m1"."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).partition(",")[0]


def parse_slurm_task_counts(counts: str) -> list[int]:
    """Return the number of tasks of each node, from SLURM's form: [2, 2, 2, 1] of "2(x3),1"."""
    tasks: list[int] = []
    for part in counts.split(","):
        n, _, times = part.rstrip(")").partition("(x")
        tasks += [int(n)] * int(times or 1)
    return tasks


def derive_master_port(job: str, step: str = "0", restart: str = "0") -> int:
    """Return a port for a step of a job; nearby jobs and steps get different ports."""
    low, high = PORT_RANGE
    return low + (16 * int(job) + int(step) + 5 * int(restart)) % (high - low)
