"""Hostile bytes in, an upright RGB array out; and arrays back into files that carry nothing of the input but its pixels.

The order is fixed, cheap and safe things first: size of the file, magic bytes, header, limits on pixels, sides and scans, and
only then decoding. Only the format that the magic names is tried.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline import formats
from pipeline.jobs import Pixels

if TYPE_CHECKING:
    from pipeline.settings import Settings

# Imported, each registers itself with Pillow; left to itself Pillow would import every plugin it has.
_PLUGINS = (AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
# Pillow warns between its limit and twice its limit; `read` refuses exactly.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

LARGEST_PROFILE = 4_000_000
"""Bytes. A larger ICC profile is not applied."""
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_MIRRORED = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
"""`cv2.flip`'s code for an orientation: 1 left to right, 0 top to bottom, -1 both."""
NO_MEMORY = -4
"""OpenCV's code for it."""
_BYTES_A_PIXEL = 10
"""What a decoder may want at once: WebP takes two canvases of four bytes a pixel, a progressive JPEG up to eight."""
_PROFILES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


class ImageRefused(Exception):
    """The file can never be judged; the text is one sentence for the person who sent it."""

    permanent = True


@dataclass(frozen=True)
class Limits:
    """What a file may have at most: `bytes` of the file, `pixels` of the picture, pixels on its longer `side`."""

    bytes: int
    pixels: int
    side: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that the settings give."""
        return cls(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side)


@dataclass(frozen=True)
class Picture:
    """A decoded picture. `pixels` (h, w, 3) uint8 RGB, upright, sRGB, no alpha; `format` as in `JPEG`; `sha256` of the
    file; `frames` in the file, of which the first was decoded (counted up to `formats.MOST_FRAMES`)."""

    pixels: Pixels = field(repr=False, compare=False)
    format: str
    sha256: str
    frames: int

    @property
    def width(self) -> int:
        """In pixels of the upright picture."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """In pixels of the upright picture."""
        return self.pixels.shape[0]


def read(data: bytes, limits: Limits) -> Picture:
    """Decode one file: JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF.

    EXIF orientation is applied, ICC profiles are converted to sRGB, 16-bit samples scaled, CMYK and palettes converted,
    transparency laid on white. Raises ImageRefused, before decoding wherever a look at the header tells, and MemoryError where
    the file may be sound and there was too little memory for it.
    """
    if len(data) > limits.bytes:
        raise ImageRefused(f"The file has {len(data):,} bytes; at most {limits.bytes:,} are accepted.")
    format = _format(data)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    wanted = limits.pixels
    try:
        image = Image.open(io.BytesIO(data), formats=[format])
        _check(image, data, format, limits)
        wanted = image.width * image.height
        frames = formats.frames(data, image)
        image.load()
        pixels = _normalised(image)
    except (ImageRefused, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefused(f"The picture has more pixels than the {limits.pixels:,} that are accepted.") from error
    except cv2.error as error:
        if error.code == NO_MEMORY:
            raise MemoryError from error
        raise ImageRefused(f"The {format} file is damaged and cannot be decoded.") from error
    except UnidentifiedImageError as error:
        raise ImageRefused(f"The {format} file is damaged, or of a kind that is not read here.") from error
    except Exception as error:  # decoders raise nearly everything on damaged input
        if "out of memory" in str(error) or not _room_for(wanted):  # Pillow's decoders say so by OSError, or do not say it
            raise MemoryError from error
        what = "ends too early" if "truncated" in str(error).lower() else "is damaged"
        raise ImageRefused(f"The {format} file {what} and cannot be decoded.") from error
    return Picture(pixels, format, hashlib.sha256(data).hexdigest(), frames)


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Scale to a size in pixels: by area where it shrinks, cubic where it grows. The array itself if it has that size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = width * height < pixels.shape[0] * pixels.shape[1]
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8)


def encode_png(pixels: Pixels, level: int) -> bytes:
    """A PNG of (h, w, 3) pixels and nothing else; the same bytes every time. `level` 0 (fast, large) to 9."""
    from pipeline import png  # who only reads pictures, to train on another machine, need not have its library

    return png.encode(pixels, level)


def thumbnail(pixels: Pixels, side: int) -> bytes:
    """A JPEG at most `side` pixels on its longer side; never enlarged."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(width, height))
    small = resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _format(data: bytes) -> str:
    if not data:
        raise ImageRefused("The file is empty.")
    known = formats.of(data)
    if known in formats.READ:
        return known
    accepted = "JPEG, PNG, WebP, AVIF, BMP, GIF and TIFF are accepted"
    if known:
        raise ImageRefused(f"This is {known}, which is not read here; {accepted}.")
    raise ImageRefused(f"This is not a picture in a known format; {accepted}.")


