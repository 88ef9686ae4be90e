"""The command that trains: what it is told, what it prepares and tells, and the account it leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.training import crops, feeding, fit, network
from pipeline.training.devices import Rank
from pipeline.training.errors import TrainingError
from pipeline.training.examples import Recipe
from tests.fixtures.made_up_people import listed
from tests.fixtures.small_trainer import small


def test_a_stage_needs_size_share_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit.parse(["--faces", "x", "--out", "y", "--steps", "3", "--stages", "96:1"])
    assert "size:share:rate" in capsys.readouterr().err


def test_a_preset_yields_to_what_is_given() -> None:
    chosen = fit.parse(["--faces", "x", "--out", "y", "--steps", "3", "--preset", "lars-imagenet", "--pairs", "8"])
    assert (chosen.optimizer, chosen.pairs, chosen.smoothing) == ("lars", 8, 0.1)


def test_ranks_must_share_a_batch_evenly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit.parse(["--faces", "x", "--out", "y", "--steps", "3", "--pairs", "6", "--ranks", "4"])
    assert "cannot be shared evenly" in capsys.readouterr().err


def test_going_on_from_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(["--faces", "x", "--out", str(tmp_path), "--steps", "3", "--resume"]) == 2
    assert "no checkpoint.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/faces/1.png"), 2, "/faces/1.png cannot be used: Permission denied."),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/out/x"), 2, "/out/x cannot be used: Not a directory."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/faces/faces.csv"), 2, "/faces/faces.csv does not exist."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 2, "The training cannot go on: No such file or directory."),
        (OSError("half a file"), 2, "The training cannot go on: half a file."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "The training cannot go on: No space left on device."),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/faces/1.png"), 1, "/faces/1.png cannot be used: Connection timed out."),
        (ConnectionResetError("the peer is gone"), 1, "The training cannot go on: the peer is gone."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OSError) else "",
)
def test_what_the_system_refuses_is_one_sentence_and_a_full_disk_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: OSError, code: int, said: str
) -> None:
    def train(*_: Any) -> bool:
        raise problem

    monkeypatch.setattr(fit, "train", train)
    assert fit.main(["--faces", "x", "--out", str(tmp_path), "--steps", "3"]) == code
    assert capsys.readouterr().err == f"{said}\n"


def test_a_file_in_the_folders_place_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    assert fit.main(["--faces", "x", "--out", str(tmp_path / "out"), "--steps", "3"]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'out'} cannot be used: File exists.\n"


def test_lines_of_progress_are_appended_to_a_file(tmp_path: Path) -> None:
    for number in range(2):
        with fit.Progress(tmp_path / "progress.jsonl") as progress:
            progress.tell({"event": "step", "step": number})
    assert [json.loads(line)["step"] for line in (tmp_path / "progress.jsonl").read_text().splitlines()] == [0, 1]


def test_whatever_takes_long_before_the_first_step_is_told(
    people: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: Any, **__: Any) -> None:
        raise TrainingError("all is prepared")

    monkeypatch.setattr(fit, "SAY_S", 0.0)
    monkeypatch.setattr(fit.devices, "check", lambda *_, **__: None)
    monkeypatch.setattr(fit.devices, "begin", begin)
    told = tmp_path / "progress.jsonl"
    words = ["--faces", str(people), "--data", str(others), "--out", str(tmp_path / "out"), "--progress", str(told), "--steps", "1"]

    with pytest.raises(TrainingError, match="all is prepared"):
        fit.train(fit.parse(words), threading.Event())

    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert {line["event"] for line in lines} == {"preparing"}
    assert Counter(line["what"] for line in lines) == {"faces": 4, "hashes": 4, "hashes of whom it must not have": 2, "crops": 4}
    assert {line["what"]: (line["done"], line["total"]) for line in lines} == {
        "faces": (4, 4),
        "hashes": (4, 4),
        "hashes of whom it must not have": (2, 2),
        "crops": (4, 4),
    }, "the last of each"
    made = feeding.Made(
        people,
        tmp_path / "out/faces.npz",
        seed=3,
        recipe=Recipe(size=48, smallest=32),
        pairs=4,
        data=others,
        cache=tmp_path / "out/crops",
        records=feeding.training_records(others),
    )
    monkeypatch.setattr(feeding, "training_records", lambda data: pytest.fail("they were hashed again"))
    monkeypatch.setattr(crops, "cut_record", lambda *_, **__: pytest.fail("they were cut again"))
    assert made.batch(0).crops.shape == (8, 48, 48, 3)


@pytest.mark.parametrize(("held_out", "kind", "regions"), [("face_swap", "face-swap", "self_blended"), ("region", "region", "either")])
def test_the_kind_that_is_held_out_is_in_no_region_of_a_training(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: str, kind: str, regions: str
) -> None:
    """And a checkpoint of before regions were told apart fits a training that has both."""
    made: list[Recipe] = []
    identities: list[str] = []

    class Stopped:
        def __init__(self, plan: Any, folder: Path, build: Any, batches: Any, *_: Any, identity: str, **__: Any) -> None:
            identities.append(identity)
            batches(0, [0])

        def run(self) -> bool:
            return False

    monkeypatch.setattr(fit.devices, "check", lambda *_, **__: None)
    monkeypatch.setattr(fit.devices, "begin", lambda *_, **__: Rank())
    monkeypatch.setattr(fit, "Trainer", Stopped)
    monkeypatch.setattr(fit, "stream", lambda source, *_: made.append(source.recipe))
    words = ["--faces", str(people), "--facts", str(people / "faces.npz"), "--out", str(tmp_path), "--steps", "1"]
    shares = [f"--{name}={0 if name == kind else 0.5}" for name in ("self-blended", "face-swap", "region")]

    assert not fit.train(fit.parse([*words, *shares, f"--held-out={held_out}"]), threading.Event())

    assert [recipe.regions for recipe in made] == [regions]
    assert "regions=" not in identities[0]
    assert identities[0].endswith(" regions by self_blended") == (regions == "self_blended")
    assert asdict(made[0])["regions"] == regions, "which training.json keeps"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("0.png", "real", "", "train"), ("1.png", "fake", "", "val")], "1 faces of reals and 0 of fakes"),
        ([("0.png", "real", "", "test"), ("1.png", "fake", "", "train")], "0 faces of reals and 1 of fakes"),
        ([("0.png", "real", "", "val"), ("1.png", "fake", "", "val")], "0 faces of reals and 0 of fakes"),
        ([("0.png", "real", "", "train"), ("2.png", "fake", "", "train")], "has 1 picture of the splits val and test"),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_sentence_before_the_first_step(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: Any, said: str
) -> None:
    monkeypatch.setattr(fit.devices, "check", lambda *_, **__: None)
    monkeypatch.setattr(fit.devices, "begin", lambda *_, **__: pytest.fail("it went on to train"))
    data = listed(tmp_path / "data.csv", *((people / name, *rest) for name, *rest in rows))
    words = ["--faces", str(people), "--facts", str(people / "faces.npz"), "--data", str(data), "--out", str(tmp_path / "out")]

    assert fit.main([*words, "--steps", "1"]) == 2

    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of two stages with a small network, from given weights, on faces of others as well."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("trained")
    (folder / "start.h5").write_bytes(b"weights")
    rows = [(people / f"{k % 2}.png", ("real", "fake")[k // 2], "", "train") for k in range(4)]
    data = listed(folder / "data.csv", *rows)
    words = ["--faces", str(people), "--facts", str(people / "faces.npz"), "--data", str(data), "--data-share", "1", "--out", str(folder)]
    words += ["--weights", str(folder / "start.h5"), "--stages", "32:.5:.001,244:.5:.001", "--steps", "2", "--pairs", "2", "--makers", "0"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit.devices, "begin", lambda *_, **__: Rank())
        patched.setattr(network, "build", lambda size, *, dropout, mask_head, weights: small(size, dropout, mask_head))
        assert fit.train(fit.parse([*words, "--strength", ".25"]), threading.Event())
    return folder


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")
def test_the_account_says_what_it_began_with_and_what_pairs_were_made_of(trained: Path) -> None:
    account = json.loads((trained / "training.json").read_text())
    assert account["start_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert account["recipe"] == asdict(Recipe(size=244, smallest=61, strength=0.25))
    assert len(account["other_data_sha256"]) == 64


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")
def test_faces_of_others_are_cut_once_as_large_as_the_largest_stage(trained: Path) -> None:
    (place,) = (trained / "crops").iterdir()
    assert np.load(place / "00000.npy").shape == (4, 244, 244, 3)


def test_of_what_is_gone_through_only_so_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[dict[str, Any]]()
    monkeypatch.setattr(fit.time, "monotonic", lambda: now[0])
    progress = fit.Progress()
    monkeypatch.setattr(progress, "tell", told.append)
    for number in fit.Preparing(progress, "faces")(range(100)):
        now[0] = float(number)
    assert [(line["done"], line["total"]) for line in told] == [(done, 100) for done in (*range(1, 101, 5), 100)]


def test_whatever_takes_long_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    records = [object() for _ in range(6)]
    with fit.Progress() as progress:
        assert not progress._bar.tasks, "none that is empty"
        list(fit.Preparing(progress, "faces", 8)(range(3)))
        cutting = fit.Preparing(progress, "crops", len(records), records)
        list(cutting(records[2:4]))  # the first two were cut before
        list(cutting(records[4:5]))
        progress.tell({"event": "step", "step": 1, "steps": 9, "size": 96, "images_per_s": 2.0})
        shown = [(task.description, task.completed, task.total) for task in progress._bar.tasks]
    assert shown == [("faces", 3, 8), ("crops", 5, 6), ("96 px, 2.0 images/s", 1, 9)]


@pytest.mark.tensorflow
@pytest.mark.timeout(240)
def test_the_command_trains_the_real_network_and_resumes_after_sigterm(people: Path, tmp_path: Path) -> None:
    """The whole command, with a network of 32 px: stopped by SIGTERM after its first step, and started again."""
    pytest.importorskip("tensorflow")
    command = [sys.executable, "-m", "pipeline.training.fit", "--faces", str(people), "--out", str(tmp_path), "--steps", "4"]
    command += ["--stages", "32:1:.001", "--pairs", "2", "--makers", "1", "--look", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None
    said = (json.loads(line) for line in first.stdout)
    line = next(line for line in said if line["event"] not in ("preparing", "device"))
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert line["event"] in ("step", "look")
    assert first.returncode in (fit.STOPPED, 0)  # 0: it was through before the signal came
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert second.returncode == 0, second.stderr
    account = json.loads((tmp_path / "training.json").read_text())
    assert account["images"] == 16
    assert account["plan"]["steps"] == 4
    assert len(account["manifest_sha256"]) == 64
    assert account["start_sha256"] is None
    assert (tmp_path / "weights.h5").stat().st_size < 50_000_000
    assert cv2.imread(str(tmp_path / "curve.png")) is not None
    assert [row["step"] for row in json.loads((tmp_path / "curve.json").read_text())] == [2, 4]
