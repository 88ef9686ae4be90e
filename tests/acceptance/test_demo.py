"""`unmask demo` and the commands against the stack that it leaves running, as a user would type them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.models import LIMITS, write_model
from tests.fixtures.stores import wait_until
from tests.fixtures.web import Receiver

PROGRAM = """
import sys
from pathlib import Path
from pipeline import registry
registry.STARTER = Path(sys.argv.pop(1))
from workers.cli import main
main()
"""
"""`unmask`, with a model that tests can steer by colour in the place of the one that comes with the product."""

UP = "The dashboard is at "
LONG_S = 240.0


@dataclass
class Installation:
    """A data directory, and `unmask` run on it."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, str(self.folder / "starter"), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        return {
            **kept,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "UNMASK_DATA_DIR": str(self.folder / "data"),
            "UNMASK_WEBHOOK_ALLOW_HTTP": "true",
            "UNMASK_WEBHOOK_ALLOW_PRIVATE": "true",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def tinted(portrait: np.ndarray) -> np.ndarray:
    """The astronaut with greenish light on her face: what the tests' model calls manipulated."""
    light = portrait.astype(int)
    light[0:230, 120:340] += (-25, 45, 0)
    return light.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage import data

    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(data.astronaut()).save(folder / "portrait.png")
    Image.fromarray(tinted(data.astronaut())).save(folder / "green light.png")
    Image.fromarray(data.chelsea()).save(folder / "cat.jpg")
    (folder / "cut off.jpg").write_bytes((folder / "cat.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("no picture")
    return folder


@dataclass
class Demo:
    """What a finished demo left, its stack still up."""

    here: Installation
    results: Path
    said: str
    process: subprocess.Popen[str]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LONG_S)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[Demo]:
    here = Installation(tmp_path_factory.mktemp("demo"))
    write_model(here.folder / "starter")
    process = subprocess.Popen(
        here.command("demo", "--images", str(pictures), "--results", "found", "--keep"),
        cwd=here.folder,
        env=here.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith(UP):
                break
        else:
            pytest.fail("the demo ended early:\n" + "".join(said))
        yield Demo(here, here.folder / "found", "".join(said), process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(LONG_S)
        if process.stdout is not None:
            process.stdout.close()


def test_every_picture_gets_its_verdict(demo: Demo) -> None:
    found = {one["file"]: one for one in json.loads((demo.results / "results.json").read_text())}
    assert {name: (one["status"], one["verdict"], one["origin"]) for name, one in found.items()} == {
        "portrait.png": ("done", "authentic", "seaweedfs"),
        "green light.png": ("done", "manipulated", "seaweedfs"),
        "cat.jpg": ("done", "not_applicable", "seaweedfs"),
        "cut off.jpg": ("refused", None, "seaweedfs"),
    }
    assert found["cat.jpg"]["reason"] == "no_face"
    assert found["cut off.jpg"]["reason"].endswith(".")


def test_the_mesh_is_drawn_on_the_manipulated_face_only(demo: Demo, pictures: Path) -> None:
    def difference(name: str) -> np.ndarray:
        before = np.asarray(Image.open(pictures / f"{name}.png").convert("RGB"))
        after = np.asarray(Image.open(demo.results / f"{name}.annotated.png"))
        return (before != after).any(axis=2)

    assert not difference("portrait").any()
    drawn = difference("green light")
    x, y, w, h = json.loads((demo.results / "green light.result.json").read_text())["faces"][0]["box"]
    rows, columns = np.nonzero(drawn)
    assert len(rows) > 200
    assert (y - h / 2 <= rows).all()
    assert (rows <= y + 1.5 * h).all()
    assert (x - w / 2 <= columns).all()
    assert (columns <= x + 1.5 * w).all()


def test_the_results_are_those_of_the_bucket(demo: Demo) -> None:
    result = json.loads((demo.results / "portrait.result.json").read_text())
    assert result["verdict"] == "authentic"
    assert result["model"]["name"] == "green"
    assert result["source"]["key"].endswith("/portrait.png")
    assert sorted(path.name for path in demo.results.glob("cut off*")) == []


def test_the_overview_shows_each_original_beside_its_result(demo: Demo) -> None:
    with Image.open(demo.results / "overview.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 1000
    # the mesh's green is nowhere else on it
    mesh = (np.abs(pixels.astype(int) - (0x19, 0xFF, 0x8C)).sum(axis=2) < 120).sum()
    assert mesh > 20


def test_the_table_and_the_limits_are_printed(demo: Demo) -> None:
    for expected in ("portrait.png", "manipulated", "no face found", "refused", LIMITS[0], "overview.png"):
        assert expected in demo.said


def test_a_second_demo_uses_the_stack_that_is_up_and_leaves_it(demo: Demo, pictures: Path) -> None:
    done = demo.here.run("demo", "--images", str(pictures), "--results", "again")
    assert done.returncode == 0, done.stderr
    assert "Using the stack that is up" in done.stdout
    assert (demo.here.folder / "again" / "portrait.annotated.png").exists()
    assert demo.process.poll() is None


def test_the_samples_show_what_happens_to_every_kind_of_picture(demo: Demo) -> None:
    done = demo.here.run("demo", "--results", "samples")
    assert done.returncode == 0, done.stderr
    found = {one["file"]: one for one in json.loads((demo.here.folder / "samples" / "results.json").read_text())}
    assert {one["status"] for name, one in found.items() if name != "cut-off.jpg"} == {"done"}
    assert found["cut-off.jpg"]["status"] == "refused"
    assert (found["no-face.jpg"]["verdict"], found["no-face.jpg"]["reason"]) == ("not_applicable", "no_face")
    assert len(found["group.jpg"]["faces"]) == 6
    # The portrait's turned and deeper copies are the same picture, and judged so
    scores = [found[name]["score"] for name in ("portrait.jpg", "portrait-on-its-side.jpg", "portrait-16-bit.png")]
    assert max(scores) - min(scores) < 0.01


def test_a_folder_without_pictures_is_an_error(demo: Demo, tmp_path: Path) -> None:
    done = demo.here.run("demo", "--images", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "There is no picture in" in done.stderr


def test_submit_waits_for_the_verdict(demo: Demo, pictures: Path) -> None:
    judged = demo.here.json("submit", str(pictures / "portrait.png"), str(pictures / "green light.png"), "--wait")
    assert [(job["status"], job["verdict"]) for job in judged] == [("done", "authentic"), ("done", "manipulated")]
    assert judged[1]["faces"][0]["verdict"] == "manipulated"
    assert demo.here.json("job", judged[0]["id"])["history"][-1]["what"] == "done"
    listed = demo.here.json("jobs", "--prefix", "submit/", "--limit", "2")
    assert {job["id"] for job in listed} == {job["id"] for job in judged}


def test_submit_without_waiting_tells_the_jobs_id(demo: Demo, pictures: Path) -> None:
    [job] = demo.here.json("submit", str(pictures / "cat.jpg"))
    assert demo.here.json("job", job["id"])["source"]["key"].endswith("/cat.jpg")


def test_submit_of_what_can_never_work_ends_with_1(demo: Demo, pictures: Path) -> None:
    done = demo.here.run("submit", str(pictures / "cut off.jpg"), "--wait")
    assert done.returncode == 1
    assert "refused" in done.stdout


def test_the_doctor_finds_nothing_wrong(demo: Demo) -> None:
    found = demo.here.json("doctor")
    assert {finding["name"]: finding["found"] for finding in found if not finding["well"]} == {}


def test_a_registered_endpoint_is_told_of_every_job(demo: Demo, receivers: Callable[[], Receiver], pictures: Path) -> None:
    # Given a receiver that verifies with the secret it was given
    receiver = receivers()
    made = demo.here.json("endpoints", "add", receiver.url, "--event", "job.done")
    receiver.answer(secret=made["secret"])
    assert [one["id"] for one in demo.here.json("endpoints", "list")] == [made["id"]]
    assert demo.here.run("endpoints", "test", made["id"]).returncode == 0
    # When a picture is judged
    [job] = demo.here.json("submit", str(pictures / "portrait.png"), "--wait")
    # Then it hears of it, signed
    wait_until(lambda: len(receiver.got) == 2, "the webhook")
    assert [got["verified"] for got in receiver.got] == [True, True]
    told = json.loads(receiver.got[1]["body"])
    assert (told["type"], told["data"]["job_id"], told["data"]["verdict"]) == ("job.done", job["id"], "authentic")
    # And when it is removed, it is gone
    assert demo.here.run("endpoints", "remove", made["id"]).returncode == 0
    assert demo.here.json("endpoints", "list") == []
    refused = demo.here.run("endpoints", "test", made["id"])
    assert (refused.returncode, refused.stderr) == (2, "unmask: There is no endpoint of that id.\n")


def test_a_model_is_published_promoted_and_judges(demo: Demo, pictures: Path, tmp_path: Path) -> None:
    # Given a second version that sees it the other way round
    write_model(tmp_path, version="2", gain=-4.0)
    assert demo.here.run("models", "publish", str(tmp_path / "green" / "2")).returncode == 0
    # When it is promoted
    assert demo.here.run("models", "promote", "2").returncode == 0
    try:
        # Then workers follow, and results name it
        for _ in range(60):
            [job] = demo.here.json("submit", str(pictures / "portrait.png"), "--wait")
            if job["model"]["version"] == "2":
                break
        assert (job["model"]["version"], job["verdict"]) == ("2", "manipulated")
    finally:
        assert demo.here.run("models", "rollback").stdout == "green 1 is champion again.\n"


def test_after_the_end_the_jobs_are_still_there(demo: Demo) -> None:
    assert demo.end() == 0
    assert {job["status"] for job in demo.here.json("jobs", "--prefix", "demo/")} == {"done", "refused"}
    assert demo.here.run("submit", "found/portrait.annotated.png").returncode == 2
