"""Make the page of every comparison in configs/experiment/lecture/, and time it.

    python scripts/lectures.py [names]

The pages are outputs/lectures/<name>/compare.html. Each is made in an empty folder, so that all of
its runs are trained. The seconds of each are written to docs/lectures.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMES_FILE = ROOT / "docs" / "lectures.json"


def main(names: list[str]) -> None:
    """Make the pages of some comparisons, or of all."""
    times = json.loads(TIMES_FILE.read_text()) if TIMES_FILE.exists() else {}
    shipped = (ROOT / "configs" / "experiment" / "lecture").glob("*.yaml")
    for name in names or sorted(path.stem for path in shipped):
        times[name] = {
            "seconds": round(make_page_and_time_it(name)),
            "cores": len(os.sched_getaffinity(0)),
        }
        TIMES_FILE.write_text(json.dumps(times, indent=1) + "\n")


def make_page_and_time_it(name: str) -> float:
    """Make the page of one comparison, and return the seconds that it took."""
    out = ROOT / "outputs" / "lectures" / name
    options = (f"experiment=lecture/{name}", f"out={out}")
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = (sys.executable, "-m", "genlab", "compare", *options)
        subprocess.run(command, cwd=folder, check=True)
        return time.monotonic() - start


if __name__ == "__main__":
    main(sys.argv[1:])
