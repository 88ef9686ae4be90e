"""Weights-only `.h5` files in Keras' own layout, read and written without TensorFlow.

Keras' `model.load_weights` reads these files whether their kernels are float32 or float16; so does everything here.
Half precision halves the file (47 MB) and costs a score less than 1e-3: what is on disk is the model, and every runtime
starts from the same rounded numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

Arrays = list[npt.NDArray[np.float32]]
Named = dict[str, Arrays]
"""Weights by layer name, each in the order of Keras' `layer.get_weights()`."""

_PARTS = {"bn": ("gamma", "beta", "moving_mean", "moving_variance")}
_OTHER = ("kernel", "bias")


class WeightsError(Exception):
    """The weights file is missing, damaged, or of another network. Always permanent."""

    permanent = True


def write(path: Path, named: Mapping[str, Arrays], *, half: bool = True) -> None:
    """Write named weights as a Keras weights-only HDF5 file; the same weights always give the same bytes.

    `half`: kernels as float16. Vectors (biases, batch norms) stay float32: they are a hundredth of the file, and running
    variances may lie outside half precision.
    """
    import h5py

    temporary = path.with_name(path.name + ".part")
    with h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["layer_names"] = [name.encode() for name in named]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.15.0"
        for layer, arrays in named.items():
            group = file.create_group(layer)
            parts = [f"{layer}/{part}:0" for part in _parts(layer, len(arrays))]
            group.attrs["weight_names"] = [part.encode() for part in parts]
            for part, array in zip(parts, arrays, strict=True):
                kept = np.float16 if half and array.ndim > 1 else np.float32
                group.create_dataset(part, data=np.asarray(array, kept), track_times=False)
    temporary.replace(path)


def read(path: Path) -> Named:
    """Named weights of a Keras weights-only file, as float32. Layers without weights are left out. Raises WeightsError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            root: Any = _own(path, file, "model_weights", h5py.Group) if "model_weights" in file else file
            named: Named = {}
            for layer in _texts(root.attrs["layer_names"]):
                group = _own(path, root, layer, h5py.Group)
                parts = _texts(group.attrs["weight_names"])
                arrays = [np.asarray(_own(path, group, part, h5py.Dataset)[()], np.float32) for part in parts]
                if arrays:
                    named[layer] = arrays
    except (OSError, KeyError) as error:
        raise WeightsError(f"{path} is not a Keras weights file: {error}.") from error
    return named


def _own(path: Path, group: Any, part: str, kind: type[Any]) -> Any:
    """A group or dataset that is in this very file: HDF5 can point into any other that the process may read."""
    import h5py

    where = group
    for step in part.split("/"):
        if not isinstance(where, h5py.Group) or not isinstance(where.get(step, getlink=True), h5py.HardLink):
            raise WeightsError(f"{path} is not a Keras weights file: {part} is a link, or is not there.")
        where = where[step]
    if not isinstance(where, kind) or (isinstance(where, h5py.Dataset) and (where.is_virtual or where.external)):
        raise WeightsError(f"{path} is not a Keras weights file: the numbers of {part} are not in it.")
    return where


def read_npz(*paths: Path) -> Named:
    """Named weights from `.npz` files with keys `layer/position`, as the PyTorch port writes them. Raises WeightsError."""
    named: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
    for path in paths:
        try:
            with path.open("rb") as file, np.load(file) as content:  # what is damaged NumPy would leave open
                for key in content.files:
                    layer, position = key.rsplit("/", 1)
                    named.setdefault(layer, {})[int(position)] = np.asarray(content[key], np.float32)
        except (ValueError, TypeError, EOFError, BadZipFile) as error:
            raise WeightsError(f"{path} is not a part of weights as the PyTorch port writes them.") from error
    return {layer: [arrays[k] for k in sorted(arrays)] for layer, arrays in named.items()}


def read_any(*paths: Path) -> Named:
    """Named weights from one `.h5`, from `.npz` parts, or from the folder that holds the parts. Raises WeightsError."""
    if len(paths) == 1 and paths[0].is_dir():
        paths = tuple(sorted(paths[0].glob("weights*.npz")))
        if not paths:
            raise WeightsError("The folder holds no weights*.npz.")
    if all(path.suffix == ".npz" for path in paths):
        return read_npz(*paths)
    if len(paths) > 1:
        raise WeightsError("Weights are one .h5 file or several .npz parts.")
    return read(paths[0])


def _parts(layer: str, count: int) -> tuple[str, ...]:
    return _PARTS.get(layer.rsplit("_", 1)[-1], _OTHER)[:count]


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
