"""The base class of trainers: one update rule each, with what all of them share.

The loop around it is `genlab.training.loop.fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from genlab.data.dataset import slice_batch
from genlab.distributed.batch_shard_buffers import ShardBuffers
from genlab.distributed.device import Device
from genlab.distributed.gradient_buckets import GradientBuckets
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.runs.migrations import FORMAT
from genlab.seeding import derive_seed
from genlab.spec import Batch
from genlab.training.ema import EMA
from genlab.training.joint_batch import JointBatch, refuse_shards_of_batch_statistics
from genlab.training.options import TrainerOptions
from genlab.untrusted.states import (
    check_counters,
    check_names,
    check_scaler_state,
    check_shard_buffers,
    check_weights,
    checked_optimizer_state,
)

if TYPE_CHECKING:
    from genlab.distributed.fsdp import FSDP

Losses = dict[str, Tensor]

# Items that re-estimate the batch statistics of the averaged weights, in batches of a shard's size.
STATISTICS_ITEMS = 512
MAX_STATISTICS_VALUES = 2**24  # values of these items in memory, unless one batch has more
STATISTICS_SEED = 2**31 - 2  # tells their noise from that of training steps


class Data(Protocol):
    """A dataset, as far as training uses it."""

    def batches(self, split: str, batch_size: int, **options: Any) -> Iterator[Batch]:
        """Return this process's shards of the joint batches; see `Dataset.batches`."""

    def size(self, split: str) -> int:
        """Return the number of items of a split."""


