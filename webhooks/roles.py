"""Which role each route asks for, and which routes are for those who may see some inboxes only.

A route that is named nowhere here asks for the most, and lets nobody in who is bound to inboxes; a test holds that all are named.
"""

from __future__ import annotations

from pipeline.access import Role

OPEN = frozenset({"health.alive", "health.ready", "dashboard.login", "dashboard.log_in", "static", "dashboard.static", "docs.asset"})
"""Routes that ask for nobody."""

OWN_TOKEN = frozenset({"inbound.minio", "inbound.s3", "inbound.seaweedfs"})
"""Routes that object stores call, with a token of their own (see inbound)."""

NEEDS: dict[str, Role] = {
    # looking
    "dashboard.index": Role.VIEWER,
    "dashboard.jobs_fragment": Role.VIEWER,
    "dashboard.job": Role.VIEWER,
    "dashboard.job_fragment": Role.VIEWER,
    "dashboard.model_list": Role.VIEWER,
    "dashboard.log_out": Role.VIEWER,
    "docs.page": Role.VIEWER,
    "docs.webhooks": Role.VIEWER,
    "events.schema": Role.VIEWER,
    "events.schemas": Role.VIEWER,
    "docs.description": Role.VIEWER,
    "health.figures": Role.VIEWER,
    "jobs.listing": Role.VIEWER,
    "jobs.one": Role.VIEWER,
    "jobs.annotated": Role.VIEWER,
    "jobs.annotated_small": Role.VIEWER,
    "jobs.source": Role.VIEWER,
    "jobs.face": Role.VIEWER,
    "jobs.result": Role.VIEWER,
    "models.listing": Role.VIEWER,
    "queues.listing": Role.VIEWER,
    "dashboard.account": Role.VIEWER,
    "dashboard.change_password": Role.VIEWER,
    "keys.me": Role.VIEWER,
    # putting images in
    "dashboard.upload": Role.REVIEWER,
    "jobs.create": Role.REVIEWER,
    "predict.predict": Role.REVIEWER,
    # acting
    "dashboard.retry": Role.OPERATOR,
    "dashboard.cancel": Role.OPERATOR,
    "dashboard.promote": Role.OPERATOR,
    "dashboard.roll_back": Role.OPERATOR,
    "dashboard.endpoint_list": Role.OPERATOR,
    "dashboard.add_endpoint": Role.OPERATOR,
    "dashboard.endpoint": Role.OPERATOR,
    "dashboard.test_endpoint": Role.OPERATOR,
    "dashboard.rotate_endpoint": Role.OPERATOR,
    "dashboard.change_endpoint": Role.OPERATOR,
    "dashboard.delivery": Role.OPERATOR,
    "dashboard.replay_endpoint": Role.OPERATOR,
    "dashboard.switch_endpoint": Role.OPERATOR,
    "dashboard.remove_endpoint": Role.OPERATOR,
    "dashboard.redeliver": Role.OPERATOR,
    "deliveries.listing": Role.OPERATOR,
    "deliveries.one": Role.OPERATOR,
    "deliveries.redeliver": Role.OPERATOR,
    "endpoints.change": Role.OPERATOR,
    "endpoints.create": Role.OPERATOR,
    "endpoints.listing": Role.OPERATOR,
    "endpoints.one": Role.OPERATOR,
    "endpoints.remove": Role.OPERATOR,
    "endpoints.disable": Role.OPERATOR,
    "endpoints.enable": Role.OPERATOR,
    "endpoints.replay": Role.OPERATOR,
    "endpoints.rotate": Role.OPERATOR,
    "endpoints.test": Role.OPERATOR,
    "jobs.retry": Role.OPERATOR,
    "jobs.cancel": Role.OPERATOR,
    "models.promote": Role.OPERATOR,
    "models.rollback": Role.OPERATOR,
    "queues.pause": Role.OPERATOR,
    "queues.resume": Role.OPERATOR,
    # deciding who comes in
    "dashboard.add_key": Role.ADMIN,
    "dashboard.add_user": Role.ADMIN,
    "dashboard.audit_log": Role.ADMIN,
    "dashboard.change_user": Role.ADMIN,
    "dashboard.key_list": Role.ADMIN,
    "dashboard.revoke_key": Role.ADMIN,
    "dashboard.set_user_password": Role.ADMIN,
    "dashboard.switch_user": Role.ADMIN,
    "dashboard.user": Role.ADMIN,
    "dashboard.user_list": Role.ADMIN,
    "audit.listing": Role.ADMIN,
    "keys.create": Role.ADMIN,
    "keys.listing": Role.ADMIN,
    "keys.one": Role.ADMIN,
    "keys.revoke": Role.ADMIN,
    "users.change": Role.ADMIN,
    "users.create": Role.ADMIN,
    "users.end_sessions": Role.ADMIN,
    "users.listing": Role.ADMIN,
    "users.one": Role.ADMIN,
}
"""By Flask's name of the route (`blueprint.function`)."""

BY_INBOX = frozenset(
    {
        "dashboard.log_out",
        "docs.page",
        "docs.webhooks",
        "events.schema",
        "events.schemas",
        "dashboard.add_endpoint",
        "dashboard.change_endpoint",
        "dashboard.delivery",
        "dashboard.endpoint",
        "dashboard.endpoint_list",
        "dashboard.redeliver",
        "dashboard.remove_endpoint",
        "dashboard.replay_endpoint",
        "dashboard.rotate_endpoint",
        "dashboard.switch_endpoint",
        "dashboard.test_endpoint",
        "deliveries.listing",
        "deliveries.one",
        "deliveries.redeliver",
        "endpoints.change",
        "endpoints.create",
        "endpoints.disable",
        "endpoints.enable",
        "endpoints.listing",
        "endpoints.one",
        "endpoints.remove",
        "endpoints.replay",
        "endpoints.rotate",
        "endpoints.test",
        "docs.description",
        "dashboard.account",
        "dashboard.cancel",
        "dashboard.change_password",
        "dashboard.index",
        "dashboard.job",
        "dashboard.job_fragment",
        "dashboard.jobs_fragment",
        "dashboard.model_list",
        "dashboard.retry",
        "dashboard.upload",
        "jobs.annotated",
        "jobs.annotated_small",
        "jobs.cancel",
        "jobs.create",
        "jobs.face",
        "jobs.listing",
        "jobs.one",
        "jobs.result",
        "jobs.retry",
        "jobs.source",
        "keys.me",
        "models.listing",
        "predict.predict",
    }
)
"""Routes that show and touch only what belongs to the caller's inboxes, or nobody's data at all. Whoever is bound to
inboxes may use these and no others: add a route here only when every query in it takes `principal().inboxes`."""


def needed(endpoint: str) -> Role:
    """The role that a route asks for."""
    return NEEDS.get(endpoint, Role.ADMIN)
