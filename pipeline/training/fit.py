"""Train the classifier from photographs of faces, with Keras.

    python -m pipeline.training.fit --faces ../shared/faces --out build/training --hours 3

One JSON line of progress at a time goes to standard output or to `--progress`, a progress bar to a terminal. SIGTERM and Ctrl-C
write a checkpoint and end with code 75; the same command then goes on as if it had never stopped. Several ranks are started by
`unmask train --ranks`, which starts this once for each.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import gaudi, options
from pipeline.groups import DEVICES
from pipeline.options import Options, OptionsError
from pipeline.stopping import setting
from pipeline.training import checkpoint, datasets, devices, examples, kept_out, lifeline, portraits
from pipeline.training.checkpoint import CheckpointError
from pipeline.training.crops import Cut, cached
from pipeline.training.datasets import COMPRESSIONS, DatasetError, content_hash
from pipeline.training.devices import BF16, Rank
from pipeline.training.errors import TrainingError
from pipeline.training.examples import KINDS, Recipe
from pipeline.training.feeding import Batch, Made, sides, stream, training_records
from pipeline.training.plan import Plan
from pipeline.training.trainer import SAVE_S, Trainer, Validation
from pipeline.training.weights import WeightsError

STOPPED = 75
"""Exit code: stopped by a signal, to be resumed (EX_TEMPFAIL of sysexits.h)."""
MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO}
MAY_PASS |= {errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
"""What of the system's errors is worth another try: a full disk or table may be emptied, a share may come back. A folder that may not be
written to, or a file in a folder's place, stays so."""
SAY_S = 5.0
"""Seconds between two lines about what is prepared."""
T = TypeVar("T")
PRESETS: dict[str, dict[str, Any]] = {
    # what learnt best from random weights on faces
    "scratch": {},
    # the public ResNet50 reference for ImageNet on one Gaudi; fine-tuning on faces needs its own learning rate
    "lars-imagenet": {
        "optimizer": "lars",
        "stages": "224:1:2.5",
        "pairs": 128,
        "weight_decay": 1e-4,
        "trust": 1e-3,
        "smoothing": 0.1,
        "clip": 0.0,
        "dropout": 0.0,
    },
}
RECIPE = {
    "strength": "of the augmentation, 0 to 1",
    "own_donor": "share of the swaps that take another face of the same person",
    "morph": "share of the photographs, real and fake alike, that become one with another person's",
    "bend": "share of the photographs, real and fake alike, that are bent as a whole",
    "untoned": "share of what is self-blended that is only moved, with no change of colour or sharpness",
    "near": "faces are manipulated at up to so many times the crop's size",
    "window": "share of the crops that are a part of a face",
    "margin": "of a crop around the face, on every side, as a share of the face's box",
}
"""What decides how pairs are made, beside the shares of the kinds."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's settings; a preset's come before the defaults and after what is given."""
    parser = argparse.ArgumentParser(description="Train the classifier with Keras.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--faces", type=Path, required=True, help="folder with faces.csv: photographs with identity and split")
    add("--out", type=Path, required=True, help="folder of this training: checkpoint, curve, weights")
    add("--facts", type=Path, help="where findings in the photographs are kept (.npz); default: in --out")
    add("--data", type=Path, help="reals and fakes of others to mix in: FaceForensics++, real/ and fake/, or a manifest")
    add("--compression", choices=COMPRESSIONS, default="c23", help="of the videos, where --data is FaceForensics++")
    add("--data-share", type=float, default=0.5, help="of the pairs that come from --data")
    add("--weights", type=Path, help="weights-only .h5 to start from: own, or ImageNet's")
    add("--preset", choices=sorted(PRESETS), default="scratch")
    add("--stages", default="96:.25:.001,160:.35:.001,224:.4:.0005", help="crop size:share of the time:learning rate, …")
    long = parser.add_mutually_exclusive_group(required=True)
    long.add_argument("--hours", type=float)
    long.add_argument("--steps", type=int)
    add("--optimizer", choices=("lars", "sgd", "adamw"), default="adamw")
    add("--pairs", type=int, default=16, help="reals, and as many fakes, in a batch")
    add("--weight-decay", type=float, default=0.05)
    add("--momentum", type=float, default=0.9)
    add("--trust", type=float, default=1e-3, help="trust coefficient of LARS")
    add("--dropout", type=float, default=0.2)
    add("--smoothing", type=float, default=0.02)
    add("--clip", type=float, default=5.0, help="largest norm of all gradients together, 0: none")
    add("--mask-weight", type=float, default=1.0, help="of the mask head's loss, 0: no mask head")
    add("--mask-target", choices=("area", "boundary"), default="area", help="what the mask head learns: what was changed, or its seam")
    add("--average", type=float, default=0.0, help="share that a step leaves of the weights' moving average, which is kept; 0: none")
    add("--norms", type=int, default=30, help="batches on which the norms are measured anew at the end, 0: none")
    add("--sam", type=float, default=0.0, help="radius of sharpness-aware minimisation, 0: off")
    add(
        "--bf16", nargs="?", const="policy", default="auto", choices=BF16, help="bfloat16 by Keras' policy or the Gaudi bridge's conversion"
    )
    add("--device", choices=DEVICES, default="cpu")
    add("--ranks", type=int, default=1, help="processes that train together, of which this is one")
    add("--device-root", type=Path, default=Path("/"), help="where dev and sys of the machine are")
    add("--progress", type=Path, help="append the lines of progress to this file instead of standard output")
    add("--resume", action="store_true", help="go on from the checkpoint in --out, and fail if there is none")
    add("--save-s", type=float, default=SAVE_S, help="seconds between two checkpoints at most")
    add("--hold-s", type=float, default=0.0, help="seconds that a checkpoint waits at most for stored.json to say that it is stored")
    add("--tied", action="store_true", help="end when the parent process does")
    add("--self-blended", type=float, default=Recipe.self_blended, help="share of the fakes")
    add("--face-swap", type=float, default=Recipe.face_swap, help="share of the fakes")
    add("--region", type=float, default=Recipe.region, help="share of the fakes")
    for name, what in RECIPE.items():
        add(f"--{name.replace('_', '-')}", type=float, default=getattr(Recipe, name), help=what)
    add("--held-out", choices=KINDS, default="warp", help="the kind that chooses the weights; never trained on, nor as a region")
    add("--patience", type=int, default=0, help="looks without progress on it after which the last stage ends, 0: never")
    add("--look", type=int, default=200, help="steps between two looks at the validation sets")
    add("--makers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that make batches, 0: none")
    add("--threads", type=int, default=0, help="of TensorFlow, 0: its own choice")
    add("--seed", type=int, default=1)
    preset = PRESETS[parser.parse_known_args(arguments)[0].preset]
    parser.set_defaults(**preset)
    chosen = parser.parse_args(arguments)
    chosen.command = shlex.join(["unmask", "train", *(sys.argv[1:] if arguments is None else arguments)])
    # what is given has the bounds that it has over the API; the defaults are ours, and depend on the machine
    said = {name: value for name, value in vars(chosen).items() if name in Options.model_fields and value != parser.get_default(name)}
    try:
        options.checked(said)
    except OptionsError as error:
        parser.error(str(error))
    chosen.hours, chosen.steps = chosen.hours or 0.0, chosen.steps or 0
    chosen.sizes = options.stages(chosen.stages)
    if abs(chosen.self_blended + chosen.face_swap + chosen.region - 1) > 1e-6:
        parser.error("--self-blended, --face-swap and --region must add up to 1")
    if chosen.ranks < 1 or chosen.pairs % chosen.ranks:
        parser.error(f"--pairs {chosen.pairs} cannot be shared evenly by {chosen.ranks} ranks")
    return chosen


