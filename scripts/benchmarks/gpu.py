"""Compare genlab's training speed on a GPU with plain PyTorch loops, in each precision.

    python scripts/benchmarks/gpu.py [names] [--modes fp32 tf32 bf16 …]

The data are random bytes on the device. Each row is one network in one mode: items per second of
genlab's updates and of the plain loop, which take turns; the FLOP of one update of genlab, counted
by torch.utils.flop_counter; their share of the device's peak; and the peak memory of either. The
rows are written to docs/benchmarks/gpu.json.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import loops
import torch
from run import package_versions
from torch.utils.flop_counter import FlopCounterMode
from turns import build_training_objects

OUT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "gpu.json"
# Updates before the timing: compilation, the choice of convolution algorithms, memory pools.
WARMUP_STEPS = 5

# Dense TFLOP/s from NVIDIA's data sheets of the H100, H200 (SXM) and A100. fp32 does not use
# tensor cores.
HOPPER_TFLOPS = {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4}
AMPERE_TFLOPS = {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0}
PEAK_TFLOPS = {
    "NVIDIA H200": HOPPER_TFLOPS,
    "NVIDIA H100 80GB HBM3": HOPPER_TFLOPS,
    "NVIDIA A100-SXM4-40GB": AMPERE_TFLOPS,
    "NVIDIA A100-SXM4-80GB": AMPERE_TFLOPS,
    "NVIDIA A100-PCIE-40GB": AMPERE_TFLOPS,
    "NVIDIA A100 80GB PCIe": AMPERE_TFLOPS,
}


@dataclass(frozen=True)
class Mode:
    """The precision, compilation and memory layout of a measurement."""

    arithmetic: str  # fp32 | tf32 | bf16
    compiled: bool = False
    channels_last: bool = False

    def options(self) -> tuple[str, ...]:
        """Return the `device.` options of this mode."""
        precision = "bf16" if self.arithmetic == "bf16" else "fp32"
        flags = {
            "tf32": self.arithmetic != "fp32",
            "compile": self.compiled,
            "channels_last": self.channels_last,
        }
        return (
            f"device.precision={precision}",
            *(f"device.{key}={str(on).lower()}" for key, on in flags.items()),
        )

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


MODES = {
    "fp32": Mode("fp32"),
    "tf32": Mode("tf32"),
    "bf16": Mode("bf16"),
    "bf16+compiled": Mode("bf16", compiled=True),
    "bf16+compiled+channels_last": Mode("bf16", compiled=True, channels_last=True),
}


# --- the networks and their plain loops ---------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A recipe, and how to build the plain loop from its trainer and bytes."""

    what: str
    options: tuple[str, ...]
    small: tuple[str, ...]  # options that make it small enough for a test
    plain_step: Callable[[Any, torch.Tensor, int, Callable, Mode], loops.Step]
    compilable: bool = True  # it has networks that can be compiled, and images


def make_plain_dcgan_step(
    trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode
) -> loops.Step:
    return loops.make_dcgan_step(trainer.model, data, batch, autocast=autocast, layout=mode.layout)


def make_plain_ddpm_step(
    trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode
) -> loops.Step:
    model = trainer.model
    return loops.make_ddpm_step(
        model.network,
        model.schedule.alphas_bar,
        data,
        batch,
        autocast=autocast,
        layout=mode.layout,
        lr=2e-4,
        ema=trainer.options.ema_decay,
        grad_clip=trainer.options.grad_clip,
    )


def make_plain_vae_step(
    trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode
) -> loops.Step:
    return loops.make_vae_step(data.flatten(1), batch, autocast=autocast, compiled=mode.compiled)


def make_plain_rbm_step(
    trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode
) -> loops.Step:
    return loops.make_rbm_step(
        data.flatten(1), batch, hidden=trainer.model.W.shape[0], autocast=autocast
    )


def fake_data_options(shape: str, n: int) -> tuple[str, ...]:
    return ("dataset=fake", f"dataset.shape={shape}", f"dataset.n={n}")


