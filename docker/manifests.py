"""Checks the Kubernetes manifests against the schemas of the newest Kubernetes that kubernetes-validate carries: part of `make containers`.

    python docker/manifests.py [FILE ...]                docker/kubernetes/*.yaml unless files are named

Strictly: a property that the schema does not know is an error, and so is a kind that has no schema. Only KEDA's own kinds (keda.sh) are
left out, and it says so. Needs no network. Exit code 0: all is well; 1: something is not.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import kubernetes_validate
from kubernetes_validate.utils import resources_from_file

FOLDER = Path(__file__).resolve().parent / "kubernetes"
WITHOUT_SCHEMA = ("keda.sh/",)
"""Groups of kinds that Kubernetes itself does not know."""


def main(arguments: list[str]) -> int:
    """Check the files and say what was found."""
    version = kubernetes_validate.latest_version()
    wrong: list[str] = []
    found: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for path in [Path(name) for name in arguments] or sorted(FOLDER.glob("*.yaml")):
        for resource in resources_from_file(str(path)):
            kind = str(resource.get("kind"))
            if str(resource.get("apiVersion")).startswith(WITHOUT_SCHEMA):
                left_out[kind] += 1
                continue
            found[kind] += 1
            error = _error(resource, version)
            if error is not None:
                wrong.append(f"{path.name}: {kind} {resource.get('metadata', {}).get('name', 'without a name')}: {error}")
    print("\n".join([*wrong, f"Checked against Kubernetes {version}: {_said(found)}. No schema here, left out: {_said(left_out)}."]))
    return 1 if wrong or not found else 0


def _error(resource: dict[str, Any], version: str) -> str | None:
    """What is wrong with a resource, in one sentence."""
    for name in ("apiVersion", "kind"):
        if name not in resource:
            return f"it has no {name}."
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"at {'.'.join(str(step) for step in error.path) or 'its top'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return f"{error.message}."
    return None


def _said(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
