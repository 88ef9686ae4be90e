"""What speeds up the storage: a client that is kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.benchmarks.means.measuring import Row, measure

GETS = 20
OBJECT = 1_000_000
"""Bytes of the object that is fetched."""


def pool_rows(rounds: int) -> list[Row]:
    """One pooled client for every get, against a client made for each. The server's time is not counted."""
    from workers import embedded

    means = "a pooled client instead of a fresh one for each get of 1 MB"
    try:
        with tempfile.TemporaryDirectory() as folder, embedded.stack(Settings(data_dir=Path(folder)), lambda line: None) as live:
            pooled, bucket = Storage(live), live.results_bucket
            pooled.put(bucket, "means", os.urandom(OBJECT), "image/png")

            def get(client: Callable[[], Storage]) -> Callable[[], list[int]]:
                return lambda: [len(client().fetch(bucket, "means", max_bytes=OBJECT)) for _ in range(GETS)]

            ways = measure(rounds, GETS, {"fresh": get(lambda: Storage(live)), "pooled": get(lambda: pooled)})
    except embedded.StackError as error:
        return [Row(means, notes=f"no S3 server here: {error}")]
    return [Row(means, ways["fresh"].ms, ways["pooled"].ms, f"{GETS} gets", "our side alone, SeaweedFS on the same machine")]
