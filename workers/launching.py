"""How the trainer is started on a group of cards, what it says while it runs, and what its end means. Never imports TensorFlow.

A training is one process to whoever starts it, on whatever device and however many cards::

    launch = launching.Launch(group, launcher=settings.train_launcher, python=settings.train_python or sys.executable)
    trainer = [*launching.trainer(folder, progress=folder / "progress.jsonl", bf16="off"), "--faces", faces, "--steps", "1000"]
    process = subprocess.Popen(
        launching.command_of(launch, trainer), env=launching.environment_of(launch), pass_fds=lease.descriptors, ...
    )

SIGTERM to that process: every rank ends at the same step, rank 0 leaves a checkpoint, the exit code is 75 (`STOPPED`). The same
command in the same folder, or in another folder of another machine that holds the files of `CHECKPOINT_FILES`, goes on bit for
bit. With `--resume` it is an error when there is no checkpoint. When the process is killed, its ranks end as well.

Exit codes: 0 done (`weights.h5`, `training.json`, `curve.json` are in the folder), 75 stopped and resumable, 1 may work again,
2 wrong settings, data or machine, 134 or a negative number: died. `outcome_of` says what that means in one sentence.

Progress: `--progress FILE` gets one JSON object a line, appended, by rank 0 only; without it they go to standard output. Every
line has `event`, and but for `device`, `stopped` and `done` also `stage` (from 0), `size` (of the crops, pixels), `step` and
`steps` (of the stage), `epoch` (reals seen over reals there are, a float), `seen` (images in all), `rate` (learning rate),
`images_per_s` (all ranks together), `eta_s` (to the end of the training; None: not known yet) and `seconds` (of training in
all, over every resumption).

    {"event": "device", "device": "hpu", "ranks": 8, "precision": "bf16 by TF_BF16_CONVERSION", "resumed": true}
    {"event": "step", ...}                            at most once a second
    {"event": "look", ..., "loss": 0.41, "val_loss": 0.52, "auc": 0.83, "auc_warp": 0.83, "auc_region": ...}   every --look steps
    {"event": "checkpoint", ..., "file": "checkpoint.npz"}    written, whole, and safe to copy
    {"event": "stopped", "stage": 0, "step": 812}
    {"event": "done", "seen": 120000, "hours": 3.01}

`auc` is that of the held-out kind, the one that chooses the weights. The last lines of standard error say what went wrong.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.cards import Group

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


def trainer(folder: Path, *, progress: Path | None = None, resume: bool = False, bf16: str = "off") -> list[str]:
    """Arguments of the trainer that concern how, not what, it trains; the others are those of `pipeline.training.fit`."""
    arguments = ["--out", str(folder), "--bf16", bf16]
    if progress is not None:
        arguments += ["--progress", str(progress)]
    return [*arguments, "--resume"] if resume else arguments


def command_of(launch: Launch, arguments: Sequence[str]) -> list[str]:
    """The one command that trains on these cards, ended by SIGTERM, whose standard output and error are those of all ranks."""
    device = ["--device", launch.group.device, "--ranks", str(launch.group.world)]
    if launch.device_root != Path("/"):
        device += ["--device-root", str(launch.device_root)]
    alone = [launch.python, "-m", "pipeline.training.fit", *device, *arguments]
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


def pinning(launch: Launch) -> dict[str, str]:
    """The variables that tie a training to its cards (see `unmask cards`)."""
    raise NotImplementedError


def outcome_of(code: int, last: Sequence[str] = ()) -> Outcome:
    """What an exit code means, with the last lines that the trainer wrote to standard error."""
    raise NotImplementedError
