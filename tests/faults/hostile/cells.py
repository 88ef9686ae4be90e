"""Files read as the extract stage reads them, by its own function, in children forked from this process as a pool forks them."""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from pipeline import images
from pipeline.images import ImageRefused
from pipeline.jobs import Queue, Stage, Upload
from pipeline.ledger import Claim
from pipeline.settings import Settings
from workers import stages

ATTEMPTS = 3
CLEAN = [b"IHDR", b"IDAT", b"IEND"]


@dataclass(frozen=True)
class Fate:
    """What became of a file. `how`: `read`, `refused`, `memory`, `unclear` (an error without a sentence), `died`.

    `megabytes`: the most memory the process took for it. `clean`: the picture given back has three chunks and no more.
    """

    name: str
    how: str
    sentence: str
    seconds: float
    megabytes: float
    attempts: int = 1
    clean: bool = True


class Cell:
    """One child; another takes its place when a file has ended it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, name: str, data: bytes) -> Fate:
        """As the ledger has it: at most three attempts."""
        began = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._pipe.send_bytes(data)
                how, sentence, seconds, megabytes, clean = self._pipe.recv()
                return Fate(name, how, sentence, seconds, megabytes, attempt, clean)
            except (EOFError, OSError):
                self._process.join(10)
                code = self._process.exitcode
                self._start()
        return Fate(name, "died", f"exit code {code}", (time.monotonic() - began) / ATTEMPTS, 0.0, ATTEMPTS)

    def close(self) -> None:
        """End the child."""
        self._pipe.close()
        self._process.join(10)


def read_all(files: Iterable[tuple[str, bytes]], settings: Settings, cells: int) -> Iterator[Fate]:
    """The fate of each file, in any order."""
    free: SimpleQueue[Cell] = SimpleQueue()
    made = [Cell(settings) for _ in range(cells)]
    for cell in made:
        free.put(cell)

    def one(file: tuple[str, bytes]) -> Fate:
        cell = free.get()
        try:
            return cell.read(*file)
        finally:
            free.put(cell)

    with ThreadPoolExecutor(cells) as pool:
        waiting = []
        for file in files:
            waiting.append(pool.submit(one, file))
            if len(waiting) >= 64:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
    for cell in made:
        cell.close()


def _serve(pipe: Connection, settings: Settings) -> None:
    upload = Upload("inbox", "hostile")
    claim = Claim("job", Stage.EXTRACT, 1, 1, upload, Queue.BULK, "cell", 0.0)
    while True:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        before = _most(reset=True)
        began, clean = time.process_time(), True
        try:
            picture = stages._decoded(settings, claim, data)
            how, sentence = "read", f"{picture.format} {picture.width} x {picture.height}"
        except ImageRefused as error:
            how, sentence = "refused", str(error)
        except MemoryError:
            how, sentence = "memory", "There was not enough memory."
        except Exception as error:
            how, sentence = "unclear", f"{type(error).__name__}: {error}"
        seconds, megabytes = time.process_time() - began, max(0.0, _most(reset=False) - before)
        if how == "read" and picture.pixels.size < 10**6:
            clean = _chunks(images.encode_png(picture.pixels, 1)) == CLEAN
        picture = None  # type: ignore[assignment]
        pipe.send((how, sentence, seconds, megabytes, clean))


def _most(*, reset: bool) -> float:
    """Megabytes: resident now after a `reset` of the mark, else the most since then."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:" if reset else "VmHWM:")[2].split()[0]) / 1024


def _chunks(png: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append(png[at + 4 : at + 8])
        at += 12 + length
    return found
