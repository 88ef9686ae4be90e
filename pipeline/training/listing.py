"""The files that a data set is made of: pictures, videos, frames of a clip; what is hidden is none of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

PICTURES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".avifs", ".bmp", ".gif", ".tif", ".tiff"),
)
"""Whatever serving reads (see `formats.READ`)."""
VIDEOS = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm"))


def frames(folder: Path) -> list[Path]:
    """The pictures of a folder of frames, in the order of their names; hidden ones are none."""
    return [path for path in within(folder) if path.suffix.lower() in PICTURES]


def files(place: Path) -> list[Path]:
    """The pictures and videos under a folder."""
    return sorted(path for path in visible(place) if path.suffix.lower() in PICTURES | VIDEOS)


def visible(place: Path) -> Iterable[Path]:
    """The files under a folder, without hidden ones and what is in hidden folders: copies and leavings of other programs."""
    inside = ((path, path.relative_to(place).parts) for path in place.rglob("*"))
    return (path for path, parts in inside if not any(part.startswith(".") for part in parts) and path.is_file())


def within(folder: Path) -> list[Path]:
    """The files right in a folder, in the order of their names; hidden ones, which come and go with other programs, are not of it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def size(path: Path) -> int:
    """Bytes of a file or of the files in a folder; 0 where there is nothing."""
    try:
        return sum(file.stat().st_size for file in within(path)) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0


def digest(path: Path) -> str:
    """The SHA-256 of a file; of a folder, that of its files' names and hashes."""
    if path.is_dir():
        lines = "".join(f"{file.name} {digest(file)}\n" for file in within(path))
        return hashlib.sha256(lines.encode()).hexdigest()
    from pipeline import card  # late: who only makes pairs may lack what it needs

    return card.sha256(path)
