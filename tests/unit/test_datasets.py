"""Data sets of others: their layouts, who may be in which split, and the crops cut from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import formats
from pipeline.extraction import Detection, crop
from pipeline.jobs import Box
from pipeline.training import crops, datasets, evaluation, feeding, fit
from pipeline.training.datasets import DatasetError, Record
from pipeline.training.figures import CLEAN


def _picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shade)
    cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), (160, 120)))
    return path


def _video(path: Path, frames: int = 50, darkest: int = 0) -> Path:
    """Frame k is all of brightness 4k, and more where the darkest is not black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for k in range(frames):
        writer.write(np.full((48, 64, 3), 4 * k + darkest, np.uint8))
    writer.release()
    return path


def _somebody(pixels: Any) -> list[Detection]:
    return [Detection(Box(40, 30, 60, 60), 0.9), Detection(Box(5, 5, 50, 50), 0.8)]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> crops.Cut:
    """Cutting with a detector that always finds the same two boxes."""
    monkeypatch.setattr(crops, "detector", lambda name, score: _somebody)
    return crops.Cut(size=64, min_blur=0)


def test_folders_name_the_manipulations(tmp_path: Path) -> None:
    for name in ("real/a.jpg", "fake/b.png", "fake/swap/c.jpg", "fake/swap/deep/d.jpg", "real/notes.txt"):
        _picture(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no picture")
    found = {record.path.name: (record.fake, record.manipulation) for record in datasets.load(tmp_path)}
    assert found == {"a.jpg": (False, ""), "b.png": (True, "fake"), "c.jpg": (True, "swap"), "d.jpg": (True, "swap")}


def test_every_kind_of_picture_that_serving_reads_is_learnt_from(tmp_path: Path) -> None:
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats.READ}
    for suffix in suffixes:
        (tmp_path / f"real/a{suffix.upper()}").parent.mkdir(exist_ok=True)
        (tmp_path / f"real/a{suffix.upper()}").write_bytes(b"a picture")
    assert ".gif" in suffixes
    assert {record.path.suffix.lower() for record in datasets.load(tmp_path)} == suffixes


