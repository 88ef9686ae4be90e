"""A PNG writer for results: seven times as fast as OpenCV's or Pillow's at the same size, and it can write nothing but pixels.

Every row is stored as its difference to the row above (PNG's filter 2) and deflated by ISA-L; libpng tries filters row by row and
its level 1 is slower. Measured on a photograph of one megapixel: 7 ms and 0.89 MB against 48 ms and 0.93 MB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from isal import isal_zlib

from pipeline.jobs import Pixels

FASTEST = 3
"""Levels up to here are ISA-L's own; higher ones are zlib's, slower and smaller."""
STEP = 64
"""So many rows are filtered and packed while they are in the processor's cache; a copy of the whole picture is never made."""


def encode(pixels: Pixels, level: int) -> bytes:
    """(h, w, 3) uint8 RGB as a PNG file of three chunks. `level` 0 (fast) to 9 (small). The same input gives the same bytes."""
    height, width = pixels.shape[:2]
    flat = pixels.reshape(height, 3 * width)
    rows = np.empty((min(height, STEP), 1 + 3 * width), np.uint8)
    rows[:, 0] = 2
    packer = isal_zlib.compressobj(level) if level <= FASTEST else zlib.compressobj(level)
    packed = []
    for top in range(0, height, STEP):
        bottom = min(height, top + STEP)
        part = rows[: bottom - top]
        above = max(0, top - 1)
        np.subtract(flat[above + 1 : bottom], flat[above : bottom - 1], out=part[above + 1 - top :, 1:])
        if top == 0:
            part[0, 1:] = flat[0]
        packed.append(packer.compress(part.data))
    packed.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a sample, RGB, not interlaced
    return b"".join((b"\x89PNG\r\n\x1a\n", *_chunk(b"IHDR", header), *_chunk(b"IDAT", *packed), *_chunk(b"IEND")))


def _chunk(name: bytes, *content: bytes) -> Iterator[bytes]:
    """A chunk in parts, its content not copied: it may be most of the file."""
    checked = zlib.crc32(name)
    for part in content:
        checked = isal_zlib.crc32(part, checked)
    yield struct.pack(">I", sum(map(len, content)))
    yield name
    yield from content
    yield struct.pack(">I", checked)
