"""What a training learns from, and what is kept of it, through a real S3 server: whole or not at all, and nothing from outside."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline import collections, holdout
from pipeline.collections import CollectionError, OnDisk
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import Storage
from pipeline.tables.learning import ItemRow
from workers import keeping, material
from workers.keeping import KeepingError
from workers.material import MaterialError

PREFIX = "trainings/trn_1/000001-000001-5/"


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OnDisk:
    """The growing data set, as if somebody had added to it."""
    found = OnDisk("d" * 64, tmp_path / "growing", None)
    monkeypatch.setattr(collections, "default", lambda db, store, settings, *, sha256="": found)
    return found


@pytest.fixture
def nothing(sqlite_url: str) -> Database:
    return Database(sqlite_url)


def put(store: Storage, settings: Settings, **objects: bytes) -> None:
    for key, data in objects.items():
        store.put(settings.inbox_bucket, key.replace("__", "/").replace("_dot_", "."), data, "application/octet-stream")


def checkpoint(folder: Path, step: int, stage: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(folder / ".new.npz", facts=np.array(json.dumps({"stage": stage, "step": step})), weights=np.full(100, step))
    (folder / ".new.npz").replace(folder / "checkpoint.npz")


class TestMaterial:
    def test_a_folder_of_photographs_in_s3_arrives_as_it_is(
        self, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path
    ) -> None:
        put(store, s3_settings, set__faces_dot_csv=b"path,identity,split\na/1.jpg,ann,train\n", set__a__1_dot_jpg=b"one")

        found = material.bring(nothing, store, s3_settings, f"s3://{s3_settings.inbox_bucket}/set", tmp_path / "data")

        assert (found.faces, found.data) == (tmp_path / "data", None)
        assert (tmp_path / "data/a/1.jpg").read_bytes() == b"one"
        assert found.arguments() == ["--faces", str(tmp_path / "data")]

    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_a_manifest_in_s3_brings_what_it_lists(
        self, kind: str, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path, growing: OnDisk
    ) -> None:
        text = {"csv": "path,label\nreal/1.jpg,real\n", "jsonl": '{"path": "real/1.jpg", "label": "real"}\n'}[kind]
        store.put(s3_settings.inbox_bucket, f"set/m.{kind}", text.encode(), "text/plain")
        put(store, s3_settings, set__real__1_dot_jpg=b"one", set__other_dot_jpg=b"not listed")

        found = material.bring(nothing, store, s3_settings, f"s3://{s3_settings.inbox_bucket}/set/m.{kind}", tmp_path / "data")

        assert (found.faces, found.data, found.sha256) == (growing.faces, tmp_path / f"data/m.{kind}", growing.sha256)
        assert sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file()) == ["1.jpg", f"m.{kind}"]

    def test_nothing_named_is_the_growing_one_in_the_state_it_had(
        self, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def default(db: Database, store: Storage, settings: Settings, *, sha256: str = "") -> OnDisk:
            asked.append(sha256)
            return OnDisk("e" * 64, tmp_path, tmp_path / "labels.jsonl")

        monkeypatch.setattr(collections, "default", default)
        found = material.bring(nothing, store, s3_settings, "", tmp_path / "data", sha256="e" * 64)
        assert asked == ["e" * 64]
        assert (found.faces, found.data, found.sha256) == (tmp_path, tmp_path / "labels.jsonl", "e" * 64)

    def test_folders_on_disk_are_taken_where_they_are(
        self, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path, growing: OnDisk
    ) -> None:
        (tmp_path / "faces").mkdir()
        (tmp_path / "faces/faces.csv").write_text("path,identity,split\n")
        (tmp_path / "faces/data.jsonl").write_text("")
        (tmp_path / "others/real").mkdir(parents=True)
        both = material.bring(nothing, store, s3_settings, str(tmp_path / "faces"), tmp_path / "data")
        others = material.bring(nothing, store, s3_settings, str(tmp_path / "others"), tmp_path / "data")
        assert (both.faces, both.data) == (tmp_path / "faces", tmp_path / "faces/data.jsonl")
        assert (others.faces, others.data) == (growing.faces, tmp_path / "others")

    def test_a_manifest_cannot_write_elsewhere(self, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path) -> None:
        for number, path in enumerate(("../../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg")):
            store.put(s3_settings.inbox_bucket, f"{number}/m.csv", f"path,label\n{path},real\n".encode(), "text/plain")
            with pytest.raises(MaterialError, match="lies outside"):
                material.bring(nothing, store, s3_settings, f"s3://{s3_settings.inbox_bucket}/{number}/m.csv", tmp_path / "data")
        assert not list(tmp_path.rglob("evil*"))

    @pytest.mark.parametrize(
        ("dataset", "said"),
        [
            ("s3://{bucket}/empty/", "nothing under"),
            ("s3:///x", "names no bucket"),
            ("s3://{bucket}/broken.csv", "no manifest"),
            ("s3://{bucket}/latin.csv", "latin.csv is not written in UTF-8"),
            ("s3://{bucket}/lists.csv", "lists gone.jpg"),
            ("/no/such/folder", "is not there"),
        ],
    )
    def test_what_is_no_data_set_is_said(
        self, dataset: str, said: str, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path
    ) -> None:
        put(store, s3_settings, broken_dot_csv=b"picture,label\n1.jpg,real\n", lists_dot_csv=b"\xef\xbb\xbfpath,label\ngone.jpg,real\n")
        put(store, s3_settings, latin_dot_csv="path,label\nä.jpg,real\n".encode("cp1252"))
        with pytest.raises(MaterialError, match=said) as found:
            material.bring(nothing, store, s3_settings, dataset.format(bucket=s3_settings.inbox_bucket), tmp_path / "data")
        assert found.value.permanent

    def test_without_anything_to_learn_from_it_says_what_to_do(
        self, store: Storage, s3_settings: Settings, nothing: Database, tmp_path: Path
    ) -> None:
        with pytest.raises(CollectionError, match="datasets add"):
            material.bring(nothing, store, s3_settings, "", tmp_path / "data")


@pytest.fixture
def db(nothing: Database) -> Database:
    """With a hold-out of one picture, b"held out", of ann."""
    item = {"suffix": ".jpg", "fake": False, "manipulation": "", "group": {}, "added_at": 1.0}
    with nothing.write() as session:
        for data, identity, split in ((b"held out", "ann", "test"), (b"learnt", "bob", "train")):
            session.add(ItemRow(collection="default", sha256=hashlib.sha256(data).hexdigest(), identity=identity, split=split, **item))
    return nothing


def photographs(folder: Path, *rows: tuple[str, str, bytes]) -> str:
    """A folder with faces.csv: identity, split and content of each picture."""
    folder.mkdir()
    lines = [f"{number}.jpg,{identity},{split}" for number, (identity, split, _) in enumerate(rows)]
    (folder / "faces.csv").write_text("\n".join(["path,identity,split", *lines]) + "\n")
    for number, (_, _, data) in enumerate(rows):
        (folder / f"{number}.jpg").write_bytes(data)
    return str(folder)


class TestHoldOut:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_folder_with_somebody_of_it_is_refused(
        self, split: str, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path
    ) -> None:
        said = {
            "1 picture of the hold-out, such as 1.jpg,": [("cid", split, b"held out")],
            "1 person of the hold-out, such as ann,": [("ann", split, b"another of her")],
            "2 pictures and 1 person of the hold-out,": [("ann", split, b"held out"), ("dan", split, b"held out")],
        }
        for number, (sentence, rows) in enumerate(said.items()):
            folder = photographs(tmp_path / str(number), ("bob", split, b"learnt"), *rows)
            with pytest.raises(CollectionError, match=sentence) as found:
                material.bring(db, store, s3_settings, folder, tmp_path / "data")
            assert found.value.permanent

    def test_its_own_split_may_have_all_of_it_and_nothing_is_hashed_twice(
        self, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = photographs(tmp_path / "faces", ("ann", "test", b"held out"), ("bob", "train", b"learnt"), ("cid", "val", b"other"))
        hashed: list[str] = []
        sha256 = holdout.sha256

        def counted(path: Path) -> str:
            hashed.append(path.name)
            return sha256(path)

        monkeypatch.setattr(holdout, "sha256", counted)

        for _ in range(2):
            assert material.bring(db, store, s3_settings, folder, tmp_path / "data").faces == Path(folder)
        assert hashed == ["1.jpg", "2.jpg"]

        (tmp_path / "faces/0.jpg").write_bytes(b"moved")
        (tmp_path / "faces/2.jpg").write_bytes(b"held out")
        with pytest.raises(CollectionError, match=r"such as 2\.jpg"):
            material.bring(db, store, s3_settings, folder, tmp_path / "data")
        assert hashed == ["1.jpg", "2.jpg", "2.jpg"]

    def test_two_may_write_down_what_they_hashed_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "1.jpg").write_bytes(b"one")
        together, replace = threading.Barrier(2), Path.replace

        def both(half: Path, place: Path) -> Path:
            together.wait(10)
            return replace(half, place)

        def hashed(_: int) -> None:
            hashes = holdout._Hashes(tmp_path / "hashes.json")
            hashes.of(tmp_path / "1.jpg")
            hashes.keep()

        monkeypatch.setattr(Path, "replace", both)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(hashed, range(2)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jpg", "hashes.json"]

    def test_an_index_without_a_column_is_refused_wherever_it_is_read(
        self, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path
    ) -> None:
        folder = photographs(tmp_path / "faces", ("bob", "train", b"learnt"))
        (tmp_path / "faces/faces.csv").write_text("path,person,split\n0.jpg,bob,train\n")
        with pytest.raises(CollectionError, match="no column identity"):
            material.bring(db, store, s3_settings, folder, tmp_path / "data")
        with pytest.raises(CollectionError, match="no column identity"):
            collections.add(db, store, s3_settings, tmp_path / "faces", actor="cli")

    def test_faceforensics_is_looked_at_at_the_compression_that_is_learnt_from(
        self, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path, growing: OnDisk
    ) -> None:
        for split, pairs in (("train", [["bob", "cid"]]), ("val", []), ("test", [])):
            (tmp_path / "ff/splits").mkdir(parents=True, exist_ok=True)
            (tmp_path / "ff/splits" / f"{split}.json").write_text(json.dumps(pairs))
        clip = tmp_path / "ff/original_sequences/youtube/c40/images/bob"
        clip.mkdir(parents=True)
        (clip / "0000.jpg").write_bytes(b"learnt")

        found = material.bring(db, store, s3_settings, str(tmp_path / "ff"), tmp_path / "data", compression="c40")

        assert found.data == tmp_path / "ff"
        with pytest.raises(CollectionError, match="compression c23"):
            material.bring(db, store, s3_settings, str(tmp_path / "ff"), tmp_path / "data")
        (clip / "0001.jpg").write_bytes(b"held out")
        with pytest.raises(CollectionError, match=r"such as 0001\.jpg"):
            material.bring(db, store, s3_settings, str(tmp_path / "ff"), tmp_path / "data", compression="c40")

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            (["real/1.jpg,real,ben,train", "fake/2.jpg,fake,ben+cid,train"], "1 picture of the hold-out, such as 2.jpg"),
            (["real/1.jpg,real,ben,val", "fake/3.jpg,fake,ben+ann,val"], "1 person of the hold-out, such as ann"),
            (["real/1.jpg,real,ben,train", "fake/2.jpg,fake,ann+cid,test"], ""),
        ],
    )
    def test_a_manifest_in_s3_with_somebody_of_it_is_refused(
        self, rows: list[str], said: str, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path, growing: OnDisk
    ) -> None:
        store.put(s3_settings.inbox_bucket, "set/m.csv", "\n".join(["path,label,identity,split", *rows]).encode(), "text/plain")
        put(store, s3_settings, set__real__1_dot_jpg=b"one", set__fake__2_dot_jpg=b"held out", set__fake__3_dot_jpg=b"three")
        dataset = f"s3://{s3_settings.inbox_bucket}/set/m.csv"
        if not said:
            assert material.bring(db, store, s3_settings, dataset, tmp_path / "data").data == tmp_path / "data/m.csv"
            return
        with pytest.raises(CollectionError, match=said) as found:
            material.bring(db, store, s3_settings, dataset, tmp_path / "data")
        assert found.value.permanent
        assert dataset in str(found.value)

    def test_the_fakes_beside_the_photographs_and_single_frames_count_as_well(
        self, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path
    ) -> None:
        folder = Path(photographs(tmp_path / "faces", ("bob", "train", b"learnt")))
        (folder / "frames").mkdir()
        (folder / "frames/0001.jpg").write_bytes(b"a frame")
        (folder / "frames/0002.jpg").write_bytes(b"held out")
        (folder / "data.jsonl").write_text('{"path": "frames", "label": "fake", "identity": "cid", "split": "train"}\n')
        with pytest.raises(CollectionError, match=r"1 picture of the hold-out, such as 0002\.jpg"):
            material.bring(db, store, s3_settings, str(folder), tmp_path / "data")

    def test_a_picture_that_is_missing_is_said(self, store: Storage, s3_settings: Settings, db: Database, tmp_path: Path) -> None:
        folder = Path(photographs(tmp_path / "faces", ("bob", "train", b"learnt")))
        (folder / "0.jpg").unlink()
        with pytest.raises(CollectionError, match=r"0\.jpg, which does not exist") as found:
            material.bring(db, store, s3_settings, str(folder), tmp_path / "data")
        assert found.value.permanent


class TestKeeping:
    def test_a_checkpoint_comes_back_on_another_machine(self, store: Storage, s3_settings: Settings, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        checkpoint(one, 5)
        (one / "best.h5").write_bytes(b"best")
        held = keeping.snapshot(one)
        assert held is not None
        checkpoint(one, 10)  # the trainer goes on while it is uploaded
        files = keeping.store(store, s3_settings, PREFIX, held.folder, keeping.CHECKPOINT_FILES)

        two.mkdir()
        keeping.restore(store, s3_settings, {"prefix": PREFIX, "files": files}, two)

        assert (held.stage, held.step) == keeping.position(two) == (0, 5)
        assert (two / "best.h5").read_bytes() == b"best"

    def test_what_was_altered_is_refused_and_nothing_changes(self, store: Storage, s3_settings: Settings, tmp_path: Path) -> None:
        checkpoint(tmp_path / "one", 5)
        files = keeping.store(store, s3_settings, PREFIX, tmp_path / "one", keeping.CHECKPOINT_FILES)
        store.put(s3_settings.models_bucket, f"{PREFIX}checkpoint.npz", b"other", "application/octet-stream")
        checkpoint(tmp_path / "two", 3)
        with pytest.raises(KeepingError, match="SHA-256 differs"):
            keeping.restore(store, s3_settings, {"prefix": PREFIX, "files": files}, tmp_path / "two")
        assert keeping.position(tmp_path / "two") == (0, 3)

    def test_a_damaged_checkpoint_is_none(self, tmp_path: Path) -> None:
        checkpoint(tmp_path / "one", 5)
        whole = (tmp_path / "one/checkpoint.npz").read_bytes()
        for part in (b"", b"PK", whole[: len(whole) // 2], b"\0" * 500):
            (tmp_path / "one/checkpoint.npz").write_bytes(part)
            assert keeping.position(tmp_path / "one") is None
            assert keeping.snapshot(tmp_path / "one") is None
        assert keeping.snapshot(tmp_path) is None

    def test_a_worker_presumed_dead_deletes_nothing_of_its_successor(self, store: Storage, s3_settings: Settings, tmp_path: Path) -> None:
        checkpoint(tmp_path / "one", 5)
        prefixes = [f"trainings/trn_1/{fence:06}-{number:06}-5/" for fence, number in ((1, 1), (1, 2), (2, 1))]
        for prefix in prefixes:
            keeping.store(store, s3_settings, prefix, tmp_path / "one", keeping.CHECKPOINT_FILES)

        keeping.forget(store, s3_settings, "trn_1", before=prefixes[1])
        assert [one.key for one in store.listing(s3_settings.models_bucket, "trainings/")] == [
            f"{prefix}checkpoint.npz" for prefix in prefixes[1:]
        ]
        keeping.forget(store, s3_settings, "trn_1")
        assert list(store.listing(s3_settings.models_bucket, "trainings/")) == []
