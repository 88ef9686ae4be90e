"""Promises of the house about itself: names in the papers exist, locks are clean, files are small and well named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.jobs import Stage
from pipeline.settings import PREFIX, Settings, from_environment
from workers import programs
from workers.place import Place

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "docker" / "requirements").glob("*.txt"))
README = ROOT / "README.md"
GUIDES = sorted((ROOT / ".readme").glob("*.md"))
SETTINGS = ROOT / ".readme" / "settings.md"
ENV_EXAMPLE = ROOT / "docker" / ".env.example"

VARIABLES = {PREFIX + name.upper() for name in Settings.model_fields}


def tracked() -> list[Path]:
    """Every file git knows, where this is a git checkout."""
    listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def named_variables(path: Path) -> set[str]:
    """The UNMASK_ variables a text names; `X_FILE` counts as `X`."""
    names = re.findall(rf"\b{PREFIX}[A-Z0-9_]*[A-Z0-9]\b", path.read_text())
    return {name if name in VARIABLES else name.removesuffix("_FILE") for name in names}


@pytest.mark.parametrize(
    "path",
    [README, *GUIDES, ENV_EXAMPLE, ROOT / "Makefile", ROOT / ".ci" / "run", *sorted(p for p in (ROOT / "docker").glob("*") if p.is_file())],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_variable_named_in_the_papers_is_a_setting(path: Path) -> None:
    assert named_variables(path) - VARIABLES == set()


def test_every_setting_is_in_the_example_environment() -> None:
    assert VARIABLES - named_variables(ENV_EXAMPLE) == set()


def test_the_example_environment_shows_the_defaults() -> None:
    text = ENV_EXAMPLE.read_text().partition("# --- set by compose.yaml itself")[0]
    shown = dict(re.findall(rf"^#({PREFIX}\w+)=(.*)$", text, re.MULTILINE))

    assert shown.pop("UNMASK_PUBLIC_URL") == Settings().url
    assert from_environment({name: value.strip('"') for name, value in shown.items()}) == Settings()


def test_the_settings_guide_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(rf"^\| `({PREFIX}\w+)` \| ([^|]*?) \|", SETTINGS.read_text(), re.MULTILINE))

    assert rows.keys() == VARIABLES
    for variable, said in rows.items():
        default = Settings.model_fields[variable.removeprefix(PREFIX).lower()].default
        expected = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        assert said == expected, variable


def papers() -> str:
    """The README and its guides."""
    return "\n".join(path.read_text() for path in (README, *GUIDES))


def test_the_guides_are_found_from_the_readme_and_their_links_lead_somewhere() -> None:
    linked = {README: set(), **{guide: set() for guide in GUIDES}}
    for paper, targets in linked.items():
        targets |= {(paper.parent / name).resolve() for name in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", paper.read_text())}

    assert set(GUIDES) <= linked[README]
    assert [str(target) for targets in linked.values() for target in targets if not target.exists()] == []


def test_every_make_target_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", papers(), re.MULTILINE))

    assert named, "the README names no target"
    assert named - targets == set()


def test_every_command_the_readme_names_exists() -> None:
    from workers.cli import main

    named = set(re.findall(r"(?:^|[`/ ])unmask ([a-z]+)(?: ([a-z]+))?", papers(), re.MULTILINE))
    unknown = set()
    for command, sub in named:
        found = main.commands.get(command)
        if found is None or (sub and hasattr(found, "commands") and sub not in found.commands):
            unknown.add(f"{command} {sub}".strip())

    assert named, "the README names no command"
    assert unknown == set()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_files_hold_no_addresses(lock: Path) -> None:
    assert re.findall(r"\w+://|^\s*-{1,2}(?:index|extra|find|trusted)", lock.read_text(), re.MULTILINE) == []


def pins(lock: Path) -> dict[str, str]:
    """Name to version of a lock file."""
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==(\S+)", lock.read_text(), re.MULTILINE))


def test_the_locks_agree_with_each_other() -> None:
    image, serve, dev = (pins(ROOT / "docker" / "requirements" / f"{name}.txt") for name in ("image", "serve", "dev"))

    assert image.items() <= serve.items(), "run make lock"
    assert serve.items() <= dev.items(), "run make lock"


def test_large_files_are_starter_weights_only() -> None:
    large = [path.relative_to(ROOT).as_posix() for path in tracked() if path.stat().st_size > 5_000_000]
    assert [name for name in large if not name.startswith("pipeline/starter/")] == []


def test_code_files_are_short_and_named_for_what_they_do() -> None:
    code = [path for path in tracked() if path.suffix == ".py"]
    vague = re.compile(r"(?:utils?|helpers?|common|misc|managers?)(?:\.py)?")

    assert [path.relative_to(ROOT).as_posix() for path in code if any(vague.fullmatch(part) for part in path.relative_to(ROOT).parts)] == []
    assert [
        path.relative_to(ROOT).as_posix() for path in code if "tests" not in path.parts and len(path.read_text().splitlines()) > 400
    ] == []


def test_the_top_level_holds_what_a_newcomer_expects() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    folders = {"workers", "pipeline", "webhooks", "migrations", "tests", "docker"}
    papers = {"pyproject.toml", "README.md", "Makefile", "alembic.ini", "LICENSE", "CHANGELOG.md"}
    assert {name for name in top if not name.startswith(".")} == folders | papers


@pytest.fixture(scope="module")
def compose() -> dict[str, dict[str, object]]:
    """The services of the compose file, as Compose itself reads them."""
    command = [
        str(Path(sys.executable).parent / "docker-compose"),
        "--env-file",
        str(ENV_EXAMPLE),
        "-f",
        str(ROOT / "docker" / "compose.yaml"),
    ]
    config = subprocess.run([*command, "config", "--format", "json"], capture_output=True, check=True)
    services: dict[str, dict[str, object]] = json.loads(config.stdout)["services"]
    return services


def test_containers_publish_ports_on_this_machine_only(compose: dict[str, dict[str, object]]) -> None:
    published = {(name, port["host_ip"]) for name, service in compose.items() for port in service.get("ports", [])}  # type: ignore[attr-defined]

    assert published
    assert {host for _, host in published} == {"127.0.0.1"}


def test_containers_run_what_the_stack_on_one_machine_runs(compose: dict[str, dict[str, object]], tmp_path: Path) -> None:
    chosen = programs.programs(Place.at(tmp_path), Settings(), dict.fromkeys(programs.PORTS, 1))
    celery = {program.name: program.command[program.command.index("celery") + 1 :] for program in chosen if "celery" in program.command}

    contained = {name: tuple(service["command"][1:]) for name, service in compose.items() if "celery" in (service.get("command") or [])}  # type: ignore[index,operator]

    celery.pop("train", None)  # is there where TensorFlow is; in containers it has an overlay of its own
    assert contained == celery


def test_containers_may_take_as_long_to_stop_as_a_stage_takes(compose: dict[str, dict[str, object]]) -> None:
    stages = {name: service["stop_grace_period"] for name, service in compose.items() if "workers.stages" in (service.get("command") or [])}  # type: ignore[operator]

    assert stages.keys() == {stage.value for stage in Stage}
    assert set(stages.values()) == {"1m15s"}
    assert Settings().stage_limit_s + 10 < 75
