"""Fixtures of all tests: one thread, fixed seeds, and two ways to run a command line."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import torch
from helpers.cli_runner import REPOSITORY, Result, run_here, run_process


@pytest.fixture(scope="session", autouse=True)
def limit_threads() -> None:
    """Use one thread: the tests' tensors are small, and pytest-xdist fills the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def hide_progress() -> Iterator[None]:
    """Show no progress of slow work, so that a busy machine does not change a test's output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def freeze_imported_objects() -> None:
    """Keep the garbage collector from visiting the objects of imported modules again and again."""
    import genlab.builders.train  # noqa: F401  # imports what most tests need

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def parse_each_text_once() -> Iterator[None]:
    """Keep the parsed YAML files and interpolations: they are a third of each composition."""
    import omegaconf._utils
    import omegaconf.base
    import omegaconf.omegaconf
    import yaml

    parsed: dict[str, bytes] = {}

    def load(source: IO[str] | str, Loader: type) -> object:  # with the names of yaml.load
        text = source if isinstance(source, str) else source.read()
        if text not in parsed:
            parsed[text] = pickle.dumps(yaml.load(text, Loader))
        return pickle.loads(parsed[text])  # faster than a deep copy

    namespace = SimpleNamespace(**{**vars(yaml), "load": load})
    parse = functools.cache(omegaconf.base.parse)  # its tree is only read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omegaconf.omegaconf, "yaml", namespace)
        patch.setattr(omegaconf.base, "parse", parse)
        patch.setattr(omegaconf._utils, "parse", parse)
        yield


@pytest.fixture(scope="session", autouse=True)
def set_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set GENLAB_CACHE to one folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["GENLAB_CACHE"] = str(shared / "cache")


@pytest.fixture(scope="session", autouse=True)
def short_classifier_training() -> Iterator[None]:
    """Train the classifiers of the metrics for a tenth of their epochs, to save time."""
    from genlab.metrics.features import classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "MAX_EPOCHS", classifier.MAX_EPOCHS // 10)
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 the default dtype during a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def fix_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def genlab(tmp_path: Path) -> Callable[..., Result]:
    """Run `genlab("train", "model=vae")` in this process, in an empty folder or in `cwd`."""
    return lambda *arguments, cwd=tmp_path: run_here(*arguments, cwd=cwd)


@pytest.fixture
def genlab_process(tmp_path: Path) -> Callable[..., Result]:
    """Run a command line in a new process, with environment variables as keywords."""
    return lambda *arguments, cwd=tmp_path, **environment: run_process(
        *arguments, cwd=cwd, **environment
    )


@pytest.fixture(scope="session")
def train_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train for two steps and return the run folder: `train_run("model=gan", …)`.

    The same options return the same folder, so a test must not change it.
    """
    folders: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in folders:
            cwd = tmp_path_factory.mktemp("trained")
            short = (
                "trainer.steps=2",
                "trainer.batch_size=8",
                "trainer.preview_every=0",
                "device=cpu",
                "out=run",
            )
            result = run_here("train", *options, *short, cwd=cwd)
            assert result.code == 0, result.err
            folders[options] = cwd / "run"
        return folders[options]

    return train


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY
