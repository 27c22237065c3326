"""Measure genlab against loops by hand and other packages, all taking turns in one run: times, ratios, memory; JSON.

    GENLAB_DATA=<folder with MNIST> python scripts/bench.py [names]

Each row is a pair: genlab's own training loop with what it does by default, and another that takes as many steps. A turn is a
fraction of a second to seconds long, so both see the same machine; ratios are of times, genlab's over the other's. The other
packages are an extra: pip install -e '.[bench]'; a pair whose package is absent says so. docs/benchmarks/cpu.json gets the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from bench_cases import CASES
from bench_turns import How

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "benchmarks" / "cpu.json"
PACKAGES = (
    "torch",
    "torchvision",
    "scikit-learn",
    "pythae",
    "denoising-diffusion-pytorch",
    "diffusers",
    "normflows",
    "zuko",
)
GENLAB = (sys.executable, "-m", "genlab")


def versions() -> dict[str, str]:
    """Return the versions of what is compared, where it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def start_up(how: How) -> dict[str, dict[str, float]]:
    """Return the seconds of short commands: median, least and most of 9 processes each, taking turns."""
    commands = {
        "genlab --help": (*GENLAB, "--help"),
        "genlab train --cfg job": (*GENLAB, "train", "--cfg", "job"),
        'python -c "import genlab"': (sys.executable, "-c", "import genlab"),
        'python -c "import torch"': (sys.executable, "-c", "import torch"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(10 if how.share == 1 else 2):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if i:
                times[name].append(time.perf_counter() - began)
    return {
        name: {"median": statistics.median(t), "least": min(t), "most": max(t)}
        for name, t in times.items()
    }


# A small process in between: a child's peak counts the memory of the process that started it, until it runs its own program.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def memory(how: How) -> dict[str, dict]:
    """Return the peak memory in MiB of processes that train the same VAE for two epochs, and of one that imports torch."""
    import tempfile

    def peak(*command: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    steps, _ = how.steps(938, 1)
    with tempfile.TemporaryDirectory() as place:
        train = (
            "model.hidden=[400]",
            "model.activation=relu",
            "trainer.batch_size=128",
            f"trainer.steps={steps}",
            "device=cpu",
        )
        found = {
            "genlab train": peak(
                *GENLAB, "train", *how.mnist("model=vae", *train), f"out={place}/run"
            )
        }
    if not how.fake:
        usual = (
            sys.executable,
            str(HERE / "bench_loops.py"),
            os.environ["GENLAB_DATA"],
            str(steps),
        )
        found["the usual example, DataLoader with 0 workers"] = peak(*usual)
    found['python -c "import torch, torchvision"'] = peak(
        sys.executable, "-c", "import torch, torchvision"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = [*CASES, "start_up", "memory"]
    parser.add_argument(
        "names", nargs="*", default=everything, help=f"of {', '.join(everything)}; none: all"
    )
    parser.add_argument(
        "--out", type=Path, help=f"default {OUT}; with --share below 1: nothing is written"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the steps; below 1 only to see that it runs"
    )
    parser.add_argument(
        "--data",
        choices=("mnist", "fake"),
        default="mnist",
        help="fake: noise in the shape of MNIST",
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(everything):
        parser.error(
            f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(everything)}"
        )
    if options.data == "mnist" and "GENLAB_DATA" not in os.environ:
        parser.error("set GENLAB_DATA to the folder that holds MNIST, or give --data fake")
    how = How(options.share, options.data == "fake")
    out = options.out or (OUT if options.share == 1 and not how.fake else None)
    found = json.loads(out.read_text()) if out and out.exists() else {}
    if (found.get("share"), found.get("data")) != (
        options.share,
        options.data,
    ):  # nothing yet, or of another kind
        found = {"pairs": {}}
    began = time.perf_counter()
    for name in options.names:
        sys.stderr.write(f"{name}\n")
        if name in CASES:
            rows = {
                key: row | {"threads": torch.get_num_threads()}
                for key, row in CASES[name](how).items()
            }
            found["pairs"] |= rows
        else:
            rows = found[name] = {"start_up": start_up, "memory": memory}[name](how)
        print(json.dumps({name: rows}, ensure_ascii=False), flush=True)
        found |= {
            "command": "python scripts/bench.py",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "versions": versions(),
            "share": options.share,
            "data": options.data,
        }
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    sys.stderr.write(f"{time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    main()
