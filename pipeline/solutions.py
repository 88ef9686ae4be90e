"""MediaPipe's own Python solutions, loaded late and quiet. Serving does without them: see `facenets`.

Their state does not survive a fork (the child hangs), so nothing is imported before it is first used. A solution is not safe to
share between threads.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.jobs import Pixels

_lock = threading.Lock()


class Solution:
    """One MediaPipe solution: `make` builds it from `mediapipe.python.solutions`. Calling it with (h, w, 3) uint8 RGB gives the
    solution's own result; `answered` says whether a result went through the whole graph, after which it has nothing to log any more."""

    def __init__(self, make: Callable[[Any], Any], answered: Callable[[Any], bool]) -> None:
        with _silence():
            self._solution = make(_modules())
        self._answered = answered
        self._chatty = True

    def __call__(self, pixels: Pixels) -> Any:
        if not self._chatty:
            return self._solution.process(pixels)
        with _silence():  # the graph's steps each have something to say the first time they run
            result = self._solution.process(pixels)
        self._chatty = not self._answered(result)
        return result


def _modules() -> Any:
    """`mediapipe.python.solutions`. MediaPipe imports TensorFlow where it is installed, which takes seconds and is not needed: hide it."""
    with _lock:
        if "mediapipe" not in sys.modules:
            hidden = sys.modules.get("tensorflow")
            sys.modules["tensorflow"] = None  # type: ignore[assignment]
            try:
                import mediapipe  # noqa: F401
            finally:
                if hidden is None:
                    del sys.modules["tensorflow"]
                else:
                    sys.modules["tensorflow"] = hidden
        import mediapipe.python.solutions as solutions

        return solutions


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep MediaPipe's C++ log off standard error: it has no level to set, so the descriptor itself is turned away for the moment."""
    with _lock_stderr:
        sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # a daemon without standard error
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


_lock_stderr = threading.Lock()