def test_files_of_other_kinds_are_passed_over_and_counted(tmp_path: Path) -> None:
    for name in ("real/a.heic", "fake/swap/b.txt", "fake/.DS_Store", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no picture")
    with pytest.raises(DatasetError, match=r"fake, only 2 files of other kinds\.$"):
        datasets.load(tmp_path)
    _picture(tmp_path / "real/c.png")
    assert len(datasets.load(tmp_path)) == 1
    assert datasets.passed_over(tmp_path) == 2


def test_hidden_files_and_folders_are_no_data(tmp_path: Path, cut: crops.Cut) -> None:
    for name in (
        "real/a.png",
        "real/._a.png",
        "fake/.ipynb_checkpoints/a.png",
        "fake/swap/.b/c.png",
        "real/clip/1.png",
        "real/clip/._1.png",
    ):
        _picture(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in (r.path for r in datasets.load(tmp_path))] == [
        "real/a.png",
        "real/clip/1.png",
    ]
    assert datasets.passed_over(tmp_path) == 0
    assert len(list(crops.pictures(Record(tmp_path / "real/clip", False), cut))) == 1


def test_folders_and_columns_may_be_written_in_any_case(tmp_path: Path) -> None:
    for name in ("Real/a.png", "FAKE/swap/b.png", "FAKE/c.txt"):
        _picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("no picture")
    assert [(r.path.name, r.fake, r.manipulation) for r in datasets.load(tmp_path)] == [("b.png", True, "swap"), ("a.png", False, "")]
    assert datasets.passed_over(tmp_path) == 1
    (tmp_path / "m.csv").write_text("Path,Label, Identity,SPLIT,Age\na.png,Real,anna,Train,30\n")
    assert datasets.load(tmp_path / "m.csv") == [Record(tmp_path / "a.png", False, "anna", "", "train", {"Age": "30"})]
    (tmp_path / "faces.csv").write_text("Path,Identity,Split,Gender\na.png,anna,train,female\n")
    assert datasets.index(tmp_path) == [{"path": "a.png", "identity": "anna", "split": "train", "gender": "female"}]


def test_frames_of_a_clip_stay_in_one_split(tmp_path: Path) -> None:
    # Given clips as folders of frames, real and fake, and pictures by themselves
    for clip in range(12):
        for frame in range(4):
            for side in ("real", "fake/swap"):
                (tmp_path / f"{side}/clip{clip}").mkdir(parents=True, exist_ok=True)
                (tmp_path / f"{side}/clip{clip}/{frame:04}.png").write_bytes(f"frame {frame} of {clip}".encode())
    (tmp_path / "real/alone.png").write_bytes(b"a picture")
    (tmp_path / "fake/swap/alone too.png").write_bytes(b"a picture")
    # When they are split
    found = datasets.in_splits(tmp_path)
    # Then a clip and what was made of it are in one split, and there is more than one
    splits = {clip: {r.split for r in found if r.path.parent.name == clip} for clip in {r.path.parent.name for r in found if r.identity}}
    assert len(splits) == 12
    assert all(len(of_clip) == 1 for of_clip in splits.values())
    assert len(set.union(*splits.values())) > 1
    # and pictures by themselves are of nobody known
    assert {record.path.name for record in found if not record.identity} == {"alone.png", "alone too.png"}


def test_a_fake_of_two_clips_is_in_their_split(tmp_path: Path) -> None:
    # Given FaceForensics++ as frames in plain folders: pairs of reals, and the fakes of one by the other
    for a in range(0, 40, 2):
        for place in (f"real/{a:03}", f"real/{a + 1:03}", f"fake/DF/{a:03}_{a + 1:03}", f"fake/DF/{a + 1:03}_{a:03}"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "0000.png").write_bytes(place.encode())
    # When they are split
    found = datasets.in_splits(tmp_path)
    # Then whoever is in a fake is in no other split
    assert {record.split for record in found} == set(datasets.SPLITS)
    splits = {record.path.parent.name: record.split for record in found}
    assert all(splits[name] == splits[name[:3]] == splits[name[4:]] for name in splits if "_" in name)
    assert {r.identity for r in found if r.path.parent.name == "000_001"} == {f"{tmp_path.name}/000+{tmp_path.name}/001"}


def test_a_fake_video_is_in_the_split_of_the_videos_it_is_named_after(tmp_path: Path) -> None:
    for name in ("real/000.mp4", "real/003.mp4", "real/holiday_1.mp4", "fake/DF/000_003.mp4", "fake/FS/003.avi", "fake/DF/alone_1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = {record.path.name: record.people for record in datasets.load(tmp_path)}
    first, second = (f"{tmp_path.name}/{name}" for name in ("000", "003"))
    assert (found["000.mp4"], found["003.mp4"], found["003.avi"]) == ({first}, {second}, {second})
    assert found["000_003.mp4"] == {first, second}
    assert not found["holiday_1.mp4"] | found["alone_1.mp4"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a.png,real,anna,train\nb.png,fake,,test\n", "cannot be checked"),
        ("a.png,real,anna,\nb.png,fake,,\n", "may be in two splits"),
        ("a.png,real,anna,train\nb.png,fake,ben,test\n", ""),
    ],
)
def test_where_nobody_says_who_is_seen_that_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str, said: str) -> None:
    (tmp_path / "m.csv").write_text(f"path,label,identity,split\n{rows}")
    for _ in range(2):
        datasets.in_splits(tmp_path / "m.csv")
    assert len(caplog.messages) == bool(said)
    assert said in caplog.text


def test_people_in_plain_folders_are_guessed_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _picture(tmp_path / "real/a.png")
    datasets.in_splits(tmp_path)
    assert "guessed from names" in caplog.text


