"""Decoded pictures left for the next stage: there while there is room, gone with the job, and never another picture's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.jobs import Upload
from pipeline.settings import Settings
from workers import scratch

PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def test_what_was_decoded_is_found_again(settings: Settings) -> None:
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)

    found = scratch.pixels(settings, "job", "a" * 64)

    assert found is not None
    assert np.array_equal(found, PICTURE)


@pytest.mark.parametrize(("job_id", "sha256"), [("job", "b" * 64), ("other", "a" * 64), ("job", None)])
def test_nothing_else_is(settings: Settings, job_id: str, sha256: str | None) -> None:
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)

    assert scratch.pixels(settings, job_id, sha256) is None


def test_beyond_its_room_nothing_is_left(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, scratch_pixels_bytes=PICTURE.nbytes + 100)

    scratch.keep_pixels(settings, "first", "a" * 64, PICTURE)
    scratch.keep_pixels(settings, "second", "a" * 64, PICTURE)

    assert scratch.pixels(settings, "first", "a" * 64) is not None
    assert scratch.pixels(settings, "second", "a" * 64) is None


def test_room_is_found_again_when_the_folder_is_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "COUNTED_S", -1.0)
    settings = Settings(data_dir=tmp_path, scratch_pixels_bytes=PICTURE.nbytes + 100)
    scratch.keep_pixels(settings, "first", "a" * 64, PICTURE)
    scratch.drop(settings, "first")

    scratch.keep_pixels(settings, "second", "a" * 64, PICTURE)

    assert scratch.pixels(settings, "second", "a" * 64) is not None


def test_what_others_left_takes_room_too_until_it_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "COUNTED_S", -1.0)
    settings = Settings(data_dir=tmp_path, scratch_pixels_bytes=PICTURE.nbytes + 100)
    left = tmp_path / scratch.PIXELS / "left"
    left.parent.mkdir()
    left.write_bytes(b"x" * 200)
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)
    assert scratch.pixels(settings, "job", "a" * 64) is None

    os.utime(left, (0, 0))
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)

    assert scratch.pixels(settings, "job", "a" * 64) is not None
    assert not left.exists()


def test_sources_are_kept_while_there_is_room_and_then_fetched_each_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    class Store:
        def fetch(self, bucket: str, key: str, **_: object) -> bytes:
            fetched.append(key)
            return b"five!"

    monkeypatch.setattr(scratch, "SOURCES_BYTES", 12)
    monkeypatch.setattr(scratch, "storage", lambda _: Store())

    for job_id in ["first", "second", "third"] * 2:
        assert scratch.source(settings, job_id, Upload("inbox", job_id)) == b"five!"

    assert fetched == ["first", "second", "third", "third"]


def test_it_goes_with_the_job(settings: Settings) -> None:
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)

    scratch.drop(settings, "job")

    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []


def test_it_goes_when_nobody_comes_for_it(settings: Settings) -> None:
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)

    assert scratch.tidy(settings, older_s=-1.0) == 1
    assert scratch.pixels(settings, "job", "a" * 64) is None


@pytest.mark.parametrize("spoilt", [b"", b"not a picture", np.lib.format.MAGIC_PREFIX])
def test_a_spoilt_one_is_none(settings: Settings, spoilt: bytes) -> None:
    scratch.keep_pixels(settings, "job", "a" * 64, PICTURE)
    [kept] = settings.data_dir.rglob("job")
    kept.write_bytes(spoilt + b"a" * 64)

    assert scratch.pixels(settings, "job", "a" * 64) is None
