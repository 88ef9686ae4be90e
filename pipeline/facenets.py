"""MediaPipe's two face networks, short-range BlazeFace and FaceMesh, run by OpenVINO from the files in MediaPipe's wheel.

MediaPipe's own Python solutions show BlazeFace 128 pixels at a time and take a face through detection again before the mesh.
The networks themselves are convolutions and take any size, so a group picture needs one pass and not a dozen tiles; and
importing MediaPipe costs 1.5 s, threads that hang a forked child, and a log that cannot be turned off. Only its files are used.

A network is compiled late, once per process and never across a fork, and runs on one thread: processes share the cores.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.images import resize
from pipeline.jobs import Pixels

Floats = npt.NDArray[np.float32]
FloatBox = tuple[float, float, float, float]
"""Left, top, width, height in pixels of an image, not rounded; may leave the image."""
STEP = 16
"""BlazeFace's coarsest stride: sides of its input are multiples of it."""
LARGEST_PX = 1024
"""The longest side that BlazeFace is shown."""
BLAZEFACE_PX = 128
"""The input size BlazeFace was trained at: it finds faces from a tenth of it to nearly all of it."""
FACEMESH_PX = 192
CONTEXT = 1.5
"""FaceMesh wants to see so many times the face's box."""
NEAR_SCORE = 0.3
MESH_SCORE = 0.4
"""FaceMesh's own score of true faces is nearly 1, also in the dark, turned or behind sunglasses; of stones and cats nearly 0."""
LANDMARKS = 468

_here = threading.local()
_lock = threading.Lock()
_compiled: dict[tuple[int, str], Any] = {}


def blazeface(pixels: Pixels, min_score: float) -> Floats:
    """Faces in (h, w, 3) uint8 RGB, sides multiples of 16 up to 1024, best first.

    (n, 9) float32: left, top, width, height, score (0 to 1), then x, y of the eye on the left and x, y of the eye on the right of
    the picture, in its pixels. Boxes may leave the picture. Overlapping answers are averaged by their scores, as MediaPipe does.
    """
    request = _request("blazeface", _load_blazeface)
    request.infer({0: pixels[None]})
    found = []
    wanted = np.log(min_score / (1 - min_score)) if 0 < min_score < 1 else np.copysign(np.inf, min_score - 0.5)
    for stride, boxes, scores in ((8, 0, 1), (16, 2, 3)):
        logits = request.get_output_tensor(scores).data[0]  # (rows, columns, anchors)
        rows, columns, anchors = np.nonzero(logits > wanted)
        regressed = request.get_output_tensor(boxes).data[0].reshape(*logits.shape, 16)[rows, columns, anchors]
        centre = (np.stack((columns, rows), axis=1) + 0.5) * stride
        size = regressed[:, 2:4]
        score = 1 / (1 + np.exp(-logits[rows, columns, anchors]))
        eyes = regressed[:, 4:8] + np.tile(centre, 2)
        found.append(np.concatenate((centre + regressed[:, :2] - size / 2, size, score[:, None], eyes), axis=1))
    return _averaged(np.concatenate(found).astype(np.float32))


def facemesh(pixels: Pixels) -> tuple[Floats, float]:
    """The mesh of the upright face that fills two thirds of (192, 192, 3) uint8 RGB: (468, 2) float32 x, y in its pixels, and how sure
    the network is, 0 to 1, that there is a face."""
    request = _request("facemesh", _load_facemesh)
    request.infer({0: pixels[None]})
    points = request.get_output_tensor(0).data.reshape(LANDMARKS, 3)[:, :2]
    return points.astype(np.float32), float(1 / (1 + np.exp(-request.get_output_tensor(1).data.item())))


@dataclass(frozen=True)
class Window:
    """A turned square of an image, upright at (size, size, 3). Black where it leaves the image."""

    pixels: Pixels
    centre: Floats
    turn: Floats

    def back(self, points: Floats) -> Floats:
        """Points (n, 2) or (2,) of the window, in pixels of the image."""
        return np.asarray((points - self.pixels.shape[0] / 2) @ self.turn.T + self.centre, np.float32)


