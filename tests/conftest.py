"""What the tests share: one thread, fixed seeds, and two ways to run a command line."""

from __future__ import annotations

import io
import logging
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line with which genlab refused what was asked, checked to be just that."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert len(lines) == 1 and lines[0].startswith("genlab: "), self.err
        assert "Traceback" not in self.out + self.err
        return lines[0]


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
        patch.setattr(classifier, "EPOCHS", classifier.EPOCHS // 10)
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


def run_here(*arguments: object, cwd: Path) -> Result:
    """Run `genlab <arguments>` in this process, which has torch imported already, and put back what it changes."""
    from hydra.core.global_hydra import GlobalHydra

    from genlab import cli

    before = os.getcwd(), os.environ.copy(), sys.argv, sys.path.copy(), set(sys.modules)
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    out, err, code = io.StringIO(), io.StringIO(), 0
    os.environ.pop("HYDRA_FULL_ERROR", None)
    cli.stamp.cache_clear()
    try:
        os.chdir(cwd)
        sys.argv = ["genlab", *map(str, arguments)]
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        code = 1
        err.write(traceback.format_exc())
    finally:
        GlobalHydra.instance().clear()
        os.chdir(before[0])
        os.environ.clear()
        os.environ.update(before[1])
        sys.argv, sys.path[:] = before[2:4]
        root.handlers[:] = handlers
        root.setLevel(level)  # Hydra's --info turns debugging on
        for name in set(sys.modules) - before[4]:  # a model beside a test's config must not reach the next test
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(cwd)):
                del sys.modules[name]
    return Result(code, out.getvalue(), err.getvalue())


def run_process(*arguments: object, cwd: Path, timeout: float = 300, **environment: str) -> Result:
    """Run `python -m genlab <arguments>` as a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    ended = subprocess.run(
        [sys.executable, "-m", "genlab", *map(str, arguments)],
        cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return Result(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def genlab(tmp_path: Path) -> Callable[..., Result]:
    """`genlab("train", "model=vae")` in this process, in an empty folder or the one that `cwd` names."""
    return lambda *arguments, cwd=tmp_path: run_here(*arguments, cwd=cwd)


@pytest.fixture
def genlab_process(tmp_path: Path) -> Callable[..., Result]:
    """The same as a process of its own, with environment variables as keywords."""
    return lambda *arguments, cwd=tmp_path, **environment: run_process(*arguments, cwd=cwd, **environment)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained("model=gan", …)`: the folder of a run of two steps, the same one for the same options: only to read."""
    made: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in made:
            cwd = tmp_path_factory.mktemp("trained")
            small = ("trainer.steps=2", "trainer.batch_size=8", "trainer.preview_every=0", "device=cpu", "out=run")
            result = run_here("train", *options, *small, cwd=cwd)
            assert result.code == 0, result.err
            made[options] = cwd / "run"
        return made[options]

    return train


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
