"""Run a command with its composed config: load its run, check its options, call it.

Together with genlab.cli and genlab.builders.train, the only place that imports Hydra.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from genlab.builders.factory import Plain, make_dataset, make_device, make_model
from genlab.builders.train import plan_run, to_plain, train_run
from genlab.commands import COMMANDS
from genlab.config.instantiate import refuse_targets, validate_kwargs
from genlab.config.keys import root_key
from genlab.errors import UserError
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.run_folder import RunFolder

# Options of every command that asks a run: they say which run, and how to load it.
LOADING_KEYS = frozenset({"run", "runs", "device", "trusted_packages", "debug"})


def run_composed(command: str, config: DictConfig) -> Any:
    """Run a command with its composed config; return what it returns."""
    special: dict[str, Callable[[DictConfig], Any]] = {
        "train": train_run,
        "plan": plan_run,
        "evaluate": evaluate,
        "anomaly": anomaly,
        "classify": classify,
        "compare": compare,
    }
    if command in special:
        return special[command](config)
    return call_with_run(COMMANDS[command].load(), to_plain(config))


# --- loading runs ---------------------------------------------------------------------------------


def load_run(config: Plain) -> LoadedRun:
    """Return the run that `config["run"]` names, with its model rebuilt from its own config.

    Raises:
        UserError: the run does not exist, its config names classes that are not trusted, or its
            checkpoint is unreadable.
    """
    from genlab.runs.safe_load import explain_mismatch, limit_allocation

    folder, checkpoint = RunFolder.find(config["run"])
    where = str(folder.path / "config.yaml")
    run_config = folder.read_config("model", "dataset")
    trusted = config.get("trusted_packages") or []
    refuse_targets(run_config, allowed=check_trusted_packages(trusted), where=where)
    metadata = folder.metadata()
    device = make_device(config.get("device") or {"name": "cpu"})
    state = folder.load_checkpoint(checkpoint)
    spec = folder.spec()
    weights = state["ema"] or state["model"]
    with explain_mismatch(where):
        with limit_allocation(weights):
            model = make_model(run_config, spec)
        model.load_state_dict(weights)
    return LoadedRun(
        folder,
        run_config,
        metadata,
        device.move_model(model).eval(),
        spec,
        device,
        state["step"],
        partial(make_dataset, run_config),
    )


def check_trusted_packages(packages: Any) -> tuple[str, ...]:
    """Return the packages besides genlab whose classes a run's config may name.

    Raises:
        UserError: they are not a list of names.
    """

    def declare(*, trusted_packages: list[str]) -> None: ...

    return tuple(validate_kwargs(declare, {"trusted_packages": packages}, "")["trusted_packages"])


def call_with_run(command: Callable[..., Any], config: Plain) -> Any:
    """Check the options of a command against its signature, load the run, and call it."""
    options = {key: value for key, value in config.items() if key not in LOADING_KEYS}
    options = validate_kwargs(command, options, "", skip=1)
    return command(load_run(config), **options)


def call_with_runs(command: Callable[..., Any], config: Plain, *args: Any) -> Any:
    """Call a command with the runs that `run=` or `runs=` names, and further arguments."""
    from genlab.commands.compare import find_runs

    options = {key: value for key, value in config.items() if key not in LOADING_KEYS}
    options = validate_kwargs(command, options, "", skip=1 + len(args))
    if config["runs"] is None:
        return command([load_run(config)], *args, **options)
    if config["run"] is not None:
        raise UserError("give run= or runs=, not both")
    places = [str(found.checkpoint or found.run.path) for found in find_runs(config["runs"])]
    return command([load_run({**config, "run": place}) for place in places], *args, **options)


# --- commands that need more than one loaded run --------------------------------------------------


def evaluate(config: DictConfig) -> dict[str, float]:
    """Measure a run, or samples that another program drew."""
    from genlab.commands.evaluate import evaluate, evaluate_pairs, evaluate_samples

    options = to_plain(config)
    of_samples = ("samples", "truth", "crop", "dataset", "preprocess", "output_file")
    sample_options = {key: options.pop(key, None) for key in of_samples}
    samples = sample_options["samples"]
    if options["n"] is None:
        del options["n"]
    if samples is None:
        for key in ("dataset", "truth", "output_file"):
            if sample_options[key] is not None:
                raise UserError(
                    f"{key}= requires samples=; a run is measured on its own data set, "
                    "and its numbers are written to its own folder"
                )
        return call_with_run(evaluate, options)
    if options["run"] is not None:
        raise UserError("give run= or samples=, not both")
    if sample_options["truth"] is not None:
        pair_options = {key: sample_options[key] for key in ("truth", "crop", "output_file")}
        return evaluate_pairs(samples, **validate_kwargs(evaluate_pairs, pair_options, "", skip=1))
    if sample_options["dataset"] is None:
        raise UserError(
            "samples= requires dataset=, the data set to compare them with, or truth=, a folder "
            "with the true image of each"
        )
    accepted = signature(evaluate_samples).parameters
    given = {k: v for k, v in (options | sample_options).items() if k in accepted}
    given = {k: v for k, v in given.items() if k not in ("samples", "dataset")}
    return evaluate_samples(
        samples,
        make_dataset(sample_options),
        **validate_kwargs(evaluate_samples, given, "", skip=2),
    )


def anomaly(config: DictConfig) -> list[dict[str, Any]]:
    """Score items that the runs' models know and items of other classes or data sets."""
    from genlab.commands.anomaly import anomaly

    options = to_plain(config)
    has_dataset = options.pop("dataset", None) is not None
    options.pop("preprocess", None)
    make_other = partial(make_dataset_like, config) if has_dataset else None
    return call_with_runs(anomaly, options, make_other)


