"""Renames between the formats of run folders: old configs, checkpoints, records and overrides keep loading.

A run folder and a checkpoint carry a format number (`format`; without one it is 1). Each table below lists what was renamed
from one format to the next. The functions translate what an older genlab wrote; the tables also tell a user who types an old
name what it is called now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Plain = dict[str, Any]

FORMAT = 2

# --- format 1 -> 2 ----------------------------------------------------------------------------------------------------

# Dotted paths of classes and modules; the longest that fits is replaced.
TARGETS: dict[str, str] = {
    "genlab.metrics.features.content": "genlab.metrics.features.perceptual",
    "genlab.data.arrays": "genlab.data.npy_files",
    "genlab.data.bits": "genlab.data.binary_toy",
    "genlab.data.chosen": "genlab.data.class_subset",
    "genlab.data.decode": "genlab.data.image_decoding",
    "genlab.data.downloads": "genlab.data.torchvision_sets",
    "genlab.data.files": "genlab.data.image_files",
    "genlab.data.folder": "genlab.data.image_folder",
    "genlab.data.images": "genlab.data.image_dataset",
    "genlab.data.laws": "genlab.data.toy_distributions",
    "genlab.data.operators": "genlab.data.degradations",
    "genlab.data.order": "genlab.data.shuffling",
    "genlab.data.pairs": "genlab.data.degraded_pairs",
    "genlab.data.points": "genlab.data.toy_points",
    "genlab.data.preparation": "genlab.data.preprocessing",
    "genlab.data.samples": "genlab.data.external_samples",
    "genlab.data.sequences": "genlab.data.video",
    "genlab.data.shapes": "genlab.data.shapes2d",
    "genlab.data.sides": "genlab.data.domain_folders",
    "genlab.data.stacked": "genlab.data.stacked_mnist",
    "genlab.data.table": "genlab.data.tabular",
    "genlab.models.boltzmann.binary": "genlab.models.boltzmann.binary_units",
    "genlab.models.boltzmann.bound": "genlab.models.boltzmann.bounds",
    "genlab.models.classical.groups": "genlab.models.classical.class_conditional",
    "genlab.models.classical.items": "genlab.models.classical.full_batch",
    "genlab.models.diffusion.bound": "genlab.models.diffusion.vlb",
    "genlab.models.diffusion.frozen_text": "genlab.models.diffusion.pretrained_text_encoder",
    "genlab.models.diffusion.latent": "genlab.models.diffusion.latent_diffusion",
    "genlab.models.diffusion.ode": "genlab.models.diffusion.ode_likelihood",
    "genlab.models.diffusion.restore": "genlab.models.diffusion.inverse_problems",
    "genlab.models.flow.base": "genlab.models.flow.base_distribution",
    "genlab.models.gan.critic": "genlab.models.gan.discriminator",
    "genlab.models.gan.game": "genlab.models.gan.base",
    "genlab.models.gan.regularisers": "genlab.models.gan.regularizers",
    "genlab.models.vae.codebook_trainer": "genlab.models.vae.vq_vae_trainer",
    "genlab.models.vae.semi_trainer": "genlab.models.vae.m2_trainer",
    "genlab.nn.deviation": "genlab.nn.minibatch_stddev",
    "genlab.nn.embed": "genlab.nn.embeddings",
    "genlab.nn.patch": "genlab.nn.patchgan",
    "genlab.nn.skip_unet": "genlab.nn.pix2pix_unet",
    "genlab.nn.style": "genlab.nn.stylegan_layers",
    "genlab.nn.text": "genlab.nn.text_encoder",
    "genlab.training.device": "genlab.distributed.device",
}

# Whole sections of a config, and config groups on the command line: regulariser=r1 -> regularizer=r1.
SECTIONS: dict[str, str] = {}

# Options by their full (new) section and old name, whatever is trained: "trainer.clip" -> "grad_clip".
OPTIONS: dict[str, str] = {}

# Options of `trainer.` that only the trainers named here had under that name: {trainer: {old: new}}.
TRAINER_OPTIONS: dict[str, dict[str, str]] = {}

# Keywords of a class or function by its new dotted path: {"genlab.models.vae.vq_vae.VQVAE": {"codes": "num_codes"}}.
# They hold wherever the target is nested in a config. A module or package stands for everything in it.
TARGET_OPTIONS: dict[str, dict[str, str]] = {}

# Values that were renamed, by the last part of the new option's name: {"operator": {"grey": "gray"}}.
VALUES: dict[str, dict[str, str]] = {}

# Prefixes of names in a model's state_dict, by the new dotted path of the class, module or package:
# {"genlab.models.gan": {"critic.": "discriminator."}}. A prefix may stand in the middle of a name, after a dot.
STATE_PREFIXES: dict[str, dict[str, str]] = {}

# Keys of a checkpoint, and the names of its optimizers.
CHECKPOINT_KEYS: dict[str, str] = {}
OPTIMIZERS: dict[str, str] = {}

# Metrics and the rows that they give; a row's name may end in _<feature space>.
METRICS: dict[str, str] = {}
ROWS: dict[str, str] = {}

# Options of commands other than train: {"interpolate": {"how": "method"}}; "*" stands for all commands.
COMMAND_OPTIONS: dict[str, dict[str, str]] = {}

# Fields of `spec` in run.json.
SPEC_FIELDS: dict[str, str] = {}


# --- configs ----------------------------------------------------------------------------------------------------------


def migrate_target(target: str) -> str:
    """Return the present dotted path of a class or function that an older config names."""
    for old in sorted(TARGETS, key=len, reverse=True):
        if target == old or target.startswith(old + "."):
            return TARGETS[old] + target[len(old) :]
    return target


def target_options(target: str) -> dict[str, str]:
    """Return the renamed keywords of a target, those of its module and packages included."""
    found: dict[str, str] = {}
    for place, names in TARGET_OPTIONS.items():
        if target == place or target.startswith(place + "."):
            found |= names
    return found


def migrate_config(config: Plain, version: int) -> Plain:
    """Return the config of a run of format `version` with the present names."""
    if version >= FORMAT:
        return config
    config = {SECTIONS.get(key, key): value for key, value in config.items()}
    trainer = config.get("trainer")
    by_trainer = (
        TRAINER_OPTIONS.get(str(trainer.get("name")), {}) if isinstance(trainer, dict) else {}
    )
    return {
        key: _migrate_node(value, key, by_trainer if key == "trainer" else {})
        for key, value in config.items()
    }


def _migrate_node(node: Any, path: str, names: dict[str, str] | None = None) -> Any:
    if isinstance(node, list):
        if path.endswith(".train") and all(isinstance(word, str) for word in node):
            return migrate_overrides(node, 1)  # the command of a part that is trained first
        return [_migrate_node(value, path) for value in node]
    if not isinstance(node, dict):
        return (
            VALUES.get(path.rpartition(".")[2], {}).get(node, node)
            if isinstance(node, str)
            else node
        )
    names = dict(names or {})
    target = node.get("_target_")
    if isinstance(target, str):
        target = migrate_target(target)
        names |= target_options(target)
        node = node | {"_target_": target}
    migrated = {}
    for key, value in node.items():
        new = names.get(key, OPTIONS.get(f"{path}.{key}", key))
        migrated[new] = _migrate_node(value, f"{path}.{new}")
    return migrated


# --- command lines ----------------------------------------------------------------------------------------------------


def renamed_option(option: str, command: str = "train") -> list[str]:
    """Return the present names of an option that was renamed, most likely first; none if it was not.

    Args:
        option: as it was typed, without `+` and `~`: "trainer.clip", "model.codes", "regulariser".
        command: the command that it was given to.
    """
    section, _, rest = option.partition(".")
    section = SECTIONS.get(section, section)
    parent, _, last = (f"{section}.{rest}" if rest else section).rpartition(".")
    found: list[str] = []
    commands = COMMAND_OPTIONS.get(command, {}) | COMMAND_OPTIONS.get("*", {})
    if not parent:
        found += [commands[last]] if last in commands else []
    elif f"{parent}.{last}" in OPTIONS:
        found.append(f"{parent}.{OPTIONS[f'{parent}.{last}']}")
    elif parent == "trainer":
        found += [f"trainer.{names[last]}" for names in TRAINER_OPTIONS.values() if last in names]
    else:
        found += [f"{parent}.{names[last]}" for names in TARGET_OPTIONS.values() if last in names]
    if not found and section != option.partition(".")[0]:
        found.append(f"{section}.{rest}" if rest else section)
    return list(dict.fromkeys(found))


def migrate_overrides(words: list[str], version: int) -> list[str]:
    """Return the overrides of a command of format `version` with the present names.

    A name that became several (`trainer.k`) takes the one of the trainer or target that the words choose, else the first.
    """
    return [_migrate_word(word) for word in words] if version < FORMAT else words


def _migrate_word(word: str) -> str:
    key, equals, value = word.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    found = renamed_option(key[len(sign) :])
    new = found[0] if found else key[len(sign) :]
    return f"{sign}{new}{equals}{VALUES.get(new.rpartition('.')[2], {}).get(value, value)}"


# --- checkpoints and records ------------------------------------------------------------------------------------------


def migrate_checkpoint(state: Plain, target: str) -> Plain:
    """Return a checkpoint of an older format with the present names.

    Args:
        target: the present dotted path of the model's class.
    """
    version = state.get("format", 1)
    if not isinstance(version, int) or version >= FORMAT:
        return state
    state = {CHECKPOINT_KEYS.get(key, key): value for key, value in state.items()}
    for key in ("model", "ema"):
        if isinstance(state.get(key), dict):
            state[key] = {
                migrate_state_key(name, target): value for name, value in state[key].items()
            }
    if isinstance(state.get("optimizers"), dict):
        state["optimizers"] = {OPTIMIZERS.get(k, k): v for k, v in state["optimizers"].items()}
    return state | {"format": FORMAT}


def migrate_state_key(name: str, target: str) -> str:
    """Return the present name of an entry of a model's state_dict."""
    for place, prefixes in STATE_PREFIXES.items():
        if target == place or target.startswith(place + "."):
            for old, new in prefixes.items():
                name = f".{name}".replace(f".{old}", f".{new}")[1:]
    return name


