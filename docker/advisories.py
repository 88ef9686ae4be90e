"""Looks for known vulnerabilities in every package that the locks pin: `make audit`.

    python docker/advisories.py                          asks osv.dev
    python docker/advisories.py --database all.zip       reads a copy of its database; needs no network

The copy is `https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip`. Exit code 0: nothing that is not accepted; 1: something
is; 3: nobody could be asked (0 with --if-reachable, which says so). What was looked at and accepted stands in
docker/requirements/accepted.txt, one identifier and its reason a line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

from packaging.version import InvalidVersion, Version

LOCKS = Path(__file__).resolve().parent / "requirements"
ACCEPTED = LOCKS / "accepted.txt"
API = "https://api.osv.dev/v1"
PATIENCE_S = 30
AT_ONCE = 500
FOUND, UNREACHABLE = 1, 3
EVENTS = ("introduced", "fixed", "last_affected")


class Pin(NamedTuple):
    """A package as a lock has it, its name as PyPI normalises it."""

    name: str
    version: str


class Finding(NamedTuple):
    """A known vulnerability of a pinned package."""

    pin: Pin
    id: str
    aliases: tuple[str, ...]
    summary: str


def normal(name: str) -> str:
    """A project's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(locks: Iterable[Path]) -> dict[Pin, list[str]]:
    """Every package of the locks, and in which it stands."""
    found: dict[Pin, list[str]] = {}
    for lock in locks:
        for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", lock.read_text(), re.MULTILINE):
            found.setdefault(Pin(normal(name), version), []).append(lock.name)
    return found


def of_database(path: Path, wanted: Iterable[Pin]) -> Iterator[Finding]:
    """What a copy of the database knows of them."""
    versions: dict[str, list[Pin]] = {}
    for pin in wanted:
        versions.setdefault(pin.name, []).append(pin)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield from _matches(json.loads(archive.read(name)), versions)


def _matches(record: Mapping[str, Any], versions: Mapping[str, list[Pin]]) -> Iterator[Finding]:
    if record.get("withdrawn"):
        return
    hit: set[Pin] = set()
    for affected in record.get("affected", ()):
        package = affected.get("package", {})
        if package.get("ecosystem") == "PyPI":
            hit |= {pin for pin in versions.get(normal(package.get("name", "")), ()) if _affects(affected, pin.version)}
    for pin in sorted(hit):
        yield _finding(pin, record)


def _finding(pin: Pin, record: Mapping[str, Any]) -> Finding:
    said = record.get("summary") or str(record.get("details", "")).strip().partition("\n")[0]
    return Finding(pin, str(record["id"]), tuple(record.get("aliases", ())), said[:160])


def _affects(affected: Mapping[str, Any], version: str) -> bool:
    if version in affected.get("versions", ()):
        return True
    return any(of["type"] == "ECOSYSTEM" and _within(of["events"], version) for of in affected.get("ranges", ()))


def _within(events: Iterable[Mapping[str, str]], version: str) -> bool:
    try:
        ours, inside = Version(version), False
        # In the order of their versions: some records tell them in another.
        told = sorted((Version(said), kind) for event in events for kind, said in event.items() if kind in EVENTS)
        for at, kind in told:
            if kind == "introduced" and ours >= at:
                inside = True
            if (kind == "fixed" and ours >= at) or (kind == "last_affected" and ours > at):
                inside = False
        return inside
    except InvalidVersion:
        return True  # better one too many to look at than one too few


def of_service(api: str, wanted: Iterable[Pin]) -> Iterator[Finding]:
    """What the service knows of them. Raises OSError where it does not answer."""
    asked = sorted(wanted)
    for start in range(0, len(asked), AT_ONCE):
        part = asked[start : start + AT_ONCE]
        queries = [{"package": {"ecosystem": "PyPI", "name": pin.name}, "version": pin.version} for pin in part]
        while queries:
            answers = _ask(f"{api}/querybatch", {"queries": queries})["results"]
            more = [(pin, query, answer) for pin, query, answer in zip(part, queries, answers) if answer.get("next_page_token")]
            for pin, answer in zip(part, answers):
                records = (_ask(f"{api}/vulns/{known['id']}") for known in answer.get("vulns", ()))
                yield from (_finding(pin, record) for record in records if not record.get("withdrawn"))
            part = [pin for pin, _, _ in more]
            queries = [{**query, "page_token": answer["next_page_token"]} for _, query, answer in more]


def _ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=PATIENCE_S) as response:  # noqa: S310
        return json.loads(response.read())


def accepted(path: Path) -> dict[str, str]:
    """Identifiers that were looked at, with the reason why they may stay."""
    lines = path.read_text().splitlines() if path.exists() else []
    told = (line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#"))
    return {parts[0]: parts[1] if len(parts) > 1 else "" for parts in told}


def main(arguments: list[str]) -> int:
    """Print what was found; the exit code says whether it may stay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("locks", nargs="*", type=Path, default=sorted(LOCKS.glob("*.txt")), help="default: all of docker/requirements/")
    parser.add_argument("--database", type=Path, help="a copy of OSV's PyPI database (all.zip)")
    parser.add_argument("--api", default=API, help=argparse.SUPPRESS)
    parser.add_argument("--accepted", type=Path, default=ACCEPTED, help=argparse.SUPPRESS)
    parser.add_argument("--if-reachable", action="store_true", help="exit with 0 where nobody can be asked")
    chosen = parser.parse_args(arguments)
    where = pins(chosen.locks)
    try:
        found = list(of_database(chosen.database, where) if chosen.database else of_service(chosen.api, where))
    except (OSError, URLError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"unmask: no vulnerability database could be asked about {len(where)} packages: {error}", file=sys.stderr)
        return 0 if chosen.if_reachable else UNREACHABLE
    reasons, open_ = accepted(chosen.accepted), 0
    for one in found:
        reason = next((reasons[name] for name in (one.id, *one.aliases) if name in reasons), None)
        open_ += reason is None
        state = "VULNERABLE" if reason is None else f"accepted ({reason})"
        names = ", ".join((one.id, *one.aliases))
        print(f"{state}: {one.pin.name} {one.pin.version} in {', '.join(where[one.pin])}: {names}: {one.summary}")
    print(f"{len(where)} pinned packages, {len(found)} known vulnerabilities, {open_} of them not accepted.")
    return FOUND if open_ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
