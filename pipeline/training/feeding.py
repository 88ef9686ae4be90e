"""Batches for the trainer, made continuously by processes of their own: batch k of a seed is the same whoever makes it.

Processes are spawned, never forked, and know nothing of TensorFlow.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.extraction import crop
from pipeline.jobs import Box, Pixels
from pipeline.training import augmentation, datasets, examples, portraits
from pipeline.training.crops import Crops, Cut, cached
from pipeline.training.examples import Recipe


def mask_side(size: int) -> int:
    """Side of the mask that the network gives for crops of a size: a sixteenth, rounded up as its strides do."""
    return -(-size // 16)


class Batch(NamedTuple):
    """First the reals, then their fakes: `crops` (2n, s, s, 3) uint8, `fake` (2n,) float32, `mask` (2n, m, m) float32, m = mask_side(s),
    `masked` (2n,) float32: 0 where the mask is not known."""

    crops: Pixels
    fake: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]
    masked: npt.NDArray[np.float32]


class Source(Protocol):
    """Makes batch k: the same one every time. Is sent to other processes, so it pickles."""

    def batch(self, number: int) -> Batch: ...


@dataclass
class Made:
    """Batches of fakes made here from portraits, and of other people's reals and fakes where there are some.

    Attributes:
        faces: folder with `faces.csv`.
        facts: what was found in the photographs (see `portraits.load`).
        seed: of everything drawn.
        recipe: of the pairs; its size is the batch's.
        pairs: reals, and as many fakes, in a batch.
        data: another data set (see `datasets.load`), its training split; None: only what is made here.
        share: of the pairs that come from `data`.
        cache: where the crops of `data` are kept.
        cut: how their faces are found and cut.
        records: the training records of `data`, hashed; none: they are hashed here, which may take long.
        rank, world: which share of each batch is made here, of how many.
    """

    faces: Path
    facts: Path | None
    seed: int
    recipe: Recipe
    pairs: int
    data: Path | None = None
    share: float = 0.5
    cache: Path = Path("build/crops")
    cut: Cut = field(default_factory=Cut)
    rank: int = 0
    world: int = 1
    records: Sequence[datasets.Record] = field(default=(), repr=False)
    _portraits: list[portraits.Portrait] | None = field(default=None, repr=False)
    _crops: tuple[Crops, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_portraits": None, "_crops": None}

    def batch(self, number: int) -> Batch:
        """See `Batch`. The photographs are loaded at the first call."""
        if self._portraits is None:
            self._portraits = portraits.load(self.faces, "train", facts=self.facts, largest=portraits.LARGEST_FACE)
        share = self.pairs // self.world
        begin = number * self.pairs + self.rank * share
        found = [self._others(index) if self._foreign(index) else self._pair(index) for index in range(begin, begin + share)]
        small = mask_side(self.recipe.size)
        masks = [cv2.resize(mask, (small, small), interpolation=cv2.INTER_AREA) for _, _, mask, _ in found]
        known = [known for *_, known in found]
        return Batch(
            np.stack([real for real, *_ in found] + [fake for _, fake, *_ in found]),
            np.repeat(np.array([0, 1], np.float32), share),
            np.concatenate([np.zeros((share, small, small), np.float32), np.stack(masks).astype(np.float32)]),
            np.array([1.0] * share + known, np.float32),
        )

    def _pair(self, index: int) -> tuple[Pixels, Pixels, npt.NDArray[np.float32], float]:
        made = examples.pair(self._portraits or [], index, self.seed, self.recipe)
        return made.real, made.fake, made.mask, 1.0

    def _foreign(self, index: int) -> bool:
        return self.data is not None and np.random.default_rng((self.seed, index, 1)).random() < self.share

    def _others(self, index: int) -> tuple[Pixels, Pixels, npt.NDArray[np.float32], float]:
        """A real and a fake of the data set, each through a street of its own (it holds both sides alike on average)."""
        found, reals, fakes = self._loaded()
        rng = np.random.default_rng((self.seed, index, 2))
        pair = []
        for side in (reals, fakes):
            pixels = found[int(side[rng.integers(len(side))])]
            pixels = augmentation.apply(augmentation.draw(rng, self.recipe.strength), pixels[:, ::-1] if rng.random() < 0.5 else pixels)
            size = pixels.shape[0]
            inner = round(size * float(rng.uniform(0.86, 1.0)))
            x, y = (int(v) for v in rng.integers(0, size - inner + 1, 2))
            pair.append(crop(pixels, Box(x, y, inner, inner), size=self.recipe.size, margin=0.0))
        return pair[0], pair[1], np.zeros((self.recipe.size, self.recipe.size), np.float32), 0.0

    def _loaded(self) -> tuple[Crops, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if self._crops is None:
            records = self.records or training_records(self.data or Path())
            found = cached(records, self.cache, self.cut)
            self._crops = found, *sides(found, records, self.data)
        return self._crops


def sides(found: Crops, records: Sequence[datasets.Record], data: Path | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of the crops of reals, and of fakes. Raises DatasetError where `data` has only one of the two to train on."""
    fake = np.array([records[number].fake for number in found.record], bool)
    reals, fakes = np.flatnonzero(~fake), np.flatnonzero(fake)
    if not len(reals) or not len(fakes):
        raise datasets.DatasetError(
            f"{data} needs both reals and fakes with detectable faces to train on, and of its training split "
            f"{len(reals)} faces of reals and {len(fakes)} of fakes were found."
        )
    return reals, fakes


def training_records(
    data: Path,
    *,
    compression: str = "c23",
    watch: Callable[[Iterable[datasets.Record]], Iterable[datasets.Record]] = lambda records: records,
) -> list[datasets.Record]:
    """The hashed training records of a data set (see `datasets.in_splits`). `watch` wraps them while they are hashed."""
    return datasets.hashed(watch([record for record in datasets.in_splits(data, compression=compression) if record.split == "train"]))


_source: Source | None = None


def _start(source: Source) -> None:
    global _source
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends this process when it is ready
    threading.Thread(target=_follow_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _source = source


def _follow_parent() -> None:
    """End with the trainer even if it was killed and could say nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(number: int) -> Batch:
    if _source is None:
        raise RuntimeError("This process was not started to make batches.")
    return _source.batch(number)


def stream(source: Source, numbers: Sequence[int], makers: int, ahead: int = 3) -> Iterator[Batch]:
    """The batches of these numbers in order, made by `makers` processes, each `ahead` batches in advance; 0: made right here.

    Closing the generator ends the processes. An error in one of them is raised here.
    """
    if makers == 0:
        for number in numbers:
            yield source.batch(number)
        return
    waiting: deque[Future[Batch]] = deque()
    left = iter(numbers)
    pool = ProcessPoolExecutor(makers, multiprocessing.get_context("spawn"), _start, (source,))
    try:
        for number in left:
            waiting.append(pool.submit(_make, number))
            if len(waiting) >= makers * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)
