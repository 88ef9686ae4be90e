"""Several trainers that train as one, started and ended as one process (see `workers.launching`).

    python -m workers.ranks --device cpu --modules 0,1 -- python -m pipeline.training.fit --ranks 2 ...

Gaudi cards with Horovod are left to `mpirun`; otherwise one process a card is started here, and told of the others. SIGTERM and
SIGINT reach every rank. Where one ends wrongly, the others are ended too: they would wait for it for ever.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pipeline import groups
from workers import calm, tether
from workers.launching import DONE, STOPPED, Launch, cluster, mpirun, pinning

STOP = signal.SIGUSR1
"""What asks a rank to stop. mpirun passes it on, where SIGTERM makes it end its ranks; and TensorFlow's strategies keep SIGTERM."""
LOOK_S = 0.05
"""Between two looks at whether a rank has ended."""


def _begin() -> None:
    tether.tie()
    calm.settle()  # a session of its own is not as nice as this one by itself


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def commands(launch: Launch, command: Sequence[str], base: Mapping[str, str]) -> list[tuple[list[str], dict[str, str]]]:
    """What is started, each with its environment: one `mpirun`, or every rank."""
    if launch.group.device == "hpu" and launch.launcher == "horovod":
        return [(mpirun(launch.group.world, command), {**base, **pinning(launch)})]
    ports = free_ports(launch.group.world)
    return [(list(command), {**base, **pinning(launch, rank), **cluster(ports, rank)}) for rank in range(launch.group.world)]


def run(launch: Launch, command: Sequence[str]) -> int:
    """Start the ranks, wait for all, and give the exit code: that of the first that failed, else 75 if one was stopped, else 0."""
    living: dict[int, subprocess.Popen[bytes]] = {}
    asked: list[int] = []

    def send(number: int) -> None:
        for pid in list(living):
            with suppress(ProcessLookupError):  # it has ended, and a signal came before that was written down
                os.kill(pid, number)

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        send(STOP)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    for words, environment in commands(launch, command, os.environ):
        # Ctrl-C at a terminal is for this process, which has them stop in order; mpirun would end its ranks
        started = subprocess.Popen(words, env=environment, preexec_fn=_begin, start_new_session=True)
        living[started.pid] = started
    if asked:  # before there was anybody to hear it
        send(STOP)
    codes: list[int] = []
    while living:
        # not a wait that blocks: a signal that comes right before it would be heard when a rank has ended
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(LOOK_S)
            continue
        if (ended := living.pop(pid, None)) is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        ended.returncode = code
        codes.append(code if code >= 0 else 128 - code)
        if codes[-1] not in (DONE, STOPPED):
            send(signal.SIGKILL)
    failed = [code for code in codes if code not in (DONE, STOPPED)]
    return failed[0] if failed else max(codes)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring; 2: there is no such group, or a program is missing."""
    tether.tie()
    parser = argparse.ArgumentParser(description="Start several trainers that train as one.")
    parser.add_argument("--device", choices=groups.DEVICES, required=True)
    parser.add_argument("--modules", required=True)
    parser.add_argument("--launcher", choices=("horovod", "strategy"), default="horovod")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args(arguments)
    try:
        return run(Launch(groups.group(chosen.device, chosen.modules), chosen.launcher), chosen.command)
    except groups.CardError as error:
        print(error, file=sys.stderr)  # noqa: T201
    except FileNotFoundError as error:
        print(f"{error.filename} is not installed.", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
