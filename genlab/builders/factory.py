"""The objects of a run, from its config as plain values: dataset, model, optimizer, trainer."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from genlab.config.instantiate import arguments, construct, locate
from genlab.errors import UserError, did_you_mean
from genlab.spec import Spec
from genlab.training.registry import TRAINERS

Plain = dict[str, Any]


def make_device(config: Plain, *, seed: int = 0):
    """Return the prepared device, with the global random state seeded for building a model."""
    import torch

    from genlab.distributed.device import Device

    device = construct(Device, config, "device").prepare()
    torch.manual_seed(seed)
    return device


def make_dataset(config: Plain):
    """Return the dataset that `config["dataset"]` names."""
    target = locate(config["dataset"], "dataset")
    if not callable(getattr(target, "batches", None)):
        raise UserError(
            f"dataset._target_={config['dataset']['_target_']} is no dataset: it has no batches()"
        )
    return construct(target, config["dataset"], "dataset")


def make_model(config: Plain, spec: Spec):
    """Return the model that `config["model"]` names, for data of `spec`."""
    from torch import nn

    target = locate(config["model"], "model")
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise UserError(f"model._target_={config['model']['_target_']} is no torch.nn.Module")
    return construct(target, config["model"], "model", spec)


def make_optimizer(config: Plain, device):
    """Return what makes an optimizer of parameters; fused into one kernel where PyTorch can."""
    import inspect

    import torch

    if config.get("optimizer") is None:
        return no_optimizer
    target = locate(config["optimizer"], "optimizer")
    if not (isinstance(target, type) and issubclass(target, torch.optim.Optimizer)):
        raise UserError(
            f"optimizer._target_={config['optimizer']['_target_']} is no torch.optim.Optimizer"
        )
    options = arguments(target, config["optimizer"], "optimizer", skip=1)
    if "fused" in inspect.signature(target).parameters and device.name in ("cpu", "cuda"):
        options.setdefault("fused", True)
    try:
        target([torch.nn.Parameter(torch.zeros(1, device=device.torch))], **options)
    except (
        ValueError
    ) as error:  # PyTorch checks ranges when it makes one: say so before the data is read
        raise UserError(f"optimizer: {error}") from error
    return partial(target, **options)


def no_optimizer(parameters):
    """Refuse to descend without an optimizer.

    Raises:
        UserError: always; a trainer that needs none never calls it.
    """
    raise UserError("this trainer descends, and there is no optimizer; set optimizer=adam")


def trainer_class(config: Plain):
    """Return the class that `trainer.name` names in the registry, and its options."""
    options = dict(config["trainer"])
    name = options.pop("name", None)
    if name not in TRAINERS:
        near = did_you_mean(str(name), TRAINERS)
        raise UserError(
            f"trainer.name={name}: no such trainer{near}; there are {', '.join(TRAINERS)}"
        )
    target = locate({"_target_": TRAINERS[name]}, "trainer")
    return target, construct(target.Options, options, "trainer")


def make_trainer(config: Plain, model, device, ranks=None):
    """Return the trainer that `trainer.name` names, of these processes or of all that there are."""
    target, options = trainer_class(config)
    return target(
        model,
        make_optimizer(config, device),
        options,
        seed=config["seed"],
        device=device,
        ranks=ranks,
    )


def settled(config: Plain, dataset, device) -> Plain:
    """Return the config with a number for `trainer.batch_size=auto`, found by trials that leave nothing behind."""
    from genlab.training.auto_batch_size import settle

    options = trainer_class(config)[1]
    if options.batch_size != "auto":
        return config
    with_size = lambda n: {**config, "trainer": {**config["trainer"], "batch_size": n}}  # noqa: E731
    make = lambda n, ranks: make_trainer(
        with_size(n), make_model(config, dataset.spec), device, ranks
    )  # noqa: E731
    return with_size(settle(make, dataset, device=device, accumulate=options.accumulate))


def assemble(
    config: Plain,
    overrides: list[str] | None = None,
    *,
    state: Plain | None = None,
    where: str = "",
):
    """Return the config with every number settled, its dataset, and its trainer, checked against each other.

    Args:
        overrides: of the command, for a part that has to be trained first.
        state: of a run that goes on, for the trainer to take over; `where` names that run's config.

    Raises:
        UserError: an option is wrong, the state is not that of the config's trainer, or the processes differ in any of it.
    """
    from genlab.builders.consistency import refuse_unlike
    from genlab.builders.pretrained import with_part
    from genlab.builders.resume import HOW, NAMES_DATA
    from genlab.commands.train import check
    from genlab.distributed.process_group import Ranks
    from genlab.runs.safe_load import agreeing, bounded

    device = make_device(config["device"], seed=config["seed"])
    config, part = with_part(config, overrides or [], begun=state is not None)
    dataset = make_dataset(config)
    weights = part and part.fit(dataset.spec)
    # before a message between processes has the size of what differs
    refuse_unlike(Ranks(), config, dataset, but={*HOW, *NAMES_DATA}, state=state, part=weights)
    config = settled(config, dataset, device)
    with bounded(state["model"]) if state else nullcontext():
        model = make_model(config, dataset.spec)
    if weights is not None:
        getattr(model, part.name).load_state_dict(weights)
    trainer = make_trainer(config, model, device)
    check(trainer, dataset, config)
    if state:
        with agreeing(where):
            trainer.load(state)
    return config, dataset, trainer
