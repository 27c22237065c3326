"""Run a genlab command line in this process or in a new one."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


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


def run_here(*arguments: object, cwd: Path) -> Result:
    """Run `genlab <arguments>` in this process, which has torch imported already, and put back what it changes."""
    from hydra.core.global_hydra import GlobalHydra

    from genlab.cli import main

    before = os.getcwd(), os.environ.copy(), sys.argv, sys.path.copy(), set(sys.modules)
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    out, err, code = io.StringIO(), io.StringIO(), 0
    os.environ.pop("HYDRA_FULL_ERROR", None)
    main.stamp.cache_clear()
    try:
        os.chdir(cwd)
        sys.argv = ["genlab", *map(str, arguments)]
        with redirect_stdout(out), redirect_stderr(err):
            main.main()
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
        for name in (
            set(sys.modules) - before[4]
        ):  # a model beside a test's config must not reach the next test
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
