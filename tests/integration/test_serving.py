"""Stopping the web process: what is under way is answered, nothing new is begun, and nobody holds it up for ever."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.fixtures.stores import wait_until

SIZE = 3_000_000
PROGRAM = """
import sys, time
from pathlib import Path
from webhooks.serving import serve

def application(environ, start):
    print("asked", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.02)
    start("200 OK", [("Content-Length", sys.argv[4])])
    return [b"x" * int(sys.argv[4])]

serve(application, host="127.0.0.1", port=int(sys.argv[1]), threads=2, patience_s=float(sys.argv[3]))
print("ended", flush=True)
"""

Start = Callable[[float], tuple[subprocess.Popen[str], int, Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server, which answers as soon as a file is there; gives its process, its port and the file."""
    begun: list[subprocess.Popen[str]] = []

    def one(patience_s: float) -> tuple[subprocess.Popen[str], int, Path]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        let = tmp_path / "answer"
        command = [sys.executable, "-c", PROGRAM, str(port), str(let), str(patience_s), str(SIZE)]
        begun.append(process := subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True))
        wait_until(lambda: not refused(port), "the server", seconds=20)
        return process, port, let

    yield one
    for process in begun:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def asked(port: int) -> int:
    with urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        return len(answer.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_under_way_is_answered_and_none_is_begun(start: Start, number: signal.Signals) -> None:
    process, port, let = start(30)
    assert process.stdout is not None
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(asked, port)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        wait_until(lambda: refused(port), "the door to be closed", seconds=10)
        assert process.poll() is None, "somebody still waits"
        let.touch()
        assert waiting.result(20) == SIZE
    assert process.wait(10) == 0
    assert process.stdout.read() == "ended\n"


def test_whoever_takes_too_long_is_left(start: Start) -> None:
    process, port, _ = start(0.3)
    assert process.stdout is not None
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(asked, port)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        with pytest.raises(OSError, match=r"."):
            waiting.result(15)
