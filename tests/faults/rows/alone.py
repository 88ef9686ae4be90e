"""Tests that need no house: random histories of the ledger, and hostile files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from tests.faults.hostile import corpus
from tests.faults.house import ROOT

STEPS = 50


def histories(n: int, seed: int, places: list[str]) -> dict[str, Any]:
    """`n` random histories of 50 steps on each database, against a model of a few lines."""
    environment = {**os.environ, "LEDGER_HISTORIES": str(n), "LEDGER_STEPS": str(STEPS)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--hypothesis-seed={seed}", "tests/integration/test_ledger_histories.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    databases = int(passed[1]) if passed else 0
    held = done.returncode == 0 and databases == 2
    # The model holds after every step that no job is lost or made twice; where it does not, nobody has counted.
    told = {"lost": 0, "duplicates": 0} if held else {"lost": None, "duplicates": None, "said": done.stdout[-3000:]}
    return {"n": n, "steps": STEPS, "databases": databases, **told, "passed": held}


def hostile(n: int, seed: int, places: list[str]) -> dict[str, Any]:
    """Files of other people's test suites, bombs, and `n` mutations, through the extract stage's own decoding."""
    return corpus.run(places, n, seed, os.cpu_count() or 1)
