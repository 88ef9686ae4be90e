"""Faults are off unless a test orders them, and a test gets what it has ordered, once or always."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import faults
from pipeline.faults import FaultError, Order
from pipeline.settings import SettingsError, from_environment
from tests.faults.report import table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def orders(tmp_path: Path) -> Iterator[Path]:
    faults.use(tmp_path)
    yield tmp_path
    faults.use(None)


def test_nothing_happens_unless_a_folder_is_chosen(tmp_path: Path) -> None:
    faults.give(tmp_path, Order("decode", "raise"))
    faults.point("decode", "a.jpg")


def test_the_settings_refuse_faults_that_are_not_allowed() -> None:
    with pytest.raises(SettingsError, match="UNMASK_FAULTS_ALLOWED"):
        from_environment({"UNMASK_FAULTS": "/orders"})
    assert from_environment({"UNMASK_FAULTS": "/orders", "UNMASK_FAULTS_ALLOWED": "true"}).faults == Path("/orders")


@pytest.mark.parametrize(("allowed", "status"), [("true", -signal.SIGKILL), ("false", 0), ("", 0)])
def test_the_environment_alone_does_not_do(tmp_path: Path, allowed: str, status: int) -> None:
    faults.give(tmp_path, Order("decode", "kill"))
    environment = {**os.environ, "UNMASK_FAULTS": str(tmp_path), "UNMASK_FAULTS_ALLOWED": allowed}
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline import faults; faults.point('decode')"], cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == status


def test_an_order_is_taken_once_and_says_by_whom(orders: Path) -> None:
    name = faults.give(orders, Order("decode", "raise"))
    assert faults.taken(orders, name) is None
    with pytest.raises(FaultError):
        faults.point("decode", "a.jpg")
    faults.point("decode", "b.jpg")
    taken = faults.taken(orders, name)
    assert taken is not None
    assert (taken["pid"], taken["subject"]) == (os.getpid(), "a.jpg")
    assert not faults.withdraw(orders, name)


def test_poison_is_for_its_subject_and_for_every_time(orders: Path) -> None:
    faults.give(orders, Order("put", "raise", "bad", always=True))
    for _ in range(3):
        with pytest.raises(FaultError):
            faults.point("put", "in/bad.jpg")
        faults.point("put", "in/good.jpg")
        faults.point("put.done", "in/bad.jpg")


def test_memory_ends_in_an_error_at_its_amount(orders: Path) -> None:
    faults.give(orders, Order("decode", "memory", amount=1.0))
    faults.point("decode", "a.jpg")


def test_only_known_points_and_actions_are_ordered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no point"):
        faults.give(tmp_path, Order("nowhere", "kill"))
    with pytest.raises(ValueError, match="no action"):
        faults.give(tmp_path, Order("decode", "explode"))


def test_every_point_stands_somewhere_in_the_product() -> None:
    sources = "".join(path.read_text() for floor in ("pipeline", "workers", "webhooks") for path in (ROOT / floor).rglob("*.py"))
    staged = {f"{stage}.{when}" for stage in ("extract", "classify", "render") for when in ("claimed", "committed")}
    assert 'faults.point(f"{stage.value}.claimed"' in sources
    assert 'faults.point(f"{stage.value}.committed"' in sources
    for name in faults.POINTS.keys() - staged:
        assert f'faults.point("{name}"' in sources, name


def test_the_report_is_told_as_a_table_with_the_usual_chain_beside_it() -> None:
    report = [
        {
            "test": "poison",
            "n": 120,
            "lost": 0,
            "duplicates": 0,
            "attempts_max": 3,
            "passed": True,
            "naive": {"n": 60, "lost": 6, "duplicates": 0},
        },
        {"test": "broker-kill", "n": 30, "uploads": 1200, "lost": 1, "duplicates": 0, "wrong": ["a", "b"], "passed": False},
    ]
    assert table(report).splitlines()[2:] == [
        "| poison | 120 | 0, 0 | 3 attempts at most | 6, 0 of 60 |",
        "| broker-kill **over its target** | 30 (1,200 uploads) | 1, 0 | 2 wrong |  |",
    ]
