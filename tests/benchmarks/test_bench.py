"""The bench itself, in its short form: it runs, and its figures are of the kinds they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import mix, other_queue
from tests.fixtures.databases import missing_service, postgres_binaries

ROOT = Path(__file__).parents[2]


def test_the_mix_is_as_it_is_said_to_be() -> None:
    samples = mix.mix(None, count=8, largest=1)

    assert [sample.kind for sample in samples] == ["one", "one", "group", "none"] * 2
    assert [sample.data for sample in samples] == [sample.data for sample in mix.mix(None, count=8, largest=1)]


@pytest.mark.timeout(600)
def test_it_measures_everything_in_its_short_form(tmp_path: Path) -> None:
    if postgres_binaries() is None:
        missing_service("PostgreSQL")
    out = tmp_path / "bench.json"

    command = [sys.executable, "-m", "tests.benchmarks.bench", "--short", "--no-paper", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert figures["pipeline_images_per_s"] > 0
    assert figures["bare_cpu_ms_per_image"] < figures["cpu_ms_per_image"]
    assert set(figures["latency_ms"]) == {"p50", "p95", "n"}
    assert 0 < figures["scale"]["message_bytes"] < 10_000
    assert figures["interactive"]["status"] == 200
    assert figures["scale"]["rows"] >= 2000
    for chain in other_queue.CHAINS:
        assert 0 < figures["queues"][chain]["cpu_ms"] < 1000
        assert figures["queues"][chain]["jobs_per_s"] > 0
        assert set(figures["queues"][chain]["cpu_ms_by_program"]) == {"sender", "worker", "valkey"}
    assert figures["queues"]["ledger"]["ours_ms"] > 0
    assert figures["queues"]["ledger"]["database_ms"] > 0
    assert "dramatiq" in done.stdout
    assert out.with_suffix(".png").stat().st_size > 1000
