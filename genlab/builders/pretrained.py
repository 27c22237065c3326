"""Another run's model that a model is built around: by its folder, or one that is trained first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.config.instantiate import refuse_targets
from genlab.distributed.process_group import Ranks
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.spec import Spec
from genlab.sweeps import train_missing

# A recipe's root key, and the attribute of its model: an autoencoder in whose codes it works, a flow whose paths it straightens
PARTS = ("codec", "teacher")
FOLDER = Path("outputs/parts")
SHARED = ("dataset", "prepare", "device", "seed")  # overrides that a part's own training takes over
PREPARED = ("size", "range", "binarize", "dequantise")  # of the data, what a part knows it by


@dataclass(frozen=True)
class Part:
    """A run whose model is a part of another: the part's name, the run's folder, what its data was, and its weights."""

    name: str
    path: Path
    spec: Spec
    weights: dict[str, Any]

    def fit(self, spec: Spec) -> dict[str, Any]:
        """Return the weights, if the data is of the form that the part was trained on.

        Raises:
            UserError: it is of another; says of which.
        """
        if form(self.spec) != form(spec):
            raise UserError(f"{self.path} knows {form(self.spec)}, and this data is {form(spec)}; leave prepare= out, and the "
                            "data is prepared as it was there, or choose its dataset=")  # fmt: skip
        return self.weights


def form(spec: Spec) -> str:
    """Return in words what must be the same of the data of a part and of the model around it."""
    said = f"{spec.kind} of shape {list(spec.shape)}"
    if spec.kind != "image":
        return said
    levels = ", binary" if spec.levels == 2 else ", dequantised" if spec.dequantised else ""
    return f"{said} in [{spec.range[0]:g}, {spec.range[1]:g}]{levels}"


def part_of(config: dict[str, Any]) -> str | None:
    """Return the name of the part that another run brings; None: the model has none."""
    return next((name for name in PARTS if config.get(name)), None)


def with_part(
    config: dict[str, Any], overrides: list[str], *, begun: bool = False
) -> tuple[dict[str, Any], Part | None]:
    """Return the config with the part's architecture in `model.<part>`, and the part, if the config asks for one.

    `<part>.run` names a run. Without it `<part>.train`, overrides of `genlab train`, trains one, or finds it trained already.
    A run that goes on has its part's architecture in its own config, and the weights in its checkpoints.

    Args:
        overrides: of this command; those of the data go to the part's training too.
        begun: whether the run goes on from a checkpoint.

    Raises:
        UserError: the part could not be trained, or is no run.
    """
    name = part_of(config)
    if name is None or begun:
        return config, None
    asked = config[name]
    where = asked["run"]
    if (
        where is None and name in config["model"]
    ):  # a run without a checkpoint, whose config is not as genlab writes it
        raise UserError(
            f"model.{name} is that of a run, and {name}.run names none; give {name}.run=<run folder>"
        )
    if where is None:
        shared = [
            o
            for o in overrides
            if o.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in SHARED
        ]
        if (ranks := Ranks()).first:
            columns, _ = train_missing.prepare(
                train={name: [*asked["train"], *shared]}, folder=FOLDER
            )
            where = columns[0].run
        where = ranks.share(where)
    folder, checkpoint = RunFolder.find(where)
    own = folder.options("model", "dataset", "prepare")
    refuse_targets(
        own, allowed=tuple(config.get("allow") or ()), where=str(folder.path / "config.yaml")
    )
    state = folder.load(checkpoint)
    config = {**built_around(config, own, name), name: {**asked, "run": str(folder.path)}}
    return config, Part(name, folder.path, folder.spec(), state["ema"] or state["model"])


def built_around(config: dict[str, Any], own: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a config with the model of `own`, a part's, in `model.<name>`, and what it leaves open of `prepare` as there."""
    there = {
        key: value for key, value in {**own["prepare"], **own["dataset"]}.items() if key in PREPARED
    }

    def filled(options: dict[str, Any]) -> dict[str, Any]:
        left = {key: there[key] for key in options.keys() & there if options[key] is None}
        inside = {
            key: filled(value) for key, value in options.items() if isinstance(value, dict)
        }  # a data set of another
        return options | left | inside

    data = {key: filled(config[key]) for key in ("dataset", "prepare")}
    return {
        **config,
        **data,
        "model": {**config["model"], name: {**own["model"], "_partial_": True}},
    }
