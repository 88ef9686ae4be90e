"""The trainer on one and several ranks, started as a worker starts it: on CPUs, and on Gaudi cards that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cards import Group, group
from tests.fixtures.gaudi import ROOT, TINY, environment, machine
from tests.fixtures.scale import LONG
from workers import launching
from workers.launching import Launch

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(600)]

in_full = pytest.mark.skipif(not LONG, reason="TEST_LONG=1 runs it; a shorter one proves the like")


@dataclass
class Ran:
    """A trainer that has ended: exit code, standard output and error together, and what it left."""

    code: int
    said: str
    folder: Path

    @property
    def outcome(self) -> launching.Outcome:
        return launching.outcome_of(self.code, self.said.splitlines()[-20:])

    def arrays(self) -> dict[str, Any]:
        with np.load(self.folder / "checkpoint.npz") as content:
            return {name: content[name] for name in content.files if name != "facts"}

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "progress.jsonl").read_text().splitlines()]


def started(launch: Launch, folder: Path, *arguments: str, base: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The product's own command, with a trainer whose network is tiny."""
    folder.mkdir(exist_ok=True, parents=True)
    given = ["--out", str(folder), "--progress", str(folder / "progress.jsonl"), *arguments]
    command = launching.command_of(launch, given)
    at = command.index("pipeline.training.fit")
    command[at - 1 : at + 2] = [str(TINY)]
    return subprocess.Popen(
        command,
        env=launching.environment_of(launch, base or environment()),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(launch: Launch, folder: Path, *arguments: str, base: dict[str, str] | None = None) -> Ran:
    with started(launch, folder, *arguments, base=base) as process:
        said, _ = process.communicate(timeout=300)
    return Ran(process.returncode, said, folder)


def cpu(world: int) -> Launch:
    return Launch(Group("cpu", tuple(range(world))))


def close(one: Ran, other: Ran) -> None:
    first, second = one.arrays(), other.arrays()
    for name in (name for name in first if name.startswith("weights")):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(first["weights/00000"]).max() > 0.01


def same(one: Ran, other: Ran) -> None:
    first, second = one.arrays(), other.arrays()
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert (one.folder / "weights.h5").read_bytes() == (other.folder / "weights.h5").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One process with the whole batch."""
    pytest.importorskip("tensorflow")
    ran = run(cpu(1), tmp_path_factory.mktemp("alone"))
    assert ran.code == 0, ran.said
    return ran


def test_two_ranks_train_as_one(alone: Ran, tmp_path: Path) -> None:
    together = run(cpu(2), tmp_path)
    assert together.code == 0, together.said
    close(alone, together)
    looks = [line for line in together.lines() if line["event"] == "look"]
    assert [line["step"] for line in looks] == [4, 8, 12]
    assert {"stage", "epoch", "loss", "val_loss", "auc", "images_per_s", "eta_s"} <= looks[0].keys()
    assert looks[-1]["loss"] == pytest.approx([line for line in alone.lines() if line["event"] == "look"][-1]["loss"], rel=1e-4)
    assert [line["event"] for line in together.lines()].count("device") == 1


def test_ranks_stopped_by_a_signal_to_one_of_them_go_on_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, of which every rank has a stream of its own."""
    pytest.importorskip("tensorflow")
    straight = run(cpu(2), tmp_path / "straight", "--dropout", "0.5")
    assert straight.code == 0, straight.said

    stopped = run(cpu(2), tmp_path / "broken", "--dropout", "0.5", "--stop", "1:5")
    assert stopped.code == launching.STOPPED, stopped.said
    assert stopped.lines()[-1] == {"event": "stopped", "stage": 0, "step": 5}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in launching.CHECKPOINT_FILES:  # all that another machine needs
        (stopped.folder / name).rename(moved / name)
    resumed = run(cpu(2), moved, "--dropout", "0.5")

    assert resumed.code == 0, resumed.said
    assert resumed.lines()[0]["resumed"] is True
    same(straight, resumed)


def wait_for(process: subprocess.Popen[str], folder: Path, event: str) -> None:
    """Until the trainer tells of an event; its output says why where it ended before."""
    path = folder / "progress.jsonl"
    for _ in range(1200):
        if path.exists() and f'"event": "{event}"' in path.read_text():
            return
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.stdout.read() if process.stdout else "")
    raise AssertionError("it said nothing in five minutes")


