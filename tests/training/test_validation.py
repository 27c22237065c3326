"""The loss of held-out items: logged rarely, without a trace in the training."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.recipes import build_training_objects, small_overrides, states_equal

from genlab.training.validation import STEPS_PER_BATCH, ValidationLoss

# One recipe of each update rule that has a validation loss, and of each kind of data.
RECIPES = ["vae", "dae", "made", "gpt_text", "realnvp_points", "ddpm_small", "vq_vae", "ldm"]


def advance(trainer, dataset, steps: int, validation: ValidationLoss | None = None) -> list[float]:
    """Train, with a validation after each step; return its losses."""
    batches = trainer.train_batches(dataset)
    losses = []
    trainer.model.train()
    for _ in range(steps):
        trainer.train_step(batches)
        losses += [validation.compute()] if validation else []
    return losses


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_with_validations_equals_one_without(recipe):
    words = (*small_overrides(recipe), "trainer.batch_size=64", "trainer.log_every=1")
    _, dataset, plain = build_training_objects(*words)
    advance(plain, dataset, 2)
    _, _, trainer = build_training_objects(*words)
    losses = advance(trainer, dataset, 2, ValidationLoss(trainer, dataset))
    a, b = plain.state_dict(), trainer.state_dict()
    assert [key for key in a if key != "seconds" and not states_equal(a[key], b[key])] == []
    assert all(map(math.isfinite, losses)) and losses[0] != losses[1]
    random_state = torch.get_rng_state()
    repeated = ValidationLoss(trainer, dataset).compute()
    assert repeated == losses[1], "the same items and the same noise"
    assert torch.equal(random_state, torch.get_rng_state()) and trainer.model.training


@pytest.mark.parametrize(
    ("words", "interval"),
    [
        (("model=vae",), 100),  # 180 items in 2 batches
        (("model=vae", "trainer.log_every=30"), 120),
        (("model=vae", "trainer.batch_size=20"), 450),  # 9 batches
        (("model=vae", "trainer.validate_every=7"), 7),
        (("model=vae", "trainer.validate_every=0"), 0),
        (("model=vae", "dataset.validation=0"), 0),
        (("model=gan",), 0),
        (("model=rbm",), 0),
        (("model=kmeans",), 0),
        (("model=m2",), 0),
    ],
)
def test_the_interval_keeps_the_cost_below_two_percent(words, interval):
    _, dataset, trainer = build_training_objects(*words, "device=cpu", "out=unused")
    validation = ValidationLoss(trainer, dataset)
    assert validation.interval == interval
    if interval and trainer.options.validate_every is None:
        assert interval >= STEPS_PER_BATCH * math.ceil(180 / trainer.batch_size)


def test_the_validation_loss_is_in_the_log_and_in_tensorboard(genlab, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("model=vae", "model.hidden=[8]", "device=cpu", "trainer.preview_every=0")
    steps = ("trainer.steps=5", "trainer.validate_every=2", "trainer.log_every=1")
    result = genlab("train", *words, *steps, "out=run")
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").open()]
    found = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert list(found) == [2, 4, 5], "and at the end"
    assert found[5] < found[2]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("validation/loss")}
    assert logged == pytest.approx(found)
    assert "train/loss" in events.Tags()["scalars"]
