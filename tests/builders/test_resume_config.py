"""Every override of a resume takes effect, repeats what the run has, or is refused."""

from __future__ import annotations

import pytest

SMALL = ("trainer.steps=2", "trainer.batch_size=8", "device=cpu", "trainer.preview_every=0")


@pytest.fixture(scope="module")
def run(train_run):
    return train_run("model=gan", "model.hidden=[8]")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+regularizer=r1", "adds to the run, which has no regularizer"),
        ("+sampler=ddim", "the run has no option sampler|unknown option 'sampler'"),
        ("+regulariser=r1", "unknown option 'regulariser'"),
        ("+model.x=3", "the run has no option model.x"),
        ("+model.x=null", "the run has no option model.x"),
        ("++model.hidden=[9]", r"differs from the run's model.hidden=\[8\]"),
        ("+trainer.clip=1", "the run has no option trainer.clip"),
        ("~trainer.grad_clip", "differs from the run's trainer.grad_clip=0.0"),
        ("experiment=dcgan_digits", "adds to the run, which has no experiment"),
        ("optimizer=sgd", "differs from the run's optimizer=adam"),
        ("model=vae", "differs from the run's model=gan"),
        ("trainer.log_every=1", "differs from the run's trainer.log_every=50"),
        ("preprocess.size=16", "differs from the run's preprocess.size=null"),
        ("trainer.steps=true", "trainer.steps=true: input should be a whole number"),
        ("out=elsewhere", "out= is for a new run"),
        ("debug=maybe", "debug=maybe"),
    ],
)
def test_an_override_that_would_have_no_effect_is_refused(run, genlab, override, told):
    import re

    assert re.search(told, genlab("train", f"resume={run}", override).error)


def test_overrides_that_repeat_the_run_are_accepted(run, genlab):
    same = ("model=gan", "model.hidden=[8]", "dataset=digits", "seed=0", "trainer.batch_size=8")
    result = genlab("train", f"resume={run}", *same, "trainer.steps=2e0")
    assert result.code == 0 and "is done: 2 steps" in result.out


def test_a_run_that_ended_by_patience_continues_with_more(genlab, tmp_path):
    """The remedy that is printed works; the same command again makes no step."""
    monitor = ("trainer.evaluate_every=1", "evaluate.n=16", "evaluate.metrics=[reconstruction]")
    options = ("model=pca", "trainer.monitor=mse", "trainer.patience=1", *monitor)
    result = genlab("train", *options, *SMALL, "trainer.steps=9", "out=run")
    if "no such metric here" in result.err:
        name = result.err.rpartition("there are ")[2].split(",")[0].strip()
        options = (options[0], f"trainer.monitor={name}", *options[2:])
        result = genlab("train", *options, *SMALL, "trainer.steps=9", "out=run")
    assert result.code == 0 and "2 steps (no better evaluation)" in result.out, result.err
    for _ in range(2):
        result = genlab("train", "resume=run")
        assert "is done: 2 steps" in result.out and "larger trainer.patience=" in result.out
    result = genlab("train", "resume=run", "trainer.patience=3")
    assert "trained 4 steps" in result.out
