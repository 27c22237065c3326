"""From a composed config to the objects that do the work. With `cli.py` the only importer of hydra and omegaconf."""

from __future__ import annotations

import platform
import subprocess
import time
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genlab import __version__
from genlab.arguments import arguments, construct, locate, refuse_targets
from genlab.errors import UserError, did_you_mean
from genlab.spec import Count, Spec
from genlab.training.registry import TRAINERS
from genlab.training.run import RunFolder

Plain = dict[str, Any]

# What may differ when a run goes on: how long and where, never what is trained.
MAY_CHANGE = {"trainer.steps", "trainer.max_time", "trainer.save_every", "trainer.keep", "dataset.root", "dataset.path"}


def plain(config: DictConfig) -> Plain:
    """Return a config as plain containers, every interpolation resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


# --- the objects ------------------------------------------------------------------------------------------------------


def make_device(config: Plain, *, seed: int = 0):
    """Return the prepared device, with the global random state seeded for building a model."""
    import torch

    from genlab.training.device import Device

    device = construct(Device, config, "device").prepare()
    torch.manual_seed(seed)
    return device


def make_dataset(config: Plain):
    """Return the dataset that `config["dataset"]` names."""
    target = locate(config["dataset"], "dataset")
    if not callable(getattr(target, "batches", None)):
        raise UserError(f"dataset._target_={config['dataset']['_target_']} is no dataset: it has no batches()")
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

    target = locate(config["optimizer"], "optimizer")
    if not (isinstance(target, type) and issubclass(target, torch.optim.Optimizer)):
        raise UserError(f"optimizer._target_={config['optimizer']['_target_']} is no torch.optim.Optimizer")
    options = arguments(target, config["optimizer"], "optimizer", skip=1)
    if "fused" in inspect.signature(target).parameters and device.name in ("cpu", "cuda"):
        options.setdefault("fused", True)
    try:
        target([torch.nn.Parameter(torch.zeros(1, device=device.torch))], **options)
    except ValueError as error:  # PyTorch checks ranges when it makes one: say so before the data is read
        raise UserError(f"optimizer: {error}") from error
    return partial(target, **options)


def make_trainer(config: Plain, model, device):
    """Return the trainer that `trainer.name` names in the registry."""
    options = dict(config["trainer"])
    name = options.pop("name")
    if name not in TRAINERS:
        near = did_you_mean(str(name), TRAINERS)
        raise UserError(f"trainer.name={name}: no such trainer{near}; there are {', '.join(TRAINERS)}")
    target = locate({"_target_": TRAINERS[name]}, "trainer")
    built = construct(target.Options, options, "trainer")
    return target(model, make_optimizer(config, device), built, seed=config["seed"], device=device)


def general(*, seed: Count, out: str | int, resume: str | int | None, allow: list[str], trainer: dict[str, Any]) -> None:
    """The types of the options that belong to no object."""


def read(folder: RunFolder) -> DictConfig:
    """Return a run's own config.

    Raises:
        UserError: its config.yaml is damaged.
    """
    from yaml import YAMLError

    try:
        return OmegaConf.create(folder.config())
    except YAMLError as error:
        raise UserError(f"{folder.path / 'config.yaml'} is unreadable: {' '.join(str(error).split())}") from error


def load_run(config: Plain):
    """Return the run that `config["run"]` names, its model rebuilt from its own config alone.

    Raises:
        UserError: no such run, a config that names foreign classes, an unreadable checkpoint.
    """
    from genlab.tasks.run import Run

    folder, checkpoint = RunFolder.find(config["run"])
    own = OmegaConf.to_container(read(folder), resolve=False)
    refuse_targets(own, allowed=tuple(config.get("allow") or ()), where=str(folder.path / "config.yaml"))
    info = folder.info()
    device = make_device(config.get("device") or {"name": "cpu"})
    state = folder.load(checkpoint)
    spec = Spec.from_json(info["spec"])
    model = make_model(own, spec)
    model.load_state_dict(state["ema"] or state["model"])
    return Run(
        folder, own, info, device.place(model).eval(), spec, device, state["step"], partial(make_dataset, own)
    )


# --- the commands -----------------------------------------------------------------------------------------------------


def train(config: DictConfig) -> dict[str, float] | None:
    """Train a model, or go on with a run; return its final numbers."""
    from genlab.training.ranks import Ranks

    given = plain(config)
    arguments(general, {key: given[key] for key in signature(general).parameters}, "")
    ranks = Ranks()
    hydra = HydraConfig.get()
    if config.resume is None:
        folder, own, state = None, given, None
    else:
        folder, checkpoint = RunFolder.find(config.resume)
        own = resumed(config, folder, list(hydra.overrides.task))
        state = folder.load(checkpoint) if checkpoint or folder.steps() else None  # killed before its first checkpoint
    try:
        return _train(own, folder, state, ranks, hydra)
    finally:
        ranks.close()


def _train(own: Plain, folder: RunFolder | None, state: Plain | None, ranks, hydra) -> dict[str, float] | None:
    from genlab.tasks.train import check, train

    if folder is None and ranks.first:
        out = Path(hydra.runtime.output_dir if hydra.mode is RunMode.MULTIRUN else str(own["out"]))
        RunFolder(out).refuse_if_there()
    device = make_device(own["device"], seed=own["seed"])
    dataset = make_dataset(own)
    model = make_model(own, dataset.spec)
    trainer = make_trainer(own, model, device)
    check(trainer, dataset)
    if state:
        trainer.load(state)
        if trainer.at >= trainer.options.steps:
            if ranks.first:  # no error: a scheduler that starts a job again must not see it fail
                print(f"{folder.path} is done: {trainer.at:,} steps; give a larger trainer.steps= to go on")
            return None
    elif folder is None and ranks.first:
        info = run_info(own, dataset, device, dict(hydra.runtime.choices), list(hydra.overrides.task))
        folder = RunFolder.create(out, config=OmegaConf.to_yaml(own), info=info)
    return train(trainer, dataset, folder, config=own)


def resumed(config: DictConfig, folder: RunFolder, overrides: list[str]) -> Plain:
    """Return a run's own config, with the overrides that a resume may give.

    Raises:
        UserError: an override would change what is trained.
    """
    own = read(folder)
    refuse_targets(OmegaConf.to_container(own, resolve=False), allowed=tuple(config.allow or ()), where=str(folder.path))
    choices = folder.info()["choices"]
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("resume", "debug", "allow"):
            continue
        if key == "out":
            raise UserError("out= is for a new run: a resume goes on in the run's own folder")
        if key == "device":
            own.device = config.device
        elif key in MAY_CHANGE or key.startswith("device."):
            OmegaConf.update(own, key, OmegaConf.select(config, key))
        elif key in choices:
            if value != str(choices[key]):
                own_way = f"the run's {key}={choices[key]}; a resume goes on with the run's own config"
                raise UserError(f"{key}={value} differs from {own_way}")
        elif OmegaConf.select(config, key) != OmegaConf.select(own, key):
            raise UserError(
                f"{override} differs from the run's {key}={OmegaConf.select(own, key)}; a resume may only change "
                f"{', '.join(sorted(MAY_CHANGE))} and device"
            )
    return plain(own)


def run_info(own: Plain, dataset, device, choices: Plain, overrides: list[str]) -> Plain:
    """Return what run.json says of a run's origin."""
    import torch

    return {
        "model": choices["model"],
        "dataset": choices["dataset"],
        "choices": {k: v for k, v in choices.items() if not k.startswith("hydra")},
        "command": ["genlab", "train", *overrides],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "spec": dataset.spec.to_json(),
        "device": str(device),
        "versions": {"genlab": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
        "seed": own["seed"],
    }


def commit() -> str | None:
    """Return the commit of genlab's own checkout, or None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    said = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or None


def sample(config: DictConfig) -> None:
    """Draw from a run's model."""
    from genlab.tasks.sample import sample

    ask(sample, plain(config))


def evaluate(config: DictConfig) -> dict[str, float]:
    """Measure a run."""
    from genlab.tasks.evaluate import evaluate

    return ask(evaluate, plain(config))


def tasks(config: DictConfig) -> None:
    """Print what can be asked of a run."""
    from genlab.tasks.tasks import tasks

    ask(tasks, plain(config))


def ask(task, config: Plain):
    """Check a task's options against its signature, load the run, and do it."""
    own = {k: v for k, v in config.items() if k not in ("run", "device", "allow", "debug")}
    options = arguments(task, own, "", skip=1)
    return task(load_run(config), **options)
