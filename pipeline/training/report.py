"""The report of an evaluation: PNG plots and one self-contained HTML page, from the document of `build/evaluate.json`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#0b6e4f", "#c8553d", "#2d5d9f", "#8a5a9e", "#b8860b", "#444444", "#3aa6a0", "#d1699c")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2321;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2.2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}figure{margin:1rem 0}img{max-width:100%}figcaption,.small{color:#5a6562;font-size:.9rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem}
"""


class ReportError(Exception):
    """A report cannot be drawn here. Always permanent."""

    permanent = True


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write `roc.png`, `reliability.png`, `sets.png`, `risk_coverage.png`, `grid.png` (where measured) and `report.html`.

    Returns the path of the page. Raises ReportError where matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, (caption, draw) in _PLOTS.items():
        data = draw(document)
        if data is not None:
            (folder / f"{name}.png").write_bytes(data)
            pictures[name] = (caption, data)
    page = folder / "report.html"
    page.write_text(_page(document, pictures), encoding="utf-8")
    return page


def training_curve(curve: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw loss and validation AUC over images seen, from the rows of a training's `curve.json`, into a PNG."""
    figure, (above, below) = _figure(2, 1, (8, 6), sharex=True)
    seen = [row["seen"] / 1000 for row in curve]
    above.plot(seen, [row["loss"] for row in curve], color=COLOURS[5], lw=1.3)
    above.set_ylabel("training loss")
    kinds = sorted({key for row in curve for key in row if key.startswith("auc_")})
    for kind, colour in zip(kinds, COLOURS, strict=False):
        points = [(row["seen"] / 1000, row[kind]) for row in curve if row.get(kind) is not None]
        below.plot(*zip(*points, strict=True), color=colour, lw=1.3, label=kind.removeprefix("auc_").replace("_", " "))
    below.set_ylabel("validation AUC")
    below.set_xlabel("thousand images seen")
    if kinds:
        below.legend(frameon=False)
    target.write_bytes(_png(figure))


def _figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 5), **more: Any) -> tuple[Any, Any]:
    try:
        # Figure alone draws without a screen and without pyplot's global state
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("The report's plots need matplotlib: pip install 'unmask[train]'.") from error
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, **more)
    for axis in getattr(axes, "flat", (axes,)):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.6)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _measured(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: found for name, found in document["sets"].items() if found.get("auc") is not None}


def _said(name: str) -> str:
    return name.replace("_", " ")


