"""`make bench`: the work alone, the product, and the paper's server in turns on the same pictures; writes `build/bench.json` and a picture.

Wall-clock throughput is of this machine as it is; seconds of processor time are beside it, and mean something on a busy machine as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline import classification, registry
from tests.benchmarks import accounting, backlog, ledger_cost, mix, other_queue, picture
from tests.benchmarks.bare import STEPS, Bare
from tests.benchmarks.paper import Paper
from tests.benchmarks.product import Product, Result, Run, bench_model

FACES = Path(__file__).parents[3] / "shared" / "faces"
SERVING = ("extract", "classify", "render", "web")
F32_BOUND = 1e-4
"""Scores in f32 that differ by more are another computation."""
SHOWN = ("pipeline_images_per_s", "bare_images_per_s", "pipeline_over_bare", "over_paper", "latency_ms", "overhead_cpu_ms", "rss_mb")
INSTANCE = {"name": "AWS c7a.large, us-east-1, on demand", "vcpus": 2, "usd_per_hour": 0.1026, "as_of": "2025-06", "source": "from memory"}
"""A common machine of two AMD cores that have bfloat16, as the shipped model wants, and what Amazon listed for it. The bench does not look
it up: give --usd-per-hour where it differs."""


def main(given: list[str] | None = None) -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--faces", type=Path, default=FACES, help="face photographs; scikit-image's portrait without them")
    parser.add_argument("--rounds", type=int, default=3, help="how often each of the three takes its turn")
    parser.add_argument("--images", type=int, default=48, help="pictures a turn; the paper's server takes each once")
    parser.add_argument("--latency", type=int, default=40, help="uploads to an idle stack")
    parser.add_argument("--backlog", type=int, default=100_000, help="rows that wait while claims and the API are measured")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--usd-per-hour", type=float, default=INSTANCE["usd_per_hour"])
    parser.add_argument("--no-paper", action="store_true", help="leave the paper's server out: it needs TensorFlow")
    parser.add_argument("--short", action="store_true", help="a minute, to see that it works; the figures mean little")
    asked = parser.parse_args(given)
    if asked.images > mix.ROUND and asked.images % mix.ROUND:
        parser.error(f"--images: up to {mix.ROUND} or a multiple of it, so that the paper's server gets the same mix")
    if asked.short:
        asked.rounds, asked.images, asked.latency, asked.backlog = 1, 8, 2, 2000
    began = time.monotonic()
    try:
        figures = run(asked)
    except Differs as error:
        sys.exit(f"The bench measures two different things: {error}")
    figures["took_s"] = round(time.monotonic() - began, 1)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    picture.draw(figures, asked.out.with_suffix(".png"))
    for name in SHOWN:
        print(f"{name:24} {figures.get(name)}")
    print(f"{'queues':24} {other_queue.said(figures['queues'])}")


class Differs(Exception):
    """The product does not say of a picture what the bare loop says of it."""


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are written."""
    _say("making the pictures")
    samples = mix.mix(asked.faces, largest=1 if asked.short else 12)
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as temporary:
        folder = Path(temporary)
        paths = [folder / sample.name for sample in samples]
        for path, sample in zip(paths, samples, strict=True):
            path.write_bytes(sample.data)
        threshold, _ = _threshold(folder, paths)
        model = bench_model(folder / "model", threshold)
        turn = [paths[number % len(paths)] for number in range(asked.images)]
        _say("starting the product")
        with Product(folder / "stack", model, database=asked.database) as product:
            _say("starting the others")
            bare = Bare(model, 2)
            paper = None if asked.no_paper else Paper(registry.shipped()[-1] / "weights.h5", threshold)
            try:
                precision = classification.load(
                    model, runtime=product.settings.runtime, precision=product.settings.precision, threads=1
                ).precision
                figures = _turns(asked.rounds, turn, bare, product, paper, _bound(model, precision), threshold)
            finally:
                bare.close()
                if paper is not None:
                    paper.close()
            figures["idle"] = _idle(product, 2.0 if asked.short else 10.0)
            _say("latency")
            spans = product.latency(mix.portrait(asked.faces), asked.latency)
            figures["latency_ms"] = _percentiles(spans)
            _say("interactive before bulk")
            figures["interactive"] = product.overtaking(paths, mix.portrait(asked.faces), 3 if asked.short else 5)
            peaks = {name: round(size / 1e6) for name, size in accounting.memory(product.look()).items()}
            largest = max(SERVING, key=lambda name: peaks.get(name, 0))
            figures |= {"rss_mb": peaks[largest], "rss_mb_of": f"{largest}, its peak", "memory_mb": peaks}
            _say("the ledger alone")
            ledger_alone = _ledger(product, 20 if asked.short else 100, registry.verify(model).input_size)
            servers = product.servers()
            _say("a long backlog")
            figures["scale"] = _scale(product, asked.backlog)
        _say("the queue alone, beside other queues")
        chains = {"jobs": 100, "rounds": 1} if asked.short else {"jobs": 1000, "rounds": 3}
        figures["queues"] = other_queue.measure(**chains) | {"ledger": ledger_alone}
        if not asked.short:
            _say("eight workers")
            figures["workers"] = _workers(folder, model, turn, asked.database, figures["cpu_ms_per_image"])
    figures["cost"] = _cost(figures["cpu_ms_per_image"], asked.usd_per_hour)
    figures["n"] = {"rounds": asked.rounds, "images": asked.images, "latency": asked.latency, "backlog": asked.backlog}
    figures["mix"] = dict(Counter(f"{sample.kind}, {sample.megapixels} MP" for sample in samples))
    figures["machine"] = _machine(asked.database) | {"servers": servers}
    shipped = registry.verify(registry.shipped()[-1])
    figures["model"] = {"name": shipped.name, "version": shipped.version, "precision": precision, "input_size": shipped.input_size}
    return figures


