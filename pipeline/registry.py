"""Model versions: the card, the check before anything is opened, publishing, fetching, and which one is champion.

A version is a folder `models/{name}/{version}/` in the models bucket and one row in the database. The row holds the
sha256 of every file, and a signature over them; no file is handed to any parser before the signature was checked, and the
file was hashed and found to be that file.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import audit, signing
from pipeline.card import CARD, Card, ModelError, hashes, sha256, verify
from pipeline.database import AliasRow, Database, ModelRow, now
from pipeline.outbox import announce, next_sequence
from pipeline.settings import Settings
from pipeline.storage import SourceGone, Storage, StorageError

__all__ = [
    "Card",
    "ModelError",
    "Version",
    "card",
    "champion",
    "fetch",
    "find",
    "former",
    "install_starter",
    "nominate",
    "promote",
    "promoted",
    "publish",
    "rollback",
    "shipped",
    "sign",
    "verify",
    "versions",
]

STARTER = Path(__file__).parent / "starter"
"""Versions that come with the product: `{name}/{version}/`."""
CHAMPION = "champion"
CANDIDATE = "candidate"
MAX_FILE_BYTES = 1_000_000_000
ABANDONED_S = 3600.0
"""A download that nobody finished for this long may be cleared away."""


@dataclass(frozen=True)
class Version:
    """A published version as the database knows it. `aliases`: `champion`, `candidate`. `signed`: whether it has a signature at all."""

    card: Card
    created_at: float
    aliases: tuple[str, ...]
    signed: bool = True


def publish(database: Database, storage: Storage, settings: Settings, folder: Path, *, actor: str = "system") -> Card:
    """Upload the version in `folder` and enter it into the registry; the card goes last, then the row.

    Doing it again changes nothing, and puts back objects that the bucket has lost. Raises ModelError if a file is not
    what the card says, or if the same name and version was published before with other files.
    """
    card = verify(folder)
    files = {**card.files, CARD: sha256(folder / CARD)}
    _must_agree(database, card, files)
    try:
        for name in files:  # the card is the last of them
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != files[name]:
                raise ModelError(f"The file {name} in {folder} changed while it was published.", permanent=False)
            if not _stored(storage, settings.models_bucket, _key(card.name, card.version, name), data):
                storage.put(settings.models_bucket, _key(card.name, card.version, name), data, _content_type(name))
    except StorageError as error:
        raise ModelError(f"Publishing {card.name} {card.version} failed: {error}", permanent=error.permanent) from error
    try:
        with database.write() as session:
            if session.get(ModelRow, (card.name, card.version)) is None:
                at = session.execute(select(now())).scalar_one()
                signature = signing.sign(settings, card.name, card.version, files)
                told = card.model_dump(mode="json")
                session.add(ModelRow(name=card.name, version=card.version, files=files, card=told, signature=signature, created_at=at))
                audit.note(session, actor, "model.publish", f"{card.name} {card.version}")
    except IntegrityError:  # another process published it at the same moment
        pass
    _must_agree(database, card, files)
    return card


def _must_agree(database: Database, card: Card, files: Mapping[str, str]) -> None:
    with database.read() as session:
        row = session.get(ModelRow, (card.name, card.version))
        if row is not None and dict(row.files) != dict(files):
            raise ModelError(f"{card.name} {card.version} is published already with other files: give the new one another version.")


def _stored(storage: Storage, bucket: str, key: str, data: bytes) -> bool:
    """Whether these very bytes lie there: those of another build, whose publishing broke off, may be as many."""
    try:
        return storage.head(bucket, key).size == len(data) and storage.fetch(bucket, key, max_bytes=len(data)) == data
    except SourceGone:
        return False


def _key(name: str, version: str, file: str) -> str:
    return f"models/{name}/{version}/{file}"


def _content_type(name: str) -> str:
    return {"json": "application/json", "xml": "application/xml"}.get(name.rpartition(".")[2], "application/octet-stream")


def install_starter(database: Database, storage: Storage, settings: Settings) -> Card:
    """The champion's card; where there is no champion yet, the version that comes with the product becomes it.

    Raises ModelError if there is no champion and this installation ships no model.
    """
    folders = shipped()
    for folder in folders:
        _sign_shipped(database, settings, folder)
    with database.read() as session:
        alias = session.get(AliasRow, CHAMPION)
        if alias is not None:
            return _row_card(session, alias.name, alias.version)
    if not folders:
        raise ModelError("This installation ships no model: publish one with `unmask models publish` and `unmask models promote` it.")
    starter = publish(database, storage, settings, folders[-1])
    _promote(database, settings, starter.name, starter.version, replace=False)
    return card(database, *champion(database))


def sign(database: Database, storage: Storage, settings: Settings, name: str, version: str, *, actor: str) -> None:
    """Sign a published version anew, after every file in the bucket was found to be what the registry says.

    For rows that have no signature, or one of another key. Raises ModelError for an unknown version or altered files.
    """
    with database.read() as session:
        files = hashes(_row(session, name, version).files)
    for file, expected in files.items():
        try:
            data = storage.fetch(settings.models_bucket, _key(name, version, file), max_bytes=MAX_FILE_BYTES)
        except StorageError as error:
            raise ModelError(f"The model {name} {version} cannot be fetched: {error}", permanent=error.permanent) from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise ModelError(f"The file {file} of {name} {version} is not what was published: it is not signed.")
    _set_signature(database, settings, name, version, files, actor)


def _sign_shipped(database: Database, settings: Settings, folder: Path) -> None:
    # An installation older than signatures has the row of the version that comes with the product, and the folder to prove it.
    name, version = folder.parent.name, folder.name
    with database.read() as session:
        row = session.get(ModelRow, (name, version))
        if row is None or row.signature:
            return
        files = hashes(row.files)
    with suppress(ModelError):
        verify(folder, files)
        _set_signature(database, settings, name, version, files, "system")


def _set_signature(database: Database, settings: Settings, name: str, version: str, files: Mapping[str, str], actor: str) -> None:
    with database.write() as session:
        audit.note(session, actor, "model.sign", f"{name} {version}")
        _row(session, name, version).signature = signing.sign(settings, name, version, files)


def shipped() -> list[Path]:
    """The folders of the versions that come with the product, the newest last."""
    return [found.parent for found in sorted(STARTER.glob(f"*/*/{CARD}"))]


def champion(database: Database) -> tuple[str, str]:
    """Name and version of the model whose scores count. Raises ModelError while there is none."""
    with database.read() as session:
        alias = session.get(AliasRow, CHAMPION)
        if alias is None:
            raise ModelError("No model is champion yet: name one with `unmask models promote`.", permanent=False)
        return alias.name, alias.version


def former(database: Database) -> tuple[str, str] | None:
    """The champion before this one, if it was published earlier: what was rolled back from is nothing to fall back on."""
    with database.read() as session:
        alias = session.get(AliasRow, CHAMPION)
        if alias is None or alias.previous_name is None or alias.previous_version is None:
            return None
        present, before = (session.get(ModelRow, of) for of in ((alias.name, alias.version), (alias.previous_name, alias.previous_version)))
        return (before.name, before.version) if present and before and before.created_at < present.created_at else None


def card(database: Database, name: str, version: str) -> Card:
    """The card of a published version. Raises ModelError for an unknown one."""
    with database.read() as session:
        return _row_card(session, name, version)


def versions(database: Database) -> list[Version]:
    """Every published version, newest first."""
    with database.read() as session:
        aliases: dict[tuple[str, str], list[str]] = {}
        for alias in session.scalars(select(AliasRow).order_by(AliasRow.alias)):
            aliases.setdefault((alias.name, alias.version), []).append(alias.alias)
        rows = session.scalars(select(ModelRow).order_by(ModelRow.created_at.desc(), ModelRow.name, ModelRow.version)).all()
        found = []
        for row in rows:
            known = tuple(aliases.get((row.name, row.version), ()))
            found.append(Version(Card.model_validate(row.card), row.created_at, known, bool(row.signature)))
        return found


def find(database: Database, said: str) -> tuple[str, str]:
    """Name and version of the published model that somebody calls VERSION or NAME/VERSION. Raises ModelError if it is none, or several."""
    name, _, version = said.rpartition("/")
    with database.read() as session:
        names = session.scalars(select(ModelRow.name).where(ModelRow.version == version).order_by(ModelRow.name)).all()
    found = [one for one in names if name in ("", one)]
    if len(found) > 1:
        raise ModelError(f"Several models have a version {version}: write {' or '.join(f'{one}/{version}' for one in found)}.")
    if not found:
        raise ModelError(f"No model {said} is published: `unmask models list` shows those that are.")
    return found[0], version


def nominate(database: Database, name: str, version: str) -> None:
    """Make a published version the candidate, in place of another. Raises ModelError for an unknown one."""
    with database.write() as session:
        _row(session, name, version)
        at = session.execute(select(now())).scalar_one()
        session.merge(AliasRow(alias=CANDIDATE, name=name, version=version, changed_at=at))


def promote(
    database: Database, settings: Settings, name: str, version: str, *, over: tuple[str, str] | None = None, actor: str = ""
) -> None:
    """Make a published version the champion and announce `model.promoted`; nothing happens if it is that already.

    `over`: only if this one is still the champion. `actor`: who says so, for the audit. Raises ModelError for a version that is
    unknown or not signed by this installation, and, not permanent, where another than `over` is champion by now.
    """
    _promote(database, settings, name, version, replace=True, over=over, actor=actor)


def _promote(database: Database, settings: Settings, name: str, version: str, **how: Any) -> None:
    try:
        _try_promote(database, settings, name, version, **how)
    except IntegrityError:  # two first promotions at the same moment: now there is a champion whose row can be locked
        _try_promote(database, settings, name, version, **how)


def _try_promote(database: Database, settings: Settings, name: str, version: str, **how: Any) -> None:
    with database.write() as session:
        promoted(session, settings, name, version, **how)


def promoted(
    session: Session,
    settings: Settings,
    name: str,
    version: str,
    *,
    replace: bool = True,
    over: tuple[str, str] | None = None,
    actor: str = "",
) -> bool:
    """Promote within a transaction of the caller's; returns whether it is champion now: without `replace` another one stays.

    Raises ModelError as `promote` does, and IntegrityError where two are the first champion at the same moment.
    """
    row = _row(session, name, version)
    signing.check_before_use(settings, name, version, hashes(row.files), row.signature)
    if actor:
        audit.note(session, actor, "model.promote", f"{name} {version}")
    alias = session.get(AliasRow, CHAMPION, with_for_update=True)
    if over is not None and (alias is None or (alias.name, alias.version) not in (over, (name, version))):
        raise ModelError(f"{over[0]} {over[1]}, which {name} {version} was compared with, is no longer champion.", permanent=False)
    if alias is not None and not replace:
        return (alias.name, alias.version) == (name, version)
    at = session.execute(select(now())).scalar_one()
    nominee = session.get(AliasRow, CANDIDATE)
    if nominee is not None and (nominee.name, nominee.version) == (name, version):
        session.delete(nominee)
    if alias is None:
        session.add(AliasRow(alias=CHAMPION, name=name, version=version, changed_at=at))
        session.flush()
        _announce(session, "model.promoted", (name, version), None)
    elif (alias.name, alias.version) != (name, version):
        _change(session, alias, name, version, at, "model.promoted")
    return True


def rollback(database: Database, settings: Settings, *, actor: str = "") -> tuple[str, str]:
    """Make the former champion champion again and announce `model.rolled_back`; returns its name and version.

    `actor`: who says so, for the audit. A second rollback returns to where the first one started. Raises ModelError if there was no
    other champion before, or it is not signed by this installation.
    """
    with database.write() as session:
        alias = session.get(AliasRow, CHAMPION, with_for_update=True)
        if alias is None or alias.previous_name is None or alias.previous_version is None:
            raise ModelError("There is no earlier champion to roll back to.")
        name, version = alias.previous_name, alias.previous_version
        row = _row(session, name, version)
        signing.check_before_use(settings, name, version, hashes(row.files), row.signature)
        if actor:
            audit.note(session, actor, "model.rollback", f"{name} {version}")
        _change(session, alias, name, version, session.execute(select(now())).scalar_one(), "model.rolled_back")
        return name, version


def _change(session: Session, alias: AliasRow, name: str, version: str, at: float, event: str) -> None:
    before = (alias.name, alias.version)
    alias.previous_name, alias.previous_version = before
    alias.name, alias.version, alias.changed_at = name, version, at
    session.flush()
    _announce(session, event, (name, version), before)


def _announce(session: Session, event: str, model: tuple[str, str], previous: tuple[str, str] | None) -> None:
    before = None if previous is None else {"name": previous[0], "version": previous[1]}
    sequence = next_sequence(session, CHAMPION)
    data = {"alias": CHAMPION, "name": model[0], "version": model[1], "previous": before, "sequence": sequence, "url": "/v1/models"}
    announce(session, event, CHAMPION, sequence, data)


def _row(session: Session, name: str, version: str) -> ModelRow:
    row = session.get(ModelRow, (name, version))
    if row is None:
        raise ModelError(f"No model {name} {version} is published: `unmask models list` shows those that are.")
    return row


def _row_card(session: Session, name: str, version: str) -> Card:
    return Card.model_validate(_row(session, name, version).card)


def fetch(database: Database, storage: Storage, settings: Settings, name: str, version: str) -> Path:
    """A local folder that holds the version, its signature checked and every file verified against the registry.

    A version in the cache is verified again and used; otherwise it is downloaded beside its place, verified there, and
    moved into place whole. Raises ModelError if that fails; whatever else is in the cache stays as it was.
    """
    with database.read() as session:
        row = _row(session, name, version)
        files, signature = hashes(row.files), row.signature
    signing.check(settings, name, version, files, signature)
    place = settings.model_cache_dir / name / version
    if _good(place, files):
        return place
    try:
        settings.model_cache_dir.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(settings.model_cache_dir)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=settings.model_cache_dir) as temporary:
            arrived, outdated = Path(temporary, "new"), Path(temporary, "old")
            arrived.mkdir()
            for file in files:
                (arrived / file).write_bytes(storage.fetch(settings.models_bucket, _key(name, version, file), max_bytes=MAX_FILE_BYTES))
            verify(arrived, files)
            place.parent.mkdir(exist_ok=True)
            if _good(place, files):  # another process was faster
                return place
            if place.exists():
                place.rename(outdated)
            arrived.rename(place)
    except StorageError as error:
        raise ModelError(f"The model {name} {version} cannot be fetched: {error}", permanent=error.permanent) from error
    except OSError as error:
        if _good(place, files):  # another process was faster still
            return place
        raise ModelError(f"The model {name} {version} cannot be kept in {settings.model_cache_dir}: {error}.", permanent=False) from error
    return place


def _good(place: Path, files: Mapping[str, str]) -> bool:
    if not place.is_dir():
        return False
    try:
        verify(place, files)
    except ModelError:
        return False
    return True


def _clear_abandoned(cache: Path) -> None:
    with suppress(FileNotFoundError):  # another process has just removed one: the rest waits for the next fetch
        for folder in (one for one in cache.glob(".fetch-*") if time.time() - one.stat().st_mtime > ABANDONED_S):
            shutil.rmtree(folder, ignore_errors=True)
