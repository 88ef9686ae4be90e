"""What each of the larger means is worth: with it and without it, in turns on the same pictures, in this process's own processor time.

    python -m tests.benchmarks.means [--rounds 5] [--faces ../shared/faces] [--json build/means.json]

Prints a table of milliseconds an item: *before* is without the means, *after* with it. `--largest 1` leaves out the pictures of 12
megapixels, `--no-store` what needs an S3 server. A row whose library or processor is not there says so instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2

from pipeline import classification, registry
from pipeline.settings import Settings
from tests.benchmarks import mix
from tests.benchmarks.means.classifier import FACES, batches_row, bf16_rows, crops, keras_rows
from tests.benchmarks.means.coding import decode_rows, encode_rows
from tests.benchmarks.means.detector import detector_rows
from tests.benchmarks.means.drawing import mesh_rows
from tests.benchmarks.means.measuring import Row
from tests.benchmarks.means.pictures import known
from tests.benchmarks.means.storage import pool_rows
from tests.benchmarks.means.table import busy, machine, table
from workers.allocation import keep_memory


def every(chosen: argparse.Namespace, settings: Settings) -> Iterator[list[Row]]:
    """All rows, as they come."""
    rounds, folder = chosen.rounds, registry.shipped()[-1]
    pictures = known(chosen.faces, chosen.pictures, chosen.largest, settings)
    cut = crops(pictures, min(FACES, chosen.judged), settings, classification.load(folder, runtime="openvino", precision="f32", threads=1))
    yield bf16_rows(rounds, folder, cut)
    yield [batches_row(rounds, folder, cut, chosen.judged, settings)]
    yield detector_rows(rounds, pictures, settings)  # before TensorFlow is there, which MediaPipe would import
    yield mesh_rows(rounds, pictures, settings)
    yield decode_rows(rounds, pictures, settings)
    yield encode_rows(rounds, pictures, settings)
    yield keras_rows(rounds, folder, cut)
    if chosen.store:
        yield pool_rows(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.means", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--faces", type=Path, default=Path("../shared/faces"))
    parser.add_argument("--pictures", type=int, default=16, help="of the mix; 8 hold each kind and size in its share")
    parser.add_argument("--judged", type=int, default=64, help="faces in a turn of the micro-batches; others take 8 of them at most")
    parser.add_argument("--largest", type=int, default=12, choices=tuple(mix.SIZES), help="megapixels")
    parser.add_argument("--no-store", dest="store", action="store_false", help="leave out what needs an S3 server")
    parser.add_argument("--json", type=Path, default=Path("build/means.json"))
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    keep_memory()  # as the stages' processes do
    before, rows = machine(), []
    for some in every(chosen, Settings()):
        rows += some
        print(f"{len(rows)} rows", file=sys.stderr)
    figures = {"before": before, "after": machine(), "rounds": chosen.rounds, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(busy(figures["before"], figures["after"]), table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
