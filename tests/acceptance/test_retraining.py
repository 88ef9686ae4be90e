"""From `unmask retrain` to a version before the gate, on a stack that is really up: the real network, few steps, small crops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from pipeline import classroom, registry
from tests.acceptance.test_dashboard import Visit, browser
from tests.acceptance.test_stack import ROOT, Up
from tests.fixtures.people import few
from tests.fixtures.pictures import FACES
from tests.fixtures.stores import wait_until
from tests.fixtures.trainings import told_events

__all__ = ["browser"]
OPTIONS = ("stages=32:1:.001", "pairs=2", "makers=0", "street=0", "grid=false", "seed=3")
pytestmark = [pytest.mark.tensorflow, pytest.mark.faces, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack with a train worker."""
    if find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    if not (FACES / "faces.csv").exists():
        pytest.skip(f"the photographs are not at {FACES}")
    up = Up(tmp_path_factory.mktemp("live"), UNMASK_WEB_PORT="").ready()
    yield up
    up.broker().close()
    assert up.stopped(signal.SIGINT) == 0, up.said


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few(FACES, tmp_path_factory.mktemp("faces"))


def unmask(live: Up, *words: str, status: int = 0) -> str:
    """What a command of ours prints, run by itself on the stack's data directory."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
    command = [sys.executable, "-m", "workers.cli", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, "UNMASK_DATA_DIR": str(live.data_dir)}, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def options(**more: Any) -> list[str]:
    return [word for option in (*OPTIONS, *(f"{name}={value}" for name, value in more.items())) for word in ("--option", option)]


def test_the_stack_says_who_trains(live: Up) -> None:
    assert f"by {sys.executable}, on cpu" in live.said
    assert "train" in {one["name"] for one in live.order("getAllProcessInfo")}


def test_a_training_asked_for_on_the_command_line_ends_with_a_candidate(live: Up, faces: Path) -> None:
    made = json.loads(unmask(live, "retrain", "--faces", str(faces), "--steps", "4", *options(look=4), "--wait", "--json"))

    log = (live.data_dir / "logs" / "train.log").read_text()
    assert made["status"] == "done", f"{made['reason']}\n{log[-3000:]}"
    assert made["model"]["name"] == "unmask-resnet50"
    assert made["decision"]["outcome"] == "waiting", "without a hold-out a person decides"
    [version] = [one for one in registry.versions(live.db) if one.card.version == made["model"]["version"]]
    assert version.aliases == ("candidate",)
    assert (version.card.input_size, version.card.seed) == (32, 3)
    assert version.card.metrics["warp"].n > 0
    row = classroom.one(live.db, made["id"])
    assert row is not None
    assert (row.runs, row.cards, row.requested_by) == (1, "cpu 0", "cli")
    assert [point["step"] for point in classroom.curve(live.db, row.id) if point["event"] == "look"] == [4]
    [event] = told_events(live.db, row.id)
    assert (event.type, event.payload["data"]["model"]) == ("training.done", made["model"])
    assert made["model"]["version"] in unmask(live, "trainings")
    folder = registry.fetch(live.db, live.store, live.settings, made["model"]["name"], made["model"]["version"])
    assert {path.name for path in folder.iterdir()} >= {"weights.h5", "model.xml", "model.bin", "card.json"}


def test_it_is_followed_and_cancelled_on_the_dashboard(live: Up, faces: Path, browser: Browser) -> None:
    visit = Visit(browser, live.settings.url)
    page = visit.to("/trainings")
    page.get_by_text("Train now").click()
    form = page.locator("form[action='/trainings']")
    form.get_by_label("Data set").fill(str(faces))
    form.get_by_label("More options").fill(" ".join([*OPTIONS, "steps=5000", "look=2"]))
    form.get_by_role("button", name="Train").click()
    expect(page.get_by_role("heading", name=f"Training from {faces.name}")).to_be_visible()
    expect(page.locator("svg.curve")).to_have_count(2, timeout=400_000)
    expect(page.locator(".figures")).to_contain_text("of 5,000")
    visit.shot("training")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".outcome")).to_contain_text("Cancelled by")
    trainer = [line for line in Path(live.data_dir / "trainings").iterdir() if line.is_dir()]
    assert trainer, "its folder is kept, to go on from"

    page.goto(f"{live.settings.url}/trainings")
    page.get_by_text("Add a schedule").click()
    form = page.locator("form[action='/schedules']")
    form.get_by_label("Name").fill("weekly")
    form.get_by_label("Minute, hour").fill("0 3 * * 0")
    form.get_by_label("Time zone").fill("Europe/Berlin")
    form.get_by_role("button", name="Add").click()
    expect(page.locator("#schedules")).to_contain_text("At 03:00 on Sunday")
    visit.shot("trainings")
    visit.context.close()
    assert visit.complaints == []
    assert "At 03:00 on Sunday" in unmask(live, "schedule", "list")
    wait_until(lambda: not any(line for line in running(live)), "the trainer's end", seconds=15)


def test_a_schedule_that_is_due_trains_by_itself(live: Up, faces: Path, long: bool) -> None:
    if not long:
        pytest.skip("the long form waits for the next full minute; a moved clock shows the same in test_schedules")
    said = unmask(live, "schedule", "add", "often", "--cron", "* * * * *", "--faces", str(faces), *options(steps=1))
    assert "Every minute" in said
    wait_until(lambda: any(row.schedule == "often" for row in classroom.page(live.db, limit=20)[0]), "the next minute", seconds=75)
    unmask(live, "schedule", "edit", "often", "--off")
    row = next(row for row in classroom.page(live.db, limit=20)[0] if row.schedule == "often")
    assert row.slot is not None
    assert row.slot % 60 == 0

    unmask(live, "trainings", "cancel", row.id)
    unmask(live, "trainings", "cancel", row.id, status=2)
    unmask(live, "schedule", "remove", "often")


def running(live: Up) -> list[int]:
    """Trainers among the processes of the stack."""
    found = []
    for pid in live.tree():
        try:
            if b"pipeline.training.fit" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found
