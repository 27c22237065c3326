"""A batch in shards has the objective of the whole batch, or is refused."""

from __future__ import annotations

import pytest
import torch
from helpers.joint_noise import use_joint_noise
from helpers.recipes import RECIPES, build_training_objects, small_overrides

from genlab.errors import UserError
from genlab.runs.migrations import is_before_joint_statistics, keep_old_training

# One per kind of statistic: covariance, pairs of items, mean activations, clamped means, the means
# of a codebook, the data-dependent initialization, and losses that are means over items.
KINDS = [
    ("dip_vae", "model.variant=i"),
    ("tc_vae",),
    ("sparse_ae",),
    ("vae", "model.free_bits=0.2"),
    ("vq_vae",),
    ("glow", "model.steps_per_scale=1"),
    ("gan", "model.loss=relativistic"),
    ("rbm",),
    ("debias_vae", "trainer.resample_after=1"),
    ("m2", "trainer.labeled_batch_size=48", "model.channels=[]", "model.hidden=[8]"),
]
# What a batch in shards would change; the message names it.
REFUSED = {
    "acgan": "batch normalization",
    "cyclegan": "a history of images",
    "dcgan": "batch normalization",
    "infogan": "batch normalization",
    "progan": "a minibatch standard deviation",
    "stylegan2": "a minibatch standard deviation",
}


def trained_weights(words: list[str], grad_accum_steps: int, steps: int) -> dict:
    """Return the weights after some steps on batches of 24 items."""
    options = ("device.precision=fp64", "trainer.batch_size=24", "out=unused")
    accumulate = f"trainer.grad_accum_steps={grad_accum_steps}"
    words = [word for word in words if not word.startswith("trainer.batch_size")]
    _, dataset, trainer = build_training_objects(*words, *options, accumulate)
    batches = trainer.train_batches(dataset)
    for _ in range(steps):
        trainer.train_step(batches)
    return trainer.model.state_dict()


def largest_difference(words: list[str], steps: int) -> float:
    """Return the largest difference of weights that batches in one and in four shards make."""
    with pytest.MonkeyPatch.context() as patch:
        use_joint_noise(patch)
        parts = trained_weights(words, 4, steps)
        whole = trained_weights(words, 1, steps)
    return max(
        (parts[name] - value).abs().max().item()
        for name, value in whole.items()
        if value.is_floating_point() and value.numel()
    )


@pytest.mark.parametrize("words", KINDS, ids=lambda words: words[0])
def test_four_shards_have_the_objective_of_one(words):
    recipe, *options = words
    small = [*small_overrides(recipe)]
    if recipe in ("dip_vae", "tc_vae"):
        small += ["model.network=mlp", "model.hidden=[16]", "model.dense=[]"]
    assert largest_difference([*small, *options], steps=2) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_in_four_shards_equals_one_or_is_refused(recipe):
    options = ("trainer.labeled_batch_size=48",) if recipe == "m2" else ()
    # instance norms over 2×2 codes of 8×8 digits amplify rounding about twentyfold per step
    steps = 4 if recipe == "unit" else 10
    try:
        assert largest_difference([*small_overrides(recipe), *options], steps=steps) < 1e-5
    except UserError as error:
        assert "set trainer.shard_statistics=true" in str(error)


@pytest.mark.parametrize("recipe", REFUSED)
def test_statistics_of_a_batch_refuse_shards(recipe):
    """… and the remedy works."""
    words = (*small_overrides(recipe), "trainer.batch_size=8", "trainer.grad_accum_steps=2")
    with pytest.raises(UserError) as refusal:
        build_training_objects(*words)
    assert f"has {REFUSED[recipe]}" in str(refusal.value)
    assert "trainer.grad_accum_steps=2 cut a batch into shards" in str(refusal.value)
    build_training_objects(*words, "trainer.shard_statistics=true")


def test_labeled_items_that_do_not_divide_are_refused():
    words = [*small_overrides("m2"), "trainer.batch_size=8", "trainer.grad_accum_steps=4"]
    _, dataset, trainer = build_training_objects(*words)
    with pytest.raises(UserError, match="set trainer.labeled_batch_size=48"):
        trainer.train_batches(dataset)


def test_an_older_run_keeps_the_statistics_of_its_shards():
    """Its config lacks the option, and its R1 penalty passed batch normalization."""
    model = {"_target_": "genlab.models.gan.dcgan.DCGAN", "r1": 0.1, "gradient_penalty": 0.0}
    for options, processes in (({"grad_accum_steps": 2}, 1), ({}, 4), ({}, None)):
        assert is_before_joint_statistics({"trainer": options})
        old = keep_old_training({"trainer": options, "model": model}, processes)
        is_sharded = bool(options) or processes == 4
        assert old["trainer"] == options | {"shard_statistics": is_sharded}
        assert old["model"] == {"penalize_through_batch": True} | model
    assert not is_before_joint_statistics({"trainer": {"shard_statistics": False}})
    plain = {"trainer": {}, "model": model | {"r1": 0.0}}
    assert keep_old_training(plain, 1)["model"] == plain["model"]


def test_validation_and_evaluation_see_the_batch_that_they_are_given():
    """After a step in shards the model is left without a joiner."""
    words = (*small_overrides("sparse_ae"), "trainer.batch_size=8", "trainer.grad_accum_steps=2")
    _, dataset, trainer = build_training_objects(*words)
    trainer.train_step(trainer.train_batches(dataset))
    assert trainer.model.shard_joiner is None
    batch = trainer.device.to_device(dataset.head("train", 3))
    assert torch.isfinite(trainer.model.loss(batch)["loss"])
