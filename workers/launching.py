"""How the trainer is started on a group of cards, what it says while it runs, and what its end means. Never imports TensorFlow.

A training is one process to whoever starts it, on whatever device and however many cards::

    launch = launching.Launch(group, launcher=settings.train_launcher, python=settings.train_python or sys.executable)
    how = launching.trainer(folder, progress=folder / "progress.jsonl", bf16=settings.train_bf16)
    trainer = [*how, "--faces", faces, "--steps", "1000"]
    process = subprocess.Popen(
        launching.command_of(launch, trainer), env=launching.environment_of(launch), pass_fds=lease.descriptors, ...
    )

SIGTERM to that process: every rank ends at the same step, rank 0 leaves a checkpoint, the exit code is 75 (`STOPPED`). The same
command in the same folder, or in another folder of another machine that holds the files of `CHECKPOINT_FILES`, goes on bit for
bit. With `--resume` it is an error when there is no checkpoint. When the process is killed, its ranks end as well.

With `--hold-s SECONDS` it goes on from a checkpoint only when `stored.json` in the folder names its stage and step (see
`pipeline.training.checkpoint.acknowledge`), or after those seconds: so no more than one interval is ever done again elsewhere.

Exit codes: 0 done (`weights.h5`, `training.json`, `curve.json` are in the folder), 75 stopped and resumable, 1 may work again,
2 wrong settings, data or machine, 134 or a negative number: died. `outcome_of` says what that means in one sentence.

Progress: `--progress FILE` gets one JSON object a line, appended, by rank 0 only; without it they go to standard output. Every
line has `event`, and but for `preparing`, `device`, `stopped` and `done` also `stage` (from 0), `size` (of the crops, pixels), `step` and
`steps` (of the stage), `epoch` (reals seen over reals there are, a float), `seen` (images in all), `rate` (learning rate),
`images_per_s` (all ranks together), `eta_s` (to the end of the training; None: not known yet) and `seconds` (of training in
all, over every resumption).

    {"event": "preparing", "what": "photographs", "done": 120, "total": 252}    before the first step, at most once a second,
                                                      and later where it takes long between two
    {"event": "device", "device": "hpu", "ranks": 8, "precision": "bf16 by TF_BF16_CONVERSION", "resumed": true}
    {"event": "step", ...}                            at most once a second
    {"event": "look", ..., "loss": 0.41, "val_loss": 0.52, "auc": 0.83, "auc_warp": 0.83, "auc_region": ...}   every --look steps
    {"event": "checkpoint", ..., "file": "checkpoint.npz"}    written, whole, and safe to copy
    {"event": "stopped", "stage": 0, "step": 812}
    {"event": "done", "seen": 120000, "hours": 3.01}

`auc` is that of the held-out kind, the one that chooses the weights. The last lines of standard error say what went wrong.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.groups import Group

Launcher = Literal["horovod", "strategy"]
"""How several Gaudi cards train together: `mpirun` and Horovod, or `HPUStrategy`. Other devices: always TensorFlow's own strategy."""
CHECKPOINT_FILES = ("best.h5", "checkpoint.npz")
"""What a training needs to go on elsewhere. Copy them in this order: the second says which of the first it belongs to."""
DONE, AGAIN, WRONG, STOPPED, ABORTED = 0, 1, 2, 75, 128 + signal.SIGABRT


@dataclass(frozen=True)
class Launch:
    """What to start it on.

    Attributes:
        group: the cards; one process each.
        launcher: for several Gaudi cards.
        python: the interpreter that has TensorFlow.
        device_root: where the devices of the machine are looked for.
    """

    group: Group
    launcher: Launcher = "horovod"
    python: str = sys.executable
    device_root: Path = Path("/")


@dataclass(frozen=True)
class Outcome:
    """What the end of a trainer means. `state`: done, stopped (resumable) or failed; `permanent`: it would fail again."""

    state: Literal["done", "stopped", "failed"]
    sentence: str = ""
    permanent: bool = False


def trainer(folder: Path, *, progress: Path | None = None, resume: bool = False, bf16: str = "auto", hold_s: float = 0.0) -> list[str]:
    """Arguments of the trainer that concern how, not what, it trains; the others are those of `pipeline.training.fit`."""
    arguments = ["--out", str(folder), "--bf16", bf16]
    if progress is not None:
        arguments += ["--progress", str(progress)]
    if hold_s:
        arguments += ["--hold-s", f"{hold_s:g}"]
    return [*arguments, "--resume"] if resume else arguments


