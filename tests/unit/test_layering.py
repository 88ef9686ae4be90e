"""Who may import whom. Read from the source, so an import hidden inside a function counts as well."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("pipeline", "workers", "webhooks")

LAYERS = (
    {"settings", "jobs", "shortcut", "batching", "faults", "options", "groups", "stopping"},
    {
        "storage",
        "database",
        "events",
        "formats",
        "png",
        "images",
        "card",
        "gaudi",
        "access",
        "tables",
        "tables.access",
        "tables.inboxes",
        "tables.training",
        "tables.learning",
    },
    {
        "brief",
        "steps",
        "identity",
        "inboxes",
        "backfills",
        "inboxkeeping",
        "audit",
        "keys",
        "users",
        "passes",
        "changes",
        "deaths",
        "outbox",
        "pruning",
        "payloads",
        "ledger",
        "pauses",
        "cards",
        "trainings",
        "classroom",
        "schedules",
        "inquiry",
        "results",
        "registry",
        "signing",
        "trials",
        "feedback",
        "shadow",
        "drift",
        "solutions",
        "facenets",
        "extraction",
        "rendering",
    },
    {"classification"},
    {"collections", "holdout", "pins"},
    {"reference"},
    {"gate"},
)
"""The rooms of `pipeline` from the ground up. A room uses those below it and its neighbours; the ground uses nothing."""

DOORS = {("webhooks", "workers.app"), ("workers.upkeep", "webhooks.outbound")}
"""The two doors between the upper floors: who may go through, and where to."""


@dataclass(frozen=True)
class Import:
    """One import: the module it stands in, what it names, and whether it runs only when a function is called."""

    importer: str
    imported: str
    lazy: bool


def module_name(path: Path) -> str:
    """`workers/app.py` is `workers.app`, `pipeline/training/__init__.py` is `pipeline.training`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, importer: str, modules: set[str], *, package: bool = False) -> set[Import]:
    """Every import in a module's source; `from a import b` is `a.b` where that is a module, else `a`."""
    found: set[Import] = set()

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.update(Import(importer, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = importer.split(".")
                parents = parents[: len(parents) - node.level + package]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(Import(importer, full if full in modules else base, lazy))
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(source), False)
    return found


def within(name: str, *packages: str) -> bool:
    """Whether a module is one of these packages or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.fixture(scope="module")
def house() -> set[Import]:
    """Every import of the three floors."""
    paths = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    modules = {module_name(path) for path in paths}
    return {found for path in paths for found in imports(path.read_text(), module_name(path), modules, package=path.name == "__init__.py")}


def offenders(house: set[Import], importer: tuple[str, ...], imported: tuple[str, ...]) -> list[str]:
    """The imports from one place to another, as readable lines."""
    return sorted(
        f"{one.importer} imports {one.imported}" for one in house if within(one.importer, *importer) and within(one.imported, *imported)
    )


def test_an_import_is_seen_wherever_it_hides() -> None:
    source = "import a.b\nfrom . import near\nfrom ..top import name\ndef f():\n    from floor import room\nif 1:\n    import c as d\n"

    found = imports(source, "floor.wing.me", {"floor.room", "floor.wing.near"})

    assert found == {
        Import("floor.wing.me", "a.b", False),
        Import("floor.wing.me", "floor.wing.near", False),
        Import("floor.wing.me", "floor.top", False),
        Import("floor.wing.me", "floor.room", True),
        Import("floor.wing.me", "c", False),
    }


def test_the_pipeline_knows_neither_of_the_upper_floors(house: set[Import]) -> None:
    assert offenders(house, ("pipeline",), ("workers", "webhooks")) == []


def test_the_pipeline_knows_no_queue_and_no_web_framework(house: set[Import]) -> None:
    assert (
        offenders(house, ("pipeline",), ("celery", "kombu", "billiard", "redis", "flask", "flask_openapi3", "werkzeug", "waitress")) == []
    )


def test_tensorflow_is_imported_by_training_and_lazily_by_classification(house: set[Import]) -> None:
    users = {(one.importer, one.lazy) for one in house if within(one.imported, "tensorflow", "keras", "habana_frameworks", "horovod")}
    outside = {user for user in users if not within(user[0], "pipeline.training")}

    assert users, "nothing imports TensorFlow: this test looks in the wrong place"
    assert outside <= {("pipeline.classification", True)}


def test_nothing_loads_training_just_by_being_imported(house: set[Import]) -> None:
    eager = {one for one in house if within(one.imported, "pipeline.training") and not one.lazy}
    assert {one.importer for one in eager if not within(one.importer, "pipeline.training")} == set()


def test_between_the_upper_floors_there_are_two_doors(house: set[Import]) -> None:
    crossings = {
        (one.importer, one.imported)
        for one in house
        if (within(one.importer, "webhooks") and within(one.imported, "workers"))
        or (within(one.importer, "workers") and within(one.imported, "webhooks"))
    }
    unlawful = {crossing for crossing in crossings if not any(within(crossing[0], door[0]) and crossing[1] == door[1] for door in DOORS)}
    assert unlawful == set()


def test_every_room_of_the_pipeline_stands_on_rooms_below_it(house: set[Import]) -> None:
    floor_of = {f"pipeline.{room}": height for height, layer in enumerate(LAYERS) for room in layer}
    rooms = {one.importer for one in house if within(one.importer, "pipeline") and not within(one.importer, "pipeline.training")} - {
        "pipeline"
    }
    assert rooms <= floor_of.keys(), "give the new room a place in LAYERS"

    reference_runtime = {
        one
        for one in house
        if one.importer
        in ("pipeline.classification", "pipeline.collections", "pipeline.gate", "pipeline.holdout", "pipeline.pins", "pipeline.reference")
        and within(one.imported, "pipeline.training")
        and one.lazy
    }
    upward = {
        (one.importer, one.imported)
        for one in house - reference_runtime
        if one.importer in floor_of
        and within(one.imported, "pipeline")
        and (floor_of.get(one.imported, len(LAYERS)) > floor_of[one.importer] or floor_of[one.importer] == 0)
    }
    assert upward == set()


def test_there_is_no_circle_of_imports(house: set[Import]) -> None:
    uses: dict[str, set[str]] = {}
    for one in house:
        if within(one.imported, *FLOORS):
            uses.setdefault(one.importer, set()).add(one.imported)
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for used in sorted(uses.get(module, ())):
                walk(used, (*path, module))
            done.add(module)

    for module in sorted(uses):
        walk(module, ())
