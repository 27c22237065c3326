"""Renames between formats: old configs, checkpoints, records and commands keep loading.

A run folder and a checkpoint carry a format number (`format`; 1 if it is missing). Each table below
lists what was renamed from one format to the next. The functions translate what an older genlab
wrote; the tables also tell a user who types an old name what it is called now.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from genlab.config.group_targets import GroupTargets, find_group_targets
from genlab.errors import UserError

Plain = dict[str, Any]

FORMAT = 2

# --- format 1 -> 2 --------------------------------------------------------------------------------

# Dotted paths of classes and modules; the longest that matches is replaced.
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
    "genlab.models.diffusion.networks.of_codes": "genlab.models.diffusion.networks.latent_backbone",
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
    "genlab.data.bits.Bars": "genlab.data.binary_toy.BarsAndStripes",
    "genlab.metrics.features.content.Content": (
        "genlab.metrics.features.perceptual.PerceptualFeatures"
    ),
}

# Sections of a config, and config groups on the command line: regulariser=r1 -> regularizer=r1.
SECTIONS: dict[str, str] = {
    "allow": "trusted_packages",
    "regulariser": "regularizer",
    "prepare": "preprocess",
}

# Options by their present section and old name, whatever is trained: "trainer.clip": "grad_clip".
OPTIONS: dict[str, str] = {
    "sampler.churn": "churn_gamma",
    "sampler.interval": "guidance_interval",
    "sampler.noise_interval": "noise_sigma_interval",
    "sampler.threshold": "dynamic_threshold",
    "sampler.shift": "time_shift",
    "sampler.spacing": "timestep_spacing",
    "trainer.accumulate": "grad_accum_steps",
    "trainer.clip": "grad_clip",
    "trainer.ema": "ema_decay",
    "trainer.warmup": "lr_warmup_steps",
    "trainer.schedule": "lr_schedule",
    "trainer.drops": "lr_milestones",
    "trainer.max_time": "max_minutes",
    "trainer.keep": "keep_checkpoints",
    "preprocess.dequantise": "dequantize",
    "evaluate.k": "iwae_samples",
    "evaluate.terms": "elbo_timesteps",
}

# Options of `trainer.` that only some trainers had under that name: {trainer: {old: new}}.
TRAINER_OPTIONS: dict[str, dict[str, str]] = {
    "gan": {
        "k": "d_steps",
        "penalty_every": "lazy_reg_interval",
        "discriminator_rate": "d_lr_mult",
    },
    "progressive": {
        "k": "d_steps",
        "penalty_every": "lazy_reg_interval",
        "discriminator_rate": "d_lr_mult",
        "fade": "fade_steps",
        "hold": "hold_steps",
    },
    "translation": {
        "k": "d_steps",
        "penalty_every": "lazy_reg_interval",
        "discriminator_rate": "d_lr_mult",
        "starts": "stage_starts",
        "hold": "constant_fraction",
    },
    "classical": {"whole": "full_batch"},
    "rbm": {"k": "cd_steps"},
    "greedy": {"k": "cd_steps", "starts": "stage_starts", "rates": "stage_lr_mults"},
    "m2": {
        "labels": "num_labeled",
        "labelled": "labeled_batch_size",
        "share": "labeled_weight",
        "hold": "classifier_warmup_steps",
    },
    "debias_vae": {"refresh": "resample_every", "wait": "resample_after", "bins": "num_bins"},
    "reflow": {"pairs": "num_pairs"},
}

# Keywords of a class or function by its present dotted path, {path: {old: new}}, wherever it is
# nested in a config. A module or package stands for everything in it.
TARGET_OPTIONS: dict[str, dict[str, str]] = {
    "genlab.models.gan": {
        "deviation": "minibatch_stddev",
        "spectral": "spectral_norm",
        "clip": "weight_clip",
        "discriminator_maps": "discriminator_channels",
        "adversarial": "adversarial_weight",
    },
    "genlab.models.gan.gan.GAN": {"slope": "negative_slope"},
    "genlab.models.gan.acgan.ACGAN": {"maps": "channels"},
    "genlab.models.gan.resnet_gan.ResNetGAN": {"maps": "channels", "halvings": "num_downsamples"},
    "genlab.models.gan.infogan.InfoGAN": {
        "categories": "num_categories",
        "continuous": "num_continuous",
    },
    "genlab.models.gan.progan.ProGAN": {
        "maps": "channel_max",
        "base": "channel_base",
        "drift": "drift_weight",
    },
    "genlab.models.gan.stylegan2.StyleGAN2": {
        "maps": "channel_max",
        "base": "channel_base",
        "layers": "num_mapping_layers",
        "mapping_rate": "mapping_lr_mult",
        "mixing": "style_mixing_prob",
        "path_length": "path_length_weight",
        "w_decay": "w_avg_decay",
    },
    "genlab.models.gan.pix2pix.Pix2Pix": {"l1": "l1_weight"},
    "genlab.models.gan.cyclegan.CycleGAN": {
        "blocks": "num_blocks",
        "cycle": "cycle_weight",
        "identity": "identity_weight",
        "history": "history_size",
    },
    "genlab.models.gan.srgan.SRGAN": {
        "blocks": "num_blocks",
        "norm": "batch_norm",
        "kernel": "kernel_size",
        "stages": "staged_upsampling",
        "bicubic": "bicubic_residual",
        "error": "pixel_loss",
        "content": "content_features",
    },
    "genlab.models.gan.next_frame.NextFrame": {
        "error": "error_weight",
        "gradient_difference": "gradient_difference_weight",
    },
    "genlab.models.vae.iwae.IWAE": {"k": "iwae_samples"},
    "genlab.models.vae.vq_vae.VQVAE": {
        "blocks": "num_blocks",
        "codes": "num_codes",
        "decay": "codebook_decay",
        "dead": "dead_code_threshold",
    },
    "genlab.models.vae.dip_vae.DIPVAE": {
        "form": "variant",
        "off_diagonal": "off_diagonal_weight",
        "diagonal": "diagonal_weight",
    },
    "genlab.models.vae.debias_vae.DebiasVAE": {
        "classification": "classification_weight",
        "reconstruction": "reconstruction_weight",
        "regularisation": "kl_weight",
    },
    "genlab.models.autoencoder.dae.DenoisingAutoencoder": {"level": "noise_level"},
    "genlab.models.autoencoder.sparse_ae.SparseAutoencoder": {
        "weight": "sparsity_weight",
        "target": "sparsity_target",
    },
    "genlab.models.classical.bernoulli_mixture.BernoulliMixture": {"components": "num_components"},
    "genlab.models.classical.gmm.GMM": {"components": "num_components", "floor": "reg_covar"},
    "genlab.models.classical.kmeans.KMeans": {
        "components": "num_clusters",
        "passes": "max_iterations",
    },
    "genlab.models.boltzmann": {
        "chains": "num_chains",
        "temperatures": "num_temperatures",
        "sweeps": "num_sweeps",
        "updates": "num_updates",
        "scale": "init_std",
    },
    "genlab.models.diffusion": {
        "zero_snr": "zero_terminal_snr",
        "min_snr": "min_snr_gamma",
        "clip": "clip_x0",
        "drop_label": "label_dropout",
        "schedule": "noise_schedule",
        "steps": "sampling_steps",
        "times": "time_distribution",
        "encoder": "text_encoder",
    },
    "genlab.models.diffusion.networks": {
        "blocks": "num_blocks",
        "heads": "num_heads",
        "layers": "num_layers",
        "multipliers": "channel_mult",
        "attention": "attention_resolutions",
        "patch": "patch_size",
        "frequencies": "num_frequencies",
        "maps": "map_backbone",
        "vectors": "vector_backbone",
    },
    "genlab.models.flow": {
        "couplings": "num_couplings",
        "layers": "num_layers",
        "blocks": "num_blocks",
        "scales": "num_scales",
        "bins": "num_bins",
        "bound": "tail_bound",
        "kind": "layer_type",
    },
    "genlab.models.flow.glow": {
        "steps": "steps_per_scale",
    },
    "genlab.models.autoregressive": {
        "layers": "num_layers",
        "heads": "num_heads",
        "blocks": "num_blocks",
        "scales": "num_scales",
        "components": "num_components",
        "masks": "num_masks",
        "direct": "direct_connections",
        "kernel": "kernel_size",
        "first_kernel": "first_kernel_size",
    },
    "genlab.models.autoregressive.pixelcnn.PixelCNN": {
        "hidden": "head_channels",
    },
    "genlab.data": {
        "dequantise": "dequantize",
        "standardise": "standardize",
        "of": "base",
        "only": "classes",
        "keep": "class_fraction",
        "resident": "cache_in_memory",
        "resident_mb": "cache_limit_mb",
    },
    "genlab.data.fake.Fake": {
        "classes": "num_classes",
    },
    "genlab.data.toy_points.Points": {
        "held_out": "num_heldout",
        "modes": "num_modes",
        "side": "grid_size",
    },
    "genlab.data.video": {
        "past": "context_frames",
        "future": "target_frames",
        "held": "num_heldout",
        "digits": "num_digits",
        "every": "window_stride",
    },
    "genlab.data.captions": {
        "made_up": "nonsense_templates",
        "unseen": "heldout_templates",
        "names": "class_names",
    },
    "genlab.data.degraded_pairs.Pairs": {
        "share": "mask_ratio",
        "crop": "crop_size",
    },
    "genlab.data.tabular": {
        "skip": "skip_columns",
    },
}

# Values, by the last part of the option's present name: {"operator": {"grey": "gray"}}.
VALUES: dict[str, dict[str, str]] = {
    "method": {"complete": "inpaint"},
    "regularizer": {
        "deviation": "minibatch_stddev",
        "spectral": "spectral_norm",
        "clip": "weight_clip",
    },
    "pixel_loss": {"squared": "mse", "absolute": "l1"},
    "operator": {
        "grey": "gray",
    },
    "task": {
        "grey": "gray",
    },
}

# Prefixes of names in a model's state_dict, by the present dotted path of the class, module or
# package: {"genlab.models.gan": {"critic.": "discriminator."}}. Also in the middle, after a dot.
STATE_PREFIXES: dict[str, dict[str, str]] = {
    "genlab.models.classical": {
        "share": "class_probs",
        "centres": "centers",
        "covariance.axes": "covariance.eigenvectors",
        "covariance.spread": "covariance.eigenvalues",
        "covariance.noise": "covariance.noise_variance",
        "covariance.triangle": "covariance.scale_tril",
    },
    "genlab.models.diffusion.latent_diffusion": {"inner.": "diffusion."},
}

# Keys of a checkpoint, and the names of its optimizers.
CHECKPOINT_KEYS: dict[str, str] = {
    "pulled": "batches_consumed",
    "apart": "per_shard_buffers",
    "pending": "unlogged_losses",
}
OPTIMIZERS: dict[str, str] = {}

# Losses and other numbers in stats.jsonl.
LOSSES: dict[str, str] = {
    "advantage": "d_advantage",
    "advantage/source": "d_advantage/source",
    "advantage/target": "d_advantage/target",
    "spread": "diversity_ratio",
    "spread/source": "diversity_ratio/source",
    "spread/target": "diversity_ratio/target",
    "squared_error": "mse",
    "absolute_error": "l1",
}

# Metrics, and their rows; a row's name may end in _<feature space>.
METRICS: dict[str, str] = {
    "latent_use": "active_units",
    "modes": "mode_coverage",
    "class_modes": "class_coverage",
    "kernel_distance": "kid",
    "manifold": "prdc",
    "train_on_generated": "cas",
    "memorisation": "nn_memorization",
    "translation": "paired_translation",
    "cost": "efficiency",
    "purity": "cluster_purity",
}
ROWS: dict[str, str] = {
    "kernel_distance": "kid",
    "modes": "mode_count",
    "class_modes": "class_mode_count",
    "train_on_generated": "cas",
    "nll_gap": "kl_to_truth",
    "nll_ode_gap": "kl_to_truth_ode",
    "cycle_error_back": "cycle_error_backward",
    "unseen_prompt_accuracy": "heldout_prompt_accuracy",
}

# Fields of a row, and names of its conditions.
ROW_FIELDS: dict[str, str] = {"floor": "real_vs_real"}
CONDITIONS: dict[str, str] = {
    "floor": "real_vs_real",
    "terms": "elbo_timesteps",
    "K": "iwae_samples",
}

# Options of commands other than train: {"interpolate": {"how": "method"}}; "*" is all commands.
COMMAND_OPTIONS: dict[str, dict[str, str]] = {
    "sample": {"y": "label", "out": "output_dir"},
    "complete": {"out": "output_dir"},
    "reconstruct": {"out": "output_dir"},
    "encode": {"out": "output_dir"},
    "interpolate": {
        "how": "method",
        "between": "endpoints",
        "y": "label",
        "out": "output_dir",
    },
    "traverse": {"span": "range_sigma", "y": "label", "out": "output_dir"},
    "arithmetic": {"by": "group_by", "out": "output_dir"},
    "mix": {"y": "label", "out": "output_dir"},
    "project": {"weight": "prior_weight", "y": "label", "out": "output_dir"},
    "inpaint": {
        "in": "input_dir",
        "side": "half",
        "share": "mask_ratio",
        "how": "method",
        "weight": "prior_weight",
        "judge": "classify_fills",
        "out": "output_dir",
    },
    "impute": {"in": "input_file", "out": "output_dir"},
    "denoise": {"in": "input_dir", "out": "output_dir"},
    "translate": {
        "in": "input_dir",
        "back": "backward",
        "y": "label",
        "out": "output_dir",
    },
    "colorize": {"in": "input_dir", "out": "output_dir"},
    "superres": {"in": "input_dir", "down": "downsample", "out": "output_dir"},
    "forecast": {"films": "videos", "out": "output_dir"},
    "evaluate": {"k": "iwae_samples", "terms": "elbo_timesteps", "out": "output_file"},
    "likelihood": {"k": "iwae_samples", "terms": "elbo_timesteps", "out": "output_dir"},
    "anomaly": {"k": "iwae_samples", "terms": "elbo_timesteps", "out": "output_dir"},
    "classify": {
        "k": "iwae_samples",
        "terms": "elbo_timesteps",
        "by": "score",
        "out": "output_dir",
    },
    "compare": {"k": "iwae_samples", "terms": "elbo_timesteps", "out": "output_dir"},
}

# Fields of `spec` in run.json.
SPEC_FIELDS: dict[str, str] = {
    "classes": "num_classes",
    "dequantised": "dequantized",
}

# Options that were added with a default that reads data in another way: {class or module: {option:
# the value that a run had before}}. Runs without data.json are older than these options.
ADDED_OPTIONS: dict[str, Plain] = {
    "genlab.data.captions.CaptionedFolder": {"folder_rules": 1},
    "genlab.data.domain_folders": {"folder_rules": 1},
    "genlab.data.image_folder.ImageFolder": {"folder_rules": 1},
    "genlab.data.video.FramesFolder": {"folder_rules": 1},
    "genlab.data.tabular.Table": {"table_rules": 1},
    "genlab.data.text": {"normalize_newlines": False},
}

# --- format numbers -------------------------------------------------------------------------------


def refuse_newer_format(number: Any, path: Path) -> None:
    """Refuse a file whose format number is higher than this version's, or not a number.

    Raises:
        UserError: the file was written by a newer genlab, or its format is not a positive integer.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f"{path} is unreadable: its format is not a positive number")
    if number > FORMAT:
        raise UserError(
            f"{path} was written by a newer genlab (format {number}, and this version reads up to "
            f"format {FORMAT}); upgrade genlab"
        )


