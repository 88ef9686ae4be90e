"""Measures a champion that came past the gate on the hold-out, in a process of its own: `python -m workers.measuring`.

That loads a model and works for as long as there are photographs, which upkeep's own process must not: webhooks wait there. It lets
everything else on the machine go first, ends with the process that began it, and is ended itself when it takes too long.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from threading import Lock

from pipeline import reference
from pipeline.card import ModelError
from pipeline.collections import CollectionError
from pipeline.database import Database, database
from pipeline.settings import Settings, settings
from pipeline.storage import StorageError, storage
from workers import calm, tether

log = logging.getLogger(__name__)

NICE = 19
LIMIT_S = 3600.0
"""How long it may take: thousands of photographs."""

_beginning = Lock()
_running: tuple[subprocess.Popen[bytes], float] | None = None


def begin(db: Database, chosen: Settings) -> bool:
    """Begin to measure, if that is owed and nobody here is at it. Returns at once; False: nothing was begun."""
    global _running
    with _beginning:
        if _running is not None:
            process, since = _running
            if process.poll() is None:
                if time.monotonic() - since > LIMIT_S:
                    log.warning("The champion could not be measured on the hold-out within %.0f s.", LIMIT_S)
                    process.kill()
                return False
            _running = None
        if reference.owed(db) is None:
            return False
        chosen.data_dir.mkdir(parents=True, exist_ok=True)
        tied = [sys.executable, "-S", "-E", tether.__file__, str(chosen.data_dir / "measuring.lock")]
        calmly = [sys.executable, "-S", "-E", calm.__file__, str(NICE)]
        command = [*tied, *calmly, sys.executable, "-m", "workers.measuring"]
        # a session of its own is what can be nice as a whole
        _running = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True), time.monotonic()
        return True


def main() -> int:
    """Measure the champion of the settings in the environment. The exit code; 1: it could not be done, which standard error explains."""
    chosen = settings()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        measured = reference.measure(database(chosen.database), storage(chosen), chosen)
    except (ModelError, CollectionError, StorageError) as error:
        log.warning("The champion could not be measured on the hold-out: %s", error)
        return 1
    if measured is not None:
        log.info("%s %s was measured on the hold-out: what comes in is compared with that.", *measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
