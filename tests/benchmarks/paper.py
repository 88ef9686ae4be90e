"""The paper's server from outside: started, asked, and its processor time counted."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import requests

from pipeline import registry
from tests.benchmarks import accounting


class Paper:
    """The server in a process of its own, warm."""

    def __init__(self, weights: Path, manipulated_from: float) -> None:
        temperature = registry.verify(weights.parent).temperature
        command = [sys.executable, "-m", "tests.benchmarks.paper_server", str(weights), str(manipulated_from), str(temperature)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = next((line for line in self._process.stdout if line.startswith("port ")), "")
        if not line:
            raise RuntimeError("The paper's server did not start: it needs TensorFlow and MediaPipe.")
        self.url = f"http://127.0.0.1:{line.split()[1]}/predict"
        self._warm = False

    def run(self, paths: list[Path]) -> tuple[float, float]:
        """Ask for each picture, one after the other; pictures a second, and seconds of processor time a picture."""
        if not self._warm:
            self._ask(paths[0])
            self._warm = True
        before, began = accounting.look([self._process.pid]), time.monotonic()
        for path in paths:
            self._ask(path)
        spent = sum(accounting.used(before, accounting.look([self._process.pid])).values())
        return len(paths) / (time.monotonic() - began), spent / len(paths)

    def _ask(self, path: Path) -> None:
        with path.open("rb") as file:
            answer = requests.post(self.url, files={"file": file}, timeout=300)
        answer.raise_for_status()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
