"""Trainer of models of tables: gradient descent after a fit of the columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genlab.models.tabular.table_model import TableModel
from genlab.spec import Batch
from genlab.training.trainer import Trainer


class TableTrainer(Trainer):
    """Gradient descent on `model.loss`, after the columns were fitted to the training rows."""

    has_validation_loss = True

    model: TableModel

    def train_batches(self, data: Any, **options: Any) -> Iterator[Batch]:
        """Return the training batches, after fitting the model's columns in a new run."""
        if self.global_step == 0:
            x, y = data.raw_items_and_labels("train")
            self.model.fit_columns(x, y, self.seed)
            if self.ema:
                self.ema.model.load_state_dict(self.model.state_dict())
        return super().train_batches(data, **options)
