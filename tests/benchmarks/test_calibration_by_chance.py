"""The curve of how many photographs it takes to see a calibration error."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.benchmarks.calibration_by_chance import curve, picture


def test_more_photographs_leave_less_to_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    fakes, reals = rng.beta(4, 2, 160), rng.beta(2, 4, 20)
    rows = curve(fakes, reals, [20, 80, 640], seed=1, rounds=60)
    assert [row["photographs"] for row in rows] == [20, 80, 640]
    assert rows[0]["mean"] > rows[1]["mean"] > rows[2]["mean"] > 0
    assert rows[0]["as_wanted"] <= rows[1]["as_wanted"] < rows[2]["as_wanted"]
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)
    picture(rows, (20, 0.1), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
