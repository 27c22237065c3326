"""Measure genlab's training on a GPU against the same loop by hand, in each precision, compiled and not; JSON.

    python scripts/bench_gpu.py [names] [--modes fp32 tf32 bf16 …]

The data are random bytes that lie on the device. Each row is one network in one mode: items a second of genlab's updates and of
the loop by hand, which take turns; FLOP counted by torch.utils.flop_counter over one update of genlab's; the share of the
device's peak that they are; the most memory that either needed. docs/benchmarks/gpu.json gets the rows.
"""

from __future__ import annotations

import argparse
import gc
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

import bench_loops as hand
import torch
from bench import versions
from bench_turns import built
from torch.utils.flop_counter import FlopCounterMode

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "gpu.json"
WARM = 5  # updates before anything is timed: compilation, the choice of convolutions, the allocator's pools

# Dense TFLOP/s by NVIDIA's data sheets of the H100, H200 (SXM) and A100: fp32 without tensor cores, tf32, bf16.
HOPPER, AMPERE = (
    {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0},
)
PEAKS = {
    "NVIDIA H200": HOPPER, "NVIDIA H100 80GB HBM3": HOPPER, "NVIDIA A100-SXM4-40GB": AMPERE,
    "NVIDIA A100-SXM4-80GB": AMPERE, "NVIDIA A100-PCIE-40GB": AMPERE, "NVIDIA A100 80GB PCIe": AMPERE,
}  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """How the arithmetic is done."""

    arithmetic: str  # fp32 | tf32 | bf16
    compiled: bool = False
    channels_last: bool = False

    def options(self) -> tuple[str, ...]:
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


# --- the networks and their loops by hand -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A recipe, and how to make the loop by hand from a model of it and its bytes."""

    what: str
    options: tuple[str, ...]
    small: tuple[str, ...]  # what makes it small enough for a test
    by_hand: Callable[[Any, torch.Tensor, int, Callable, Mode], hand.Step]
    bricks: bool = True  # whether it has networks that can be compiled, and images


def dcgan(
    trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode
) -> hand.Step:
    return hand.dcgan(trainer.model, data, batch, autocast=autocast, layout=mode.layout)


def ddpm(trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode) -> hand.Step:
    model, how = trainer.model, dict(lr=2e-4, ema=trainer.options.ema, clip=trainer.options.clip)
    return hand.ddpm(
        model.network,
        model.schedule.alphas_bar,
        data,
        batch,
        autocast=autocast,
        layout=mode.layout,
        **how,
    )


def vae(trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode) -> hand.Step:
    return hand.vae(data.flatten(1), batch, autocast=autocast, compiled=mode.compiled)


def rbm(trainer: Any, data: torch.Tensor, batch: int, autocast: Callable, mode: Mode) -> hand.Step:
    return hand.rbm(data.flatten(1), batch, hidden=trainer.model.W.shape[0], autocast=autocast)


def fake(shape: str, n: int) -> tuple[str, ...]:
    return ("dataset=fake", f"dataset.shape={shape}", f"dataset.n={n}")


CASES = {
    "dcgan64": Case(
        "DCGAN 64×64, 3 channels, the paper's widths, batch 128",
        ("model=dcgan", *fake("[3,64,64]", 8192)),
        ("model.width=4", "dataset.size=16", "dataset.n=64", "trainer.batch_size=4"),
        dcgan,
    ),
    "ddpm32": Case(
        "DDPM of CIFAR-10, 32×32, 35.7 M parameters, batch 128, with EMA and clipping",
        ("model=ddpm", *fake("[3,32,32]", 8192)),
        ("model.backbone.channels=8", "model.backbone.multipliers=[1,2]", "model.backbone.blocks=1", "dataset.shape=[3,8,8]",
         "dataset.n=64", "trainer.batch_size=4"),
        ddpm,
    ),
    "vae": Case(
        "VAE 784–400–20, batch 128",
        ("model=vae", "model.hidden=[400]", "model.activation=relu", "trainer.batch_size=128", *fake("[1,28,28]", 60_000)),
        ("dataset.n=64", "trainer.batch_size=4"),
        vae,
    ),
    "rbm": Case(
        "RBM 784–500, PCD-1, batch 100",
        ("model=rbm", *fake("[1,28,28]", 60_000)),
        ("model.hidden=16", "model.chains=4", "dataset.n=64", "trainer.batch_size=4"),
        rbm,
        bricks=False,
    ),
}  # fmt: skip


# --- measuring --------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: hand.Step, n: int, device: torch.device) -> float:
    """Return the seconds of n steps, until the device has done them."""
    wait(device)
    began = time.perf_counter()
    for _ in range(n):
        step()
    wait(device)
    return time.perf_counter() - began


def warmed(make: Callable[[], hand.Step], device: torch.device) -> tuple[hand.Step, float | None]:
    """Return a step that has been taken a few times, and the most MiB on the device that this needed (None on a CPU)."""
    if device.type != "cuda":
        step = make()
        seconds(step, 1, device)
        return step, None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = make()
    seconds(step, WARM, device)
    return step, (torch.cuda.max_memory_allocated(device) - before) / 2**20


