"""The gate: a candidate takes over from the champion only if it is not worse on faces that neither was trained on.

Five things have to hold, all measured on the hold-out of the default data set, candidate and champion on the same crops: its AUC is
not lower, its true positives at 1 % false positives not beyond chance, and both even at worst (the lower end of the interval) not by
more than a margin; its calibration error is under a limit; no group of people is called manipulated much more often than everybody;
and no pinned verdict flips that the champion holds. The last one a person may overrule, which the others need not wait for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import audit, collections, outbox, pins, reference, registry, shadow
from pipeline.card import Card, ModelError
from pipeline.classification import Classifier, load
from pipeline.collections import CollectionError
from pipeline.database import Database, ModelRow, now
from pipeline.jobs import new_id
from pipeline.settings import Settings
from pipeline.shadow import ShadowError
from pipeline.storage import Storage
from pipeline.tables.learning import DecisionRow
from pipeline.trials import Difference, Trial

SEED = 1
PER_PORTRAIT = 4
MAX_PICTURE_BYTES = 10_000_000


class GateError(Exception):
    """A candidate could not be considered at all. `permanent`: considering it again changes nothing."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


class Outcome(str, Enum):
    """What became of a candidate."""

    PROMOTED = "promoted"
    """It passed, and is champion."""
    WAITING = "waiting"
    """A person decides: it passed and promotion is by hand, or only pinned verdicts flip, or there is no hold-out to measure it on."""
    REFUSED = "refused"
    """It is worse; it stays a candidate, with the reasons."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds, and a sentence that says so with the numbers."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Decision:
    """What was decided about a candidate, and why. `picture`: key of a PNG in the models bucket, empty if nothing was measured."""

    id: str
    name: str
    version: str
    outcome: Outcome
    checks: tuple[Check, ...]
    picture: str
    training_id: str

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of what did not hold."""
        return tuple(check.sentence for check in self.checks if not check.passed)


Provided = Callable[[Session], None]
"""Called within the transaction that records a decision, and promotes; may raise to keep it from happening."""


def always(session: Session) -> None:
    """Nothing keeps a decision from being recorded."""


def consider(db: Database, store: Storage, settings: Settings, folder: Path, *, training_id: str, provided: Provided = always) -> Decision:
    """Publish the version in `folder` as the candidate, measure it against the champion on the hold-out, and decide.

    Doing it again for a version that was decided on gives the same decision. Raises ModelError for a folder that is no
    version, GateError, StorageError, and what `provided` raises: then nothing is decided, and nothing promoted.
    """
    card = registry.publish(db, store, settings, folder)
    if (before := _decided(db, card.name, card.version)) is not None:
        return before
    champion = _champion(db)
    if champion == (card.name, card.version):
        checks = [Check("champion", True, "It is champion already: somebody promoted it before it was measured.")]
        return _recorded(db, store, settings, card, champion, checks, Outcome.PROMOTED, training_id=training_id, provided=provided)
    registry.nominate(db, card.name, card.version)
    candidate = _loaded(db, store, settings, (card.name, card.version))
    reigning = None if champion is None else _loaded(db, store, settings, champion)
    try:
        dataset = collections.default(db, store, settings)
    except CollectionError as error:
        if not error.permanent:
            raise GateError(str(error), permanent=False) from error
        checks = [Check("hold-out", False, f"It could not be measured, so a person has to decide: {error}")]
        return _recorded(db, store, settings, card, champion, checks, Outcome.WAITING, training_id=training_id, provided=provided)
    return _measured(db, store, settings, candidate, reigning, dataset, training_id, provided)


