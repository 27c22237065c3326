"""From a composed config to the work, a function a command. With `cli.py` the only importer of hydra and omegaconf."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genlab.builders.factory import Plain, assemble, make_dataset, make_device, make_model
from genlab.builders.resume import NAMES_DATA, check_general, resumed, same
from genlab.config.instantiate import arguments, construct, locate, refuse_targets
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder


def plain(config: DictConfig) -> Plain:
    """Return a config as plain containers, every interpolation resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def trusted(*, allow: list[str]) -> tuple[str, ...]:
    """Return the packages besides genlab whose classes a run's config may name."""
    return tuple(allow)


def load_run(config: Plain):
    """Return the run that `config["run"]` names, its model rebuilt from its own config alone.

    Raises:
        UserError: no such run, a config that names foreign classes, an unreadable checkpoint.
    """
    from genlab.runs.loaded_run import Run
    from genlab.runs.safe_load import agreeing, bounded

    folder, checkpoint = RunFolder.find(config["run"])
    own = folder.options("model", "dataset")
    allowed = trusted(**arguments(trusted, {"allow": config.get("allow") or []}, ""))
    refuse_targets(own, allowed=allowed, where=str(folder.path / "config.yaml"))
    info = folder.info()
    device = make_device(config.get("device") or {"name": "cpu"})
    state = folder.load(checkpoint)
    spec = folder.spec()
    weights = state["ema"] or state["model"]
    with agreeing(str(folder.path / "config.yaml")):
        with bounded(weights):
            model = make_model(own, spec)
        model.load_state_dict(weights)
    return Run(
        folder,
        own,
        info,
        device.place(model).eval(),
        spec,
        device,
        state["step"],
        partial(make_dataset, own),
    )


# --- the commands -----------------------------------------------------------------------------------------------------


def train(config: DictConfig) -> dict[str, float] | None:
    """Train a model, or go on with a run; return its final numbers."""
    from genlab.distributed.process_group import Ranks

    given = plain(config)
    if "train" in given:
        name = HydraConfig.get().runtime.choices["experiment"]
        raise UserError(
            f"experiment={name} compares several runs: genlab compare experiment={name}"
        )
    check_general(given)
    ranks = Ranks()
    hydra = HydraConfig.get()
    job = hydra.mode is RunMode.MULTIRUN
    if job and config.resume is not None:
        raise UserError("a sweep takes no resume=: the same command goes on with it")
    if job:
        given["out"] = hydra.runtime.output_dir
    if config.resume is not None:
        folder, checkpoint = RunFolder.find(config.resume)
        own = resumed(given, folder, list(hydra.overrides.task))
    elif job and ranks.share(
        (Path(given["out"]) / "run.json").exists()
    ):  # it was begun before, and goes on
        folder, checkpoint = RunFolder(Path(given["out"])), None
        own = same(given, folder)
    else:
        folder, checkpoint, own = None, None, given
    with ranks:
        try:
            if folder and ranks.first:
                folder.lock()  # before the state is read: who trains here now may be about to save a later one
            begun = folder is not None and bool(
                checkpoint or folder.steps()
            )  # or killed before its first checkpoint
            state = folder.load(checkpoint) if begun else None
            return _train(own, folder, state, ranks, list(hydra.overrides.task))
        finally:
            if folder and folder.held:
                folder.held.close()


def _train(
    own: Plain, folder: RunFolder | None, state: Plain | None, ranks, overrides: list[str]
) -> dict[str, float] | None:
    from genlab.commands.train import numbers, train
    from genlab.distributed.shard_buffers import share
    from genlab.runs.provenance import know_again, origin

    new = folder is None
    if new:
        folder = RunFolder(Path(str(own["out"])))
        if ranks.first:
            folder.refuse_if_there()
    else:
        options, said = share(
            own["trainer"], processes=folder.info().get("processes", 1), size=ranks.size
        )
        own = {**own, "trainer": options}
        if said and ranks.first:
            print(said, file=sys.stderr)
    own, dataset, trainer = assemble(
        own, overrides, state=state, where="" if new else str(folder.path / "config.yaml")
    )
    if state:
        if trainer.at >= trainer.options.steps:
            if ranks.first:  # no error: a scheduler that starts a job again must not see it fail
                print(
                    f"{folder.path} is done: {trainer.at:,} steps; give a larger trainer.steps= to go on"
                )
            return numbers(trainer, folder)
        named = bool(
            NAMES_DATA & {override.lstrip("+~").partition("=")[0] for override in overrides}
        )
        if (line := know_again(dataset, folder.info(), named=named)) and ranks.first:
            print(f"data: {line}", file=sys.stderr)
    elif new and ranks.first:
        info = origin(
            own, dataset, trainer.device, dict(HydraConfig.get().runtime.choices), overrides
        )
        RunFolder.create(
            folder.path, config=OmegaConf.to_yaml(own), info=info | {"processes": ranks.size}
        )
    return train(
        trainer, dataset, folder, config=own, verdict=verdict(own) if ranks.first else None
    )


