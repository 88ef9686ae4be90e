"""Requests made from the API's own description, good ones and bad ones: whatever comes, no answer is a 5xx and no secret.

Seeded and bounded; `TEST_LONG=1` makes sixty times as many. A failure prints the request and can be played back with the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from pipeline import keys, ledger
from pipeline.access import Role
from pipeline.tables.inboxes import InboxRow
from tests.fixtures.jobs import brought_to, upload
from tests.fixtures.scale import LONG
from tests.fixtures.web import SECRET_KEY, Web

SEED = 20_261_126
EXAMPLES = 200 if LONG else 3
KINDS = [(kind, mode) for kind in ("sqlite", "postgresql") for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
KEY = "the bootstrap key of these tests"


@pytest.fixture
def web(make_web: Callable[..., Web], db_url: str, monkeypatch: pytest.MonkeyPatch) -> Web:
    """An application with a little of everything in it, whose webhooks go nowhere."""
    web = make_web(db_url, api_key=SecretStr(KEY), predict_wait_s=0, rate_limit="")
    with web.db.write() as session:
        session.add(InboxRow(name="north", bucket="north", created_at=0.0))
    brought_to(web.db, None)
    ledger.accept(web.db, upload(), inbox="north")
    keys.add(web.db, "a", Role.VIEWER, actor="cli")
    monkeypatch.setattr("webhooks.outbound.deliver_one", lambda *arguments, **more: None)
    return web


def operations(web: Web) -> Iterator[Any]:
    """Everything that the description names."""
    description = web.client.get("/docs/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).get_json()
    schema = schemathesis.openapi.from_dict(description)
    schema.app = web.app
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        yield found.ok()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("db_url", "mode"), KINDS if LONG else KINDS[::3], indirect=["db_url"], ids=lambda one: getattr(one, "value", one))
def test_no_request_makes_the_server_fail(web: Web, mode: GenerationMode) -> None:
    tried = 0
    for operation in operations(web):
        strategy = operation.as_strategy(generation_mode=mode)

        @seed(SEED)
        @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=strategy)
        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            response = case.call(headers={"Authorization": f"Bearer {KEY}"})
            said = f"{case.method} {case.formatted_path} {case.query} {case.body!r:.500}: {response.status_code} {response.text[:500]}"
            assert response.status_code < 500, said
            assert KEY not in response.text, said
            assert SECRET_KEY not in response.text, said
            if response.status_code >= 400:
                assert response.headers["content-type"] == ["application/problem+json"], said

        try:
            ask()
        except Exception as error:
            if "Unsatisfiable" in type(error).__name__ or "no way to" in str(error).lower():
                continue  # nothing that is not as described can be made for this one
            raise
    assert tried > 100
