"""Options of small Optuna searches, and the trials that they leave behind."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial

from genlab.sweeps.optuna_study import NAME, storage

RATE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def told_in(folder: Path) -> list[FrozenTrial]:
    store = storage(folder)
    return store.get_all_trials(store.get_study_id_from_name(NAME))


TRAINS = (
    "train",
    "-m",
    "hydra/sweeper=optuna",
    RATE,
    "model.latent=range(2,9)",
    "model.hidden=[16]",
    "trainer.batch_size=16",
)


TRAINS += (
    "trainer.preview_every=0",
    "trainer.save_every=50",
    "trainer.monitor=nll_elbo",
    "evaluate.metrics=[likelihood]",
)


TRAINS += ("evaluate.n=50", "evaluate.k=1", "device=cpu")
