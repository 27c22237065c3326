"""Several processes train one model, under torchrun with gloo: the same as one process with the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genlab.training.run import RunFolder

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


def torchrun(processes: int, *what: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *what],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(text: str) -> dict[str, list[dict[str, float]]]:
    return json.loads(text.splitlines()[-1])


def test_two_processes_equal_one_with_the_joint_batch(tmp_path):
    script = str(HERE / "ranks_losses.py")
    alone = subprocess.run(
        [sys.executable, script, "2"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=True
    )
    together = losses(torchrun(2, script, "2", cwd=tmp_path))
    for family, steps in losses(alone.stdout).items():
        for at, (one, two) in enumerate(zip(steps, together[family], strict=True)):
            assert two == pytest.approx(one, rel=1e-9, abs=1e-12), f"{family}, step {at + 1}"


def test_the_command_line_under_torchrun_makes_one_run(tmp_path):
    out = torchrun(2, "-m", "genlab", "train", "trainer.steps=6", "trainer.save_every=3", "device=cpu", cwd=tmp_path)
    found = list(tmp_path.glob("outputs/*/*/run.json"))
    assert len(found) == 1 and out.count("trained 6 steps") == 1
    torchrun(2, "-m", "genlab", "train", "resume=latest", "trainer.steps=8", cwd=tmp_path)
    assert RunFolder(found[0].parent).load()["step"] == 8
