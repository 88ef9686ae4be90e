"""The pictures that are measured on: those of the mix, with the number of faces that were put into each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline import images
from pipeline.images import Limits
from pipeline.jobs import Pixels
from pipeline.settings import Settings
from tests.benchmarks import mix


@dataclass(frozen=True)
class Known:
    """A picture of the mix whose faces have been counted where they were put in."""

    sample: mix.Sample
    pixels: Pixels = field(repr=False)
    faces: int


class _Asked(list[Pixels]):
    """People who count how often one of them is asked for."""

    asked = 0

    def __getitem__(self, place: Any) -> Any:
        self.asked += 1
        return super().__getitem__(place)


def known(faces: Path | None, count: int, largest: int, settings: Settings) -> list[Known]:
    """Pictures of the mix, decoded, with the number of faces in each; the mix itself does not tell."""
    paint, asked = mix._picture, []

    def counted(rng: np.random.Generator, kind: str, size: tuple[int, int], people: list[Pixels], grounds: list[Pixels]) -> Pixels:
        asked.append(_Asked(people))
        return paint(rng, kind, size, asked[-1], grounds)

    with patch.object(mix, "_picture", counted):
        samples = mix.mix(faces, count=count, largest=largest)
    limits = Limits.of(settings)
    return [Known(one, images.read(one.data, limits).pixels, people.asked) for one, people in zip(samples, asked, strict=True)]


def by_size(pictures: Sequence[Known]) -> Iterator[tuple[int, list[Known]]]:
    """The pictures of each size, the smallest first."""
    for megapixels in sorted({one.sample.megapixels for one in pictures}):
        yield megapixels, [one for one in pictures if one.sample.megapixels == megapixels]
