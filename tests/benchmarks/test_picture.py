"""The picture of the bench: each line goes on where the last one ended, and nothing written is cut or covered."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image

from tests.benchmarks import picture

FIGURES: dict[str, Any] = {
    "pipeline_images_per_s": 4.292,
    "bare_images_per_s": 6.118,
    "paper_images_per_s": 0.534,
    "bare_cpu_ms_per_image": 293.3,
    "cpu_ms_per_image": 437.7,
    "paper_cpu_ms_per_image": 2950.4,
    "cpu_ms_by_step": {"decode": 26.1, "detect": 72.4, "classify": 130.2, "draw": 16.1, "encode": 46.3},
    "cpu_ms_by_program": {
        "classify": 150.2,
        "extract": 122.9,
        "render": 71.3,
        "s3": 65.83,
        "web": 5.83,
        "upkeep": 4.79,
        "database": 8.96,
        "valkey": 2.71,
        "beat": 0.83,
        "supervisor": 0.21,
    },
    "machine": {
        "cpu": "AMD EPYC 9R14 96-Core Processor",
        "cores": 2,
        "database": "postgresql",
        "at": "2026-11-26T09:14:03Z",
        "commit": "13650a2",
    },
    "n": {"rounds": 3, "images": 48, "latency": 40, "backlog": 100_000},
    "model": {"name": "unmask-resnet50", "version": "2026.11.3", "precision": "bf16", "input_size": 192},
    "paper": {"n": 24, "faces": 61, "meshes": 9},
}
"""As the bench writes them on two cores, as far as the picture shows them."""


def without_paper() -> dict[str, Any]:
    """The same with `--no-paper`, in one round, on SQLite, where the workers took less than the bare loops."""
    figures = {name: value for name, value in FIGURES.items() if not name.startswith("paper")}
    programs = {name: value for name, value in FIGURES["cpu_ms_by_program"].items() if name != "database"} | {"classify": 90.0}
    machine = FIGURES["machine"] | {"database": "sqlite"}
    return figures | {"cpu_ms_by_program": programs, "n": FIGURES["n"] | {"rounds": 1}, "machine": machine}


def test_each_line_starts_where_the_last_one_ended_and_the_sums_are_right() -> None:
    lines = picture.rows(FIGURES)

    spans = [row for row in lines if not row.total]
    assert spans[0].start == 0
    assert [row.start for row in spans[1:]] == pytest.approx([row.end for row in spans[:-1]])
    work, product = (row.ms for row in lines if row.total)
    assert work == pytest.approx(FIGURES["bare_cpu_ms_per_image"])
    assert product == pytest.approx(sum(FIGURES["cpu_ms_by_program"].values()))
    assert {row.colour for row in spans} == {picture.WORK, picture.OURS, picture.SERVERS}
    assert next(row.ms for row in lines if "S3" in row.name) == 65.83


def test_no_processor_time_is_left_out_whatever_a_program_is_called() -> None:
    figures = FIGURES | {"cpu_ms_by_program": FIGURES["cpu_ms_by_program"] | {"consumer": 7.0}}

    assert picture.rows(figures)[-1].ms == pytest.approx(sum(figures["cpu_ms_by_program"].values()))
    assert any("consumer" in row.name for row in picture.rows(figures))


def test_it_names_the_model_and_how_many_pictures_each_bar_is_of() -> None:
    said = [text.get_text() for text in picture.chart(FIGURES).findobj(Text)]

    assert [text.rpartition(", ")[2] for text in said if "a second" in text] == ["n=48", "n=48", "n=24"]
    assert any("unmask-resnet50 2026.11.3 in bf16" in text for text in said)


def test_the_rest_of_the_loop_is_never_less_than_nothing() -> None:
    figures = FIGURES | {"bare_cpu_ms_per_image": 290.0}  # the steps took 291.1

    assert next(row.ms for row in picture.rows(figures) if "rest" in row.name) == 0


@pytest.mark.parametrize("figures", [FIGURES, without_paper()], ids=["all three", "without the paper's server"])
def test_nothing_in_it_is_cut_or_covered(figures: dict[str, Any]) -> None:
    chart = picture.chart(figures)
    chart.draw_without_rendering()

    written = [text for text in chart.findobj(Text) if text.get_visible() and text.get_text() and text not in _beyond(chart)]
    texts = {f"{number} {text.get_text()}": text.get_window_extent() for number, text in enumerate(written)}
    bars = {str(bar): bar.get_window_extent() for axes in chart.axes for bar in axes.patches}
    legend = chart.axes[1].get_legend()
    inside = {text.get_text() for text in legend.get_texts()}

    assert len(texts) > 30
    assert [name for name, box in texts.items() if not _within(chart.bbox, box)] == []
    assert [(one, other) for one, other in combinations(texts, 2) if texts[one].overlaps(texts[other])] == []
    assert [(name, bar) for name in texts for bar in bars if texts[name].overlaps(bars[bar])] == []
    others = bars | {name: box for name, box in texts.items() if name.partition(" ")[2] not in inside}
    assert [name for name, box in others.items() if legend.get_window_extent().overlaps(box)] == []


def _beyond(chart: Any) -> list[Any]:
    """The labels of ticks that lie outside their axes, which matplotlib keeps and does not draw."""
    ticks = [(axes.get_xlim(), tick) for axes in chart.axes for tick in axes.xaxis.get_major_ticks()]
    return [label for (left, right), tick in ticks if not left <= tick.get_loc() <= right for label in (tick.label1, tick.label2)]


def _within(whole: Any, box: Any) -> bool:
    return bool(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1)


def test_it_is_written_as_wide_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "bench.png"

    picture.draw(FIGURES, path)

    with Image.open(path) as image:
        assert image.width == picture.WIDTH_PX
        assert len(image.convert("RGB").getcolors(2_000_000) or ()) > 5