def _measured(
    db: Database,
    store: Storage,
    settings: Settings,
    candidate: Classifier,
    champion: Classifier | None,
    dataset: collections.OnDisk,
    training_id: str,
    provided: Provided,
) -> Decision:
    from pipeline.training import trial, trial_picture

    how: dict[str, Any] = {"facts": settings.data_dir / "datasets" / "facts.npz", "seed": SEED, "per_portrait": PER_PORTRAIT}
    named = None if champion is None else (champion.card.name, champion.card.version)

    def too_few(people: int) -> Decision:
        counted = "1 person" if people == 1 else f"{people} people"
        said = f"The hold-out has {counted}, and at least {reference.LEAST_PEOPLE} are needed: a person has to decide."
        checks = [Check("hold-out", False, said)]
        return _recorded(db, store, settings, candidate.card, named, checks, Outcome.WAITING, training_id=training_id, provided=provided)

    if (people := reference.people(db)) < reference.LEAST_PEOPLE:
        return too_few(people)
    mine, holdout = trial.measured(candidate, dataset.faces, **how)
    if len(holdout.names) < reference.LEAST_PEOPLE:  # not everybody's face is found
        return too_few(len(holdout.names))
    theirs = None if champion is None else trial.measured(champion, dataset.faces, **how)[0]
    found = trial.compare(
        (mine, candidate.card.thresholds.manipulated_from),
        None if champion is None or theirs is None else (theirs, champion.card.thresholds.manipulated_from),
        holdout,
        seed=SEED,
    )
    reference.keep(db, settings, dataset, candidate.card, mine.clean_reals)
    if champion is not None and theirs is not None:
        reference.keep(db, settings, dataset, champion.card, theirs.clean_reals)
    checks = [*judged(found, settings), _pins(pins.compare(db, store, settings, candidate, champion))]
    outcome = decided(checks, promotes=settings.gate_promotes)
    picture = trial_picture.draw(
        found,
        title=f"{candidate.card.name} {candidate.card.version} against {'nobody' if named is None else named[1]}",
        verdict={Outcome.PROMOTED: "passed", Outcome.WAITING: "waits for a person", Outcome.REFUSED: "refused"}[outcome],
        sentences=[(check.passed, check.sentence) for check in checks],
        margins=(settings.gate_auc_margin, tpr_margin(found, settings)),
        group_limit=_group_limit(found, settings),
        names=(f"candidate {candidate.card.version}", "no champion" if named is None else f"champion {named[1]}"),
    )
    figures = json.loads(json.dumps({key: value for key, value in asdict(found).items() if key != "curves"}))
    return _recorded(
        db,
        store,
        settings,
        candidate.card,
        named,
        checks,
        outcome,
        training_id=training_id,
        provided=provided,
        picture=picture,
        figures=figures,
        dataset=dataset.sha256,
    )


# -- the rules


def judged(found: Trial, settings: Settings) -> list[Check]:
    """What a trial says of the first four things that have to hold."""
    ece, false = found.ece[0], found.false_positives
    limit = _group_limit(found, settings)
    everybody = {"everybody": (found.photographs, *false)}
    beyond = {name: rate for name, (_, rate, _) in {**everybody, **found.groups}.items() if rate > limit}
    groups = (
        f"Real faces are called manipulated in {_percent(false[0])} of all judgements; "
        + (f"more than {_percent(limit)} of " + ", ".join(f"{n} ({_percent(r)})" for n, r in beyond.items()) if beyond else "")
        + ("" if beyond else f"no group of people is above {_percent(limit)}")
        + "."
    )
    return [
        _not_lower("auc", "The mean AUC", found.auc, settings.gate_auc_margin, "{:.3f}".format),
        _not_lower("tpr", "The share of fakes found at 1 % false positives", found.tpr, tpr_margin(found, settings), _percent, slack=True),
        Check(
            "ece",
            ece <= settings.gate_max_ece,
            f"The calibration error is {ece:.3f}, its limit {settings.gate_max_ece:g}.",
        ),
        Check("groups", not beyond, groups),
    ]


