"""Any error as one sentence that says what to do; the command line prints nothing else."""

from __future__ import annotations

import click
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

HOUSE = frozenset(("pipeline", "workers", "webhooks", "migrations"))


class CommandError(click.ClickException):
    """A command cannot do what it was asked; the message is one sentence."""

    exit_code = 2


def sentence_of(error: BaseException) -> str | None:
    """What to tell a person about an error; None: nobody foresaw it, it is a fault of ours."""
    if isinstance(error, click.UsageError):
        said = _closed(error.format_message())
        return f"{said} `{error.ctx.command_path} --help` shows how." if error.ctx is not None else said
    if isinstance(error, click.ClickException):
        return _closed(error.format_message())
    if type(error).__module__.partition(".")[0] in HOUSE:  # our own errors carry such a sentence already
        return _closed(str(error))
    if isinstance(error, SQLAlchemyError):
        said = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        return f"The database cannot be used: {_closed(_first_line(said))} `unmask doctor` checks it."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")


def _closed(sentence: str) -> str:
    sentence = " ".join(sentence.split())
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."
