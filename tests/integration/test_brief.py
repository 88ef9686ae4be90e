"""Brief transactions: the same statements, the same errors and the same rows as in a session, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from pipeline import pauses
from pipeline.brief import Statement, brief
from pipeline.database import Database, FaceRow, JobRow, PauseRow, now
from pipeline.jobs import new_id
from tests.fixtures.databases import PostgresServer, postgres_binaries
from tests.fixtures.jobs import accepted, brought_to

PAUSE = Statement(insert(PauseRow.__table__).values(paused_at=now()), ["queue"])
QUEUES = Statement(select(PauseRow.queue).order_by(PauseRow.queue))
SENTENCES = (
    Statement(select(JobRow.__table__).where(JobRow.id == bindparam("this"))),
    Statement(select(FaceRow.__table__).where(FaceRow.job_id == bindparam("this")).order_by(FaceRow.index)),
)


def test_what_was_said_is_kept_at_the_end(db: Database) -> None:
    with brief(db) as on:
        PAUSE.many(on, [{"queue": "bulk"}, {"queue": "extract"}])

    assert pauses.paused(db) == {"bulk", "extract"}


def test_nothing_is_kept_of_a_block_that_fails(db: Database) -> None:
    def half() -> None:
        with brief(db) as on:
            PAUSE.run(on, {"queue": "bulk"})
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        half()

    assert pauses.paused(db) == set()


def test_errors_are_sqlalchemys(db: Database) -> None:
    with pytest.raises(IntegrityError), brief(db) as on:
        PAUSE.many(on, [{"queue": "bulk"}, {"queue": "bulk"}])

    with brief(db, write=False) as on:
        assert QUEUES.run(on, {}) == []


@pytest.mark.parametrize("sentence", SENTENCES, ids=("job", "faces"))
def test_rows_are_those_of_a_session(db: Database, sentence: Statement) -> None:
    job_id = brought_to(db, None)

    with brief(db, write=False) as on, db.read() as session:
        mine, theirs = sentence.run(on, {"this": job_id}), sentence.run(session, {"this": job_id})

    assert [tuple(row) for row in mine] == [tuple(row) for row in theirs]
    assert mine[0]._fields == theirs[0]._fields


def test_a_list_of_values_in_a_condition_is_spelled_out(db: Database) -> None:
    jobs = [accepted(db) for _ in range(3)]

    with brief(db) as on:
        Statement(update(JobRow).where(JobRow.id.in_(jobs[:2])).values(worker="mine")).run(on, {})
        names = Statement(select(JobRow.worker).where(JobRow.id.in_(jobs)).order_by(JobRow.id)).run(on, {})

    assert [name for (name,) in names] == ["mine", "mine", ""]


def test_a_server_that_went_away_is_found_again() -> None:
    if (binaries := postgres_binaries()) is None:
        pytest.skip("PostgreSQL is missing.")
    server = PostgresServer(binaries)
    one = Statement(select(bindparam("number", type_=JobRow.__table__.c.size.type).label("number")))
    try:
        server.start()
        db = Database(server.url.render_as_string())
        with brief(db) as on:
            one.run(on, {"number": 1})
        server.stop()
        with pytest.raises(OperationalError) as away, brief(db) as on:
            one.run(on, {"number": 1})
        server.start()

        with brief(db) as on:
            [row] = one.run(on, {"number": 2})

        assert row.number == 2
        assert away.value.orig is not None
        db.dispose()
    finally:
        server.remove()


def test_ids_made_one_after_the_other_are_in_order() -> None:
    made = [new_id() for _ in range(2)]

    assert made == sorted(made)
