"""A search on a real SLURM that is killed in the middle ends as an undisturbed one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.optuna_trials import SEARCH_COMMAND, read_trials
from helpers.slurm_cluster import ONE_CPU_JOB, cluster  # noqa: F401

from genlab.runs.run_folder import RunFolder
from genlab.sweeps.job_state import read_state, submitted_job_id
from genlab.sweeps.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def log_without_times(folder: Path) -> list[tuple]:
    """Return the lines of a run's log without its times."""
    times = ("seconds", "seconds_left", "items_per_s", "memory_mb")
    return [
        tuple((k, str(v)) for k, v in line.items() if k not in times)
        for line in RunFolder(folder).read_log()
    ]


def test_killed_search_on_slurm_resumes(genlab, tmp_path):
    """20 trials, four at a time: the command is killed at the ninth, then its jobs are.

    The same command then ends with the same 20 trials as an undisturbed search, and trains none of
    them twice.
    """
    command_words = (
        *SEARCH_COMMAND,
        "hydra.sweeper.n_trials=20",
        "hydra.sweeper.n_jobs=4",
        "trainer.steps=900",
        "trainer.evaluate_every=100",
    )
    on_slurm = (*command_words, *ONE_CPU_JOB, "hydra.sweep.dir=s")
    folders = [tmp_path / "s" / str(n) for n in range(20)]
    with open(tmp_path / "log", "w") as log:
        search = subprocess.Popen(
            [sys.executable, "-m", "genlab", *on_slurm], cwd=tmp_path, stdout=log, stderr=log
        )

        def running_jobs() -> list[Path]:
            return [
                f
                for f in folders[8:12]
                if read_state(f).status == "running" and RunFolder(f).checkpoint_files()
            ]

        deadline = time.monotonic() + 900
        try:
            while not running_jobs():
                assert search.poll() is None and time.monotonic() < deadline, (
                    tmp_path / "log"
                ).read_text()
                time.sleep(0.05)
        finally:
            search.kill()
            search.wait()
    arrays = {submitted_job_id(f).partition("_")[0] for f in folders[8:12]}
    subprocess.run(["scancel", "--full", "--signal=KILL", *arrays], check=True, timeout=60)
    before = [read_state(folder) for folder in folders]
    assert [state.status for state in before[:8]] == ["done"] * 8 and "running" in [
        state.status for state in before
    ]
    deadline = time.monotonic() + 120
    while {job.state.status for job in SweepFolder.open(tmp_path / "s").jobs()} & {"running"}:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [t.state.name for t in read_trials(tmp_path / "s")] == ["COMPLETE"] * 8 + ["RUNNING"] * 4

    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, "-m", "genlab", *on_slurm]
        ended = subprocess.run(
            command, cwd=tmp_path, stdout=log, stderr=log, timeout=900, check=False
        )
    assert ended.returncode == 0, (tmp_path / "log").read_text()
    trials = read_trials(tmp_path / "s")
    assert [t.state.name for t in trials] == ["COMPLETE"] * 20
    for folder, state in zip(folders, before, strict=True):
        assert [line["step"] for line in RunFolder(folder).read_log() if "seconds" in line] == list(
            range(50, 901, 50)
        )
        assert read_state(folder).status == "done"
        assert state.status != "done" or read_state(folder) == state, "done jobs do not run again"
    whole = genlab(*command_words, "hydra.launcher.n=2", "hydra.sweep.dir=whole")
    assert whole.code == 0, whole.err
    assert [(t.params, t.values) for t in trials] == [
        (t.params, t.values) for t in read_trials(tmp_path / "whole")
    ]
    assert all(
        log_without_times(folder) == log_without_times(tmp_path / "whole" / folder.name)
        for folder in folders
    )
