"""From records to crops: frames out of videos, faces by the very functions that serving uses, and a cache of what was cut.

A cache is a folder of shards, `00000.npy` with `00000.json` and on, named by a hash of what decides what is in it: the contents of the
records, the settings, and the versions of this product and of the libraries that decode, look and cut.
A build that was interrupted goes on where it stopped; one that is complete is read without looking at a single picture.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import images
from pipeline.extraction import Detector, detector, extract
from pipeline.jobs import Face, Pixels
from pipeline.settings import Settings
from pipeline.training import listing
from pipeline.training.datasets import DatasetError, Record
from pipeline.training.examples import Recipe

FRAMES = 32
"""Frames of a video, as the field samples FaceForensics++."""
SHARD = 32
"""Records in a shard: of videos, about 150 MB."""
OPEN = 64
"""Shards that a process holds open, each by a file descriptor, of which it may often have no more than 1,024."""


@dataclass(frozen=True)
class Cut:
    """How faces are found and cut: the settings of serving."""

    size: int = 224
    margin: float = Recipe.margin
    detector: str = "mediapipe"
    min_detection: float = 0.5
    min_face_px: int = 48
    min_blur: float = 12.0
    max_blocks: float = 2.8
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_side: int = 16_384

    @classmethod
    def of(cls, settings: Settings) -> Cut:
        """As these settings have serving do it; size and margin are a model's."""
        return cls(
            detector=settings.detector,
            min_detection=settings.min_detection,
            min_face_px=settings.min_face_px,
            min_blur=settings.min_blur,
            max_blocks=settings.max_blocks,
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_side=settings.max_image_side,
        )

    def find(self) -> Detector:
        """The detector; loads lazily, so call it in the process that uses it."""
        return detector(self.detector, self.min_detection)

    @property
    def limits(self) -> images.Limits:
        """The limits of `images.read`."""
        return images.Limits(self.max_bytes, self.max_pixels, self.max_side)

    def faces(self, pixels: Pixels, find: Detector) -> list[Face]:
        """Every face of an upright picture, judged by the quality gate."""
        limits = {"min_blur": self.min_blur, "max_blocks": self.max_blocks}
        return extract(pixels, detector=find, size=self.size, margin=self.margin, min_face_px=self.min_face_px, **limits)


def pictures(record: Record, cut: Cut, *, frames: int = FRAMES) -> Iterator[Pixels | None]:
    """The upright pictures of a record: one, or `frames` of a video or of a folder of frames, evenly spread.

    None stands for a picture that serving would refuse too, for a video that cannot be read, and for a folder without frames: one
    damaged frame must not cost the others of its clip.
    """
    if record.path.is_dir():
        files = listing.frames(record.path)
        yield from (_read(files[number], cut) for number in spread(len(files), frames)) if files else [None]
    elif record.moving:
        try:
            yield from video_frames(record.path, frames)
        except DatasetError:
            yield None
    else:
        yield _read(record.path, cut)


def _read(path: Path, cut: Cut) -> Pixels | None:
    try:
        return images.read(path.read_bytes(), cut.limits).pixels
    except images.ImageRefused:
        return None


def spread(total: int, count: int) -> list[int]:
    """`count` numbers evenly spread over `range(total)`, first and last parts alike; all of them if there are fewer."""
    if total <= count:
        return list(range(total))
    return [int((k + 0.5) * total / count) for k in range(count)]


def video_frames(path: Path, count: int = FRAMES) -> Iterator[Pixels]:
    """`count` frames of a video, evenly spread, (h, w, 3) uint8 RGB, upright as OpenCV gives them.

    Frames are counted by reading on, not by jumping: after a jump many codecs give a frame near the one asked for. Fewer
    come when the file ends before its header says so. Raises DatasetError.
    """
    video = cv2.VideoCapture(str(path))
    try:
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if not video.isOpened() or total <= 0:
            raise DatasetError(f"{path} cannot be read as a video.")
        wanted = set(spread(total, count))
        for number in range(max(wanted) + 1):
            if not video.grab():
                return
            if number in wanted:
                done, frame = video.retrieve()
                if done:
                    yield np.ascontiguousarray(frame[..., ::-1])
    finally:
        video.release()


