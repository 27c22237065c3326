"""Load the model of another run that a model is built around: a codec or a teacher.

A latent diffusion model works on the codes of an autoencoder (`codec`); reflow straightens the
paths of another flow (`teacher`). Either names a run, or is trained first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.config.override_keys import root_key
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.spec import DataSpec
from genlab.sweeps.train_missing import train_missing_runs
from genlab.untrusted.configs import refuse_untrusted_config

if TYPE_CHECKING:
    from torch import nn

# A root key of the recipe, and the attribute of its model.
PART_NAMES = ("codec", "teacher")
PART_RUNS_FOLDER = Path("outputs/parts")
# Sections whose overrides apply to the training of the part too.
SHARED_SECTIONS = ("dataset", "preprocess", "device", "seed")
# Options of the data that must be those of the part, and that it sets where they are left open.
SHARED_DATA_OPTIONS = ("size", "range", "binarize", "dequantize")


@dataclass(frozen=True)
class PretrainedPart:
    """The model of another run, to be a submodule of this one.

    Attributes:
        name: of the submodule.
        path: of the other run's folder.
        spec: of the data that it was trained on.
        weights: its state_dict.
    """

    name: str
    path: Path
    spec: DataSpec
    weights: dict[str, Any]

    def weights_for_spec(self, spec: DataSpec) -> dict[str, Any]:
        """Return the weights.

        Raises:
            UserError: the data of `spec` has another format than the data of the part.
        """
        theirs, ours = describe_data_format(self.spec), describe_data_format(spec)
        if theirs != ours:
            raise UserError(
                f"{self.path} was trained on {theirs}, but this data is {ours}; leave preprocess= "
                "out to preprocess the data as it was there, or choose its dataset="
            )
        return self.weights

    def load_weights_into(self, module: nn.Module) -> None:
        """Load the weights.

        Raises:
            UserError: they do not fit the module.
        """
        from genlab.runs.safe_load import explain_checkpoint_mismatch
        from genlab.untrusted.states import check_weights

        with explain_checkpoint_mismatch(str(self.path / "config.yaml")):
            check_weights(self.weights, module.state_dict(), "model")
            module.load_state_dict(self.weights)


def describe_data_format(spec: DataSpec) -> str:
    """Return in words the data format that a part and the model around it must share."""
    text = f"{spec.kind} of shape {list(spec.shape)}"
    if spec.kind != "image":
        return text
    levels = ", binary" if spec.levels == 2 else ", dequantized" if spec.dequantized else ""
    return f"{text} in [{spec.range[0]:g}, {spec.range[1]:g}]{levels}"


def pretrained_part_name(config: dict[str, Any]) -> str | None:
    """Return the name of the part that comes from another run, or None."""
    return next((name for name in PART_NAMES if config.get(name)), None)


def resolve_pretrained_part(
    config: dict[str, Any], overrides: list[str], *, has_checkpoint: bool = False
) -> tuple[dict[str, Any], PretrainedPart | None]:
    """Return the config with the part's architecture in `model.<part>`, and the part.

    `<part>.run` names a run. If it is null, a run is trained by `<part>.train`, overrides of
    `genlab train`, or found if it is trained already. A run that resumes from a checkpoint needs
    neither: its own config has the part's architecture and its checkpoint the weights.

    Args:
        overrides: of this command; those of the data apply to the part's training too.
        has_checkpoint: whether the run resumes from a checkpoint.

    Returns:
        The config and the part; the unchanged config and None without a part to load.

    Raises:
        UserError: the part could not be trained, or is not a run.
    """
    name = pretrained_part_name(config)
    if name is None or has_checkpoint:
        return config, None
    options = config[name]
    where = options["run"]
    if where is None and name in config["model"]:
        # The config of a run without a checkpoint, which genlab itself does not write like this.
        raise UserError(
            f"model.{name} was taken from a run, but {name}.run does not name it; "
            f"give {name}.run=<run folder>"
        )
    if where is None:
        shared = [override for override in overrides if root_key(override) in SHARED_SECTIONS]
        group = ProcessGroup()
        if group.is_main:
            train = {name: [*options["train"], *shared]}
            columns, _ = train_missing_runs(train=train, folder=PART_RUNS_FOLDER)
            where = str(columns[0].run)
        where = group.broadcast(where)
    folder, checkpoint = RunFolder.find_run_and_checkpoint(where)
    part_config = folder.read_config("model", "dataset", "preprocess")
    refuse_untrusted_config(
        part_config,
        allowed=tuple(config.get("trusted_packages") or ()),
        where=str(folder.path / "config.yaml"),
    )
    state = folder.load_checkpoint(checkpoint)
    config = insert_pretrained_config(config, part_config, name)
    config[name] = {**options, "run": str(folder.path)}
    weights = state["ema"] or state["model"]
    return config, PretrainedPart(name, folder.path, folder.spec(), weights)


def insert_pretrained_config(
    config: dict[str, Any], part_config: dict[str, Any], name: str
) -> dict[str, Any]:
    """Return a config with the part's model in `model.<name>` and the part's data options.

    Data options that are set in `config` keep their values.
    """
    data_options = {**part_config["preprocess"], **part_config["dataset"]}
    defaults = {key: data_options[key] for key in SHARED_DATA_OPTIONS if key in data_options}

    def fill_unset_options(options: dict[str, Any]) -> dict[str, Any]:
        filled: dict[str, Any] = {}
        for key, value in options.items():
            if isinstance(value, dict):  # a dataset inside of a dataset
                filled[key] = fill_unset_options(value)
            else:
                filled[key] = defaults[key] if value is None and key in defaults else value
        return filled

    data = {key: fill_unset_options(config[key]) for key in ("dataset", "preprocess")}
    model = {**config["model"], name: {**part_config["model"], "_partial_": True}}
    return {**config, **data, "model": model}
