"""The vocabulary: which states are over, which verdict is worst, ids in order of time."""

from __future__ import annotations

import itertools
import re
import time
import uuid

import pytest

from pipeline.jobs import STAGES, Reason, Stage, Status, Upload, Verdict, nearest, new_id, worst
from webhooks.dashboard import words as dashboard
from workers import console


def test_only_queued_and_running_jobs_are_not_over() -> None:
    assert [status for status in Status if not status.terminal] == [Status.QUEUED, Status.RUNNING]


def test_stages_come_in_the_order_of_the_chain() -> None:
    assert STAGES == (Stage.EXTRACT, Stage.CLASSIFY, Stage.RENDER)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], Verdict.NOT_APPLICABLE),
        ([Verdict.NOT_APPLICABLE], Verdict.NOT_APPLICABLE),
        ([Verdict.NOT_APPLICABLE, Verdict.AUTHENTIC], Verdict.AUTHENTIC),
        ([Verdict.AUTHENTIC, Verdict.UNCERTAIN, Verdict.NOT_APPLICABLE], Verdict.UNCERTAIN),
        ([Verdict.UNCERTAIN, Verdict.MANIPULATED, Verdict.AUTHENTIC], Verdict.MANIPULATED),
    ],
)
def test_the_image_has_its_worst_faces_verdict_in_whatever_order(verdicts: list[Verdict], expected: Verdict) -> None:
    for order in itertools.permutations(verdicts):
        assert worst(list(order)) is expected


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([], Reason.NO_FACE),
        ([None], Reason.NO_FACE),
        ([Reason.FACE_TOO_SMALL], Reason.FACE_TOO_SMALL),
        ([Reason.FACE_TOO_SMALL, Reason.BLURRED], Reason.BLURRED),
        ([Reason.BLURRED, Reason.COMPRESSED, None], Reason.COMPRESSED),
    ],
)
def test_the_image_has_the_reason_of_the_face_that_came_nearest_in_whatever_order(reasons: list[Reason | None], expected: Reason) -> None:
    for order in itertools.permutations(reasons):
        assert nearest(order) is expected


@pytest.mark.parametrize("words", [console.REASONS, dashboard.REASONS], ids=["command line", "dashboard"])
def test_every_reason_has_words(words: dict[str, str]) -> None:
    assert set(words) == {reason.value for reason in Reason}


def test_what_is_not_known_of_an_upload_is_an_empty_string() -> None:
    """NULLs would make every row unique in SQL."""
    upload = Upload("inbox", "a.jpg")

    assert (upload.version_id, upload.etag, upload.sequencer) == ("", "", "")


def test_ids_are_uuids_of_version_7_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}

    assert len(ids) == 1000
    for one in ids:
        assert uuid.UUID(one).variant == uuid.RFC_4122
        assert uuid.UUID(one).version == 7


def test_ids_sort_by_the_time_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for milliseconds in (1, 1_000, 1_700_000_000_000, 1_700_000_000_001, 4_102_444_800_000):
        monkeypatch.setattr(time, "time_ns", lambda ns=milliseconds * 1_000_000: ns)
        made.append(new_id("msg_"))

    assert made == sorted(made)
    assert all(re.fullmatch(r"msg_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", one) for one in made)
