"""Make every page of configs/experiment/lecture/ from nothing, and keep the seconds that each took in docs/lectures.json.

    python scripts/lectures.py [names]

The pages are outputs/lectures/<name>/compare.html; runs that are there already are trained again elsewhere, to be timed.
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
TIMES = ROOT / "docs" / "lectures.json"


def main(names: list[str]) -> None:
    found = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    for name in names or sorted(
        path.stem for path in (ROOT / "configs" / "experiment" / "lecture").glob("*.yaml")
    ):
        out = ROOT / "outputs" / "lectures" / name
        with tempfile.TemporaryDirectory() as here:  # where no run is that could be used again
            began = time.monotonic()
            command = (
                sys.executable,
                "-m",
                "genlab",
                "compare",
                f"experiment=lecture/{name}",
                f"out={out}",
            )
            subprocess.run(command, cwd=here, check=True)
        found[name] = {
            "seconds": round(time.monotonic() - began),
            "cores": len(os.sched_getaffinity(0)),
        }
        TIMES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