CASES = {
    "dcgan64": Case(
        what="DCGAN 64×64, 3 channels, the paper's widths, batch 128",
        options=("model=dcgan", *fake_data_options("[3,64,64]", 8192)),
        small=("model.width=4", "dataset.size=16", "dataset.n=64", "trainer.batch_size=4"),
        plain_step=make_plain_dcgan_step,
    ),
    "ddpm32": Case(
        what="DDPM of CIFAR-10, 32×32, 35.7 M parameters, batch 128, with EMA and clipping",
        options=("model=ddpm", *fake_data_options("[3,32,32]", 8192)),
        small=(
            "model.backbone.channels=8",
            "model.backbone.channel_mult=[1,2]",
            "model.backbone.num_blocks=1",
            "dataset.shape=[3,8,8]",
            "dataset.n=64",
            "trainer.batch_size=4",
        ),
        plain_step=make_plain_ddpm_step,
    ),
    "vae": Case(
        what="VAE 784–400–20, batch 128",
        options=(
            "model=vae",
            "model.hidden=[400]",
            "model.activation=relu",
            "trainer.batch_size=128",
            *fake_data_options("[1,28,28]", 60_000),
        ),
        small=("dataset.n=64", "trainer.batch_size=4"),
        plain_step=make_plain_vae_step,
    ),
    "rbm": Case(
        what="RBM 784–500, PCD-1, batch 100",
        options=("model=rbm", *fake_data_options("[1,28,28]", 60_000)),
        small=("model.hidden=16", "model.num_chains=4", "dataset.n=64", "trainer.batch_size=4"),
        plain_step=make_plain_rbm_step,
        compilable=False,
    ),
}


# --- measuring ------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: loops.Step, n: int, device: torch.device) -> float:
    """Return the seconds of n steps, including the work queued on the device."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(n):
        step()
    synchronize(device)
    return time.perf_counter() - began


def warm_up_and_measure_memory(
    make: Callable[[], loops.Step], device: torch.device
) -> tuple[loops.Step, float | None]:
    """Return a step after a few warm-up calls, and its peak MiB on the device (None on a CPU)."""
    if device.type != "cuda":
        step = make()
        time_steps(step, 1, device)
        return step, None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = make()
    time_steps(step, WARMUP_STEPS, device)
    return step, (torch.cuda.max_memory_allocated(device) - before) / 2**20


def make_genlab_trainer_and_step(options: tuple[str, ...]) -> tuple[Any, loops.Step]:
    """Return genlab's trainer and its update, without logs, pictures and checkpoints."""
    _, dataset, trainer = build_training_objects(*options, "out=unused")
    return trainer, partial(trainer.train_step, trainer.train_batches(dataset))


def make_baseline_step(case: Case, mode: Mode, options: tuple[str, ...]) -> loops.Step:
    """Return the plain step of the same network, placed and compiled by genlab's device."""
    _, dataset, trainer = build_training_objects(*options, "out=unused")
    device, batch = trainer.device, trainer.options.batch_size
    return case.plain_step(
        trainer,
        dataset.raw_items_and_labels("train")[0].to(device.torch),
        batch,
        device.autocast,
        mode,
    )


def count_flop(options: tuple[str, ...]) -> int:
    """Return the FLOP of one update; precision and compilation do not change them."""
    _, step = make_genlab_trainer_and_step((*options, *MODES["fp32"].options()))
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matmul_tflops(arithmetic: str, device: torch.device, n: int) -> float:
    """Return the TFLOP/s of a product of two n×n matrices, the median of ten."""
    torch.set_float32_matmul_precision("highest" if arithmetic == "fp32" else "high")
    dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    step = partial(torch.mm, a, b)
    time_steps(step, 3, device)
    return 2 * n**3 / statistics.median(time_steps(step, 1, device) for _ in range(10)) / 1e12


def peak_tflops(device: torch.device, name: str, small: bool) -> dict[str, dict[str, Any]]:
    """Return the peak TFLOP/s of each precision: from the data sheet, or of a large product."""
    found = {}
    for arithmetic in ("fp32", "tf32", "bf16"):
        product = matmul_tflops(arithmetic, device, 128 if small else 8192)
        peak = PEAK_TFLOPS.get(name, {}).get(arithmetic)
        source = (
            "data sheet of the manufacturer, dense" if peak else "measured: a large matrix product"
        )
        found[arithmetic] = {"tflops": peak or product, "source": source, "matmul_tflops": product}
    return found


