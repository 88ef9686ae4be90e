"""What is done about trainings from outside, by the API or on the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import classroom, options, schedules, trainings
from pipeline.tables.training import TrainingRow
from webhooks.context import Context
from webhooks.problems import Problem
from workers.app import wake_training


def find(context: Context, training_id: str) -> TrainingRow:
    """The training of that id. Raises Problem 404."""
    row = classroom.one(context.database, training_id)
    if row is None:
        raise Problem(404, "There is no training of that id.")
    return row


def ask(context: Context, *, actor: str, dataset: str = "", device: str | None = None, params: Mapping[str, Any]) -> TrainingRow:
    """Ask for a training; returns it. Raises OptionsError."""
    chosen = options.checked(params)
    training_id = trainings.ask(
        context.database, actor=actor, dataset=dataset.strip(), device=device or context.settings.train_device, params=chosen
    )
    assert training_id is not None  # noqa: S101 - only a slot of a schedule can be taken
    return _woken(context, training_id)


def run_schedule(context: Context, name: str, *, actor: str) -> TrainingRow:
    """Train now as a schedule would; returns the training. Raises ScheduleError."""
    return _woken(context, schedules.run(context.database, name, actor=actor))


def cancel(context: Context, training_id: str, *, actor: str) -> TrainingRow:
    """Stop a training; returns it as it stands then. Raises Problem 404, 409."""
    row = find(context, training_id)
    if not trainings.cancel(context.database, row.id, actor=actor):
        row = find(context, row.id)
        if row.status == "running":
            raise Problem(409, "The training is over and its version before the gate, which decides in a moment.")
        raise Problem(409, f"The training is {row.status} already.")
    return find(context, row.id)


def retry(context: Context, training_id: str, *, actor: str) -> TrainingRow:
    """Let a failed or cancelled training go on; returns it as it stands then. Raises Problem 404, 409."""
    row = find(context, training_id)
    if not trainings.requeue(context.database, row.id, actor=actor):
        raise Problem(409, f"The training is {find(context, row.id).status}: only a failed or cancelled one can go on.")
    return _woken(context, row.id)


def _woken(context: Context, training_id: str) -> TrainingRow:
    if not wake_training(training_id):
        trainings.unwoken(context.database, training_id)
    return find(context, training_id)
