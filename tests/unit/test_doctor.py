"""What the doctor makes of the workers: whoever judges has to be there, whoever trains only where training is set up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.settings import Settings
from workers import app, doctor, environments
from workers.queues import TRAIN


@pytest.mark.parametrize(
    ("away", "trains", "missing"),
    [(TRAIN, False, ""), (TRAIN, True, TRAIN), ("extract", False, "extract"), ("extract", True, "extract")],
)
def test_nobody_for_training_is_missed_only_where_there_is_an_environment_for_it(
    monkeypatch: pytest.MonkeyPatch, away: str, trains: bool, missing: str
) -> None:
    names = [queue.name for queue in app.app.conf.task_queues if queue.name != away]
    answer = {"one": [{"name": name} for name in names]}
    monkeypatch.setattr(app.app.control, "inspect", lambda timeout: SimpleNamespace(active_queues=lambda: answer))
    monkeypatch.setattr(environments, "interpreter", lambda settings: "python" if trains else None)
    patient = doctor.Patient(Settings())

    if missing:
        with pytest.raises(doctor.Trouble, match=f"nobody serves {missing}$"):
            doctor._workers(patient)
    else:
        assert "serve all" in doctor._workers(patient)