def tpr_margin(found: Trial, settings: Settings) -> float:
    """How far the share of fakes found may lie below the champion's at worst; by at most half of that where fewer were found."""
    champion = found.tpr.champion
    # with a few dozen people the interval is wide on both sides of a clear gain, too: that alone holds up no better model
    return settings.gate_tpr_margin if champion is None or found.tpr.difference >= 0 else min(settings.gate_tpr_margin, champion / 2)


def decided(checks: Sequence[Check], *, promotes: bool) -> Outcome:
    """What the checks come to: a person may overrule flipped verdicts, and nothing else has to wait for one unless so set."""
    failed = {check.name for check in checks if not check.passed}
    if failed - {"pinned"}:
        return Outcome.REFUSED
    return Outcome.PROMOTED if promotes and not failed else Outcome.WAITING


def _not_lower(name: str, what: str, found: Difference, margin: float, shown: Callable[[float], str], *, slack: bool = False) -> Check:
    """Not lower on the same faces, nor at worst by more than a margin. With `slack` a lower estimate passes that chance explains: for a
    figure that a single photograph moves."""
    if found.champion is None:
        return Check(name, True, f"{what} is {shown(found.candidate)}; there is no champion to compare it with.")
    said = f"{what} is {shown(found.candidate)} against the champion's {shown(found.champion)}"
    at_worst = "not lower even at worst" if found.low >= 0 else f"at worst {shown(-found.low)} lower"
    if found.difference < 0 and not (slack and found.high >= 0):
        return Check(name, False, f"{said}: {shown(-found.difference)} lower on the same faces.")
    if found.low < -margin:
        return Check(name, False, f"{said}, but too uncertain: {at_worst}, where {shown(margin)} is accepted.")
    return Check(name, True, f"{said}: {at_worst}, where {shown(margin)} is accepted.")


def _group_limit(found: Trial, settings: Settings) -> float:
    # a candidate that calls everybody manipulated must not raise the bar for its groups
    mine, before = found.false_positives
    return (mine if before is None else min(mine, before)) + settings.gate_group_margin


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _pins(found: pins.Standing) -> Check:
    if not found.pinned:
        return Check("pinned", True, "No verdict is pinned.")
    lost = f" {len(found.lost)} of {found.pinned} pinned verdicts are held by neither model: {_some(found.lost)}." if found.lost else ""
    if found.flipped:
        said = f"{len(found.flipped)} of {found.pinned} pinned verdicts would flip, which a person has to approve: {_some(found.flipped)}."
        return Check("pinned", False, said + lost)
    kept = found.pinned - len(found.lost)
    return Check("pinned", True, f"{kept} of {found.pinned} pinned verdicts stay as they are, and none flips.{lost}")


def _some(words: Sequence[str]) -> str:
    return "; ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


# -- what is remembered


def _recorded(
    db: Database,
    store: Storage,
    settings: Settings,
    card: Card,
    champion: tuple[str, str] | None,
    checks: Sequence[Check],
    outcome: Outcome,
    *,
    training_id: str,
    provided: Provided = always,
    picture: bytes = b"",
    figures: Mapping[str, Any] | None = None,
    dataset: str = "",
) -> Decision:
    decision_id = new_id("dec_")
    key = f"decisions/{decision_id}.png" if picture else ""
    if picture:
        store.put(settings.models_bucket, key, picture, "image/png")
    decision = Decision(decision_id, card.name, card.version, outcome, tuple(checks), key, training_id)
    # champion and decision in one transaction: whoever dies here has done neither, or both
    try:
        with db.write() as session:
            provided(session)
            session.get(ModelRow, (card.name, card.version), with_for_update=True)
            if (before := _latest(session, card.name, card.version)) is not None:  # by another worker meanwhile
                return _of(before)
            if outcome is Outcome.PROMOTED:
                _take_over(session, settings, card, champion)
            at = session.execute(select(now())).scalar_one()
            session.add(
                DecisionRow(
                    id=decision_id,
                    name=card.name,
                    version=card.version,
                    champion_name=champion[0] if champion else None,
                    champion_version=champion[1] if champion else None,
                    training_id=training_id,
                    outcome=outcome.value,
                    checks=[asdict(check) for check in checks],
                    figures=dict(figures or {}),
                    picture=key,
                    dataset=dataset,
                    created_at=at,
                )
            )
            if outcome is not Outcome.PROMOTED:
                _announce(session, f"model.{outcome.value}", decision)
            if outcome is Outcome.WAITING and settings.shadow_s > 0 and champion is not None:
                how: dict[str, Any] = {"seconds": settings.shadow_s, "share": settings.shadow_share}
                shadow.begun(session, card.name, card.version, actor="system", **how)
    except (ModelError, ShadowError) as error:
        raise GateError(str(error), permanent=error.permanent) from error
    except IntegrityError as error:
        raise GateError("Another version became the first champion at this moment.", permanent=False) from error
    return decision