def classify(config: DictConfig) -> dict[str, Any]:
    """Classify a run's held-out items, by one run or by one run per class."""
    from genlab.commands.classify import classify

    return call_with_runs(classify, to_plain(config))


def make_dataset_like(config: DictConfig, run: LoadedRun) -> Any:
    """Return the dataset of `config`, preprocessed as the run's own dataset is."""
    own = run.folder.read_config("dataset")["dataset"]
    preprocess = {key: own.get(key, value) for key, value in config.preprocess.items()}
    sections = {"dataset": config.dataset, "preprocess": preprocess}
    return make_dataset(to_plain(OmegaConf.create(sections)))


def compare(config: DictConfig) -> None:
    """Compare runs; those that `train` lists are trained first if they do not exist."""
    from genlab.commands.compare import compare, find_runs

    options = to_plain(config)
    runs = options.pop("runs")
    training = {k: v for k in ("train", "sample", "common") if (v := options.pop(k))}
    loading = {key: value for key, value in options.items() if key in LOADING_KEYS}
    options = {key: value for key, value in options.items() if key not in LOADING_KEYS}
    options = validate_kwargs(compare, options, "", skip=2)
    failed: dict[str, str] = {}
    if not training:
        requests = find_runs(**validate_kwargs(find_runs, {"runs": runs}, ""))
    elif runs is not None:
        raise UserError(
            "a comparison that trains its own runs (experiment=lecture/…) does not take runs="
        )
    else:
        requests, failed = train_compared_runs(training)
        reasons = [f"{label} could not be trained: {why}" for label, why in failed.items()]
        options["text"] = "\n\n".join([options["text"] or "", *reasons])
    compare(lambda place: load_run({**loading, "run": place}), requests, **options)
    if failed:
        raise UserError(
            f"{len(failed)} of the runs could not be trained: {', '.join(failed)}; "
            "the page shows the others"
        )


def train_compared_runs(training: Plain) -> tuple[list[Any], dict[str, str]]:
    """Train the missing runs of a comparison; return its runs, and why others failed."""
    from genlab.commands.compare import RunRequest
    from genlab.sweeps.train_missing import train_missing_runs

    hydra = HydraConfig.get()
    device = [override for override in hydra.overrides.task if root_key(override) == "device"]
    training = {**training, "common": [*(training.get("common") or []), *device]}
    own_recipes = [
        source.path for source in hydra.runtime.config_sources if source.provider == "command-line"
    ]
    flags = ["--config-dir", own_recipes[0]] if own_recipes else []
    columns, failed = train_missing_runs(
        **validate_kwargs(train_missing_runs, training, ""), flags=flags
    )
    requests = [
        RunRequest(RunFolder(column.run), label=column.label, sampler=column.sampler)
        for column in columns
    ]
    return requests, failed