def ours(options: tuple[str, ...]) -> tuple[Any, hand.Step]:
    """Return genlab's trainer and its update: all that training does but logs, pictures and checkpoints."""
    _, dataset, trainer = built(*options, "out=unused")
    return trainer, partial(trainer.advance, trainer.stream(dataset))


def by_hand(case: Case, mode: Mode, options: tuple[str, ...]) -> hand.Step:
    """Return the step by hand of the same network, which genlab's device places and compiles in the same way."""
    _, dataset, trainer = built(*options, "out=unused")
    device, batch = trainer.device, trainer.options.batch_size
    return case.by_hand(
        trainer, dataset.arrays("train")[0].to(device.torch), batch, device.autocast, mode
    )


def flop(options: tuple[str, ...]) -> int:
    """Return the FLOP of one update, counted in fp32 and not compiled: precisions and compilers change none of them."""
    _, step = ours((*options, *MODES["fp32"].options()))
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matmul(arithmetic: str, device: torch.device, n: int) -> float:
    """Return the TFLOP/s of a product of two n×n matrices: the median of 10."""
    torch.set_float32_matmul_precision("highest" if arithmetic == "fp32" else "high")
    dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    step = partial(torch.mm, a, b)
    seconds(step, 3, device)
    return 2 * n**3 / statistics.median(seconds(step, 1, device) for _ in range(10)) / 1e12


def peaks(device: torch.device, name: str, small: bool) -> dict[str, dict[str, Any]]:
    """Return the peak TFLOP/s of each arithmetic: the maker's where the device is known, else that of a large product."""
    found = {}
    for arithmetic in ("fp32", "tf32", "bf16"):
        product = matmul(arithmetic, device, 128 if small else 8192)
        peak = PEAKS.get(name, {}).get(arithmetic)
        source = "the maker's data sheet, dense" if peak else "measured: a large matrix product"
        found[arithmetic] = {"tflops": peak or product, "source": source, "matmul_tflops": product}
    return found


def measure(
    case: Case, mode: Mode, device: torch.device, peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return one row."""
    asked = (*case.options, f"device={device.type}", *(case.small if options.small else ()))
    work = flop(asked)
    torch._dynamo.reset()
    held: list[Any] = []

    def make() -> hand.Step:
        trainer, step = ours((*asked, *mode.options()))
        held.append(trainer)
        return step

    genlab, memory = warmed(make, device)
    other, other_memory = warmed(lambda: by_hand(case, mode, (*asked, *mode.options())), device)
    batch = held[0].options.batch_size
    steps = options.steps or max(5, round(options.seconds * 5 / seconds(genlab, 5, device)))
    mine, theirs = [], []
    for _ in range(options.turns):
        mine.append(seconds(genlab, steps, device))
        theirs.append(seconds(other, steps, device))
    step = statistics.median(mine) / steps
    return {
        "what": case.what,
        "batch": batch,
        "parameters": sum(p.numel() for p in held[0].model.parameters()),
        "genlab_items_s": batch / step,
        "other_items_s": batch * steps / statistics.median(theirs),
        "median_ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        "genlab_us": step * 1e6,
        "other_us": statistics.median(theirs) / steps * 1e6,
        "turns": options.turns,
        "block": steps,
        "gflop_step": work / 1e9,
        "tflops": work / step / 1e12,
        "share_of_peak": work / step / 1e12 / peak,
        "memory_mib": memory,
        "other_memory_mib": other_memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=list(MODES),
        help="default: all on a GPU, fp32 and bf16 on a CPU",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--steps", type=int, help="of a turn, in the place of --seconds")
    parser.add_argument("--turns", type=int, default=5, help="of each")
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny networks, only to see that it runs; needs --out to write",
    )
    parser.add_argument("--out", type=Path, help=f"default {OUT}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu --small shows that the script runs")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    out = options.out or (None if options.small else OUT)
    found = json.loads(out.read_text()) if out and out.exists() else {}
    limits = peaks(device, name, options.small)
    found |= {
        "command": "python scripts/bench_gpu.py",
        "device": name,
        "versions": versions() | ({"cuda": torch.version.cuda} if torch.version.cuda else {}),
        "peaks": limits,
        "small": options.small,
    }
    rows = found.setdefault("rows", {})
    for case_name in options.names:
        case = CASES[case_name]
        for mode_name in options.modes or (
            list(MODES) if device.type == "cuda" else ["fp32", "bf16"]
        ):
            mode = MODES[mode_name]
            if not case.bricks and (mode.compiled or mode.channels_last):
                continue
            key, about = f"{case_name} {mode_name}", {"case": case_name, "mode": mode_name}
            try:
                rows[key] = about | measure(
                    case, mode, device, limits[mode.arithmetic]["tflops"], options
                )
            except (
                Exception
            ) as error:  # a mode that a device lacks must not cost the rest of a rare GPU's time
                traceback.print_exc()
                rows[key] = about | {
                    "what": case.what,
                    "skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
                }
            print(json.dumps({key: rows[key]}, ensure_ascii=False), flush=True)
            if out:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if broken := [key for key, row in rows.items() if "skipped" in row]:
        sys.exit(f"not measured: {', '.join(broken)}")


if __name__ == "__main__":
    main()