def window(pixels: Pixels, centre: tuple[float, float] | Floats, side: float, angle: float, size: int, *, halve: bool = False) -> Window:
    """Cut a square out of an image: `centre` and `side` in its pixels, turned clockwise by `angle` radians, scaled to `size` pixels.

    `halve`: shrink by halves as far as that goes, which is many times as fast and moves what is found by a thousandth of the face:
    good enough to draw by, but a score is that of the exact square.
    """
    height, width = pixels.shape[:2]
    middle = np.array(centre, np.float32)
    cos, sin = math.cos(angle) * side / size, math.sin(angle) * side / size
    turn = np.array(((cos, -sin), (sin, cos)), np.float32)
    reach = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + 2
    left, top = np.clip(np.floor(middle - reach), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(middle + reach), (left + 1, top + 1), (width, height)).astype(int)
    shrink = min(1.0, 2 * size / side)  # by area first: the turn itself only interpolates
    if halve and shrink <= 0.5:  # three pixels at most, of a face of hundreds
        right, bottom = right - (right - left) % 4, bottom - (bottom - top) % 4
    part = pixels[top:bottom, left:right]
    wide, high = max(1, round(part.shape[1] * shrink)), max(1, round(part.shape[0] * shrink))
    part = resize(_halved(part, wide, high) if halve else part, wide, high)
    ratio = np.array((part.shape[1] / (right - left), part.shape[0] / (bottom - top)), np.float32)
    scaled = turn * ratio[:, None]
    # the middle of a pixel lies half a pixel from its corner, on both sides
    offset = (middle - np.array((left, top), np.float32)) * ratio + scaled.sum(axis=1) * (0.5 - size / 2) - 0.5
    matrix = np.concatenate((scaled, offset[:, None]), axis=1).astype(np.float64)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return Window(np.asarray(cv2.warpAffine(part, matrix, (size, size), flags=how), np.uint8), middle, turn)


