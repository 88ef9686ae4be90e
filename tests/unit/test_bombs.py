"""Files that would be enormous are refused at no cost; one that is sound is never refused because there is too little memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import formats, images
from pipeline.images import Limits, read
from pipeline.jobs import Pixels
from tests.fixtures.files import LIMITS, refusal, saved

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


# --- limits ----------------------------------------------------------------------------------------------------------


def test_limits_are_exact(upright: Pixels) -> None:
    data = saved(upright, "PNG")
    exact = Limits(bytes=len(data), pixels=64 * 48, side=64)

    assert read(data, exact).width == 64
    assert f"{len(data):,} bytes" in refusal(data, Limits(len(data) - 1, exact.pixels, exact.side))
    assert "64 x 48" in refusal(data, Limits(exact.bytes, exact.pixels - 1, exact.side))
    assert "64 x 48" in refusal(data, Limits(exact.bytes, exact.pixels, exact.side - 1))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_bomb(width: int, height: int) -> bytes:
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(3 * width + 1)) for _ in range(min(height, 2000))) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_bomb(tile: int) -> bytes:
    """10 x 10 pixels, stored in one tile of many gigabytes."""
    packed = zlib.compress(bytes(1 << 20), 9)
    entries = [
        (256, 4, 10), (257, 4, 10), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(packed)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + bytes(4)


def gif_bomb() -> bytes:
    data = bytearray(saved(Image.new("P", (4, 4)), "GIF"))
    data[6:10] = struct.pack("<HH", 65000, 65000)
    return bytes(data)


def gif_frame_bomb() -> bytes:
    """A canvas of 4 x 4 with a first frame of 65,000 x 65,000."""
    data = bytearray(saved(Image.new("P", (4, 4)), "GIF"))
    at = data.index(b"\x2c\0\0\0\0\4\0\4\0")
    data[at + 5 : at + 9] = struct.pack("<HH", 65000, 65000)
    return bytes(data)


def webp_bomb() -> bytes:
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + (16383).to_bytes(3, "little") * 2
    body = b"WEBP" + vp8x + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_bomb() -> bytes:
    data = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def bmp_bomb() -> bytes:
    data = bytearray(saved(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 60000, 60000)
    return bytes(data)


def scans_bomb() -> bytes:
    """A progressive JPEG of 48 Mpx that is drawn again and again."""
    data = saved(Image.new("RGB", (8000, 6000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * 3000 + data[-2:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png_bomb(20_000, 20_000),
    "png just over": lambda: png_bomb(10_000, 5_001),
    "long": lambda: png_bomb(16_385, 1),
    "tiff": lambda: tiff_bomb(30_000),
    "gif": gif_bomb,
    "gif frame": gif_frame_bomb,
    "webp": webp_bomb,
    "jpeg": jpeg_bomb,
    "bmp": bmp_bomb,
    "scans": scans_bomb,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    refusal(BOMBS[name]())


def test_bombs_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    script = """
import resource, sys, time
from pathlib import Path
from pipeline import images
from pipeline.settings import Settings
limits = images.Limits.of(Settings())
data = [path.read_bytes() for path in Path(sys.argv[1]).iterdir()]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
for one in data:
    try:
        images.read(one, limits)
    except images.ImageRefused:
        continue
    raise SystemExit("a bomb was read")
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True, timeout=120)

    seconds, megabytes = (float(word) for word in ran.stdout.split())
    assert seconds < 2
    assert megabytes < 50


def test_a_progressive_jpeg_is_no_bomb(upright: Pixels) -> None:
    assert read(saved(upright, "JPEG", progressive=True), LIMITS).width == 64


def test_scan_markers_inside_metadata_are_not_scans(upright: Pixels) -> None:
    data = saved(upright, "JPEG", progressive=True, comment=b"\xff\xda\0\x02" * 2000)

    assert formats.jpeg_scans(data) <= 12
    assert read(data, LIMITS).width == 64


# --- too little memory -----------------------------------------------------------------------------------------------


def no_memory_of_opencv() -> cv2.error:
    error = cv2.error("(-4:Insufficient memory) Failed to allocate")
    error.code = images.NO_MEMORY
    return error


@pytest.mark.parametrize("error", [no_memory_of_opencv(), OSError("out of memory when reading image file"), MemoryError()], ids=repr)
def test_too_little_memory_says_nothing_of_the_file(upright: Pixels, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal would be for ever."""

    def fail(image: Image.Image) -> Pixels:
        raise error

    monkeypatch.setattr(images, "_normalised", fail)
    with pytest.raises(MemoryError):
        read(saved(upright, "PNG"), LIMITS)


def test_a_sound_file_is_never_refused_for_want_of_memory(tmp_path: Path) -> None:
    """Whatever a decoder calls it: WebP, AVIF and progressive JPEG speak of damage."""
    y, x = np.mgrid[0:1000, 0:1500]
    large = Image.fromarray(np.stack((x % 251, y % 241, (x + y) % 233), axis=2).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # which OpenCV does
    sound = {
        "jpeg": saved(large, "JPEG", exif=turned.tobytes()),
        "progressive": saved(large, "JPEG", progressive=True, subsampling=0),
        "png": saved(large, "PNG", exif=turned.tobytes()),
        "deep": saved(Image.fromarray((np.asarray(large)[..., 0] * np.uint16(257)).astype(np.uint16)), "PNG"),
        "alpha": saved(large.convert("RGBA"), "WEBP", lossless=True, method=0),
        "webp": saved(large, "WEBP", method=0),
        "avif": saved(large, "AVIF", speed=10),
        "gif": saved(large.convert("P"), "GIF"),
        "tiff": saved(large, "TIFF", compression="jpeg"),
    }
    for name, data in sound.items():
        (tmp_path / name).write_bytes(data)
    # each try in a process of its own: memory that one has given back would be the next one's
    script = """
import os, resource, sys
from pathlib import Path
from pipeline import images
from pipeline.settings import Settings
limits = images.Limits.of(Settings())
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for room in range(500_000, 45_000_000, 2_900_000):
        child = os.fork()
        if not child:
            taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (taken + room, taken + room))
            try:
                images.read(data, limits)
            except MemoryError:
                os._exit(1)
            except images.ImageRefused:
                os._exit(2)
            os._exit(0)
        print(path.name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True, timeout=120)

    said: dict[str, set[int]] = {name: set() for name in sound}
    for line in ran.stdout.splitlines():
        name, code = line.split()
        said[name].add(int(code))
    assert said == {name: {0, 1} for name in sound}, "0 read, 1 too little memory, 2 refused"
