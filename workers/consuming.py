"""Reads upload events from queues (SQS): `python -m workers.consuming`, as many side by side as one likes.

Each queue that an inbox names is read by a thread of its own. A message is deleted only after the jobs of all its uploads
are committed, so a consumer that is killed in between makes the message come again, to find its jobs made. A message that
cannot be read is left to the queue, which puts it aside after `maxReceiveCount` tries if it has a dead-letter queue.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError

from pipeline import events, faults, inboxes
from pipeline.database import Database, PauseRow, database
from pipeline.events import EventError
from pipeline.ledger import LedgerError
from pipeline.settings import Settings, SettingsError, settings
from pipeline.stopping import setting
from workers import ingest

log = logging.getLogger(__name__)

BATCH = 10
"""Most messages that SQS gives or deletes at once."""
POLL_S = 20
"""How long a request waits for a message: the longest that SQS allows."""
LOOK_S = 5.0
"""How often it is looked which queues are to be read."""
PATIENCE_S = (1.0, 2.0, 5.0, 15.0, 30.0)
"""How long to wait after an error, and after the next ones in a row."""


def client(chosen: Settings) -> Any:
    """A client for SQS. Safe to share between threads."""
    access, secret = (
        (chosen.sqs_access_key, chosen.sqs_secret_key) if chosen.sqs_access_key else (chosen.s3_access_key, chosen.s3_secret_key)
    )
    return boto3.client(
        "sqs",
        endpoint_url=chosen.sqs_endpoint,
        region_name=chosen.s3_region,
        aws_access_key_id=access.get_secret_value() if access else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(connect_timeout=3, read_timeout=POLL_S + 10, retries={"total_max_attempts": 3, "mode": "standard"}),
    )


class Consumer:
    """Reads one queue until `stopping` is set. `poll_s`: how long a request waits for a message, in seconds."""

    def __init__(
        self, db: Database, chosen: Settings, url: str, stopping: threading.Event, *, sqs: Any = None, poll_s: int = POLL_S
    ) -> None:
        self._db = db
        self._settings = chosen
        self._url = url
        self._stopping = stopping
        self._sqs = sqs or client(chosen)
        self._poll_s = poll_s

    def run(self) -> None:
        """Read, over and over; wait a little longer after each error in a row. While the database is away, or cannot be
        written to, nothing is taken from the queue, so that no message is counted as tried and failed for that."""
        failures = 0
        while not self._stopping.is_set():
            try:
                if failures:
                    self._ask_database()
                self.once()
                failures = 0
            except (BotoCoreError, ClientError, SQLAlchemyError, OSError) as error:
                wait = PATIENCE_S[min(failures, len(PATIENCE_S) - 1)]
                failures += 1
                log.warning("The queue %s is read again in %g s: %s", self._url, wait, _sentence(error))
                self._stopping.wait(wait)

    def once(self) -> int:
        """Take up to `BATCH` messages, make the jobs they tell of, delete them; returns how many were deleted.

        Raises the errors of SQS and of the database: what was not deleted comes again.
        """
        answer = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=self._poll_s)
        messages: Sequence[Mapping[str, str]] = answer.get("Messages", ())
        if not messages:
            return 0
        among = inboxes.directory(self._settings, self._db)
        done: list[Mapping[str, str]] = []
        try:
            done.extend(message for message in messages if self._take(message, among))
        finally:  # those before one that broke off are done all the same
            if done:
                faults.point("queue.committed")
                self._delete(done)
        return len(done)

    def _take(self, message: Mapping[str, str], among: inboxes.Directory) -> bool:
        """Make the jobs of one message. False: some of it cannot be read or stored, and it is left to the queue."""
        wrong: Exception | None = None
        try:
            for upload in events.from_queue(message["Body"]):
                try:
                    ingest.take(self._db, self._settings, upload, among=among)
                except LedgerError as error:  # those told of beside it have their jobs all the same
                    wrong = error
        except EventError as error:
            wrong = error
        if wrong is not None:
            log.warning("Message %s of %s is left to its dead-letter queue: %s", message["MessageId"], self._url, wrong)
        return wrong is None

    def _delete(self, messages: Sequence[Mapping[str, str]]) -> None:
        entries = [{"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(messages)]
        failed = self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries).get("Failed", ())
        if failed:  # they come again, and find their jobs made
            log.warning("%d messages of %s could not be deleted: %s", len(failed), self._url, failed[0].get("Code"))

    def _ask_database(self) -> None:
        """Raise what making a job would raise: also of a database that answers, but can be written no more."""
        with self._db.write() as session:
            session.add(row := PauseRow(queue=uuid4().hex, paused_at=0.0))
            session.flush()
            session.delete(row)  # before the commit: nobody ever sees it


class Consumers:
    """One consumer for each queue that an enabled inbox names, as of at most `LOOK_S` seconds ago."""

    def __init__(self, db: Database, chosen: Settings, stopping: threading.Event, make: Callable[..., Consumer] = Consumer) -> None:
        self._db = db
        self._settings = chosen
        self._stopping = stopping
        self._make = make
        self._running: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def run(self) -> None:
        """Follow the inboxes until `stopping` is set, then let each consumer finish what it has."""
        while not self._stopping.is_set():
            try:
                self.look()
            except SQLAlchemyError as error:
                log.warning("The inboxes cannot be looked up, the consumers go on: %s", _sentence(error))
            self._stopping.wait(LOOK_S)
        for _, stop in self._running.values():
            stop.set()
        for thread, _ in self._running.values():
            thread.join(POLL_S + 5)

    def look(self) -> set[str]:
        """Start what is missing and stop what is not wanted any more; returns the queues that are read."""
        wanted = urls(self._settings, self._db)
        for url in self._running.keys() - wanted:
            self._running.pop(url)[1].set()
        for url in wanted:
            if url not in self._running or not self._running[url][0].is_alive():
                stop = threading.Event()
                thread = threading.Thread(target=self._make(self._db, self._settings, url, stop).run, name=url, daemon=True)
                thread.start()
                self._running[url] = thread, stop
                log.info("reading %s", url)
        return set(self._running)


def urls(chosen: Settings, db: Database) -> set[str]:
    """The queues that enabled inboxes are heard of by."""
    return {inbox.sqs_url for inbox in inboxes.directory(chosen, db).enabled if inbox.source == "sqs" and inbox.sqs_url}


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def main() -> int:
    """Read every queue until told to stop."""
    try:
        chosen = settings()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    logging.basicConfig(level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, setting(stopping))
    Consumers(database(chosen.database), chosen, stopping).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
