"""Run a command with its composed config: load its run, check its options, call it.

Together with genlab.cli and genlab.builders.train, the only place that imports Hydra.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from genlab.builders.class_label_options import (
    hide_classes,
    options_naming_classes,
    replace_class_names_by_numbers,
)
from genlab.builders.factory import Plain, make_dataset, make_device, make_model
from genlab.builders.meaningless_options import refuse_meaningless_options
from genlab.builders.train import predict_run_cost, to_plain_dict, train_run
from genlab.commands import COMMANDS
from genlab.config.instantiate import (
    import_target,
    parameters_and_type_hints,
    validate_kwargs,
    validate_value,
)
from genlab.config.override_keys import is_path_option, root_key
from genlab.data.dataset import Dataset
from genlab.data.fingerprint import data_location
from genlab.data.series import SeriesDataset
from genlab.data.summary import DataSummary
from genlab.errors import UserError
from genlab.runs.data_place import find_data, given_places, is_elsewhere, name_data_place
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.provenance import describe_data_change
from genlab.runs.run_folder import RunFolder
from genlab.tables import print_message_on_stderr
from genlab.untrusted.configs import refuse_untrusted_config

# Options of every command that asks a run: they say which run, and how to load it.
LOADING_KEYS = frozenset({"run", "runs", "dataset", "device", "trusted_packages", "debug"})


def run_command_with_config(command: str, config: DictConfig) -> Any:
    """Run a command with its composed config; return what it returns."""
    refuse_meaningless_options(command, config, HydraConfig.get().overrides.task)
    validate_value(bool, config.get("debug", False), "debug")
    expand_home_folders(config)
    special: dict[str, Callable[[DictConfig], Any]] = {
        "train": train_run,
        "plan": predict_run_cost,
        "evaluate": evaluate,
        "anomaly": anomaly,
        "classify": classify,
        "compare": compare,
        "lectures": lectures,
    }
    if command in special:
        return special[command](config)
    return call_with_loaded_run(COMMANDS[command].import_function(), to_plain_dict(config))


def expand_home_folders(config: DictConfig) -> None:
    """Replace a leading ~ by the home folder in every option that takes a file or a folder."""
    for key in list(config):
        if OmegaConf.is_missing(config, key) or config.get(key) is None:
            continue
        value = config[key]
        if isinstance(value, DictConfig):
            expand_home_folders(value)
        elif is_path_option(str(key)):
            found = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
            expanded = expand_home(found)
            if expanded != found:
                with read_write(config):
                    config[key] = expanded


def expand_home(value: Any) -> Any:
    """Return a path, or a list of paths, with the home folder in place of a leading ~."""
    if isinstance(value, list):
        return [expand_home(inner) for inner in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


# --- loading runs ---------------------------------------------------------------------------------


def load_run(config: Plain) -> LoadedRun:
    """Return the run that `config["run"]` names, with its model rebuilt from its own config.

    Raises:
        UserError: the run does not exist, its config names classes that are not trusted, or its
            checkpoint is unreadable.
    """
    from genlab.runs.safe_load import explain_checkpoint_mismatch, limit_allocation
    from genlab.untrusted.states import check_weights

    folder, checkpoint = RunFolder.find_run_and_checkpoint(config["run"])
    where = str(folder.path / "config.yaml")
    run_config = folder.read_config("model", "dataset")
    place = config.get("dataset")
    run_config = name_data_place(run_config, place)
    trusted = config.get("trusted_packages") or []
    refuse_untrusted_config(run_config, allowed=parse_trusted_packages(trusted), where=where)
    metadata = folder.metadata()
    device = make_device(config.get("device") or {"name": "cpu"})
    state = folder.load_checkpoint(checkpoint)
    spec = folder.spec()
    weights = state["ema"] or state["model"]
    with explain_checkpoint_mismatch(where):
        with limit_allocation(weights):
            model = make_model(run_config, spec)
        check_weights(weights, model.state_dict(), "ema" if state["ema"] else "model")
        model.load_state_dict(weights)
    return LoadedRun(
        folder,
        run_config,
        metadata,
        device.move_and_compile(model).eval(),
        spec,
        device,
        state["step"],
        partial(open_run_data, run_config, folder, is_named=any(given_places(place or {}))),
    )


def open_run_data(config: Plain, folder: RunFolder, *, is_named: bool) -> Any:
    """Return the dataset of a run, with the run's own class numbers.

    Data at another place than when the run was started is compared with the data of then.

    Args:
        is_named: whether the command line names the place.

    Raises:
        UserError: the data is not there any more, or is of another form.
    """
    from genlab.data.mixed_table import MixedTable
    from genlab.data.mixed_table_units import MixedTableUnits
    from genlab.data.text import Text

    metadata, spec = folder.metadata(), folder.spec()
    start = metadata.get("start_folder")
    located = find_data(config, folder.path, start if isinstance(start, str) else None)
    dataset = make_dataset(located)
    if not isinstance(dataset, Dataset):
        return dataset
    if spec.class_names:
        dataset.renumber_classes(spec.class_names)
    if spec.symbols and isinstance(dataset, Text):
        dataset.renumber_symbols(spec.symbols)
    if isinstance(dataset, MixedTable) and (summary := folder.data_summary()):
        dataset.adopt_columns(list(MixedTableUnits.from_json(summary).columns))
    for name in ("kind", "shape", "vocab", "symbols", "categories"):
        now, then = getattr(dataset.spec, name), getattr(spec, name)
        if now != then:
            raise UserError(
                f"{data_location(dataset)} has items with {name} {now!r}, but {folder.path} was "
                f"trained on items with {name} {then!r}"
            )
    if isinstance(dataset, SeriesDataset):
        standardize_as_in_training(dataset, folder)
    is_compared = is_named or is_elsewhere(config, located, start)
    if is_compared and (change := describe_data_change(dataset, metadata)):
        print_message_on_stderr(f"data: {change}")
    return dataset


def standardize_as_in_training(dataset: SeriesDataset, folder: RunFolder) -> None:
    """Give a series, which may have grown since, the units and features of a run's training.

    Raises:
        UserError: its columns or its features are not those of the training.
    """
    now, then = dataset.spec.source, folder.spec().source
    if now != then:
        raise UserError(
            f"{data_location(dataset)} has windows of {now and now.shape}, but {folder.path} was "
            f"trained on windows of {then and then.shape}: other features of its dates; train "
            "again, with dataset.seasons=[…] instead of auto"
        )
    if not (summary := folder.data_summary()):
        return
    try:
        columns = DataSummary.from_json(summary).columns
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder.path / 'data.json'} is unreadable: {reason}") from error
    names = [column.name for column in columns]
    if names != [column.name for column in dataset.columns]:
        own = ", ".join(column.name for column in dataset.columns)
        raise UserError(
            f"{data_location(dataset)} has the columns {own}, but {folder.path} was trained on "
            f"{', '.join(names)}"
        )
    if any(not (math.isfinite(c.mean) and 0 < c.scale < math.inf) for c in columns):
        raise UserError(f"{folder.path / 'data.json'} is unreadable: a column without a scale")
    dataset.standardize_as(columns)


def parse_trusted_packages(packages: Any) -> tuple[str, ...]:
    """Return the packages besides genlab whose classes a run's config may name.

    Raises:
        UserError: they are not a list of names.
    """

    def declare(*, trusted_packages: list[str]) -> None: ...

    return tuple(validate_kwargs(declare, {"trusted_packages": packages}, "")["trusted_packages"])


def call_with_loaded_run(command: Callable[..., Any], config: Plain) -> Any:
    """Check the options of a command against its signature, load the run, and call it."""
    options, classes = validate_gan_options(command, config, skip=1)
    run = load_run(config)
    options = replace_class_names_by_numbers(options, classes, [run])
    return command(run, **validate_kwargs(command, options, "", skip=1))


def call_with_loaded_runs(command: Callable[..., Any], config: Plain, *args: Any) -> Any:
    """Call a command with the runs that `run=` or `runs=` names, and further arguments."""
    from genlab.commands.compare import find_run_requests

    skip = 1 + len(args)
    options, classes = validate_gan_options(command, config, skip=skip)
    if config["runs"] is not None and config["run"] is not None:
        raise UserError("give run= or runs=, not both")
    places = [config["run"]]
    if config["runs"] is not None:
        places = [
            str(found.checkpoint or found.run.path) for found in find_run_requests(config["runs"])
        ]
    runs = [load_run({**config, "run": place}) for place in places]
    options = replace_class_names_by_numbers(options, classes, runs)
    return command(runs, *args, **validate_kwargs(command, options, "", skip=skip))


def validate_gan_options(
    command: Callable[..., Any], config: Plain, *, skip: int
) -> tuple[Plain, list[str]]:
    """Return the options of a command, and which of them are classes.

    All but the classes are checked, so that a mistake is reported before a run is loaded.
    """
    options = {key: value for key, value in config.items() if key not in LOADING_KEYS}
    classes = options_naming_classes(command, options)
    validate_kwargs(command, hide_classes(options, classes), "", skip=skip)
    return options, classes


# --- commands that need more than one loaded run --------------------------------------------------


def evaluate(config: DictConfig) -> dict[str, float]:
    """Measure a run, or samples that another program drew."""
    from genlab.commands.evaluate import evaluate, evaluate_pairs, evaluate_samples

    options = to_plain_dict(config)
    of_samples = (*("samples", "truth", "crop", "resize", "dataset", "preprocess", "output_file"),)
    place, dataset = split_dataset_options(options)
    sample_options = {key: options.pop(key, None) for key in of_samples} | {"dataset": dataset}
    samples = sample_options["samples"]
    if options["n"] is None:
        del options["n"]
    if samples is None:
        for key in ("dataset", "truth", "resize", "output_file"):
            if sample_options[key] is not None:
                raise UserError(
                    f"{key}= requires samples=; a run is measured on its own data set, "
                    "and its numbers are written to its own folder"
                )
        return call_with_loaded_run(evaluate, options | {"dataset": place})
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
        data_options={key: sample_options[key] for key in ("dataset", "preprocess")},
    )


def anomaly(config: DictConfig) -> list[dict[str, Any]]:
    """Score items that the runs' models know and items of other classes or data sets."""
    from genlab.commands.anomaly import OtherData, anomaly

    options = to_plain_dict(config)
    place, dataset = split_dataset_options(options)
    preprocess = options.pop("preprocess", None) or {}
    other = None
    if dataset is not None:
        section = OmegaConf.masked_copy(config.dataset, list(dataset))
        other = OtherData(partial(make_dataset_like, section, preprocess), dataset)
    return call_with_loaded_runs(anomaly, options | {"dataset": place}, other)


