"""Every recipe, every experiment and every run of a comparison learns as it is shipped.

Each is trained with its own options and data for 200 steps, or 3 minutes if that is shorter. It
takes hours: `pytest -m slow tests/robustness/test_recipes_as_shipped.py`, with GENLAB_DATA set.
`PYTHONPATH=tests python -m helpers.shipped_trainings TABLE` does the same and writes a table.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from helpers.recipes import CONFIGS
from helpers.shipped_trainings import Outcome, list_trainings, read_losses, train_as_shipped

TRAININGS = list_trainings()


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAININGS)
def test_it_learns_as_shipped(words: str) -> None:
    outcome = train_as_shipped(words)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    verdict, quantity, first, last = outcome.verdict()
    assert verdict.startswith("ok"), f"{quantity}: {first:.4g} → {last:.4g}; {verdict}"


def test_everything_that_ships_is_trained() -> None:
    """Each recipe on its default data, and each experiment or each run that it compares."""
    for path in (CONFIGS / "model").glob("*.yaml"):
        assert f"model={path.stem}" in TRAININGS
    for path in (CONFIGS / "experiment").rglob("*.yaml"):
        name = path.relative_to(CONFIGS / "experiment").with_suffix("")
        is_comparison = "\ntrain:" in path.read_text()
        assert (f"experiment={name}" in TRAININGS) != is_comparison
    assert "model=nice dataset=mnist" in TRAININGS  # the command of its header
    assert len(set(TRAININGS)) == len(TRAININGS)


def losses(*values: float, name: str = "loss") -> list[dict[str, float]]:
    return [{"step": i, name: value} for i, value in enumerate(values, 1)]


def at_optimum(first_norm: float) -> list[dict[str, float]]:
    """Return a log of losses that only fluctuate."""
    norms = [first_norm, *[0.6] * 99]
    return [{"step": i, "loss": 1 + i % 2, "grad_norm/model": n} for i, n in enumerate(norms)]


@pytest.mark.parametrize(
    ("trainer", "log", "verdict"),
    [
        ("vae", losses(*range(100, 0, -1)), "ok: falls"),
        ("vae", losses(*range(1, 101)), "FAILED: rises"),
        ("vae", losses(*[5.0] * 100), "FAILED: does not fall"),
        ("flow", losses(5.0, 4.0, math.inf), "FAILED: loss is not finite"),
        ("flow", losses(5.0, 4.0, math.nan), "FAILED: loss is not finite"),
        ("gan", losses(*[1.0] * 9, name="d_advantage"), "FAILED: the discriminator is saturated"),
        ("gan", losses(*[0.5] * 9, name="d_advantage"), "ok: improves"),
        ("classical", losses(3.0), "ok: one step"),
        ("vae", [], "no step"),
        ("flow", at_optimum(1e-5), "ok: begins at its optimum"),
        ("flow", at_optimum(1.0), "FAILED: does not fall"),
    ],
)
def test_how_losses_are_judged(trainer: str, log: list[dict[str, float]], verdict: str) -> None:
    improvement = {"change of samples": (0.0, 0.3)} if trainer == "gan" else {}
    outcome = Outcome("model=x", trainer=trainer, log=log, improvement=improvement)
    assert outcome.verdict()[0].startswith(verdict)


def test_losses_are_read_while_they_are_written(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.5, "lr/model": 0.1}, {"step": 1, "notes": ["a"]}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "lo'
    (tmp_path / "stats.jsonl").write_text(text)
    assert list(read_losses(tmp_path)) == [{"step": 1, "loss": 2.5}]
