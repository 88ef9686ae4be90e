"""`unmask cards`: which Gaudi cards this machine has, who holds them, and how trainings are pinned to them."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

import click
from rich.markup import escape
from sqlalchemy import select

from pipeline import gaudi
from pipeline.groups import CardError, group
from pipeline.tables.training import CardLeaseRow
from workers import console
from workers.launching import Launch, Launcher, command_of, environment_of, mpirun, pinning
from workers.sentences import CommandError
from workers.surroundings import opened, settings_in_force

COUNTS = ("0", "0,1", "0,1,2,3", "0,1,2,3,4,5,6,7")
"""The first legal group of 1, 2, 4 and 8 cards."""


@click.command("cards")
@click.option("--cards", "text", metavar="MODULES", help="Show how one group is pinned, such as 2,3.  [default: 1, 2, 4 and 8 cards]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_cards(text: str | None, as_json: bool) -> None:
    """Show this machine's Gaudi cards, their holders, and the variables that pin a training to 1, 2, 4 and 8 of them."""
    settings = settings_in_force()
    try:
        there: list[gaudi.Card] = list(gaudi.cards(settings.device_root))
        missing = ""
    except CardError as error:
        there, missing = [], str(error)
    try:
        launches = [pinned(one, settings.train_launcher, settings.train_bf16) for one in ([text] if text else COUNTS)]
    except CardError as error:
        raise CommandError(str(error)) from error
    held = _held()
    if as_json:
        found = [asdict(card) for card in there]
        console.print_json({"cards": found, "missing": missing, "held": held, "launches": launches})
        return
    shown = console.console()
    if missing:
        shown.print(escape(missing))
    else:
        table = console.table("Cards", "module", "node", "kind", "driver", right=("module",))
        for card in there:
            table.add_row(str(card.module), card.node, card.kind, card.driver)
        shown.print(table)
    for row in held:
        shown.print(escape(f"{row['card']} is held by {row['holder']} for training {row['training']}."))
    for launch in launches:
        table = console.table(f"module {launch['modules']}", "variable", "value")
        for name, value in launch["environment"].items():
            table.add_row(name, escape(value))
        for rank, own in enumerate(launch["ranks"]):
            table.add_row(f"rank {rank}", escape(" ".join(f"{name}={value}" for name, value in own.items())))
        shown.print(table)
        shown.print(f"[dim]{escape(launch['command'])}[/]", soft_wrap=True)


def pinned(text: str, launcher: Launcher, bf16: str = "auto") -> dict[str, Any]:
    """What is set and run for a group: `environment` of the process, `ranks`: what each rank has besides. Raises CardError.

    The variable for bfloat16 is set by the trainer, just before it loads the bridge.
    """
    launch = Launch(group("hpu", text), launcher, python="python")
    alone = launch.group.world == 1
    trainer = command_of(Launch(launch.group, launcher, python="python"), ["…"])
    if not alone:
        trainer = trainer[trainer.index("--") + 1 :]
    by_mpi = not alone and launcher == "horovod"
    ranks = [] if alone or by_mpi else [_rank(launch, rank) for rank in range(launch.group.world)]
    return {
        "cards": launch.group.world,
        "modules": text,
        "environment": environment_of(launch, {}) | {"TF_BF16_CONVERSION": "full" if bf16 in ("auto", "conversion") else "0"},
        "ranks": ranks,
        "command": shlex.join(mpirun(launch.group.world, trainer) if by_mpi else trainer).replace("'…'", "…"),
    }


def _rank(launch: Launch, rank: int) -> dict[str, str]:
    common = pinning(launch)
    return {name: value for name, value in pinning(launch, rank).items() if name not in common} | {"TF_CONFIG": f"… index {rank}"}


def _held() -> list[dict[str, str]]:
    """Leases in force, where there is a database."""
    try:
        with opened(settings_in_force()) as database, database.read() as session:
            rows = session.scalars(select(CardLeaseRow).where(CardLeaseRow.lease_until.is_not(None)).order_by(CardLeaseRow.card))
            return [{"card": row.card, "holder": row.holder, "training": row.training} for row in rows]
    except CommandError:
        return []
