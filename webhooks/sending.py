"""One signed HTTP request to a webhook receiver, kept on a short leash.

The receiver is chosen by a user and may be hostile: its address is resolved once, filtered and pinned; redirects are not
followed; the whole exchange has one deadline, however slowly bytes drip; only the beginning of the answer is read; no
proxy, credentials or certificates are taken from the environment.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import requests
from requests_hardened import Config, HTTPSession
from requests_hardened.ip_filter import InvalidIPAddress
from requests_hardened.ip_filter_adapter import IPFilterAdapter
from standardwebhooks import Webhook
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url
from urllib3.util.ssl_match_hostname import CertificateError

from pipeline.changes import clean
from webhooks.leash import LeashedAdapter, leashed, seconds_left
from webhooks.lookups import LOOKUPS

AGENT = "Unmask-Webhooks/1"
CONNECT_S = 5.0
DEADLINE_S = 20.0
"""From resolving the name to the last byte read."""
RESPONSE_BYTES = 4096
"""So much of an answer is read and kept; enough to see what the receiver complains about."""
MAX_HEADERS = 50
MAX_HEADER = 500
"""So many of an answer's headers are kept, and so many characters of each."""
UNKEPT = ("set-cookie", "set-cookie2", "www-authenticate", "proxy-authenticate")
"""Headers of an answer whose values are nobody's business."""
MAX_DATE = 100
ANOTHER_NAME = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

BLOCKED = tuple(ipaddress.ip_network(net) for net in ("168.63.129.16/32",))
"""Let through by requests-hardened 1.3, as are all of IPv6 beyond `UNICAST`: Azure's metadata and DNS address."""
UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out to the public. Beyond it are IPv4 addresses in other clothes (`::a.b.c.d`, `::ffff:0:a.b.c.d`)
and site-local ones, which the libraries take for public."""


@dataclass(frozen=True)
class Receiver:
    """Where to send, and the secrets to sign with: one, or two during a rotation."""

    url: str
    secrets: Sequence[str]
    allow_private: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of one request. `status_code` None: no answer, and `error` is the sentence that says why.

    `retry_after_s`: how long the receiver asks us to wait. `response`: the beginning of its answer. `request_headers` None:
    no connection was made, so nothing was sent. `response_headers` None: nothing came back.
    """

    status_code: int | None
    error: str | None
    duration_ms: float
    response: str | None = None
    retry_after_s: float | None = None
    request_headers: Mapping[str, str] | None = None
    response_headers: Mapping[str, str] | None = None

    @property
    def delivered(self) -> bool:
        """Only 2xx is success."""
        return self.status_code is not None and 200 <= self.status_code < 300


def address_allowed(address: str) -> bool:
    """Whether an IP address may be sent to when private addresses are not allowed: global unicast, not one we know to be special."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if isinstance(ip, ipaddress.IPv6Address) and ip not in UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in BLOCKED)


def body_of(payload: Mapping[str, Any], public_url: str, *, indent: int | None = None) -> str:
    """The request body: the event as recorded, with the path in `data.url` made a full address. `indent`: for people to read."""
    data = dict(payload.get("data", {}))
    if str(data.get("url", "")).startswith("/"):
        data["url"] = public_url + data["url"]
    return json.dumps({**payload, "data": data}, separators=(",", ":" if indent is None else ": "), ensure_ascii=False, indent=indent)


def headers_of(event_id: str, body: str, secrets: Sequence[str], at: datetime) -> dict[str, str]:
    """The three Standard Webhooks headers. The id is the event's on every attempt; the time is this attempt's."""
    signatures = [Webhook(secret).sign(event_id, at, body) for secret in secrets]
    return {"webhook-id": event_id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": " ".join(signatures)}


def send(receiver: Receiver, event_id: str, body: str, *, deadline_s: float = DEADLINE_S) -> Answer:
    """POST the body, signed. Never raises for anything the receiver does or is."""
    headers = headers_of(event_id, body, receiver.secrets, datetime.now(timezone.utc))
    headers |= {"Content-Type": "application/json", "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": AGENT}
    began = time.monotonic()
    heard: dict[str, str] | None = None
    with leashed(deadline_s) as leash, _session(receiver.allow_private) as session:
        timeout = (min(CONNECT_S, deadline_s), deadline_s)
        try:
            with session.post(receiver.url, data=body.encode(), headers=headers, timeout=timeout, stream=True) as response:
                if leash.snapped:  # in the middle of the headers: what has come of them proves nothing
                    raise TimeoutError
                status, error, wait = response.status_code, _complaint(response), _retry_after(response.headers.get("Retry-After"))
                heard = kept_headers(response.headers)
                said = _beginning(response)
        except (requests.RequestException, HTTPError, OSError, ValueError) as trouble:
            status, said, wait = None, None, None
            error = _sentence(trouble, receiver.url, leash.snapped, deadline_s)
        sent = headers if leash.held else None
    return Answer(status, error, round((time.monotonic() - began) * 1000, 1), said, wait, sent, heard)


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The first of an answer's headers, long values cut, cookies and challenges left out."""
    kept = {}
    for name, value in list(headers.items())[:MAX_HEADERS]:
        kept[clean(name)[:MAX_HEADER]] = "…" if name.lower() in UNKEPT else clean(value)[:MAX_HEADER]
    return kept


