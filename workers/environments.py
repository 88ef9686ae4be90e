"""Where there is an interpreter that can train: one with TensorFlow, which serving does without."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.settings import Settings

CODE = Path(__file__).resolve().parents[1]
"""Where this code is: a checkout, or where it is installed."""
BESIDE = CODE / ".venv-train" / "bin" / "python"
"""What `make train-environment` makes."""


def interpreter(settings: Settings) -> str | None:
    """The path of the interpreter that trains; None: there is none here. Never imports TensorFlow."""
    if settings.train_python:
        return settings.train_python if os.access(settings.train_python, os.X_OK) else None
    if find_spec("tensorflow") is not None:
        return sys.executable
    return str(BESIDE) if os.access(BESIDE, os.X_OK) else None
