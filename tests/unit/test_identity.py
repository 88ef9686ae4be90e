"""One job per upload, whoever tells of it: the rule alone, without a database."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identity import SKEW_S, Known, completed, find, normal
from pipeline.jobs import Upload

UPLOAD = Upload("inbox", "a.jpg")


def told(version_id: str = "", etag: str = "", sequencer: str = "", modified: float = 0.0) -> Upload:
    return normal(replace(UPLOAD, version_id=version_id, etag=etag, sequencer=sequencer, modified=modified))


def job(job_id: str, version_id: str = "", etag: str = "", sequencer: str = "", created_at: float = 1000.0) -> Known:
    return Known(job_id, version_id, etag, sequencer, created_at)


def test_the_normal_form_has_no_quotes_no_null_version_and_no_trailing_zeros() -> None:
    upload = normal(replace(UPLOAD, etag='"e1"', version_id="null", sequencer="0055aed6dcd90281e500"))

    assert (upload.etag, upload.version_id, upload.sequencer) == ("e1", "", "0055AED6DCD90281E5")


@given(st.text("0123456789abcdef", min_size=1, max_size=8), st.text("0123456789abcdef", min_size=1, max_size=8))
def test_normal_sequencers_sort_as_text_like_padded_ones(one: str, other: str) -> None:
    width = max(len(one), len(other))
    first, second = (normal(replace(UPLOAD, sequencer=value)).sequencer for value in (one, other))

    assert (first < second, first == second) == (
        one.ljust(width, "0") < other.ljust(width, "0"),
        one.ljust(width, "0") == other.ljust(width, "0"),
    )


@pytest.mark.parametrize(
    ("news", "known"),
    [
        pytest.param(told("v1", "e1", "5"), job("j", "v1", "e1", "5"), id="a repeated event"),
        pytest.param(told("v1"), job("j", "v1", "e1", "5"), id="only the version is told"),
        pytest.param(told("", "e1"), job("j", "v1", "e1", "5"), id="the sweep after the event"),
        pytest.param(told("v1", "e1", "5"), job("j", "", "e1"), id="the event after the sweep"),
        pytest.param(told("", "", "5"), job("j", "", "e1"), id="an event without an ETag after the sweep"),
        pytest.param(told("", "e1"), job("j", "", "", "5"), id="the sweep after an event without an ETag"),
        pytest.param(told("", "other form", "5"), job("j", "", "e1", "5"), id="the same sequencer, the ETag written otherwise"),
        pytest.param(told(), job("j", "v1", "e1", "5"), id="nothing is told but the key"),
        pytest.param(told("", "e1", modified=9999), job("j", "", "e1", "5"), id="the sweep never makes a second job of an ETag"),
        pytest.param(told("", "e1", "5", modified=1000 + SKEW_S), job("j", "", "e1"), id="clocks a little apart"),
    ],
)
def test_the_same_upload_told_otherwise(news: Upload, known: Known) -> None:
    assert find(news, [known]) is known


@pytest.mark.parametrize(
    ("news", "known"),
    [
        pytest.param(told("v2", "e1", "6"), job("j", "v1", "e1", "5"), id="another version of the same bytes"),
        pytest.param(told("v0", "e0", "4"), job("j", "v1", "e1", "5"), id="an older version heard of late: its bytes are still there"),
        pytest.param(told("", "e1", "6"), job("j", "", "e1", "5"), id="the same bytes with a newer sequencer"),
        pytest.param(told("", "e2"), job("j", "", "e1", "5"), id="the sweep finds other bytes"),
        pytest.param(told("", "e2", "6"), job("j", "", "e1"), id="an event of other bytes"),
        pytest.param(told("", "e1", "5", modified=1001 + SKEW_S), job("j", "", "e1"), id="the same bytes written after the sweep saw them"),
        pytest.param(told("v2", "e1", modified=1001 + SKEW_S), job("j", "", "e1"), id="the same bytes as a version, later"),
    ],
)
def test_another_upload(news: Upload, known: Known) -> None:
    assert find(news, [known]) is None


def test_an_older_sequencer_is_outdated_news_and_leads_to_the_newest() -> None:
    newest, older = job("j2", "", "e2", "7"), job("j1", "", "e1", "3")

    assert find(told("", "e3", "5"), [newest, older]) is newest


def test_bytes_unlike_the_newest_are_new_even_if_an_older_job_knows_no_etag() -> None:
    """The job without an ETag is of bytes since overwritten; without this the sweep would lose the upload."""
    newest, blank = job("j2", "", "e2", "7", created_at=1010), job("j1", "", "", "5")

    assert find(told("", "e3"), [newest, blank]) is None


def test_what_the_job_did_not_know_is_filled_in_and_nothing_else() -> None:
    assert completed(told("v1", "e1", "5"), job("j", "", "e1")) == {"version_id": "v1", "sequencer": "5"}
    assert completed(told("", "e9", "5"), job("j", "", "e1", "5")) == {}
    assert completed(told("", "e1"), job("j", "v1")) == {}, "the sweep may have seen another version"
    assert completed(told("", "e1", "3"), job("j", "", "e2", "7")) == {}, "outdated news says nothing of the newest upload"


@st.composite
def shuffled_history(draw: st.DrawFn) -> tuple[int, list[Upload]]:
    """Some uploads to one key of an unversioned bucket, in order; each told of at least once by an event, then shuffled."""
    etags = draw(st.lists(st.sampled_from(["e1", "e2", "e3"]), min_size=1, max_size=5))
    events = [told("", etag, f"{number + 1:04x}") for number, etag in enumerate(etags)]
    repeats = draw(st.lists(st.sampled_from(events), max_size=10))
    return len(etags), draw(st.permutations(events + repeats))


@given(shuffled_history())
def test_shuffled_and_repeated_events_make_no_upload_twice_and_never_miss_the_newest(history: tuple[int, list[Upload]]) -> None:
    uploads, events = history
    known: list[Known] = []
    for event in events:
        if find(event, known) is None:
            known.insert(0, job(f"j{len(known)}", "", event.etag, event.sequencer))

    made = [one.sequencer for one in known]
    assert len(set(made)) == len(made)
    assert normal(replace(UPLOAD, sequencer=f"{uploads:04x}")).sequencer in made


@given(
    st.permutations(
        [
            told("v1", "e1", "1"),
            told("v2", "e1", "2"),
            told("v3", "e2", "3"),
            told("v1", "e1"),
            told("v2"),
            told("v3", "e2"),
            told("", "e2"),
        ]
    )
)
def test_each_version_gets_its_one_job_in_whatever_order(events: list[Upload]) -> None:
    known: list[Known] = []
    for event in events:
        found = find(event, known)
        if found is None:
            known.insert(0, job(f"j{len(known)}", event.version_id, event.etag, event.sequencer))
        else:
            new = completed(event, found)
            fields = [new.get(name, getattr(found, name)) for name in ("version_id", "etag", "sequencer")]
            known[known.index(found)] = job(found.job_id, *fields)

    assert sorted(one.version_id for one in known) == ["v1", "v2", "v3"]
