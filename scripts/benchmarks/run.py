"""Compare genlab's speed with plain PyTorch loops and with other packages.

    GENLAB_DATA=<folder with MNIST> python scripts/benchmarks/run.py [names]

Each row is a pair: genlab's own training loop with its defaults, and a baseline that takes as many
steps. The two take turns in one process; a turn lasts a fraction of a second to a few seconds, so
both see the same machine. A ratio is genlab's time over the baseline's. The other packages are an
extra: pip install -e '.[bench]'. A pair whose package is missing says so. The rows are written to
docs/benchmarks/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from cases import CASES
from turns import BenchmarkSettings

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "docs" / "benchmarks" / "cpu.json"
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


def package_versions() -> dict[str, str]:
    """Return the versions of the compared packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def start_up_times(settings: BenchmarkSettings) -> dict[str, dict[str, float]]:
    """Return the seconds of short commands: median, least and most of nine processes each."""
    commands = {
        "genlab --help": (*GENLAB, "--help"),
        "genlab train --cfg job": (*GENLAB, "train", "--cfg", "job"),
        'python -c "import genlab"': (sys.executable, "-c", "import genlab"),
        'python -c "import torch"': (sys.executable, "-c", "import torch"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(10 if settings.step_fraction == 1 else 2):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if i:  # the first run of each fills the disk cache
                times[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(t), "least": min(t), "most": max(t)}
        for name, t in times.items()
    }


# A small process in between: until a child process runs its own program, its peak memory includes
# that of the process which started it.
PEAK_MEMORY_PROGRAM = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def peak_memory_mib(*command: str) -> float:
    """Return the peak memory of a command in MiB."""
    measured = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY_PROGRAM, *command],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(measured.stdout)


def peak_memory_of_trainings(settings: BenchmarkSettings) -> dict[str, float]:
    """Return the peak MiB of processes that train the same VAE for two epochs."""
    steps, _ = settings.num_steps_and_block(938, 1)
    options = settings.mnist_options(
        "model=vae",
        "model.hidden=[400]",
        "model.activation=relu",
        "trainer.batch_size=128",
        f"trainer.steps={steps}",
        "device=cpu",
    )
    with tempfile.TemporaryDirectory() as place:
        found = {"genlab train": peak_memory_mib(*GENLAB, "train", *options, f"out={place}/run")}
    if not settings.fake_data:
        example = (sys.executable, str(HERE / "loops.py"), os.environ["GENLAB_DATA"], str(steps))
        found["the common example, DataLoader with 0 workers"] = peak_memory_mib(*example)
    imports = "import torch, torchvision"
    found[f'python -c "{imports}"'] = peak_memory_mib(sys.executable, "-c", imports)
    return found


def parse_arguments() -> argparse.Namespace:
    names = [*CASES, "start_up", "memory"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=names, help=f"cases to run, default all: {', '.join(names)}"
    )
    parser.add_argument(
        "--out", type=Path, help=f"default {OUT}; nothing is written if --share is below 1"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="fraction of the steps; below 1 it only shows that the benchmark runs",
    )
    parser.add_argument(
        "--data",
        choices=("mnist", "fake"),
        default="mnist",
        help="fake: noise in the shape of MNIST",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    if arguments.data == "mnist" and "GENLAB_DATA" not in os.environ:
        parser.error("set GENLAB_DATA to the folder that contains MNIST, or pass --data fake")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    settings = BenchmarkSettings(arguments.share, fake_data=arguments.data == "fake")
    is_full = arguments.share == 1 and not settings.fake_data
    out = arguments.out or (OUT if is_full else None)
    record = json.loads(out.read_text()) if out and out.exists() else {}
    if (record.get("share"), record.get("data")) != (arguments.share, arguments.data):
        record = {"pairs": {}}  # no record yet, or one made with other settings
    start = time.perf_counter()
    for name in arguments.names:
        sys.stderr.write(f"{name}\n")
        if name in CASES:
            threads = {"threads": torch.get_num_threads()}
            rows = {key: row | threads for key, row in CASES[name](settings).items()}
            record["pairs"] |= rows
        else:
            measure = {"start_up": start_up_times, "memory": peak_memory_of_trainings}[name]
            rows = record[name] = measure(settings)
        print(json.dumps({name: rows}, ensure_ascii=False), flush=True)
        record |= {
            "command": "python scripts/benchmarks/run.py",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "versions": package_versions(),
            "share": arguments.share,
            "data": arguments.data,
        }
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    sys.stderr.write(f"{time.perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main()
