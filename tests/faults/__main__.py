"""`make faults`: the long form of the table, whole or in parts; `make faults ARGS="--only broker-kill --n 30 --seed 7"`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from tests.faults.report import table
from tests.faults.runner import naive_alone, run
from tests.faults.table import ROWS

REPORT = Path(__file__).parents[2] / "build" / "faults.json"


def main() -> int:
    """0: all passed; 1: not all."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", default="", help="tests, separated by commas; all if left out")
    parser.add_argument("--n", type=int, help="how many faults; each test's own number if left out")
    parser.add_argument("--seed", type=int, help="repeats an earlier run; a new one, which is printed, if left out")
    parser.add_argument("--short", action="store_true", help="the short form")
    parser.add_argument("--without-naive", action="store_true", help="leave the naive chain out")
    parser.add_argument("--naive-alone", action="store_true", help="only the naive chain; its figures join those of earlier runs")
    parser.add_argument("--keep", action="store_true", help="keep the data directories, with the logs")
    parser.add_argument("--corpus", default="", help="for the test `hostile`: folders or archives of pictures, separated by commas")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--list", action="store_true", help="list the tests, and how long each takes")
    parser.add_argument("--table", action="store_true", help="print what the report says, as a table")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(given.report.read_text())))
        return 0
    if given.list:
        for row in ROWS:
            print(f"{row.name:<22} n {row.short:>3} / {row.long:<6} about {row.minutes:g} min   {(row.run.__doc__ or '').splitlines()[0]}")
        return 0
    wanted = [name for name in given.only.split(",") if name]
    if unknown := set(wanted) - {row.name for row in ROWS}:
        parser.error(f"there is no test {sorted(unknown)[0]}: --list shows them all")
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    rows = [(row, given.n or (row.short if given.short else row.long)) for row in ROWS if not wanted or row.name in wanted]
    chosen = [(row, n) for row, n in rows if n]
    if given.naive_alone:
        naive_alone([row for row, _ in chosen if row.naive], seed, given.report, _say)
        return 0
    places = [place for place in given.corpus.split(",") if place]
    ok = run(chosen, seed, given.report, _say, naive=not given.without_naive, keep=given.keep, places=places)
    print(f"report: {given.report}")
    return 0 if ok else 1


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