def _check(image: Image.Image, data: bytes, format: str, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageRefused(f"The picture has {width} x {height} pixels, {width * height:,} in all; at most {limits.pixels:,} are accepted.")
    if max(width, height) > limits.side:
        raise ImageRefused(f"The picture has {width} x {height} pixels; at most {limits.side:,} a side are accepted.")
    if format == "JPEG" and formats.jpeg_scans(data) > formats.MOST_SCANS:
        raise ImageRefused(f"The JPEG is drawn in more than {formats.MOST_SCANS} passes, which no camera or program makes.")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and formats.tiff_block(image) > max(limits.pixels, 1 << 20):
        raise ImageRefused("The TIFF is stored in blocks far larger than the picture.")


def _room_for(pixels: int) -> bool:
    """Whether there is memory to decode so many; without it WebP, AVIF and progressive JPEG fail as if they were damaged."""
    try:
        np.empty(pixels * _BYTES_A_PIXEL, np.uint8)  # asked for, never touched
    except MemoryError:
        return False
    return True


def _normalised(image: Image.Image) -> Pixels:
    orientation = _orientation(image)
    pixels = _rgb(image)
    # tag 274 of TIFF 6.0 and EXIF: four mirrorings, of the picture or of its transpose
    if orientation >= 5:
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    if orientation in _MIRRORED:
        pixels = np.asarray(cv2.flip(pixels, _MIRRORED[orientation]), np.uint8)
    return np.ascontiguousarray(pixels)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block does not make the picture unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Pixels:
    """(h, w, 3) sRGB of any mode: colours converted, transparency laid on white."""
    if image.mode in _DEEP:
        return _deep(image)
    if image.mode in ("I", "F"):
        raise ImageRefused("Pictures with 32-bit samples are not read: save it with 8 or 16 bits.")
    if image.mode in ("La", "RGBa", "PA") or (image.mode != "RGBA" and "transparency" in image.info):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    profile = image.info.get("icc_profile")
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    image = _srgb(image, profile)
    if alpha is not None:
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=alpha)
        image = ground
    return np.asarray(image)


def _deep(image: Image.Image) -> Pixels:
    """Grey of more than 8 bits, scaled; Pillow's own conversion would saturate."""
    deep = np.asarray(image).astype(np.uint16)  # in this machine's byte order
    bits, inverted = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow unpacks 12 bits to 0..4095, and leaves white at 0 where it is so
        bits, inverted = image.tag_v2[258][0], image.tag_v2.get(262) == 0
    white = (1 << bits) - 1
    grey = cv2.convertScaleAbs(white - deep if inverted else deep, alpha=255 / white)
    profile = image.info.get("icc_profile")
    pixels = np.array(_srgb(Image.fromarray(grey), profile))
    if isinstance(clear := image.info.get("transparency"), int):
        pixels[deep == clear] = 255
    return pixels


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, L or CMYK to sRGB, by the ICC profile where there is a usable one."""
    if profile and len(profile) <= LARGEST_PROFILE:
        try:
            transform = _transform(profile, image.mode)
            if transform is not None:
                return transform.apply(image)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # an unusable profile: as if there were none
    return image if image.mode == "RGB" else image.convert("RGB")


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB; None if the profile is for another kind of colours, or is sRGB already."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space != _PROFILES[mode]:
        return None
    transform = ImageCms.ImageCmsTransform(source, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB")
    if mode == "RGB":  # most profiles are sRGB under some name: a few colours tell, and save converting millions
        axis = np.linspace(0, 255, 6).astype(np.uint8)
        colours = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(1, -1, 3)
        converted = transform.apply(Image.fromarray(colours))
        if np.abs(np.asarray(converted).astype(int) - colours).max() <= 2:
            return None
    return transform