def verdict(own: Plain) -> Callable | None:
    """Return what a trial of a search asks after each evaluation; None where trials are not pruned, or this is none."""
    hydra = HydraConfig.get()
    sweeper = OmegaConf.to_container(hydra.sweeper, resolve=True)
    if hydra.mode is not RunMode.MULTIRUN or not sweeper["_target_"].endswith(".OptunaSweeper"):
        return None
    from genlab.sweeps.optuna_study import Search, verdict

    search, o = construct(Search, sweeper, "hydra.sweeper"), own["trainer"]
    if not search.prunes:
        return None
    goal = search.goal(o["monitor"], o["evaluate_every"])
    rungs = (o["evaluate_every"], o["steps"])
    return verdict(Path(str(own["out"])).parent, hydra.job.num, goal, search=search, rungs=rungs)


def plan(config: DictConfig) -> dict[str, float]:
    """Say what a training would take; return the numbers."""
    from genlab.commands.plan import plan

    own = plain(config)
    check_general(own)
    if own["resume"] is not None:
        raise UserError(
            "genlab plan is for a new run: give it what `genlab train` would take, and no resume="
        )
    own, dataset, trainer = assemble(own, list(HydraConfig.get().overrides.task))
    return plan(trainer, dataset, config=own)


def sample(config: DictConfig) -> None:
    """Draw from a run's model."""
    from genlab.commands.sample import sample

    ask(sample, plain(config))


def complete(config: DictConfig) -> None:
    """Go on with a text from a prompt."""
    from genlab.commands.complete import complete

    ask(complete, plain(config))


def asking(command: str, module: str | None = None) -> Callable[[DictConfig], dict[str, Any]]:
    """Return the command that asks one run what the function of the same name in genlab.commands does.

    A command's `in`, which Python has taken, is that function's `folder`.
    """
    target = {"_target_": f"genlab.commands.{module or command}.{command}"}
    named = lambda own: {"folder" if key == "in" else key: value for key, value in own.items()}  # noqa: E731
    return lambda config: ask(locate(target, command), named(plain(config)))


reconstruct, encode, interpolate, traverse = map(
    asking, ("reconstruct", "encode", "interpolate", "traverse")
)
arithmetic, inpaint, denoise, likelihood = map(
    asking, ("arithmetic", "inpaint", "denoise", "likelihood")
)
mix, project = map(asking, ("mix", "project"))
translate, forecast = map(asking, ("translate", "forecast"))
colorize, superres = asking("colorize", "translate"), asking("superres", "translate")


def evaluate(config: DictConfig) -> dict[str, float]:
    """Measure a run, or samples that were drawn elsewhere."""
    from genlab.commands import evaluate

    given = plain(config)
    elsewhere = ("samples", "truth", "crop", "dataset", "prepare", "out")
    own = {key: given.pop(key, None) for key in elsewhere}
    if given["n"] is None:
        del given["n"]
    if own["samples"] is None:
        for key in ("dataset", "truth", "out"):
            if own[key] is not None:
                raise UserError(
                    f"{key}= goes with samples=; a run is measured on its own data set, into its own folder"
                )
        return ask(evaluate.evaluate, given)
    if given["run"] is not None:
        raise UserError("give run= or samples=, not both")
    if own["truth"] is not None:
        options = {key: own[key] for key in ("truth", "crop", "out")}
        return evaluate.evaluate_pairs(
            own["samples"], **arguments(evaluate.evaluate_pairs, options, "", skip=1)
        )
    if own["dataset"] is None:
        raise UserError(
            "samples= needs dataset=, the set that they are held against (or truth=, a folder of images)"
        )
    known = signature(evaluate.evaluate_samples).parameters
    options = {
        key: value
        for key, value in (given | own).items()
        if key in known and key not in ("samples", "dataset")
    }
    options = arguments(evaluate.evaluate_samples, options, "", skip=2)
    return evaluate.evaluate_samples(own["samples"], make_dataset(own), **options)


