"""Twenty files that are small and would be large: each must be refused, or read, under a bound of time and memory."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.fixtures.files import saved
from tests.unit.test_bombs import BOMBS as KNOWN
from tests.unit.test_bombs import chunk


def _png(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def _zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def _png_frames() -> bytes:
    return _png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0)))


def _gif_frames() -> bytes:
    data = saved(Image.new("P", (4, 4)), "GIF")
    start = data.index(b"\x2c\0\0\0\0\4\0\4\0")
    return data[:-1] + data[start:-1] * 200_000 + b";"


def _tiff(entries: list[tuple[int, int, int, int]], after: int = 0) -> bytes:
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", after) + bytes(256)


def _tiff_loop() -> bytes:
    return _tiff([(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 120), (279, 4, 1, 64)], after=8)


def _tiff_samples() -> bytes:
    return _tiff(
        [(256, 4, 1, 4000), (257, 4, 1, 4000), (258, 3, 1, 8), (262, 3, 1, 2), (273, 4, 1, 120), (277, 3, 1, 60_000), (279, 4, 1, 64)]
    )


def _tiff_strips() -> bytes:
    return _tiff(
        [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 2**28, 120), (279, 4, 2**28, 120), (278, 4, 1, 1)]
    )


def _bmp_runs() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 16_000, 3_000, 1, 8, 1, 12, 0, 0, 256, 0)
    body = header + bytes(1024) + b"\xff\x01\0\0\0\1"
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 40 + 1024) + body


def _webp_lossless() -> bytes:
    body = b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(20)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def _avif() -> bytes:
    data = bytearray(saved(Image.new("RGB", (64, 64), "red"), "AVIF"))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", 60_000, 60_000)
    return bytes(data)


def _cmyk() -> bytes:
    """As large as it may be, in four colours and standing on its side: it is read."""
    exif = Image.Exif()
    exif[0x0112] = 5
    stream = io.BytesIO()
    Image.new("CMYK", (10_000, 5_000), (10, 20, 30, 40)).save(stream, "JPEG", exif=exif, quality=30)
    return stream.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    **KNOWN,
    "png text": lambda: _png(chunk(b"zTXt", b"Comment\0\0" + _zeros(300))),
    "png profile": lambda: _png(chunk(b"iCCP", b"icc\0\0" + _zeros(300))),
    "png frames": _png_frames,
    "gif frames": _gif_frames,
    "tiff loop": _tiff_loop,
    "tiff samples": _tiff_samples,
    "tiff strips": _tiff_strips,
    "bmp runs": _bmp_runs,
    "webp lossless": _webp_lossless,
    "avif": _avif,
}
LARGEST: dict[str, Callable[[], bytes]] = {"cmyk": _cmyk}
"""Not bombs, but the most that is read: under the bound of any file."""
