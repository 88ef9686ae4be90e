"""`unmask cards`, `unmask train` on several ranks, and what the doctor says of training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.settings import settings
from tests.fixtures.gaudi import environment, machine
from workers import doctor
from workers.cli import main
from workers.commands import learning


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("UNMASK_DATA_DIR", str(tmp_path / "data"))
    settings.cache_clear()
    yield
    settings.cache_clear()


def told(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["cards", "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_table_of_variables_for_one_two_four_and_eight_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNMASK_DEVICE_ROOT", str(machine(tmp_path / "node")))
    found = told()
    mpi = {"OMPI_MCA_btl_vader_single_copy_mechanism": "none", "TF_BF16_CONVERSION": "full"}
    assert [launch["environment"] for launch in found["launches"]] == [
        {"HLS_MODULE_ID": "0", "TF_BF16_CONVERSION": "full"},
        {"HABANA_VISIBLE_MODULES": "0,1", **mpi},
        {"HABANA_VISIBLE_MODULES": "0,1,2,3", **mpi},
        {"HABANA_VISIBLE_MODULES": "0,1,2,3,4,5,6,7", **mpi},
    ]
    assert [card["module"] for card in found["cards"]] == list(range(8))
    assert found["missing"] == ""


def test_without_cards_it_says_so_and_shows_the_table_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNMASK_DEVICE_ROOT", str(tmp_path))
    monkeypatch.setenv("UNMASK_TRAIN_LAUNCHER", "strategy")
    found = told("--cards", "4,5")
    assert found["missing"].startswith("There is no Gaudi card here")
    assert [rank["HLS_MODULE_ID"] for rank in found["launches"][0]["ranks"]] == ["4", "5"]
    shown = CliRunner().invoke(main, ["cards"])
    assert shown.exit_code == 0
    assert "There is no Gaudi card here" in shown.output


def test_an_illegal_group_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["cards", "--cards", "1,2"])
    assert done.exit_code != 0
    assert done.exception is not None


def test_training_by_hand_is_launched_on_the_cards_it_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = machine(tmp_path / "node")
    launch, rest = learning._launch(["--device", "hpu", "--modules", "2,3", "--device-root", str(root), "--faces", "x"])
    assert launch is not None
    assert (launch.group.modules, launch.device_root, rest) == ((2, 3), root, ["--faces", "x"])
    launch, rest = learning._launch(["--ranks", "2", "--pairs", "8"])
    assert launch is not None
    assert (str(launch.group), rest) == ("cpu 0,1", ["--pairs", "8"])
    assert learning._launch(["--steps", "3"]) == (None, ["--steps", "3"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "hpu"], "no Gaudi card here"),
        (["--ranks", "3"], "3 processes"),
        (["--ranks", "4", "--modules", "0,1"], "does not go with 2 cards"),
    ],
)
def test_what_cannot_be_launched_is_one_sentence(options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNMASK_DEVICE_ROOT", str(tmp_path))
    with pytest.raises(learning.CommandError, match=said):
        learning._launch(options)


def examined() -> doctor.Finding:
    return doctor.check("training", doctor.Patient(settings()))


def test_the_doctor_looks_at_the_cards_with_the_interpreter_that_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNMASK_TRAIN_DEVICE", "hpu")
    monkeypatch.setenv("UNMASK_TRAIN_PYTHON", sys.executable)
    monkeypatch.setenv("UNMASK_TRAIN_CARDS", "6,7")
    monkeypatch.setenv("UNMASK_DEVICE_ROOT", str(tmp_path / "node"))
    ill = examined()
    machine(tmp_path / "node")
    well = examined()

    assert (ill.well, ill.found.startswith("There is no Gaudi card here")) == (False, True)
    assert (well.well, well.found) == (True, "Gaudi modules 6, 7, 1.14.0.493")


def test_the_doctor_is_content_with_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_TRAIN_PYTHON", sys.executable)
    assert examined().found.startswith("on cpu, 1 process")
    settings.cache_clear()
    monkeypatch.setenv("UNMASK_TRAIN_PYTHON", "/nowhere")
    assert examined().remedy.startswith("Run `make train-environment`")
