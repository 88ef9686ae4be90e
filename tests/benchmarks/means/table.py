"""The rows as a table, and the machine they were measured on."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.means.measuring import Row


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    lines = ["| means | before (median, min to max) | after | ratio | n | notes |", "|---|---|---|---|---|---|"]
    for row in rows:
        turns = f"{len(row.after)} turns of {row.items}" if row.after else "-"
        ratio = "-" if row.ratio is None else _short(row.ratio)
        lines.append(f"| {row.means} | {_spread(row.before)} | {_spread(row.after)} | {ratio} | {turns} | {row.notes} |")
    return "\n".join(lines)


def _spread(ms: Sequence[float]) -> str:
    if not ms:
        return "-"
    return "{} ms ({} to {})".format(*(_short(value) for value in (statistics.median(ms), min(ms), max(ms))))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    told = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {"processor": told[0] if told else "", "cores": len(os.sched_getaffinity(0)), "load": [round(one, 2) for one in os.getloadavg()]}


def busy(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The sentence over the table."""
    loads = [" / ".join(f"{one:g}" for one in when["load"]) for when in (before, after)]
    return f"{before['processor']}, {before['cores']} cores; load over 1, 5 and 15 minutes {loads[0]} before, {loads[1]} after."
