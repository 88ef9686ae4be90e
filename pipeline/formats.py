"""What the bytes of a picture file say before it is decoded: its format, its frames, and signs of a bomb."""

from __future__ import annotations

import io
import re
import struct

from PIL import Image, TiffImagePlugin

READ = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
MOST_FRAMES = 1000
"""Frames are counted up to here."""
MOST_SCANS = 100
"""A progressive JPEG has about 10 scans; each costs a pass over the whole picture."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "an EPS or PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS or PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\x00\x00\x01\x00", "an icon file"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1aE\xdf\xa3", "a video"),
)
_HEIC = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"))


def of(data: bytes) -> str:
    """The format by the magic bytes: one of READ, or in words what else it is, or empty."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF":
        return "WEBP" if data[8:12] == b"WEBP" else "a video or sound file"
    if data[4:8] == b"ftyp":
        length = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[start : start + 4] for start in range(16, length, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "a HEIC picture (save it as JPEG first)" if brands & _HEIC else "a video"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "an SVG drawing" if b"<svg" in head or b"svg" in head[:200] else "an XML document"
    return "a web page" if head.startswith((b"<!doctype html", b"<html")) else ""


def frames(data: bytes, image: Image.Image) -> int:
    """How many frames the file of a freshly opened image has, counted up to MOST_FRAMES; without decoding any."""
    if image.format == "GIF":
        return _gif_frames(data)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if not image.is_animated:
            return 1
        again = Image.open(io.BytesIO(data), formats=["TIFF"])  # seeking leaves traces in the image
        number = 1
        try:
            while number < MOST_FRAMES:
                again.seek(number)
                number += 1
        except Exception:  # the chain of directories ends, or is damaged from there on
            return number
        return number
    return max(1, min(MOST_FRAMES, int(getattr(image, "n_frames", 1))))


def _gif_frames(data: bytes) -> int:
    """Walk the blocks of a GIF (Pillow would decode them)."""
    number, at = 0, 13 + _gif_table(data, 10)
    while at < len(data) and number < MOST_FRAMES:
        kind = data[at]
        if kind == 0x2C:
            number += 1
            at += 11 + _gif_table(data, at + 9)
        elif kind == 0x21:
            at += 2
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return max(1, number)


def _gif_table(data: bytes, at: int) -> int:
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG asks to be drawn in, up to MOST_SCANS + 1."""
    if data.count(b"\xff\xda") <= MOST_SCANS:  # nearly always; markers inside metadata only add to it
        return min(MOST_SCANS, data.count(b"\xff\xda"))
    number, at = 0, 2
    while number <= MOST_SCANS:
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] == 0xD9:
            break
        number += data[found.end() - 1] == 0xDA
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return number


_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def tiff_block(image: TiffImagePlugin.TiffImageFile) -> int:
    """Pixels of the largest block (tile or strip) that must be decoded at once; 0 if the header does not say."""
    width, height = image.size

    def tag(number: int, otherwise: int) -> int:
        try:
            value = image.tag_v2.get(number, otherwise)
        except (ValueError, struct.error, SyntaxError):
            return otherwise
        value = value[0] if isinstance(value, tuple) and value else value
        return value if isinstance(value, int) else otherwise

    strip = width * min(height, tag(278, height))
    return max(strip, tag(322, 0) * tag(323, 0))
