"""Makes the secrets of the compose stack in docker/secrets/, once: random, one value a file, nothing ever overwritten.

    python3 docker/make_secrets.py

Standard library only. The folder is closed to others; the files in it are readable, because the containers, which see the
files and not the folder, run as a user of their own.
"""

import json
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"


def main() -> int:
    """Write what is missing and say what was written."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    for name in ("secret_key", "api_key", "events_token", "postgres_password", "s3_secret_key"):
        _write(name, secrets.token_urlsafe(36))
    _write("s3_access_key", "unmask")
    _write("database_url", f"postgresql+psycopg://unmask:{_read('postgres_password')}@postgres/unmask")
    keys = {"accessKey": _read("s3_access_key"), "secretKey": _read("s3_secret_key")}
    identity = {"name": "unmask", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    _write("s3.json", json.dumps({"identities": [identity]}, indent=1))
    _write(
        "notification.toml",
        "[notification.webhook]\n"
        "enabled = true\n"
        'endpoint = "http://web:8080/events/seaweedfs"\n'
        f'bearer_token = "{_read("events_token")}"\n'
        'path_prefixes = ["/buckets/inbox"]\n',
    )
    return 0


def _write(name: str, text: str) -> None:
    path = FOLDER / name
    if path.exists():
        return
    path.write_text(text)
    path.chmod(0o444)
    print(f"made docker/secrets/{name}", file=sys.stderr)


def _read(name: str) -> str:
    return (FOLDER / name).read_text().strip()


if __name__ == "__main__":
    sys.exit(main())
