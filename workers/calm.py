"""Run a program that lets everything else on the machine go first: `python calm.py NICE PROGRAM ARGUMENT...`.

On a desktop's kernel, and many a server's, niceness counts only among processes of one session, and every session gets the same
share of the processor (autogroups, see sched(7)). A trainer has a session of its own: so that has to be nice, too.

Only the standard library: this runs before the trainer, in whatever interpreter.
"""

import os
import sys
import time

AUTOGROUP = "/proc/self/autogroup"


def settle() -> None:
    """Make this process's session as nice as the process is. Where the kernel knows no such thing, nothing happens."""
    for _ in range(20):
        try:
            with open(AUTOGROUP, "w") as file:  # noqa: PTH123
                file.write(str(os.nice(0)))
        except BlockingIOError:  # the kernel takes one such word every tenth of a second
            time.sleep(0.06)
        except OSError:
            return
        else:
            return


def main(nice: str, program: str, *arguments: str) -> None:
    """Become nicer by that much, and then the program."""
    os.nice(int(nice))
    settle()
    os.execvp(program, [program, *arguments])  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