def _roc(document: Mapping[str, Any]) -> bytes | None:
    sets = _measured(document)
    if not sets:
        return None
    figure, axis = _figure()
    for (name, found), colour in zip(sets.items(), COLOURS * 9, strict=False):
        axis.plot(*zip(*found["roc"], strict=True), color=colour, lw=1.6, label=f"{_said(name)}, AUC {found['auc']:.3f}")
    axis.plot([0, 1], [0, 1], color="#999", lw=0.8, ls=":")
    axis.set(xlabel="reals called fake", ylabel="fakes found", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    return _png(figure)


def _reliability(document: Mapping[str, Any]) -> bytes | None:
    sets = _measured(document)
    if not sets:
        return None
    figure, axis = _figure()
    axis.plot([0, 1], [0, 1], color="#999", lw=0.8, ls=":")
    for (name, found), colour in zip(sets.items(), COLOURS * 9, strict=False):
        scores, shares, weights = zip(*found["reliability"], strict=True)
        axis.plot(scores, shares, color=colour, lw=1, label=f"{_said(name)}, ECE {found['ece15']:.3f}")
        axis.scatter(scores, shares, s=[8 + 300 * w for w in weights], color=colour, alpha=0.5, lw=0)
    for value in document["thresholds"].values():
        axis.axvline(value, color="#999", lw=0.8, ls="--")
    axis.set(xlabel="score", ylabel="share of fakes (even odds)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    return _png(figure)


def _sets(document: Mapping[str, Any]) -> bytes | None:
    sets = _measured(document)
    if not sets:
        return None
    figure, axis = _figure(size=(7, 0.6 * len(sets) + 1.4))
    for row, (found, colour) in enumerate(zip(sets.values(), COLOURS * 9, strict=False)):
        low, high = found["auc_ci"]
        axis.plot([low, high], [row, row], color=colour, lw=4, alpha=0.35, solid_capstyle="butt")
        axis.plot(found["auc"], row, "o", color=colour)
        axis.plot(found["tpr_at_1fpr"], row, "D", color=colour, mfc="white", ms=5)
    axis.set_yticks(range(len(sets)), [_said(name) for name in sets])
    axis.set_ylim(len(sets) - 0.5, -0.5)
    axis.set(xlim=(0, 1.01), xlabel="● AUC with 95 % interval    ◇ fakes found at 1 % false positives")
    return _png(figure)


def _risk(document: Mapping[str, Any]) -> bytes | None:
    sets = _measured(document)
    if not sets:
        return None
    figure, axis = _figure()
    for (name, found), colour in zip(sets.items(), COLOURS * 9, strict=False):
        axis.plot(*zip(*found["risk_coverage"], strict=True), color=colour, lw=1.6, label=_said(name))
        if found["risk"] is not None:
            axis.plot(found["coverage"], found["risk"], "o", color=colour, ms=7, mfc="white")
    axis.set(xlabel="coverage: share of faces judged, the surest first", ylabel="risk: share of these judged wrongly", xlim=(0, 1.01))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=9)
    return _png(figure)


def _grid(document: Mapping[str, Any]) -> bytes | None:
    grid, sets = document.get("grid") or {}, _measured(document)
    if not grid or not sets:
        return None
    figure, axes = _figure(1, len(grid), (4.5 * len(grid), 3.8), sharey=True, squeeze=False)
    for axis, (kind, conditions) in zip(axes.flat, grid.items(), strict=True):
        labels = ["as is", *conditions]
        for (name, found), colour in zip(sets.items(), COLOURS * 9, strict=False):
            values = [found["auc"], *(conditions[value].get(name, {}).get("auc") for value in conditions)]
            axis.plot(range(len(labels)), values, "o-", color=colour, lw=1.4, ms=4, label=_said(name))
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlabel({"jpeg": "JPEG quality", "size": "face size in pixels"}.get(kind, kind))
    axes.flat[0].set_ylabel("AUC")
    axes.flat[0].legend(frameon=False, fontsize=8)
    return _png(figure)


_PLOTS = {
    "sets": ("Each kind of manipulation", _sets),
    "roc": ("Fakes found against reals called fake, at every threshold", _roc),
    "reliability": ("What a score is worth: of faces scored so, the share that is fake. Dashed: the thresholds", _reliability),
    "risk_coverage": (
        "What abstaining buys: risk when only the surest are judged. Circles: the verdicts outside the uncertain band",
        _risk,
    ),
    "grid": ("After recompression, and at small sizes", _grid),
}

_COLUMNS = {
    "n": "n",
    "auc": "AUC",
    "auc_ci": "95 % interval",
    "ap": "AP",
    "eer": "EER",
    "tpr_at_1fpr": "TPR at 1 % FPR",
    "tpr_at_1fpr_ci": "its interval",
    "accuracy": "accuracy",
    "ece15": "ECE(15)",
    "ece15_ci": "its interval",
    "ece15_by_chance": "by chance",
    "brier": "Brier",
}


def _page(document: Mapping[str, Any], pictures: Mapping[str, tuple[str, bytes]]) -> str:
    model, bounds = document["model"], document["thresholds"]
    name = f"{_safe(model['name'])} {_safe(model['version'])}"
    facts = (
        f"split {document['split']}, seed {document['seed']}, precision {model['precision']}, data {document['manifest'][:16]}…",
        f"authentic below {bounds['authentic_below']:.3f}, manipulated from {bounds['manipulated_from']:.3f}, uncertain between",
        document["weighting"],
    )
    sets = document["sets"] | ({"all together": document["overall"]} if len(document["sets"]) > 1 else {})
    everywhere, clean = _with_interval(document, "false_positive_rate"), _value(document["false_positive_rate_clean"])
    parts = [
        f"<h1>{name}</h1><p class=small>{_safe('; '.join(facts))}.</p>",
        _figures_table("set", sets),
        *(f"<p>{_safe(sentence)}</p>" for sentence in _resolution(document["sets"])),
        f"<p>Reals called manipulated: {clean} as they are, {everywhere} of {document['real_judgements']} judgements of "
        f"{document['real_people']} people in all.</p>",
        f"<p class=small>{_safe(document['intervals'])}.</p>",
        f"<div class=grid>{''.join(_figure_tag(caption, data) for caption, data in pictures.values())}</div>",
    ]
    parts += _by_group(document) + _by_condition(document)
    failed = [[_said(key), _reasons(reasons)] for key, reasons in document["failed_faces"].items() if reasons]
    if failed:
        parts += ["<h2>Pictures without a judgement</h2>", _table(["set", "reason"], failed)]
    if document.get("gate"):
        refused = [[at, str(row["n"]), _reasons(row["refused"])] for at, row in document["gate"].items()]
        parts += ["<h2>Reals that serving's quality gate would refuse, though they are scored here</h2>"]
        parts.append(_table(["condition", "photographs", "refused"], refused))
    if document.get("limits"):
        parts.append(
            "<h2>What it does not know</h2><ul>" + "".join(f"<li>{_safe(sentence)}</li>" for sentence in document["limits"]) + "</ul>"
        )
    head = f"<meta charset=utf-8><title>Evaluation of {name}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _resolution(sets: Mapping[str, Any]) -> list[str]:
    """What few reals make of TPR at 1 % FPR."""
    coarse = {found["n_real"]: found["fpr_resolution"] for found in sets.values() if found["n_real"] and found["fpr_resolution"] > 0.01}
    return [
        f"With {n} reals one is {100 * share:.1f} %, so TPR at 1 % FPR is TPR at no false positive." for n, share in sorted(coarse.items())
    ]


def _by_group(document: Mapping[str, Any]) -> list[str]:
    rows = {f"{_said(attribute)}: {value}": row for attribute, values in document["groups"].items() for value, row in values.items()}
    if not rows:
        return []
    groups = [
        [
            name,
            str(row["n"]),
            _with_interval(row, "false_positive_rate"),
            "not measurable" if row["over_overall"] is None else _with_interval(row, "over_overall"),
            *(_value(row["auc"].get(of_set)) for of_set in document["sets"]),
        ]
        for name, row in rows.items()
    ]
    columns = ["group", "n", "reals called fake", "over all", *(f"AUC {_said(name)}" for name in document["sets"])]
    parts = ["<h2>By self-reported group</h2>", _table(columns, groups)]
    parts += [
        f"<p>Over all: {_safe(why)}.</p>" for why in {row["over_overall_why"] for row in rows.values() if row.get("over_overall_why")}
    ]
    each = {f"{name}, {_said(of_set)}": found for name, row in rows.items() for of_set, found in row["sets"].items()}
    return [*parts, _figures_table("group and set", each)]


def _by_condition(document: Mapping[str, Any]) -> list[str]:
    cells = {
        f"{kind} {value}, {_said(name)}": cell
        for kind, conditions in document["grid"].items()
        for value, sets in conditions.items()
        for name, cell in sets.items()
    }
    lost = {"auc_lost": "AUC lost", "auc_lost_ci": "its interval"}
    title = "<h2>After recompression (JPEG quality), and at small sizes (pixels of the face)</h2>"
    return [title, _figures_table("condition and set", cells, lost)] if cells else []


def _figures_table(first: str, rows: Mapping[str, Mapping[str, Any]], more: Mapping[str, str] | None = None) -> str:
    columns = {**_COLUMNS, **(more or {})}
    return _table([first, *columns.values()], [[_said(key), *(_value(row.get(column)) for column in columns)] for key, row in rows.items()])


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    return _value(row[key]) + (f" ({_value(row[f'{key}_ci'])})" if row.get(f"{key}_ci") else "")


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_said(why)}: {count}" for why, count in counts.items()) or "none"


def _figure_tag(caption: str, data: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f"<figure><img alt='{_safe(caption)}' src='{source}'><figcaption>{_safe(caption)}</figcaption></figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_safe(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return " to ".join(_value(part) for part in value)
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