# --- configs --------------------------------------------------------------------------------------


def migrate_target(target: str) -> str:
    """Return the present dotted path of a class or function that an older config names."""
    for old in sorted(TARGETS, key=len, reverse=True):
        if target == old or target.startswith(old + "."):
            return TARGETS[old] + target[len(old) :]
    return target


def renamed_keywords(target: str) -> dict[str, str]:
    """Return the renamed keywords {old: new} of a class or function, by its present path."""
    return _renames_for_target(TARGET_OPTIONS, target)


def _renames_for_target(table: dict[str, dict[str, Any]], target: str) -> dict[str, Any]:
    """Return the entries of a table for a dotted path, its module and its packages, joined."""
    names: dict[str, Any] = {}
    for path, entries in table.items():
        if target == path or target.startswith(path + "."):
            names |= entries
    return names


def migrate_config(config: Plain, version: int) -> Plain:
    """Return the config of a run of format `version` with the present names."""
    if version >= FORMAT:
        return config
    config = {SECTIONS.get(key, key): value for key, value in config.items()}
    trainer = config.get("trainer")
    name = str(trainer.get("name")) if isinstance(trainer, dict) else ""
    of_trainer = TRAINER_OPTIONS.get(name, {})
    return {
        key: _migrate_node(value, key, of_trainer if key == "trainer" else {})
        for key, value in config.items()
    }


