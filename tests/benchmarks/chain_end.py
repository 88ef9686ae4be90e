"""What the chains of empty tasks have in common: where their broker is, how the last step says that it was reached, and their sender.

`python -m tests.benchmarks.chain_end MODULE` reads numbers from its standard input, a line each, sends so many jobs by the module's `send`,
and answers with their ids.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import cache
from uuid import uuid4

BROKER, END = "CHAIN_BROKER", "CHAIN_END"
"""Environment variables: the broker's URL, and the path of the pipe that ends of chains are told on."""


def arrived(job_id: str) -> None:
    """The job came to its end: a line on the pipe, in one write, which costs about a microsecond with every queue alike."""
    os.write(_pipe(), f"{job_id}\n".encode())


@cache
def _pipe() -> int:
    return os.open(os.environ[END], os.O_WRONLY)


def main(module: str) -> None:
    """Send what is asked for."""
    send = importlib.import_module(module).send
    for line in sys.stdin:
        ids = [uuid4().hex for _ in range(int(line))]
        for job_id in ids:
            send(job_id)
        print(json.dumps(ids), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
