"""Sets of options that several modules treat in the same way, and keys of overrides.

Some options say where and how a run is trained, not what is trained. Sweeps, resumes and
comparisons ignore these when they ask whether two runs are the same. The sets are defined here
once; a module that needs a different set derives it from these and says why.
"""

from __future__ import annotations

from collections.abc import Iterable

# Root keys: where and how a run is trained, not what is trained. Two configs that differ only in
# these describe the same run.
RUNTIME_KEYS = frozenset({"out", "resume", "device", "debug", "trusted_packages"})

# Dotted keys that name the place of the data. The data itself is compared by its fingerprint.
DATA_PATH_KEYS = frozenset(
    {"dataset.root", "dataset.path", "dataset.base.root", "dataset.base.path"}
)

# Dotted keys of the download of a public dataset. They differ from `dataset.path`, which selects
# the user's own data: another path is another dataset, another root is the same one.
DOWNLOAD_KEYS = frozenset({"dataset.root", "dataset.download"})

# Dotted keys that a resumed run may change: how long it trains, where its data is, and whether its
# processes may be more than before.
RESUMABLE_KEYS = DATA_PATH_KEYS | {
    "trainer.steps",
    "trainer.max_minutes",
    "trainer.patience",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.shard_statistics",
}

# Last names of the options whose value is a file or a folder, of every command and config. A
# leading `~` of their values is the home folder, and answers are compared by their absolute path.
PATH_NAMES = frozenset(
    {"run", "runs", "resume", "out", "path", "root", "samples", "truth", "images", "mask", "edit"}
    | {"input_dir", "input_file", "output_dir", "output_file", "figures_dir", "text_encoder"}
)


# Last names of the options whose value is a text of the user's own, with commas and colons.
TEXT_NAMES = frozenset({"prompt", "text"})


def is_text_option(key: str) -> bool:
    """Whether an option, given by its dotted key, takes a text of the user's own."""
    return key.rpartition(".")[2] in TEXT_NAMES


def is_path_option(key: str) -> bool:
    """Whether an option, given by its dotted key, takes the name of a file or a folder."""
    return key.rpartition(".")[2] in PATH_NAMES


def override_key(override: str) -> str:
    """Return the dotted key of an override: "+device.threads=2" -> "device.threads"."""
    return override.lstrip("+~").partition("=")[0]


def root_key(key: str) -> str:
    """Return the root of a dotted key or of an override's key, without its package.

    "device.threads" -> "device", "dataset@dataset.base" -> "dataset".
    """
    return override_key(key).partition(".")[0].partition("@")[0]


def is_runtime_override(override: str) -> bool:
    """Whether an override says where and how a run is trained, not what is trained."""
    return root_key(override) in RUNTIME_KEYS


def non_runtime_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that say what is trained, in their order."""
    return [override for override in overrides if not is_runtime_override(override)]


def quote_override_value(value: object) -> str:
    """Return a value, such as a path, as the quoted value of an override.

    Hydra then takes every character as it is.
    """
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
