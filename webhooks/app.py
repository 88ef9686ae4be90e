"""The web application, and the process that serves it: `python -m webhooks.app`."""

from __future__ import annotations

import logging
import secrets
import sys
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, request
from flask_openapi3.models.info import Info
from flask_openapi3.models.security_scheme import SecurityScheme
from flask_openapi3.openapi import OpenAPI
from werkzeug.middleware.proxy_fix import ProxyFix

from pipeline.settings import Settings, SettingsError, settings
from webhooks import access, api, auditing, dashboard, docs, health, inbound, problems
from webhooks.context import NAME, Context

FORM_OVERHEAD = 1_000_000
"""What a multipart request may have beside its image."""
BODY_BYTES = 1_000_000
"""Of a request without an image."""
THREADS = 32
"""Most of them wait: for `/predict`, for the object store."""
ABOUT = (
    "Judges faces in images: a calibrated verdict per face, a copy of the image with a mesh over manipulated faces, and a signed webhook."
)


def create_app(settings: Settings) -> Flask:
    """The application. Opens nothing: database and storage are reached at the first request that needs them."""
    app = OpenAPI(
        "webhooks",
        info=Info(title="Unmask", version="1", description=ABOUT),
        security_schemes={"key": SecurityScheme(type="http", scheme="bearer", description="The server's API key, if it has one")},
        validation_error_status=422,
        validation_error_model=problems.ProblemBody,
        validation_error_callback=problems.of_validation,
        doc_ui=False,
        static_folder=None,
    )
    app.extensions[NAME] = Context(settings)
    app.config.update(
        SECRET_KEY=settings.secret_key.get_secret_value() if settings.secret_key else secrets.token_urlsafe(32),
        MAX_CONTENT_LENGTH=settings.max_image_bytes + FORM_OVERHEAD,
        MAX_FORM_MEMORY_SIZE=500_000,
        MAX_FORM_PARTS=200,
        TRUSTED_HOSTS=trusted_hosts(settings),
        SESSION_COOKIE_NAME="unmask",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.url.startswith("https://"),
        PERMANENT_SESSION_LIFETIME=7 * 86_400,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.before_request(_keep_small)
    app.before_request(dashboard.allow_many)
    problems.install(app)
    for blueprint in (health.blueprint, inbound.blueprint, docs.blueprint, dashboard.blueprint):
        app.register_blueprint(blueprint)
    api.install(app)
    access.install(app, settings)
    auditing.install(app)
    if settings.proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, *[settings.proxies] * 3)  # type: ignore[method-assign]
    return app


def _keep_small() -> None:
    # Only forms carry images; whatever else is as large is no request of ours. (Notifications have a limit of their own.)
    if request.mimetype != "multipart/form-data":
        request.max_content_length = BODY_BYTES


def trusted_hosts(settings: Settings) -> list[str] | None:
    """The names this server answers to; None: any. Those of the setting `trusted_hosts` come to its own.

    On a loopback address only the names of this machine and of the public URL are right, and another one is a page that
    has rebound its own name to us. Behind a container's or a proxy's address we cannot know what we are called.
    """
    host = settings.web_host
    try:
        local = host == "localhost" or (ip_address(host).is_loopback and ":" not in host)  # Werkzeug cannot compare [::1]
    except ValueError:
        local = False
    said = {name.strip() for name in settings.trusted_hosts.split(",") if name.strip()}
    if not local and not said:
        return None
    public = urlsplit(settings.url).hostname
    return sorted({"localhost", "127.0.0.1", *([host] if local else []), *([public] if public else []), *said})


def main() -> int:
    """Serve until told to stop."""
    from webhooks.serving import serve

    try:
        chosen = settings()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    logging.basicConfig(level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # full threads are not worth a line each
    largest = max(dashboard.UPLOAD_BYTES, chosen.max_image_bytes) + FORM_OVERHEAD
    serve(
        create_app(chosen),
        patience_s=chosen.predict_wait_s + 2,
        host=chosen.web_host,
        port=chosen.web_port,
        threads=THREADS,
        ident="unmask",
        max_request_body_size=largest,
        channel_timeout=180,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
