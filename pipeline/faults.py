"""Named places where a test may let the product fail: `point("decode", key)` does nothing unless a test has ordered something.

Off in production: nothing is looked at unless UNMASK_FAULTS names a folder and UNMASK_FAULTS_ALLOWED is true, and the
settings refuse the first without the second. Orders are files in that folder, so a test gives them while the processes
run; whoever passes the point first takes one, and says in its `taken` file who it was and when. An order may also stay
for every passage, or for those of a subject (a key, mostly) that contains a word: so a poisonous upload is made.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "UNMASK_FAULTS"
YES = ("1", "true", "yes", "on")

POINTS = {
    "accepted": "an upload has its job, which nobody has been told of",
    "extract.claimed": "the stage is ours, its attempt counted",
    "queue.committed": "messages of a queue have their jobs, and are not deleted yet",
    "fetch": "before the source is asked for",
    "fetched": "the source is here, and not kept yet",
    "decode": "before the first byte is parsed",
    "decoded": "the pixels are there",
    "detected": "the faces are cut out, and not written down",
    "extract.committed": "the stage is written down, its message not acknowledged",
    "classify.claimed": "the stage is ours, its attempt counted",
    "classified": "the faces are judged, and it is not written down",
    "classify.committed": "the stage is written down, its message not acknowledged",
    "render.claimed": "the stage is ours, its attempt counted",
    "rendered": "the picture is drawn, and not encoded",
    "put": "before an object is written to the results bucket",
    "put.done": "after an object was written to the results bucket",
    "render.committed": "the job is done, its message not acknowledged",
    "commit": "before a transaction is committed",
    "committed": "after a transaction was committed",
    "deliver": "a webhook is claimed, and not sent",
    "delivered": "a webhook is answered, and it is not written down",
}
"""Every point, and where it is. Those of a stage begin with its name."""

ACTIONS = ("kill", "kill_worker", "segfault", "memory", "hang", "sleep", "raise")
"""What may be ordered: the end of this process, or of the whole worker it belongs to; a crash in native code; memory without
end; a lock that is never given back, in native code; a pause; an OSError."""

_HOME = os.getpid()
"""Imported before a worker forks, this is the worker's own process."""
MEMORY_STEP = 64 << 20


class FaultError(OSError):
    """The error that a test has ordered."""


@dataclass(frozen=True)
class Order:
    """One order. `action` of ACTIONS, once at the point, or every time; only where the subject contains `match`.

    `amount`: seconds of a sleep, bytes of memory at most.
    """

    point: str
    action: str
    match: str = ""
    always: bool = False
    amount: float = 0.0


def _chosen() -> Path | None:
    allowed = os.environ.get(f"{VARIABLE}_ALLOWED", "").lower() in YES
    folder = os.environ.get(VARIABLE, "")
    return Path(folder) if folder and allowed else None


_folder = _chosen()


def point(name: str, subject: str = "") -> None:
    """Pass a point of `POINTS`, with the job's key or id as far as it is known; do what was ordered for it."""
    if _folder is not None:
        _pass(_folder, name, subject)


def use(folder: Path | None) -> None:
    """Take orders from this folder, in this process; None: from nowhere."""
    global _folder
    _folder = folder


def give(folder: Path, order: Order) -> str:
    """Give an order; returns its name, for `taken`. Raises ValueError for a point or action that is none."""
    if order.point not in POINTS or order.action not in ACTIONS:
        raise ValueError(f"There is no point {order.point!r}, or no action {order.action!r}.")
    name = f"{order.point}@{uuid.uuid4().hex}"
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"{name}.half"
    half.write_text(json.dumps(asdict(order)))
    half.rename(folder / f"{name}.order")
    return name


def taken(folder: Path, name: str) -> dict[str, object] | None:
    """Who took the order of that name first: `pid`, `worker` (the process that forked it, or itself), `at` in seconds since
    the epoch, `subject`. None: nobody yet."""
    try:
        return dict(json.loads((folder / f"{name}.taken").read_text()))
    except (FileNotFoundError, ValueError):
        return None


def withdraw(folder: Path, name: str) -> bool:
    """Take an order back; False: it has been taken."""
    try:
        (folder / f"{name}.order").unlink()
    except FileNotFoundError:
        return False
    return True


def _pass(folder: Path, name: str, subject: str) -> None:
    for path in sorted(folder.glob(f"{name}@*.order")):
        try:
            order = Order(**json.loads(path.read_text()))
        except FileNotFoundError:  # somebody else took it
            continue
        if order.match not in subject:
            continue
        if not order.always:
            try:
                path.rename(path.with_suffix(".gone"))
            except FileNotFoundError:
                continue
        _note(path.with_suffix(".taken"), subject)
        _obey(order, name)


def _note(path: Path, subject: str) -> None:
    with suppress(FileExistsError), path.open("x") as note:
        json.dump({"pid": os.getpid(), "worker": _HOME, "at": time.time(), "subject": subject}, note)


def _obey(order: Order, name: str) -> None:
    if order.action == "kill_worker":
        os.kill(_HOME, signal.SIGKILL)
    if order.action in ("kill", "kill_worker"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif order.action == "segfault":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif order.action == "memory":
        hoard: list[bytearray] = []
        while len(hoard) * MEMORY_STEP < (order.amount or 1 << 36):
            hoard.append(bytearray(b"\1") * MEMORY_STEP)
    elif order.action == "hang":
        _deadlock()
    elif order.action == "sleep":
        time.sleep(order.amount)
    else:
        raise FaultError(f"This was ordered at {name}.")


def _deadlock() -> None:
    """Never come back, without a signal handler of Python's being run in this thread, as in a library that hangs."""
    library = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
