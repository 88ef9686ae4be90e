"""The paper's server from outside: started, asked, and its processor time counted."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from pipeline import registry
from tests.benchmarks import accounting


@dataclass(frozen=True)
class Answers:
    """What came of `n` pictures: pictures a second, seconds of processor time a picture, faces found and meshes drawn in all of them."""

    n: int
    images_per_s: float
    cpu_s: float
    faces: int
    meshes: int


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

    def run(self, paths: list[Path]) -> Answers:
        """Ask for each picture, one after the other."""
        if not self._warm:
            self._ask(paths[0])
            self._warm = True
        before, began = accounting.look([self._process.pid]), time.monotonic()
        answers = [self._ask(path) for path in paths]
        took = time.monotonic() - began
        spent = sum(accounting.used(before, accounting.look([self._process.pid])).values())
        faces, meshes = (sum(counted) for counted in zip(*answers, strict=True))
        return Answers(len(paths), len(paths) / took, spent / len(paths), faces, meshes)

    def _ask(self, path: Path) -> tuple[int, int]:
        """Faces it found, and meshes it drew."""
        with path.open("rb") as file:
            answer = requests.post(self.url, files={"file": file}, timeout=300)
        answer.raise_for_status()
        found = answer.json()
        return len(found["faces"]), int(found["meshes"])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
