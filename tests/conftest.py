"""Fixtures live in `tests/fixtures/`, one module per kind of thing; every module there is loaded."""

from pathlib import Path

pytest_plugins = [f"tests.fixtures.{path.stem}" for path in sorted((Path(__file__).parent / "fixtures").glob("[a-z]*.py"))]
