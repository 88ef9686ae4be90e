"""Labels on faces: who settles what, what the audit keeps, and what joins the data set."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from pipeline import audit, collections, feedback
from pipeline.access import Principal, Role
from pipeline.database import Database, FaceRow, JobRow
from pipeline.feedback import FeedbackError, outcome
from pipeline.settings import Settings
from pipeline.storage import StorageError
from pipeline.tables.access import AuditRow
from pipeline.tables.learning import FaceLabelRow, ItemRow
from tests.fixtures.jobs import brought_to
from tests.fixtures.people import few
from tests.fixtures.web import Shelf, Web, jpeg

ANNA, BEN, CARA = (Principal(f"user:{name}", Role.VIEWER) for name in ("anna", "ben", "cara"))
REVA, ROY = Principal("user:reva", Role.REVIEWER), Principal("user:roy", Role.OPERATOR)


@pytest.mark.parametrize(
    ("said", "comes_to"),
    [
        ([], ("", None)),
        ([("authentic", False)], ("pending", None)),
        ([("authentic", False), ("authentic", False)], ("accepted", "authentic")),
        ([("authentic", False), ("manipulated", False)], ("disputed", None)),
        ([("authentic", False), ("authentic", False), ("manipulated", False)], ("disputed", None)),
        ([("manipulated", True)], ("accepted", "manipulated")),
        ([("manipulated", True), ("authentic", False), ("authentic", False)], ("accepted", "manipulated")),
        ([("manipulated", True), ("authentic", True)], ("disputed", None)),
    ],
)
def test_what_labels_come_to(said: list[tuple[str, bool]], comes_to: tuple[str, str | None]) -> None:
    assert outcome(said) == comes_to


def test_two_agree_one_disagrees_and_changes_their_mind_and_the_audit_has_it_all(db: Database) -> None:
    job = brought_to(db, None)

    states = [feedback.label(db, who, job, 0, word).state for who, word in ((ANNA, "authentic"), (ANNA, "authentic"), (BEN, "authentic"))]
    assert states == ["pending", "pending", "accepted"], "saying it twice is not two people"
    assert feedback.label(db, CARA, job, 0, "manipulated").state == "disputed"
    assert feedback.label(db, CARA, job, 0, "authentic").label == "authentic"
    assert feedback.withdraw(db, CARA, job, 0).state == "accepted"
    assert feedback.label(db, REVA, job, 0, "manipulated").label == "manipulated", "a reviewer goes before the others"
    assert feedback.label(db, ROY, job, 0, "authentic").state == "disputed"

    with db.read() as session:
        rows = session.execute(select(AuditRow.actor, AuditRow.action, AuditRow.detail).order_by(AuditRow.id)).all()
        assert session.get_one(FaceLabelRow, (job, 0)).state == "disputed"
    assert [row.actor.removeprefix("user:") for row in rows] == ["anna", "anna", "ben", "cara", "cara", "cara", "reva", "roy"]
    assert rows[4].detail["before"] == "manipulated"
    assert rows[5].action == "face.unlabel"


@pytest.mark.parametrize(("face", "word"), [(0, "fake"), (7, "authentic")])
def test_what_cannot_be_labelled(db: Database, face: int, word: str) -> None:
    job = brought_to(db, None)

    with pytest.raises(FeedbackError):
        feedback.label(db, ANNA, job, face, word)


def test_the_api_and_the_page_take_labels(web: Web) -> None:
    job = brought_to(web.db, None)
    client = web.client

    answer = client.post(f"/v1/jobs/{job}/faces/0/label", json={"label": "authentic", "note": "I was there"})
    assert (answer.status_code, answer.json["state"], answer.json["said"][0]["note"]) == (200, "accepted", "I was there")
    assert client.post(f"/v1/jobs/{job}/faces/0/label", json={"label": "odd"}).status_code == 422
    assert client.post(f"/v1/jobs/{job}/faces/9/label", json={"label": "authentic"}).status_code == 404
    token = web.csrf(client, f"/jobs/{job}")
    assert client.post(f"/jobs/{job}/faces/0/label", data={"csrf": token, "label": "manipulated"}).status_code == 303
    assert "Accepted: manipulated" in client.get(f"/jobs/{job}").get_data(as_text=True)
    assert client.delete(f"/v1/jobs/{job}/faces/0/label").json["state"] == ""


def labelled(db: Database, store: Shelf, photograph: Path) -> str:
    """A done job of a photograph whose one face was judged."""
    job = brought_to(db, None)
    store.put("inbox", photograph.name, photograph.read_bytes(), "image/jpeg")
    with db.write() as session:
        etag = store.head("inbox", photograph.name).etag
        session.execute(update(JobRow).where(JobRow.id == job).values(key=photograph.name, etag=etag, bucket="inbox"))
        session.execute(update(FaceRow).where(FaceRow.job_id == job).values(x=300, y=250, w=300, h=300))
    return job


def test_accepted_faces_join_the_data_set_and_leave_it_but_never_the_hold_out(db: Database, tmp_path: Path, faces_folder: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    some = few(faces_folder, tmp_path / "faces", {"train": 2, "val": 1, "test": 2})
    assert collections.add(db, store, settings, some, actor="cli") == {"train": 2, "val": 1, "test": 2}
    assert collections.add(db, store, settings, some, actor="cli") == {}, "the same again changes nothing"
    before = collections.default(db, store, settings)

    held_out = some / (some / "held-out").read_text().splitlines()[0]
    fresh, lost = sorted((faces_folder / "london" / "smiling").glob("*.jpg"))[:2]
    job, known, gone = (labelled(db, store, path) for path in (fresh, held_out, lost))
    store.objects.pop(("inbox", lost.name))
    for one in (job, known, gone):
        feedback.label(db, REVA, one, 0, "manipulated")
    after = collections.default(db, store, settings)

    lines = [json.loads(line) for line in store.objects[settings.models_bucket, f"datasets/default/{after.sha256}.jsonl"][0].splitlines()]
    (joined,) = (line for line in lines if line["labelled"])
    assert (joined["label"], joined["split"] in ("train", "val")) == ("fake", True)
    assert before.sha256 != after.sha256
    assert collections.default(db, store, settings, sha256=before.sha256) == before, "what was used once can be had again"
    assert (after.faces / "faces.csv").read_text() == (before.faces / "faces.csv").read_text(), "fakes are no portraits"
    assert "hold-out" in str(feedback.standings(db, known)[0].problem)
    assert feedback.standings(db, gone)[0].problem

    feedback.label(db, ROY, job, 0, "authentic")
    assert collections.default(db, store, settings).sha256 == before.sha256, "what is disputed is taken out again"
    with db.read() as session:
        assert session.scalars(select(ItemRow).where(ItemRow.job_id.is_not(None))).all() == []


def test_nobody_crosses_from_the_hold_out_into_training(db: Database, tmp_path: Path, faces_folder: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    some = few(faces_folder, tmp_path / "faces", {"train": 1, "test": 1})
    collections.add(db, store, settings, some, actor="cli")
    text = (some / "faces.csv").read_text()
    (some / "faces.csv").write_text(text.replace(",test,", ",train,"))

    with pytest.raises(collections.CollectionError, match="is in the split test"):
        collections.add(db, store, settings, some, actor="cli")


def test_two_who_label_a_face_at_the_same_moment_hear_each_other(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job, both, note = brought_to(db, None), threading.Barrier(2), audit.note

    def meet(*words: object, **detail: object) -> None:
        with suppress(threading.BrokenBarrierError):  # where the second waits for the first, nobody meets here
            both.wait(1.0)
        note(*words, **detail)  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "note", meet)
    said = [threading.Thread(target=feedback.label, args=(db, who, job, 0, "authentic")) for who in (ANNA, BEN)]
    for one in said:
        one.start()
    for one in said:
        one.join()

    with db.read() as session:
        row = session.get_one(FaceLabelRow, (job, 0))
    assert (row.state, row.label) == ("accepted", "authentic")


def test_a_picture_that_nobody_may_read_holds_up_no_training(db: Database, tmp_path: Path, faces_folder: Path) -> None:
    settings, photograph = Settings(data_dir=tmp_path / "data"), next((faces_folder / "london" / "smiling").glob("*.jpg"))

    class Shut(Shelf):
        def fetch(self, bucket: str, key: str, **how: Any) -> bytes:
            if bucket == "inbox":
                raise StorageError("The bucket inbox may not be read.", permanent=True)
            return super().fetch(bucket, key, **how)

    store = Shut()
    collections.add(db, store, settings, few(faces_folder, tmp_path / "faces", {"train": 1}), actor="cli")
    job = labelled(db, store, photograph)
    feedback.label(db, REVA, job, 0, "manipulated")

    assert collections.default(db, store, settings).sha256
    assert feedback.standings(db, job)[0].problem == "The bucket inbox may not be read."


def test_a_picture_that_was_learnt_from_cannot_join_the_hold_out(db: Database, tmp_path: Path, faces_folder: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    some = few(faces_folder, tmp_path / "faces", {"train": 1, "test": 1})
    job = labelled(db, store, some / (some / "held-out").read_text().splitlines()[0])
    feedback.label(db, REVA, job, 0, "manipulated")
    assert collections.collect(db, store, settings) == 1

    with pytest.raises(collections.CollectionError, match="this very picture"):
        collections.add(db, store, settings, some, actor="cli")


def test_a_face_collected_while_its_picture_is_held_out_crosses_nothing(db: Database, tmp_path: Path, faces_folder: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    some = few(faces_folder, tmp_path / "faces", {"test": 1})
    job = labelled(db, store, some / (some / "held-out").read_text().splitlines()[0])
    feedback.label(db, REVA, job, 0, "authentic")

    collected = []

    def watch(records: Any) -> Any:
        for record in records:
            yield record
            collected.append(collections.collect(db, store, settings))

    with pytest.raises(collections.CollectionError, match="cannot join the hold-out"):
        collections.add(db, store, settings, some, actor="cli", watch=watch)

    assert collected == [1, 0], "while it is looked at, and while it is stored"
    with db.read() as session:
        assert [item.split for item in session.scalars(select(ItemRow))] in (["train"], ["val"])


def listed(folder: Path, **rows: int) -> Path:
    """A manifest of so many small pictures of people of their own: `fake_val=2` is two fakes of the split val."""
    folder.mkdir()
    lines = ["path,label,identity,split"]
    for kind, number in rows.items():
        label, split = kind.split("_")
        for k in range(number):
            (folder / f"{kind}-{k}.jpg").write_bytes(jpeg(seed=len(lines)))
            lines.append(f"{kind}-{k}.jpg,{label},{kind}-{k},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


@pytest.mark.parametrize(
    ("added", "labelled", "shown"),
    [
        (
            {"real_train": 20, "real_val": 2, "real_test": 3, "fake_train": 20, "fake_val": 1},
            {},
            {"real train": 20, "real val": 2, "fake train": 20, "fake val": 1},
        ),
        ({"real_train": 5, "fake_train": 20}, {"real": 15}, {"real train": 20, "fake train": 20}),
        ({"real_train": 5, "fake_train": 20}, {"real": 14}, {}),
        ({"real_train": 1, "real_test": 20, "fake_train": 20}, {}, {}),
        ({"real_train": 30, "real_val": 2}, {"real": 20, "fake": 20}, {"real train": 20, "fake train": 20}),
        ({"real_train": 30, "fake_val": 2}, {"real": 20, "fake": 20}, {"real train": 20, "fake train": 20, "fake val": 2}),
    ],
)
def test_fakes_that_were_added_are_shown_beside_the_reals_that_were(
    db: Database, tmp_path: Path, added: dict[str, int], labelled: dict[str, int], shown: dict[str, int]
) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    collections.add(db, store, settings, listed(tmp_path / "more", **added), actor="cli")
    with db.write() as session:
        for face, label in enumerate([label for label, number in labelled.items() for _ in range(number)]):
            item = {"collection": "default", "suffix": ".jpg", "manipulation": "", "split": "train", "group": {}, "added_at": 1.0}
            sha256 = collections.keep(store, settings, jpeg(seed=1000 + face), ".jpg")
            session.add(ItemRow(sha256=sha256, fake=label == "fake", identity=f"upload-{face}", job_id="job_1", face=face, **item))

    found = collections.default(db, store, settings)

    lines = [] if found.data is None else [json.loads(line) for line in found.data.read_text().splitlines()]
    assert Counter(f"{line['label']} {line['split']}" for line in lines) == shown


@pytest.mark.parametrize(
    ("data", "why"), [(jpeg(400, 400)[:3000], "The JPEG file ends too early"), (b"no picture", "not a picture in a known format")]
)
def test_what_cannot_be_decoded_is_named_and_nothing_of_its_folder_is_added(db: Database, tmp_path: Path, data: bytes, why: str) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    path = listed(tmp_path / "more", real_train=3, real_test=1)
    (tmp_path / "more/real_test-0.jpg").write_bytes(data)

    with pytest.raises(collections.CollectionError, match=rf"real_test-0\.jpg cannot be used: .*{why}"):
        collections.add(db, store, settings, path, actor="cli")

    with db.read() as session:
        assert session.scalars(select(ItemRow)).all() == []
    assert not store.objects


def test_several_bring_the_same_picture_at_once(tmp_path: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    data = bytes(range(256)) * 4000
    sha256 = collections.keep(store, settings, data, ".png")
    together = threading.Barrier(8)

    class Slow(Shelf):
        """Everybody has the bytes at the same moment."""

        def fetch(self, *given: Any, **how: Any) -> bytes:
            fetched = store.fetch(*given, **how)
            together.wait(10)
            return fetched

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: collections.picture(Slow(), settings, sha256, ".png").read_bytes(), range(8)))

    assert all(one == data for one in found)
    assert [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()] == [f"{sha256}.png"]


@pytest.mark.parametrize("damaged", [b"", b"half", b"other picture"])
def test_a_picture_that_was_damaged_here_is_brought_anew(damaged: bytes, tmp_path: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    sha256 = collections.keep(store, settings, b"whole picture", ".png")
    path = collections.picture(store, settings, sha256, ".png")
    path.write_bytes(damaged)

    assert collections.picture(store, settings, sha256, ".png").read_bytes() == b"whole picture"

    store.away = StorageError("The store is away.")
    assert collections.picture(store, settings, sha256, ".png") == path, "what is whole is not brought again"
