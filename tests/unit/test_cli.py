"""The command line without a stack: what it prints of a database's jobs, and how every error becomes one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sqlalchemy.exc import OperationalError

from pipeline import ledger, registry
from pipeline.card import ModelError
from pipeline.database import Database
from pipeline.jobs import Pixels, Stage
from pipeline.settings import Settings, SettingsError
from pipeline.storage import StorageError
from tests.fixtures.jobs import brought_to
from tests.fixtures.models import LIMITS, write_model
from tests.unit.test_registry import MemoryStorage
from workers import doctor, submission
from workers.cli import Unmask, main
from workers.commands import learning
from workers.sentences import CommandError, sentence_of

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `unmask` with a data directory of its own, where nothing has run yet."""
    for name in ("UNMASK_DATABASE_URL", "UNMASK_BROKER_URL", "UNMASK_S3_ENDPOINT", "UNMASK_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNMASK_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return run


@pytest.fixture
def db(run: Run, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The database that the commands look into."""
    monkeypatch.setenv("UNMASK_DATABASE_URL", sqlite_url)
    return Database(sqlite_url)


def one_sentence(result: Result) -> str:
    """The only line of an error."""
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("unmask: ")
    assert line.endswith(".")
    return line


# errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["submit"], "Missing argument 'FILES"),
        (["submit", "/nowhere/a.jpg"], "'/nowhere/a.jpg' does not exist"),
        (["jobs", "--status", "gone"], "'gone' is not one of"),
        (["jobs", "--limit", "0"], "0 is not in the range"),
        (["label", "x", "99999999999999999999", "authentic"], "is not in the range"),
        (["jobs"], "Nothing has run in"),
        (["job", "x"], "Nothing has run in"),
        (["models", "list"], "start it with `unmask up`"),
        (["models", "rollback"], "Nothing has run in"),
        (["endpoints", "list"], "The web process does not answer at http://127.0.0.1:1 "),
        (["evaluate", "--faces", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_every_error_is_one_sentence_and_exit_code_2(run: Run, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_WEB_PORT", "1")
    assert said in one_sentence(run(*arguments))


def test_a_wrong_setting_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_LEASE_S", "soon")
    assert "UNMASK_LEASE_S" in one_sentence(run("jobs"))


def test_a_database_that_does_not_answer_is_said_so_without_its_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DATABASE_URL", "postgresql://unmask:hunter2@127.0.0.1:1/unmask")
    said = one_sentence(run("jobs"))
    assert "The database cannot be used" in said
    assert "hunter2" not in said


def test_a_database_without_tables_says_what_to_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DATABASE_URL", f"sqlite:///{tmp_path / 'old.db'}")
    (tmp_path / "old.db").touch()
    assert "unmask db upgrade" in one_sentence(run("jobs"))
    assert run("db", "upgrade").exit_code == 0
    assert run("jobs").exit_code == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SettingsError("UNMASK_X: is wrong."), "UNMASK_X: is wrong."),
        (StorageError("The store is away"), "The store is away."),
        (ModelError("Two\nlines"), "Two lines."),
        (CommandError("No."), "No."),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), "a.jpg: No such file or directory."),
        (
            OperationalError("select 1", {}, Exception("connection refused\nIs it running?")),
            "The database cannot be used: connection refused. `unmask doctor` checks it.",
        ),
    ],
)
def test_sentences(error: Exception, said: str) -> None:
    assert sentence_of(error) == said


def test_nobody_has_a_sentence_for_the_unforeseen() -> None:
    assert sentence_of(KeyError("x")) is None


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyError("x"), 2, "unmask: Unexpected KeyError: 'x'. UNMASK_LOG_LEVEL=debug shows where.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (click.Abort(), 130, "Interrupted.\n"),
        (click.exceptions.Exit(1), 1, ""),
    ],
)
def test_how_a_command_may_end(run: Run, raised: BaseException, code: int, said: str) -> None:
    @click.group(cls=Unmask)
    def group() -> None:
        pass

    @group.command()
    def fall() -> None:
        raise raised

    result = CliRunner().invoke(group, ["fall"])
    assert (result.exit_code, result.stderr.lstrip("\n")) == (code, said)


def test_help_and_version_end_well(run: Run) -> None:
    for arguments in (["--help"], ["-h"], ["submit", "--help"], ["models", "--help"]):
        assert run(*arguments).exit_code == 0
    assert "Finds manipulated faces" in run("--help").stdout
    assert "Usage" in run().stderr


# jobs


def test_jobs_are_listed_newest_first(run: Run, db: Database) -> None:
    first, second = brought_to(db, Stage.CLASSIFY), brought_to(db, None)
    listed = json.loads(run("jobs", "--json").stdout)
    assert [(job["id"], job["status"]) for job in listed] == [(second, "done"), (first, "queued")]
    assert [job["id"] for job in json.loads(run("jobs", "--json", "--limit", "1").stdout)] == [second]
    assert [job["id"] for job in json.loads(run("jobs", "--json", "--status", "queued").stdout)] == [first]
    assert [job["id"] for job in json.loads(run("jobs", "--json", "--verdict", "manipulated").stdout)] == [second]
    shown = run("jobs").stdout
    assert first in shown
    assert "In all: 1 queued, 1 done." in shown


def test_a_job_is_shown_with_faces_and_history(run: Run, db: Database) -> None:
    job_id = brought_to(db, None)
    found = json.loads(run("job", job_id, "--json").stdout)
    assert (found["id"], found["verdict"], found["score"]) == (job_id, "manipulated", 0.97)
    assert found["faces"][0]["box"] == [0, 2, 30, 40]
    told = [line["what"] for line in found["history"]]
    assert (told[0], told[-1]) == ("accepted", "done")
    assert found["url"].endswith(f"/v1/jobs/{job_id}")
    shown = run("job", job_id).stdout
    assert "manipulated" in shown
    assert "History" in shown


def test_what_came_from_outside_is_printed_as_it_is(run: Run, db: Database) -> None:
    from tests.fixtures.jobs import upload

    ledger.accept(db, upload("[red]odd[/red] name.jpg"))
    assert "[red]odd[/red] name.jpg" in run("jobs").stdout


def test_an_unknown_job_is_said_so(run: Run, db: Database) -> None:
    assert "There is no job nope" in one_sentence(run("job", "nope"))


# models


@pytest.fixture
def two_models(db: Database, tmp_path: Path) -> Database:
    store, settings = MemoryStorage(), Settings(data_dir=tmp_path / "data")
    for version in ("1", "2"):
        registry.publish(db, store, settings, write_model(tmp_path / "made", version=version))
    registry.promote(db, settings, "green", "1")
    return db


def test_models_are_listed_promoted_and_rolled_back(run: Run, two_models: Database) -> None:
    listed = json.loads(run("models", "list", "--json").stdout)
    assert [(one["version"], one["aliases"]) for one in listed] == [("2", []), ("1", ["champion"])]
    assert run("models", "promote", "2").stdout == "green 2 is champion.\n"
    assert registry.champion(two_models) == ("green", "2")
    assert run("models", "rollback").stdout == "green 1 is champion again.\n"
    assert registry.champion(two_models) == ("green", "1")


def test_a_model_of_another_secret_key_is_neither_promoted_nor_rolled_back_to(
    run: Run, two_models: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("models", "promote", "2")
    monkeypatch.setenv("UNMASK_SECRET_KEY", "another key of this installation")
    for command in (("promote", "1"), ("rollback",)):
        assert "`unmask models sign 1` first" in one_sentence(run("models", *command))
    assert registry.champion(two_models) == ("green", "2")


def test_the_champions_limits_are_told(run: Run, two_models: Database) -> None:
    shown = run("models", "list").stdout
    assert LIMITS[0] in shown
    assert "self blended 0.500 (0.400-0.600)" in shown


def test_an_unknown_model_is_said_so(run: Run, two_models: Database) -> None:
    assert "is published" in one_sentence(run("models", "promote", "77"))


def test_a_version_of_two_models_needs_a_name(run: Run, two_models: Database, tmp_path: Path) -> None:
    registry.publish(
        two_models, MemoryStorage(), Settings(data_dir=tmp_path / "data"), write_model(tmp_path / "made", name="other", version="2")
    )
    assert "choose one of" in one_sentence(run("models", "promote", "2"))
    assert run("models", "promote", "2", "--name", "other").stdout == "other 2 is champion.\n"


# submission


def test_keys_are_unique_and_recognisable() -> None:
    paths = [Path("a/face.jpg"), Path("b/face.jpg"), Path("face-2.jpg"), Path("Ünï.PNG")]
    found = submission.keys(paths, "submit/1/")
    assert found == ["submit/1/face.jpg", "submit/1/face-2.jpg", "submit/1/face-2-2.jpg", "submit/1/Ünï.PNG"]


def test_folders_never_repeat_and_keep_the_inbox_prefix() -> None:
    settings = Settings(inbox_prefix="in/")
    folders = {submission.new_folder(settings, "submit") for _ in range(100)}
    assert len(folders) == 100
    assert all(folder.startswith("in/submit/") and folder.endswith("/") for folder in folders)


def test_following_ends_when_all_have(db: Database) -> None:
    done, waiting = brought_to(db, None), brought_to(db, Stage.RENDER)
    looks = 0

    def look() -> dict[str, ledger.JobRow]:
        nonlocal looks
        looks += 1
        if looks == 3:
            ledger.cancel(db, waiting)
        from pipeline import inquiry

        return {job_id: job for job_id in (done, waiting, "other") if (job := inquiry.job(db, job_id)) is not None}

    seen = [{key: job.status for key, job in standing.items()} for standing in submission.follow(look, [done, waiting], poll_s=0)]
    assert seen[0] == {done: "done", waiting: "queued"}
    assert seen[-1] == {done: "done", waiting: "cancelled"}
    assert looks == 3


def test_following_gives_up_in_time(db: Database) -> None:
    assert list(submission.follow(dict, ["never"], timeout_s=0, poll_s=0)) == [{}]


# doctor


def test_every_setting_is_described(run: Run) -> None:
    rows = json.loads(run("doctor", "--settings", "--json").stdout)
    assert [row["variable"] for row in rows] == [f"UNMASK_{name.upper()}" for name in Settings.model_fields]
    by_name = {row["variable"]: row for row in rows}
    assert by_name["UNMASK_MAX_ATTEMPTS"]["default"] == "3"
    assert by_name["UNMASK_SWEEP_S"]["what"] == "How often expired leases are swept."
    assert by_name["UNMASK_SECRET_KEY"]["file"]
    assert "UNMASK_SWEEP_S" in run("doctor", "--settings").stdout


def test_doctor_finds_what_is_missing_and_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine where nothing runs
    monkeypatch.setenv("UNMASK_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("UNMASK_S3_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("UNMASK_WEB_PORT", "1")
    # When the doctor comes
    result = run("doctor", "--json")
    # Then what cannot be there is wrong, each with a remedy, and what is here is well
    assert result.exit_code == 1
    found = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert found.keys() == {"settings", *doctor.CHECKS}
    wrong = {name for name, finding in found.items() if not finding["well"]}
    assert wrong == {
        "database",
        "clock",
        "broker",
        "inbox bucket",
        "results bucket",
        "models bucket",
        "upload events",
        "champion model",
        "workers",
        "web process",
        "secret key",
    }
    assert all(found[name]["remedy"].endswith(".") for name in wrong)


def test_a_full_disk_is_found(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "ROOM_BYTES", 1 << 60)
    finding = doctor.check("data directory", doctor.Patient(Settings(data_dir=tmp_path / "data")))
    assert not finding.well
    assert "GB free" in finding.found
    assert "Make room" in finding.remedy


def test_a_clock_that_is_off_is_found(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = doctor.Patient(Settings(database_url=sqlite_url))
    assert doctor.check("clock", patient).well
    monkeypatch.setattr(doctor.time, "time", lambda: 1_000_000_000.0)
    finding = doctor.check("clock", patient)
    assert not finding.well
    assert "NTP" in finding.remedy


# learning


@pytest.mark.parametrize(("command", "missing"), [("train", "fit"), ("export", "export")])
def test_without_the_training_extra_it_is_said_what_to_install(
    run: Run, command: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> None:
        raise ModuleNotFoundError("No module named 'h5py'", name="h5py")

    module = __import__(f"pipeline.training.{missing}", fromlist=["main"])
    monkeypatch.setattr(module, "main", fail)
    assert "needs h5py, which is not installed: pip install 'unmask[train]'." in one_sentence(run(command))


def test_a_command_line_of_training_errs_as_ours_does(run: Run) -> None:
    said = one_sentence(run("export", "--size", "224"))
    assert said == "unmask: The following arguments are required: --weights, --out: `unmask export --help` shows how."
    assert "usage: unmask export" in run("export", "--help").stdout


def test_the_exit_code_of_training_is_passed_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training import fit

    monkeypatch.setattr(fit, "main", lambda arguments: 75)
    assert run("train").exit_code == 75


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """One real and one manipulated picture, as other people keep them."""
    skimage = pytest.importorskip("skimage")
    portrait = skimage.data.astronaut()
    light = portrait.astype(int)
    light[0:230, 120:340] += (-25, 45, 0)
    for place, pixels in (("real", portrait), ("fake/light", light.clip(0, 255).astype(np.uint8))):
        (tmp_path / "faces" / place).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "faces" / place / "1.png")
    return tmp_path / "faces"


def test_evaluate_measures_anybodys_pictures_without_tensorflow(
    run: Run, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in ("tensorflow", "h5py", "matplotlib", "sklearn"):
        monkeypatch.setitem(sys.modules, absent, None)
    folder = write_model(tmp_path / "made")
    result = run("evaluate", "--faces", str(faces), "--model", str(folder), "--no-grid", "--json", str(tmp_path / "out" / "e.json"))
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "out" / "e.json").read_text())
    assert found["sets"]["light"]["auc"] == 1.0
    assert found["model"]["version"] == "1"
    assert LIMITS[0] in result.stdout
    assert "light" in result.stdout


def test_evaluate_says_what_it_measured_and_what_it_passed_over(run: Run, faces: Path, tmp_path: Path) -> None:
    words = ("evaluate", "--model", str(write_model(tmp_path / "made")), "--no-grid", "--faces")
    (faces / "real" / "2.heic").write_bytes(b"a picture of another kind")
    said = " ".join(run(*words, str(faces)).stdout.split())
    assert "Measured on 2 pictures without a split: nothing says that the model was not trained on them." in said
    assert "1 files" not in said
    assert "1 file under real/ and fake/ is of a kind that is not read, and was passed over." in said

    (faces / "m.csv").write_text("path,label,split\nreal/1.png,real,test\nfake/light/1.png,fake,test\n")
    said = run(*words, str(faces / "m.csv")).stdout
    assert "Measured on 2 pictures of the split test." in said
    assert "passed over" not in said

    (faces / "m.csv").write_text("path,label,split\nreal/1.png,real,\nfake/light/1.png,fake,test\n")
    assert "Measured on 2 pictures, 1 of them without a split: nothing says" in run(*words, str(faces / "m.csv")).stdout


class Downloads(MemoryStorage):
    """A store whose objects can be had as files."""

    def download(self, bucket: str, key: str, path: Path, **_: str) -> None:
        path.write_bytes(self.fetch(bucket, key, max_bytes=1_000_000))


def test_evaluate_brings_what_is_in_s3(run: Run, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a manifest in a store, and the pictures that it lists
    store = Downloads()
    store.put("sets", "mine/m.csv", b"path,label,split\nreal/1.png,real,test\nfake/light/1.png,fake,test\n", "text/csv")
    for name in ("real/1.png", "fake/light/1.png"):
        store.put("sets", f"mine/{name}", (faces / name).read_bytes(), "image/png")
    monkeypatch.setattr(learning, "object_store", lambda settings: store)
    words = ("evaluate", "--model", str(write_model(tmp_path / "made")), "--no-grid", "--json", str(tmp_path / "e.json"))
    # When
    result = run(*words, "--faces", "s3://sets/mine/m.csv")
    # Then
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["pictures"], found["sets"]["fake"]["auc"]) == (2, 1.0)
    assert "names no bucket" in one_sentence(run(*words, "--faces", "s3:///m.csv"))


@pytest.mark.parametrize("words", [("--data", "s3://sets/mine"), ("--data=s3://sets/m.csv",), ("--faces", "s3://sets/faces/")])
def test_train_says_who_brings_what_is_in_s3(run: Run, words: tuple[str, ...]) -> None:
    assert "`unmask retrain --dataset s3://…`" in one_sentence(run("train", "--steps", "1", *words))


def test_evaluate_keeps_what_it_found_in_the_photographs(run: Run, astronaut: Pixels, tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    for name, pixels in (("one", astronaut), ("two", astronaut[:, ::-1])):
        Image.fromarray(pixels).save(tmp_path / "people" / f"{name}.png")
    (tmp_path / "people/faces.csv").write_text("path,identity,split\none.png,one,test\ntwo.png,two,test\n")
    words = ("evaluate", "--model", str(write_model(tmp_path / "made", size=64)), "--no-grid", "--per-portrait", "1", "--faces")
    result = run(*words, str(tmp_path / "people"))
    assert result.exit_code == 0, result.stderr
    facts = tmp_path / "data/datasets/facts.npz"
    assert len(np.load(facts).files) == 4
    before = facts.stat().st_mtime_ns
    # the index itself names them as well, and nothing is looked at again
    assert run(*words, str(tmp_path / "people/faces.csv")).stdout == result.stdout
    assert facts.stat().st_mtime_ns == before


def test_evaluate_takes_the_model_that_comes_with_the_product_where_nothing_has_run(
    run: Run, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "STARTER", tmp_path / "starter")
    assert "Nothing has run" in one_sentence(run("evaluate", "--faces", str(faces)))
    write_model(tmp_path / "starter", version="7")
    assert "green 7, f32" in run("evaluate", "--faces", str(faces), "--no-grid").stdout
    assert "green 7, f32" in run("evaluate", "--faces", str(faces), "--no-grid", "--model", "7").stdout
    assert "Nothing has run" in one_sentence(run("evaluate", "--faces", str(faces), "--model", "8"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("drift",), "No day was compared yet"),
        (("models", "shadow"), "Nothing has been in the shadow yet"),
        (("models", "list"), "No model is published yet"),
        (("datasets", "list"), "The default data set is empty"),
    ],
)
def test_where_there_is_nothing_yet_a_sentence_says_so_and_what_to_do(run: Run, db: Database, words: tuple[str, ...], said: str) -> None:
    result = run(*words)

    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert text.startswith(said)
    assert "`unmask " in text
    assert text.endswith(".")
    assert run(*words, "--json").exit_code == 0 or words == ("models", "shadow")
