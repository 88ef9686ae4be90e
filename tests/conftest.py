"""Fixtures live in `tests/fixtures/`, one module per kind of thing; every module there is loaded."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.fixtures")  # before one of them imports another

pytest_plugins = [f"tests.fixtures.{path.stem}" for path in sorted((Path(__file__).parent / "fixtures").glob("[a-z]*.py"))]
