"""The card of a model version, and the check that its files are what they should be before any of them is opened."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.jobs import Verdict

CARD = "card.json"
MAX_CARD_BYTES = 1_000_000
PRECISIONS = ("f32", "bf16", "int8")
"""What a network may be computed in."""


class ModelError(Exception):
    """A model version cannot be used. `permanent`: trying again with the same files changes nothing."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


def plain(name: str) -> str:
    """The name itself if it can safely be part of a path and of an object key. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise ValueError(f"{name!r} is not a plain name: letters, digits, dots, dashes and underscores")
    return name


Name = Annotated[str, AfterValidator(plain)]
"""Part of a path and of an object key, so no slash and no leading dot."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Thresholds(BaseModel):
    """Below `authentic_below` authentic, from `manipulated_from` on manipulated, between them uncertain."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    authentic_below: float = Field(ge=0, le=1)
    manipulated_from: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        if self.authentic_below > self.manipulated_from:
            raise ValueError("authentic_below must not exceed manipulated_from")
        return self

    def verdict(self, score: float) -> Verdict:
        """What they make of a score, 0 to 1."""
        if score >= self.manipulated_from:
            return Verdict.MANIPULATED
        return Verdict.AUTHENTIC if score < self.authentic_below else Verdict.UNCERTAIN


class Metrics(BaseModel):
    """How the version did on one set. Rates and areas are 0 to 1; None: not measured."""

    model_config = ConfigDict(frozen=True, extra="allow")
    n: int
    auc: float | None = None
    auc_ci: tuple[float, float] | None = None
    """Bootstrap 95 % interval."""
    eer: float | None = None
    tpr_at_1fpr: float | None = None
    ece15: float | None = None
    accuracy: float | None = None


class Card(BaseModel):
    """`card.json`: what a version is, how its scores are to be read, and the sha256 of each of its other files."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Name
    version: Name
    created_at: str
    """ISO 8601, UTC."""
    input_size: int = Field(default=224, ge=8, le=2048)
    """Side of the square crop in pixels."""
    margin: float = Field(default=0.15, ge=0, le=2)
    """Of the crop around the face box, as a share of the box on each side."""
    channels: str = "RGB"
    preprocessing: str = "x / 127.5 - 1"
    thresholds: Thresholds
    temperature: float = Field(default=1.0, gt=0)
    """score = sigmoid(logit / temperature)."""
    precision: dict[str, Any] = {"default": "f32"}
    """`default` (`f32`, `bf16` or `int8`), and for each exported precision how far its scores are from float32."""
    metrics: dict[str, Metrics] = {}
    manifest_sha256: str = ""
    """Of the list of photographs it was trained on."""
    seed: int | None = None
    training: dict[str, Any] = {}
    """`command`, `hours`, `device` and whatever else belongs to how it was made."""
    code_version: str = ""
    limits: list[str] = []
    """Sentences that are shown wherever its scores are."""
    files: dict[Name, Sha256] = Field(min_length=1)
    attribution: str = ""

    @model_validator(mode="after")
    def _of_this_product(self) -> Card:
        if self.channels != "RGB" or self.preprocessing != "x / 127.5 - 1":
            raise ValueError("channels must be RGB and preprocessing x / 127.5 - 1")
        if self.precision.get("default", "f32") not in PRECISIONS:
            raise ValueError(f"precision's default must be one of {', '.join(PRECISIONS)}")
        if CARD in self.files:
            raise ValueError("a card cannot hold its own hash")
        return self


def sha256(path: Path) -> str:
    """The hash of a file, as 64 hex digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(folder: Path, files: Mapping[str, str] | None = None) -> Card:
    """The card of the version in `folder`, after every one of its files was found to be what it should be.

    `files`: sha256 by name as the registry row has it, the card's own among them; it is checked before the card is read.
    Without it the card is taken at its word. Raises ModelError, before any file is parsed, if one is missing or altered.
    """
    if files is not None:
        if CARD not in files:
            raise ModelError(f"The registry holds no hash of {CARD} for the model in {folder}.")
        _check(folder, files)
    card = _read(folder)
    if files is None:
        _check(folder, card.files)
    elif {**card.files, CARD: files[CARD]} != dict(files):
        raise ModelError(f"The card in {folder} lists other files than the registry.")
    return card


def hashes(files: Mapping[str, object]) -> dict[str, str]:
    """The `files` of a registry row. Raises ModelError if a name in it could lead out of the version's folder."""
    try:
        return {plain(name): str(expected) for name, expected in files.items()}
    except ValueError as error:
        raise ModelError(f"The registry's list of files is damaged: {error}.") from error


def _check(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected in hashes(files).items():
        try:
            found = sha256(folder / name)
        except FileNotFoundError as error:
            raise ModelError(f"The model in {folder} lacks its file {name}.") from error
        except OSError as error:
            raise ModelError(f"The file {name} of the model in {folder} cannot be read: {error}.", permanent=False) from error
        if found != expected:
            raise ModelError(f"The file {name} of the model in {folder} is not what was published: its SHA-256 differs.")


def _read(folder: Path) -> Card:
    try:
        if (folder / CARD).stat().st_size > MAX_CARD_BYTES:
            raise ModelError(f"The {CARD} in {folder} is larger than {MAX_CARD_BYTES} bytes.")
        return Card.model_validate_json((folder / CARD).read_bytes())
    except OSError as error:
        raise ModelError(f"There is no model version in {folder}: {CARD} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ModelError(f"The {CARD} in {folder} is wrong at {place}: {first['msg'].removeprefix('Value error, ')}.") from error
