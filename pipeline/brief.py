"""Short transactions of a few well-known statements, run on the driver itself: what every job goes through a dozen times.

A statement is written as everywhere else, but compiled once per dialect and then given to the driver as it is; SQLAlchemy's
session and result objects cost more than the statements themselves. Errors are SQLAlchemy's own, as in any transaction.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import JSON, Engine, Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pipeline import faults
from pipeline.database import Database

Values = Mapping[str, Any]


class Brief:
    """An open transaction. Statements are run on it by `Statement.run`."""

    __slots__ = ("cursor", "engine")

    def __init__(self, engine: Engine, cursor: Any) -> None:
        self.engine = engine
        self.cursor = cursor


@contextmanager
def brief(db: Database, *, write: bool = True) -> Iterator[Brief]:
    """A transaction that commits at the end of the block and rolls back on any error; without `write` it is for reading.

    As `Database.write`, it takes SQLite's write lock at once. Raises sqlalchemy.exc.DBAPIError, of the right kind.
    """
    engine = db.engine
    broken = engine.dialect.loaded_dbapi.Error
    connection = None
    try:
        connection = engine.raw_connection()
        if engine.dialect.name == "sqlite":
            cursor = connection.cursor()
            cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        else:
            cursor = connection.cursor(binary=True)  # crops would come as hexadecimal digits
        yield Brief(engine, cursor)
        if write:
            faults.point("commit")
        connection.commit()
    except broken as error:
        lost = connection is None or engine.dialect.is_disconnect(error, connection, None)
        if connection is not None and lost:
            connection.invalidate(error)
            engine.dispose()  # the others are as old, and as dead
            connection = None
        raise _told(engine, error, lost) from error
    finally:
        if connection is not None:
            connection.close()  # rolls back what was not committed
    if write:
        faults.point("committed")


def _told(engine: Engine, error: Exception, lost: bool) -> BaseException:
    dialect = engine.dialect
    return DBAPIError.instance(None, None, error, dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=dialect)


class Statement:
    """One statement, its values still open: bound parameters, or the columns of an insert.

    `columns`: which columns an insert is given; the others take the value that the statement itself gives them.
    """

    def __init__(self, construct: Any, columns: Sequence[str] = ()) -> None:
        self._construct = construct
        self._columns = list(columns)
        self._compiled: dict[str, _Compiled] = {}

    def run(self, on: Brief | Session, values: Values) -> Sequence[Any]:
        """Run it once; its rows, which have their columns as attributes."""
        if isinstance(on, Session):
            result = on.connection().execute(self._construct, dict(values))
            return result.all() if result.returns_rows else ()
        compiled = self._for(on)
        on.cursor.execute(compiled.text, compiled.bound(values))
        return compiled.rows(on.cursor.fetchall()) if compiled.rows else ()

    def many(self, on: Brief | Session, values: Sequence[Values]) -> None:
        """Run it for each of `values`."""
        if not values:
            return
        if isinstance(on, Session):
            on.connection().execute(self._construct, [dict(one) for one in values])
            return
        compiled = self._for(on)
        if len(values) == 1:  # as a batch it would cost more
            on.cursor.execute(compiled.text, compiled.bound(values[0]))
        else:
            on.cursor.executemany(compiled.text, [compiled.bound(one) for one in values])

    def _for(self, on: Brief) -> _Compiled:
        name = on.engine.dialect.name
        with suppress(KeyError):
            return self._compiled[name]
        keys = self._columns if isinstance(self._construct, Insert) else None
        return self._compiled.setdefault(name, _Compiled(on.engine.dialect, self._construct, keys))


class _Compiled:
    """A statement in the words of one dialect."""

    def __init__(self, dialect: Any, construct: Any, keys: list[str] | None) -> None:
        compiled = construct.compile(dialect=dialect, column_keys=keys, compile_kwargs={"render_postcompile": True})
        self.text: str = str(compiled)
        self._positions: list[str] | None = compiled.positiontup
        self._to_driver: dict[str, Callable[[Any], Any]] = dict(compiled._bind_processors)
        open = {name for name, bind in compiled.binds.items() if bind.required}
        self._start: dict[str, Any] = {name: self._prepared(name, value) for name, value in compiled.params.items() if name not in open}
        columns = getattr(compiled, "_result_columns", None) or []
        self.rows: Callable[[Sequence[Any]], list[Any]] | None = _reader(dialect, columns) if columns else None

    def bound(self, values: Values) -> Any:
        """The values as the driver takes them."""
        ready = dict(self._start)
        for name, value in values.items():
            ready[name] = self._prepared(name, value)
        return ready if self._positions is None else [ready[name] for name in self._positions]

    def _prepared(self, name: str, value: Any) -> Any:
        convert = self._to_driver.get(name)
        return value if convert is None else convert(value)


def _reader(dialect: Any, columns: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    row = namedtuple("Row", [column.keyname for column in columns])  # type: ignore[misc]
    # of all the types in our tables, only JSON comes out of a driver otherwise than it is wanted
    converters = [
        column.type.dialect_impl(dialect).result_processor(dialect, None) if isinstance(column.type, JSON) else None for column in columns
    ]
    if not any(converters):
        return lambda found: [row._make(one) for one in found]
    pairs = [convert or _same for convert in converters]
    return lambda found: [row(*(convert(value) for convert, value in zip(pairs, one, strict=True))) for one in found]


def _same(value: Any) -> Any:
    return value