def measure_case_in_mode(
    case: Case, mode: Mode, device: torch.device, peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one network in one mode."""
    overrides = (*case.options, f"device={device.type}", *(case.small if options.small else ()))
    work = count_flop(overrides)
    torch._dynamo.reset()
    trainers: list[Any] = []

    def make() -> loops.Step:
        trainer, step = make_genlab_trainer_and_step((*overrides, *mode.options()))
        trainers.append(trainer)
        return step

    genlab, memory = warm_up_and_measure_memory(make, device)
    other, other_memory = warm_up_and_measure_memory(
        lambda: make_baseline_step(case, mode, (*overrides, *mode.options())), device
    )
    batch = trainers[0].options.batch_size
    steps = options.steps or max(5, round(options.seconds * 5 / time_steps(genlab, 5, device)))
    genlab_s, other_s = [], []
    for _ in range(options.turns):
        genlab_s.append(time_steps(genlab, steps, device))
        other_s.append(time_steps(other, steps, device))
    step = statistics.median(genlab_s) / steps
    return {
        "what": case.what,
        "batch": batch,
        "parameters": sum(p.numel() for p in trainers[0].model.parameters()),
        "genlab_items_s": batch / step,
        "other_items_s": batch * steps / statistics.median(other_s),
        "median_ratio": statistics.median(a / b for a, b in zip(genlab_s, other_s, strict=True)),
        "genlab_us": step * 1e6,
        "other_us": statistics.median(other_s) / steps * 1e6,
        "turns": options.turns,
        "block": steps,
        "gflop_step": work / 1e9,
        "tflops": work / step / 1e12,
        "share_of_peak": work / step / 1e12 / peak,
        "memory_mib": memory,
        "other_memory_mib": other_memory,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=list(CASES), help=f"networks, default all: {', '.join(CASES)}"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=list(MODES),
        help="default: all on a GPU, fp32 and bf16 on a CPU",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--steps", type=int, help="steps of a turn, instead of --seconds")
    parser.add_argument("--turns", type=int, default=5, help="turns of each")
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny networks that only show that the script runs; writes only with --out",
    )
    parser.add_argument("--out", type=Path, help=f"default {OUT}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CASES):
        names = ", ".join(CASES)
        parser.error(f"unknown network {', '.join(sorted(unknown))}; choose from {names}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --device cpu --small shows that the script runs")
    return arguments


def main() -> None:
    options = parse_arguments()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    out = options.out or (None if options.small else OUT)
    record = json.loads(out.read_text()) if out and out.exists() else {}
    peaks = peak_tflops(device, name, options.small)
    record |= {
        "command": "python scripts/benchmarks/gpu.py",
        "device": name,
        "versions": package_versions()
        | ({"cuda": torch.version.cuda} if torch.version.cuda else {}),
        "peaks": peaks,
        "small": options.small,
    }
    rows = record.setdefault("rows", {})
    default_modes = list(MODES) if device.type == "cuda" else ["fp32", "bf16"]
    for case_name, mode_name in itertools.product(options.names, options.modes or default_modes):
        case, mode = CASES[case_name], MODES[mode_name]
        if not case.compilable and (mode.compiled or mode.channels_last):
            continue
        key, identity = f"{case_name} {mode_name}", {"case": case_name, "mode": mode_name}
        try:
            peak = peaks[mode.arithmetic]["tflops"]
            rows[key] = identity | measure_case_in_mode(case, mode, device, peak, options)
        except Exception as error:  # an unsupported mode must not end the other measurements
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            rows[key] = identity | {"what": case.what, "skipped": reason}
        print(json.dumps({key: rows[key]}, ensure_ascii=False), flush=True)
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if skipped := [key for key, row in rows.items() if "skipped" in row]:
        sys.exit(f"not measured: {', '.join(skipped)}")


if __name__ == "__main__":
    main()
