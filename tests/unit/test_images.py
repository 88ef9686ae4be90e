"""What goes in is anybody's bytes; what comes out is upright sRGB pixels, or one sentence. Bombs and want of memory: test_bombs.py."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pipeline import formats, images
from pipeline.images import ImageRefused, Limits, read
from pipeline.jobs import Pixels
from tests.fixtures.files import LIMITS, refusal, saved

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
CANARY = b"CANARY-7f3a91"
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
LOSSLESS: dict[str, dict[str, object]] = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {"compression": "tiff_deflate"}}


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(upright: Pixels, format: str) -> None:
    picture = read(saved(upright, format, **LOSSLESS[format]), LIMITS)

    assert np.array_equal(picture.pixels, upright)
    assert (picture.format, picture.width, picture.height, picture.frames) == (format, 64, 48, 1)
    assert picture.pixels.flags.c_contiguous


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_lossy_formats_come_close(upright: Pixels, format: str) -> None:
    picture = read(saved(upright, format, quality=98, subsampling="4:4:4"), LIMITS)

    assert np.abs(picture.pixels.astype(int) - upright).mean() < 3
    assert picture.format == format


def test_the_digest_is_that_of_the_file(upright: Pixels) -> None:
    data = saved(upright, "PNG")

    assert read(data, LIMITS).sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"", "empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "video"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"  <svg/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"8BPS\0\1", "Photoshop"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\3\4", "ZIP"),
        (b"just some words", "not a picture"),
    ],
)
def test_everything_else_is_refused_by_name(head: bytes, named: str) -> None:
    assert named in refusal(head)


def test_only_the_format_that_the_magic_names_is_tried(upright: Pixels) -> None:
    assert "JPEG" in refusal(b"\xff\xd8\xff" + saved(upright, "PNG"))


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files_are_refused(upright: Pixels, format: str) -> None:
    noise = np.random.default_rng(5).integers(0, 255, (64, 64, 3), np.uint8)
    data = saved(noise, format)

    assert format in refusal(data[: len(data) * 2 // 3])


# --- orientation -----------------------------------------------------------------------------------------------------

# how the upright picture is stored for each value of tag 274, so that applying the tag gives it back
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_gives_the_same_upright_picture(upright: Pixels, format: str, orientation: int) -> None:
    image = Image.fromarray(upright)
    if orientation in STORED:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossy = format in ("JPEG", "AVIF")
    options = {"quality": 95, "subsampling": "4:4:4"} if lossy else LOSSLESS[format]

    pixels = read(saved(image, format, exif=exif, **options), LIMITS).pixels

    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() <= (4 if lossy else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(upright: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert np.array_equal(read(saved(upright, "PNG", exif=exif), LIMITS).pixels, upright)


def test_a_broken_exif_block_does_not_spoil_the_picture(upright: Pixels) -> None:
    data = saved(upright, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")

    assert np.array_equal(read(data, LIMITS).pixels, upright)


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)

    pixels = read(saved(Image.fromarray(deep), format), LIMITS).pixels

    assert np.array_equal(pixels, np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, axis=2))


def test_big_endian_16_bit_grey_is_scaled() -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = Image.frombytes("I;16B", (64, 64), deep.astype(">u2").tobytes())

    assert np.array_equal(read(saved(image, "TIFF"), LIMITS).pixels[..., 0], np.rint(deep / 257))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour_is_scaled(upright: Pixels, suffix: str) -> None:
    deep = upright[..., ::-1].astype(np.uint16) * 257
    _, buffer = cv2.imencode(suffix, deep)

    assert np.abs(read(buffer.tobytes(), LIMITS).pixels.astype(int) - upright).max() <= 1


def test_32_bit_samples_are_refused_by_name() -> None:
    assert "32-bit" in refusal(saved(Image.new("F", (8, 8)), "TIFF"))
    assert "32-bit" in refusal(saved(Image.new("I", (8, 8)), "TIFF"))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_what_is_hidden_under_transparency_stays_hidden(format: str) -> None:
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (8, 0, 16, 16))
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(format, {})

    pixels = read(saved(image, format, **options), LIMITS).pixels.astype(int)

    assert np.abs(pixels[:, :7] - 255).max() <= 3
    assert np.abs(pixels[:, 9:] - (0, 0, 200)).max() <= 6


def test_half_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))

    assert np.abs(read(saved(image, "PNG"), LIMITS).pixels.astype(int) - 127).max() <= 1


def test_grey_with_alpha_lies_on_white() -> None:
    image = Image.new("LA", (4, 4), (40, 255))
    image.putpixel((0, 0), (40, 0))

    pixels = read(saved(image, "PNG"), LIMITS).pixels

    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [40, 40, 40]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(format: str) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)

    pixels = read(saved(image, format, transparency=0), LIMITS).pixels

    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [200, 100, 50]


def test_a_transparent_grey_value_is_white_also_at_16_bits() -> None:
    for mode, value in (("L", 40), ("I;16", 40 * 257)):
        image = Image.new(mode, (4, 4), value)
        image.putpixel((0, 0), 0)

        pixels = read(saved(image, "PNG", transparency=value), LIMITS).pixels

        assert pixels[1, 1].tolist() == [255, 255, 255], mode
        assert pixels[0, 0].tolist() == [0, 0, 0], mode


@pytest.mark.parametrize(("mode", "colour", "expected"), [("L", 90, (90, 90, 90)), ("1", 1, (255, 255, 255))])
def test_grey_and_black_and_white(mode: str, colour: int, expected: tuple[int, int, int]) -> None:
    assert (read(saved(Image.new(mode, (8, 8), colour), "PNG"), LIMITS).pixels == expected).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red

    red, green, blue = read(saved(image, format), LIMITS).pixels[8, 8]

    assert red > 200
    assert max(green, blue) < 60


def swapped_profile() -> bytes:
    """sRGB with its red and blue primaries under each other's name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_colour_profile_is_converted_to_srgb(mode: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)

    red, green, blue = read(saved(image, "PNG", icc_profile=swapped_profile()), LIMITS).pixels[8, 8]

    assert blue > 245
    assert max(red, green) < 10


