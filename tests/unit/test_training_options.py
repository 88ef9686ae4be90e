"""What a training may be told, and what never: nothing that says where and how a worker runs it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import options
from pipeline.options import OptionsError
from pipeline.training import fit


def test_options_become_the_trainers_command_line(tmp_path: Any) -> None:
    words = ["stages=32:.5:.001,64:.5:1e-4", "pairs=2", "steps=6", "weight-decay=.1", "average=.99", "grid=false", "start=champion"]
    params = options.parsed(words)

    words = options.arguments(params, hours=3.0)

    chosen = fit.parse(["--faces", str(tmp_path), "--out", str(tmp_path), *words])
    assert (chosen.sizes, chosen.pairs, chosen.steps, chosen.weight_decay) == (((32, 0.5, 0.001), (64, 0.5, 0.0001)), 2, 6, 0.1)
    assert fit.plan(chosen, "float32").average == 0.99
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
        ("start=/etc/passwd", "option start"),
        ("start=../1", "option start"),
        ("start=a/b/1", "option start"),
        ("hours=nan", "option hours"),
        ("seed=-1", "option seed"),
        ("average=1", "option average"),
        ("average=-.1", "option average"),
    ],
)
def test_what_makes_no_sense_is_said_by_name(word: str, said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        options.parsed([word])


def test_hours_or_steps() -> None:
    with pytest.raises(OptionsError, match="not both"):
        options.parsed(["hours=1", "steps=5"])


@pytest.mark.parametrize("value", ["nan", "inf", float("nan")])
def test_numbers_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(OptionsError, match="The option clip"):
        options.checked({"clip": value})
