"""What only a GPU can show: every recipe in every precision, resumes bit for bit, compilation, where data and weights lie."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from helpers.cli_runner import REPOSITORY, run_here, run_process
from helpers.recipes import RECIPES, built, same

from genlab.distributed.device import bricks
from genlab.metrics import Settings, measure
from genlab.metrics.context import Subject
from genlab.runs.run_folder import RunFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]
SMALL = ("trainer.batch_size=8", "device=cuda")
SHORT = ("trainer.preview_every=0", "out=run")
FLAGSHIPS = ["vae", "dcgan", "realnvp_points", "rbm", "ddpm_small", "gan"]
# Large networks, made small so that the file takes a minute; what they compute with stays the same.
NARROW = {
    "dcgan": ("model.width=16", "dataset.size=16"),
    "ddpm": ("model.backbone.channels=32", "model.backbone.attention=[4]"),
    "realnvp": ("model.channels=8", "model.blocks=1"),
    "rectified_flow": ("trainer.pairs=64", "model.solver_steps=5"),
}


def options(recipe: str, *more: str) -> tuple[str, ...]:
    return (f"model={recipe}", *NARROW.get(recipe, ()), *SMALL, *more)


def made(*overrides: str):
    """Return (dataset, trainer)."""
    return built(*overrides, "out=unused")[1:]


def advanced(steps: int, *overrides: str):
    """Return (dataset, trainer, losses) after so many updates."""
    dataset, trainer = made(*overrides)
    trainer.model.train()
    batches = trainer.stream(dataset)
    return dataset, trainer, [trainer.advance(batches) for _ in range(steps)]


def finite(trainer) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_two_steps(recipe, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bfloat16")
    _, trainer, losses = advanced(2, *options(recipe, f"device.precision={precision}"))
    assert finite(trainer)
    assert {p.device.type for p in trainer.model.parameters()} == {"cuda"}
    assert {p.dtype for p in trainer.model.parameters()} == {
        torch.float32
    }  # autocast: the weights stay in fp32
    if precision != "fp16":  # whose scaler may skip the first updates
        assert all(bool(torch.isfinite(v)) for step in losses for v in step.values())


@pytest.mark.parametrize("recipe", ["vae", "ddpm_small", "dcgan"])
def test_bf16_is_what_the_networks_compute_in(recipe):
    dataset, trainer = made(*options(recipe, "device.precision=bf16"))
    seen = set()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    trainer.advance(trainer.stream(dataset))
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("recipe", FLAGSHIPS)
def test_a_resume_is_bit_for_bit(recipe, tmp_path):
    """In processes of their own, as cuBLAS reads its workspace's size when the first product is computed."""
    exact = (
        "device.deterministic=true",
        "trainer.preview_every=0",
        "trainer.save_every=2",
        "trainer.steps=4",
    )
    for name in ("whole", "parts"):
        result = run_process("train", *options(recipe, *exact), f"out={name}", cwd=tmp_path)
        assert result.code == 0, result.err
    (
        tmp_path / "parts" / "checkpoints" / "step_000000004.pt"
    ).unlink()  # as if it had been killed after step 2
    again = run_process("train", "resume=parts", cwd=tmp_path)
    assert again.code == 0, again.err
    a, b = (RunFolder(tmp_path / name).load() for name in ("whole", "parts"))
    timeless = lambda state: {k: v for k, v in state.items() if k != "seconds"}  # noqa: E731
    assert a["step"] == b["step"] == 4
    assert same(timeless(a), timeless(b))


@pytest.mark.parametrize("recipe", ["vae", "ddpm_small"])
def test_compiled_losses_are_those_of_the_plain_model(recipe):
    exact = ("device.tf32=false",)
    _, plain, ours = advanced(3, *options(recipe, *exact))
    _, compiled, theirs = advanced(3, *options(recipe, *exact, "device.compile=true"))
    assert any(brick._compiled_call_impl is not None for brick in bricks(compiled.model))
    assert list(plain.model.state_dict()) == list(compiled.model.state_dict())
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"].item() == pytest.approx(b["loss"].item(), rel=1e-3)