def _threshold(folder: Path, paths: list[Path]) -> tuple[float, list[float]]:
    """The score from which a third of the pictures is manipulated: of the model's own answers, since the faces are real."""
    probe = Bare(bench_model(folder / "probe"), 2)
    try:
        highest = sorted((max(answer["scores"], default=0.0) for answer in probe.run(paths)), reverse=True)
    finally:
        probe.close()
    third = len(highest) // 3
    return (highest[third - 1] + highest[third]) / 2, highest


def _bound(model: Path, precision: str) -> float:
    """How far two computations of a score may be apart: in f32 hardly, else as far as the card says that the precision strays."""
    return F32_BOUND if precision == "f32" else float(registry.verify(model).precision[precision]["largest"])


def compared(answers: list[dict[str, Any]], results: list[Result], bound: float, threshold: float) -> dict[str, Any]:
    """The product's scores and drawn faces beside the bare loop's, picture by picture. Raises Differs where they are further apart.

    Another number of drawn faces is allowed only where as many scores are within `bound` of the threshold.
    """
    expected = {Path(answer["path"]).name: answer for answer in answers}
    largest, n = 0.0, 0
    for result in results:
        bare = expected[result.name]
        if len(bare["scores"]) != len(result.scores):
            raise Differs(f"{result.name} has {len(result.scores)} judged faces in the product, {len(bare['scores'])} in the bare loop.")
        differences = [abs(one - other) for one, other in zip(bare["scores"], result.scores, strict=True)]
        if max(differences, default=0.0) > bound:
            raise Differs(f"a score of {result.name} differs by {max(differences):.2g}, which is more than {bound:.2g}.")
        if abs(bare["drawn"] - result.drawn) > sum(abs(score - threshold) <= bound for score in bare["scores"]):
            raise Differs(f"{result.name} has {result.drawn} drawn faces in the product, {bare['drawn']} in the bare loop.")
        largest, n = max([largest, *differences]), n + len(differences)
    return {"n": n, "largest_difference": largest, "bound": bound}


