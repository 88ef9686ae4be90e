"""MediaPipe's two face solutions: loaded late, kept one per thread, and quiet.

Their state does not survive a fork (the child hangs), so nothing is imported or made before it is first used, and what a
parent process made is never used in its child. A solution is not safe to share between threads.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.jobs import Pixels

_here = threading.local()
_lock = threading.Lock()


class Solution:
    """One MediaPipe solution of one thread. Calling it with (h, w, 3) uint8 RGB gives the solution's own result."""

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


def face_detection(min_score: float) -> Solution:
    """Short-range BlazeFace of this thread; the result's `detections` is a list or None."""
    return _kept(
        ("detection", min_score),
        lambda: Solution(lambda mp: mp.face_detection.FaceDetection(min_detection_confidence=min_score), lambda r: True),
    )


def face_mesh(min_score: float) -> Solution:
    """FaceMesh for single pictures of one face, of this thread; the result's `multi_face_landmarks` is a list or None."""
    return _kept(
        ("mesh", min_score),
        lambda: Solution(
            lambda mp: mp.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, min_detection_confidence=min_score, min_tracking_confidence=min_score
            ),
            lambda r: bool(r.multi_face_landmarks),
        ),
    )


def tesselation() -> frozenset[tuple[int, int]]:
    """FaceMesh's edges, as pairs of landmark indices."""
    return frozenset(_modules().face_mesh.FACEMESH_TESSELATION)


def _kept(name: tuple[str, float], make: Callable[[], Solution]) -> Solution:
    kept: dict[tuple[int, tuple[str, float]], Solution] = _here.__dict__.setdefault("kept", {})
    key = (os.getpid(), name)
    if key not in kept:
        kept[key] = make()
    return kept[key]


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
