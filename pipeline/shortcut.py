"""The two S3 requests that every job makes, straight to the wire: get an object, put an object.

boto3 spends more on a small request than the request itself costs. Here botocore signs it and urllib3 sends it, once;
whatever is not plain success is none, and whoever asked asks boto3, which knows about errors, redirects and patience. Only
for servers that are named by an endpoint, where objects are addressed by path. What is put is not hashed for the signature:
its CRC-32 goes with it, which the server checks, and which costs a tenth.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from isal import isal_zlib

CONNECT_S, READ_S = 3.0, 5.0
POOL = 32
_PATIENCE = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
_UNSIGNED = Config(s3={"payload_signing_enabled": False})


class Shortcut:
    """One server. Safe to share between threads, not across a fork. `credentials`: botocore's, which may renew themselves."""

    def __init__(self, endpoint: str, region: str, credentials: Any) -> None:
        self._endpoint, self._region, self._credentials = endpoint.rstrip("/"), region, credentials
        self._pool = urllib3.PoolManager(maxsize=POOL, timeout=_PATIENCE, retries=False)

    def get(self, bucket: str, key: str, *, version_id: str, etag: str, max_bytes: int) -> bytes | None:
        """The bytes of an object as `Storage.fetch` wants it; None: it is not as simple as that."""
        query = "?" + urlencode({"versionId": version_id}) if version_id else ""
        headers = {} if version_id or not etag else {"If-Match": f'"{etag}"'}
        answer = self._ask("GET", bucket, key, query=query, headers=headers)
        if answer is None:
            return None
        try:
            size = int(answer.headers.get("Content-Length", -1))
            if answer.status != 200 or not 0 <= size <= max_bytes:
                return None
            data: bytes = answer.read(decode_content=False)
            return data if len(data) == size else None
        except (urllib3.exceptions.HTTPError, OSError):
            return None
        finally:
            answer.close()  # what was read to its end is back in the pool by now

    def put(self, bucket: str, key: str, data: bytes, content_type: str) -> bool:
        """Write an object; the server checks the CRC-32 that comes with it. False: it is not as simple as that."""
        crc = base64.b64encode(isal_zlib.crc32(data).to_bytes(4, "big")).decode()
        headers = {"Content-Type": content_type, "x-amz-checksum-crc32": crc}
        answer = self._ask("PUT", bucket, key, headers=headers, body=data)
        if answer is None:
            return False
        answer.drain_conn()
        return bool(answer.status == 200)

    def _ask(self, method: str, bucket: str, key: str, *, query: str = "", headers: Mapping[str, str], body: bytes | None = None) -> Any:
        url = f"{self._endpoint}/{bucket}/{quote(key, safe='/~')}{query}"
        request = AWSRequest(method, url, headers=dict(headers), data=body)
        request.context.update(client_config=_UNSIGNED, has_streaming_input=body is not None)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        try:
            return self._pool.request(method, url, body=body, headers=dict(request.headers.items()), preload_content=False, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return None
