"""The ablation's command lines are the trainer's, and its table says what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.training import fit
from tests.benchmarks import ablation


@pytest.mark.parametrize("name", ablation.VARIANTS)
@pytest.mark.parametrize("start", [None, Path("old.h5")])
def test_a_variant_differs_from_the_base_in_what_it_says(name: str, start: Path | None) -> None:
    def parsed(name: str) -> dict[str, object]:
        words = ablation.command(name, Path("faces"), Path("out/one"), 100, 3, "128:1:.0003", start)
        return vars(fit.parse(words[words.index("pipeline.training.fit") + 1 :]))

    base, this = parsed("as it is"), parsed(name)
    said = {word.removeprefix("--").replace("-", "_") for word in ablation.VARIANTS[name] if word.startswith("--")}
    differs = {key for key in base if base[key] != this[key]} - {"command", "sizes"}
    assert differs == said | ({"stages"} if name in ablation.SIZES else set())
    assert (base["weights"], base["sizes"]) == (start, ((128, 1.0, 0.0003),))


def test_the_table_compares_with_the_first() -> None:
    row = {"self_blended": 0.8, "face_swap": 0.7, "region": 0.6, "warp": 0.5, "images": 3200.0, "hours": 0.1}
    worse = {**row, "face_swap": 0.5}
    said = ablation.table({"as it is": [row, row], "no swaps": [worse, row]})
    assert said.splitlines()[2:] == [
        "| as it is | 0.800 | 0.700 | 0.600 | 0.500 | +0.000 | 3200 | 2 |",
        "| no swaps | 0.800 | 0.600 | 0.600 | 0.500 | -0.025 | 3200 | 2 |",
    ]
