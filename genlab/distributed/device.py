"""Where and in which precision a model runs."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from genlab.distributed.environment import world
from genlab.errors import UserError
from genlab.spec import Batch, Count


@dataclass(kw_only=True)
class Device:
    """A device with its precision and layout.

    Raises:
        UserError: the device is not on this machine.
    """

    name: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    index: Count | None = (
        None  # which GPU; None: the first, or the one of this process's local rank
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = (
        "fp32"  # bf16 and fp16: autocast over fp32 weights
    )
    tf32: bool = True  # on a GPU, let fp32 matrix products use TensorFloat-32
    compile: bool = False  # torch.compile each brick in place
    channels_last: bool = True
    deterministic: bool = False  # refuse operations whose result may differ from run to run
    fsdp: bool = False  # of several processes: each holds a part of the model (FSDP2), for one that does not fit
    threads: Annotated[int, Interval(ge=0, le=4096)] = 0  # CPU threads; 0: PyTorch's own choice

    def __post_init__(self) -> None:
        if self.name == "auto":
            self.name = (
                "cuda"
                if torch.cuda.is_available()
                else "mps"
                if torch.backends.mps.is_available()
                else "cpu"
            )
        if self.name == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "device=cuda, but PyTorch sees no GPU on this machine; use device=cpu or device=auto"
            )
        if self.name == "mps" and not torch.backends.mps.is_available():
            raise UserError(
                "device=mps, but this machine has no Apple GPU that PyTorch can use; use device=cpu or device=auto"
            )
        visible = torch.cuda.device_count()
        index = self.index if self.index is not None else world().gpu(visible)
        if self.name == "cuda" and index >= visible:
            if self.index is None:
                raise UserError(
                    f"{world().local_size} processes on this machine, which see {visible} GPUs; start one for each"
                )
            raise UserError(
                f"device.index={index}, but this machine has {visible} GPUs (numbered from 0)"
            )
        self.torch = (
            torch.device(self.name, index) if self.name == "cuda" else torch.device(self.name)
        )

    def prepare(self) -> Device:
        """Set the process's global switches: denormals, threads, TF32, determinism, convolution search."""
        # importance weights and class probabilities near 0 are denormal, and a CPU multiplies those many times slower
        torch.set_flush_denormal(True)
        keep_freed_memory()
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.name == "cuda":
            torch.cuda.set_device(self.torch)
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self.deterministic:
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # cuBLAS is deterministic only with it
        torch.use_deterministic_algorithms(self.deterministic)
        return self

    def seed(self, seed: int) -> None:
        """Set the random state here and on the CPU; `torch.manual_seed` asks every kind of device, which takes a while."""
        torch.default_generator.manual_seed(seed)
        if self.name == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.name == "mps":
            torch.mps.manual_seed(seed)

    def place(self, model: nn.Module, *, fsdp: bool = False) -> nn.Module:
        """Move a model here, in place: a wrapper would hide its abilities; for `fsdp` only make it ready to be moved in parts."""
        model.to(
            "cpu" if fsdp else self.torch,
            torch.float64 if self.precision == "fp64" else torch.float32,
        )
        if self.channels_last and not fsdp:
            model.to(memory_format=torch.channels_last)
        if self.compile:
            for brick in bricks(model):
                brick.compile()
        return model

    def ready(self, batch: Batch) -> Batch:
        """Return the batch here, in the layout and floating type that the model has."""
        batch = batch.to(self.torch)
        batch.x = self.suited(batch.x)
        batch.cond = None if batch.cond is None else self.suited(batch.cond)
        return batch

    def suited(self, x: Tensor) -> Tensor:
        """Return a tensor in the floating type and layout that the model has."""
        if self.precision == "fp64" and x.is_floating_point():
            x = x.double()
        return (
            x.contiguous(memory_format=torch.channels_last)
            if self.channels_last and x.ndim == 4
            else x
        )

    def autocast(self) -> AbstractContextManager:
        """Return the context in which losses are computed."""
        if self.precision in ("fp32", "fp64"):
            return nullcontext()
        return torch.autocast(
            self.torch.type, dtype=torch.bfloat16 if self.precision == "bf16" else torch.float16
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler that keeps fp16 gradients from vanishing; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.torch.type, enabled=self.precision == "fp16")

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: the GPU's allocations, or this process's resident set."""
        if self.name == "cuda":
            return torch.cuda.max_memory_allocated(self.torch)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def __str__(self) -> str:
        name = (
            torch.cuda.get_device_name(self.torch)
            if self.name == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        return f"{self.torch} ({name}), {self.precision}"


def bricks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that a model calls: its children, and in the place of a list of modules, which no one calls, its items."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from bricks(child)
        else:
            yield child


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, up to 32 MiB each and 2 GiB in all; elsewhere nothing.

    By itself it gives large blocks back to the system, which clears each page when it is asked for them again: a tenth of
    a training step of a small U-Net on a CPU, and a quarter of its sampling.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: its largest value
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
