"""The one place that knows what a training runs on; everything else knows a `Rank`: one process with one device.

Order is everything with Gaudi. The driver is looked for before TensorFlow is imported, because a bridge without one fails with
the wrong words. The bridge is loaded before TensorFlow makes its first tensor, because after that it aborts the process. And
bfloat16 comes by Keras' policy or by the bridge's conversion of the graph, never both, which the vendor leaves undefined.

Several ranks train as one: each computes the gradients of its share of the batch, all get the mean. On a CPU and on GPUs they
meet through TensorFlow's MultiWorkerMirroredStrategy, on Gaudi through Horovod or HPUStrategy, which mirrors the former.
Variables are each rank's own in every case, so all launchers share one way; batch norms see a rank's share, as Horovod's do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import gaudi
from pipeline.groups import CardError, Device
from pipeline.training.errors import TrainingError

BF16 = ("auto", "off", "policy", "conversion")
CONVERSION = "TF_BF16_CONVERSION"
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
"""TensorFlow's switch for oneDNN, read at its import. By itself TensorFlow uses it only where the processor has AVX512 with VNNI."""


@dataclass(frozen=True)
class Rank:
    """This process's part of a training.

    Attributes:
        device: what it computes on.
        number: its rank, from 0; rank 0 looks, tells and writes.
        world: how many ranks there are.
        policy: Keras' precision policy.
        precision: how it computes, in words.
    """

    device: Device = "cpu"
    number: int = 0
    world: int = 1
    policy: str = "float32"
    precision: str = "float32"
    _sum: Callable[[list[Any]], list[Any]] | None = field(default=None, repr=False)
    _compiled: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether it is rank 0."""
        return self.number == 0

    def mean(self, tensors: list[Any]) -> list[Any]:
        """The means over all ranks, within a step; tensors as they are where there is one rank."""
        if self._sum is None:
            return tensors
        return [total / self.world for total in self._sum(tensors)]

    def agree(self, *numbers: float) -> list[float]:
        """The sums over all ranks, between steps. Every rank must ask, at the same step."""
        summed = self._sum
        if summed is None:
            return list(numbers)
        import tensorflow as tf

        if not self._compiled:
            self._compiled.append(tf.function(lambda given: summed([given])[0], reduce_retracing=True))
        return [float(value) for value in self._compiled[0](tf.constant(numbers, tf.float32)).numpy()]


def begin(device: Device = "cpu", world: int = 1, *, bf16: str = "auto", root: Path = Path("/"), threads: int = 0) -> Rank:
    """Make this process a rank of a training, before anything else uses TensorFlow.

    `bf16`: one of BF16. `root`: where devices are looked for. `threads`: of TensorFlow, 0: its own choice. Raises TrainingError:
    what was asked for is not there; never falls back to another device. A failure is final for the process.
    """
    policy, precision = _precision(device, bf16, os.environ)
    check(device, world, root=root)
    number, launcher = _place(world, os.environ)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault(ONEDNN, "1")  # a step is faster with it on every processor: tests.benchmarks.training_step
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if device == "hpu":
        _load_bridge()
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    if device == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise TrainingError("TensorFlow sees no GPU: install tensorflow[and-cuda]==2.15.0 and the driver, or train on cpu.")
    together = None if world == 1 else _horovod(world) if launcher == "horovod" else _strategy(device)
    if device == "hpu" and not tf.config.list_logical_devices("HPU"):
        raise TrainingError("The Gaudi bridge was loaded but gave TensorFlow no device: the card is busy or broken.", permanent=False)
    return Rank(device, number, world, policy, precision, together)


def check(device: Device, world: int = 1, *, root: Path = Path("/")) -> None:
    """Make sure, without TensorFlow, that what the device needs is here. Raises TrainingError."""
    launcher = _place(world, os.environ)[1]
    try:
        if device == "hpu":
            gaudi.preflight(_modules(os.environ, world), root)
            gaudi.software(world, launcher)
        else:
            gaudi.tensorflow()
    except CardError as error:
        raise TrainingError(str(error), permanent=error.permanent) from error


def _precision(device: Device, bf16: str, environment: MutableMapping[str, str]) -> tuple[str, str]:
    """Keras' policy and how it is called; sets the bridge's variable. One way or the other."""
    if bf16 == "auto":
        bf16 = "conversion" if device == "hpu" else "off"
    inherited = environment.get(CONVERSION, "0")
    if bf16 == "conversion":
        if device != "hpu":
            raise TrainingError(f"bf16 by conversion is the Gaudi bridge's, and this is {device}: use policy, or off.")
        environment[CONVERSION] = inherited if inherited != "0" else "full"
        return "float32", f"bfloat16 by {CONVERSION}={environment[CONVERSION]}"
    if inherited != "0":
        raise TrainingError(f"{CONVERSION} is {inherited} and bf16 is {bf16}: bfloat16 by both ways at once is undefined, so unset one.")
    if device == "hpu":
        environment[CONVERSION] = "0"
    return ("mixed_bfloat16", "bfloat16 by Keras' policy") if bf16 == "policy" else ("float32", "float32")


def _place(world: int, environment: MutableMapping[str, str]) -> tuple[int, str]:
    """Which rank this process is, and what launched it."""
    if world == 1:
        return 0, "none"
    if "OMPI_COMM_WORLD_SIZE" in environment:
        size, number, launcher = int(environment["OMPI_COMM_WORLD_SIZE"]), int(environment["OMPI_COMM_WORLD_RANK"]), "horovod"
    elif "TF_CONFIG" in environment:
        told = json.loads(environment["TF_CONFIG"])
        size, number, launcher = len(told["cluster"]["worker"]), int(told["task"]["index"]), "strategy"
    else:
        raise TrainingError(f"This is one process of {world} without the others: start them together, by `unmask train --ranks {world}`.")
    if size != world:
        raise TrainingError(f"{size} processes were started and {world} ranks are expected: the launcher and the trainer disagree.")
    return number, launcher


def _modules(environment: MutableMapping[str, str], world: int) -> str:
    """The modules that this process is pinned to; one of unknown place is refused, since it would take any free card."""
    pinned = environment.get("HLS_MODULE_ID") if world == 1 else environment.get("HABANA_VISIBLE_MODULES")
    if not pinned:
        variable = "HLS_MODULE_ID" if world == 1 else "HABANA_VISIBLE_MODULES"
        raise TrainingError(f"{variable} is not set, and without it the trainer would take whatever card is free: `unmask cards` shows it.")
    return pinned


def _load_bridge() -> None:
    """Load the Gaudi bridge while that is still possible."""
    used: Any = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(used, "_context", None)
    if context is not None and context._initialized:
        raise TrainingError("TensorFlow was used before the Gaudi bridge was loaded, which then would abort the process: load it first.")
    try:
        from habana_frameworks.tensorflow import load_habana_module

        load_habana_module()
    except Exception as error:  # whatever it was, a second try in this process would claim to have worked
        raise TrainingError(f"The Gaudi bridge could not be loaded: {type(error).__name__}: {error}.", permanent=False) from error


def _horovod(world: int) -> Callable[[list[Any]], list[Any]]:
    import horovod.tensorflow as hvd

    hvd.init()
    if hvd.size() != world:
        raise TrainingError(f"Horovod has {hvd.size()} ranks and {world} are expected: start them by mpirun.")
    return lambda tensors: [hvd.allreduce(tensor, op=hvd.Sum) for tensor in tensors]


def _strategy(device: Device) -> Callable[[list[Any]], list[Any]]:
    import tensorflow as tf

    ours = signal.getsignal(signal.SIGTERM)
    if device == "hpu":
        from habana_frameworks.tensorflow.distribute import HPUStrategy

        strategy = HPUStrategy()
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGTERM, ours)  # TensorFlow takes it for itself, to tell of preemption

    def summed(tensors: Sequence[Any]) -> list[Any]:
        def together(*given: Any) -> Any:
            here = [tf.identity(tensor) for tensor in given]  # on the replica's own device, which the reduction goes by
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return list(strategy.run(together, args=tuple(tensors)))

    return summed
