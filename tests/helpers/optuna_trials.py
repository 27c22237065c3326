"""Options of small Optuna searches, and a reader of their trials."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial

from genlab.sweeps.optuna_study import STUDY_NAME, open_storage

LR_RANGE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


SEARCH_COMMAND = (
    "train",
    "-m",
    "hydra/sweeper=optuna",
    LR_RANGE,
    "model.latent=range(2,9)",
    "model.hidden=[16]",
    "trainer.batch_size=16",
    "trainer.preview_every=0",
    "trainer.save_every=50",
    "trainer.monitor=nll_elbo",
    "evaluate.metrics=[likelihood]",
    "evaluate.n=50",
    "evaluate.iwae_samples=1",
    "device=cpu",
)


def read_trials(folder: Path) -> list[FrozenTrial]:
    """Return the trials of the study in a sweep's folder."""
    store = open_storage(folder)
    return store.get_all_trials(store.get_study_id_from_name(STUDY_NAME))
