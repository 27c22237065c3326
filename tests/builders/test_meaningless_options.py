"""Options that have no effect beside the others of a command are refused."""

from __future__ import annotations

import pytest

MEANINGLESS = """
evaluate crop=3
evaluate preprocess.size=16
evaluate samples=x truth=y split=train
evaluate samples=x truth=y metrics=[mmd]
evaluate samples=x dataset=digits iwae_samples=3
evaluate samples=x dataset=digits sampler=ddim
evaluate samples=x dataset=digits crop=1
anomaly preprocess.size=16
anomaly dataset=digits classes=3
anomaly score=density iwae_samples=5
classify score=density elbo_timesteps=5
inpaint half=left
inpaint mask=half box=[1,1,2,2]
inpaint mask_ratio=0.3
inpaint method=inpaint prior_weight=0.1
inpaint items=[1] n=2
inpaint input_dir=x n=2
denoise input_dir=x items=[1]
translate input_dir=x split=train
superres input_dir=x n=3
colorize input_dir=x n=3
encode items=[1,2] n=3
reconstruct items=[1,2] n=3
forecast items=[1] videos=3
interpolate pairs=[[1,2]] n=3
interpolate endpoints=prior split=train
traverse dims=[0] n=2
project crop=pad
project images=a.png n=2
project strengths=[1]
arithmetic a=1 rows=3
arithmetic attribute=3 b=1
arithmetic a=1 group_by=draw split=train
complete temperature=0 top_k=3
train evaluate.n=40
train model=pca optimizer=sgd
train model=gmm trainer.grad_clip=1
train model=realnvp_points preprocess.size=16
train model=bm preprocess.flip=true
plan model=realnvp_points preprocess.binarize=dynamic
train +preprocess.foo=1
""".strip().splitlines()


@pytest.mark.parametrize("command", MEANINGLESS)
def test_an_option_without_an_effect_is_refused(genlab, command):
    words = command.split()
    assert " has no effect: " in genlab(*words).error


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train +foo=1", "unknown option 'foo'"),
        ("train +foo.bar=1", "unknown option 'foo'"),
        ("train +sampler=ddim", "unknown option 'sampler'"),
        ("train model=vae backbone=unet", "unknown option 'model.backbone'"),
        ("train hydra/launcher=local", "only a sweep has launchers"),
        ("train hydra.sweep.dir=x", "only a sweep has launchers"),
        ("sample hydra.launcher.n=2", "only a sweep has launchers"),
        ("models debug=1", "does not take options"),
        ("sample debug=1", "debug=1: input should be true or false"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(genlab, command, told):
    assert told in genlab(*command.split()).error


@pytest.mark.parametrize(
    "option",
    [
        *("trainer.steps=true", "seed=true", "trainer.batch_size=true", "trainer.max_minutes=true"),
        *(
            "optimizer.lr=true",
            "optimizer.betas=[true,0.9]",
            "model.hidden=[true]",
            "model.sigma=true",
        ),
        *("device.threads=true", "preprocess.size=true", "preprocess.range=[true,2]"),
        *("trainer.lr_milestones=[true]", "preprocess.flip=1", "trainer.steps='\"3\"'"),
        *("trainer.ema_decay='\"0.9\"'", "trainer.steps=1.5", "trainer.steps=yes"),
    ],
)
def test_truth_values_and_texts_are_not_numbers(genlab, option):
    value = option.partition("=")[2].strip("'\"[]").split(",")[0].strip("'\"")
    assert f"{value}" in genlab("train", option).error


@pytest.mark.parametrize("steps", ["2e0", "2.0", "2"])
def test_a_whole_number_may_have_an_exponent(genlab, steps):
    result = genlab("train", "model.hidden=[4]", f"trainer.steps={steps}", "device=cpu", "out=run")
    assert result.code == 0 and "trained 2 steps" in result.out