def classify(config: DictConfig) -> dict[str, Any]:
    """Classify a run's held-out items, by one run or by one run per class."""
    from genlab.commands.classify import classify

    return call_with_loaded_runs(classify, to_plain_dict(config))


def split_dataset_options(config: Plain) -> tuple[Plain, Plain | None]:
    """Return where the run's data is, and the dataset of the command line or None.

    Both are in the section `dataset`: without `dataset=<name>`, its options are about the run's.
    """
    section = config.get("dataset") or {}
    if "_target_" not in section:
        return section, None
    known = {p.name for p in parameters_and_type_hints(import_target(section, "dataset"))[0]}
    return {}, {k: v for k, v in section.items() if v is not None or k in known}


def make_dataset_like(section: DictConfig, preprocess: Plain, run: LoadedRun) -> Any:
    """Return a dataset, preprocessed as the run's own dataset is.

    Args:
        section: the section `dataset` of the command's config, with its references to preprocess.
        preprocess: the section `preprocess`, whose options the run's own replace.
    """
    own = run.folder.read_config("dataset")["dataset"]
    preprocess = {key: own.get(key, value) for key, value in preprocess.items()}
    sections = {"dataset": section, "preprocess": preprocess}
    return make_dataset(to_plain_dict(OmegaConf.create(sections)))


def compare(config: DictConfig) -> None:
    """Compare runs; those that `train` lists are trained first if they do not exist."""
    from genlab.commands.compare import compare, find_run_requests

    options = to_plain_dict(config)
    runs = options.pop("runs")
    training = {k: v for k in ("train", "sample", "common") if (v := options.pop(k))}
    loading = {key: value for key, value in options.items() if key in LOADING_KEYS}
    options = {key: value for key, value in options.items() if key not in LOADING_KEYS}
    options = validate_kwargs(compare, options, "", skip=2)
    failed: dict[str, str] = {}
    if not training:
        requests = find_run_requests(**validate_kwargs(find_run_requests, {"runs": runs}, ""))
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


def lectures(config: DictConfig) -> Any:
    """List the figures of the lectures, or make them."""
    from genlab.commands.lectures import lectures

    options = {key: v for key, v in to_plain_dict(config).items() if key not in LOADING_KEYS}
    device = [word for word in HydraConfig.get().overrides.task if root_key(word) == "device"]
    return lectures(**validate_kwargs(lectures, options, ""), device=device)


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
