"""Checkpoints: they come back as they were, or say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointError, Progress


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Progress("one"), {"weights": [np.ones(3)]})
    with pytest.raises(CheckpointError, match="other settings"):
        checkpoint.load(tmp_path, "two")


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Progress("one"), {"weights": [np.ones(3)]})
    whole = (tmp_path / checkpoint.FILE).read_bytes()
    (tmp_path / checkpoint.FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path, "one")


def test_a_checkpoint_comes_back_in_order(tmp_path: Path) -> None:
    arrays = [np.full(2, k, np.float32) for k in range(12)]
    checkpoint.save(tmp_path, Progress("one", step=7, curve=[{"loss": 0.5}]), {"weights": arrays, "state": [np.int64(3)]})
    found = checkpoint.load(tmp_path, "one")
    assert found is not None
    assert (found[0].step, found[0].curve) == (7, [{"loss": 0.5}])
    assert [int(a[0]) for a in found[1]["weights"]] == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