def test_one_or_two_sub_folders_are_collections_of_pictures_by_themselves(tmp_path: Path) -> None:
    for place in ("real/one", "real/other", "fake/swap"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(20):
            (tmp_path / f"{place}/{number:05}.jpg").write_bytes(f"picture {number}".encode())
    assert {record.identity for record in datasets.load(tmp_path)} == {""}
    assert {record.split for record in datasets.in_splits(tmp_path) if record.path.parent.name == "one"} == {"train", "val", "test"}


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no data set"):
        datasets.load(tmp_path)
    (tmp_path / "real").mkdir()
    with pytest.raises(DatasetError, match="no pictures"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_manifests_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    records = [
        Record(tmp_path / "x/ä,1.jpg", False, "anna", "", "train", {"gender": "female"}, "aa"),
        Record(tmp_path / "y.jpg", True, "ben+carl", "swap", "test", {}, "bb"),
    ]
    datasets.write(records, tmp_path / f"manifest{suffix}")
    assert datasets.load(tmp_path / f"manifest{suffix}") == records


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\na.jpg,maybe\n", "Line 2"),
        ("path,label,split\na.jpg,real,training\n", "train, val and test"),
        ("label\nreal\n", "Line 2"),
    ],
)
def test_a_wrong_manifest_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        datasets.parse(text, tmp_path)


def test_a_manifest_may_come_out_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path,label,identity\r\nä.jpg,real,jörg\r\n".encode("utf-8-sig"))
    assert datasets.load(tmp_path / "m.csv") == [Record(tmp_path / "ä.jpg", False, "jörg")]
    (tmp_path / "m.csv").write_bytes("path,label\nä.jpg,real\n".encode("cp1252"))
    with pytest.raises(DatasetError, match=r"m\.csv is not written in UTF-8"):
        datasets.load(tmp_path / "m.csv")


@pytest.mark.parametrize("line", ["[1]", "7", '"a.jpg"', "null"])
def test_a_json_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DatasetError, match="Line 3 of the manifest is no JSON object"):
        datasets.parse(f'{{"path": "a.jpg", "label": "real"}}\n\n{line}\n', tmp_path, lines=True)


def test_broken_json_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        datasets.parse('{"path": "a.jpg", "label"', tmp_path, lines=True)


@pytest.fixture
def faceforensics(tmp_path: Path) -> Path:
    """A tiny tree: 000 and 001 train, 002 and 003 test; FaceSwap as videos, NeuralTextures as folders of frames."""
    for split, pairs in (("train", [["000", "001"]]), ("val", []), ("test", [["002", "003"]])):
        (tmp_path / "splits").mkdir(exist_ok=True)
        (tmp_path / "splits" / f"{split}.json").write_text(json.dumps(pairs))
    for name in ("000", "001", "002", "003"):
        _video(tmp_path / f"original_sequences/youtube/c23/videos/{name}.mp4", 3, 60 * int(name))
    for name in ("000_001", "001_000", "002_003", "003_002"):
        _video(tmp_path / f"manipulated_sequences/FaceSwap/c23/videos/{name}.mp4", 3, 60 * int(name[:3]) + 30)
    for k in range(4):
        _picture(tmp_path / f"manipulated_sequences/NeuralTextures/c23/images/000_001/{k:04}.png", k)
    return tmp_path


def test_faceforensics_gives_each_pair_its_reals_and_fakes(faceforensics: Path) -> None:
    records = datasets.load(faceforensics)
    train = {(r.path.stem, r.manipulation, r.identity) for r in records if r.split == "train"}
    assert train == {
        ("000", "", "000"),
        ("001", "", "001"),
        ("000_001", "FaceSwap", "000+001"),
        ("001_000", "FaceSwap", "001+000"),
        ("000_001", "NeuralTextures", "000+001"),
    }
    assert sum(record.split == "test" for record in records) == 4


