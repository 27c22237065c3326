"""What the tests share: one thread, fixed seeds, and two ways to run a command line."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runner import REPOSITORY, Result, run_here, run_process


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep to one thread: the tests' tensors are small, and pytest-xdist fills the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is made once in a folder of this test session, the same one for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["GENLAB_CACHE"] = str(shared / "cache")


@pytest.fixture(scope="session", autouse=True)
def hasty_classifier() -> Iterator[None]:
    """Train the classifiers that measures need for a tenth of their epochs: it is the measures that are tested here."""
    from genlab.metrics.features import classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "MAX_EPOCHS", classifier.MAX_EPOCHS // 10)
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """Let floats be float64 for a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def genlab(tmp_path: Path) -> Callable[..., Result]:
    """`genlab("train", "model=vae")` in this process, in an empty folder or the one that `cwd` names."""
    return lambda *arguments, cwd=tmp_path: run_here(*arguments, cwd=cwd)


@pytest.fixture
def genlab_process(tmp_path: Path) -> Callable[..., Result]:
    """The same as a process of its own, with environment variables as keywords."""
    return lambda *arguments, cwd=tmp_path, **environment: run_process(
        *arguments, cwd=cwd, **environment
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained("model=gan", …)`: the folder of a run of two steps, the same one for the same options: only to read."""
    made: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in made:
            cwd = tmp_path_factory.mktemp("trained")
            small = (
                "trainer.steps=2",
                "trainer.batch_size=8",
                "trainer.preview_every=0",
                "device=cpu",
                "out=run",
            )
            result = run_here("train", *options, *small, cwd=cwd)
            assert result.code == 0, result.err
            made[options] = cwd / "run"
        return made[options]

    return train


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
