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
from genlab.runs.folder_guard import FolderGuard, FolderTakenError
from genlab.signals import SignalCatcher
from genlab.spec import Batch
from genlab.training.logger import DivergedError, Logger, has_hyperparameters
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

# Reasons for the end of a run that is complete; all others are names of signals.
ENDS = ("steps", "time", "patience", "pruned")


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
    stop_reason = reason_for_end(trainer)  # of a run that has ended, and is resumed
    batches: Iterator[Batch] = iter(())
    if not stop_reason:
        batches = trainer.train_batches(data)
        # preparing the first batch may take minutes, and a signal ends it at once
        with Progress("preparing the first batch"):
            batches = chain([next(batches)], batches)
    elif not has_missing_outputs(
        trainer,
        run,
        has_previews=preview is not None,
        has_evaluations=evaluate is not None,
    ):
        return stop_reason

    trainer.model.train()
    session = TrainingSession(trainer, run, preview, evaluate, stop_callback)
    session.validation = ValidationLoss(trainer, data)
    with session, SignalCatcher() as signals:
        session.start()
        session.complete_step()
        stop_reason = session.reason_to_stop(signals.first_signal_name)
        while not stop_reason:
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
            if (stop_reason or is_save_due) and not session.is_saved():
                session.save_checkpoint()
            session.resume_clock()
        if stop_reason in ENDS:
            session.finish(config or {})
            signals.received.clear()  # a job that is done is not started again
        session.check_run_folder(save_missing=True)
        session.logger.close()
    return stop_reason


def reason_for_end(trainer: Trainer) -> str | None:
    """Return why the run ends at the trainer's present step, by its options, or None."""
    o = trainer.options
    if trainer.global_step >= o.steps:
        return "steps"
    if o.max_minutes is not None and trainer.seconds >= o.max_minutes * 60:
        return "time"  # including the time before a resume
    if o.patience and trainer.best and trainer.best["since"] >= o.patience:
        return "patience"
    return None


def has_missing_outputs(
    trainer: Trainer, run: RunFolder | None, *, has_previews: bool, has_evaluations: bool
) -> bool:
    """Whether a run that has ended lacks its last picture or numbers, as after a kill.

    Every rank must call this, and gets the same answer.
    """
    missing = False
    if run and trainer.group.is_main:
        lacks_preview = not run.preview_path(trainer.global_step).exists()
        lacks_evaluation = has_evaluations and is_evaluation_missing(trainer, run)
        lacks_numbers = not has_hyperparameters(run, trainer.global_step)
        missing = (has_previews and lacks_preview) or lacks_evaluation or lacks_numbers
    return trainer.group.any(missing)


