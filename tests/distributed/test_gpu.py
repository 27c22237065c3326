"""Tests that need a GPU: recipes in every precision, exact resumes, compilation."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from helpers.cli_runner import REPOSITORY, run_here, run_process
from helpers.recipes import RECIPES, build_training_objects, states_equal

from genlab.distributed.device import called_child_modules
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import measure
from genlab.runs.run_folder import RunFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
]
SMALL = ("trainer.batch_size=8", "device=cuda")
SHORT = ("trainer.preview_every=0", "out=run")
FLAGSHIPS = ["vae", "dcgan", "realnvp_points", "rbm", "ddpm_small", "gan"]
# Options that make large networks small, so that the file takes a minute.
SMALL_NETWORKS = {
    "dcgan": ("model.width=16", "dataset.size=16"),
    "ddpm": ("model.backbone.channels=32", "model.backbone.attention_resolutions=[4]"),
    "realnvp": ("model.channels=8", "model.num_blocks=1"),
    "rectified_flow": ("trainer.num_pairs=64", "model.solver_steps=5"),
}


def recipe_options(recipe: str, *more: str) -> tuple[str, ...]:
    return (f"model={recipe}", *SMALL_NETWORKS.get(recipe, ()), *SMALL, *more)


def build(*overrides: str):
    """Return (dataset, trainer)."""
    return build_training_objects(*overrides, "out=unused")[1:]


def train_steps(steps: int, *overrides: str):
    """Return (dataset, trainer, losses) after so many updates."""
    dataset, trainer = build(*overrides)
    trainer.model.train()
    batches = trainer.train_batches(dataset)
    return dataset, trainer, [trainer.train_step(batches) for _ in range(steps)]


def has_finite_weights(trainer) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_two_steps(recipe, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU does not support bfloat16")
    _, trainer, losses = train_steps(2, *recipe_options(recipe, f"device.precision={precision}"))
    assert has_finite_weights(trainer)
    assert {p.device.type for p in trainer.model.parameters()} == {"cuda"}
    # autocast: the weights stay in fp32
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    if precision != "fp16":  # its scaler may skip the first updates
        assert all(bool(torch.isfinite(v)) for step in losses for v in step.values())


@pytest.mark.parametrize("recipe", ["vae", "ddpm_small", "dcgan"])
def test_networks_compute_in_bf16(recipe):
    dataset, trainer = build(*recipe_options(recipe, "device.precision=bf16"))
    seen = set()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    trainer.train_step(trainer.train_batches(dataset))
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("recipe", FLAGSHIPS)
def test_resume_is_bit_exact(recipe, tmp_path):
    """In new processes, because cuBLAS reads its workspace size at the first matrix product."""
    exact = (
        "device.deterministic=true",
        "trainer.preview_every=0",
        "trainer.save_every=2",
        "trainer.steps=4",
    )
    for name in ("whole", "parts"):
        result = run_process("train", *recipe_options(recipe, *exact), f"out={name}", cwd=tmp_path)
        assert result.code == 0, result.err
    # as if it had been killed after step 2
    (tmp_path / "parts" / "checkpoints" / "step_000000004.pt").unlink()
    again = run_process("train", "resume=parts", cwd=tmp_path)
    assert again.code == 0, again.err
    a, b = (RunFolder(tmp_path / name).load_checkpoint() for name in ("whole", "parts"))
    a.pop("seconds"), b.pop("seconds")
    assert a["step"] == b["step"] == 4
    assert states_equal(a, b)


@pytest.mark.parametrize("recipe", ["vae", "ddpm_small"])
def test_compiled_model_gives_the_same_losses(recipe):
    exact = ("device.tf32=false",)
    _, plain, ours = train_steps(3, *recipe_options(recipe, *exact))
    _, compiled, theirs = train_steps(3, *recipe_options(recipe, *exact, "device.compile=true"))
    assert any(m._compiled_call_impl is not None for m in called_child_modules(compiled.model))
    assert list(plain.model.state_dict()) == list(compiled.model.state_dict())
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"].item() == pytest.approx(b["loss"].item(), rel=1e-3)


def test_a_checkpoint_of_the_gpu_samples_on_the_cpu(tmp_path):
    train = recipe_options("ddpm_small", "device.precision=bf16", "trainer.steps=2", *SHORT)
    result = run_here("train", *train, cwd=tmp_path)
    assert result.code == 0, result.err
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # a machine without a GPU
    sample = ("sample", "run=run", "n=2", "sampler=ddim", "sampler.steps=2")
    drawn = run_process(*sample, "device=cpu", cwd=tmp_path, **hidden)
    assert drawn.code == 0, drawn.err
    assert run_here(*sample, "device=cuda", cwd=tmp_path).code == 0


@pytest.mark.parametrize("recipe", ["vae", "dcgan", "realnvp_points"])
def test_data_is_stored_on_the_device(recipe):
    dataset, trainer = build(*recipe_options(recipe))
    batches = trainer.train_batches(dataset)
    next(batches)
    stored = {key[1].type: x for key, (x, _) in dataset._on_device.items() if key[0] == "train"}
    assert "cuda" in stored and stored["cuda"].device.type == "cuda"
    batch = next(batches)
    assert batch.x.is_cuda and (batch.y is None or batch.y.is_cuda)


def test_an_update_does_not_synchronize_with_the_host():
    """Waiting for the device in an update would leave the GPU idle."""
    dataset, trainer = build(*recipe_options("vae", "trainer.log_every=1000"))
    batches = trainer.train_batches(dataset)
    for _ in range(3):
        trainer.train_step(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_optimizer_is_fused_and_the_ema_is_on_the_device():
    _, trainer, _ = train_steps(2, *recipe_options("ddpm_small", "trainer.ema_decay=0.9"))
    assert all(group["fused"] for opt in trainer.optimizers.values() for group in opt.param_groups)
    averages, weights = list(trainer.ema.model.parameters()), list(trainer.model.parameters())
    assert all(a.is_cuda for a in averages)
    assert any(not torch.equal(a, w) for a, w in zip(averages, weights, strict=True))


def test_channels_last_applies_to_weights_and_batches():
    dataset, trainer = build(*recipe_options("dcgan"))
    (batch,) = trainer.next_batch(trainer.train_batches(dataset))
    convolution = next(
        m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1
    )
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_reported_memory_is_the_peak_of_the_gpu(tmp_path):
    torch.cuda.reset_peak_memory_stats()
    result = run_here(
        "train",
        *recipe_options("vae", "trainer.steps=2", "trainer.log_every=1", *SHORT),
        cwd=tmp_path,
    )
    assert result.code == 0, result.err
    reported = RunFolder(tmp_path / "run").read_log()[-1]["memory_mb"]
    # the checkpoint after it may have needed more
    assert 0 < reported <= torch.cuda.max_memory_allocated() / 2**20


def test_tf32_follows_the_option():
    for tf32 in (False, True):
        build(*recipe_options("vae", f"device.tf32={str(tf32).lower()}"))
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (("vae",), ["likelihood", "energy_distance"]),
        (("gan",), ["energy_distance", "frechet"]),
        (("rbm", "model.hidden=12"), ["likelihood"]),  # a sum over all states
        (("ddpm_small",), ["likelihood"]),
    ],
)
def test_metrics_accept_a_model_on_the_device(recipe, names):
    dataset, trainer = build(*recipe_options(*recipe))
    settings = Settings(n=32, iwae_samples=2, elbo_timesteps=2, batch_size=16)
    found = measure(MetricContext(dataset, settings, model=trainer.eval_model()), names)
    assert list(found) == names
    assert all(math.isfinite(row.value) for rows in found.values() for row in rows)


def test_the_gpu_benchmark_runs(tmp_path):
    out = tmp_path / "gpu.json"
    script = REPOSITORY / "scripts" / "benchmarks" / "gpu.py"
    options = ("--small", "--steps", "2", "--turns", "1", "--out", out)
    command = [sys.executable, script, "vae", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
