"""One picture of many results: each original beside what came of it, with what was said of it underneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.jobs import Pixels

Colour = tuple[int, int, int]
PAPER: Colour = (246, 246, 243)
CARD: Colour = (255, 255, 255)
EDGE: Colour = (214, 214, 208)
EMPTY: Colour = (232, 232, 227)
INK: Colour = (33, 37, 41)
GREY: Colour = (110, 116, 122)
VERDICTS: dict[str, Colour] = {"manipulated": (192, 28, 40), "uncertain": (178, 112, 0), "authentic": (26, 127, 55)}

THUMB = (330, 250)
"""Width and height that a picture must fit into, in pixels."""
PAD = 16
CAPTION = 84
COLUMNS = 2
MOST = 60


@dataclass(frozen=True)
class Card:
    """One result. `original` and `annotated`: (h, w, 3) uint8 RGB, None where there is nothing to show. `verdict` is what is
    printed in its colour, `said` a line about it."""

    name: str
    original: Pixels | None
    annotated: Pixels | None
    verdict: str
    said: str


def draw(title: str, cards: Sequence[Card], footer: Sequence[str]) -> Image.Image:
    """The sheet with up to 60 cards, two beside each other; `footer` is printed small below them."""
    shown = cards[:MOST]
    more = [f"{len(cards) - MOST} more are not shown."] if len(cards) > MOST else []
    width = PAD + COLUMNS * (_card_size()[0] + PAD)
    small = ImageFont.load_default(15)
    notes = [line for text in [*more, *footer] for line in _wrapped(text, small, width - 2 * PAD)]
    rows = -(-len(shown) // COLUMNS)
    height = 64 + rows * (_card_size()[1] + PAD) + len(notes) * 21 + PAD
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((PAD, 18), title, INK, ImageFont.load_default(26))
    for number, card in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        _draw_card(sheet, pen, card, (PAD + column * (_card_size()[0] + PAD), 64 + row * (_card_size()[1] + PAD)))
    for number, line in enumerate(notes):
        pen.text((PAD, 64 + rows * (_card_size()[1] + PAD) + number * 21), line, GREY, small)
    return sheet


def _card_size() -> tuple[int, int]:
    return 2 * THUMB[0] + 3 * PAD, THUMB[1] + PAD + CAPTION


def _draw_card(sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, at: tuple[int, int]) -> None:
    (left, top), (width, height) = at, _card_size()
    pen.rounded_rectangle((left, top, left + width, top + height), 8, CARD, EDGE)
    for place, pixels in enumerate((card.original, card.annotated)):
        _draw_picture(sheet, pen, pixels, (left + PAD + place * (THUMB[0] + PAD), top + PAD), "original" if place == 0 else "no picture")
    text = top + PAD + THUMB[1] + 10
    name_font, verdict_font, said_font = (ImageFont.load_default(size) for size in (18, 20, 15))
    pen.text((left + PAD, text), _shortened(card.name, name_font, width // 2 - PAD), INK, name_font)
    verdict = card.verdict.replace("_", " ")
    room = left + width - PAD - pen.textlength(verdict, verdict_font)
    pen.text((room, text - 1), verdict, VERDICTS.get(card.verdict, GREY), verdict_font)
    for number, line in enumerate(_wrapped(card.said, said_font, width - 2 * PAD)[:2]):
        pen.text((left + PAD, text + 27 + number * 18), line, GREY, said_font)


def _draw_picture(sheet: Image.Image, pen: ImageDraw.ImageDraw, pixels: Pixels | None, at: tuple[int, int], absent: str) -> None:
    left, top = at
    if pixels is None:
        pen.rectangle((left, top, left + THUMB[0], top + THUMB[1]), EMPTY)
        font = ImageFont.load_default(15)
        said = "not readable" if absent == "original" else absent
        place = (left + (THUMB[0] - pen.textlength(said, font)) / 2, top + THUMB[1] / 2 - 8)
        pen.text(place, said, GREY, font)
        return
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(THUMB[0] / picture.width, THUMB[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    sheet.paste(picture.resize(size, how), (left + (THUMB[0] - size[0]) // 2, top + (THUMB[1] - size[1]) // 2))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_shortened(word, font, width))
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