def _halved(part: Pixels, wide: int, high: int) -> Pixels:
    """A picture halved as long as its sides are even and it stays as large as this."""
    while part.shape[1] >= 2 * wide and part.shape[0] >= 2 * high and not (part.shape[0] | part.shape[1]) & 1:
        part = resize(part, part.shape[1] // 2, part.shape[0] // 2)
    return part


@dataclass(frozen=True)
class Near:
    """A face seen from near, in the image's pixels: `centre` (x, y), `size` (w, h), how far it is turned (clockwise, radians), score."""

    centre: Floats
    size: Floats
    angle: float
    score: float

    @property
    def box(self) -> FloatBox:
        """The upright box around it."""
        left, top = self.centre - self.size / 2
        return float(left), float(top), float(self.size[0]), float(self.size[1])


def near(pixels: Pixels, box: FloatBox, *, halve: bool = False) -> Near | None:
    """Look for the face in about this box at the one scale that BlazeFace knows best; None if it scores less than NEAR_SCORE."""
    x, y, w, h = box
    side = 2 * max(w, h)
    seen = window(pixels, (x + w / 2, y + h / 2), side, 0.0, BLAZEFACE_PX, halve=halve)
    found = blazeface(seen.pixels, NEAR_SCORE)
    off = np.abs(found[:, :2] + found[:, 2:4] / 2 - BLAZEFACE_PX / 2)
    meant = found[(off < 0.35 * found[:, 2:4]).all(axis=1) & (found[:, 2] > BLAZEFACE_PX / 4) & (found[:, 2] < BLAZEFACE_PX)]
    if not len(meant):
        return None
    face = meant[0]
    across, down = seen.back(face[7:9]) - seen.back(face[5:7])
    size = face[2:4] * np.float32(side / BLAZEFACE_PX)
    return Near(seen.back(face[:2] + face[2:4] / 2), size, math.atan2(down, across), float(face[4]))


def fit(pixels: Pixels, centre: tuple[float, float] | Floats, side: float, angle: float, *, halve: bool = False) -> tuple[Floats, float]:
    """FaceMesh on the face whose box has this centre and longer side: (468, 2) float32 in the image's pixels, and the network's score."""
    seen = window(pixels, centre, side * CONTEXT, angle, FACEMESH_PX, halve=halve)
    points, score = facemesh(seen.pixels)
    return seen.back(points), score


@cache
def edges() -> npt.NDArray[np.int64]:
    """FaceMesh's tesselation: every edge once, (1322, 2) landmark indices."""
    path = _mediapipe() / "python/solutions/face_mesh_connections.py"
    spec = importlib.util.spec_from_file_location("face_mesh_connections", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"MediaPipe's list of edges is not at {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return np.array(sorted({(min(edge), max(edge)) for edge in module.FACEMESH_TESSELATION}), np.int64)


def _averaged(found: Floats, same: float = 0.3) -> Floats:
    """Weighted non-maximum suppression: a face is the mean, by score, of all boxes that share 30 % with its best one."""
    rest = found[np.argsort(-found[:, 4], kind="stable")]
    faces = []
    while len(rest):
        low = np.maximum(rest[:, :2], rest[0, :2])
        high = np.minimum(rest[:, :2] + rest[:, 2:4], rest[0, :2] + rest[0, 2:4])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        together = shared > same * (np.prod(rest[:, 2:4], axis=1) + np.prod(rest[0, 2:4]) - shared)
        together[0] = True
        face = np.average(rest[together], axis=0, weights=rest[together, 4])
        face[4] = rest[0, 4]
        faces.append(face)
        rest = rest[~together]
    return np.array(faces, np.float32).reshape(-1, 9)


def _mediapipe() -> Path:
    spec = importlib.util.find_spec("mediapipe")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("MediaPipe is not installed: its wheel holds the face networks.")
    return Path(spec.submodule_search_locations[0])


def _request(name: str, load: Callable[[Any, Any], Any]) -> Any:
    """This thread's inference request on this process's compiled network."""
    key = (os.getpid(), name)
    requests: dict[tuple[int, str], Any] = _here.__dict__.setdefault("requests", {})
    if key not in requests:
        with _lock:
            if key not in _compiled:
                import openvino

                core = openvino.Core()
                how = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
                _compiled[key] = core.compile_model(load(openvino, core), "CPU", how)
        requests[key] = _compiled[key].create_infer_request()
    return requests[key]


def _load_blazeface(openvino: Any, core: Any) -> Any:
    """The network cut before it flattens its answers to those of 128 x 128 pixels, for any size: boxes and scores at stride 8, then 16."""
    model = core.read_model(_mediapipe() / "modules/face_detection/face_detection_short_range.tflite")
    maps = {}
    for result in model.get_results():
        joined = result.input(0).get_source_output().get_node()
        for level, flattened in enumerate(port.get_source_output().get_node() for port in joined.inputs()):
            values = flattened.get_output_partial_shape(0)[2].get_length()  # 16 numbers of a box, or 1 score
            maps[level, values] = flattened.input(0).get_source_output()
    model = openvino.Model([maps[0, 16], maps[0, 1], maps[1, 16], maps[1, 1]], model.get_parameters())
    side = openvino.Dimension(STEP, LARGEST_PX)  # where there is no limit, OpenVINO reorders between layers: half as slow again
    model.reshape([1, side, side, 3])
    return _from_bytes(openvino, model, mean=127.5, scale=127.5)


def _load_facemesh(openvino: Any, core: Any) -> Any:
    model = core.read_model(_mediapipe() / "modules/face_landmark/face_landmark.tflite")
    return _from_bytes(openvino, model, mean=0, scale=255)


def _from_bytes(openvino: Any, model: Any, *, mean: float, scale: float) -> Any:
    steps = openvino.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8)
    steps.input().preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(scale)
    return steps.build()
