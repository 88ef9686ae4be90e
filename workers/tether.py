"""Run a program that does not outlive whoever started it: `python tether.py LOCK PROGRAM ARGUMENT...`.

The kernel kills it when its parent dies (Linux: PR_SET_PDEATHSIG). It also keeps a shared lock on the file LOCK, and so
do its own children, so that whoever can lock LOCK for itself knows that none of them is alive any more.

Only the standard library, and little of it: this runs before each program of the stack.
"""

import ctypes
import fcntl
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie() -> None:
    """Have this process killed when its parent dies. Where the kernel cannot do that, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died just before
        os.kill(os.getpid(), signal.SIGKILL)


def main(lock: str, program: str, *arguments: str) -> None:
    """Tie this process to its parent, lock, and become the program."""
    tie()
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.set_inheritable(descriptor, True)
    os.execv(program, [program, *arguments])  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
