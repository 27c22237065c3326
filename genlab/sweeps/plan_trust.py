"""Decide whether `genlab sweep resume` may run a sweep's plan.

A plan whose command this user gave may run. Any other plan may only set options: it must not name
classes, folders, flags or shell commands.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from genlab.config.group_targets import shipped_config_groups
from genlab.config.override_keys import override_key, root_key
from genlab.errors import UserError
from genlab.runs.migrations import migrate_overrides
from genlab.system import user_cache_folder

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
# In the value of an option, as in a list of overrides for the training of a codec.
OPTION_INSIDE_VALUE = re.compile(
    r"trusted_packages|searchpath|--?config|--?c[dnp]\b|\bhydra[./@]|\b(out|resume)="
)


def remember_trusted_plan(plan: dict[str, Any]) -> None:
    """Note in the user's cache that the user gave this plan's command."""
    path = trust_marker_path(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def is_own_plan(plan: dict[str, Any]) -> bool:
    """Whether this user gave the plan's command in the plan's folder.

    Args:
        plan: as it was written.
    """
    return trust_marker_path(plan).exists()


def refuse_untrusted_plan(plan: dict[str, Any], folder: Path) -> None:
    """Refuse a plan that this user did not give and that does more than set options.

    Args:
        plan: as it was written.

    Raises:
        UserError: names the word, and says how to resume the sweep all the same.
    """
    if is_own_plan(plan):
        return
    words = [*plan["command"][1:], *(word for job in plan["jobs"] for word in job)]
    for word in (*words, *migrate_overrides(words, plan.get("format", 1))):
        if reason := unsafe_override_reason(word):
            raise UserError(
                f"{folder} is not a sweep that you started, and it would run {word!r} ({reason}); "
                "if you trust it, give its command yourself (`genlab train -m …` with its "
                "hydra.sweep.dir=), which resumes it"
            )


def refuse_foreign_jobs(plan: dict[str, Any], folder: Path) -> None:
    """Refuse jobs that the plan's command could not have made and that set more than options.

    A worker takes the jobs from the plan, and the trust in a plan is about its command.

    Raises:
        UserError: names the word, and says how to run the sweep all the same.
    """
    choices = {word.partition("=")[0]: word.partition("=")[2] for word in plan["command"]}
    for word in sorted({word for job in plan["jobs"] for word in job}):
        key, _, value = word.partition("=")
        is_own = value == choices.get(key) or value in choices.get(key, "").split(",")
        if not is_own and (reason := unsafe_override_reason(word)):
            raise UserError(
                f"{folder} has a job with {word!r} ({reason}), which is not in its command; "
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
    if ".." in re.split(r"[/\\@:]", key) or key.startswith(("/", ".")) or "://" in key:
        return "a path in the place of a config group"
    if is_group_choice(key) and (".." in value or value.startswith("/") or "://" in value):
        return "a path in the place of a choice"
    if found := OPTION_INSIDE_VALUE.search(value):
        return f"an option inside of a value: {found[0]}"
    if "${" in value:
        return "a value that is read from elsewhere"
    root = root_key(key).partition("/")[0]
    if root == "hydra" and not SAFE_HYDRA_KEYS.fullmatch(key):
        return "an option of Hydra itself"
    if root_key(key) in UNSAFE_RUNTIME_KEYS:
        return "an option that only you may set"
    return ""


def is_group_choice(key: str) -> bool:
    """Whether an override chooses files of a config group."""
    group = key.removeprefix("hydra.sweeper.params.").partition("@")[0]
    return group in shipped_config_groups() or "/" in group


def trust_marker_path(plan: dict[str, Any]) -> Path:
    """Return the file whose existence says that the user gave this command in this folder."""
    digest = hashlib.sha256(json.dumps([plan["command"], plan["cwd"]]).encode()).hexdigest()
    return user_cache_folder() / "sweeps" / digest[:32]


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
