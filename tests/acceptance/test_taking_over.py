"""From `unmask retrain` to who judges next: a worse network is refused, a better one takes over, and serving follows it.

All is real: the network at its full size, photographs, the stack, the gate and its 21 held-out people. Minutes of both cores, so only
with TEST_LONG=1; the parts have short forms in `test_retraining`, `test_gate` and `test_following`.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline import gate, registry
from pipeline.database import AliasRow
from tests.acceptance.test_retraining import unmask
from tests.acceptance.test_stack import Up, photographs, wait_for
from tests.fixtures.candidates import variant
from tests.fixtures.people import few
from tests.fixtures.pictures import FACES

PEOPLE = {"train": 8, "val": 8, "test": 21}
SPOILT = "2026.10.1"
QUIET = ("pairs=2", "makers=0", "street=0", "grid=false", "seed=3")
FOLLOWS_S = 30.0
pytestmark = [pytest.mark.tensorflow, pytest.mark.faces, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, long: bool) -> Iterator[Up]:
    """A stack with a train worker, the model that comes with the product as its champion, and people in its hold-out."""
    if not long:
        pytest.skip("the full network is trained and measured for minutes: TEST_LONG=1")
    if find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    if not (FACES / "faces.csv").exists():
        pytest.skip(f"the photographs are not at {FACES}")
    up = Up(tmp_path_factory.mktemp("live"), UNMASK_WEB_PORT="", UNMASK_LEASE_S="10").ready()
    unmask(up, "models", "install")
    unmask(up, "datasets", "add", str(few(FACES, tmp_path_factory.mktemp("faces"), PEOPLE)))
    yield up
    assert up.stopped(signal.SIGINT) == 0, up.said


def retrained(live: Up, *options: str) -> dict[str, Any]:
    """What `unmask retrain` says when it is over; prints what the gate said and how long it took."""
    began = time.monotonic()
    words = [word for option in (*QUIET, *options) for word in ("--option", option)]
    made: dict[str, Any] = json.loads(unmask(live, "retrain", *words, "--wait", "--json"))
    assert made["status"] == "done", f"{made['reason']}\n{(live.data_dir / 'logs' / 'train.log').read_text()[-3000:]}"
    said = "\n  ".join(check["sentence"] for check in made["decision"]["checks"])
    print(f"\n{made['model']['version']}: {made['decision']['outcome']} after {time.monotonic() - began:.0f} s\n  {said}", flush=True)
    return made


def judge_of(live: Up, key: str) -> str | None:
    """The version that a picture's result names."""
    live.put(key, photographs(1)[0])
    job = live.job(key)
    result = json.loads(live.store.fetch("results", f"{job.key}/{job.id}/result.json", max_bytes=100_000))
    assert (job.status, result["model"]["version"]) == ("done", job.model_version)
    return job.model_version


def test_a_worse_network_is_refused_and_a_better_one_takes_over(live: Up, tmp_path: Path) -> None:
    good = registry.champion(live.db)

    worse = retrained(live, "stages=224:1:.001", "steps=2", "look=2")

    assert worse["decision"]["outcome"] == gate.Outcome.REFUSED.value
    assert registry.champion(live.db) == good
    assert judge_of(live, "still.jpg") == good[1]

    spoilt = registry.publish(live.db, live.store, live.settings, variant(registry.shipped()[-1], tmp_path / "spoilt", SPOILT, noise=0.6))
    unmask(live, "models", "promote", spoilt.version)
    wait_for(lambda: judge_of(live, f"spoilt {time.time()}.jpg") == SPOILT, "a result of the spoilt model", live)

    over = threading.Event()
    watch = threading.Thread(target=drip, args=(live, over))
    watch.start()
    try:
        better = retrained(live, f"start={good[1]}", "stages=224:1:.000001", "steps=2", "look=2")
        version = better["model"]["version"]
        assert better["decision"]["outcome"] == gate.Outcome.PROMOTED.value, better["decision"]
        assert registry.champion(live.db) == (better["model"]["name"], version)
        wait_for(lambda: any(job.model_version == version for job in live.jobs()), "a result of the new model", live)
    finally:
        over.set()
        watch.join()

    wait_for(lambda: all(job.finished_at for job in live.jobs()), "the last results", live)
    jobs = sorted((job for job in live.jobs() if job.key.startswith("drip")), key=lambda job: job.finished_at or 0.0)
    assert {job.status for job in jobs} == {"done"}, "none was dropped"
    assert {job.model_version for job in jobs} == {SPOILT, version}
    with live.db.read() as session:
        promoted = session.get_one(AliasRow, registry.CHAMPION).changed_at
    took = min(job.finished_at or 0.0 for job in jobs if job.model_version == version) - promoted
    print(f"first result of the new model {took:.2f} s after its promotion; {len(jobs)} pictures meanwhile, none dropped", flush=True)
    assert 0 < took < FOLLOWS_S
    assert judge_of(live, "after.jpg") == version


def drip(live: Up, over: threading.Event) -> None:
    """Drop a picture a second into the inbox."""
    photograph = photographs(1)[0]
    number = 0
    while not over.wait(1.0):
        live.put(f"drip {number}.jpg", photograph)
        number += 1
