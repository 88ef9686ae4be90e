"""Crops a second that a step of the trainer learns from and that a look judges, on the CPU: TensorFlow with oneDNN and without it.

    python -m tests.benchmarks.training_step [--sizes 96,224,320] [--batch 32] [--rounds 3] [--steps 3]

TensorFlow decides at its import, and by the processor, whether it uses oneDNN: each measurement is a process of its own, the two ways in
turns. Random crops and weights, the trainer's own step (AdamW, mask head, moving average). Prints one JSON object: of each size and way
the median of all rounds with the spread, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WAYS = {"without": "0", "with": "1"}
VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def one(size: int, batch: int, steps: int) -> dict[str, list[float]]:
    """Crops a second of each step and of each look, the first of either left out, in this process."""
    from pipeline.training import devices, network, stepping
    from pipeline.training.averaging import Average
    from pipeline.training.plan import Plan

    rank = devices.begin("cpu")
    plan = Plan(stages=((size, 1.0, 1e-3),), pairs=batch // 2, average=0.995)
    model = network.build(size, mask_head=True, dropout=plan.dropout)
    step = stepping.compiled(model, stepping.optimizer(plan, 1e-3, steps + 1), plan, rank, Average(model, plan.average))
    rng = np.random.default_rng(1)
    crops = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    fake = (np.arange(batch) % 2).astype(np.float32)
    side = model.output_shape[1][1]
    mask = rng.random((batch, side, side), np.float32)
    found: dict[str, list[float]] = {"step": [], "look": []}
    for _ in range(steps + 1):
        began = time.perf_counter()
        float(step(crops, fake, mask, np.ones(batch, np.float32)))
        found["step"].append(batch / (time.perf_counter() - began))
    for _ in range(3):
        began = time.perf_counter()
        stepping.logits(model, crops, batch)
        found["look"].append(batch / (time.perf_counter() - began))
    return {what: rates[1:] for what, rates in found.items()}


def measured(size: int, batch: int, steps: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Of steps and looks, of each way: median, least and most."""
    rates: dict[str, dict[str, list[float]]] = {"step": {way: [] for way in WAYS}, "look": {way: [] for way in WAYS}}
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            command = [sys.executable, "-m", "tests.benchmarks.training_step", "--one", f"{size},{batch},{steps}"]
            said = subprocess.run(command, env={**os.environ, VARIABLE: WAYS[way]}, stdout=subprocess.PIPE, check=True, text=True).stdout
            for what, some in json.loads(said.splitlines()[-1]).items():
                rates[what][way] += some
        print(f"{size} px, round {number + 1} of {rounds}", file=sys.stderr)
    return {
        what: {way: {"median": statistics.median(some), "least": min(some), "most": max(some)} for way, some in ways.items()}
        for what, ways in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="96,224,320")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(*(int(value) for value in chosen.one.split(",")))))
        return
    sizes = {size: measured(int(size), chosen.batch, chosen.steps, chosen.rounds) for size in chosen.sizes.split(",")}
    ratios = {
        size: {what: ways["with"]["median"] / ways["without"]["median"] for what, ways in found.items()} for size, found in sizes.items()
    }
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    processor = {"machine": platform.machine(), "cores": os.cpu_count(), "vnni": "avx512_vnni" in flags, "bf16": "avx512_bf16" in flags}
    print(json.dumps({"processor": processor, "crops_per_s": sizes, "with_over_without": ratios}, indent=1))


if __name__ == "__main__":
    main()
