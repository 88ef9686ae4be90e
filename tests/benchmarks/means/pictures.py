"""The pictures that are measured on: those of the mix, decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import images
from pipeline.images import Limits
from pipeline.jobs import Pixels
from pipeline.settings import Settings
from tests.benchmarks import mix


@dataclass(frozen=True)
class Known:
    """A picture of the mix, decoded."""

    sample: mix.Sample
    pixels: Pixels = field(repr=False)


def known(faces: Path | None, count: int, largest: int, settings: Settings) -> list[Known]:
    """Pictures of the mix, decoded."""
    limits = Limits.of(settings)
    return [Known(one, images.read(one.data, limits).pixels) for one in mix.mix(faces, count=count, largest=largest)]


def by_size(pictures: Sequence[Known]) -> Iterator[tuple[int, list[Known]]]:
    """The pictures of each size, the smallest first."""
    for megapixels in sorted({one.sample.megapixels for one in pictures}):
        yield megapixels, [one for one in pictures if one.sample.megapixels == megapixels]
