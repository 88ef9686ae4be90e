"""The check of the Kubernetes manifests: ours pass, and what is wrong does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"


def check(*files: Path) -> tuple[int, str]:
    """Its exit code and what it says."""
    command = [sys.executable, str(ROOT / "docker" / "manifests.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_ours_are_as_kubernetes_wants_them_and_what_was_left_out_is_said() -> None:
    status, said = check()

    assert status == 0, said
    assert "6 Deployment, 1 Job, 1 Service" in said
    assert "left out: 3 ScaledObject, 1 TriggerAuthentication" in said


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("terminationGracePeriodSeconds:", "terminationGraceSeconds:", "terminationGraceSeconds"),
        ("terminationGracePeriodSeconds: 75", "terminationGracePeriodSeconds: soon", "soon"),
        ("kind: Deployment", "kind: Deploiment", "Deploiment"),
        ("apiVersion: apps/v1\n", "", "apiVersion"),
    ],
)
def test_a_mistake_fails_and_is_named(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    text = (KUBERNETES / "workers.yaml").read_text()
    assert right in text
    spoilt = tmp_path / "workers.yaml"
    spoilt.write_text(text.replace(right, wrong, 1))

    status, said = check(spoilt)

    assert status == 1, said
    assert named in said


def test_a_file_that_holds_nothing_to_check_does_not_pass(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("---\n")

    assert check(empty)[0] == 1