def test_sigterm_to_the_one_process_stops_all_ranks_with_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    with started(cpu(2), tmp_path, "--endless") as process:
        wait_for(process, tmp_path, "look")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    ran = Ran(process.returncode, said, tmp_path)
    assert ran.outcome.state == "stopped", said
    assert [line["event"] for line in ran.lines()][-2:] == ["checkpoint", "stopped"]


BY_HAND = """
import sys
from workers import cli
from workers.commands import learning

whole, trainer = learning.command_of, sys.argv.pop(1)

def command_of(launch, options):
    command = whole(launch, options)
    at = command.index("pipeline.training.fit")
    return [*command[: at - 1], trainer, *command[at + 2 :]]

learning.command_of = command_of
cli.main()
"""
RANK = """
import os, signal, sys, time

def stop(number, frame):
    os.write(1, b"in order\\n")
    sys.exit(75)

signal.signal(signal.SIGUSR1, stop)
os.write(1, b"begun\\n")
for _ in range(3000):  # one long sleep is not ended by a signal that comes right before it
    time.sleep(0.1)
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_training_by_hand_stops_its_ranks_in_order(tmp_path: Path, how: str) -> None:
    """`unmask train` itself, with ranks that know what to do when they are asked in the right way, and in no other."""
    pytest.importorskip("tensorflow")
    (tmp_path / "rank.py").write_text(RANK)
    with subprocess.Popen(
        [sys.executable, "-c", BY_HAND, str(tmp_path / "rank.py"), "train", "--ranks", "2"],
        env=environment(UNMASK_DATA_DIR=str(tmp_path)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        begun = [process.stdout.readline() for _ in range(2)]
        if how == "Ctrl-C":  # a terminal tells all that are in the foreground
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert [*begun, said] == ["begun\n", "begun\n", "in order\nin order\n"]
    assert process.returncode == launching.STOPPED


RIGHT_AFTER = """
import os, signal, sys
from pipeline.groups import group
from workers import ranks
from workers.launching import Launch

wait = os.waitpid

def waited(pid, options):
    found = wait(pid, options)
    if found[0]:
        signal.raise_signal(signal.SIGTERM)
        print("asked", flush=True)
    return found

