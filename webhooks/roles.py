"""Which role each route asks for. A route that is not named here asks for the most: a test holds that all are named."""

from __future__ import annotations

from pipeline.access import Role

OPEN = frozenset({"health.alive", "health.ready", "dashboard.login", "dashboard.log_in", "static", "dashboard.static", "docs.asset"})
"""Routes that ask for nobody."""

NEEDS: dict[str, Role] = {}
"""By Flask's name of the route (`blueprint.function`)."""
