"""A training's curve as an SVG drawing: made here, on the server, so that a page needs no script for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 430, 190, 34, 10, 28, 22
NICE = (1, 2, 2.5, 5, 10)
KINDS = {"auc_self_blended": "self-blended", "auc_face_swap": "face swap", "auc_region": "region", "auc_warp": "warp"}


@dataclass(frozen=True)
class Line:
    """One line of a panel: what it is called, its class, and its points as (images seen, value)."""

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]


def drawn(curve: Sequence[Mapping[str, Any]]) -> Markup:
    """Two panels over the images seen: the loss of training and validation, and the AUC of each kind of fake.

    Empty where there are not two looks yet.
    """
    looks = [point for point in curve if point.get("event", "look") == "look" and _number(point.get("seen")) is not None]
    if len(looks) < 2:
        return Markup("")
    losses = [Line("training", "a", _points(looks, "loss")), Line("validation", "b", _points(looks, "val_loss"))]
    aucs = [Line(word, kind, _points(looks, name)) for kind, (name, word) in zip("abcd", KINDS.items(), strict=True)]
    stages = [float(one["seen"]) for before, one in pairwise(looks) if one.get("stage") != before.get("stage")]
    last = float(looks[-1]["seen"])
    low = min((value for line in aucs for _, value in line.points), default=0.5)
    floor = min(0.5, math.floor(low * 10) / 10)
    panels = _panel("Loss", losses, last, stages, 0.0, None) + _panel("AUC", aucs, last, stages, floor, 1.0)
    return _safe(f'<div class="curves">{panels}</div>')


def spark(curve: Sequence[Mapping[str, Any]]) -> Markup:
    """The AUC that chooses the weights as a small line without axes; empty where there are not two looks yet."""
    points = _points([point for point in curve if point.get("event", "look") == "look"], "auc")
    if len(points) < 2:
        return Markup("")
    last = points[-1][0] or 1.0
    low = min(value for _, value in points)
    span = max(max(value for _, value in points) - low, 0.02)
    path = " ".join(f"{100 * x / last:.1f},{26 - 24 * (y - low) / span:.1f}" for x, y in points)
    return _safe(
        f'<svg class="spark" viewBox="0 0 100 28" preserveAspectRatio="none" role="img" aria-label="AUC from {points[0][1]:.2f} to '
        f'{points[-1][1]:.2f}"><polyline points="{path}"/></svg>'
    )


def _safe(drawing: str) -> Markup:
    """What is made of numbers and of our own words alone."""
    return Markup(drawing)  # noqa: S704


def _panel(title: str, lines: Sequence[Line], last: float, stages: Sequence[float], low: float, high: float | None) -> str:
    values = [value for line in lines for _, value in line.points]
    top = high if high is not None else max(values, default=1.0) * 1.05
    top = top if top > low else low + 1
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(seen: float) -> float:
        return LEFT + inner_w * seen / (last or 1.0)

    def y(value: float) -> float:
        return TOP + inner_h * (1 - (min(value, top) - low) / (top - low))

    parts = [f'<text class="title" x="{LEFT}" y="14">{title}</text>']
    # one text: nobody but the browser knows how wide its words are
    names = [f'<tspan class="key {line.kind}" dx="9">■</tspan> {line.name} {line.points[-1][1]:.2f}' for line in lines if line.points]
    parts.append(f'<text class="name" text-anchor="end" x="{WIDTH - RIGHT}" y="14">{"".join(names)}</text>')
    for tick in _ticks(low, top):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 7}" y="{y(tick) + 4:.1f}">{tick:g}</text>')
    for tick in _ticks(0, last):
        anchor = "end" if x(tick) > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text class="tick" text-anchor="{anchor}" x="{x(tick):.1f}" y="{HEIGHT - 6}">{_short(tick)}</text>')
    parts += [f'<line class="stage" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{TOP + inner_h}"/>' for at in stages]
    for line in lines:
        if line.points:
            path = " ".join(f"{x(seen):.1f},{y(value):.1f}" for seen, value in line.points)
            parts.append(f'<polyline class="line {line.kind}" points="{path}"/>')
            seen, value = line.points[-1]
            parts.append(f'<circle class="dot {line.kind}" cx="{x(seen):.1f}" cy="{y(value):.1f}" r="3"/>')
    said = f"{title} over {last:,.0f} images: " + ", ".join(f"{line.name} {line.points[-1][1]:.2f}" for line in lines if line.points)
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _points(looks: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[float, float], ...]:
    found = []
    for look in looks:
        seen, value = _number(look.get("seen")), _number(look.get(name))
        if seen is not None and value is not None:
            found.append((seen, value))
    return tuple(found)


def _number(value: object) -> float | None:
    """What the trainer told, if it is a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    rough = (high - low) / wanted
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in NICE if power * nice >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(count: float) -> str:
    if count >= 1_000_000:
        return f"{count / 1_000_000:g}M"
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"
