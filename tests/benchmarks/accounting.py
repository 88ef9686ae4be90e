"""Processor time per program, from /proc: what wall-clock time cannot tell on a machine that has other things to do."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SERVERS = ("valkey", "s3", "database")
"""Not ours: what a deployment buys or is given."""
_NAMES = (
    (r"-n\0(\w+)@", None),
    (r"webhooks\.app", "web"),
    (r"\0beat\0", "beat"),
    (r"valkey", "valkey"),
    (r"\bweed\b", "s3"),
    (r"postgres", "database"),
    (r"supervisor", "supervisor"),
)


@dataclass(frozen=True)
class Process:
    """One process: whose it is, the seconds of processor time it has used, and the most memory it ever held, in bytes (VmHWM)."""

    pid: int
    name: str
    cpu_s: float
    peak: int


def look(roots: list[int]) -> list[Process]:
    """The processes at `roots` and all that came of them, by the name of the program each belongs to."""
    parents, found = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        found[int(entry.name)] = (command, (int(fields[11]) + int(fields[12])) * TICK_S)
    tree = [pid for pid in roots if pid in found]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid and child not in tree]
    return [Process(pid, _name(found[pid][0]), found[pid][1], _peak(pid)) for pid in tree]


def used(before: list[Process], after: list[Process]) -> Counter[str]:
    """Seconds of processor time between two looks, by program."""
    had = {process.pid: process.cpu_s for process in before}
    spent: Counter[str] = Counter()
    for process in after:
        spent[process.name] += process.cpu_s - had.get(process.pid, 0.0)
    return spent


def memory(processes: list[Process]) -> dict[str, int]:
    """Bytes that the largest process of each program held at its peak."""
    most: dict[str, int] = {}
    for process in processes:
        most[process.name] = max(most.get(process.name, 0), process.peak)
    return most


def _peak(pid: int) -> int:
    """0 where the process has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0


def _name(command: str) -> str:
    for pattern, name in _NAMES:
        if (match := re.search(pattern, command)) is not None:
            return name or match.group(1)
    return "other"
