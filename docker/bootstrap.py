"""Makes the virtual environments the Makefile works in: brings uv, and through uv the interpreter and every package.

    python3 docker/bootstrap.py serve     .venv      what serving needs, with the embedded stack and the demo
    python3 docker/bootstrap.py dev       .venv-dev  the same, with training, tests and checks
    python3 docker/bootstrap.py train     .venv-train what trainings need, for the train worker of the stack
    python3 docker/bootstrap.py sqs       .venv-sqs  emulators of Amazon's services, for tests; nothing of the project
    python3 docker/bootstrap.py uv ...    run uv itself

Standard library only, for any python3 from 3.8 on, with or without venv and pip. Packages come from the index that pip and uv
are set up for, checked against the hashes in docker/requirements/. A second run with nothing changed takes a fraction of a
second. Errors are one sentence, exit code 2.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "docker" / "requirements"
TOOLS = ROOT / ".venv-tools"
ENVIRONMENTS = {"serve": ROOT / ".venv", "dev": ROOT / ".venv-dev", "train": ROOT / ".venv-train", "sqs": ROOT / ".venv-sqs"}
WITHOUT_PROJECT = ("sqs",)
"""What has only other people's programs in it."""
PYTHON = "3.11"
OLDEST_UV = (0, 8)


class BootstrapError(Exception):
    """What is missing and what to do about it, in one sentence."""


def main(arguments: List[str]) -> int:
    """Run one of the three commands of the module's docstring."""
    try:
        if sys.version_info < (3, 8):
            raise BootstrapError(f"python3 is {platform.python_version()}, too old: name one from 3.8 on, as in make PYTHON=python3.11.")
        if arguments[:1] == ["uv"]:
            return subprocess.call([find_uv(), *arguments[1:]])
        if len(arguments) != 1 or arguments[0] not in ENVIRONMENTS:
            raise BootstrapError(f"Say which environment: {', '.join(ENVIRONMENTS)}.")
        check_platform()
        turn = os.open(str(LOCKS), os.O_RDONLY)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)  # two makes at once take turns
            install(arguments[0])
        finally:
            os.close(turn)
    except BootstrapError as error:
        print(f"unmask: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def check_platform() -> None:
    """The locked wheels exist for one platform; say so before downloading half of them."""
    system, machine = platform.system(), platform.machine()
    name, version = platform.libc_ver()
    if (system, machine) != ("Linux", "x86_64"):
        raise BootstrapError(f"Unmask runs on Linux on x86-64, and this is {system} on {machine}: use such a machine, or a virtual one.")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        raise BootstrapError(f"Unmask needs glibc 2.28 or newer (Debian 10, Ubuntu 20.04), and this is {name or 'another'} {version}.")


def find_uv() -> str:
    """A recent uv: the one on PATH, the one brought earlier, or one brought now by this python's pip."""
    brought = str(TOOLS / "bin" / "uv")
    for candidate in (shutil.which("uv"), brought):
        if candidate and _uv_version(candidate) >= OLDEST_UV:
            return candidate
    print("Fetching uv ...", file=sys.stderr)
    pip_install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(LOCKS / "uv.txt")]
    if _works([sys.executable, "-m", "pip", "--version"]):
        command = [sys.executable, *pip_install, "--upgrade", "--target", str(TOOLS)]
    elif _works([sys.executable, "-m", "venv", "--clear", str(TOOLS)]):
        command = [str(TOOLS / "bin" / "python"), *pip_install]
    else:
        raise BootstrapError(
            "This python3 has neither pip nor venv: install one (Debian and Ubuntu: apt-get install python3-venv) or uv, and try again."
        )
    # A user's pip settings may ask for --user or for a virtual environment; neither fits here.
    settings = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.call(command, env=settings) != 0 or not _uv_version(brought):
        raise BootstrapError("uv could not be fetched (pip says why above): check the connection and pip's index and proxy settings.")
    return brought


def install(name: str) -> None:
    """Bring one environment to exactly what its lock file says, with the project itself in it, editable."""
    environment, lock = ENVIRONMENTS[name], LOCKS / f"{name}.txt"
    stamp = environment / "unmask.stamp"
    python = environment / "bin" / "python"
    described = [lock, Path(__file__)]
    if name not in WITHOUT_PROJECT:
        described += [ROOT / "pyproject.toml", LOCKS / "build.txt"]
    wanted = f"{ROOT}\n{hashlib.sha256(b''.join(path.read_bytes() for path in described)).hexdigest()}\n"
    found = stamp.read_text() if stamp.exists() else None
    if found == wanted and _works([str(python), "--version"]):
        return
    if environment.exists() and found is None:
        raise BootstrapError(f"{environment} was not made by this Makefile: move it away and try again.")
    uv = find_uv()
    moved = found is None or found.splitlines()[0] != str(ROOT)  # paths inside an environment are absolute
    if moved or not _works([str(python), "--version"]):
        _run(
            [uv, "venv", "--quiet", "--clear", "--no-project", "--python", PYTHON, str(environment)],
            f"Python {PYTHON} is not here and uv could not fetch it (it says why above): install Python {PYTHON} and try again.",
        )
    stamp.write_text(f"{ROOT}\nunfinished\n")
    print(f"Installing {environment.name} from {lock.relative_to(ROOT)} ...", file=sys.stderr)
    failed = f"{environment.name} could not be installed (uv says why above): check the connection, the disk and uv's settings."
    # Compiled now, on all cores, and not by each of a dozen processes that start at once.
    _run([uv, "pip", "sync", "--python", str(python), "--require-hashes", "--compile-bytecode", str(lock)], failed)
    if name in WITHOUT_PROJECT:
        stamp.write_text(wanted)
        return
    project = ["--no-deps", "--build-constraints", str(LOCKS / "build.txt"), "--editable", str(ROOT)]
    _run([uv, "pip", "install", "--quiet", "--python", str(python), *project], failed)
    stamp.write_text(wanted)


def _uv_version(command: str) -> "tuple[int, ...]":
    try:
        said = subprocess.run([command, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout.decode()
    except OSError:
        return ()
    numbers = re.match(r"uv (\d+)\.(\d+)\.(\d+)", said)
    return tuple(int(part) for part in numbers.groups()) if numbers else ()


def _works(command: List[str]) -> bool:
    try:
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def _run(command: List[str], failed: str) -> None:
    if subprocess.call(command) != 0:
        raise BootstrapError(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
