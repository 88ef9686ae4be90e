"""The one-machine stack without starting all of it: data directory, ports, secrets, orphans. The whole is in acceptance."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from pipeline.settings import Settings, from_environment, to_environment
from workers import embedded, ports, programs, tether
from workers.exclusion import locked, locked_within
from workers.place import Place, read, remember
from workers.stack import Stack, StackError


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.at(tmp_path / "data")


def test_secrets_are_made_once_and_are_the_owners_alone(place: Place) -> None:
    made = place.secrets()

    assert place.secrets() == made
    assert stat.S_IMODE((place.root / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(place.root.stat().st_mode) == 0o700
    assert len(set(made.values())) == len(made)
    assert len(made["secret_key"]) >= 32


def test_configuration_with_secrets_in_it_is_the_owners_alone(place: Place) -> None:
    chosen = Settings(events_token="t")
    programs.write_configuration(place, chosen, dict.fromkeys(programs.PORTS, 1), place.secrets())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.run.iterdir() if path.is_file()}
    assert modes == dict.fromkeys(("valkey.conf", "s3.json", "notification.toml", "supervisor.conf"), 0o600)


def test_everything_listens_on_this_machine_only(place: Place) -> None:
    numbers = {name: 30_000 + at for at, name in enumerate(programs.PORTS)}
    commands = {program.name: program.command for program in programs.programs(place, Settings(), numbers)}
    flags = commands["seaweedfs"]
    assert {"-ip.bind=127.0.0.1", "-disableHttp=true", "-master.telemetry=false", "-admin.ui=false", "-webdav=false"} <= set(flags)
    given = [int(flag.rpartition("=")[2]) for flag in flags if ".port" in flag]
    assert len(given) == len(set(given)) + 1, "each its own, and two that are off"


@pytest.mark.parametrize(("python", "trains"), [(sys.executable, ["train"]), ("/no/such/python", [])])
def test_each_queue_has_its_worker(place: Place, python: str, trains: list[str]) -> None:
    chosen = programs.programs(place, Settings(train_python=python), dict.fromkeys(programs.PORTS, 1))
    served = [program.command[program.command.index("-Q") + 1] for program in chosen if "-Q" in program.command]
    assert served == [*(f"interactive.{stage},{stage},backfill.{stage}" for stage in ("extract", "classify", "render")), "upkeep", *trains]


def test_ports_are_kept_where_they_are_free() -> None:
    with ports.Ports(programs.PORTS, {}, paired="admin") as first:
        pass
    with ports.Ports(programs.PORTS, first.numbers, paired="admin") as again:
        pass
    assert again.numbers == first.numbers
    assert len(set(first.numbers.values())) == len(programs.PORTS)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.numbers["s3"]))
        taken.listen()
        with ports.Ports(programs.PORTS, first.numbers, paired="admin") as second:
            pass
    assert second.numbers["s3"] != first.numbers["s3"]
    assert {**second.numbers, "s3": 0} == {**first.numbers, "s3": 0}


def test_two_stacks_that_start_at_once_choose_different_ports() -> None:
    with ports.Ports(["web"], {}, paired="") as first, ports.Ports(["web"], first.numbers, paired="") as second:
        assert ports.free(first.numbers["web"]), "nobody listens there yet"
        assert first.numbers != second.numbers


def test_a_port_that_was_asked_for_is_not_exchanged(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        chosen = Settings(data_dir=tmp_path / "data", web_port=taken.getsockname()[1])
        with pytest.raises(StackError, match="UNMASK_WEB_PORT"), Stack(chosen, print, Event()):
            pass


def test_a_second_stack_is_refused_in_one_sentence(place: Place) -> None:
    lock = place.occupy()
    assert lock is not None
    with pytest.raises(StackError, match="already: stop it first"), Stack(Settings(data_dir=place.root), print, Event()):
        pass
    os.close(lock)


def test_the_environment_of_a_living_stack_is_found_and_of_no_other(place: Place) -> None:
    chosen = Settings(data_dir=place.root, s3_endpoint="http://127.0.0.1:1", s3_access_key="a", s3_secret_key="b")
    assert embedded.running(place.root) is None, "nothing has been there"
    lock = place.occupy()
    assert lock is not None
    remember(place, {"s3": 1}, None)
    assert embedded.running(place.root) is None, "it is not ready"
    remember(place, {"s3": 1}, to_environment(chosen))
    assert embedded.running(place.root) == from_environment(to_environment(chosen))
    os.close(lock)
    assert embedded.running(place.root) is None, "it was killed"
    assert stat.S_IMODE(place.state.stat().st_mode) == 0o600


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"ports": ')
    assert read(tmp_path / "a.json") == {}


def test_a_path_too_long_for_a_socket_is_gone_round(tmp_path: Path) -> None:
    place = Place.at(tmp_path / ("long" * 25))
    assert len(str(place.supervisor)) < 104
    place.sockets.rmdir()


def test_no_process_outlives_its_parent_and_its_lock_tells(place: Place) -> None:
    asleep = [sys.executable, "-c", "import signal; signal.pause()"]
    tied = [sys.executable, "-S", "-E", tether.__file__, str(place.alive), *asleep]
    starter = f"import subprocess, signal; subprocess.Popen({tied!r}); print('up', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as parent, place.alive.open("a") as alive:
        assert parent.stdout is not None
        parent.stdout.readline()
        while locked(alive.fileno(), fcntl.LOCK_EX):  # until the sleeper has it
            fcntl.flock(alive, fcntl.LOCK_UN)
        parent.kill()
        assert locked_within(5, alive.fileno(), fcntl.LOCK_EX)
    assert place.deserted()