def keep_old_reading(node: Any) -> Any:
    """Return an older run's config with options that make its data read as it did then.

    An example is a text that was read with its byte-order mark.
    """
    if isinstance(node, list):
        return [keep_old_reading(value) for value in node]
    if not isinstance(node, dict):
        return node
    added = _renames_for_target(ADDED_OPTIONS, str(node.get("_target_")))
    return added | {key: keep_old_reading(value) for key, value in node.items()}


def is_before_joint_statistics(config: Plain) -> bool:
    """Whether a config was written before `trainer.shard_statistics` existed."""
    trainer = config.get("trainer")
    return isinstance(trainer, dict) and "shard_statistics" not in trainer


def keep_old_training(config: Plain, processes: Any) -> Plain:
    """Return the config of a run older than `trainer.shard_statistics` with its meaning.

    Such a run computed the statistics of a batch for each shard, and the gradients of D's penalties
    through them. It continues so.

    Args:
        processes: the number with which the run was started; anything else counts as 1.
    """
    trainer, model = config["trainer"], config.get("model")
    is_sharded = trainer.get("grad_accum_steps", 1) != 1 or processes not in (1, None)
    config = config | {"trainer": trainer | {"shard_statistics": is_sharded}}
    if not isinstance(model, dict):
        return config
    is_adversarial = str(model.get("_target_")).startswith("genlab.models.gan.")
    if is_adversarial and (model.get("r1") or model.get("gradient_penalty")):
        config = config | {"model": {"penalize_through_batch": True} | model}
    return config