def plan(chosen: argparse.Namespace, policy: str) -> Plan:
    """The trainer's plan from the command line."""
    same = (
        "optimizer",
        "seed",
        "pairs",
        "weight_decay",
        "momentum",
        "trust",
        "dropout",
        "smoothing",
        "clip",
        "mask_weight",
        "mask_target",
        "average",
        "norms",
        "sam",
    )
    more = ("steps", "hours", "look", "held_out", "patience")
    return Plan(stages=chosen.sizes, policy=policy, **{name: getattr(chosen, name) for name in same + more})


def train(chosen: argparse.Namespace, stopping: threading.Event) -> bool:
    """Train as told; False: stopped before the end. Raises TrainingError, CheckpointError, DatasetError or WeightsError."""
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.resume and not (chosen.out / checkpoint.FILE).exists():
        raise TrainingError(f"There is no {checkpoint.FILE} in {chosen.out} to go on from.")
    facts = chosen.facts or chosen.out / "faces.npz"
    # what is missing is said before work is put into the data, and faces are looked for before TensorFlow is loaded
    devices.check(chosen.device, chosen.ranks, root=chosen.device_root)

    def recipe(size: int) -> Recipe:
        shares = {"self_blended": chosen.self_blended, "face_swap": chosen.face_swap, "region": chosen.region}
        drawn = {name: getattr(chosen, name) for name in RECIPE}
        regions = examples.regions_without(chosen.held_out)
        return Recipe(size=size, smallest=min(size, max(40, size // 4)), **shares, **drawn, regions=regions)

    # whichever rank it is that prepares: while one has its turn, the others wait and cannot say so
    with Progress(chosen.progress) as progress:
        with _in_turn(chosen.out):  # one rank looks for the faces, the others and the makers find the facts in their file
            rows = sum(row["split"] in ("train", "val") for row in datasets.index(chosen.faces))
            looking = Preparing(progress, "faces", rows)
            people = {"train": portraits.load(chosen.faces, "train", facts=facts, largest=portraits.LARGEST_FACE, watch=looking)}
            people["val"] = portraits.load(chosen.faces, "val", facts=facts, watch=looking)
        if not all(people.values()):
            raise DatasetError(f"{chosen.faces} has no photographs with a face in the split {'train' if not people['train'] else 'val'}.")
        portraits.must_be_several(people["train"] + people["val"], chosen.faces)
        hashing = Preparing(progress, "hashes")
        records = training_records(chosen.data, compression=chosen.compression, watch=hashing) if chosen.data else []
        # never smaller than the crops of the largest stage, which would have to be enlarged
        cut = Cut(size=max(Cut.size, *(size for size, _, _ in chosen.sizes)), margin=recipe(0).margin)
        if chosen.data:
            kept_out.refuse(chosen.faces, chosen.data, records, watch=Preparing(progress, "hashes of whom it must not have"))
            with _in_turn(chosen.out):  # the makers find the crops as well
                found = cached(records, chosen.out / "crops", cut, watch=Preparing(progress, "crops", len(records), records))
            sides(found, records, chosen.data)
    manifest = portraits.manifest(people["train"] + people["val"])
    other = content_hash(records) if chosen.data else ""

    def batches(stage: int, numbers: Sequence[int]) -> Iterable[Batch]:
        made = Made(
            faces=chosen.faces,
            facts=facts,
            seed=chosen.seed * 1000 + stage,
            recipe=recipe(chosen.sizes[stage][0]),
            pairs=chosen.pairs,
            data=chosen.data,
            share=chosen.data_share,
            cache=chosen.out / "crops",
            cut=cut,
            rank=rank.number,
            world=rank.world,
            records=records,
        )
        return stream(made, numbers, chosen.makers)

    def validation(stage: int) -> Validation:
        return examples.evaluation_sets(people["val"], seed=chosen.seed, per_portrait=2, recipe=recipe(chosen.sizes[stage][0]))

    rank = devices.begin(chosen.device, chosen.ranks, bf16=chosen.bf16, root=chosen.device_root, threads=chosen.threads)

    def build(size: int, dropout: float, mask: bool) -> Any:
        from pipeline.training import network

        return network.build(size, dropout=dropout, mask_head=mask, weights=chosen.weights)

    with Progress(chosen.progress if rank.first else Path(os.devnull)) as progress:
        start = hashlib.sha256(chosen.weights.read_bytes()).hexdigest() if chosen.weights else None
        identity = f"{manifest} {other} {recipe(0)} {chosen.data_share} {start}"
        if recipe(0).regions != "either":
            identity += f" regions by {recipe(0).regions}"
        if recipe(0).untoned:
            identity += f" untoned {recipe(0).untoned}"
        settled: dict[str, Any] = {"rank": rank, "epoch": len(people["train"]), "save_s": chosen.save_s, "identity": identity}
        settled["hold_s"] = chosen.hold_s
        trainer = Trainer(plan(chosen, rank.policy), chosen.out, build, batches, validation, progress.tell, stopping.is_set, **settled)
        done = trainer.run()
    if done and rank.first:
        of = {"manifest_sha256": manifest, "other_data_sha256": other, "start_sha256": start}
        _account(chosen, trainer, progress.last, **of, recipe=asdict(recipe(chosen.sizes[-1][0])))
    return done


@contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """One process at a time."""
    with (folder / ".turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class Preparing:
    """Passes on what is gone through before the first step, and tells of it every few seconds: silence would be taken for a trainer that
    hangs. `what` they are; `total`: how many in all, None: as many as are given; `of`: all of them in order, where some may be done and
    are not given; `done`: how many so far."""

    progress: Progress
    what: str
    total: int | None = None
    of: Sequence[Any] = field(default=(), repr=False)
    done: int = 0
    _said: float = float("-inf")

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        if self.total is None and isinstance(items, Sized):
            self.total = len(items)
        self.progress.show(self.what, self.done, self.total)
        for item in items:
            yield item
            self.done += 1
            while self.of and self.of[self.done - 1] is not item:
                self.done += 1
            self.progress.show(self.what, self.done, self.total)
            if time.monotonic() - self._said >= SAY_S or self.done == self.total:
                self._said = time.monotonic()
                self.progress.tell({"event": "preparing", "what": self.what, "done": self.done, "total": self.total})


class Progress:
    """JSON lines on standard output or appended to a file, and where standard error is a terminal a bar for all that takes long."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = None if path is None else path.open("a")
        self.last: dict[str, Any] = {}
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._bar is not None:
            self._bar.stop()

    def tell(self, line: dict[str, Any]) -> None:
        """Say one line."""
        self.last = line
        print(json.dumps(line), file=self._file, flush=True)
        if "steps" in line:
            self.show("training", line["step"], line["steps"], f"{line['size']} px, {line['images_per_s']} images/s")

    def show(self, what: str, done: int, total: int | None, words: str = "") -> None:
        """Move the bar of what is done, which has one of its own; `words` beside it, if its name is not enough."""
        if self._bar is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total, description=words or what)


def _account(chosen: argparse.Namespace, trainer: Trainer, last: dict[str, Any], **made_of: Any) -> None:
    """Leave the curve and `training.json`, from which a card is written. `made_of`: hashes of what it began with, and the recipe."""
    from pipeline.training import report

    found = checkpoint.load(trainer.folder, trainer.key)
    curve = found[0].curve if found else []
    (chosen.out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    report.training_curve(curve, chosen.out / "curve.png")
    try:
        code = version("unmask")
    except PackageNotFoundError:
        code = "unknown"
    account = {
        "command": chosen.command,
        "seed": chosen.seed,
        **made_of,
        "hours": last.get("hours"),
        "images": last.get("seen"),
        "device": _device(trainer.rank),
        "plan": asdict(trainer.plan),
        "code_version": code,
        "made_with": {"python": platform.python_version(), "tensorflow": gaudi.tensorflow(), "numpy": np.__version__},
    }
    (chosen.out / "training.json").write_text(json.dumps(account, indent=1) + "\n")


def _device(rank: Rank) -> str:
    if rank.device == "cpu":
        return f"cpu, {os.cpu_count()} cores, {platform.machine()}" + (f", {rank.world} ranks" if rank.world > 1 else "")
    return f"{rank.device}, {rank.world} cards, {rank.precision}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 75 stopped and resumable, 1 may work again, 2 wrong settings or data."""
    chosen = parse(arguments)
    if chosen.tied:
        lifeline.tie()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the last is what mpirun passes on
        signal.signal(number, setting(stopping))
    try:
        return 0 if train(chosen, stopping) else STOPPED
    except (TrainingError, CheckpointError, DatasetError, WeightsError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2 if error.permanent else 1
    except OSError as error:
        print(_sentence(error), file=sys.stderr)  # noqa: T201
        return 1 if error.errno in MAY_PASS or isinstance(error, ConnectionError) else 2


def _sentence(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} does not exist."
    why = error.strerror or str(error) or type(error).__name__
    # a file that is open already, as on a full disk, has no name in its error
    return f"{error.filename} cannot be used: {why}." if error.filename else f"The training cannot go on: {why}."


if __name__ == "__main__":
    sys.exit(main())
