"""Several trainings as one: the mean of their weights, and who goes into it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.training import soup, weights
from pipeline.training.weights import Named, WeightsError
from tests.unit.test_release import faces, random_weights  # noqa: F401


def _at(value: float, **more: float) -> Named:
    return {name: [np.full((2, 2), v, np.float32)] for name, v in {"logit": value, **more}.items()}


def _valley(named: Named) -> dict[str, float]:
    """Best where the weights are 1, the same for both kinds."""
    height = 1 - abs(float(named["logit"][0].mean()) - 1)
    return {"self_blended": height, "warp": height}


def test_the_mean_has_the_layers_that_all_have() -> None:
    found = soup.mean([_at(1, mask=5), _at(4)])
    assert list(found) == ["logit"]
    np.testing.assert_array_equal(found["logit"][0], np.full((2, 2), 2.5))
    assert found["logit"][0].dtype == np.float32


def test_weights_of_different_networks_have_no_mean() -> None:
    with pytest.raises(WeightsError, match="Layer logit has other shapes"):
        soup.mean([_at(1), {"logit": [np.zeros((3, 3), np.float32)]}])


def test_what_makes_the_soup_worse_is_left_out() -> None:
    several = {"far": _at(9), "above": _at(1.4), "below": _at(0.4)}
    told: list[str] = []
    taken, made = soup.greedy(several, _valley, lambda name, found: told.append(name))
    assert taken == ["above", "below"]
    assert made["logit"][0].mean() == pytest.approx(0.9)
    assert told == ["far", "above", "below", "above + below", "above + below + far"]


@pytest.mark.tensorflow
def test_the_command_makes_weights_that_were_measured(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    pytest.importorskip("tensorflow")
    for seed in (1, 2):
        weights.write(tmp_path / f"{seed}.h5", random_weights(seed))
    words = ["--weights", str(tmp_path / "1.h5"), str(tmp_path / "2.h5"), "--faces", str(faces), "--out", str(tmp_path / "soup.h5")]
    assert soup.main([*words, "--size", "32", "--norms", "1", "--per-portrait", "1"]) == 0
    account = json.loads((tmp_path / "soup.json").read_text())
    assert [row["of"] for row in account["measured"][:2]] == words[1:3]
    assert set(account["measured"][0]["auc"]) == {"self_blended", "face_swap", "region", "warp"}
    best = max(account["measured"][:2], key=lambda row: row["mean"])["of"]
    assert account["taken"][0] == best
    made = weights.read(tmp_path / "soup.h5")
    assert set(made) == set(random_weights())
    assert not np.allclose(made["conv1_bn"][3], 1), "the norms were measured"
    assert soup.main([*words[:2], str(tmp_path / "none.h5"), *words[3:]]) == 2
    assert "none.h5 is not a Keras weights file" in capsys.readouterr().err
