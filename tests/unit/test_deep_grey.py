"""Grey TIFFs of more than 8 bits, as scanners and scientific cameras write them: what Pillow leaves to us is scaled and upright."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.images import read
from tests.fixtures.files import LIMITS

WIDTH, HEIGHT = 64, 48
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
PLAIN, DEFLATED = 1, 8


def tiff(deep: NDArray[np.uint16], bits: int, photometric: int, compression: int) -> bytes:
    """One strip of samples, those of 12 bits packed two in three bytes."""
    if bits == 12:
        first, second = deep.reshape(-1, 2).T
        content = np.stack((first >> 4, (first & 15) << 4 | second >> 8, second & 255), axis=1).astype(np.uint8).tobytes()
    else:
        content = deep.astype("<u2").tobytes()
    if compression == DEFLATED:
        content = zlib.compress(content)
    entries = [
        (256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, bits), (259, 3, compression), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, HEIGHT), (279, 4, len(content)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory + bytes(4)


@pytest.mark.parametrize("compression", [PLAIN, DEFLATED])
@pytest.mark.parametrize(("bits", "photometric"), [(12, BLACK_IS_ZERO), (16, BLACK_IS_ZERO), (16, WHITE_IS_ZERO)])
def test_black_is_black_and_white_is_white(bits: int, photometric: int, compression: int) -> None:
    white = (1 << bits) - 1
    deep = np.linspace(0, white, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)

    pixels = read(tiff(deep, bits, photometric, compression), LIMITS).pixels

    light = deep if photometric == BLACK_IS_ZERO else white - deep
    assert np.array_equal(pixels, np.repeat(np.rint(light * (255 / white)).astype(np.uint8)[..., None], 3, axis=2))