def _turns(
    rounds: int, turn: list[Path], bare: Bare, product: Product, paper: Paper | None, bound: float, threshold: float
) -> dict[str, Any]:
    """Each in its turn, `rounds` times; medians with the lowest and the highest."""
    pictures = [(path.name, path.read_bytes()) for path in turn]
    product.run(pictures[: max(4, len(pictures) // 6)])
    bare.run(turn[:4])
    rates: dict[str, list[float]] = {"bare": [], "pipeline": [], "paper": []}
    cpu: dict[str, list[float]] = {"bare": [], "pipeline": [], "paper": []}
    runs: list[Run] = []
    answers: list[list[dict[str, Any]]] = []
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        before, began = accounting.look(bare.pids), time.monotonic()
        answers.append(bare.run(turn))
        rates["bare"].append(len(turn) / (time.monotonic() - began))
        cpu["bare"].append(sum(accounting.used(before, accounting.look(bare.pids)).values()) * 1000 / len(turn))
        runs.append(product.run(pictures))
        rates["pipeline"].append(runs[-1].images_per_s)
        cpu["pipeline"].append(sum(runs[-1].cpu_s.values()) * 1000 / len(turn))
        if paper is not None:
            asked = paper.run(turn[: mix.ROUND])  # every picture of the turn once: the same mix
            rates["paper"].append(asked.images_per_s)
            cpu["paper"].append(asked.cpu_s * 1000)
    middle = {name: statistics.median(values) for name, values in rates.items() if values}
    programs = _by_program(runs)
    work = statistics.median_low(cpu["bare"])
    middling = answers[cpu["bare"].index(work)]  # steps and their sum are of one and the same round
    steps = {name: round(statistics.mean(answer[name] for answer in middling), 2) for name in STEPS}
    ours = sum(spent for name, spent in programs.items() if name not in accounting.SERVERS)
    servers = sum(spent for name, spent in programs.items() if name in accounting.SERVERS)
    over_bare = _ratios(rates["pipeline"], rates["bare"])
    figures: dict[str, Any] = {
        "pipeline_images_per_s": round(middle["pipeline"], 3),
        "bare_images_per_s": round(middle["bare"], 3),
        "pipeline_over_bare": round(statistics.median(over_bare), 3),
        "cpu_ms_per_image": round(statistics.median(cpu["pipeline"]), 1),
        "bare_cpu_ms_per_image": round(work, 1),
        "bare_over_pipeline_cpu": round(work / statistics.median(cpu["pipeline"]), 3),
        "overhead_cpu_ms": {"ours": round(ours - work, 2), "servers": round(servers, 2)},
        "spread": {name: _spread(values) for name, values in rates.items() if values} | {"pipeline_over_bare": _spread(over_bare)},
        "cpu_spread_ms": {name: _spread(values, 1) for name, values in cpu.items() if values},
        "cpu_ms_by_program": programs,
        "cpu_ms_by_step": steps,
        "manipulated": round(statistics.mean(answer["drawn"] > 0 for answer in middling), 3),
        "faces": {"n": len(turn), "found": sum(answer["faces"] for answer in middling), "drawn": sum(one["drawn"] for one in middling)},
        "scores": compared(middling, product.results([job for run in runs for job in run.jobs]), bound, threshold),
        "stages_ms": _stages(runs),
    }
    if paper is not None:
        over_paper = _ratios(rates["pipeline"], rates["paper"])
        figures |= {"paper_images_per_s": round(middle["paper"], 3), "over_paper": round(statistics.median(over_paper), 2)}
        figures["spread"]["over_paper"] = _spread(over_paper)
        figures["paper"] = {"n": asked.n, "faces": asked.faces, "meshes": asked.meshes}
        figures["paper_cpu_ms_per_image"] = round(statistics.median(cpu["paper"]), 1)
        figures["paper_over_pipeline_cpu"] = round(statistics.median(cpu["paper"]) / statistics.median(cpu["pipeline"]), 2)
    return figures


def _ratios(ones: list[float], others: list[float]) -> list[float]:
    """Round by round: what slows a whole round down slows both."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def _spread(values: list[float], digits: int = 3) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)]


def _ledger(product: Product, jobs: int, crop_px: int) -> dict[str, Any]:
    """Three times the ledger alone: medians, and the spread of each."""
    times = [ledger_cost.measure(product.db, product.look, jobs, crop_px) for _ in range(3)]
    middle = {name: statistics.median(one[name] for one in times) for name in times[0]}
    return middle | {"times": 3, "spread": {name: _spread([one[name] for one in times]) for name in times[0] if name != "jobs"}}


def _by_program(runs: list[Run]) -> dict[str, float]:
    names = {name for run in runs for name in run.cpu_s}
    spent = {name: statistics.median(run.cpu_s[name] * 1000 / run.images for run in runs) for name in names}
    return {name: round(value, 2) for name, value in sorted(spent.items(), key=lambda one: -one[1])}


def _stages(runs: list[Run]) -> dict[str, float]:
    jobs = [job for run in runs for job in run.jobs]
    return {
        name: round(statistics.median(job.timings_ms.get(name, 0.0) for job in jobs), 1)
        for name in ("wait", "extract", "classify", "render")
    }


def _idle(product: Product, seconds: float) -> dict[str, float]:
    """Milliseconds of processor time a second that the stack takes while nothing happens."""
    before = product.look()
    time.sleep(seconds)
    spent = accounting.used(before, product.look())
    return {name: round(value * 1000 / seconds, 1) for name, value in spent.most_common()}


def _percentiles(spans: list[float]) -> dict[str, float]:
    ordered = sorted(spans)
    middle, late = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
    named = {"p50": middle, "p95": late, "min": ordered[0], "max": ordered[-1]}
    return {name: round(value, 1) for name, value in named.items()} | {"n": len(ordered)}


def _scale(product: Product, rows: int) -> dict[str, Any]:
    """Claims, API and broker with an empty backlog and with a long one; and with one that is overdue, the sweeper too."""
    few = 20 if rows < 10_000 else 200
    figures: dict[str, Any] = {"empty": backlog.claims(product.db, few), "api_empty": backlog.api(product.settings, few // 4)}
    backlog.fill(product.db, rows)
    figures |= {"rows": backlog.waiting(product.db), "long": backlog.claims(product.db, few)}
    figures["api_long"] = backlog.api(product.settings, few // 4)
    backlog.empty(product.db)
    product.order("stopProcessGroup", "workers")
    figures["overdue"] = backlog.overdue(product.db, product.settings, rows, few)
    figures["message_bytes"] = backlog.message_bytes(product.settings, few * 5)
    return figures


def _workers(folder: Path, model: Path, turn: list[Path], database: str, one: float) -> dict[str, Any]:
    """What a picture costs with four processes of extract and of render each, eight where there were two.

    In a process of its own: this one's connections to the first stack's broker are kept.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        spent = pool.submit(_eight, folder, model, turn, database).result()
    return {"cpu_ms_per_image_2": one, "cpu_ms_per_image_8": round(spent, 1), "ratio": round(spent / one, 3)}


def _eight(folder: Path, model: Path, turn: list[Path], database: str) -> float:
    pictures = [(path.name, path.read_bytes()) for path in turn]
    with Product(folder / "eight", model, database=database, extract_workers=4, render_workers=4) as product:
        product.run(pictures[:16])
        eight = product.run(pictures)
    return sum(eight.cpu_s.values()) * 1000 / eight.images


def _cost(cpu_ms: float, usd_per_hour: float) -> dict[str, Any]:
    """Images per core-hour, and the price of a million, every thread of the machine at work."""
    per_core_hour = 3_600_000 / cpu_ms
    return {
        "images_per_core_hour": round(per_core_hour),
        "usd_per_million": round(1e6 / (per_core_hour * int(str(INSTANCE["vcpus"]))) * usd_per_hour, 2),
        "instance": INSTANCE | {"usd_per_hour": usd_per_hour},
    }


def _machine(database: str) -> dict[str, Any]:
    packages = ("openvino", "celery", "dramatiq", "sqlalchemy", "psycopg", "opencv-contrib-python-headless", "pillow", "numpy", "isal")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    load = Path("/proc/loadavg").read_text().split()[0]
    versions = {name: _version(name) for name in (*packages, "mediapipe", "boto3", "tensorflow")} | {"python": platform.python_version()}
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_at_end": load,
        "database": database,
        "commit": commit,
        "versions": versions,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": {"mix": mix.SEED, "latency": mix.PORTRAIT_SEED},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # TensorFlow may be there under another name, or not at all
        return "not installed"


if __name__ == "__main__":
    main(sys.argv[1:])