@dataclass(frozen=True)
class Crops:
    """What was cut, on disk: `crops[k]` is (s, s, 3) uint8, read when asked for.

    `shards`: the files; `ends`: how many crops there are up to the end of each. `record` (n,): the number of each crop's record.
    `failed`: records without any face that could be judged, by reason.
    """

    shards: tuple[Path, ...]
    ends: tuple[int, ...]
    record: npt.NDArray[np.int64]
    failed: dict[str, int]

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, number: int) -> Pixels:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = bisect_right(self.ends, number)
        return np.array(_opened(self.shards[shard])[number - (self.ends[shard - 1] if shard else 0)])


@lru_cache(OPEN)
def _opened(shard: Path) -> Pixels:
    found: Pixels = np.load(shard, mmap_mode="r")
    return found


def cut_record(record: Record, cut: Cut, find: Detector, *, frames: int = FRAMES, largest: bool = True) -> tuple[list[Pixels], str]:
    """The crops of a record's faces that can be judged, and if there are none why not: a `Reason`, or `refused`.

    `largest`: one face a picture, the largest, as data sets of faces mean it; otherwise every face.
    """
    found: list[Pixels] = []
    why: Counter[str] = Counter()
    for pixels in pictures(record, cut, frames=frames):
        if pixels is None:
            why["refused"] += 1
            continue
        faces = cut.faces(pixels, find)
        if largest:
            faces = sorted(faces, key=lambda face: -face.box.w * face.box.h)[:1]
        found += [face.crop for face in faces if face.crop is not None]
        why.update([face.reason.value for face in faces if face.reason] if faces else ["no_face"])
    return found, "" if found else why.most_common(1)[0][0] if why else "refused"


def cached(
    records: Sequence[Record],
    folder: Path,
    cut: Cut,
    *,
    frames: int = FRAMES,
    watch: Callable[[Iterable[Record]], Iterable[Record]] = lambda records: records,
) -> Crops:
    """Cut every record, or take what an earlier call left in `folder`; in the order of the records.

    Records need their hashes (`datasets.hashed`). `watch` wraps the records that are cut, a shard's at a time.
    """
    place = folder / _key(records, cut, frames)
    place.mkdir(parents=True, exist_ok=True)
    find = cut.find()
    shards: list[Path] = []
    lengths: list[int] = []
    numbers: list[int] = []
    failed: Counter[str] = Counter()
    for start in range(0, len(records), SHARD):
        facts = place / f"{start // SHARD:05}.json"
        if not facts.exists():
            _write_shard(facts, watch(records[start : start + SHARD]), cut, find, frames)
        told = json.loads(facts.read_text())
        shards.append(facts.with_suffix(".npy"))
        lengths.append(len(told["record"]))
        numbers += [start + number for number in told["record"]]
        failed.update(told["failed"])
    return Crops(tuple(shards), tuple(accumulate(lengths)), np.array(numbers, np.int64), dict(failed))


def _write_shard(facts: Path, records: Iterable[Record], cut: Cut, find: Detector, frames: int) -> None:
    crops: list[Pixels] = [np.empty((0, cut.size, cut.size, 3), np.uint8)]
    numbers: list[int] = []
    failed: list[str] = []
    for number, record in enumerate(records):
        found, why = cut_record(record, cut, find, frames=frames)
        crops += [crop[None] for crop in found]
        numbers += [number] * len(found)
        failed += [why] if why else []
    temporary = facts.with_name(f".{facts.stem}.{os.getpid()}.npy")
    np.save(temporary, np.concatenate(crops))
    temporary.replace(facts.with_suffix(".npy"))
    # the facts come last: a shard without them is made again
    temporary.write_text(json.dumps({"record": numbers, "failed": failed}))
    temporary.replace(facts)


def _key(records: Sequence[Record], cut: Cut, frames: int) -> str:
    if not all(record.sha256 for record in records):
        raise DatasetError("Crops are cached by content: the records need their hashes first.")
    versions = {name: _version(name) for name in ("unmask", "mediapipe", "openvino", "pillow")} | {"opencv": cv2.__version__}
    told = json.dumps([asdict(cut), frames, versions, [record.sha256 for record in records]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:20]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # the trainer's interpreter may have the files alone
        return "unknown"
