"""Averaged weights sample with statistics of batch normalization that belong to them."""

from __future__ import annotations

import pytest
import torch
from helpers.recipes import build_training_objects, small_overrides, states_equal

OPTIONS = ("trainer.batch_size=16", "trainer.ema_decay=0.99")
MODELS = {
    "dcgan": ("dataset.size=16", "model.width=8"),
    "infogan": ("model.width=4",),
    "srresnet": (),
}


def make_trainer(recipe: str, steps: int):
    """Return a trainer after some steps, its data and its batches."""
    words = [w for w in small_overrides(recipe) if not w.startswith("trainer.batch_size")]
    _, dataset, trainer = build_training_objects(*words, *MODELS[recipe], *OPTIONS)
    batches = trainer.train_batches(dataset)
    for _ in range(steps):
        trainer.train_step(batches)
    return trainer, dataset, batches


@pytest.mark.parametrize("recipe", MODELS)
def test_averaged_weights_normalize_by_their_own_statistics(recipe):
    """With those of the live weights, samples were far from what the averaged weights make."""
    trainer, dataset, _ = make_trainer(recipe, steps=10)
    live = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    stale = {name: buffer.clone() for name, buffer in trainer.ema.model.named_buffers()}
    random_state = torch.get_rng_state()
    model = trainer.eval_model()
    assert torch.equal(torch.get_rng_state(), random_state) and not model.training
    assert all(torch.equal(live[name], b) for name, b in trainer.model.named_buffers())

    @torch.no_grad()
    def generate(train: bool) -> torch.Tensor:
        """Return samples, in training mode normalized by their own statistics."""
        torch.manual_seed(0)
        batch = trainer.device.to_device(dataset.head("train", 256))
        inputs = model.prior(256) if hasattr(model, "prior") else batch.cond
        x = model.generator.train(train)(inputs)
        model.generator.eval()
        return x

    own = generate(train=False)
    for name, buffer in model.named_buffers():
        buffer.copy_(stale[name])
    with_stale = generate(train=False)
    wanted = generate(train=True)
    assert (own - wanted).abs().mean() < 0.3 * (with_stale - wanted).abs().mean()


def test_reestimated_statistics_are_stored_and_change_no_training():
    trainer, _, batches = make_trainer("dcgan", steps=2)
    other, _, other_batches = make_trainer("dcgan", steps=2)
    state = trainer.state_dict()
    shown = trainer.eval_model().state_dict()
    assert states_equal(dict(state["ema"]), dict(shown))
    # a resumed run computes the same
    resumed, _, _ = make_trainer("dcgan", steps=0)
    resumed.load_state_dict(state)
    assert states_equal(dict(resumed.eval_model().state_dict()), dict(shown))
    # the run without any evaluation equals this one
    trainer.train_mode()
    trainer.train_step(batches)
    other.train_step(other_batches)
    assert states_equal(trainer.state_dict(), other.state_dict())
