"""The look at a machine's cards, on device roots of every kind: what is there, and each thing that is missing in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from pipeline import cards, gaudi
from pipeline.cards import CardError
from tests.fixtures.gaudi import HL_SMI, ROOT, environment, machine, tool

SHUFFLED = (3, 1, 0, 2, 7, 5, 4, 6)
"""Slot of each index: a boot that numbered the nodes otherwise."""


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_machines_cards_are_found_by_their_slots(tmp_path: Path, count: int) -> None:
    modules = [module for module in SHUFFLED if module < count]

    chosen, found = gaudi.preflight("", machine(tmp_path, modules))

    assert chosen == cards.Group("hpu", tuple(range(count)))
    assert [(card.module, card.index, card.node) for card in found] == [
        (module, modules.index(module), f"/dev/accel/accel{modules.index(module)}") for module in range(count)
    ]
    assert {(card.kind, card.driver) for card in found} == {("GAUDI", "1.14.0-9e8ecbb")}


def test_the_nodes_of_older_drivers_are_found_too(tmp_path: Path) -> None:
    _, found = gaudi.preflight("0,1", machine(tmp_path, (1, 0), older=True))
    assert [card.node for card in found] == ["/dev/hl1", "/dev/hl0"]


@pytest.mark.parametrize("text", ["0", "5", "2,3", "6,7", "4,5,6,7", "3,2,1,0", "0,1,2,3,4,5,6,7", " 0 , 1 "])
def test_legal_groups(text: str) -> None:
    assert cards.group("hpu", text).modules == tuple(sorted(int(word) for word in text.split(",")))


@pytest.mark.parametrize(
    "text", ["1,2", "0,2", "3,4", "0,1,2", "2,3,4,5", "0,1,4,5", "0,1,2,3,4,5", "8", "7,8", "0,0", "", "a", "-1", "0;1"]
)
def test_illegal_groups_are_refused(text: str) -> None:
    with pytest.raises(CardError) as caught:
        cards.group("hpu", text)
    assert caught.value.permanent
    assert one_sentence(str(caught.value))


def test_other_devices_take_any_power_of_two() -> None:
    assert cards.group("cpu", "0,1").world == 2
    with pytest.raises(CardError, match="3 processes"):
        cards.group("gpu", "0,1,2")


def one_sentence(text: str) -> bool:
    return text.endswith(".") and "\n" not in text and "Traceback" not in text and ". " not in text


def nothing(root: Path) -> None:
    """An ordinary machine."""


def no_runtime(root: Path) -> None:
    (root / "sys/class/accel/accel0").mkdir(parents=True)


def no_sysfs(root: Path) -> None:
    machine(root)
    (root / "sys/class/accel/accel3/device/driver_ver").unlink()


def unknown_node(root: Path) -> None:
    machine(root)
    tool(root, HL_SMI, [f"{index}, {index}" for index in range(7)])


def twice_the_same(root: Path) -> None:
    machine(root)
    tool(root, HL_SMI, [f"{index}, {index // 2}" for index in range(8)])


def no_hl_smi(root: Path) -> None:
    machine(root)
    (root / "usr/bin/hl-smi").unlink()


FAILURES: list[tuple[Callable[[Path], object], str, bool]] = [
    (nothing, "no Gaudi card here.*install the habanalabs driver", True),
    (no_runtime, "no Gaudi card here.*habana runtime", True),
    (no_sysfs, "/dev/accel/accel3, no driver_ver", True),
    (lambda root: machine(root, kind="OTHER"), "is OTHER, no Gaudi", True),
    (lambda root: machine(root, driver="1.16.2-fw"), "is 1.16.2-fw.*needs 1.14", True),
    (no_hl_smi, "hl-smi is not here", True),
    (lambda root: (machine(root), tool(root, "#!/bin/sh\necho 'no devices' >&2; exit 9\n")), "hl-smi failed: no devices", False),
    (lambda root: (machine(root), tool(root, "#!/bin/sh\necho garbage\n")), "names no card", True),
    (lambda root: (machine(root), tool(root, "#!/no/such/shell\n")), "hl-smi cannot be run", True),
    (unknown_node, "does not know /dev/accel/accel7", True),
    (twice_the_same, "same module id", True),
    (lambda root: machine(root, (0, 1)), "Module 4, 5 is not in this machine, which has 0, 1", True),
]


@pytest.mark.parametrize(("made", "said", "permanent"), FAILURES)
def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, made: Callable[[Path], object], said: str, permanent: bool) -> None:
    made(tmp_path)
    with pytest.raises(CardError, match=said) as caught:
        gaudi.preflight("4,5", tmp_path)
    assert one_sentence(str(caught.value)), str(caught.value)
    assert caught.value.permanent is permanent


def test_a_tool_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path)
    tool(tmp_path, "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gaudi, "ANSWER_S", 0.2)
    with pytest.raises(CardError, match="did not answer") as caught:
        gaudi.preflight("0", tmp_path)
    assert not caught.value.permanent


def installed(**versions: str) -> Callable[[str], str]:
    def find(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return find


RIGHT = {"tensorflow_cpu": "2.15.0", "habana_tensorflow": "1.14.0.493", "habana_horovod": "1.14.0.493"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensorflow_cpu": "2.15.1"}, "tensorflow-cpu is 2.15.1.*exactly 2.15.0"),
        ({"tensorflow_cpu": None}, "TensorFlow is not installed"),
        ({"habana_tensorflow": None}, "habana-tensorflow is not installed in this Python"),
        ({"habana_tensorflow": "1.13.0.463"}, "habana-tensorflow is 1.13.0.463"),
        ({"habana_horovod": None}, "habana-horovod is not installed"),
    ],
)
def test_only_the_one_stack_is_taken(change: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaudi.shutil, "which", lambda name: f"/usr/bin/{name}")
    versions = {name: version for name, version in {**RIGHT, **change}.items() if version}
    with pytest.raises(CardError, match=said) as caught:
        gaudi.software(2, installed=installed(**versions))
    assert one_sentence(str(caught.value))
    assert gaudi.software(2, installed=installed(**RIGHT))["tensorflow"] == "2.15.0"


def test_several_cards_need_mpirun_or_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaudi.shutil, "which", lambda name: None)
    with pytest.raises(CardError, match="mpirun is not on PATH"):
        gaudi.software(2, installed=installed(**RIGHT))
    assert "habana-horovod" not in gaudi.software(2, "strategy", installed=installed(**RIGHT))


def test_the_whole_look_is_a_program_that_needs_no_tensorflow(tmp_path: Path) -> None:
    """Run where importing TensorFlow would fail."""
    guard = tmp_path / "guard" / "tensorflow.py"
    guard.parent.mkdir()
    guard.write_text("raise SystemExit('TensorFlow was imported')\n")
    command = [sys.executable, "-m", "pipeline.gaudi", "--modules", "2,3", "--device-root"]
    found = environment()
    found["PYTHONPATH"] = f"{guard.parent}:{found['PYTHONPATH']}"

    well = subprocess.run([*command, str(machine(tmp_path / "node"))], env=found, capture_output=True, text=True, cwd=ROOT, check=False)
    ill = subprocess.run([*command, str(tmp_path)], env=found, capture_output=True, text=True, cwd=ROOT, check=False)

    assert (well.returncode, well.stderr) == (0, "")
    said = json.loads(well.stdout)
    assert [card["module"] for card in said["cards"]] == [2, 3]
    assert said["versions"] == {"tensorflow": "2.15.0", "habana-tensorflow": "1.14.0.493", "habana-horovod": "1.14.0.493"}
    assert (ill.returncode, ill.stdout) == (2, "")
    assert one_sentence(ill.stderr.strip())
