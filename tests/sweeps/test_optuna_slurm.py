"""A search over a real SLURM, killed on the way: it ends as an undisturbed one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.optuna_trials import TRAINS, told_in
from helpers.slurm_cluster import SMALL, cluster  # noqa: F401

from genlab.runs.run_folder import RunFolder
from genlab.sweeps.sweep_folder import SweepFolder, read, submitted

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def curve(folder: Path) -> list[tuple]:
    """Return what a run logged, step by step, without its times."""
    times = ("seconds", "seconds_left", "items_per_s", "memory_mb")
    return [
        tuple((k, str(v)) for k, v in line.items() if k not in times)
        for line in RunFolder(folder).history()
    ]


def test_a_search_on_slurm_killed_on_the_way(genlab, tmp_path):
    """20 trials, four at a time: the command is killed with -9 at the ninth, then its jobs; the same command ends with the
    same 20 trials as an undisturbed search, none of them trained twice."""
    asked = (
        *TRAINS,
        "hydra.sweeper.n_trials=20",
        "hydra.sweeper.n_jobs=4",
        "trainer.steps=900",
        "trainer.evaluate_every=100",
    )
    on_slurm = (*asked, *SMALL, "hydra.sweep.dir=s")
    folders = [tmp_path / "s" / str(n) for n in range(20)]
    with open(tmp_path / "log", "w") as log:
        search = subprocess.Popen(
            [sys.executable, "-m", "genlab", *on_slurm], cwd=tmp_path, stdout=log, stderr=log
        )
        at_work = lambda: [
            f for f in folders[8:12] if read(f).status == "running" and RunFolder(f).steps()
        ]  # noqa: E731
        deadline = time.monotonic() + 900
        try:
            while not at_work():
                assert search.poll() is None and time.monotonic() < deadline, (
                    tmp_path / "log"
                ).read_text()
                time.sleep(0.05)
        finally:
            search.kill()
            search.wait()
    arrays = {submitted(f).partition("_")[0] for f in folders[8:12]}
    subprocess.run(["scancel", "--full", "--signal=KILL", *arrays], check=True, timeout=60)
    before = [read(folder) for folder in folders]
    assert [state.status for state in before[:8]] == ["done"] * 8 and "running" in [
        state.status for state in before
    ]
    deadline = time.monotonic() + 120
    while {job.state.status for job in SweepFolder.find(tmp_path / "s").jobs()} & {"running"}:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [t.state.name for t in told_in(tmp_path / "s")] == ["COMPLETE"] * 8 + ["RUNNING"] * 4

    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, "-m", "genlab", *on_slurm]
        ended = subprocess.run(
            command, cwd=tmp_path, stdout=log, stderr=log, timeout=900, check=False
        )
    assert ended.returncode == 0, (tmp_path / "log").read_text()
    told = told_in(tmp_path / "s")
    assert [t.state.name for t in told] == ["COMPLETE"] * 20
    for folder, state in zip(folders, before, strict=True):
        assert [line["step"] for line in RunFolder(folder).history() if "seconds" in line] == list(
            range(50, 901, 50)
        )
        assert read(folder).status == "done"
        assert state.status != "done" or read(folder) == state, "what was done was left alone"
    whole = genlab(*asked, "hydra.launcher.n=2", "hydra.sweep.dir=whole")
    assert whole.code == 0, whole.err
    assert [(t.params, t.values) for t in told] == [
        (t.params, t.values) for t in told_in(tmp_path / "whole")
    ]
    assert all(curve(folder) == curve(tmp_path / "whole" / folder.name) for folder in folders)
