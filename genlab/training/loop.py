"""The training loop, the same for every family: log, preview, evaluate, save, and stop."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from genlab.abilities import Estimate
from genlab.config.recipes import fastest_experiment
from genlab.console import Progress, describe_duration
from genlab.model import GenerativeModel
from genlab.signals import SignalCatcher
from genlab.training.logger import DivergedError, Logger
from genlab.training.trainer import Data, Trainer
from genlab.training.validation import ValidationLoss

if TYPE_CHECKING:
    import numpy as np

    from genlab.runs.run_folder import RunFolder

ANNOUNCE_AFTER_S = 3.0  # of steps after the first; their mean predicts the rest
LONG_TRAINING_S = 3600.0  # a longer training is announced

# name -> (the number, whether higher is better)
Evaluation = dict[str, tuple[Estimate, bool]]
PreviewFn = Callable[[GenerativeModel], "np.ndarray"]
EvaluateFn = Callable[[GenerativeModel], Evaluation]
StopCallback = Callable[[int, Evaluation], str | None]


def fit(
    trainer: Trainer,
    data: Data,
    *,
    run: RunFolder | None = None,
    preview: PreviewFn | None = None,
    evaluate: EvaluateFn | None = None,
    stop_callback: StopCallback | None = None,
    config: dict[str, Any] | None = None,
) -> str:
    """Train from the trainer's present step until its options end the run.

    Args:
        run: the folder to write to, by rank 0; None writes nothing.
        preview: returns an image (H, W, 3) of samples.
        evaluate: measures the model on held-out data.
        stop_callback: is called on rank 0 with the step and each evaluation; a reason that it
            returns ends the run.
        config: the run's options, for TensorBoard's table of hyperparameters.

    Returns:
        Why the run ended: "steps", "time", "patience", the name of a signal, or the reason of
        `stop_callback`.

    Raises:
        DivergedError: a loss, or a weight about to be saved, is not finite.
    """
    options = trainer.options
    steps_left = trainer.global_step < options.steps
    if steps_left and out_of_time(trainer):  # before a resume
        return "time"
    batches = trainer.train_batches(data)
    if steps_left:  # preparing the first batch may take minutes, and a signal ends it at once
        with Progress("preparing the first batch"):
            batches = chain([next(batches)], batches)

    stop_reason = None
    trainer.model.train()
    session = TrainingSession(trainer, run, preview, evaluate, stop_callback)
    session.validation = ValidationLoss(trainer, data)
    with session, SignalCatcher() as signals:
        session.start()
        while trainer.global_step < options.steps and not stop_reason:
            # one update
            session.logger.add_losses(trainer.train_step(batches))
            session.update_clock()
            session.announce_duration()
            is_last = trainer.global_step == options.steps

            # losses
            if session.is_due(options.log_every) or is_last:
                session.log_losses()

            # previews and evaluations, whose time does not count as training
            is_save_due = session.is_due(options.save_every) or is_last
            session.preview_and_evaluate(save_first=is_save_due)

            # stop and save
            stop_reason = session.reason_to_stop(signals.first_signal_name)
            if stop_reason:
                session.log_partial_losses()
            if stop_reason or (is_save_due and not session.is_saved()):
                session.save_checkpoint()
            session.resume_clock()
        final = session.run.final_metrics() if session.run else {}
        session.logger.close(config or {}, final)
    return stop_reason or "steps"


def out_of_time(trainer: Trainer) -> bool:
    """Whether the run has used up `max_minutes`, including the time before a resume."""
    minutes = trainer.options.max_minutes
    return minutes is not None and trainer.seconds >= minutes * 60


class TrainingSession:
    """The callbacks, the log and the clock of one call of `fit`; see there for the arguments."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder | None,
        preview: PreviewFn | None,
        evaluate: EvaluateFn | None,
        stop_callback: StopCallback | None,
    ) -> None:
        self.trainer, self.options, self.folder = trainer, trainer.options, folder
        self.run = folder if trainer.group.is_main else None  # the folder, if this rank writes
        self.preview, self.evaluate, self.stop_callback = preview, evaluate, stop_callback
        self.validation: ValidationLoss | None = None  # of held-out items
        self.saved: tuple[int, Any] | None = None  # the step and `best` of the last checkpoint
        self.pruned_reason: str | None = None  # what stop_callback returned
        if self.run and trainer.global_step < self.options.steps:
            self.run.discard_partial_means()
        self.logger = Logger(
            self.run,
            start=trainer.global_step,
            steps=self.options.steps,
            unlogged=trainer.unlogged_losses,
            group=trainer.group,
        )
        self.is_announced = self.run is None

    def __enter__(self) -> TrainingSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.logger.close_files()

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps is due now."""
        return every > 0 and self.trainer.global_step % every == 0

    # --- clock ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to measure the time of training, and the rate since the last logged step."""
        if self.run:
            self.logger.add_text("config", f"```yaml\n{self.run.config_text()}\n```")
        self.step_start = self.rate_start = time.monotonic()
        self.rate_start_step = self.trainer.global_step

    def update_clock(self) -> None:
        """Add the time of a step to the training time."""
        now = time.monotonic()
        self.trainer.seconds += now - self.step_start
        self.step_start = now
        self.logger.progress.items_per_step = self.trainer.items_per_step
        if self.options.max_minutes:
            limit_s = self.options.max_minutes * 60 - self.trainer.seconds
            self.logger.progress.time_limit_s = max(0.0, limit_s)

    def resume_clock(self) -> None:
        """Start to measure the next step: what came after the last one is not training time."""
        self.step_start = time.monotonic()

    def announce_duration(self) -> None:
        """Say once, within seconds, if the training will take longer than an hour here."""
        progress = self.logger.progress
        if self.is_announced or progress.first is None:
            return
        first_step_s = progress.first[0] - progress.started
        if max(first_step_s, progress.advanced - progress.first[0]) < ANNOUNCE_AFTER_S:
            return  # not measured for long enough
        self.is_announced = True
        seconds = progress.seconds_left()
        if self.run and seconds is not None and seconds > LONG_TRAINING_S:
            self.logger.print_message(self.duration_message(seconds))

    def duration_message(self, seconds: float) -> str:
        """Return what the rest of the training takes, and which commands take less time."""
        assert self.run is not None
        metadata = self.run.metadata()
        o, trainer, choices = self.options, self.trainer, metadata.get("choices") or {}
        is_limited = self.logger.progress.time_limit_s <= seconds
        done = int(self.logger.progress.done_before)
        what = f"{o.steps - done:,} {'more ' if done else ''}steps"
        if is_limited:
            what = "trainer.max_minutes"
        device = {"cpu": "CPU", "cuda": "GPU"}.get(trainer.device.name, trainer.device.name)
        parts = [f"{what}: about {describe_duration(seconds)} on this {device}"]
        faster = fastest_experiment(str(choices.get("model")), other_than=choices.get("experiment"))
        if faster and faster.minutes * 60 < seconds:
            parts.append(f"experiment={faster.name} takes {faster.duration}")
        overrides = [word for word in metadata.get("command", ())[2:] if word[:4] != "out="]
        parts.append(f"`{shlex.join(['genlab', 'plan', *overrides])}` measures it")
        return "; ".join(parts)

    # --- losses -----------------------------------------------------------------------------------

    def log_losses(self) -> None:
        """Log the mean losses since the last logged step, and report new problems."""
        trainer = self.trainer
        steps = trainer.global_step - self.rate_start_step
        status = self.status(steps / (self.step_start - self.rate_start))
        means = self.logger.log_step(trainer.global_step, status, self.recovery_hint())
        for problem in trainer.diagnose(means):
            self.logger.log_note(trainer.global_step, problem)
        self.rate_start, self.rate_start_step = time.monotonic(), trainer.global_step

    def log_partial_losses(self) -> None:
        """Log the losses since the last logged step, when the run ends between two such steps."""
        if self.logger.unlogged:
            trainer = self.trainer
            steps = trainer.global_step - self.rate_start_step
            status = self.status(steps / (self.step_start - self.rate_start))
            self.logger.log_step(trainer.global_step, status, self.recovery_hint(), is_partial=True)

    def status(self, steps_per_s: float) -> dict[str, float]:
        """Return what is logged beside the losses: rates, time and memory."""
        trainer, o = self.trainer, self.options
        seconds_left = (o.steps - trainer.global_step) / steps_per_s
        if o.max_minutes:
            seconds_left = min(seconds_left, max(0.0, o.max_minutes * 60 - trainer.seconds))
        rates = {
            f"lr/{name}": float(optimizer.param_groups[0]["lr"])
            for name, optimizer in trainer.optimizers.items()
        }
        return rates | {
            "seconds": trainer.seconds,
            "seconds_left": seconds_left,
            "items_per_s": steps_per_s * trainer.items_per_step,
            "memory_mb": trainer.device.peak_memory() / 2**20,
        }

    def recovery_hint(self) -> str:
        """Return what to do after a divergence."""
        saved = self.folder.checkpoint_files() if self.folder else []
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        return f"{last}; try a lower optimizer.lr, or trainer.grad_clip=1"

    # --- previews and evaluations -----------------------------------------------------------------

    def preview_and_evaluate(self, *, save_first: bool = False) -> None:
        """Show samples and evaluate the model on rank 0, if due; every rank gets the evaluation.

        If the evaluation fails, the training up to this step is saved.

        Args:
            save_first: whether a checkpoint of this step is due anyway.
        """
        trainer, o = self.trainer, self.options
        wants_preview = self.preview is not None and self.is_due(o.preview_every)
        wants_evaluation = self.evaluate is not None and self.is_due(o.evaluate_every)
        wants_validation = self.validation is not None and self.validation.is_due()
        if not (wants_preview or wants_evaluation or wants_validation):
            return
        start = time.monotonic()
        if self.validation and wants_validation:
            self.log_validation_loss(self.validation.compute())
        if wants_preview or wants_evaluation:
            model = trainer.eval_model()
            if self.run and self.preview and wants_preview:
                self.logger.add_image("samples", self.preview(model), trainer.global_step)
            if self.evaluate and wants_evaluation:
                if save_first:  # the system may kill a process that takes too much memory
                    self.save_checkpoint()
                with self.checkpoint_on_error():
                    evaluation = self.evaluate(model) if trainer.group.is_main else {}
                self.record_evaluation(trainer.group.broadcast(evaluation))
            trainer.train_mode()
        self.rate_start += time.monotonic() - start

    def log_validation_loss(self, loss: float) -> None:
        """Log the loss of held-out items."""
        step = self.trainer.global_step
        if math.isfinite(loss):
            self.logger.write_line({"step": step, "validation/loss": loss})
            self.logger.add_scalar("validation/loss", loss, step)
        else:
            self.logger.log_note(step, "the loss of the validation split is not finite")

    def record_evaluation(self, evaluation: Evaluation) -> None:
        """Log an evaluation, and save the best checkpoint by the monitored metric."""
        trainer, step, monitor = self.trainer, self.trainer.global_step, self.options.monitor
        line: dict[str, Any] = {
            "step": step,
            "evaluation": {name: estimate.value for name, (estimate, _) in evaluation.items()},
        }
        notes = [estimate.note for estimate, _ in evaluation.values() if estimate.note]
        self.logger.write_line(line | {"notes": notes} if notes else line)
        for note in notes:
            self.logger.print_message(f"step {step:,}: {note}")
        for name, (estimate, _) in evaluation.items():
            self.logger.add_scalar(f"evaluation/{name}", estimate.value, step)
        if self.stop_callback and trainer.group.is_main:
            self.pruned_reason = self.stop_callback(step, evaluation)
        if monitor is None:
            return
        if monitor not in evaluation:
            self.logger.log_note(step, f"{monitor} could not be measured, so it selects nothing")
            return
        estimate, higher_is_better = evaluation[monitor]
        sign = 1 if higher_is_better else -1
        if trainer.best is None or sign * estimate.value > sign * trainer.best["value"]:
            trainer.best = {"value": estimate.value, "step": step, "since": 0}
            self.save_checkpoint(best=True)
        else:
            trainer.best["since"] += 1

    @contextmanager
    def checkpoint_on_error(self) -> Iterator[None]:
        """Context that saves the training if an evaluation fails, as by lack of memory.

        Several processes would have to save together, but only one of them has failed.
        """
        try:
            yield
        except Exception:
            if self.trainer.group.size == 1 and not self.is_saved():
                self.save_checkpoint()
            raise

    # --- stop and save ----------------------------------------------------------------------------

    def reason_to_stop(self, signal: str | None) -> str | None:
        """Return why the run ends now, if it does on any rank; every rank gets the same answer."""
        trainer, o = self.trainer, self.options
        reason = signal
        if out_of_time(trainer):
            reason = reason or "time"
        if o.patience and trainer.best and trainer.best["since"] >= o.patience:
            reason = reason or "patience"
        if trainer.global_step < o.steps:  # a run that is complete is not pruned
            reason = reason or self.pruned_reason
        if not trainer.group.any(reason is not None):
            return None
        return trainer.group.broadcast(reason) or "SIGTERM"

    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this step and of the best evaluation so far."""
        return self.saved == (self.trainer.global_step, self.trainer.best)

    def save_checkpoint(self, *, best: bool = False) -> None:
        """Write a checkpoint with all that a bit-exact resume needs.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
        """
        trainer, step = self.trainer, self.trainer.global_step
        trainer.unlogged_losses = self.logger.resolve_losses(step, self.recovery_hint())
        named = trainer.model.named_parameters()
        broken = [name for name, p in named if not torch.isfinite(p).all()]
        if broken:
            raise DivergedError(
                f"step {step}: {', '.join(broken[:3])} contain values that are not finite; "
                f"{self.recovery_hint()}"
            )
        state = trainer.state_dict()
        if self.run:
            self.run.save_checkpoint(state, keep=self.options.keep_checkpoints, best=best)
        if not best:
            self.saved = (step, dict(trainer.best) if trainer.best else trainer.best)
