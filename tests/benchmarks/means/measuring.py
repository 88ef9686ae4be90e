"""Ways to do the same, measured in turns, and what came of one means against its alternative."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ABSENT = "not installed here"


@dataclass(frozen=True)
class Way:
    """One way to do something: milliseconds of processor time an item, turn by turn, and what it gave the first time."""

    ms: list[float]
    gave: Any = field(repr=False)


@dataclass(frozen=True)
class Row:
    """One means against its alternative: milliseconds an item, turn by turn (none: it could not be measured), how many items a
    turn, what is to be known about it, and the same in figures."""

    means: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    items: str = ""
    notes: str = ""
    found: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Before over after: above 1 the means pays."""
        return statistics.median(self.before) / statistics.median(self.after) if self.after else None


def measure(rounds: int, items: int, ways: Mapping[str, Callable[[], Any]]) -> dict[str, Way]:
    """Each way in its turn, `rounds` times. Each does it once before: whoever compiles, loads or allocates does so then."""
    gave = {name: do() for name, do in ways.items()}
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, do in ways.items():
            began = time.process_time()
            do()
            ms[name].append((time.process_time() - began) * 1000 / items)
    return {name: Way(ms[name], gave[name]) for name in ways}