os.waitpid = waited
sys.exit(ranks.run(Launch(group("cpu", "0")), [sys.executable, "-c", "pass"]))
"""


def test_a_signal_right_after_a_rank_has_ended_is_no_error() -> None:
    """It comes while the launcher has not written down yet that there is nobody left to send it to."""
    ran = subprocess.run([sys.executable, "-c", RIGHT_AFTER], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (launching.DONE, "asked\n", "")


def test_no_rank_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    with started(cpu(2), tmp_path, "--endless") as process:
        wait_for(process, tmp_path, "look")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        process.kill()
        # the pipe ends when the last of them is gone
        process.communicate(timeout=60)
    assert launching.outcome_of(process.returncode).permanent is False


class TestGaudi:
    """On the fakes, which behave outwardly as the vendor's software does."""

    def test_an_absent_card_is_said_before_tensorflow_is_loaded(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pipeline.training import fit\n"
            "code = fit.main(sys.argv[1:]); assert 'tensorflow' not in sys.modules; sys.exit(code)"
        )
        arguments = [
            "--faces",
            "nowhere",
            "--out",
            str(tmp_path / "out"),
            "--steps",
            "1",
            "--device",
            "hpu",
            "--device-root",
            str(tmp_path),
        ]
        base = environment(HLS_MODULE_ID="0")
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=base, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == launching.WRONG, done.stderr
        assert done.stderr.strip() == (
            "There is no Gaudi card here, neither /dev/accel/accel0 nor /dev/hl0: install the habanalabs driver."
        )

    def test_a_trainer_of_unknown_place_is_refused(self, tmp_path: Path) -> None:
        """It would take any free card, and perhaps another worker's."""
        arguments = [str(TINY), "--out", str(tmp_path / "out"), "--device", "hpu", "--device-root", str(machine(tmp_path))]
        done = subprocess.run(
            [sys.executable, *arguments], env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == launching.WRONG
        assert "HLS_MODULE_ID is not set" in done.stderr

    def test_the_bridge_aborts_where_tensorflow_was_touched_first(self, tmp_path: Path) -> None:
        code = "import tensorflow as tf; tf.zeros(1)\nfrom habana_frameworks.tensorflow import load_habana_module; load_habana_module()"
        base = environment(machine(tmp_path), HLS_MODULE_ID="0")
        done = subprocess.run([sys.executable, "-c", code], env=base, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGABRT
        outcome = launching.outcome_of(done.returncode, done.stdout.splitlines())
        assert "before the Gaudi bridge was loaded" in outcome.sentence

    def test_ours_does_not_and_says_so(self, tmp_path: Path) -> None:
        ran = run(Launch(group("hpu", "0"), device_root=machine(tmp_path)), tmp_path / "out", "--touch", base=environment(tmp_path))
        assert ran.code == launching.WRONG, ran.said
        assert "TensorFlow was used before the Gaudi bridge was loaded" in ran.outcome.sentence
        assert ran.outcome.permanent

    def test_a_card_trains_in_bfloat16_by_conversion_alone(self, alone: Ran, tmp_path: Path) -> None:
        ran = run(Launch(group("hpu", "6"), device_root=machine(tmp_path)), tmp_path / "out", base=environment(tmp_path))
        assert ran.code == 0, ran.said
        assert (tmp_path / "history").read_text() == "6 full\n"
        assert ran.lines()[0]["precision"] == "bfloat16 by TF_BF16_CONVERSION=full"
        close(alone, ran)

    def test_both_ways_to_bfloat16_at_once_are_refused(self, tmp_path: Path) -> None:
        launch = Launch(group("hpu", "0"), device_root=machine(tmp_path))
        arguments = [str(TINY), *launching.command_of(launch, ["--out", str(tmp_path / "out"), "--bf16", "policy"])[4:]]
        base = environment(tmp_path, TF_BF16_CONVERSION="full", HLS_MODULE_ID="0")
        done = subprocess.run([sys.executable, *arguments], env=base, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == launching.WRONG
        assert "both ways at once" in done.stderr

    def test_a_busy_card_is_worth_another_try(self, tmp_path: Path) -> None:
        import fcntl

        machine(tmp_path)
        with (tmp_path / "busy-2").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            ran = run(Launch(group("hpu", "2"), device_root=tmp_path), tmp_path / "out", base=environment(tmp_path))
        assert ran.code == launching.AGAIN, ran.said
        assert ran.outcome == launching.Outcome(
            "failed", "The Gaudi card was busy or gone when the trainer asked for it (Device acquire failed).", False
        )

    @pytest.mark.parametrize("launcher", ["horovod", pytest.param("strategy", marks=in_full)])
    def test_two_cards_train_as_one(self, alone: Ran, tmp_path: Path, launcher: launching.Launcher) -> None:
        launch = Launch(group("hpu", "2,3"), launcher, device_root=machine(tmp_path))
        ran = run(launch, tmp_path / "out", base=environment(tmp_path))
        assert ran.code == 0, ran.said
        assert sorted((tmp_path / "history").read_text().splitlines()) == ["2 full", "3 full"]
        close(alone, ran)

    @in_full
    def test_sigterm_reaches_the_ranks_of_mpirun(self, tmp_path: Path) -> None:
        launch = Launch(group("hpu", "4,5"), device_root=machine(tmp_path))
        with started(launch, tmp_path / "out", "--endless", base=environment(tmp_path)) as process:
            wait_for(process, tmp_path / "out", "look")
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=120)
        ran = Ran(process.returncode, said, tmp_path / "out")
        assert ran.outcome.state == "stopped", said
        assert ran.lines()[-1]["event"] == "stopped"