class Trainer:
    """One update rule; this base class is gradient descent on `model.loss(batch)["loss"]`.

    A family overrides `configure` (its optimizers) and `step` (one update), and may extend
    `Options`. Each process divides its part of a joint batch into `grad_accum_steps` shards. Each
    shard draws its own random numbers, seeded by (seed, step, draw, shard), so that neither a
    resume nor another number of processes changes them.

    Args:
        make_optimizer: makes an optimizer for parameters: `partial(torch.optim.Adam, lr=1e-3)`.

    Raises:
        UserError: the batch size is still "auto".
    """

    Options: ClassVar[type[TrainerOptions]] = TrainerOptions
    # Whether an update calls nothing of the model but `loss`, which device.fsdp requires. A
    # subclass does not inherit it: each class states it for itself.
    supports_fsdp: ClassVar[bool] = True
    # Whether `model.loss` of held-out items is an objective that is comparable with the training
    # loss. A subclass does not inherit it either.
    has_validation_loss: ClassVar[bool] = True

    options: TrainerOptions

    def __init__(
        self,
        model: GenerativeModel,
        make_optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        options: TrainerOptions,
        *,
        seed: int = 0,
        device: Device | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        if options.batch_size == "auto":
            raise UserError(
                "trainer.batch_size=auto: a trainer needs a number, which "
                "genlab.training.auto_batch_size.find_batch_size finds"
            )
        self.device = device or Device(name="cpu")
        self.group = group or ProcessGroup()
        self.make_optimizer = make_optimizer
        self.options = options
        self.batch_size: int = options.batch_size
        self.seed = seed
        uses_fsdp = self.device.fsdp and self.group.size > 1
        self.fsdp = self.apply_fsdp(model) if uses_fsdp else None
        if not self.fsdp:
            self.device.move_and_compile(model)
        self.model = model
        self.global_step = 0  # updates done
        self.batches_consumed = 0  # joint batches taken from the data
        self.rng_draws = 0  # calls of `seeded_shards` within this step
        self.items_per_step = self.batch_size
        self.seconds = 0.0  # of training, including those before a resume
        # of the monitored metric: its value, its step, and evaluations since
        self.best: dict[str, float] | None = None
        self.evaluated_step = 0  # the step of the last evaluation that `best` takes into account
        self.unlogged_losses: list[dict[str, float]] = []  # since the last logged step
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.gradient_buckets: dict[str, GradientBuckets] = {}  # by optimizer
        if not options.shard_statistics:
            refuse_shards_of_batch_statistics(
                model, processes=self.group.size, grad_accum_steps=options.grad_accum_steps
            )
        self.configure()
        self.scaler = self.device.grad_scaler()
        ema_model = self.fsdp.ema_model if self.fsdp else None
        self.ema = EMA(model, options.ema_decay, ema_model) if options.ema_decay else None
        self.data: Any = None  # of the last call of `train_batches`
        self.statistics_step: int | None = None  # step of the averaged weights' batch statistics
        self.shard_buffers = ShardBuffers(
            model, num_local=options.grad_accum_steps, group=self.group
        )
        for optimizer in self.optimizers.values():
            for param_group in optimizer.param_groups:
                param_group["base_lr"] = float(param_group["lr"])

    def apply_fsdp(self, model: GenerativeModel) -> FSDP:
        """Shard the model over the processes, in place.

        Raises:
            UserError: this update rule, or an option of the device, needs the full model.
        """
        from genlab.distributed.fsdp import FSDP  # takes a while to import

        if not vars(type(self)).get("supports_fsdp"):
            raise UserError(
                f"device.fsdp: {type(self).__name__} needs the whole model; set device.fsdp=false"
            )
        if self.device.precision == "fp16" or self.device.compile:
            raise UserError(
                "device.fsdp requires device.precision=bf16, fp32 or fp64, and device.compile=false"
            )
        self.device.move_and_compile(model, fsdp=True)
        return FSDP(model, self.device, self.group, ema=self.options.ema_decay > 0)

    # --- what a family may override ---------------------------------------------------------------

    def configure(self) -> None:
        """Fill `self.optimizers`."""
        self.optimizers["model"] = self.make_optimizer(self.model.parameter_groups())

    def step(self, batches: Iterator[Batch]) -> Losses:
        """Make one update; take as many joint batches as the rule needs."""
        return self.optimizer_step("model", self.model.loss, self.next_batch(batches))

    @property
    def can_validate(self) -> bool:
        """Whether this trainer computes losses of held-out items."""
        return bool(vars(type(self)).get("has_validation_loss")) and not self.fsdp

    def validation_items(self, data: Any, n: int) -> Batch:
        """Return n held-out items as `validation_loss` takes them."""
        return data.head("validation", n, seed=self.seed)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the loss () of held-out items, as the training minimizes it at this step."""
        return self.model.loss(batch)["loss"]

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return problems that the mean losses since the last log show, with suggestions.

        Each problem is reported once, when it begins.
        """
        return []

    def train_batches(self, data: Data, **options: Any) -> Iterator[Batch]:
        """Return this process's shards of the training batches, from the first unused one.

        A trainer that chooses the items of a batch itself overrides it.

        Args:
            options: passed to `data.batches`.
        """
        self.data = data
        num_local = self.options.grad_accum_steps
        first = self.group.rank * num_local
        defaults = {"batch_size": self.batch_size, "seed": self.seed}
        return data.batches(
            "train",
            start=self.batches_consumed,
            shard=range(first, first + num_local),
            num_shards=num_local * self.group.size,
            device=self.device.torch,
            **{**defaults, **options},
        )

    def schedule_range(self) -> tuple[int, int]:
        """Return the first and last step of the learning rate schedule; stages have one each."""
        return 0, self.options.steps

    # --- parts of an update rule ------------------------------------------------------------------

    def next_batch(self, batches: Iterator[Batch]) -> list[Batch]:
        """Return this process's shards of the next joint batch."""
        self.batches_consumed += 1
        return [self.device.to_device(next(batches)) for _ in range(self.options.grad_accum_steps)]

    def seeded_shards(self, shards: list[Batch]) -> Iterator[tuple[int, Batch]]:
        """Yield (number in the joint batch, shard), each with its own random state and buffers."""
        self.rng_draws += 1
        for i, batch in enumerate(shards):
            shard = self.group.rank * len(shards) + i
            self.device.seed(derive_seed(self.seed, self.global_step, self.rng_draws, shard))
            with self.shard_buffers.use_shard(i):
                yield shard, batch

    def optimizer_step(
        self, name: str, loss: Callable[[Batch], Losses], shards: list[Batch]
    ) -> Losses:
        """Step an optimizer on the mean of `loss(shard)["loss"]` over all shards of all processes.

        Only the parameters of that optimizer receive gradients: in a GAN, the opponent stays as it
        is.

        Args:
            name: of the optimizer, in `self.optimizers`.

        Returns:
            The mean of every entry of the losses over this process's shards.
        """
        optimizer = self.optimizers[name]
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
        ]
        optimizer.zero_grad(set_to_none=True)
        parts: list[Losses] = []
        joint = self.joint_batch(loss, shards)
        for _, batch in self.seeded_shards(shards):
            with self.loss_context(), joint.use_shard(len(parts)) if joint else nullcontext():
                losses = loss(batch)
            parts.append({key: value.detach() for key, value in losses.items()})
            scaled = self.scaler.scale(losses["loss"])
            is_last = len(parts) == len(shards)
            with self.synchronize_gradients(name, parameters) if is_last else nullcontext():
                (scaled if len(shards) == 1 else scaled / len(shards)).backward(
                    inputs=None if self.fsdp else parameters
                )
        self.scaler.unscale_(optimizer)
        logs = parts[0]
        if len(parts) > 1:
            logs = {key: torch.stack([part[key] for part in parts]).mean(0) for key in parts[0]}
        norm = self.clip_gradients(parameters)
        if norm is not None:
            logs[f"grad_norm/{name}"] = norm
        self.scaler.step(optimizer)
        self.scaler.update()
        return logs

    def joint_batch(
        self, loss: Callable[[Batch], Losses], shards: list[Batch]
    ) -> JointBatch | None:
        """Return the values of all shards for a loss that is not a mean over items, else None."""
        if not self.model.needs_joint_batch or self.group.size * len(shards) == 1:
            return None
        return JointBatch(self, loss, shards)

    @contextmanager
    def loss_context(self) -> Iterator[None]:
        """Context in which a loss is computed: autocast, and error messages of FSDP."""
        explain = self.fsdp.explain_unsharded_use(self.model) if self.fsdp else nullcontext()
        with self.device.autocast(), explain:
            yield

    def clip_gradients(self, parameters: list[nn.Parameter]) -> Tensor | None:
        """Clip the gradient norm if enabled; return the norm, or None where it is not computed.

        It costs a pass over the gradients, so without clipping only logged steps compute it.
        """
        norm: Any
        if self.options.grad_clip:
            norm = nn.utils.clip_grad_norm_(parameters, self.options.grad_clip)
        elif (self.global_step + 1) % self.options.log_every == 0:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            return None
        return norm.full_tensor() if self.fsdp else norm

    def synchronize_gradients(
        self, name: str, parameters: list[nn.Parameter]
    ) -> AbstractContextManager[None]:
        """Return the context of a backward pass whose gradients are averaged over all processes."""
        if self.fsdp:  # averages them itself
            return nullcontext()
        if name not in self.gradient_buckets:
            overlap = self.device.name == "cuda"
            self.gradient_buckets[name] = GradientBuckets(parameters, self.group, overlap=overlap)
        return self.gradient_buckets[name].average_gradients()

    # --- what the loop calls ----------------------------------------------------------------------

    def train_step(self, batches: Iterator[Batch]) -> Losses:
        """Make one update with everything around it: learning rates, buffers, EMA."""
        self.update_lr()
        self.rng_draws = 0
        with explain_single_item():
            losses = self.step(batches)
        self.shard_buffers.average_running_statistics()
        if self.ema:
            self.ema.update(self.model, self.global_step)
            self.statistics_step = None
        self.global_step += 1
        return losses

    def eval_model(self) -> GenerativeModel:
        """Return the model for evaluation, with EMA weights if enabled, in eval mode.

        Under FSDP every rank must call this, and only rank 0 gets a model that can be evaluated.
        """
        self.reestimate_ema_statistics()
        model = self.ema.model if self.ema else self.model
        return (self.fsdp.gather_full_model(model) if self.fsdp else model).eval()

    # The running statistics of the live weights do not fit the averaged weights.
    @torch.no_grad()
    def reestimate_ema_statistics(self) -> None:
        """Set the averaged weights' statistics of batch normalization from training items.

        They depend only on the weights, the seed and the data, so that a resume computes the same.
        Neither the random states nor the training change.
        """
        if not self.ema or not self.ema.batch_norms or self.fsdp or not hasattr(self.data, "head"):
            return
        if self.statistics_step == self.global_step:
            return
        devices = [torch.cuda.current_device()] if self.device.name == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.ema.reestimated_statistics():
            for i, batch in enumerate(self.statistics_batches()):
                self.device.seed(derive_seed(self.seed, STATISTICS_SEED, i))
                with self.loss_context():
                    self.statistics_pass(self.ema.model, batch)
        self.statistics_step = self.global_step

    def statistics_batches(self) -> Iterator[Batch]:
        """Yield the batches that re-estimate batch statistics, each as large as a shard."""
        size = max(2, self.batch_size // (self.options.grad_accum_steps * self.group.size))
        num_batches = -(-min(STATISTICS_ITEMS, MAX_STATISTICS_VALUES // self.data.spec.dim) // size)
        n = min(max(1, num_batches) * size, self.data.size("train"))
        items = self.data.head("train", n, seed=self.seed)
        for start in range(0, n, size):
            if n - start > 1 or n == 1:  # a single item may not have a variance
                yield self.device.to_device(slice_batch(items, start, start + size))

    def statistics_pass(self, model: GenerativeModel, batch: Batch) -> None:
        """Run a batch through all layers of a model that normalize by the batch."""
        model.loss(batch)

    def train_mode(self) -> None:
        """Switch back to training mode after evaluation."""
        self.model.train()
        if self.fsdp:
            self.fsdp.offload_full_model()

    def schedule_progress(self) -> float:
        """Return the completed fraction of the learning rate schedule after warm-up, 0 … 1."""
        start, end = self.schedule_range()
        start += self.options.lr_warmup_steps
        return min(1.0, max(0, self.global_step - start) / max(1, end - start))

    def update_lr(self) -> None:
        """Set the learning rates of this step: linear warm-up, schedule, and milestones."""
        o, step = self.options, self.global_step - self.schedule_range()[0]
        if o.lr_schedule == "constant" and not o.lr_milestones and step > o.lr_warmup_steps:
            return
        factor = min(1.0, (step + 1) / o.lr_warmup_steps) if o.lr_warmup_steps else 1.0
        progress = self.schedule_progress()
        if o.lr_schedule == "linear":
            factor *= 1 - progress
        elif o.lr_schedule == "cosine":
            factor *= (1 + math.cos(math.pi * progress)) / 2
        factor *= 0.1 ** sum(milestone <= self.global_step for milestone in o.lr_milestones)
        for optimizer in self.optimizers.values():
            for param_group in optimizer.param_groups:
                param_group["lr"] = param_group["base_lr"] * factor

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors; every rank must call it."""
        self.reestimate_ema_statistics()
        state = {
            "format": FORMAT,
            "step": self.global_step,
            "batches_consumed": self.batches_consumed,
            "seed": self.seed,
            "seconds": self.seconds,
            "best": self.best,
            "evaluated_step": self.evaluated_step,
            "unlogged_losses": self.unlogged_losses,
            "model": self.model.state_dict(),
            "per_shard_buffers": self.shard_buffers.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
        }
        return self.fsdp.gather_full_state(state) if self.fsdp else state

    def check_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a loaded state whose tensors and numbers fit this trainer.

        Raises:
            InvalidStateError: names the entry that does not fit.
        """
        check_counters(state)
        check_weights(state["model"], self.model.state_dict(), "model")
        if self.ema:
            check_weights(state["ema"], self.ema.model.state_dict(), "ema")
        check_shard_buffers(state.get("per_shard_buffers", {}), self.shard_buffers.state_dict())
        check_names(state["optimizers"], self.optimizers, "optimizers")
        check_scaler_state(state["scaler"], self.scaler.state_dict())
        optimizers = {
            name: checked_optimizer_state(state["optimizers"][name], optimizer, name)
            for name, optimizer in self.optimizers.items()
        }
        return {**state, "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            InvalidStateError: an entry does not fit this trainer.
        """
        state = self.check_state(state)
        if self.fsdp:
            state = self.fsdp.shard_state(state, self.model, self.optimizers)
        self.global_step, self.seed = state["step"], state["seed"]
        self.batches_consumed = state["batches_consumed"]
        self.seconds, self.best = state["seconds"], state["best"]
        # missing in older checkpoints
        self.evaluated_step = state.get("evaluated_step", state["step"])
        self.unlogged_losses = state["unlogged_losses"]
        self.model.load_state_dict(state["model"])
        # missing in the first checkpoints of format 1
        self.shard_buffers.load_state_dict(state.get("per_shard_buffers", {}))
        if self.ema:
            self.ema.model.load_state_dict(state["ema"])
            self.statistics_step = None
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])


@contextmanager
def explain_single_item() -> Iterator[None]:
    """Context that says what to do if batch normalization gets a single item.

    Raises:
        UserError: instead of PyTorch's error.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "this model normalizes each batch, which needs at least two items: set "
            "trainer.batch_size=2 (times the processes and trainer.grad_accum_steps)"
        ) from error
