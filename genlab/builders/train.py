"""genlab train and genlab plan: build a trainer from a config, for new and resumed runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genlab.builders.factory import Plain, build_dataset_and_trainer, pass_on_in_config
from genlab.builders.pretrained import pretrained_part_name
from genlab.builders.resume_config import check_run_options, config_for_restart, config_for_resume
from genlab.config.dotted_keys import flatten_config
from genlab.config.foreign_options import drop_foreign_options
from genlab.config.instantiate import instantiate
from genlab.config.override_keys import DATA_PATH_KEYS, override_key
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError
from genlab.inference.output_files import is_same_or_inside_folder
from genlab.runs.data_place import find_data
from genlab.runs.run_folder import RunFolder
from genlab.tables import print_message_on_stderr


def to_plain_dict(config: DictConfig) -> Plain:
    """Return a config as plain containers, with every interpolation resolved."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def applicable_options(config: DictConfig, overrides: list[str]) -> Plain:
    """Return the config with the options that apply to it.

    Options of an experiment are left out, and printed, if the command replaces their group.
    """
    options, notes = drop_foreign_options(to_plain_dict(config), overrides)
    if ProcessGroup().is_main:
        for note in notes:
            print_message_on_stderr(note)
    return pass_on_in_config(options)


def train_run(config: DictConfig) -> dict[str, float] | None:
    """Train a model, or resume a run; return its final numbers."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    given = applicable_options(config, overrides)
    if "train" in given:
        name = hydra.runtime.choices["experiment"]
        raise UserError(
            f"experiment={name} compares several runs: genlab compare experiment={name}"
        )
    check_run_options(given)
    group = ProcessGroup()
    is_job = hydra.mode is RunMode.MULTIRUN
    if is_job and config.resume is not None:
        raise UserError("a sweep does not take resume=: give the same command again to resume it")
    if is_job:
        given["out"] = hydra.runtime.output_dir
    folder: RunFolder | None = None
    checkpoint: Path | None = None
    run_config = given
    if config.resume is not None:
        folder, checkpoint = RunFolder.find_run_and_checkpoint(config.resume)
        run_config = config_for_resume(given, folder, overrides, dict(hydra.runtime.choices))
    elif is_job and group.broadcast((Path(given["out"]) / "run.json").exists()):
        folder = RunFolder(Path(given["out"]))  # the job was started before
        run_config = config_for_restart(given, folder)
    with group:
        if folder is None:
            return _start_run(run_config, group, overrides)
        return _resume_run(run_config, folder, checkpoint, group, overrides)


def _start_run(config: Plain, group: ProcessGroup, overrides: list[str]) -> dict[str, float] | None:
    """Train a new run in the folder `out`."""
    from genlab.commands.train import train
    from genlab.runs.provenance import collect_provenance

    folder = RunFolder(Path(str(config["out"])))
    if group.is_main:
        folder.ensure_empty()
        refuse_data_as_output(config, folder.path)
    given = config
    config, dataset, trainer = build_dataset_and_trainer(config, overrides)
    if group.is_main:
        choices = dict(HydraConfig.get().runtime.choices)
        metadata = collect_provenance(config, dataset, trainer.device, choices, overrides)
        metadata["processes"] = group.size
        if pretrained_part_name(config) is None:
            metadata["fitted_options"] = fitted_options(given, config)
        RunFolder.create(
            folder.path,
            config=OmegaConf.to_yaml(config),
            metadata=metadata,
            data=dataset.describe(),
        )
    stop_callback = pruning_callback(config) if group.is_main else None
    return train(trainer, dataset, folder, config=config, stop_callback=stop_callback)


def _resume_run(
    config: Plain,
    folder: RunFolder,
    checkpoint: Path | None,
    group: ProcessGroup,
    overrides: list[str],
) -> dict[str, float] | None:
    """Continue a run from a checkpoint, or from the start if it was killed before the first."""
    from genlab.commands.train import done_message, final_losses_and_metrics, train
    from genlab.distributed.batch_shard_buffers import trainer_options_for_processes
    from genlab.runs.provenance import data_change_warning

    try:
        if group.is_main:
            # Before the state is read: a process that trains here may be about to save a later one.
            folder.lock()
        has_checkpoint = bool(checkpoint or folder.checkpoint_files())
        state = folder.load_checkpoint(checkpoint) if has_checkpoint else None
        metadata = folder.metadata()
        options, note = trainer_options_for_processes(
            config["trainer"], processes=metadata.get("processes", 1), size=group.size
        )
        if note and group.is_main:
            print_message_on_stderr(note)
        config, dataset, trainer = build_dataset_and_trainer(
            find_data({**config, "trainer": options}, folder.path, metadata.get("start_folder")),
            overrides,
            is_new=False,
            state=state,
            where=str(folder.path / "config.yaml"),
        )
        if state:
            if done := done_message(trainer, folder):
                if group.is_main:  # exit code 0: a scheduler that restarts a job must not fail it
                    print(done)
                return final_losses_and_metrics(trainer, folder)
            names_data = bool(DATA_PATH_KEYS & {override_key(o) for o in overrides})
            note = data_change_warning(dataset, metadata, named=names_data)
            if note and group.is_main:
                print_message_on_stderr(f"data: {note}")
        stop_callback = pruning_callback(config) if group.is_main else None
        return train(trainer, dataset, folder, config=config, stop_callback=stop_callback)
    finally:
        folder.unlock()


def refuse_data_as_output(config: Plain, out: Path) -> None:
    """Refuse a run folder inside of the folder that the data is read from.

    Raises:
        UserError: names both options; later runs would read the run's pictures as data.
    """
    for key, value in flatten_config(config).items():
        if not key.startswith("dataset.") or not key.endswith(".path") or not value:
            continue
        data = Path(str(value)).expanduser()
        if data.is_dir() and is_same_or_inside_folder(out, data):
            raise UserError(
                f"out={out} is in the folder {key}={value}, and the run's pictures would be read "
                "as data; give another out=, such as out=../run"
            )


def fitted_options(given: Plain, config: Plain) -> Plain:
    """Return the options, by dotted key, that were chosen to fit the data or the machine."""
    before = flatten_config(given)
    return {key: value for key, value in flatten_config(config).items() if before.get(key) != value}


def pruning_callback(config: Plain) -> Callable[..., Any] | None:
    """Return the function that may prune a trial of a search; None if trials run to the end."""
    hydra = HydraConfig.get()
    sweeper = to_plain_dict(hydra.sweeper)
    if hydra.mode is not RunMode.MULTIRUN or not sweeper["_target_"].endswith(".OptunaSweeper"):
        return None
    from genlab.sweeps.optuna_study import SearchOptions, stop_callback

    search: SearchOptions = instantiate(SearchOptions, sweeper, "hydra.sweeper")
    if not search.has_pruner:
        return None
    trainer = config["trainer"]
    goal = search.make_goal(trainer["monitor"], trainer["evaluate_every"])
    eval_steps = (trainer["evaluate_every"], trainer["steps"])
    folder = Path(str(config["out"])).parent
    return stop_callback(folder, hydra.job.num, goal, search=search, eval_steps=eval_steps)


def predict_run_cost(config: DictConfig) -> dict[str, float]:
    """Predict what a training would take; return the numbers."""
    from genlab.commands.plan import plan

    run_config = applicable_options(config, list(HydraConfig.get().overrides.task))
    check_run_options(run_config)
    if run_config["resume"] is not None:
        raise UserError(
            "genlab plan is for a new run: give it the options of `genlab train`, without resume="
        )
    run_config, dataset, trainer = build_dataset_and_trainer(
        run_config, list(HydraConfig.get().overrides.task)
    )
    return plan(trainer, dataset, config=run_config)
