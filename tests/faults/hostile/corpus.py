"""Where hostile files come from: archives and folders, bombs, and mutations of whatever is small enough to be a good seed."""

from __future__ import annotations

import random
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import formats
from pipeline.settings import Settings
from tests.faults.hostile.bombs import BOMBS, LARGEST
from tests.faults.hostile.cells import Fate, read_all
from tests.fixtures.files import saved
from tests.unit.test_images import FORMATS, mutated

NO_PICTURES = (".py", ".rst", ".md", ".txt", ".c", ".h", ".toml", ".yml", ".yaml", ".cfg", ".sh", ".in", ".html", ".pyi", ".typed", "")
SEED_MOST = 60_000
"""Bytes of a file that is mutated, at most."""
SECONDS, MEGABYTES, BOMB_MEGABYTES = 10.0, 1000.0, 300.0


def found(places: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Every file in these folders and tar archives that is no text of the project it comes from."""
    for place in places:
        path = Path(place)
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and file.suffix.lower() not in NO_PICTURES:
                    yield f"{path.name}/{file.relative_to(path)}", file.read_bytes()
            continue
        with tarfile.open(path) as archive:
            for member in archive:
                inside = archive.extractfile(member) if member.isfile() else None
                if inside is not None and Path(member.name).suffix.lower() not in NO_PICTURES:
                    yield f"{path.name}/{member.name}", inside.read()


def made() -> list[tuple[str, bytes]]:
    """A small picture in each format, plain."""
    noise = np.random.default_rng(5).integers(0, 255, (48, 64, 3), np.uint8)
    return [(f"made.{name.lower()}", saved(noise, name)) for name in FORMATS]


def mutations(seeds: list[tuple[str, bytes]], number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many mutations, the same for the same seed and the same files."""
    for index in range(number):
        chance = random.Random(f"{seed}.{index}")
        name, data = seeds[chance.randrange(len(seeds))]
        yield f"{name}~{index}", mutated(data, chance)


def run(places: list[str], number: int, seed: int, cells: int) -> dict[str, Any]:
    """Read everything; the figures of the report."""
    settings = Settings()
    files = list(found(places))
    seeds = made() + [(name, data) for name, data in files if len(data) <= SEED_MOST and formats.of(data) in formats.READ]
    sets: dict[str, list[Fate]] = {
        "found": list(read_all(files, settings, cells)),
        "bombs": list(read_all(((name, make()) for name, make in BOMBS.items()), settings, 1)),
        "largest": list(read_all(((name, make()) for name, make in LARGEST.items()), settings, 1)),
        "mutations": list(read_all(mutations(seeds, number, seed), settings, cells)),
    }
    figures: dict[str, Any] = {name: _figures(fates) for name, fates in sets.items()}
    every = [fate for fates in sets.values() for fate in fates]
    wrong = [fate for fate in every if fate.how in ("died", "unclear") or not fate.clean or not fate.sentence]
    bounds = all(fate.seconds <= SECONDS and fate.megabytes <= MEGABYTES for fate in every)
    bombs = all(fate.megabytes <= BOMB_MEGABYTES for fate in sets["bombs"])
    sent = len(files) + len(BOMBS) + len(LARGEST) + number
    return {
        "n": len(every), "mutation_seeds": len(seeds), "sets": figures,
        "lost": sent - sum(fate.how in ("read", "refused") for fate in every),
        "duplicates": len(every) - len({fate.name for fate in every}),
        "wrong": [f"{fate.name}: {fate.how}, {fate.sentence}" for fate in wrong][:50],
        "passed": not wrong and bounds and bombs,
    }  # fmt: skip


def _figures(fates: list[Fate]) -> dict[str, Any]:
    if not fates:
        return {"files": 0}
    longest, largest = max(fates, key=lambda fate: fate.seconds), max(fates, key=lambda fate: fate.megabytes)
    return {
        "files": len(fates), **Counter(fate.how for fate in fates),
        "longest_cpu_s": [round(longest.seconds, 2), longest.name], "largest_mb": [round(largest.megabytes), largest.name],
        "processes_ended": sum(fate.attempts - 1 + (fate.how == "died") for fate in fates),
        "unclean_outputs": sum(not fate.clean for fate in fates),
    }  # fmt: skip