def test_what_is_not_taken_of_faceforensics_is_said_once(faceforensics: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets.load(faceforensics)
    assert not caplog.messages
    for place in ("original_sequences/actors/c23/videos/01__exit", "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__exit"):
        _video(faceforensics / f"{place}.mp4", 3)
    for _ in range(2):
        assert len(datasets.load(faceforensics)) == 9
    (said,) = caplog.messages
    assert "manipulated_sequences/DeepFakeDetection, original_sequences/actors: left out" in said


def test_faceforensics_at_another_compression_is_not_there(faceforensics: Path) -> None:
    with pytest.raises(DatasetError, match="compression c40"):
        datasets.load(faceforensics, compression="c40")


def test_faceforensics_is_taken_at_the_compression_that_is_asked_for(faceforensics: Path) -> None:
    for place in [*faceforensics.glob("*_sequences/*/c23")]:
        place.rename(place.with_name("c40"))
    records = datasets.load(faceforensics, compression="c40")
    assert len(records) == 9
    assert all("c40" in record.path.parts for record in records)
    assert datasets.in_splits(faceforensics, compression="c40") == records
    learnt = feeding.training_records(faceforensics, compression="c40")
    assert [record.path for record in learnt] == [record.path for record in records if record.split == "train"]
    with pytest.raises(DatasetError, match="compression c23"):
        datasets.in_splits(faceforensics)


def test_a_training_takes_faceforensics_at_the_compression_that_it_is_told(
    faceforensics: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Given videos without any faces in them, at c40 alone
    for place in [*faceforensics.glob("*_sequences/*/c23")]:
        place.rename(place.with_name("c40"))
    words = ["--faces", str(people), "--data", str(faceforensics), "--out", str(tmp_path / "out"), "--steps", "1"]
    # Then at c23 there is nothing to learn from, and at c40 it gets as far as looking for faces
    assert fit.main(words) == 2
    assert "compression c23" in capsys.readouterr().err
    assert fit.main([*words, "--compression=c40"]) == 2
    assert "with detectable faces" in capsys.readouterr().err


def test_an_identity_in_two_splits_is_an_error(tmp_path: Path) -> None:
    records = [Record(tmp_path / "a", False, "anna", split="train"), Record(tmp_path / "b", True, "ben+anna", "swap", "test")]
    with pytest.raises(DatasetError, match="identity anna"):
        datasets.must_be_disjoint(records)


def test_the_same_file_in_two_splits_is_an_error(tmp_path: Path) -> None:
    first, second = _picture(tmp_path / "a.png"), tmp_path / "b.png"
    second.write_bytes(first.read_bytes())
    with pytest.raises(DatasetError, match="the file"):
        datasets.hashed([Record(first, False, "anna", split="train"), Record(second, False, "ben", split="val")])


def test_a_picture_of_the_test_split_is_not_learnt_from_under_another_name(tmp_path: Path) -> None:
    # Given two people of one split each, one of whom is shown by the other's very picture
    for name, content in (("a.png", b"a face"), ("b.png", b"a face"), ("c.png", b"a 2nd!"), ("d.png", b"another face")):
        (tmp_path / name).write_bytes(content)
    rows = "path,label,identity,split\na.png,real,anna,train\nc.png,fake,anna,train\nd.png,real,ben,test\n"
    (tmp_path / "m.csv").write_text(rows)
    assert len(feeding.training_records(tmp_path / "m.csv")) == 2
    (tmp_path / "m.csv").write_text(rows + "b.png,real,ben,test\n")
    # Then neither a training nor a measurement takes them, though each looks at one split alone
    for take in (feeding.training_records, datasets.load):
        with pytest.raises(DatasetError, match=r"the file .*b\.png of the split test is .*a\.png of the split train again"):
            take(tmp_path / "m.csv")


def test_a_file_repeated_under_another_name_is_not_shared_out_to_two_splits(tmp_path: Path) -> None:
    for k in range(20):
        (tmp_path / "real").mkdir(exist_ok=True)
        (tmp_path / f"real/{k}.png").write_bytes(b"the same face")
    with pytest.raises(DatasetError, match="again"):
        feeding.training_records(tmp_path)


def test_the_same_folder_of_frames_in_two_splits_is_an_error(tmp_path: Path) -> None:
    for clip in ("one", "other"):
        (tmp_path / clip).mkdir()
        for frame in range(3):
            (tmp_path / clip / f"{frame}.png").write_bytes(f"frame {frame}".encode())
    (tmp_path / "m.csv").write_text("path,label,split\none,real,train\nother,real,val\n")
    with pytest.raises(DatasetError, match=r"other of the split val is .*one of the split train"):
        datasets.in_splits(tmp_path / "m.csv")


def test_an_index_may_not_have_a_photograph_in_two_splits(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a face")
    (tmp_path / "b.png").write_bytes(b"a face")
    rows = "path,identity,split\na.png,anna,train\n"
    (tmp_path / "faces.csv").write_text(f"{rows}b.png,anna,train\n")
    assert len(datasets.index(tmp_path)) == 2
    (tmp_path / "faces.csv").write_text(f"{rows}b.png,ben,test\n")
    with pytest.raises(DatasetError, match=r"b\.png of the split test"):
        datasets.index(tmp_path)


def test_only_files_as_large_as_one_of_another_split_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "bb", "ccc", "ddd"):
        (tmp_path / name).write_bytes(name.encode())
    splits = {"a": "train", "bb": "test", "ccc": "train", "ddd": "val", "gone": "test"}
    read: list[str] = []
    monkeypatch.setattr(datasets.listing, "digest", lambda path: read.append(path.name) or path.name)
    datasets.must_not_repeat(Record(tmp_path / name, False, split=split) for name, split in splits.items())
    assert read == ["ccc", "ddd"]


def test_splitting_keeps_people_who_are_seen_together_together() -> None:
    records = [Record(Path(f"{k}.jpg"), True, f"p{k}+p{k + 1}" if k % 3 else f"p{k}") for k in range(300)]
    found = datasets.split_by_identity(records, seed=3)
    shares = [sum(record.split == split for record in found) / 300 for split in datasets.SPLITS]
    assert shares[0] == pytest.approx(0.7, abs=0.12)
    # and the order of the records changes nothing
    assert sorted(map(str, datasets.split_by_identity(records[::-1], seed=3))) == sorted(map(str, found))


def test_the_content_hash_follows_contents_and_not_places(tmp_path: Path) -> None:
    one = datasets.hashed([Record(_picture(tmp_path / "a/x.png"), False, "anna")])
    moved = datasets.hashed([Record(_picture(tmp_path / "b/y.png"), False, "anna")])
    assert datasets.content_hash(one) == datasets.content_hash(moved)
    assert datasets.content_hash([replace(one[0], fake=True)]) != datasets.content_hash(one)


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="differs"):
        datasets.hashed([Record(_picture(tmp_path / "a.png"), False, sha256="0" * 64)])


def test_frames_are_spread_over_the_whole_video(tmp_path: Path) -> None:
    shades = [frame.mean() / 4 for frame in crops.video_frames(_video(tmp_path / "v.avi"), 5)]
    np.testing.assert_allclose(shades, [5, 15, 25, 35, 45], atol=1)


def test_a_short_video_gives_all_its_frames(tmp_path: Path) -> None:
    assert len(list(crops.video_frames(_video(tmp_path / "v.avi", 7)))) == 7


def test_what_is_no_video_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.mp4").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read"):
        list(crops.video_frames(tmp_path / "v.mp4"))


