"""What a training can be told: the options of the trainer that people may set, each with what it takes.

Whatever concerns where and how it runs (folders, device, processes' files) is the worker's business and not among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

STAGES = r"\d{2,4}:(\d+(\.\d*)?|\.\d+):(\d+(\.\d*)?|\.\d+)(e-?\d+)?(,\d{2,4}:(\d+(\.\d*)?|\.\d+):(\d+(\.\d*)?|\.\d+)(e-?\d+)?)*"
MODEL = r"([A-Za-z0-9][A-Za-z0-9._-]{0,127}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
SMALLEST = 32
"""Side in pixels of the smallest crop that the network takes."""
CHAMPION = "champion"
OF_RELEASE = frozenset(("street", "grid"))
OF_WORKER = frozenset(("start",))
Share = Annotated[float, Field(ge=0, le=1)]


class OptionsError(Exception):
    """A training cannot be told that; one sentence that names the option. Always permanent."""

    permanent = True


class Options(BaseModel):
    """The options, all optional: what is not said is as the trainer has it, or as the settings say."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    hours: float | None = Field(None, gt=0, le=24 * 30, description="How long to train; not with `steps`")
    steps: int | None = Field(None, ge=1, le=100_000_000, description="How many steps in all; not with `hours`")
    start: str | None = Field(
        None,
        max_length=260,
        description="Go on from the weights of the model that judges now (`champion`), or of a published VERSION or NAME/VERSION",
    )
    preset: Literal["scratch", "lars-imagenet"] | None = None
    stages: str | None = Field(None, max_length=500, description="crop size:share:learning rate, …")
    optimizer: Literal["lars", "sgd", "adamw"] | None = None
    pairs: int | None = Field(None, ge=1, le=4096, description="Reals, and as many fakes, in a batch")
    weight_decay: float | None = Field(None, ge=0, le=10)
    momentum: Share | None = None
    trust: float | None = Field(None, ge=0, le=10)
    dropout: Share | None = None
    smoothing: Share | None = None
    clip: float | None = Field(None, ge=0)
    mask_weight: float | None = Field(None, ge=0)
    mask_target: Literal["area", "boundary"] | None = Field(None, description="What the mask head learns: what was changed, or its seam")
    norms: int | None = Field(None, ge=0, le=1000, description="Batches on which the norms are measured anew at the end")
    average: float | None = Field(None, ge=0, lt=1, description="Share that a step leaves of the weights' moving average, which is kept")
    sam: float | None = Field(None, ge=0, le=10)
    self_blended: Share | None = None
    face_swap: Share | None = None
    region: Share | None = None
    strength: Share | None = None
    own_donor: Share | None = None
    morph: Share | None = None
    bend: Share | None = None
    untoned: Share | None = Field(None, description="Of what is self-blended: only moved, with no change of colour or sharpness")
    near: float | None = Field(None, ge=1, le=10)
    window: Share | None = None
    margin: float | None = Field(None, ge=0, le=2, description="Of a crop around the face, as a share of its box; serving cuts the same")
    data_share: Share | None = None
    compression: Literal["raw", "c23", "c40"] | None = Field(None, description="Of the videos, where the data set is FaceForensics++")
    held_out: Literal["self_blended", "face_swap", "region", "warp"] | None = Field(
        None, description="The kind that chooses the weights, never trained on: its share is 0, and regions are made in the other way alone"
    )
    patience: int | None = Field(None, ge=0)
    look: int | None = Field(None, ge=1, description="Steps between two looks at the validation sets, and two checkpoints")
    makers: int | None = Field(None, ge=0, le=256)
    threads: int | None = Field(None, ge=0, le=1024)
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    street: int | None = Field(None, ge=0, le=100_000, description="Augmented validation faces that thresholds are also measured on")
    grid: bool | None = Field(None, description="Also measure compression and small sizes")

    @field_validator("start")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(MODEL, value):
            raise ValueError("takes champion, or a published version as VERSION or NAME/VERSION")
        return value

    @field_validator("stages")
    @classmethod
    def _whole(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(STAGES, value):
            raise ValueError("takes size:share:rate, separated by commas, such as 96:.5:.001,224:.5:.0005")
        for size, share, rate in stages(value):
            if size < SMALLEST or not 0 < share <= 1 or not rate > 0:
                raise ValueError(f"each stage takes a size from {SMALLEST} pixels on, a share above 0 and up to 1, and a rate above 0")
        return value


def stages(said: str) -> tuple[tuple[int, float, float], ...]:
    """Crop size in pixels, share of the time and learning rate of each stage. Raises ValueError where that is not what is said."""
    parts = [stage.split(":") for stage in said.split(",")]
    return tuple((int(size), float(share), float(rate)) for size, share, rate in parts)


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as they are kept. Raises OptionsError, naming the one that is wrong."""
    try:
        chosen = Options.model_validate({name.replace("-", "_"): value for name, value in given.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            raise OptionsError(f"A training has no option {name}: it takes {', '.join(names())}.") from error
        raise OptionsError(f"The option {name} of a training is wrong: {first['msg'].removeprefix('Value error, ')}.") from error
    if chosen.hours is not None and chosen.steps is not None:
        raise OptionsError("A training takes hours or steps, not both.")
    kind = chosen.held_out
    # a share that is not said is the trainer's own, which is above 0 for all three; the warp has none
    if kind not in (None, "warp") and getattr(chosen, kind) != 0:
        name = kind.replace("_", "-")
        raise OptionsError(f"The kind held out is never trained on: with held-out {kind}, {name} must be 0, and the others make up for it.")
    return chosen.model_dump(exclude_none=True)


def names() -> list[str]:
    """How the options are called on a command line."""
    return [name.replace("_", "-") for name in Options.model_fields]


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Options given as `name=value`. Raises OptionsError."""
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise OptionsError(f"{word!r} says no value: write it as name=value, such as steps=2000.")
        given[name.strip()] = value.strip()
    return checked(given)


def arguments(params: Mapping[str, Any], *, hours: float) -> list[str]:
    """The trainer's command line for these options; `hours` is how long it trains if they do not say."""
    said = {name: value for name, value in params.items() if name not in OF_RELEASE | OF_WORKER}
    if not {"hours", "steps"} & said.keys():
        said["hours"] = hours
    return [f"--{name.replace('_', '-')}={value}" for name, value in said.items()]


def last_size(params: Mapping[str, Any]) -> int:
    """The crop size of the last stage, in pixels: what the finished network takes."""
    stages = params.get("stages")
    return int(str(stages).rpartition(",")[2].partition(":")[0]) if stages else 224
