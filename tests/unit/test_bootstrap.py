"""The bootstrap, with a uv that only writes down what it was asked to do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "docker" / "bootstrap.py"
UV = """#!/bin/sh
case "$1 $2" in
  --version*) echo "uv 99.0.0" ;;
  *) echo "$@" >> "{log}" ;;
esac
if [ "$1" = venv ]; then
  [ -e "{broken}" ] && exit 1
  for made; do :; done
  mkdir -p "$made/bin" && ln -sf "{python}" "$made/bin/python"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the files that the bootstrap reads."""
    (tmp_path / "here" / "docker" / "requirements").mkdir(parents=True)
    for name in ("serve.txt", "dev.txt", "sqs.txt", "build.txt", "uv.txt"):
        (tmp_path / "here" / "docker" / "requirements" / name).write_text("")
    (tmp_path / "here" / "pyproject.toml").write_text("")
    (tmp_path / "here" / "docker" / "bootstrap.py").write_text(SOURCE.read_text())
    return tmp_path / "here"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Puts the stand-in on PATH; calling it gives the first words of what was asked since the last call."""
    log, programs = tmp_path / "log", tmp_path / "programs"
    programs.mkdir()
    (programs / "uv").write_text(UV.format(log=log, broken=tmp_path / "broken", python=sys.executable))
    (programs / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def since_last() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        return [" ".join(word for word in line.split()[:2] if not word.startswith("-")) for line in lines]

    return since_last


def bootstrap(checkout: Path) -> ModuleType:
    """The script of a checkout, as a module."""
    spec = importlib.util.spec_from_file_location("bootstrap", checkout / "docker" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_environment_is_made_once_and_brought_up_to_date_when_the_lock_changes(checkout: Path, asked: Callable[[], list[str]]) -> None:
    assert bootstrap(checkout).main(["serve"]) == 0
    assert asked() == ["venv", "pip sync", "pip install"]

    assert bootstrap(checkout).main(["serve"]) == 0
    assert asked() == []

    (checkout / "docker" / "requirements" / "serve.txt").write_text("flask==3\n")
    assert bootstrap(checkout).main(["serve"]) == 0
    assert asked() == ["pip sync", "pip install"]


def test_the_emulators_environment_holds_nothing_of_the_project(checkout: Path, asked: Callable[[], list[str]]) -> None:
    assert bootstrap(checkout).main(["sqs"]) == 0
    assert asked() == ["venv", "pip sync"]

    (checkout / "pyproject.toml").write_text("[project]\n")
    assert bootstrap(checkout).main(["sqs"]) == 0
    assert asked() == []


def test_a_moved_checkout_gets_a_new_environment(checkout: Path, asked: Callable[[], list[str]]) -> None:
    bootstrap(checkout).main(["serve"])
    asked()

    moved = checkout.rename(checkout.parent / "there")

    assert bootstrap(moved).main(["serve"]) == 0
    assert asked() == ["venv", "pip sync", "pip install"]


def test_an_environment_of_somebody_else_is_left_alone(
    checkout: Path, asked: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / ".venv").mkdir()

    assert bootstrap(checkout).main(["serve"]) == 2
    assert "was not made by this Makefile" in capsys.readouterr().err
    assert asked() == []


def test_a_missing_interpreter_is_said_in_one_sentence(
    checkout: Path, asked: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout.parent / "broken").touch()

    assert bootstrap(checkout).main(["dev"]) == 2
    assert capsys.readouterr().err.strip().endswith("install Python 3.11 and try again.")
    assert asked() == ["venv"]


@pytest.mark.parametrize(
    ("machine", "libc", "said"),
    [("aarch64", ("glibc", "2.36"), "x86-64"), ("x86_64", ("glibc", "2.17"), "glibc 2.28"), ("x86_64", ("", ""), "glibc 2.28")],
)
def test_another_platform_is_refused_before_anything_is_fetched(
    checkout: Path,
    asked: Callable[[], list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    libc: tuple[str, str],
    said: str,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.libc_ver", lambda: libc)

    assert bootstrap(checkout).main(["serve"]) == 2
    assert said in capsys.readouterr().err
    assert asked() == []
