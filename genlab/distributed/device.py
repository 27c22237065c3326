"""The device of a model, its precision and its memory layout."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from genlab.distributed.environment import read_environment
from genlab.errors import UserError
from genlab.spec import Batch, Count
from genlab.system import peak_memory_bytes


@dataclass(kw_only=True)
class Device:
    """A device with its precision and memory layout.

    Raises:
        UserError: this machine does not have the device.
    """

    name: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # index of the GPU; None takes the first, or the one of this process's local rank
    index: Count | None = None
    # bf16 and fp16: autocast over fp32 weights
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    tf32: bool = True  # on a GPU, allow TensorFloat-32 in fp32 matrix products
    compile: bool = False  # torch.compile each child module in place
    channels_last: bool = True  # store images as (B, H, W, C): faster convolutions
    deterministic: bool = False  # refuse operations whose result may differ between runs
    fsdp: bool = False  # shard the model over the processes (FSDP2), for one that does not fit
    # CPU threads; 0 keeps PyTorch's choice
    threads: Annotated[int, Interval(ge=0, le=4096)] = 0

    def __post_init__(self) -> None:
        if self.name == "auto":
            self.name = find_accelerator()
        if self.name == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "device=cuda, but PyTorch finds no GPU on this machine; "
                "use device=cpu or device=auto"
            )
        if self.name == "mps" and not torch.backends.mps.is_available():
            raise UserError(
                "device=mps, but PyTorch finds no Apple GPU on this machine; "
                "use device=cpu or device=auto"
            )
        self.torch = torch.device(self.name)
        if self.name == "cuda":
            self.torch = torch.device("cuda", self._gpu_index())

    def _gpu_index(self) -> int:
        """Return the index of this process's GPU; raise UserError if there is none."""
        visible, environment = torch.cuda.device_count(), read_environment()
        index = self.index if self.index is not None else environment.gpu_index(visible)
        if index < visible:
            return index
        if self.index is None:
            raise UserError(
                f"{environment.local_size} processes on this machine, but only {visible} visible "
                "GPUs; start one process per GPU"
            )
        raise UserError(
            f"device.index={index}, but this machine has {visible} GPUs (numbered from 0)"
        )

    def configure_torch(self) -> Device:
        """Set PyTorch's global switches: denormals, threads, TF32, determinism, cuDNN search."""
        # Importance weights and class probabilities near 0 are denormal numbers, which a CPU
        # multiplies many times slower.
        torch.set_flush_denormal(True)
        enable_malloc_memory_reuse()
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.name == "cuda":
            torch.cuda.set_device(self.torch)
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self.deterministic:  # cuBLAS is deterministic only with this variable
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # use_deterministic_algorithms() would import the compiler, which takes over a second
        torch.set_deterministic_debug_mode("error" if self.deterministic else "default")
        return self

    def seed(self, seed: int) -> None:
        """Seed the generators of the CPU and this device.

        `torch.manual_seed` looks at every kind of device, which takes longer.
        """
        torch.default_generator.manual_seed(seed)
        if self.name == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.name == "mps":
            torch.mps.manual_seed(seed)

    def move_and_compile(self, model: nn.Module, *, fsdp: bool = False) -> nn.Module:
        """Move and compile a model in place; a wrapper would hide its abilities.

        Args:
            fsdp: leave it on the CPU, from where FSDP moves it in parts.
        """
        device = torch.device("cpu") if fsdp else self.torch
        model.to(device, torch.float64 if self.precision == "fp64" else torch.float32)
        if self.channels_last and not fsdp:
            model.to(memory_format=torch.channels_last)
        if self.compile:
            torch.use_deterministic_algorithms(self.deterministic)  # of compiled code too
            for child in called_child_modules(model):
                child.compile()
        return model

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on this device, in the model's dtype and memory layout."""
        batch = batch.to(self.torch)
        batch.x = self.to_dtype_and_layout(batch.x)
        batch.cond = None if batch.cond is None else self.to_dtype_and_layout(batch.cond)
        return batch

    def to_dtype_and_layout(self, x: Tensor) -> Tensor:
        """Return a tensor in the model's dtype and memory layout."""
        if self.precision == "fp64" and x.is_floating_point():
            x = x.double()
        if self.channels_last and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which losses are computed."""
        if self.precision in ("fp32", "fp64"):
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.torch.type, dtype=dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler for fp16 gradients; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.torch.type, enabled=self.precision == "fp16")

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: GPU allocations, or this process's resident set."""
        if self.name == "cuda":
            return torch.cuda.max_memory_allocated(self.torch)
        return peak_memory_bytes()

    def __str__(self) -> str:
        threads = torch.get_num_threads()
        hardware = f"{threads} thread" + ("s" if threads > 1 else "")
        if self.name == "cuda":
            hardware = torch.cuda.get_device_name(self.torch)
        return f"{self.torch} ({hardware}), {self.precision}"


def find_accelerator() -> Literal["cpu", "cuda", "mps"]:
    """Return the name of this machine's GPU backend, or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def called_child_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the child modules that a model calls.

    Lists and dicts of modules are never called themselves; their items are yielded instead.
    """
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from called_child_modules(child)
        else:
            yield child


def enable_malloc_memory_reuse() -> None:
    """Let glibc reuse the memory of freed tensors, up to 32 MiB each and 2 GiB in all.

    By default it returns large blocks to the system, which clears each page when it is requested
    again: a tenth of a training step of a small U-Net on a CPU, and a quarter of its sampling.
    Does nothing on other platforms.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: its largest value
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