def anomaly(config: DictConfig) -> list[dict[str, Any]]:
    """Tell items that runs know from classes or sets that they never saw."""
    from genlab.commands.anomaly import anomaly

    elsewhere = None if config.get("dataset") is None else partial(alike, config)
    options = {
        key: value for key, value in plain(config).items() if key not in ("dataset", "prepare")
    }
    return ask_runs(anomaly, options, elsewhere)


def classify(config: DictConfig) -> dict[str, Any]:
    """Tell the classes of a run's held-out items, by one run or by one a class."""
    from genlab.commands.classify import classify

    return ask_runs(classify, plain(config))


def alike(config: DictConfig, run):
    """Return the dataset of `config` prepared as the run's own is."""
    own = run.folder.options("dataset")["dataset"]
    prepare = {key: own.get(key, value) for key, value in config.prepare.items()}
    return make_dataset(plain(OmegaConf.create({"dataset": config.dataset, "prepare": prepare})))


def compare(config: DictConfig) -> None:
    """Put runs side by side, those of a lecture after training them; a run is loaded only where it has to be measured."""
    from genlab.commands import compare
    from genlab.sweeps import train_missing

    own = plain(config)
    runs, lectured = (
        own.pop("runs"),
        {key: value for key in ("train", "sample", "common") if (value := own.pop(key))},
    )
    options = {key: value for key, value in own.items() if key not in ("device", "allow", "debug")}
    options = arguments(compare.compare, options, "", skip=2)
    failed: dict[str, str] = {}
    if not lectured:
        wanted = compare.find_runs(**arguments(compare.find_runs, {"runs": runs}, ""))
    elif runs is not None:
        raise UserError(
            "a comparison that trains its own runs (experiment=lecture/…) takes no runs="
        )
    else:
        hydra = HydraConfig.get()
        device = [
            override
            for override in hydra.overrides.task
            if override.partition("=")[0].split(".")[0] == "device"
        ]
        lectured["common"] = [*(lectured.get("common") or []), *device]
        own_recipes = [
            source.path
            for source in hydra.runtime.config_sources
            if source.provider == "command-line"
        ]
        flags = ["--config-dir", own_recipes[0]] if own_recipes else []
        shown, failed = train_missing.prepare(
            **arguments(train_missing.prepare, lectured, ""), flags=flags
        )
        wanted = [compare.Wanted(RunFolder(s.run), label=s.label, sampler=s.sampler) for s in shown]
        lines = [
            options["text"] or "",
            *(f"{label} could not be trained: {why}" for label, why in failed.items()),
        ]
        options["text"] = "\n\n".join(lines)
    compare.compare(lambda where: load_run({**own, "run": where}), wanted, **options)
    if failed:
        raise UserError(
            f"{len(failed)} of the runs could not be trained: {', '.join(failed)}; the page shows the others"
        )


def tasks(config: DictConfig) -> None:
    """Print what can be asked of a run."""
    from genlab.commands.info import tasks

    ask(tasks, plain(config))


def ask(task, config: Plain):
    """Check a task's options against its signature, load the run, and do it."""
    own = {k: v for k, v in config.items() if k not in ("run", "device", "allow", "debug")}
    options = arguments(task, own, "", skip=1)
    return task(load_run(config), **options)


def ask_runs(task, config: Plain, *given):
    """Check the options of a task that takes one run or several (`runs=`), load them, and do it."""
    from genlab.commands.compare import find_runs

    own = {k: v for k, v in config.items() if k not in ("run", "runs", "device", "allow", "debug")}
    options = arguments(task, own, "", skip=1 + len(given))
    if config["runs"] is None:
        return task([load_run(config)], *given, **options)
    if config["run"] is not None:
        raise UserError("give run= or runs=, not both")
    wanted = [str(found.checkpoint or found.run.path) for found in find_runs(config["runs"])]
    return task([load_run({**config, "run": where}) for where in wanted], *given, **options)
