"""Is the process alive, is everything it needs there, and the figures: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Lock

import redis
from flask import Blueprint, Response, json
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import literal, select

from webhooks.context import Context, here
from webhooks.metrics import registry
from webhooks.problems import CONTENT_TYPE, ProblemBody

log = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""What has not answered by then counts as down."""

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@blueprint.get("/readyz")
def ready() -> Response:
    """Everything it needs answers, too; else 503 with what does not."""
    components = _probes().look(here())
    down = [name for name, state in components.items() if state != "ok"]
    if not down:
        return Response(json.dumps({"status": "ok", "components": components}), 200, mimetype="application/json")
    detail = f"The {' and the '.join(down)} cannot be reached."
    problem = ProblemBody(type="about:blank", title="Service Unavailable", status=503, detail=detail)
    body = problem.model_dump() | {"components": components}
    return Response(json.dumps(body), 503, content_type=CONTENT_TYPE)


@blueprint.get("/metrics")
def figures() -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(registry(here())), content_type=CONTENT_TYPE_LATEST)


def _database(context: Context) -> None:
    with context.database.read() as session:
        session.execute(select(literal(1)))


def _broker(context: Context) -> None:
    with redis.Redis.from_url(context.settings.broker_url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S) as client:
        client.ping()


def _storage(context: Context) -> None:
    # Past every key: the bucket and the credentials are tried, nothing is listed.
    next(context.storage.listing(context.settings.inbox_bucket, start_after="\U0010ffff"), None)


PROBES: dict[str, Callable[[Context], None]] = {"database": _database, "broker": _broker, "storage": _storage}


class _Probes:
    """Looks at all components at once. A look that hangs is not begun a second time: it counts as down until it ends."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(len(PROBES), thread_name_prefix="probes")
        self._looks: dict[str, Future[None]] = {}
        self._lock = Lock()

    def look(self, context: Context) -> dict[str, str]:
        with self._lock:
            for name, probe in PROBES.items():
                if name not in self._looks or self._looks[name].done():
                    self._looks[name] = self._pool.submit(probe, context)
            looks = dict(self._looks)
        wait(looks.values(), timeout=PATIENCE_S)
        return {name: self._state(name, look) for name, look in looks.items()}

    def _state(self, name: str, look: Future[None]) -> str:
        if not look.done():
            return f"did not answer within {PATIENCE_S:g} seconds"
        if (error := look.exception()) is None:
            return "ok"
        log.warning("%s is down: %s", name, error)
        return "cannot be reached"


@cache
def _probes() -> _Probes:
    return _Probes()
