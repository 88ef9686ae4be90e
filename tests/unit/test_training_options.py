"""What a training may be told, and what never: nothing that says where and how a worker runs it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import options
from pipeline.options import OptionsError
from pipeline.training import fit
from pipeline.training.examples import KINDS, Recipe


def test_options_become_the_trainers_command_line(tmp_path: Any) -> None:
    words = [
        "stages=32:.5:.001,64:.5:1e-4",
        "pairs=2",
        "steps=6",
        "weight-decay=.1",
        "average=.99",
        "mask-target=boundary",
        "grid=false",
        "start=champion",
    ]
    params = options.parsed(words)

    words = options.arguments(params, hours=3.0)

    chosen = fit.parse(["--faces", str(tmp_path), "--out", str(tmp_path), *words])
    assert (chosen.sizes, chosen.pairs, chosen.steps, chosen.weight_decay) == (((32, 0.5, 0.001), (64, 0.5, 0.0001)), 2, 6, 0.1)
    plan = fit.plan(chosen, "float32")
    assert (plan.average, plan.mask_target) == (0.99, "boundary")
    assert not any("grid" in word or "start" in word for word in words)
    assert options.last_size(params) == 64


def test_one_that_says_no_length_trains_as_long_as_the_settings_say() -> None:
    assert options.arguments({"pairs": 2}, hours=1.5) == ["--pairs=2", "--hours=1.5"]
    assert options.last_size({}) == 224


@pytest.mark.parametrize("start", ["champion", "2026.11.2", "unmask-resnet50/2026.11.2"])
def test_it_goes_on_from_the_champion_or_from_any_version(start: str) -> None:
    assert options.parsed([f"start={start}"]) == {"start": start}


def test_every_option_is_one_of_the_trainer_or_of_ours(tmp_path: Any) -> None:
    known = vars(fit.parse(["--faces", str(tmp_path), "--out", str(tmp_path), "--steps", "1"])).keys()
    assert options.Options.model_fields.keys() - options.OF_RELEASE - options.OF_WORKER <= known
    assert fit.RECIPE.keys() <= options.Options.model_fields.keys()


@pytest.mark.parametrize(
    "name", ["out", "faces", "data", "facts", "weights", "progress", "device", "ranks", "device-root", "resume", "tied"]
)
def test_where_and_how_it_runs_is_not_to_be_said(name: str) -> None:
    with pytest.raises(OptionsError, match=f"no option {name}"):
        options.parsed([f"{name}=/etc/passwd"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pairs", "says no value"),
        ("pairs=0", "option pairs"),
        ("stages=--out", "option stages"),
        ("stages=32:1:.001 --out=/etc", "option stages"),
        ("optimizer=adam", "option optimizer"),
        ("mask-target=edge", "option mask-target"),
        ("start=/etc/passwd", "option start"),
        ("start=../1", "option start"),
        ("start=a/b/1", "option start"),
        ("hours=nan", "option hours"),
        ("seed=-1", "option seed"),
        ("average=1", "option average"),
        ("average=-.1", "option average"),
        ("stages=31:1:.001", "option stages"),
        ("stages=96:1.5:.001", "option stages"),
        ("stages=96:0:.001", "option stages"),
        ("stages=96:.5:.001,128:.5:0", "option stages"),
    ],
)
def test_what_makes_no_sense_is_said_by_name(word: str, said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        options.parsed([word])


@pytest.mark.parametrize(
    "words",
    [
        ("look=0", "steps=3"),
        ("pairs=0", "steps=3"),
        ("hours=0",),
        ("hours=inf",),
        ("steps=-1",),
        ("stages=96:1:-.001", "steps=3"),
        ("stages=96:2:.001", "steps=3"),
        ("data-share=1.5", "steps=3"),
        ("face-swap=1.27", "region=-.72", "steps=3"),
        ("average=1", "steps=3"),
        ("held-out=region", "steps=3"),
    ],
)
def test_the_trainers_own_command_line_has_the_same_bounds(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionsError) as refused:
        options.parsed(words)
    with pytest.raises(SystemExit) as ended:
        fit.parse(["--faces", "x", "--out", "y", *(f"--{word}" for word in words)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {refused.value}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "warp"])
def test_the_kind_that_is_held_out_has_no_share(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = kind.replace("_", "-")
    assert getattr(Recipe, kind) > 0
    for more in ([], [f"{name}=.2"]):
        with pytest.raises(OptionsError, match=f"held-out {kind}, {name} must be 0"):
            options.parsed([f"held-out={kind}", *more])

    others = [other.replace("_", "-") for other in KINDS if other not in (kind, "warp")]
    words = [f"held-out={kind}", f"{name}=0", *(f"{other}=.5" for other in others)]

    assert options.parsed(words)["held_out"] == kind
    assert fit.parse(["--faces", "x", "--out", "y", "--steps=3", *(f"--{word}" for word in words)]).held_out == kind


def test_the_warp_is_held_out_whatever_the_shares() -> None:
    assert options.parsed(["held-out=warp", "face-swap=.3"]) == {"held_out": "warp", "face_swap": 0.3}


def test_hours_or_steps() -> None:
    with pytest.raises(OptionsError, match="not both"):
        options.parsed(["hours=1", "steps=5"])


@pytest.mark.parametrize("value", ["nan", "inf", float("nan")])
def test_numbers_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(OptionsError, match="The option clip"):
        options.checked({"clip": value})