def _migrate_node(node: Any, path: str, names: dict[str, str] | None = None) -> Any:
    """Return a part of a config with the present names.

    Args:
        path: its dotted key, with the present names.
        names: renamed keys of this mapping, beside those of its target and OPTIONS.
    """
    if isinstance(node, str):
        return _migrate_value(path, node)
    if isinstance(node, list):
        if path.endswith(".train") and all(isinstance(word, str) for word in node):
            return migrate_overrides(node, 1)  # the command that trains a codec or teacher
        return [_migrate_node(value, path) for value in node]
    if not isinstance(node, dict):
        return node
    names = dict(names or {})
    target = node.get("_target_")
    if isinstance(target, str):
        target = migrate_target(target)
        names |= renamed_keywords(target)
        node = node | {"_target_": target}
    migrated = {}
    for key, value in node.items():
        new = names.get(key, OPTIONS.get(f"{path}.{key}", key))
        migrated[new] = _migrate_node(value, f"{path}.{new}")
    return migrated


def _migrate_value(key: str, value: str) -> str:
    """Return the present form of an option's value, which may name a metric.

    Args:
        key: the present dotted key of the option.
        value: a word, or on a command line also a list in brackets.
    """
    last = key.rpartition(".")[2]
    if key == "trainer.monitor":
        return migrate_row_name(value)
    if last == "metrics":
        return re.sub(r"\w+", lambda match: METRICS.get(match[0], match[0]), value)
    if last not in VALUES:
        return value
    # In a sweep's list of values each word is one.
    return re.sub(r"[\w.-]+", lambda match: VALUES[last].get(match[0], match[0]), value)


