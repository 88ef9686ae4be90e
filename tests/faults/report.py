"""The report as a table for people: `make faults ARGS=--table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.faults.table import ROWS

SAID = {
    "recovery_p95_s": "again after {} s (p95)",
    "recovery_max_s": "{} s at most",
    "reruns_per_kill": "{} stages done again a kill",
    "reruns": "{} stages done again",
    "attempts_max": "{} attempts at most",
    "dead_lettered_s_max": "failed with a reason after {} s at most",
    "exits_not_0": "{} ended with an error",
    "seconds_max": "{} s at most",
    "api_codes": "the API said {}",
    "api_back_s": "and was back after {} s",
    "longest_stage_s": "a stage took {} s at most",
    "broken_outputs": "{} broken outputs",
    "wrong": "{} wrong",
    "left_behind": "{} files left behind",
    "stolen_leases": "{} leases stolen",
    "memory_growth": "memory of the late half over the early one {}",
    "images_per_s": "{} images/s",
    "steps": "{} steps each, both databases",
}
"""What is told of a test beside what was lost and done twice."""


def table(report: Sequence[dict[str, Any]]) -> str:
    """Markdown, in the order of the table of tests."""
    by_name = {one["test"]: one for one in report}
    lines = ["| what is done | times | lost, twice | and | the usual chain: lost, twice |", "| --- | --- | --- | --- | --- |"]
    lines += [_line(row.name, by_name[row.name]) for row in ROWS if row.name in by_name]
    return "\n".join(lines)


def _line(name: str, figures: dict[str, Any]) -> str:
    naive = figures.get("naive")
    beside = _beside(naive) if naive else ""
    said = ", ".join(_said(figures, field) for field in SAID if figures.get(field) is not None)
    failed = "" if figures["passed"] else " **over its target**"
    uploads = f" ({figures['uploads']:,} uploads)" if figures.get("uploads", figures["n"]) != figures["n"] else ""
    return f"| {name}{failed} | {figures['n']:,}{uploads} | {figures['lost']}, {figures['duplicates']} | {said} | {beside} |"


def _beside(naive: dict[str, Any]) -> str:
    if "lost" not in naive:
        return "not measured"
    stuck = f", and {naive['stuck']} stuck" if naive.get("stuck") else ""
    return f"{naive['lost']}, {naive['duplicates']}{stuck} of {naive['n']}"


def _said(figures: dict[str, Any], field: str) -> str:
    value = figures[field]
    value = len(value) if field == "wrong" and isinstance(value, list) else value
    return SAID[field].format(", ".join(map(str, value)) if isinstance(value, list) else value)
