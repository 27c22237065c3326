"""A trainer holds one update rule; this is what all of them share. The loop around it is in `loop.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from genlab.distributed.device import Device
from genlab.distributed.gradient_buckets import Buckets
from genlab.distributed.process_group import Ranks
from genlab.distributed.shard_buffers import ShardBuffers
from genlab.errors import UserError
from genlab.seeding import mix
from genlab.spec import Batch
from genlab.training.ema import EMA
from genlab.training.loop import Loop
from genlab.training.options import Options

if TYPE_CHECKING:
    from genlab.distributed.fsdp import FSDP
    from genlab.runs.run_folder import RunFolder

Losses = dict[str, Tensor]


class Data(Protocol):
    """What the loop asks of a dataset."""

    def batches(self, split: str, batch_size: int, **where: Any) -> Iterator[Batch]: ...


class Trainer:
    """One update rule; this base is plain descent on `model.loss(batch)["loss"]`.

    A family overrides `configure` (its optimizers) and `step` (one update), and may extend `Options`. A joint batch is
    cut into `accumulate` shards for each process; each shard draws its own random numbers, seeded by (seed, step, draw,
    shard), so that neither a resume nor another number of processes changes them.

    Args:
        optimizer: makes an optimizer of parameters, as `partial(torch.optim.Adam, lr=1e-3)`.

    Raises:
        UserError: a batch size that is not settled yet.
    """

    Options = Options
    divisible = True  # device.fsdp: whether all that an update asks of the model is `loss`; each class says it for itself

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        options: Options,
        *,
        seed: int = 0,
        device: Device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if options.batch_size == "auto":
            raise UserError(
                "trainer.batch_size=auto: a trainer needs a number; genlab.training.auto_batch_size.settle finds it"
            )
        self.device = device or Device(name="cpu")
        self.ranks = ranks or Ranks()
        self.optimizer = optimizer
        self.options = options
        self.seed = seed
        self.fsdp = self.divided(model) if self.device.fsdp and self.ranks.size > 1 else None
        self.model = model if self.fsdp else self.device.place(model)
        self.at = 0  # steps done
        self.pulled = 0  # joint batches taken from the stream
        self.draws = 0  # random draws begun within this step
        self.items_a_step = options.batch_size
        self.seconds = 0.0  # of training, resumes counted in
        self.best: dict[str, float] | None = (
            None  # of the monitored metric: its value, the step, evaluations since
        )
        self.pending: list[dict[str, float]] = []  # losses since the last logged step
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.buckets: dict[str, Buckets] = {}  # by optimizer
        self.configure()
        self.scaler = self.device.scaler()
        self.ema = (
            EMA(self.model, options.ema, self.fsdp and self.fsdp.mean) if options.ema else None
        )
        self.buffers = ShardBuffers(self.model, local=options.accumulate, ranks=self.ranks)
        for optimizer_ in self.optimizers.values():
            for group in optimizer_.param_groups:
                group["base_lr"] = float(group["lr"])

    def divided(self, model: nn.Module) -> FSDP:
        """Cut the model over the processes.

        Raises:
            UserError: this rule, or this way to compute, needs the whole model.
        """
        from genlab.distributed.fsdp import FSDP  # takes a while to import

        if not vars(type(self)).get("divisible"):
            raise UserError(
                f"device.fsdp: {type(self).__name__} needs the whole model; set device.fsdp=false"
            )
        if self.device.precision == "fp16" or self.device.compile:
            raise UserError(
                "device.fsdp goes with device.precision=bf16, fp32 or fp64, and without device.compile"
            )
        return FSDP(
            self.device.place(model, fsdp=True), self.device, self.ranks, mean=self.options.ema > 0
        )

    # --- what a family may override -----------------------------------------------------------------------------------

    def configure(self) -> None:
        """Fill `self.optimizers`; a model may say by `parameter_groups` which of its parameters take options of their own."""
        parameters = getattr(self.model, "parameter_groups", self.model.parameters)
        self.optimizers["model"] = self.optimizer(parameters())

    def step(self, batches: Iterator[Batch]) -> Losses:
        """Make one update; pull as many batches as the rule says."""
        return self.descend("model", self.model.loss, self.pull(batches))

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return what the mean losses since the last log say is wrong, with what to try; each is said when it begins."""
        return []

    # --- what an update rule is made of -------------------------------------------------------------------------------

    def pull(self, batches: Iterator[Batch]) -> list[Batch]:
        """Return this process's shards of the next joint batch."""
        self.pulled += 1
        return [self.device.ready(next(batches)) for _ in range(self.options.accumulate)]

    def draw(self, shards: list[Batch]) -> Iterator[tuple[int, Batch]]:
        """Yield each local shard with its number in the joint batch, the random state set to that shard's own."""
        self.draws += 1
        for i, batch in enumerate(shards):
            shard = self.ranks.rank * len(shards) + i
            self.device.seed(mix(self.seed, self.at, self.draws, shard))
            with self.buffers.of(i):
                yield shard, batch

    def descend(self, name: str, loss: Callable[[Batch], Losses], shards: list[Batch]) -> Losses:
        """Step the optimizer `name` once down the mean over all shards of `loss(shard)["loss"]`; return the mean losses.

        Only that optimizer's parameters receive gradients: the opponent in a game stays as it is.
        """
        optimizer = self.optimizers[name]
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
        ]
        optimizer.zero_grad(set_to_none=True)
        parts: list[Losses] = []
        for _, batch in self.draw(shards):
            with (
                self.device.autocast(),
                self.fsdp.calling(self.model) if self.fsdp else nullcontext(),
            ):
                losses = loss(batch)
            parts.append({k: v.detach() for k, v in losses.items()})
            scaled = self.scaler.scale(losses["loss"])
            with self.averaging(name, parameters) if len(parts) == len(shards) else nullcontext():
                (scaled if len(shards) == 1 else scaled / len(shards)).backward(
                    inputs=None if self.fsdp else parameters
                )
        grads = [p.grad for p in parameters if p.grad is not None]
        self.scaler.unscale_(optimizer)
        logs = (
            parts[0]
            if len(parts) == 1
            else {k: torch.stack([p[k] for p in parts]).mean(0) for k in parts[0]}
        )
        if self.options.clip:
            norm = nn.utils.clip_grad_norm_(parameters, self.options.clip)
        elif (
            self.at + 1
        ) % self.options.log_every == 0:  # costs a pass over the gradients: only where it is shown
            norm = nn.utils.get_total_norm(grads)
        else:
            norm = None
        if norm is not None:
            logs[f"grad_norm/{name}"] = norm.full_tensor() if self.fsdp else norm
        self.scaler.step(optimizer)
        self.scaler.update()
        return logs

    def averaging(self, name: str, parameters: list[nn.Parameter]) -> AbstractContextManager:
        """Return the context of the backward after which the gradients of `parameters` are the mean over all processes."""
        if self.fsdp:  # its own backward does it
            return nullcontext()
        if name not in self.buckets:
            self.buckets[name] = Buckets(parameters, self.ranks, early=self.device.name == "cuda")
        return self.buckets[name].averaging()

    # --- a run of it ----------------------------------------------------------------------------------------------------

    def fit(self, data: Data, run: RunFolder | None = None, **how: Any) -> str:
        """Train until the options say so; return why it ended (see `Loop`, which takes the other arguments)."""
        return Loop(self, run, **how).fit(data)

    def advance(self, batches: Iterator[Batch]) -> Losses:
        """Make one update, with everything that belongs to it."""
        self.set_rates()
        self.draws = 0
        losses = self.step(batches)
        self.buffers.settle()
        if self.ema:
            self.ema.update(self.model, self.at)
        self.at += 1
        return losses

    def stream(self, data: Data, **how: Any) -> Iterator[Batch]:
        """Return this process's shards of the training batches, from the first one not yet taken.

        A trainer with a rule of its own for which items a batch holds overrides it; `how` goes to `data.batches`.
        """
        local, all_ = self.options.accumulate, self.options.accumulate * self.ranks.size
        mine = range(self.ranks.rank * local, (self.ranks.rank + 1) * local)
        how = {"batch_size": self.options.batch_size, "seed": self.seed} | how
        return data.batches(
            "train", start=self.pulled, shard=mine, shards=all_, device=self.device.torch, **how
        )

    def sampler(self) -> nn.Module:
        """Return the model to be asked: the running mean where there is one, in evaluation mode.

        Of a model that is cut all processes call it, and the first one has something to ask.
        """
        model = self.ema.model if self.ema else self.model
        return (self.fsdp.asked(model) if self.fsdp else model).eval()

    def go_on(self) -> None:
        """Be as training needs it, after the model was asked."""
        self.model.train()
        if self.fsdp:
            self.fsdp.rest()

    def span(self) -> tuple[int, int]:
        """Return the steps between which the rate warms up and falls; a rule with stages has one of each."""
        return 0, self.options.steps

    def progress(self) -> float:
        """Return the share of the schedule that lies behind, 0 … 1."""
        start, end = self.span()
        return min(
            1.0,
            max(0, self.at - start - self.options.warmup)
            / max(1, end - start - self.options.warmup),
        )

    def set_rates(self) -> None:
        """Set the learning rates of this step: a linear warm-up, then the schedule down to 0 at the last step, and the drops."""
        o, since = self.options, self.at - self.span()[0]
        if o.schedule == "constant" and not o.drops and since > o.warmup:
            return
        factor = min(1.0, (since + 1) / o.warmup) if o.warmup else 1.0
        share = self.progress()
        factor *= {
            "constant": 1.0,
            "linear": 1 - share,
            "cosine": (1 + math.cos(math.pi * share)) / 2,
        }[o.schedule]
        factor *= 0.1 ** sum(step <= self.at for step in o.drops)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def state(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors; all processes ask for it together."""
        state = {
            "step": self.at,
            "pulled": self.pulled,
            "seed": self.seed,
            "seconds": self.seconds,
            "best": self.best,
            "pending": self.pending,
            "model": self.model.state_dict(),
            "apart": self.buffers.state(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
        }
        return self.fsdp.gathered(state) if self.fsdp else state

    def load(self, state: dict[str, Any]) -> None:
        """Become the trainer that `state` was taken from."""
        if self.fsdp:
            state = self.fsdp.spread(state, self.model, self.optimizers)
        self.at, self.pulled, self.seed = state["step"], state["pulled"], state["seed"]
        self.seconds, self.best, self.pending = state["seconds"], state["best"], state["pending"]
        self.model.load_state_dict(state["model"])
        self.buffers.load(state.get("apart", {}))  # older checkpoints have none
        if self.ema:
            self.ema.model.load_state_dict(state["ema"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])