# --- command lines --------------------------------------------------------------------------------


def present_option_names(option: str, command: str = "train") -> list[str]:
    """Return the present names of an option that was renamed, the most likely first.

    Returns [] if it was not renamed.

    Args:
        option: as it was typed, without `+` and `~`: "trainer.clip", "model.codes", "regulariser".
        command: the command that it was given to.
    """
    section, _, rest = option.partition(".")
    new_section = SECTIONS.get(section, section)
    parent, _, last = (f"{new_section}.{rest}" if rest else new_section).rpartition(".")
    options: list[str] = []
    if not parent:
        of_command = COMMAND_OPTIONS.get(command, {}) | COMMAND_OPTIONS.get("*", {})
        options += [of_command[last]] if last in of_command else []
    elif f"{parent}.{last}" in OPTIONS:
        options.append(f"{parent}.{OPTIONS[f'{parent}.{last}']}")
    elif parent == "trainer":
        options += [f"trainer.{names[last]}" for names in TRAINER_OPTIONS.values() if last in names]
    else:
        options += [f"{parent}.{names[last]}" for names in TARGET_OPTIONS.values() if last in names]
    if not options and new_section != section:
        options.append(f"{new_section}.{rest}" if rest else new_section)
    return list(dict.fromkeys(options))


def migrate_overrides(overrides: list[str], version: int) -> list[str]:
    """Return the overrides of a training command of format `version` with the present names.

    A name that became several (`trainer.k`) is resolved by the model, dataset and trainer that the
    overrides choose.
    """
    if version >= FORMAT:
        return overrides
    # Each pass knows more: first the groups, then those that a renamed option contains
    # (`dataset@dataset.of`), then all options.
    targets, renamed = GroupTargets(), overrides
    for _ in range(3):
        renamed = [_migrate_override(override, targets) for override in overrides]
        targets = find_group_targets(renamed)
    return renamed