def test_a_checkpoint_of_the_gpu_samples_on_a_processor(tmp_path):
    train = options("ddpm_small", "device.precision=bf16", "trainer.steps=2", *SHORT)
    result = run_here("train", *train, cwd=tmp_path)
    assert result.code == 0, result.err
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # a machine without a GPU
    ask = ("sample", "run=run", "n=2", "sampler=ddim", "sampler.steps=2")
    drawn = run_process(*ask, "device=cpu", cwd=tmp_path, **hidden)
    assert drawn.code == 0, drawn.err
    assert run_here(*ask, "device=cuda", cwd=tmp_path).code == 0


@pytest.mark.parametrize("recipe", ["vae", "dcgan", "realnvp_points"])
def test_the_data_lies_on_the_device(recipe):
    dataset, trainer = made(*options(recipe))
    batches = trainer.stream(dataset)
    next(batches)
    held = {key[1].type: x for key, (x, _) in dataset._placed.items() if key[0] == "train"}
    assert "cuda" in held and held["cuda"].device.type == "cuda"
    batch = next(batches)
    assert batch.x.is_cuda and (batch.y is None or batch.y.is_cuda)


def test_an_update_copies_nothing_from_or_to_the_host():
    """A wait for the device in an update would leave the GPU idle; PyTorch refuses it here."""
    dataset, trainer = made(*options("vae", "trainer.log_every=1000"))
    batches = trainer.stream(dataset)
    for _ in range(3):
        trainer.advance(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.advance(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_optimizer_is_fused_and_the_mean_moves_on_the_device():
    _, trainer, _ = advanced(2, *options("ddpm_small", "trainer.ema=0.9"))
    assert all(group["fused"] for opt in trainer.optimizers.values() for group in opt.param_groups)
    mean, weights = list(trainer.ema.model.parameters()), list(trainer.model.parameters())
    assert all(m.is_cuda for m in mean)
    assert any(not torch.equal(m, w) for m, w in zip(mean, weights, strict=True))


def test_channels_last_reaches_weights_and_batches():
    dataset, trainer = made(*options("dcgan"))
    (batch,) = trainer.pull(trainer.stream(dataset))
    convolution = next(
        m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1
    )
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_the_memory_reported_is_the_gpus_peak(tmp_path):
    torch.cuda.reset_peak_memory_stats()
    result = run_here(
        "train", *options("vae", "trainer.steps=2", "trainer.log_every=1", *SHORT), cwd=tmp_path
    )
    assert result.code == 0, result.err
    said = RunFolder(tmp_path / "run").history()[-1]["memory_mb"]
    assert (
        0 < said <= torch.cuda.max_memory_allocated() / 2**20
    )  # the checkpoint after it may have needed more


def test_tf32_is_off_where_it_is_switched_off():
    for asked in (False, True):
        made(*options("vae", f"device.tf32={str(asked).lower()}"))
        assert torch.backends.cuda.matmul.allow_tf32 is asked
        assert torch.backends.cudnn.allow_tf32 is asked


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (("vae",), ["likelihood", "energy_distance"]),
        (("gan",), ["energy_distance", "frechet"]),
        (("rbm", "model.hidden=12"), ["likelihood"]),  # a sum over all states
        (("ddpm_small",), ["likelihood"]),
    ],
)
def test_the_measures_take_a_model_on_the_device(recipe, names):
    dataset, trainer = made(*options(*recipe))
    settings = Settings(n=32, k=2, terms=2, batch_size=16)
    found = measure(Subject(dataset, settings, model=trainer.sampler()), names)
    assert list(found) == names
    assert all(math.isfinite(row.value) for rows in found.values() for row in rows)


def test_the_benchmark_for_gpus_runs(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, REPOSITORY / "scripts" / "bench_gpu.py", "vae", "--small", "--steps", "2", "--turns", "1",
               "--out", out]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
