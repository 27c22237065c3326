"""The soak of scripts/soak.py, for less than a minute."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_short_soak_loses_nothing(repository):
    command = [sys.executable, str(repository / "scripts" / "soak.py"), "--minutes", "0.7"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    counted = {
        line[:32].strip(): int(line[32:])
        for line in ended.stdout.splitlines()
        if line[32:].strip().isdigit()
    }
    assert ended.returncode == 0 and counted["lost"] == 0, ended.stdout + ended.stderr
    assert counted["compared"] == counted["rounds"] >= 1 and counted["starts"] >= 2
