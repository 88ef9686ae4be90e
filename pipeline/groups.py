"""Groups of cards that may train together. Stands on nothing: trainers know it, whose interpreter has no database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Device = Literal["cpu", "gpu", "hpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
LEGAL: tuple[tuple[int, ...], ...] = (
    *((module,) for module in range(8)),
    *((module, module + 1) for module in range(0, 8, 2)),
    (0, 1, 2, 3),
    (4, 5, 6, 7),
    tuple(range(8)),
)
"""Module ids that may work together on one machine of eight Gaudi cards: those that the vendor has wired to each other."""


class CardError(Exception):
    """A card cannot be had. `permanent`: not before somebody changes something; else it is busy, and may be free later."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


@dataclass(frozen=True)
class Group:
    """The cards of one worker: HPU module ids, GPU numbers, or for `cpu` the numbers of its ranks. One process a card."""

    device: Device
    modules: tuple[int, ...]

    @property
    def world(self) -> int:
        """How many processes train together."""
        return len(self.modules)

    def __str__(self) -> str:
        return f"{self.device} {','.join(map(str, self.modules))}"


def group(device: Device, text: str) -> Group:
    """The group that a setting names, such as `0,1`. Raises CardError where there is no such group."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise CardError(f"{text!r} is no group of cards: give module ids separated by commas, such as 0,1.")
    modules = tuple(sorted(map(int, words)))
    if len(set(modules)) != len(modules):
        raise CardError(f"The group {text} names a card twice.")
    if device == "hpu" and modules not in LEGAL:
        raise CardError(f"Gaudi cards {text} cannot work together: take one card, 0,1, 2,3, 4,5, 6,7, 0,1,2,3, 4,5,6,7, or all eight.")
    if device != "hpu" and len(modules) & (len(modules) - 1):
        raise CardError(f"{len(modules)} processes cannot share a batch evenly: take 1, 2, 4 or 8.")
    return Group(device, modules)
