"""The bench itself, in its short form: it runs, and its figures are of the kinds they should be."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import registry
from tests.benchmarks import mix, other_queue
from tests.benchmarks.bench import Differs, compared
from tests.benchmarks.paper import Paper
from tests.benchmarks.product import Result
from tests.fixtures.databases import missing_service, postgres_binaries

ROOT = Path(__file__).parents[2]


def test_the_mix_is_as_it_is_said_to_be() -> None:
    samples = mix.mix(None, count=8, largest=1)

    assert [sample.kind for sample in samples] == ["one", "one", "group", "none"] * 2
    assert [sample.data for sample in samples] == [sample.data for sample in mix.mix(None, count=8, largest=1)]


BARE = [{"path": "/a/one.jpg", "scores": [0.2, 0.9], "drawn": 1}]


def test_the_largest_difference_of_a_score_is_told() -> None:
    told = compared(BARE, [Result("one.jpg", [0.2, 0.9004], 1)], bound=0.001, threshold=0.5)

    assert told == {"n": 2, "largest_difference": pytest.approx(0.0004), "bound": 0.001}


@pytest.mark.parametrize(
    ("scores", "drawn"), [([0.2, 0.902], 1), ([0.2], 1), ([0.2, 0.9], 2)], ids=["a score", "the judged faces", "the drawn faces"]
)
def test_a_product_that_says_something_else_is_no_comparison(scores: list[float], drawn: int) -> None:
    with pytest.raises(Differs, match=r"one\.jpg"):
        compared(BARE, [Result("one.jpg", scores, drawn)], bound=0.001, threshold=0.5)


def test_the_papers_server_answers_and_says_what_it_drew(tmp_path: Path) -> None:
    for name in ("tensorflow", "mediapipe"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing.")
    picture = tmp_path / "portrait.jpg"
    picture.write_bytes(mix.portrait(None))
    paper = Paper(registry.shipped()[-1] / "weights.h5", 0.0)
    try:
        answers = paper.run([picture])
    finally:
        paper.close()

    assert answers.n == 1
    assert answers.faces >= answers.meshes >= 1
    assert answers.cpu_s > 0


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
    assert set(figures["latency_ms"]) == {"p50", "p95", "min", "max", "n"}
    assert 0 < figures["scale"]["message_bytes"] < 1_500  # 1,000 is the aim; of a hundred messages the list's own share is larger
    assert figures["machine"]["servers"]["fsync"] == "on"
    assert figures["scores"]["n"] > 0
    assert figures["scores"]["largest_difference"] <= figures["scores"]["bound"]
    assert figures["rss_mb"] == max(figures["memory_mb"][name] for name in ("extract", "classify", "render", "web"))
    assert len(figures["interactive"]["each"]) == 3
    for time in figures["interactive"]["each"]:
        assert time["answer_s"] < time["backlog_s"]
        assert time["left"] > 0
    assert figures["scale"]["rows"] >= 2000
    for chain in other_queue.CHAINS:
        assert 0 < figures["queues"][chain]["cpu_ms"] < 1000
        assert figures["queues"][chain]["jobs_per_s"] > 0
        assert set(figures["queues"][chain]["cpu_ms_by_program"]) == {"sender", "worker", "valkey"}
    assert figures["queues"]["ledger"]["ours_ms"] > 0
    assert figures["queues"]["ledger"]["database_ms"] > 0
    assert "dramatiq" in done.stdout
    assert out.with_suffix(".png").stat().st_size > 1000
