"""Whose sweep a plan is: what a stranger's plan may have `genlab sweep resume` run is overrides that name nothing but options."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from genlab.errors import UserError

# Of Hydra's own options those that say how much of which machine a job gets; shell lines, folders and classes are none of them.
HYDRA = re.compile(
    r"hydra/(launcher|sweeper)|hydra\.sweep\.(dir|subdir)"
    r"|hydra\.launcher\.(n|gpus|tries|only|name|partition|account|qos|constraint|exclude|comment|timeout_min|signal_delay_s"
    r"|max_num_timeout|array_parallelism|nodes|tasks_per_node|gpus_per_node|cpus_per_task|mem_gb|gres|gpus_per_task|cpus_per_gpu"
    r"|mem_per_gpu|mem_per_cpu|stderr_to_stdout)"
    r"|hydra\.sweeper\.(objective|direction|n_trials|n_jobs|sampler|seed|pruner|max_batch_size|params\..+)"
)
LONGEST = 4096  # characters of an override


def remember(plan: dict[str, Any]) -> None:
    """Note, in the user's own cache, that the user gave this plan's command."""
    path = note(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def check(plan: dict[str, Any], where: Path) -> None:
    """Refuse a plan that this user never gave and that does more than to set options.

    Raises:
        UserError: names the word; the sweep's own command, given again, goes on all the same.
    """
    if note(plan).exists():
        return
    for word in (*plan["command"][1:], *(word for job in plan["jobs"] for word in job)):
        if why := danger(word):
            raise UserError(
                f"{where} is no sweep that you began, and would have {word!r} ({why}) run; if you trust it, give its command "
                "yourself (`genlab train -m …` with its hydra.sweep.dir=), which goes on with it"
            )


def danger(word: str) -> str:
    """Return what an override, or a flag, of a stranger could do beside setting an option; "" for nothing."""
    if not word.isprintable() or len(word) > LONGEST:
        return "no word that somebody typed"
    if word in ("-m", "--multirun"):
        return ""
    if word.startswith("-"):
        return "a flag, which may bring configs of its own"
    key, _, value = word.partition("=")
    key = key.lstrip("+~")
    if "_target_" in word:
        return "the name of a class"
    if "${" in value:
        return "a value that is read from elsewhere"
    if key.partition(".")[0].partition("/")[0].partition("@")[0] == "hydra" and not HYDRA.fullmatch(
        key
    ):
        return "an option of Hydra's own"
    if key in ("allow", "out", "resume") or key.startswith("allow."):
        return "an option that is yours to give"
    return ""


def note(plan: dict[str, Any]) -> Path:
    """Return the file whose being there says that the user gave the plan's command, in its folder."""
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    given = hashlib.sha256(json.dumps([plan["command"], plan["cwd"]]).encode()).hexdigest()
    return Path(os.environ.get("GENLAB_CACHE") or Path(users) / "genlab") / "sweeps" / given[:32]


def well_formed(plan: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return a plan that is one: a command and jobs as lists of words, a folder and a sweeper.

    Raises:
        UserError: it is none.
    """
    words = lambda found: isinstance(found, list) and all(isinstance(word, str) for word in found)  # noqa: E731
    named = all(isinstance(plan.get(key), str) for key in ("cwd", "sweeper"))
    jobs = plan.get("jobs")
    if not (
        named and words(plan.get("command")) and isinstance(jobs, list) and all(map(words, jobs))
    ):
        raise UserError(f"{where} is unreadable: it is no plan of a sweep")
    return plan
