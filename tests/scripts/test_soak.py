"""scripts/soak.py loses nothing in less than a minute."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_short_soak_loses_nothing(repository):
    command = [sys.executable, str(repository / "scripts" / "soak.py"), "--minutes", "0.7"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = {
        line[:32].strip(): int(line[32:])
        for line in completed.stdout.splitlines()
        if line[32:].strip().isdigit()
    }
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert counts["lost"] == 0, completed.stdout
    assert counts["compared"] == counts["rounds"] >= 1 and counts["starts"] >= 2
