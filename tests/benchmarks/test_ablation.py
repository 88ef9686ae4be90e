"""The ablation's command lines are the trainer's, each is kept apart from the others, and its table says what it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.training import fit, network, portraits
from pipeline.training.examples import KINDS
from pipeline.training.figures import Scored
from pipeline.training.metrics import auc
from tests.benchmarks import ablation
from tests.fixtures.small_trainer import small


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


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    """Else another start, size or set of photographs would pass for what was measured before."""
    for name, text in (("one/faces.csv", "path\n"), ("two/faces.csv", "path\nx.png\n"), ("old.h5", "old"), ("new.h5", "new")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    how: dict[str, Any] = {"faces": tmp_path / "one", "out": tmp_path, "steps": 5, "seed": 1, "stage": "96:1:.001", "weights": None}
    others: list[dict[str, Any]] = [{"faces": tmp_path / "two"}, {"steps": 6}, {"seed": 2}, {"stage": "128:1:.001"}]
    others += [{"weights": tmp_path / name} for name in ("old.h5", "new.h5")]
    places = [ablation.folder("not bent", **how | other) for other in ({}, *others)]
    assert len(set(places)) == len(places)
    assert all(place.name.startswith("08-") for place in places)
    assert ablation.folder("not bent", **how) == places[0]
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    assert ablation.folder("not bent", **how | {"faces": tmp_path / "elsewhere"}) == places[0], "the same photographs"


def test_false_positives_are_those_of_the_threshold_that_the_clean_reals_set() -> None:
    fake = np.repeat([False, True], 20)
    clean = Scored(np.concatenate([np.linspace(0, 0.5, 20), np.linspace(0.4, 1, 20)]), fake)
    worse = Scored(np.concatenate([np.linspace(0.2, 0.9, 20), np.linspace(0, 0.8, 20)]), fake)
    at = dict(zip(ablation.CONDITIONS.values(), (clean, worse, clean), strict=True))
    found = ablation.measured({kind: dict(at) for kind in KINDS})
    assert [found[name]["false positives"] for name in ("clean", "jpeg 50", "64 px")] == [0.05, 0.6, 0.05]
    assert found["jpeg 50"]["warp"] == round(auc(worse.fakes, worse.reals), 5) < 0.5 < found["64 px"]["warp"]


def test_what_is_trained_and_measured_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is the weights that are kept which are measured, at the size of the variant."""
    (tmp_path / "faces.csv").write_text("")
    trained: list[Path] = []
    seen: list[tuple[Path, int]] = []

    def run(words: list[str], **_: Any) -> None:
        trained.append(Path(words[words.index("--out") + 1]))
        (trained[-1] / "training.json").write_text('{"images": 64, "hours": 0.5}')

    monkeypatch.setattr(ablation.subprocess, "run", run)
    monkeypatch.setattr(ablation, "measure", lambda weights, size, *_: seen.append((weights, size)) or {"clean": {}})
    how = {"faces": tmp_path, "steps": 2, "seed": 1, "stage": "96:1:.001", "weights": None}
    rows = [ablation.done("two thirds of the size", [], how, tmp_path / "out") for _ in range(2)]

    assert rows == [{"clean": {}, "images": 64, "hours": 0.5}] * 2
    assert seen == [(trained[0] / "weights.h5", 64)]
    assert len(trained) == 1


@pytest.mark.tensorflow
def test_weights_are_measured_under_every_condition(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow")
    monkeypatch.setattr(network, "build", lambda size, *, weights: small(size))
    loaded = portraits.load(people, "val", facts=people / "faces.npz")
    found = ablation.measure(Path("weights.h5"), 64, loaded, 1)
    assert found.keys() == ablation.CONDITIONS.keys()
    assert all(row.keys() == {*KINDS, "false positives"} for row in found.values())


def test_the_table_compares_with_the_first() -> None:
    row = {"self_blended": 0.8, "face_swap": 0.7, "region": 0.6, "warp": 0.5, "false positives": 0.05}
    bad = dict.fromkeys(KINDS, 0.5) | {"false positives": 0.25}
    first = {"clean": row, "jpeg 50": row, "64 px": bad, "images": 3200, "hours": 0.1}
    worse = {**first, "clean": {**row, "face_swap": 0.5}}
    said = ablation.table({"as it is": [first, first], "no swaps": [worse, first]})
    rest = "0.050 | 0.650 (+0.000) | 0.050 | 0.500 (+0.000) | 0.250 | 3200 | 2 |"
    assert said.splitlines()[2:] == [
        f"| as it is | 0.800 | 0.700 | 0.600 | 0.500 | 0.650 (+0.000) | {rest}",
        f"| no swaps | 0.800 | 0.600 | 0.600 | 0.500 | 0.625 (-0.025) | {rest}",
    ]
    assert {line.count("|") for line in said.splitlines()} == {14}