def _beginning(response: requests.Response) -> str | None:
    try:
        return str(response.raw.read(RESPONSE_BYTES, decode_content=False).decode("utf-8", "replace"))
    except (HTTPError, OSError):  # the status has been said already, and it counts
        return None


def _session(allow_private: bool) -> requests.Session:
    config = Config(
        ip_filter_enable=not allow_private,
        ip_filter_allow_loopback_ips=False,
        never_redirect=True,
        default_timeout=(CONNECT_S, DEADLINE_S),
        user_agent_override=AGENT,
    )
    session: requests.Session = HTTPSession(config)
    session.trust_env = False
    for scheme in ("http", "https"):
        filtered = _Filtered(is_https_proto=scheme == "https")  # type: ignore[call-arg]  # the library carries no types
        session.mount(f"{scheme}://", LeashedAdapter() if allow_private else filtered)
    return session


def _complaint(response: requests.Response) -> str | None:
    if 200 <= response.status_code < 300:
        return None
    if 300 <= response.status_code < 400:
        return f"The receiver answered {response.status_code}: redirects are not followed."
    return f"The receiver answered {response.status_code}."


def _retry_after(value: str | None) -> float | None:
    if not value:
        return None
    if value.strip().removeprefix("-").isdecimal():  # as a float, however many digits there are
        return max(0.0, float(value))
    try:
        return max(0.0, parsedate_to_datetime(value[:MAX_DATE]).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):  # a date that is none, or of no year that there is
        return None


def _sentence(error: BaseException, url: str, snapped: bool, deadline_s: float) -> str:
    try:
        host = parse_url(url).host or url
    except LocationParseError:
        return "The URL is none that can be sent to."
    if _inside(error, socket.gaierror):
        return f"The name {host} could not be resolved."
    if snapped:
        return f"{host} did not answer completely within {deadline_s:g} seconds."
    if isinstance(error, InvalidIPAddress):
        return f"{host} leads to {error}, an address that webhooks may not be sent to."
    if isinstance(error, requests.exceptions.SSLError):
        return _tls_sentence(error, host)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"{host} did not accept the connection within {CONNECT_S:g} seconds."
    if isinstance(error, requests.exceptions.Timeout):
        return f"{host} did not answer within {deadline_s:g} seconds."
    return f"The connection to {host} failed."


def _tls_sentence(error: BaseException, host: str) -> str:
    untrusted = _inside(error, ssl.SSLCertVerificationError)
    if _inside(error, CertificateError) or (untrusted and untrusted.verify_code in ANOTHER_NAME):
        return f"The TLS certificate of {host} is made out to another name."
    if untrusted:
        return f"The TLS certificate of {host} was not accepted: {untrusted.verify_message}."
    return f"The TLS handshake with {host} failed."


Trouble = TypeVar("Trouble", bound=BaseException)


def _inside(error: BaseException, kind: type[Trouble]) -> Trouble | None:
    """The error of a kind that another is made of, however often the libraries wrapped it."""
    wrapped = [error]
    for one in wrapped:  # which grows meanwhile
        if isinstance(one, kind):
            return one
        inner = (one.__cause__, one.__context__, *one.args)
        wrapped.extend(another for another in inner if isinstance(another, BaseException) and another not in wrapped)
    return None


class _Filtered(LeashedAdapter, IPFilterAdapter):  # type: ignore[misc]
    """Resolves once, refuses what is not a public address, and connects to the very address that was looked at."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        build = super().build_connection_pool_key_attributes
        name = parse_url(request.url).host or ""
        host, pool = LOOKUPS.within(seconds_left(), name, lambda: build(request, verify, cert))
        address = host["host"].strip("[]")
        if not address_allowed(address):
            raise InvalidIPAddress(address)
        return host, pool
