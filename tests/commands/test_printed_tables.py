"""Every command that prints a table fits a terminal of 80 columns."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.terminal import too_wide

from genlab.commands import plan as planning
from genlab.tables import PIPE_WIDTH
from genlab.training import auto_batch_size

TABLES = {
    "models": "",
    "datasets": "",
    "plan": "model=vae model.hidden=[8] device=cpu trainer.evaluate_every=500 evaluate.n=10",
    "info": "run={vae}",
    "evaluate": "run={vae} n=10 iwae_samples=2 "
    "metrics=[likelihood,active_units,energy_distance,nn_memorization,reconstruction,efficiency] "
    "features=[pixels]",
    "reconstruct": "run={vae} n=5",
    "encode": "run={vae} n=5",
    "traverse": "run={vae} n=3 frames=3",
    "interpolate": "run={vae} n=2",
    "likelihood": "run={vae} n=5 iwae_samples=2",
    "anomaly": "runs=[{vae},{gmm}] classes=3 n=5 iwae_samples=2",
    "compare": "runs=[{vae},{gmm}] n=10 metrics=[reconstruction,energy_distance] "
    "features=[pixels] output_dir=compared",
}
RUNS = {"vae": ("model=vae", "model.hidden=[8]"), "gmm": ("model=gmm", "model.num_components=2")}


@pytest.fixture
def runs(train_run: Callable[..., Path], tmp_path: Path) -> dict[str, str]:
    """Copies of two runs, in folders with long names."""
    folder = tmp_path / "a_folder_of_runs_with_a_long_name"
    made = {name: train_run(*options, "dataset=digits") for name, options in RUNS.items()}
    return {n: str(shutil.copytree(run, folder / f"{n}-long-name")) for n, run in made.items()}


@pytest.mark.parametrize("command", TABLES)
def test_printed_tables_fit_80_columns(
    command: str, runs: dict[str, str], genlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(auto_batch_size, "MIN_BLOCK_S", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    words = [word.format(**runs) for word in TABLES[command].split()]
    result = genlab(command, *words)
    assert result.code == 0, result.err
    assert too_wide(result.out, 80) == []
    if command in ("evaluate", "compare"):
        monkeypatch.delenv("COLUMNS")
        assert too_wide(genlab(command, *words).out, PIPE_WIDTH) == []