def _take_over(session: Session, settings: Settings, card: Card, champion: tuple[str, str] | None) -> None:
    """Promote over the champion that it was compared with, and over nobody else."""
    if not registry.promoted(session, settings, card.name, card.version, over=champion, replace=champion is not None, actor="system"):
        raise GateError(f"There is a champion by now, which {card.name} {card.version} was not compared with.", permanent=False)


def _announce(session: Session, event: str, decision: Decision) -> None:
    sequence = outbox.next_sequence(session, decision.id)
    data = {"decision_id": decision.id, "name": decision.name, "version": decision.version, "training_id": decision.training_id}
    outbox.announce(
        session, event, decision.id, sequence, data | {"reasons": list(decision.reasons), "sequence": sequence, "url": "/v1/models"}
    )


def _decided(db: Database, name: str, version: str) -> Decision | None:
    with db.read() as session:
        row = _latest(session, name, version)
        return None if row is None else _of(row)


def _latest(session: Session, name: str, version: str, *, lock: bool = False) -> DecisionRow | None:
    found = select(DecisionRow).where(DecisionRow.name == name, DecisionRow.version == version)
    found = found.order_by(DecisionRow.created_at.desc(), DecisionRow.id.desc()).limit(1)
    return session.scalars(found.with_for_update() if lock else found).first()


def _of(row: DecisionRow) -> Decision:
    checks = tuple(Check(**one) for one in row.checks)
    return Decision(row.id, row.name, row.version, Outcome(row.outcome), checks, row.picture, row.training_id)


def decisions(db: Database, *, limit: int = 100) -> list[DecisionRow]:
    """The latest decisions, newest first."""
    with db.read() as session:
        return list(session.scalars(select(DecisionRow).order_by(DecisionRow.created_at.desc(), DecisionRow.id.desc()).limit(limit)))


def approve(db: Database, settings: Settings, name: str, version: str, *, actor: str) -> None:
    """Promote a candidate that waits for a person.

    Raises GateError if it does not wait, or if the champion is another by now or the candidate not signed here: trying again changes
    neither.
    """
    with db.write() as session:
        row = _latest(session, name, version, lock=True)
        if row is None or row.outcome != Outcome.WAITING.value or row.settled_at is not None:
            raise GateError(f"{name} {version} does not wait for anybody's approval: `unmask models list` shows what does.")
        over = None if row.champion_name is None or row.champion_version is None else (row.champion_name, row.champion_version)
        audit.note(session, actor, "model.approve", f"{name} {version}", decision=row.id)
        try:
            registry.promoted(session, settings, name, version, over=over)
        except ModelError as error:
            raise GateError(str(error)) from error
        row.settled_by, row.settled_at = actor, session.execute(select(now())).scalar_one()
    shadow.end(db, name, version, actor=actor)


def _champion(db: Database) -> tuple[str, str] | None:
    try:
        return registry.champion(db)
    except ModelError:
        return None


def _loaded(db: Database, store: Storage, settings: Settings, version: tuple[str, str]) -> Classifier:
    return load(registry.fetch(db, store, settings, *version), runtime=settings.runtime, precision=settings.precision)
