"""Decoded pictures left for the next stage: there while there is room, gone with the job, and never another picture's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    [kept] = settings.data_dir.rglob("job.*")
    kept.write_bytes(spoilt)

    assert scratch.pixels(settings, "job", "a" * 64) is None
