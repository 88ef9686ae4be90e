"""Where each millisecond goes, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(figures: dict[str, Any], path: Path) -> None:
    """Two bars: the work by its steps, and the product by its programs, in milliseconds of processor time a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = (("the work alone", figures["cpu_ms_by_step"]), ("the product", figures["cpu_ms_by_program"]))
    chart, axes = pyplot.subplots(figsize=(11, 3.6), layout="constrained")
    for place, (_, parts) in enumerate(bars):
        left = 0.0
        for index, (part, spent) in enumerate(parts.items()):
            axes.barh(place, spent, left=left, color=f"C{(index + 5 * place) % 10}", edgecolor="white")
            if spent > 8:
                axes.text(left + spent / 2, place, f"{part}\n{spent:.0f}", ha="center", va="center", fontsize=8, color="white")
            left += spent
        axes.text(left, place, f" {left:.0f} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_xlabel("milliseconds of processor time a picture")
    axes.set_title(f"pipeline over bare: {figures['pipeline_over_bare']}, {figures['machine']['cpu']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    chart.savefig(path, dpi=110)
    pyplot.close(chart)
