"""Whether this machine can train on Gaudi cards, found out without TensorFlow: a bridge without a driver fails misleadingly.

    python -m pipeline.gaudi --modules 0,1

says as one JSON line which cards there are, or in one sentence on standard error what is missing, with exit code 2. Everything is
looked for under a root folder, `/` unless tests or a container say otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.groups import CardError, Group, group

STACK = "1.14"
"""SynapseAI: the last that has TensorFlow."""
TENSORFLOW = "2.15.0"
BRIDGE = "1.14.0.493"
PYTHON = "3.10"
ANSWER_S = 30.0
_NODES = (("dev/accel", "accel"), ("dev", "hl"))
"""Where the driver puts its nodes, newer and older: folder and name before the number."""


@dataclass(frozen=True)
class Card:
    """One Gaudi card. `index` is the node's number and changes between boots, `module` is the slot and does not."""

    index: int
    module: int
    node: str
    kind: str
    driver: str


def cards(root: Path = Path("/")) -> tuple[Card, ...]:
    """Every card of the machine, by module id. Raises CardError, one sentence: what is missing, and what to do about it."""
    nodes = _nodes(root)
    if not nodes:
        loaded = any((root / "sys/class/accel").glob("accel[0-9]*"))
        remedy = "start the container with the habana runtime" if loaded else "install the habanalabs driver"
        raise CardError(f"There is no Gaudi card here, neither /dev/accel/accel0 nor /dev/hl0: {remedy}.")
    found = []
    modules = _modules(root)
    for index, node in sorted(nodes.items()):
        shown = f"/{node.relative_to(root)}"
        if not os.access(node, os.R_OK | os.W_OK):
            raise CardError(f"{shown} cannot be opened by this user: give it to the group that the worker runs in.")
        kind, driver = (_fact(root, index, name, shown) for name in ("device_type", "driver_ver"))
        if not kind.upper().startswith("GAUDI"):
            raise CardError(f"{shown} is {kind}, no Gaudi: take it from this worker.")
        if driver.split(".")[:2] != STACK.split("."):
            raise CardError(f"The driver of {shown} is {driver}, and TensorFlow's last bridge needs {STACK}: install that driver.")
        if index not in modules:
            raise CardError(f"hl-smi does not know {shown}: restart the driver.")
        found.append(Card(index, modules[index], shown, kind, driver))
    if len({card.module for card in found}) != len(found):
        raise CardError("hl-smi gives two cards the same module id: restart the driver.")
    return tuple(sorted(found, key=lambda card: card.module))


def preflight(text: str = "", root: Path = Path("/")) -> tuple[Group, tuple[Card, ...]]:
    """The group that a setting names (empty: all cards of the machine) and its cards. Raises CardError."""
    there = cards(root)
    chosen = group("hpu", text or ",".join(str(card.module) for card in there))
    present = {card.module for card in there}
    if missing := [module for module in chosen.modules if module not in present]:
        raise CardError(
            f"Module {', '.join(map(str, missing))} is not in this machine, which has {', '.join(map(str, sorted(present)))}: "
            "correct UNMASK_TRAIN_CARDS, or give the container those cards."
        )
    return chosen, tuple(card for card in there if card.module in chosen.modules)


def software(world: int = 1, launcher: str = "horovod", *, installed: Callable[[str], str] = version) -> dict[str, str]:
    """Versions of what training on `world` cards needs in this interpreter. Raises CardError where one is missing or another."""
    wanted = {"habana-tensorflow": BRIDGE}
    if world > 1 and launcher == "horovod":
        wanted["habana-horovod"] = BRIDGE
        if shutil.which("mpirun") is None:
            raise CardError("mpirun is not on PATH: install the vendor's Open MPI, or set UNMASK_TRAIN_LAUNCHER=strategy.")
    found = {"tensorflow": tensorflow(installed)}
    for name, right in wanted.items():
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            own = ".".join(map(str, sys.version_info[:2]))
            raise CardError(
                f"{name} is not installed in this Python {own}, and exists for {PYTHON} only: take the image train-hpu."
            ) from None
        if found[name] != right:
            raise CardError(f"{name} is {found[name]}, and only {right} goes with TensorFlow {TENSORFLOW}.")
    return found


def tensorflow(installed: Callable[[str], str] = version) -> str:
    """The version of TensorFlow, found without importing it. Raises CardError unless it is the one that all devices share."""
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            found = installed(name)
        except PackageNotFoundError:
            continue
        if found != TENSORFLOW:
            raise CardError(f"{name} is {found}, and training needs exactly {TENSORFLOW}: the Gaudi bridge refuses every other.")
        return found
    raise CardError(f"TensorFlow is not installed in this interpreter: install tensorflow-cpu=={TENSORFLOW}, or set UNMASK_TRAIN_PYTHON.")


def _nodes(root: Path) -> dict[int, Path]:
    """Nodes by index, of the first naming that there is."""
    for folder, name in _NODES:
        found = {
            int(path.name[len(name) :]): path
            for path in (root / folder).glob(f"{name}[0-9]*")
            if path.name[len(name) :].isdecimal() and not path.is_dir()
        }
        if found:
            return found
    return {}


def _fact(root: Path, index: int, name: str, node: str) -> str:
    for folder, prefix in (("sys/class/accel", "accel"), ("sys/class/habanalabs", "hl")):
        path = root / folder / f"{prefix}{index}" / ("device" if prefix == "accel" else "") / name
        if path.exists():
            return path.read_text().strip()
    raise CardError(f"The driver says nothing of {node}, no {name} in /sys/class/accel/accel{index}: load the habanalabs driver.")


def _modules(root: Path) -> dict[int, int]:
    """Module id by index, as hl-smi tells it."""
    own = root / "usr/bin/hl-smi"
    program = str(own) if own.exists() else shutil.which("hl-smi") if root == Path("/") else None
    if program is None:
        raise CardError("hl-smi is not here: it tells which card is in which slot, and comes with the driver's tools.")
    try:
        done = subprocess.run(
            [program, "-Q", "index,module_id", "-f", "csv"], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CardError(f"hl-smi did not answer within {ANSWER_S:.0f} s: restart the driver.", permanent=False) from None
    except OSError as error:
        raise CardError(f"hl-smi cannot be run: {error.strerror}.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CardError(f"hl-smi failed: {said[-1].rstrip('.')}.", permanent=False)
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
    found = {int(row[0]): int(row[1]) for row in rows if len(row) == 2 and row[0].isdecimal() and row[1].isdecimal()}
    if not found:
        raise CardError("hl-smi names no card: its table of index and module id is empty.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Say whether this machine and this interpreter can train on Gaudi cards.")
    parser.add_argument("--modules", default="", help="module ids, such as 0,1; all of the machine's unless given")
    parser.add_argument("--device-root", type=Path, default=Path("/"))
    parser.add_argument("--launcher", choices=("horovod", "strategy"), default="horovod")
    chosen = parser.parse_args(arguments)
    try:
        wanted, there = preflight(chosen.modules, chosen.device_root)
        versions = software(wanted.world, chosen.launcher)
    except CardError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps({"cards": [asdict(card) for card in there], "versions": versions}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
