"""The overlays for training: one worker a group of cards, groups that the hardware has, and the command of the one-machine stack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import groups
from pipeline.settings import Settings
from workers import programs
from workers.place import Place

ROOT = Path(__file__).resolve().parents[2]
STAGE = re.compile(r"^FROM (\S+) AS (\S+)$(.*?)(?=^FROM |\Z)", re.MULTILINE | re.DOTALL)


def services(overlay: str) -> dict[str, dict[str, Any]]:
    """The services of an overlay on the stack that train, as Compose itself reads them."""
    files = ["-f", str(ROOT / "docker/compose.yaml"), "-f", str(ROOT / "docker" / overlay)]
    command = [str(Path(sys.executable).parent / "docker-compose"), "--env-file", str(ROOT / "docker/.env.example"), *files]
    read = subprocess.run([*command, "--profile", "*", "config", "--format", "json"], capture_output=True, check=True)
    return {name: service for name, service in json.loads(read.stdout)["services"].items() if name.startswith("train")}


@pytest.mark.parametrize("overlay", ["compose.train.yaml", "compose.hpu.yaml"])
def test_the_overlays_run_what_the_stack_on_one_machine_runs(overlay: str, tmp_path: Path) -> None:
    chosen = programs.programs(Place.at(tmp_path), Settings(train_python=sys.executable), dict.fromkeys(programs.PORTS, 1))
    (train,) = (program for program in chosen if program.name == "train")
    found = services(overlay)

    assert {tuple(service["command"]) for service in found.values()} == {("celery", *train.command[train.command.index("celery") + 1 :])}
    assert {service["stop_grace_period"] for service in found.values()} == {"1m30s"}
    assert train.stop_s < 90
    assert {service["environment"]["UNMASK_DATABASE_URL_FILE"] for service in found.values()} == {"/run/secrets/database_url"}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_way_to_group_the_cards_uses_each_of_the_eight_once(size: int) -> None:
    found = [service for service in services("compose.hpu.yaml").values() if service["profiles"] == [f"hpu{size}"]]

    chosen = [groups.group("hpu", service["environment"]["UNMASK_TRAIN_CARDS"]) for service in found]

    assert {one.world for one in chosen} == {size}
    assert sorted(module for one in chosen for module in one.modules) == list(range(8))


def test_a_container_gets_what_the_vendor_asks_for() -> None:
    for service in services("compose.hpu.yaml").values():
        assert (service["runtime"], service["ipc"], service["cap_add"], service["cap_drop"]) == ("habana", "host", ["SYS_NICE"], ["ALL"])
        assert service["environment"]["HABANA_VISIBLE_DEVICES"] == "all"
        assert service["environment"]["OMPI_MCA_btl_vader_single_copy_mechanism"] == "none"
        # the lock files and the name under which cards are leased are the same for all
        assert [(volume["source"], volume["target"]) for volume in service["volumes"]] == [("train", "/data")]
        assert service["environment"]["UNMASK_TRAIN_MACHINE"] == "gaudi"


def test_it_runs_as_an_ordinary_user_in_the_group_of_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPU_GID", "993")

    for service in services("compose.hpu.yaml").values():
        assert (service["user"], service["group_add"], service["read_only"]) == ("10001:10001", ["993"], True)


@pytest.mark.parametrize("target", ["worker", "train", "train-hpu"])
def test_an_image_that_trains_has_what_the_other_workers_images_have(target: str) -> None:
    """An ordinary user and a question to the worker itself; the vendor's image, which none of ours stands on, keeps its path."""
    stages = {name: (base, text) for base, name, text in STAGE.findall((ROOT / "docker/Dockerfile").read_text())}
    lineage, name = "", target
    while name in stages:
        name, text = stages[name]
        lineage += text

    assert "\nUSER 10001:10001\n" in lineage
    assert "HEALTHCHECK" in lineage
    assert "inspect ping" in lineage
    assert "PYTHONPATH=" not in lineage or "PYTHONPATH=/srv/unmask${PYTHONPATH:+:$PYTHONPATH} " in lineage


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "docker/requirements" / f"{name}.txt").read_text(), re.MULTILINE))


def test_the_gaudi_trainer_brings_no_tensorflow_of_its_own_and_finds_faces_as_serving_does() -> None:
    own, serving = pins("train-hpu"), pins("image")

    assert not {"tensorflow", "tensorflow-cpu", "keras", "habana-tensorflow", "habana-horovod"} & own.keys()
    assert not {"sqlalchemy", "celery", "flask"} & own.keys()
    for name in ("mediapipe", "openvino", "opencv-contrib-python-headless", "numpy"):
        assert own[name] == serving[name]


def test_the_trainer_needs_no_package_that_its_image_has_not() -> None:
    """Database, queue and web are not there: its Python is older than they are."""
    missing = ["sqlalchemy", "alembic", "celery", "kombu", "redis", "flask", "boto3", "psycopg", "click", "argon2", "cryptography"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"
        "import pipeline.training.fit, pipeline.training.network, pipeline.training.report, pipeline.gaudi, workers.ranks\n"
        "pipeline.training.fit.parse(['--faces', 'x', '--out', 'y', '--steps', '1'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