def test_srgb_under_its_own_name_changes_nothing(upright: Pixels) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert np.array_equal(read(saved(upright, "PNG", icc_profile=profile), LIMITS).pixels, upright)


@pytest.mark.parametrize("profile", [b"garbage", swapped_profile()[:200], b"\0" * 5000])
def test_an_unusable_profile_changes_nothing(upright: Pixels, profile: bytes) -> None:
    assert np.array_equal(read(saved(upright, "PNG", icc_profile=profile), LIMITS).pixels, upright)


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_is_read_and_all_are_counted(format: str) -> None:
    first, *rest = (Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
    options = {"WEBP": {"lossless": True}}.get(format, {})

    picture = read(saved(first, format, save_all=True, append_images=rest, **options), LIMITS)

    assert picture.frames == 3
    assert np.abs(picture.pixels.astype(int) - (200, 0, 0)).max() <= 8


def test_frames_are_counted_up_to_a_limit() -> None:
    data = saved(Image.new("P", (1, 1)), "GIF")
    frame = data[data.index(b"\x2c") : -1]

    assert read(data[:-1] + frame * 5000 + b";", LIMITS).frames == formats.MOST_FRAMES


# --- out -------------------------------------------------------------------------------------------------------------


def loaded_with_metadata(upright: Pixels, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    exif.get_ifd(0x8825)[0x1D] = CANARY.decode()
    options: dict[str, object] = {"exif": exif, "icc_profile": swapped_profile() + CANARY}
    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", CANARY.decode())
        text.add_itxt("XML:com.adobe.xmp", CANARY.decode())
        options["pnginfo"] = text
    elif format == "JPEG":
        options |= {"comment": CANARY, "xmp": CANARY}
    elif format in ("WEBP", "AVIF"):
        options["xmp"] = CANARY
    return saved(upright, format, **options) + CANARY


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_nothing_but_pixels_gets_through(upright: Pixels, format: str) -> None:
    data = loaded_with_metadata(upright, format)
    assert data.count(CANARY) >= 2

    picture = read(data, LIMITS)
    outputs = [images.encode_png(picture.pixels, 1), images.thumbnail(picture.pixels, 32)]

    assert not any(word in output for output in outputs for word in (CANARY, b"Exif", b"ICC", b"XMP", b"http"))


def test_a_png_has_three_chunks_and_the_very_pixels(upright: Pixels) -> None:
    for level in (0, 1, 3, 6, 9):
        data = images.encode_png(upright, level)
        names, at = [], 8
        while at < len(data):
            (length,) = struct.unpack(">I", data[at : at + 4])
            names.append(data[at + 4 : at + 8])
            assert zlib.crc32(data[at + 4 : at + 8 + length]) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
            at += 12 + length

        assert names == [b"IHDR", b"IDAT", b"IEND"]
        assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], upright)
        assert data == images.encode_png(upright.copy(), level)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3), (333, 77, 3)])
def test_png_of_any_shape(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(3).integers(0, 256, shape, np.uint8)

    assert np.array_equal(read(images.encode_png(noise, 1), LIMITS).pixels, noise)


def test_a_thumbnail_shrinks_and_never_grows(upright: Pixels) -> None:
    assert Image.open(io.BytesIO(images.thumbnail(upright, 16))).size == (16, 12)
    assert Image.open(io.BytesIO(images.thumbnail(upright, 500))).size == (64, 48)


# --- hostility -------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16))):
        if not changed:
            break
        at = rng.randrange(min(len(changed), 400) if rng.random() < 0.6 else len(changed))
        match rng.randrange(5):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
            case 3:
                del changed[at : at + rng.randrange(1, 40)]
            case _:
                changed[at:at] = changed[at : at + rng.randrange(1, 40)]
    return bytes(changed)


@pytest.mark.parametrize("format", FORMATS)
def test_200_mutated_files_give_pixels_or_a_sentence(upright: Pixels, format: str) -> None:
    options = {"TIFF": {"compression": "tiff_lzw"}}.get(format, {})
    data = loaded_with_metadata(upright, format) if format not in ("BMP", "GIF", "TIFF") else saved(upright, format, **options)
    limits = Limits(bytes=1_000_000, pixels=4_000_000, side=4_000)
    outcomes = {"read": 0, "refused": 0}
    sentences = set()
    for seed in range(200):
        changed = mutated(data, random.Random(f"{format} {seed}"))
        try:
            picture = read(changed, limits)
        except ImageRefused as error:
            sentences.add(str(error))
            outcomes["refused"] += 1
        else:
            assert picture.pixels.dtype == np.uint8, seed
            assert picture.pixels.shape == (picture.height, picture.width, 3), seed
            assert picture.width * picture.height <= limits.pixels, seed
            outcomes["read"] += 1
    print(format, outcomes, sentences)
    assert all(sentence.endswith(".") for sentence in sentences)
    assert min(outcomes.values()) > 0
