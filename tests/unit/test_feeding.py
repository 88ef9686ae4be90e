"""Batches: the same whoever makes them, in order, of fakes made here and of others'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.training import feeding
from pipeline.training.examples import Recipe
from pipeline.training.feeding import Batch


@dataclass
class Numbered:
    """Batches that say their number; one of them fails."""

    broken: int = -1

    def batch(self, number: int) -> Batch:
        if number == self.broken:
            raise ValueError(f"batch {number} is broken")
        return Batch(np.full((2, 1, 1, 3), number, np.uint8), *(np.zeros(2, np.float32),) * 3)


def test_processes_give_batches_in_order_and_their_errors() -> None:
    found = [int(batch.crops[0, 0, 0, 0]) for batch in feeding.stream(Numbered(), range(3, 15), makers=2)]
    assert found == list(range(3, 15))
    with pytest.raises(ValueError, match="batch 4 is broken"):
        list(feeding.stream(Numbered(broken=4), range(8), makers=1))


def test_batches_are_the_same_whoever_makes_them(people: Path, tmp_path: Path) -> None:
    made = feeding.Made(people, tmp_path / "facts.npz", seed=3, recipe=Recipe(size=48, smallest=32), pairs=2)
    here = list(feeding.stream(made, range(5, 8), makers=0))
    there = list(feeding.stream(made, range(5, 8), makers=2))
    for one, other in zip(here, there, strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)
    assert here[0].crops.shape == (4, 48, 48, 3)
    assert here[0].mask.shape == (4, 3, 3)
    assert not here[0].mask[:2].any()
    assert here[0].mask[2:].any()
    assert not np.array_equal(here[0].crops, here[1].crops)


def test_the_shares_of_the_ranks_are_the_batch(people: Path, tmp_path: Path) -> None:
    made = feeding.Made(people, tmp_path / "facts.npz", seed=3, recipe=Recipe(size=48, smallest=32), pairs=4)
    whole = made.batch(7)
    shares = [replace(made, rank=rank, world=2).batch(7) for rank in range(2)]
    for k, part in enumerate(whole):
        # the reals of both ranks, then the fakes of both
        halves = [(share[k][:2], share[k][2:]) for share in shares]
        np.testing.assert_array_equal(part, np.concatenate([half[0] for half in halves] + [half[1] for half in halves]))


def test_other_peoples_fakes_are_mixed_in(people: Path, others: Path, tmp_path: Path) -> None:
    made = feeding.Made(
        people,
        tmp_path / "facts.npz",
        seed=3,
        recipe=Recipe(size=48, smallest=32),
        pairs=4,
        data=others,
        share=0.5,
        cache=tmp_path / "cache",
    )
    masked = np.concatenate([made.batch(k).masked[4:] for k in range(8)])
    assert 0.2 < masked.mean() < 0.8
    assert made.batch(0).crops.shape == (8, 48, 48, 3)