def is_evaluation_missing(trainer: Trainer, run: RunFolder) -> bool:
    """Whether the evaluation of the checkpoint's step was due, but is not part of the run."""
    step, o = trainer.global_step, trainer.options
    if not o.evaluate_every or step % o.evaluate_every or not step:
        return False
    if o.monitor and trainer.evaluated_step != step:
        return True  # the checkpoint does not know what it decided
    return not any(r["step"] == step and "evaluation" in r for r in run.read_log())


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
        # the step, `best` and evaluated step of the last checkpoint
        self.saved: tuple[int, dict[str, float], int] | None = None
        self.pruned_reason: str | None = None  # what stop_callback returned
        self.guard = FolderGuard(self.run) if self.run else None
        self.lacks_evaluation = False  # of the step of a resumed checkpoint
        if self.run:  # before the logger opens the log
            if evaluate and is_evaluation_missing(trainer, self.run):
                self.lacks_evaluation = True
                self.run.discard_evaluation_at(trainer.global_step)
            if not reason_for_end(trainer):
                self.run.discard_partial_means()
        self.logger = Logger(
            self.run,
            start=trainer.global_step,
            steps=self.options.steps,
            unlogged=trainer.unlogged_losses,
            group=trainer.group,
            redoes_start=self.lacks_evaluation,
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
        if self.run and not self.trainer.global_step:
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
        self.check_run_folder()
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
        o = self.options
        wants_preview = self.preview is not None and self.is_due(o.preview_every)
        wants_evaluation = self.evaluate is not None and self.is_due(o.evaluate_every)
        wants_validation = self.validation is not None and self.validation.is_due()
        if not (wants_preview or wants_evaluation or wants_validation):
            return
        start = time.monotonic()
        if self.validation and wants_validation:
            self.log_validation_loss(self.validation.compute())
        if wants_preview or wants_evaluation:
            model = self.trainer.eval_model()
            if wants_preview:
                self.write_preview(model)
            if wants_evaluation:
                if save_first:  # the system may kill a process that takes too much memory
                    self.save_checkpoint()
                self.evaluate_and_record(model)
            self.trainer.train_mode()
        self.rate_start += time.monotonic() - start

    def write_preview(self, model: GenerativeModel) -> None:
        """Show samples of the model, as `Trainer.eval_model` returns it."""
        if self.run and self.preview:
            self.check_run_folder()
            self.logger.add_image("samples", self.preview(model), self.trainer.global_step)

    def evaluate_and_record(self, model: GenerativeModel) -> None:
        """Evaluate the model on rank 0, and record the evaluation on every rank."""
        group = self.trainer.group
        with self.checkpoint_on_error():
            evaluation = self.evaluate(model) if self.evaluate and group.is_main else {}
        self.record_evaluation(group.broadcast(evaluation))

    def complete_step(self) -> None:
        """Make the preview and the evaluation of a resumed step that a kill has prevented.

        A checkpoint is written before the evaluation of its step, because that may fail.
        """
        trainer, o = self.trainer, self.options
        if not trainer.global_step:
            return
        lacks_preview = self.run is not None and not self.has_preview()
        wants_preview = self.preview is not None and self.is_due(o.preview_every)
        wants_preview = trainer.group.any(wants_preview and lacks_preview)
        wants_evaluation = trainer.group.any(self.lacks_evaluation)
        if not (wants_preview or wants_evaluation):
            return
        model = trainer.eval_model()
        if wants_preview:
            self.write_preview(model)
        if wants_evaluation:
            self.evaluate_and_record(model)
        trainer.train_mode()
        if wants_evaluation and o.monitor:  # the checkpoint lacks what it decided
            self.save_checkpoint()
        self.resume_clock()

    def has_preview(self) -> bool:
        """Whether there is a picture of this step."""
        return bool(self.run and self.run.preview_path(self.trainer.global_step).exists())

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
        trainer.evaluated_step = step
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
        """Return why the run ends now, if it does on any rank; every rank gets the same answer.

        A signal that comes at the end of a complete run does not make it continue.
        """
        group = self.trainer.group
        reason = reason_for_end(self.trainer) or self.pruned_reason or signal
        if not group.any(reason is not None):
            return None
        reasons = [found for found in group.all_gather(reason) if found]
        ends = [found for found in ENDS if found in reasons]
        return (ends or reasons)[0]

    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this step and of the best evaluation so far."""
        return self.saved == self.progress_of_checkpoint()

    def progress_of_checkpoint(self) -> tuple[int, dict[str, float], int]:
        """Return what tells checkpoints of one run apart: step, best evaluation, and last one."""
        trainer = self.trainer
        evaluated_step = trainer.evaluated_step if self.options.monitor else 0
        return trainer.global_step, dict(trainer.best or {}), evaluated_step

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
        self.check_run_folder()
        state = trainer.state_dict()
        if self.run:
            self.logger.sync()
            self.run.save_checkpoint(state, keep=self.options.keep_checkpoints, best=best)
        if not best:
            self.saved = self.progress_of_checkpoint()

    def finish(self, config: dict[str, Any]) -> None:
        """Write the table of hyperparameters and the last picture of a run that is complete.

        Args:
            config: the options of the table.
        """
        trainer = self.trainer
        final = self.run.final_metrics() if self.run else {}
        self.logger.write_hyperparameters(trainer.global_step, config, final)
        if trainer.group.any(self.run is not None and not self.has_preview()) and self.preview:
            self.write_preview(trainer.eval_model())
            trainer.train_mode()

    # --- the run folder ---------------------------------------------------------------------------

    def check_run_folder(self, *, save_missing: bool = False) -> None:
        """Write again what was deleted from the run folder by hand.

        Args:
            save_missing: also save a checkpoint of this step if there is none; every rank must
                ask for it together.

        Raises:
            FolderTakenError: another process trains in the folder; says where this training is.
        """
        if self.guard and self.run:
            try:
                messages = self.guard.restore()
            except FolderTakenError as error:
                raise FolderTakenError(f"{error}; {self.save_beside()}") from error
            for message in [*messages, *self.logger.restore_files()]:
                self.logger.print_message(f"step {self.trainer.global_step:,}: {message}")
        if save_missing:
            path = self.run.checkpoint_path(self.trainer.global_step) if self.run else None
            if self.trainer.group.any(path is not None and not path.exists()):
                self.save_checkpoint()

    def save_beside(self) -> str:
        """Save this training in a new folder beside the one that is taken; return where."""
        assert self.guard is not None
        if self.trainer.fsdp:  # every rank would have to save
            return "this training ends here"
        copy, step = self.guard.write_copy(), self.trainer.global_step
        copy.stats.write_bytes(self.logger.stats_content())
        copy.save_checkpoint(self.trainer.state_dict(), keep=1)
        return (
            f"this training was saved at step {step:,}; continue it with "
            f"`genlab train resume={copy.path}`"
        )