def test_training_cuts_the_very_bytes_that_serving_cuts(tmp_path: Path, cut: crops.Cut) -> None:
    # Given a picture
    path = _picture(tmp_path / "real/a.png")
    records = datasets.hashed(datasets.load(tmp_path))
    # When training takes its crops
    found = crops.cached(records, tmp_path / "cache", cut)
    # Then the largest face is the one serving cuts
    pixels = cv2.imread(str(path))[..., ::-1]
    np.testing.assert_array_equal(found[0], crop(pixels, Box(40, 30, 60, 60), size=64, margin=cut.margin))
    assert len(found) == 1


def test_a_cache_is_read_without_looking_again_and_mended_where_it_broke_off(
    tmp_path: Path, cut: crops.Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a data set of more than one shard, one of its files damaged
    for k in range(40):
        _picture(tmp_path / f"real/{k:02}.png", k)
    (tmp_path / "real/05.png").write_bytes(b"broken")
    records = datasets.hashed(datasets.load(tmp_path))
    first = crops.cached(records, tmp_path / "cache", cut)
    assert first.failed == {"refused": 1}
    assert first.record.tolist() == [k for k in range(40) if k != 5]
    # When one shard is lost, only its records are looked at again
    seen: list[Path] = []
    original = crops.pictures
    monkeypatch.setattr(crops, "pictures", lambda record, *a, **k: seen.append(record.path) or original(record, *a, **k))
    next((tmp_path / "cache").rglob("00001.json")).unlink()
    second = crops.cached(records, tmp_path / "cache", cut)
    assert len(seen) == 8
    assert all(np.array_equal(first[k], second[k]) for k in range(39))
    # and another crop size is another cache
    assert crops.cached(records, tmp_path / "cache", replace(cut, size=32))[0].shape == (32, 32, 3)


def test_pictures_without_a_judgeable_face_are_counted(tmp_path: Path, cut: crops.Cut) -> None:
    _picture(tmp_path / "real/a.png")
    records = datasets.hashed(datasets.load(tmp_path))
    assert crops.cached(records, tmp_path / "cache", replace(cut, min_face_px=100)).failed == {"face_too_small": 1}


def test_a_damaged_frame_costs_only_itself(tmp_path: Path, cut: crops.Cut) -> None:
    # Given a clip of ten frames, of which one is damaged, and one without any frame
    for k in range(10):
        _picture(tmp_path / f"clip/{k}.png", k)
    (tmp_path / "clip/2.png").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    # Then training has the nine others, and measuring has them too and counts the tenth
    found, why = crops.cut_record(clip := Record(tmp_path / "clip", True, "anna", "swap"), cut, cut.find())
    assert (len(found), why) == (9, "")
    assert crops.cut_record(Record(tmp_path / "empty", False), cut, cut.find()) == ([], "refused")
    records = [clip, Record(tmp_path / "empty", False, "ben")]
    measured = evaluation.found_sets(lambda faces: np.zeros(len(list(faces))), records, cut, [CLEAN])["swap"][CLEAN]  # type: ignore[arg-type,return-value]
    assert (len(measured.scores), measured.failed) == (9, {"refused": 2})


def test_many_shards_are_found_without_holding_all_of_them_open(tmp_path: Path, cut: crops.Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a data set of more shards than are held open, one of them without a crop
    monkeypatch.setattr(crops, "SHARD", 1)
    for k in range(2 * crops.OPEN):
        _picture(tmp_path / f"real/{k:03}.png", k)
    (tmp_path / "real/005.png").write_bytes(b"broken")
    records = datasets.hashed(datasets.load(tmp_path))
    before = sum(1 for _ in Path("/dev/fd").iterdir())
    # When all crops are taken
    found = crops.cached(records, tmp_path / "cache", cut)
    taken = [found[k] for k in range(len(found))]
    # Then each is its record's
    assert sum(1 for _ in Path("/dev/fd").iterdir()) - before <= crops.OPEN
    for record, pixels in zip(found.record, taken, strict=True):
        np.testing.assert_array_equal(pixels, crops.cut_record(records[record], cut, _somebody)[0][0])
    for number in (-1, len(found)):
        with pytest.raises(IndexError):
            found[number]


def test_crops_are_cut_again_by_another_version(tmp_path: Path, cut: crops.Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    _picture(tmp_path / "real/a.png")
    records = datasets.hashed(datasets.load(tmp_path))
    first = crops.cached(records, tmp_path / "cache", cut)
    assert crops.cached(records, tmp_path / "cache", cut).shards == first.shards
    monkeypatch.setattr(cv2, "__version__", "another")
    second = crops.cached(records, tmp_path / "cache", cut)
    monkeypatch.setattr(crops, "_version", lambda name: "another")
    assert len({first.shards, second.shards, crops.cached(records, tmp_path / "cache", cut).shards}) == 3
