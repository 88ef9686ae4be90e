"""A gate's decision as a picture: the differences with their intervals and margins, both ROC curves, false positives by group."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from pipeline.trials import Difference, Trial

BETTER, WORSE, PLAIN = "#0b6e4f", "#b3362c", "#5a6562"


def draw(
    trial: Trial,
    *,
    title: str,
    verdict: str,
    sentences: Sequence[tuple[bool, str]],
    margins: tuple[float, float],
    group_limit: float,
    names: tuple[str, str],
) -> bytes:
    """The picture as a PNG.

    Args:
        verdict: what became of the candidate, in a word or two.
        sentences: whether it holds, and the sentence, of every check.
        margins: how far the AUC, and the true positive rate, may lie below at worst.
        group_limit: the highest false positive rate of a group, 0 to 1.
        names: what candidate and champion are called.
    """
    from matplotlib.figure import Figure  # draws without a screen and without pyplot's global state

    figure = Figure(figsize=(12, 8.6), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, 2, height_ratios=(1.15, 1, 0.08 + 0.3 * _lines(sentences)), width_ratios=(1.25, 1))
    _differences(figure.add_subplot(grid[0, 0]), trial, margins)
    _roc(figure.add_subplot(grid[:2, 1]), trial, names)
    _groups(figure.add_subplot(grid[1, 0]), trial, group_limit, names)
    _words(figure.add_subplot(grid[2, :]), sentences)
    figure.suptitle(f"{title}: {verdict}", x=0.01, ha="left", fontsize=15, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)
    axis.set_axisbelow(True)


def _differences(axis: Any, trial: Trial, margins: tuple[float, float]) -> None:
    rows: list[tuple[str, Difference, float | None]] = [("AUC, mean", trial.auc, margins[0])]
    rows.append(("found at 1 % FPR", trial.tpr, margins[1]))
    rows += [(f"AUC, {name.replace('_', ' ')}", found, None) for name, found in trial.per_set.items()]
    for place, (_, found, margin) in enumerate(rows):
        lower = found.high < 0 if place else found.difference < 0  # only the AUC must not be lower at all
        bad = margin is not None and (lower or found.low < -margin)
        colour = PLAIN if margin is None else WORSE if bad else BETTER
        axis.plot(
            [found.low, found.high], [place, place], color=colour, lw=5 if margin is not None else 2.5, alpha=0.45, solid_capstyle="butt"
        )
        axis.plot([found.difference], [place], "o", color=colour, ms=8 if margin is not None else 5)
        if margin is not None:
            axis.plot([-margin, -margin], [place - 0.38, place + 0.38], color=WORSE, lw=2)
            axis.annotate("margin", (-margin, place - 0.42), ha="center", va="bottom", fontsize=7.5, color=WORSE)
    axis.axvline(0, color="#333", lw=1)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.85)
    axis.set_xlabel("candidate minus champion (90 % interval, drawn by person)")
    axis.set_title(
        f"Difference on {trial.photographs} photographs of {trial.people} people no model was trained on", loc="left", fontsize=10
    )
    _plain(axis)


def _roc(axis: Any, trial: Trial, names: tuple[str, str]) -> None:
    for (_, curve), name, colour in zip(trial.curves.items(), names, (BETTER, "#444444"), strict=False):
        axis.plot(*zip(*curve, strict=True), color=colour, lw=1.8, label=name)
    axis.plot([0, 1], [0, 1], color="#999", lw=0.8, ls=":")
    axis.set(xlabel="reals called fake", ylabel="fakes found", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    axis.set_title("All fakes against the reals as they are", loc="left", fontsize=10)
    _plain(axis)


def _groups(axis: Any, trial: Trial, limit: float, names: tuple[str, str]) -> None:
    rows = [("everybody", (trial.photographs, *trial.false_positives)), *trial.groups.items()]
    for place, (_, (_, mine, before)) in enumerate(rows):
        axis.barh(place - 0.2, 100 * mine, 0.38, color=WORSE if place and mine > limit else BETTER, label=names[0] if not place else None)
        if before is not None:
            axis.barh(place + 0.2, 100 * before, 0.38, color="#999999", label=names[1] if not place else None)
    axis.axvline(100 * limit, color=WORSE, lw=1.5, ls="--", label="limit for a group")
    axis.set_yticks(range(len(rows)), [f"{name} ({n})" for name, (n, _, _) in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f"real faces called manipulated, % of {trial.judgements} judgements, clean, compressed and small")
    axis.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=3, fontsize=8, frameon=False)  # below: bars may be anywhere
    axis.set_title("False positives by self-reported group", loc="left", fontsize=10)
    _plain(axis)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 150)


def _lines(sentences: Sequence[tuple[bool, str]]) -> float:
    return 0.5 * sum(len(_wrapped(sentence)) for _, sentence in sentences)


def _words(axis: Any, sentences: Sequence[tuple[bool, str]]) -> None:
    axis.axis("off")
    total = max(1, sum(len(_wrapped(sentence)) for _, sentence in sentences))
    place = 0
    for holds, sentence in sentences:
        for number, line in enumerate(_wrapped(sentence)):
            height = 1 - (place + 0.5) / total
            if not number:
                axis.text(
                    0,
                    height,
                    "holds" if holds else "FAILS",
                    transform=axis.transAxes,
                    va="center",
                    fontsize=9.5,
                    fontweight="bold",
                    color=BETTER if holds else WORSE,
                )
            axis.text(0.05, height, line, transform=axis.transAxes, va="center", fontsize=9.5, color="#1c2321")
            place += 1
