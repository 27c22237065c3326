"""Build the objects of a run from its config: dataset, model, optimizer and trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from genlab.abilities import abilities
from genlab.config.instantiate import (
    import_target,
    instantiate,
    parameters_and_type_hints,
    validate_kwargs,
)
from genlab.config.recipes import nearest_recipe_names, nearest_recipes_with
from genlab.errors import UserError, did_you_mean
from genlab.spec import DataSpec
from genlab.training.registry import TRAINERS

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from genlab.distributed.device import Device
    from genlab.distributed.process_group import ProcessGroup
    from genlab.model import GenerativeModel
    from genlab.training.trainer import Trainer

Plain = dict[str, Any]
OptimizerFactory = Callable[..., "Optimizer"]


def make_device(config: Plain, *, seed: int = 0) -> Device:
    """Return the prepared device, and seed the global random state for building a model."""
    import torch

    from genlab.distributed.device import Device

    device = instantiate(Device, config, "device").configure_torch()
    torch.manual_seed(seed)
    return device


def pass_on_options(dataset: Plain) -> Plain:
    """Return a dataset's config with the options that it sets in the dataset inside of it.

    An example is the size of patches, which the inner dataset needs to read its files. Options that
    are set already, or that the inner dataset does not have, stay as they are.
    """
    for option, path in getattr(import_target(dataset, "dataset"), "passed_on", {}).items():
        inner, _, name = path.rpartition(".")
        node = dataset.get(inner)
        if dataset.get(option) is None or not isinstance(node, dict) or node.get(name) is not None:
            continue
        known = parameters_and_type_hints(import_target(node, f"dataset.{inner}"))[0]
        if name in {parameter.name for parameter in known}:
            dataset = dataset | {inner: node | {name: dataset[option]}}
    return dataset


def pass_on_in_config(config: Plain) -> Plain:
    """Return a config whose dataset has passed its options on to each inner dataset.

    A content loss has such a copy, the images that its classifier is trained on.
    """
    dataset = pass_on_options(config["dataset"])
    changed = [
        (config["dataset"][key], value)
        for key, value in dataset.items()
        if value is not config["dataset"][key]
    ]

    def with_changes(node: Any) -> Any:
        for old, new in changed:
            if node == old:
                return new
        if isinstance(node, dict):
            return {key: with_changes(value) for key, value in node.items()}
        return node

    return with_changes(config) if changed else config


def make_dataset(config: Plain) -> Any:
    """Return the dataset that `config["dataset"]` names."""
    config = config | {"dataset": pass_on_options(config["dataset"])}
    target = import_target(config["dataset"], "dataset")
    if not callable(getattr(target, "batches", None)):
        name = config["dataset"]["_target_"]
        raise UserError(f"dataset._target_={name} is not a data set: it lacks the method batches()")
    return instantiate(target, config["dataset"], "dataset")


def make_model(config: Plain, spec: DataSpec) -> GenerativeModel:
    """Return the model that `config["model"]` names, for data of `spec`."""
    from torch import nn

    from genlab.model import GenerativeModel

    target = import_target(config["model"], "model")
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        name = config["model"]["_target_"]
        raise UserError(f"model._target_={name} is not a subclass of genlab.model.GenerativeModel")
    if not issubclass(target, GenerativeModel):
        # A user's plain nn.Module gets the defaults of the model contract.
        bases = (target, GenerativeModel)
        target = type(target.__name__, bases, {"__module__": target.__module__})
    refuse_table_for_other_models(target, spec)
    refuse_series_for_other_models(target, spec)
    refuse_missing_values_for_other_models(target, spec)
    return instantiate(target, config["model"], "model", spec)


def refuse_table_for_other_models(model: type[GenerativeModel], spec: DataSpec) -> None:
    """Refuse a table with categories for a model that takes numbers for distances.

    Raises:
        UserError: names the recipes that model tables.
    """
    if spec.kind != "table" or model.takes_tables:
        return
    names = nearest_recipe_names(lambda recipe: recipe.model.takes_tables, "table")
    raise UserError(
        f"{model.__name__} does not model tables with categories; models that do: "
        f"{', '.join(names)}; dataset=table gives a table of numbers to other models"
    )


def refuse_missing_values_for_other_models(model: type[GenerativeModel], spec: DataSpec) -> None:
    """Refuse items with missing values for a model that cannot be trained on them.

    Raises:
        UserError: names the recipes that can, and the option that leaves out such rows.
    """
    if not spec.has_missing or model.takes_missing_values:
        return
    names = nearest_recipe_names(lambda recipe: recipe.model.takes_missing_values, "")
    raise UserError(
        f"{model.__name__} cannot be trained on rows with missing cells; models that can: "
        f"{', '.join(names)}; dataset.keep_missing=false dataset.drop_missing=true leaves out "
        "these rows"
    )


def refuse_series_for_other_models(model: type[GenerativeModel], spec: DataSpec) -> None:
    """Refuse windows of a series for a model that does not predict their future.

    Raises:
        UserError: names the recipes that do.
    """
    if spec.kind != "series" or "forecast" in abilities(model):
        return
    names = ", ".join(nearest_recipes_with("forecast", "series"))
    raise UserError(
        f"{model.__name__} does not model series; models that do: {names}; dataset=table gives the "
        "rows of a table to other models, without their order"
    )


def make_optimizer(config: Plain, device: Device) -> OptimizerFactory:
    """Return a function that makes the optimizer of some parameters, fused where PyTorch can."""
    import torch

    if config.get("optimizer") is None:
        return raise_missing_optimizer
    target = import_target(config["optimizer"], "optimizer")
    if not (isinstance(target, type) and issubclass(target, torch.optim.Optimizer)):
        name = config["optimizer"]["_target_"]
        raise UserError(f"optimizer._target_={name} is not a torch.optim.Optimizer")
    options = validate_kwargs(target, config["optimizer"], "optimizer", skip=1)
    if "fused" in inspect.signature(target).parameters and device.name in ("cpu", "cuda"):
        options.setdefault("fused", True)
    try:  # PyTorch checks ranges in the constructor: report them before the data is read
        target([torch.nn.Parameter(torch.zeros(1, device=device.torch))], **options)
    except ValueError as error:
        raise UserError(f"optimizer: {error}") from error
    return partial(target, **options)


def raise_missing_optimizer(*args: Any, **kwargs: Any) -> Optimizer:
    """Stand in for an optimizer where none is configured.

    Raises:
        UserError: always; a trainer that needs no optimizer never calls it.
    """
    raise UserError("this trainer needs an optimizer, but optimizer=null; set optimizer=adam")


def trainer_class_and_options(config: Plain) -> tuple[type[Trainer], Any]:
    """Return the class that `trainer.name` names in the registry, and its options."""
    options = dict(config["trainer"])
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in TRAINERS:
        near = did_you_mean(str(name), TRAINERS)
        raise UserError(f"trainer.name={name} does not exist{near}; choose {', '.join(TRAINERS)}")
    target = import_target({"_target_": TRAINERS[name]}, "trainer")
    return target, instantiate(target.Options, options, "trainer")


def make_trainer(
    config: Plain, model: GenerativeModel, device: Device, group: ProcessGroup | None = None
) -> Trainer:
    """Return the trainer that `trainer.name` names.

    Args:
        group: the processes that train together; None for all that there are.
    """
    target, options = trainer_class_and_options(config)
    return target(
        model,
        make_optimizer(config, device),
        options,
        seed=config["seed"],
        device=device,
        group=group,
    )


def resolve_auto_batch_size(config: Plain, dataset: Any, device: Device) -> Plain:
    """Return the config with the number that trials find for `trainer.batch_size=auto`."""
    from genlab.training.auto_batch_size import find_batch_size

    options = trainer_class_and_options(config)[1]
    if options.batch_size != "auto":
        return config

    def with_batch_size(size: int) -> Plain:
        return {**config, "trainer": {**config["trainer"], "batch_size": size}}

    def make_trial(size: int, group: ProcessGroup) -> Trainer:
        model = make_model(config, dataset.spec)
        return make_trainer(with_batch_size(size), model, device, group)

    found = find_batch_size(
        make_trial, dataset, device=device, grad_accum_steps=options.grad_accum_steps
    )
    return with_batch_size(found)


def fit_recipe(config: Plain, dataset: Any, overrides: list[str]) -> tuple[Plain, Any]:
    """Return the config and the dataset with the preprocessing that suits the images.

    The change is one of the notes of the dataset.
    """
    from genlab.builders.fit_to_data import base_images, fit_to_data

    fit = fit_to_data(config, dataset, overrides)
    if not fit.options:
        return config, dataset
    images = base_images(dataset)
    if images is not None and images is dataset:  # it is not read again
        preprocess = fit.config["preprocess"]
        dataset.set_binarize_and_dequantize(
            binarize=preprocess["binarize"], dequantize=preprocess["dequantize"]
        )
    else:
        dataset = make_dataset(fit.config)
        images = base_images(dataset)
    assert images is not None
    images.notes.append(fit.note)
    return fit.config, dataset


def build_dataset_and_trainer(
    config: Plain,
    overrides: list[str] | None = None,
    *,
    is_new: bool = True,
    state: Plain | None = None,
    where: str = "",
) -> tuple[Plain, Any, Trainer]:
    """Return the config with every number resolved, its dataset and its trainer.

    Args:
        overrides: of the command, for a codec or teacher that has to be trained first, and because
            what is typed is not changed to fit the data.
        is_new: the recipe is fitted to the data; the config of a run that continues is kept.
        state: the checkpoint of a run that continues, loaded into the trainer.
        where: the config file of that run, for messages.

    Raises:
        UserError: an option is wrong, the state does not fit the config, or the ranks differ.
    """
    from genlab.builders.pretrained import resolve_pretrained_part
    from genlab.builders.rank_agreement import check_ranks_agree
    from genlab.commands.train import refuse_failing_training_options
    from genlab.distributed.process_group import ProcessGroup
    from genlab.runs.safe_load import (
        explain_checkpoint_mismatch,
        limit_allocation,
        limit_to_machine,
    )

    device = make_device(config["device"], seed=config["seed"])
    config, part = resolve_pretrained_part(
        config, overrides or [], has_checkpoint=state is not None
    )
    dataset = make_dataset(config)
    if is_new and part is None:
        config, dataset = fit_recipe(config, dataset, overrides or [])
    weights = part.weights_for_spec(dataset.spec) if part else None
    # Before the first message whose size depends on what may differ between the ranks.
    check_ranks_agree(ProcessGroup(), config, dataset, state=state, part_weights=weights)
    config = resolve_auto_batch_size(config, dataset, device)
    with limit_allocation(state["model"]) if state else limit_to_machine(dataset.spec):
        model = make_model(config, dataset.spec)
    if part and weights is not None:
        part.load_weights_into(model.get_submodule(part.name))
    trainer = make_trainer(config, model, device)
    refuse_failing_training_options(trainer, dataset, config)
    if state:
        with explain_checkpoint_mismatch(where):
            trainer.load_state_dict(state)
    return config, dataset, trainer
