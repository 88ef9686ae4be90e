"""What Kubernetes is told: the deployments are those of the stack, and KEDA's question to the database has the right answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text, update

from pipeline import ledger, pauses
from pipeline.database import Database, JobRow, now
from pipeline.jobs import STAGES, Stage
from tests.fixtures.jobs import accepted, brought_to, claimed
from workers.queues import queues

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"


def manifests(name: str, kind: str) -> dict[str, Any]:
    """The specifications of a kind, by name."""
    found = yaml.safe_load_all((FOLDER / name).read_text())
    return {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == kind}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_deployed_with_its_queues(stage: Stage) -> None:
    [container] = manifests("workers.yaml", "Deployment")[f"unmask-{stage.value}"]["template"]["spec"]["containers"]

    assert ",".join(queues(stage)) in container["args"]
    assert f"{stage.value}@%h" in container["args"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_rule_asks_how_long_the_oldest_job_of_the_stage_has_waited(db: Database, stage: Stage) -> None:
    if db.engine.dialect.name != "postgresql":
        pytest.skip("KEDA's scaler is PostgreSQL's.")
    rule = manifests("scaling.yaml", "ScaledObject")[f"unmask-{stage.value}"]
    [trigger] = rule["triggers"]

    def asked() -> float:
        with db.engine.connect() as connection:
            return float(connection.execute(text(trigger["metadata"]["query"])).scalar_one())

    assert rule["scaleTargetRef"]["name"] in manifests("workers.yaml", "Deployment")
    assert asked() == 0
    job_id = brought_to(db, stage)
    accepted(db)
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(woken_at=now() - 40))
    assert 40 <= asked() < 60

    pauses.pause(db, stage.value)
    assert asked() == 0, "nobody is to work on it"
    pauses.resume(db, stage.value)
    ledger.woken(db, job_id)
    claimed(db, job_id, stage)
    assert asked() < 30, "somebody does"