def _migrate_override(override: str, targets: GroupTargets) -> str:
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    sign = key.removesuffix(name)
    prefix = "hydra.sweeper.params." if name.startswith("hydra.sweeper.params.") else ""
    group, at, package = name.removeprefix(prefix).partition("@")
    new = _migrate_key(group, targets) + at + _migrate_key(package, targets)
    return f"{sign}{prefix}{new}{equals}{_migrate_value(new, value)}"


def _migrate_key(key: str, targets: GroupTargets) -> str:
    """Return the present name of a dotted key."""
    first, *parts = key.split(".")
    path = SECTIONS.get(first, first)
    for part in parts:
        path = f"{path}.{_migrate_key_part(path, part, targets)}"
    return path


def _migrate_key_part(path: str, part: str, targets: GroupTargets) -> str:
    """Return the present name of an option in the section with the present path `path`."""
    sections = [renamed_keywords(target) for target in targets.targets.get(path, [])]
    if path == "trainer":
        sections += [TRAINER_OPTIONS.get(name, {}) for name in targets.trainers]
    for names in sections:
        if part in names:
            return names[part]
    if f"{path}.{part}" in OPTIONS:
        return OPTIONS[f"{path}.{part}"]
    if sections:  # the class is known, and did not rename this option
        return part
    return (present_option_names(f"{path}.{part}") or [part])[0].rpartition(".")[2]


# --- checkpoints and records ----------------------------------------------------------------------


def migrate_checkpoint(state: Plain, target: str) -> Plain:
    """Return a checkpoint of an older format with the present names.

    Args:
        target: the present dotted path of the model's class.
    """
    version = state.get("format", 1)
    if not isinstance(version, int) or version >= FORMAT:
        return state
    state = {CHECKPOINT_KEYS.get(key, key): value for key, value in state.items()}
    for key in ("model", "ema", "per_shard_buffers"):
        if isinstance(state.get(key), dict):
            state[key] = {migrate_state_key(k, target): v for k, v in state[key].items()}
    if isinstance(state.get("optimizers"), dict):
        state["optimizers"] = {OPTIMIZERS.get(k, k): v for k, v in state["optimizers"].items()}
    if isinstance(state.get("unlogged_losses"), list):
        state["unlogged_losses"] = [_migrate_losses(each) for each in state["unlogged_losses"]]
    return state | {"format": FORMAT}


