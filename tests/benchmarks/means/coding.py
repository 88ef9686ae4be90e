"""What could be saved in decoding and encoding pictures, and is not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from pipeline import extraction, images
from pipeline.images import Limits
from pipeline.jobs import Box
from pipeline.settings import Settings
from tests.benchmarks.means.measuring import Row, measure
from tests.benchmarks.means.pictures import Known, by_size

REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def decode_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """Finding faces in a JPEG decoded at a fraction of its size, beside the full decode that crops need. Not kept.

    The detector's scales follow the size of what it is shown, so it also searches less, and misses the smallest faces.
    """
    detector, limits = extraction.BlazeFace(settings.min_detection), Limits.of(settings)

    def as_it_is(data: bytes) -> list[Box]:
        return [found.box for found in detector(images.read(data, limits).pixels)]

    def reduced(data: bytes, by: int) -> list[Box]:
        small = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[by])
        found = detector(np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8))
        images.read(data, limits)
        return [Box(*(by * value for value in one.box.as_list())) for one in found]

    def whole(by: int, these: Sequence[Known]) -> Callable[[], list[list[Box]]]:
        return lambda: [reduced(one.sample.data, by) if by > 1 else as_it_is(one.sample.data) for one in these]

    rows = []
    for megapixels, these in by_size(pictures):
        ways = measure(rounds, len(these), {str(by): whole(by, these) for by in (1, *REDUCED)})
        for by in REDUCED:
            moved = moves(ways["1"].gave, ways[str(by)].gave)
            notes = "not kept: {differ:.0f} of {boxes:.0f} boxes move, by up to {px:.0f} px; {lost:.0f} lost, {new:.0f} new".format(**moved)
            means = f"JPEG decoded at 1/{by} for detection, {megapixels} MP"
            rows.append(Row(means, ways["1"].ms, ways[str(by)].ms, f"{len(these)} pictures", notes, moved))
    return rows


def moves(before: Sequence[Sequence[Box]], after: Sequence[Sequence[Box]]) -> dict[str, float]:
    """How boxes differ: how many of how many, `px` by which an edge moved at most, and how many have no counterpart on either side."""
    gaps, lost, new = [], 0, 0
    for here, there in zip(before, after, strict=True):
        left = list(there)
        for box in here:
            nearest = min(left, key=lambda other: _gap(box, other), default=None)
            if nearest is None or _gap(box, nearest) > box.w / 2:
                lost += 1
                continue
            left.remove(nearest)
            gaps.append(_gap(box, nearest))
        new += len(left)
    boxes = sum(map(len, before))
    return {"boxes": boxes, "differ": sum(gap > 0 for gap in gaps), "px": max(gaps, default=0), "lost": lost, "new": new}


def _gap(one: Box, other: Box) -> int:
    """The furthest that one of four edges is from its counterpart, in pixels."""
    right, low = one.x + one.w - other.x - other.w, one.y + one.h - other.y - other.h
    return max(abs(one.x - other.x), abs(one.y - other.y), abs(right), abs(low))


def encode_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """The original bytes where nothing was drawn, instead of a PNG of the pixels. Not kept."""
    rows = []
    for megapixels, these in by_size(pictures):
        ways = measure(rounds, len(these), {"png": _encoded(these, settings), "copy": _copied(these)})
        saved = statistics.median(ways["png"].ms) - statistics.median(ways["copy"].ms)
        mb = {name: statistics.mean(way.gave) / 1e6 for name, way in ways.items()}
        notes = f"not kept, metadata would pass: saves {saved:.1f} ms, and stores {mb['copy']:.2g} MB instead of {mb['png']:.2g}"
        means = f"the original's bytes where nothing was drawn, {megapixels} MP"
        found = {"saved_ms": saved, "png_mb": mb["png"], "copy_mb": mb["copy"]}
        rows.append(Row(means, ways["png"].ms, ways["copy"].ms, f"{len(these)} pictures", notes, found))
    return rows


def _encoded(pictures: Sequence[Known], settings: Settings) -> Callable[[], list[int]]:
    return lambda: [len(images.encode_png(one.pixels, settings.png_level)) for one in pictures]


def _copied(pictures: Sequence[Known]) -> Callable[[], list[int]]:
    return lambda: [len(bytearray(one.sample.data)) for one in pictures]
