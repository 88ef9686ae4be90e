"""How much slower judging is while a training is queued, and while one runs beside it on the same cores.

    python -m tests.benchmarks.beside_training [--rounds 3] [--images 40] [--faces ../shared/faces]

A stack of its own, its real model, the photographs put into the inbox; nothing trains, a training is queued whose card is held, a
training runs; in turns. Prints one JSON object: images a second of each round and state, medians, and the ratios to the first state.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import cards, classroom, inquiry, trainings
from pipeline.database import Database
from pipeline.jobs import Status
from pipeline.settings import Settings, to_environment
from pipeline.storage import Storage
from pipeline.tables.training import TrainingRow
from tests.fixtures.people import few
from workers import embedded

STATES = ("nothing trains", "a training is queued", "a training runs")
PEOPLE = {"train": 16, "val": 2}
PARAMS = {"steps": 100_000, "stages": "96:1:.001", "pairs": 8, "look": 10_000, "makers": 1}


def wait(true: Callable[[], bool], what: str, seconds: float = 600.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not come within {seconds:g} s.")
        time.sleep(0.02)


def judged(db: Database, store: Storage, settings: Settings, pictures: list[bytes], name: str) -> float:
    """Images a second from the first put to the last result."""
    began = time.monotonic()
    for number, data in enumerate(pictures):
        store.put(settings.inbox_bucket, f"{name}/{number}.jpg", data, "image/jpeg")

    def over() -> bool:
        rows, _ = inquiry.page(db, prefix=f"{name}/", limit=1000)
        return sum(row.finished_at is not None for row in rows) == len(pictures)

    wait(over, "the last result")
    return len(pictures) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--faces", type=Path, default=Path("../shared/faces"))
    chosen = parser.parse_args()
    photographs = sorted(chosen.faces.rglob("*.jpg"))[: chosen.images]
    pictures = [path.read_bytes() for path in photographs]
    found: dict[str, list[float]] = {state: [] for state in STATES}
    with tempfile.TemporaryDirectory(prefix="unmask-beside-") as folder, embedded.stack(Settings(data_dir=Path(folder))) as settings:
        os.environ |= to_environment(settings)
        from workers.app import wake_training  # it learns where the broker is as it is loaded

        db, store = Database(settings.database), Storage(settings)
        faces = few(chosen.faces, Path(folder, "faces"), PEOPLE)  # so that a training is soon at its steps, which cost the same
        judged(db, store, settings, pictures[:8], "warm")
        for number in range(chosen.rounds):
            for state in STATES:
                name = f"{number}-{STATES.index(state)}"
                if state == STATES[0]:
                    found[state].append(judged(db, store, settings, pictures, name))
                    continue
                lease = None
                if state == STATES[1]:
                    group = cards.group("cpu", "0")
                    lease = cards.acquire(db, group, holder="bench", training="none", lease_s=3600, locks=settings.cards_dir)
                training_id = trainings.ask(db, actor="bench", device="cpu", dataset=str(faces), params=PARAMS)
                assert training_id is not None
                wake_training(training_id)
                if lease is None:
                    wait(lambda id=training_id: _status(db, id).progress.get("step", 0) > 1, "the second step", 1200)  # type: ignore[misc]
                found[state].append(judged(db, store, settings, pictures, name))
                assert (_status(db, training_id).started_at is None) == (lease is not None), "the training was where it should not be"
                trainings.cancel(db, training_id, actor="bench")
                if lease is not None:
                    cards.release(db, lease)
                time.sleep(5)  # the trainer is ended within two seconds
        db.dispose()
    middle = {state: statistics.median(values) for state, values in found.items()}
    ratios = {state: round(value / middle[STATES[0]], 3) for state, value in middle.items()}
    rounded = {state: [round(value, 2) for value in values] for state, values in found.items()}
    print(json.dumps({"n": len(pictures), "images_per_s": rounded, "ratio": ratios}, indent=1))


def _status(db: Database, training_id: str) -> TrainingRow:
    row = classroom.one(db, training_id)
    if row is None or row.status in (Status.FAILED.value, Status.CANCELLED.value):
        raise SystemExit(f"The training ended: {row.reason if row else 'gone'}")
    return row


if __name__ == "__main__":
    main()