def migrate_state_key(name: Any, target: str) -> str:
    """Return the present name of an entry of a model's state_dict."""
    name = f".{name}"
    for old, new in _renames_for_target(STATE_PREFIXES, target).items():
        name = name.replace(f".{old}", f".{new}")
    return name[1:]


def migrate_metadata(metadata: Plain) -> Plain:
    """Return a run.json of an older format with the present names, but its own `command`."""
    if metadata.get("format", 1) >= FORMAT:
        return metadata
    if isinstance(metadata.get("spec"), dict):
        metadata = metadata | {"spec": _migrate_spec(metadata["spec"])}
    choices = metadata.get("choices")
    if isinstance(choices, dict):
        choices = {SECTIONS.get(name, name): value for name, value in choices.items()}
        words = {k: _migrate_value(k, v) for k, v in choices.items() if isinstance(v, str)}
        metadata = metadata | {"choices": choices | words}
    return metadata


def _migrate_spec(spec: Plain) -> Plain:
    """Return the plain values of a DataSpec with the present names, its source's included."""
    spec = {SPEC_FIELDS.get(name, name): value for name, value in spec.items()}
    if isinstance(spec.get("source"), dict):
        spec["source"] = _migrate_spec(spec["source"])
    if isinstance(spec.get("task"), str):
        spec["task"] = VALUES.get("task", {}).get(spec["task"], spec["task"])
    return spec


def migrate_row_name(name: str) -> str:
    """Return the present name of a metric's row, which may end in the name of a feature space."""
    for old in sorted(ROWS, key=len, reverse=True):
        if name == old or name.startswith(old + "_"):
            return ROWS[old] + name[len(old) :]
    return name


def migrate_log_record(record: Plain) -> Plain:
    """Return a record of an older stats.jsonl with the present names of losses and metrics."""
    record = _migrate_losses(record)
    evaluation = record.get("evaluation")
    if not isinstance(evaluation, dict):
        return record
    return record | {"evaluation": {migrate_row_name(k): v for k, v in evaluation.items()}}


def _migrate_losses(losses: Any) -> Any:
    if not isinstance(losses, dict):
        return losses
    return {LOSSES.get(name, name): value for name, value in losses.items()}


def migrate_evaluation_record(record: Plain) -> Plain:
    """Return a metrics.json of an older format with the present names and tags."""
    rows = record.get("metrics")
    if not isinstance(rows, list):
        return record
    if record.get("format", 1) != 1:
        return record | {"metrics": tag_bounds_with_estimates(rows)}
    rows = tag_bounds_with_estimates([_migrate_row(row) for row in rows])
    record = record | {"metrics": rows}
    # the settings are the options of `genlab evaluate`; `absent` gives reasons by metric
    for key, table in {"settings": COMMAND_OPTIONS.get("evaluate", {}), "absent": METRICS}.items():
        if isinstance(record.get(key), dict):
            record[key] = {table.get(name, name): value for name, value in record[key].items()}
    return record


def tag_bounds_with_estimates(rows: list[Any]) -> list[Any]:
    """Return the rows of a record, with bounds on an estimated log Z tagged `estimate`.

    Older versions tagged it a bound, and so the bits per dimension of it.
    """
    bounds = [
        row
        for row in rows
        if isinstance(row, dict)
        and row.get("tag") == "bound"
        and isinstance(row.get("conditions"), dict)
    ]
    estimates = [row.get("name") for row in bounds if row["conditions"].get("log Z error")]
    for i, row in enumerate(rows):
        if row in bounds and (
            row.get("name") in estimates or row["conditions"].get("from") in estimates
        ):
            rows = [*rows[:i], row | {"tag": "estimate"}, *rows[i + 1 :]]
    return rows


def _migrate_row(row: Any) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return row
    row = {ROW_FIELDS.get(name, name): value for name, value in row.items()}
    if isinstance(row.get("conditions"), dict):
        conditions = row["conditions"].items()
        row["conditions"] = {CONDITIONS.get(name, name): value for name, value in conditions}
    metric = row.get("metric")
    return row | {
        "name": migrate_row_name(row["name"]),
        "metric": METRICS.get(str(metric), metric),
    }
