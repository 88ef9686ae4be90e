"""Where each millisecond goes, as a picture: the three ways on one axis, below them the product's way with a picture step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH_PX, DPI = 1500, 150
"""Drawn half as large again as it is to be read: letters of 9 points are 12 pixels high where it is shown 1000 pixels wide."""
WORK, OURS, SERVERS, PAPER, SUM = "#0072B2", "#E69F00", "#CC79A7", "#444444", "#A6A6A6"
"""Okabe and Ito's colours, which differ for every eye; and two greys."""
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
"""Behind figures, so that no line of the grid runs through them."""

STEPS = {
    "decode": "decode the JPEG",
    "detect": "find the faces, cut them out",
    "classify": "judge the faces",
    "draw": "draw the mesh",
    "encode": "write the PNG",
}
STAGES = ("extract", "classify", "render")
PROGRAMS = {
    "web": "our web server",
    "s3": "the S3 server (SeaweedFS)",
    "database": "the database (PostgreSQL)",
    "valkey": "the broker (Valkey)",
}


@dataclass(frozen=True)
class Row:
    """One line of the waterfall: where it starts and how long it is, in milliseconds. A `total` starts at nought."""

    name: str
    start: float
    ms: float
    colour: str
    total: bool = False

    @property
    def end(self) -> float:
        """Where the next one starts."""
        return self.start + self.ms


def rows(figures: dict[str, Any]) -> list[Row]:
    """The work by its steps, then what the product adds to it by program; the two sums among them."""
    work, programs = figures["bare_cpu_ms_per_image"], dict(figures["cpu_ms_by_program"])
    steps = [(STEPS.get(name, name), ms, WORK) for name, ms in figures["cpu_ms_by_step"].items()]
    work = max(work, sum(ms for _, ms, _ in steps))  # the kernel counts the sum in ticks of 10 ms, the loop its steps exactly
    steps.append(("the rest of the loop", work - sum(ms for _, ms, _ in steps), WORK))
    added = [("our workers, beyond the work", sum(programs.pop(name, 0.0) for name in STAGES) - work, OURS)]
    servers = [(PROGRAMS[name], programs.pop(name), SERVERS) for name in ("s3", "database", "valkey") if name in programs]
    added.append((PROGRAMS["web"], programs.pop("web", 0.0), OURS))
    added.append((", ".join(["our upkeep", *sorted(programs.keys() - {"upkeep"})]), sum(programs.values()), OURS))
    drawn, at = [], 0.0
    for spans, total in ((steps, "THE WORK ALONE"), (added + servers, "THE PRODUCT")):
        for name, ms, colour in spans:
            drawn.append(Row(name, at, ms, colour))
            at += ms
        drawn.append(Row(total, 0.0, at, SUM, total=True))
    return drawn


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write it as a PNG."""
    chart(figures).savefig(path, dpi=DPI)


def chart(figures: dict[str, Any]) -> Any:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure

    lines = rows(figures)
    paper = "paper_cpu_ms_per_image" in figures
    height = 2.97 + 0.29 * (len(lines) + (3 if paper else 2))
    shown = Figure(figsize=(WIDTH_PX / DPI, height))
    shown.set_layout_engine("constrained", rect=(0.005, 0.0, 0.985, 1 - 0.85 / height), hspace=0.06)
    shown.text(0.012, 1 - 0.12 / height, "Where each millisecond goes: processor time a picture", fontsize=14, fontweight="bold", va="top")
    shown.text(0.012, 1 - 0.42 / height, _stated(figures), fontsize=9, color="#444444", va="top")
    above, below = shown.subplots(2, height_ratios=(3.4 if paper else 2.4, len(lines) + 1.0))
    _compared(above, figures, lines, paper)
    _waterfall(below, lines)
    shown.supxlabel("Of each program the median: these need not add up to the median of all together.", fontsize=8.5, color="#444444")
    return shown


def _compared(axes: Any, figures: dict[str, Any], lines: list[Row], paper: bool) -> None:
    """All on one axis, the product's bar in its three parts."""
    work = next(row.ms for row in lines if row.total)
    parts = {WORK: work} | {colour: sum(row.ms for row in lines if row.colour == colour and not row.total) for colour in (OURS, SERVERS)}
    n = figures["n"]["images"]
    bars = [
        ("the work alone", figures["bare_images_per_s"], {WORK: work}, n),
        ("the product", figures["pipeline_images_per_s"], parts, n),
    ]
    if paper:
        bars.append(
            ("the paper's server", figures["paper_images_per_s"], {PAPER: figures["paper_cpu_ms_per_image"]}, figures["paper"]["n"])
        )
    longest = max(sum(bar.values()) for _, _, bar, _ in bars)
    for place, (_, rate, bar, count) in enumerate(bars):
        at = 0.0
        for colour, ms in bar.items():
            axes.barh(place, ms, left=at, color=colour, height=0.66)
            at += ms
        axes.text(at + longest * 0.01, place, f"{_ms(at)}, {rate:.3g} pictures a second, n={count}", bbox=PLAIN, va="center", fontsize=10)
    axes.set_title(f"The same pictures, {'three' if paper else 'two'} ways", fontsize=11, loc="left")
    _dressed(axes, [name for name, _, _, _ in bars], longest * 1.55)


def _waterfall(axes: Any, lines: list[Row]) -> None:
    """Each line starts where the one before it ended."""
    from matplotlib.patches import Patch

    longest = max(max(row.start, row.end) for row in lines)
    for place, row in enumerate(lines):
        axes.barh(place, row.ms, left=row.start, color=row.colour, height=0.7)
        weight = "bold" if row.total else "normal"
        axes.text(max(row.start, row.end) + longest * 0.008, place, _ms(row.ms), bbox=PLAIN, va="center", fontsize=10, weight=weight)
        if place + 1 < len(lines):
            axes.plot([row.end, row.end], [place - 0.35, place + 1.35], color="#888888", linewidth=0.8, zorder=0)
    axes.set_title("The product, step by step", fontsize=11, loc="left")
    _dressed(axes, [row.name for row in lines], longest * 1.1)
    for label, row in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if row.total else "normal")
    meant = {WORK: "the work itself", OURS: "our programs around it", SERVERS: "the servers it needs", SUM: "sums"}
    patches = [Patch(color=colour, label=name) for colour, name in meant.items()]
    above_the_last = 1.2 / (len(lines) + 0.2)  # left of the overheads and between both sums nothing is drawn
    axes.legend(handles=patches, loc="lower left", bbox_to_anchor=(0.01, above_the_last), borderaxespad=0, fontsize=10, framealpha=1)


def _dressed(axes: Any, names: list[str], right: float) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, right)
    axes.xaxis.set_major_formatter("{x:,.0f} ms")
    axes.tick_params(axis="x", labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _ms(value: float) -> str:
    said = f"{value:,.0f} ms" if abs(value) >= 10 else f"{value:.1f} ms"
    return said.replace("-", "\N{MINUS SIGN}")


def _stated(figures: dict[str, Any]) -> str:
    """With which model; where, when and how often it was measured."""
    machine, n, model = figures["machine"], figures["n"], figures["model"]
    database = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}.get(machine["database"], machine["database"])
    rounds = f"medians of {n['rounds']} rounds" if n["rounds"] > 1 else "one round"
    judged = f"{model['name']} {model['version']} in {model['precision']}, {model['input_size']} pixels; {rounds} of n pictures"
    return f"{judged}\n{machine['cpu']}, {machine['cores']} cores, {database}; {machine['at'][:10]}, commit {machine['commit']}"