def migrate_info(info: Plain) -> Plain:
    """Return a run.json of an older format with the present names."""
    if not isinstance(info.get("format", 1), int) or info.get("format", 1) >= FORMAT:
        return info
    if isinstance(info.get("spec"), dict):
        info = info | {
            "spec": {SPEC_FIELDS.get(key, key): value for key, value in info["spec"].items()}
        }
    if isinstance(info.get("choices"), dict):
        info = info | {"choices": {SECTIONS.get(k, k): v for k, v in info["choices"].items()}}
    return info


def migrate_row_name(name: str) -> str:
    """Return the present name of a metric's row, which may end in the name of a feature space."""
    for old in sorted(ROWS, key=len, reverse=True):
        if name == old or name.startswith(old + "_"):
            return ROWS[old] + name[len(old) :]
    return name


def migrate_record(record: Plain) -> Plain:
    """Return a metrics.json of an older format with the present names."""
    rows = record.get("metrics")
    if not isinstance(rows, list) or record.get("format", 1) != 1:
        return record
    return record | {"metrics": list(_migrate_rows(rows))}


def _migrate_rows(rows: list[Any]) -> Iterator[Any]:
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("name"), str):
            metric = row.get("metric")
            yield row | {
                "name": migrate_row_name(row["name"]),
                "metric": METRICS.get(str(metric), metric),
            }
        else:
            yield row