def command_of(launch: Launch, arguments: Sequence[str]) -> list[str]:
    """The one command that trains on these cards, ended by SIGTERM, whose standard output and error are those of all ranks."""
    device = ["--device", launch.group.device, "--ranks", str(launch.group.world)]
    if launch.device_root != Path("/"):
        device += ["--device-root", str(launch.device_root)]
    alone = [launch.python, "-m", "pipeline.training.fit", "--tied", *device, *arguments]
    if launch.group.world == 1:
        return alone
    modules = ",".join(map(str, launch.group.modules))
    how = ["--device", launch.group.device, "--modules", modules, "--launcher", launch.launcher]
    return [launch.python, "-m", "workers.ranks", *how, "--", *alone]


def environment_of(launch: Launch, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of that command: `base` (None: this process's) without what another launch left, and the pinning."""
    environment = dict(os.environ if base is None else base)
    return {name: value for name, value in environment.items() if not _LEFT.match(name)} | pinning(launch)


_LEFT = re.compile(r"(OMPI_|PMIX_|PRTE_|HLS_|HABANA_VISIBLE_MODULES|TF_CONFIG|TF_BF16_CONVERSION|CUDA_VISIBLE_DEVICES)")


def pinning(launch: Launch, rank: int | None = None) -> dict[str, str]:
    """The variables that tie a training to its cards, or one of several ranks to its own (see `unmask cards`)."""
    modules = launch.group.modules
    mine = modules if rank is None else (modules[rank],)
    if launch.group.device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if launch.group.device == "gpu":
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}
    if len(modules) == 1:
        return {"HLS_MODULE_ID": str(modules[0])}
    together = {"HABANA_VISIBLE_MODULES": ",".join(map(str, modules))}
    if launch.launcher == "strategy":  # without MPI the bridge looks at this one only
        return together | ({} if rank is None else {"HLS_MODULE_ID": str(modules[rank])})
    return together | {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}


def cluster(ports: Sequence[int], rank: int) -> dict[str, str]:
    """The variable by which the ranks of a strategy find each other on this machine."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})}


def mpirun(world: int, command: Sequence[str], processors: int | None = None) -> list[str]:
    """The vendor's command for several cards. A rank gets an eighth of the machine's cores, where that is at least one."""
    cores = (processors or os.cpu_count() or 1) // 2 // 8
    bound = ["--bind-to", "core", "--map-by", f"socket:PE={cores}"] if cores else ["--bind-to", "none"]
    return ["mpirun", "--allow-run-as-root", *bound, "-np", str(world), "--merge-stderr-to-stdout", *command]


def outcome_of(code: int, last: Sequence[str] = ()) -> Outcome:
    """What an exit code means, with the last lines that the trainer wrote (of standard error, or of both together)."""
    if code == DONE:
        return Outcome("done")
    if code == STOPPED:
        return Outcome("stopped", "It was asked to stop, and goes on from its checkpoint.")
    text = "\n".join(last)
    said = next((line.strip() for line in reversed(last) if line.strip()), "")
    for words, sentence, permanent in _KNOWN:
        if re.search(words, text):
            return Outcome("failed", sentence, permanent)
    number = -code if code < 0 else code - 128
    if number in (signal.SIGTERM, signal.SIGUSR1):
        return Outcome("stopped", "It was asked to stop before it had begun.")
    if code < 0 or 0 < number <= signal.SIGRTMAX:
        return Outcome("failed", _DEATHS.get(number, f"The trainer was ended by signal {number}."))
    if code == WRONG:
        return Outcome("failed", said or "The trainer was given wrong settings or data.", True)
    if code in (126, 127):
        return Outcome("failed", said or "A program that the trainer needs is not installed, or may not be run.", True)
    return Outcome("failed", said or f"The trainer ended with exit code {code} and said nothing.")


_KNOWN = (
    ("Device acquire failed", "The Gaudi card was busy or gone when the trainer asked for it (Device acquire failed).", False),
    (
        "Attempt to register an AllocatorFactory",
        "TensorFlow was used before the Gaudi bridge was loaded, which aborts the process: this interpreter loads it on its own.",
        True,
    ),
    (
        r"No module named '?(tensorflow|habana_frameworks|horovod)",
        "The interpreter of UNMASK_TRAIN_PYTHON has no TensorFlow for this device.",
        True,
    ),
    (r"ResourceExhaustedError|OOM when allocating", "The device has too little memory for this batch: lower --pairs.", True),
)
"""What others say when they fail: words, what that means here, and whether it would happen again."""
_DEATHS: dict[int, str] = {
    signal.SIGABRT: "The trainer was aborted, as happens when its device cannot be initialised.",
    signal.SIGSEGV: "The trainer crashed in native code.",
    signal.SIGBUS: "The trainer lost its memory: is there enough /dev/shm?",
    signal.SIGKILL: "The trainer was killed, as happens when the machine runs out of memory or its worker dies.",
}
