"""Decide whether `genlab sweep resume` may run a sweep's plan.

A plan whose command this user gave may run. Any other plan may only set options: it must not name
classes, folders, flags or shell commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from genlab.config.override_keys import override_key, root_key
from genlab.errors import UserError
from genlab.runs.migrations import migrate_overrides

# The options of Hydra that set how many resources of which machine a job gets. Shell commands,
# folders and classes are not among them.
SAFE_HYDRA_KEYS = re.compile(
    r"hydra/(launcher|sweeper)|hydra\.sweep\.(dir|subdir)"
    r"|hydra\.launcher\.(n|gpus|tries|only|name|partition|account|qos|constraint|exclude|comment"
    r"|timeout_min|signal_delay_s|max_num_timeout|array_parallelism|nodes|tasks_per_node"
    r"|gpus_per_node|cpus_per_task|mem_gb|gres|gpus_per_task|cpus_per_gpu|mem_per_gpu|mem_per_cpu"
    r"|stderr_to_stdout)"
    r"|hydra\.sweeper\.(objective|direction|n_trials|n_jobs|sampler|seed|pruner|max_batch_size"
    r"|params\..+)"
)
# Of the runtime keys, those by which a plan could load code or write outside of its sweep.
UNSAFE_RUNTIME_KEYS = {"trusted_packages", "out", "resume"}
MAX_OVERRIDE_CHARS = 4096


def remember_trusted_plan(plan: dict[str, Any]) -> None:
    """Note in the user's cache that the user gave this plan's command."""
    path = trust_marker_path(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def refuse_untrusted_plan(plan: dict[str, Any], folder: Path) -> None:
    """Refuse a plan that this user did not give and that does more than set options.

    Args:
        plan: as it was written.

    Raises:
        UserError: names the word, and says how to resume the sweep all the same.
    """
    if trust_marker_path(plan).exists():
        return
    words = [*plan["command"][1:], *(word for job in plan["jobs"] for word in job)]
    for word in (*words, *migrate_overrides(words, plan.get("format", 1))):
        if reason := unsafe_override_reason(word):
            raise UserError(
                f"{folder} is not a sweep that you started, and it would run {word!r} ({reason}); "
                "if you trust it, give its command yourself (`genlab train -m …` with its "
                "hydra.sweep.dir=), which resumes it"
            )


def unsafe_override_reason(word: str) -> str:
    """Return what an untrusted override or flag could do beside setting an option, or ""."""
    if not word.isprintable() or len(word) > MAX_OVERRIDE_CHARS:
        return "not a word that a person typed"
    if word in ("-m", "--multirun"):
        return ""
    if word.startswith("-"):
        return "a flag, which may add config files"
    key, value = override_key(word), word.partition("=")[2]
    if "_target_" in word:
        return "the name of a class"
    if "${" in value:
        return "a value that is read from elsewhere"
    root = root_key(key).partition("/")[0]
    if root == "hydra" and not SAFE_HYDRA_KEYS.fullmatch(key):
        return "an option of Hydra itself"
    if root_key(key) in UNSAFE_RUNTIME_KEYS:
        return "an option that only you may set"
    return ""


def trust_marker_path(plan: dict[str, Any]) -> Path:
    """Return the file whose existence says that the user gave this command in this folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps([plan["command"], plan["cwd"]]).encode()).hexdigest()
    return Path(os.environ.get("GENLAB_CACHE") or Path(cache) / "genlab") / "sweeps" / digest[:32]


def check_plan_schema(plan: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a plan that has a command, jobs, a working directory and a sweeper.

    Raises:
        UserError: the file is not the plan of a sweep.
    """

    def is_word_list(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)

    jobs = plan.get("jobs")
    if not (
        is_word_list(plan.get("command"))
        and isinstance(jobs, list)
        and all(map(is_word_list, jobs))
        and all(isinstance(plan.get(key), str) for key in ("cwd", "sweeper"))
        and isinstance(plan.get("format", 1), int)
    ):
        raise UserError(f"{path} is unreadable: it is not the plan of a sweep")
    return plan
