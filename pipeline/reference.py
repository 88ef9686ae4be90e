"""What live traffic is compared with: how a version's scores, and the quality of faces, are distributed on the hold-out (see `drift`).

The gate keeps this of all that it measures. A champion that came another way, with the product, by hand, or before there was a
hold-out, is measured here; and again when the hold-out is another one.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import collections, registry
from pipeline.card import Card, ModelError
from pipeline.classification import load
from pipeline.database import Database, now
from pipeline.images import Limits
from pipeline.settings import Settings
from pipeline.storage import Storage
from pipeline.tables.learning import CollectionRow, ItemRow, ReferenceRow
from pipeline.tables.training import ScheduleRow

LEAST_PEOPLE = 8
"""With fewer people in the hold-out nothing can be said."""
HOLDOUT = (ItemRow.collection == collections.DEFAULT, ItemRow.split == "test")


def keep(db: Database, settings: Settings, dataset: collections.OnDisk, card: Card, scores: Any) -> None:
    """Keep the reference of a version: its `scores` (n,) of the hold-out's real faces, and what is measured of their quality here.

    One score of each photograph: those of its compressed and smaller copies resemble it, and chance would be thought smaller than it is.
    """
    from pipeline.training import trial

    with db.read() as session:
        known = session.get(ReferenceRow, (card.name, card.version))
        if known is not None and known.dataset == dataset.sha256:
            return
    quality = trial.quality(dataset.faces, limits=Limits.of(settings), cut=trial.cut(settings, card))
    samples = {"score": [round(float(value), 5) for value in scores], **quality}
    # whoever kept the same at this moment was faster: the gate and upkeep may both be at it
    with suppress(IntegrityError), db.write() as session:
        at = session.execute(select(now())).scalar_one()
        session.merge(ReferenceRow(name=card.name, version=card.version, dataset=dataset.sha256, samples=samples, created_at=at))


def measure(db: Database, store: Storage, settings: Settings) -> tuple[str, str] | None:
    """Measure the champion on the hold-out, if that is owed, and keep its reference; returns who was measured.

    Loads the model, and looks at every photograph of the hold-out. Raises ModelError,
    CollectionError, StorageError.
    """
    from pipeline.training import trial

    version = owed(db)
    if version is None:
        return None
    folder = registry.fetch(db, store, settings, *version)
    classifier = load(folder, runtime=settings.runtime, precision=settings.precision, threads=1)
    dataset = collections.default(db, store, settings)
    scores = trial.reals(classifier, dataset.faces, facts=settings.data_dir / "datasets" / "facts.npz")
    keep(db, settings, dataset, classifier.card, scores)
    return version


def owed(db: Database) -> tuple[str, str] | None:
    """The champion, where there is a hold-out that it was not measured on."""
    champion = _champion(db)
    if champion is None:
        return None
    with db.read() as session:
        return None if _people(session) < LEAST_PEOPLE or _measured(session, champion) else champion


def lacking(db: Database) -> str:
    """Why no day is compared with the hold-out, and which schedules wait for it in vain; empty: nothing is lacking."""
    why = _lacking(db)
    if not why:
        return ""
    with db.read() as session:
        asks = (ScheduleRow.enabled.is_(True), ScheduleRow.on_drift.is_(True))
        waiting = session.scalars(select(ScheduleRow.name).where(*asks).order_by(ScheduleRow.name)).all()
    return f"{why} Until then drift fires nothing for {', '.join(waiting)}." if waiting else why


def _lacking(db: Database) -> str:
    champion = _champion(db)
    if champion is None:
        return "Drift is not looked for, because there is no champion: `unmask models install` brings the first."
    with db.read() as session:
        people, known = _people(session), session.get(ReferenceRow, champion)
    if known is not None:
        return ""
    if not people:
        return "Drift is not looked for, because there is no hold-out: `unmask datasets add FOLDER` makes one of the split test."
    if people < LEAST_PEOPLE:
        return f"Drift is not looked for: the hold-out has {people} people, and at least {LEAST_PEOPLE} are needed."
    return f"Drift is not looked for yet: {champion[0]} {champion[1]} is still to be measured on the hold-out, which upkeep does."


def people(db: Database) -> int:
    """How many people of the hold-out have a real photograph in it."""
    with db.read() as session:
        return _people(session)


def _champion(db: Database) -> tuple[str, str] | None:
    try:
        return registry.champion(db)
    except ModelError:
        return None


def _people(session: Session) -> int:
    return session.scalar(select(func.count(ItemRow.identity.distinct())).where(*HOLDOUT, ItemRow.fake.is_(False))) or 0


def _measured(session: Session, version: tuple[str, str]) -> bool:
    """Whether there is a reference, of a hold-out of as many pictures as there are now: none is ever taken out."""
    known = session.get(ReferenceRow, version)
    if known is None:
        return False
    then = session.get(CollectionRow, known.dataset)
    present = session.scalar(select(func.count()).select_from(ItemRow).where(*HOLDOUT))
    return then is None or then.counts.get("test", 0) == present
