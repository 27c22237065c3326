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
    """The exit code and the output of a command line."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error message; asserts that the command was refused with exactly one line."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert len(lines) == 1 and lines[0].startswith("genlab: "), self.err
        assert "Traceback" not in self.out + self.err
        return lines[0]


def run_here(*arguments: object, cwd: Path) -> Result:
    """Run `genlab <arguments>` in this process and restore the state that it changes.

    This is fast because torch is imported already.
    """
    from hydra.core.global_hydra import GlobalHydra

    from genlab.cli import main

    before = os.getcwd(), os.environ.copy(), sys.argv, sys.path.copy(), set(sys.modules)
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    out, err, code = io.StringIO(), io.StringIO(), 0
    os.environ.pop("HYDRA_FULL_ERROR", None)
    main.unique_run_stamp.cache_clear()
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
        root.setLevel(level)  # Hydra's --info sets the level to DEBUG
        # A user's module in the folder of this test must not reach the next test.
        for name in set(sys.modules) - before[4]:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(cwd)):
                del sys.modules[name]
    return Result(code, out.getvalue(), err.getvalue())


def run_process(*arguments: object, cwd: Path, timeout: float = 300, **environment: str) -> Result:
    """Run `python -m genlab <arguments>` in a new process."""
    clean = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    process = subprocess.run(
        [sys.executable, "-m", "genlab", *map(str, arguments)],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)
