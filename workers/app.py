"""The Celery application, its queues, and the one way to wake a job.

The database is the truth; the broker only carries wake-ups, each with a job id. It may lose all of them, or repeat them:
claims in the ledger see to it that no work is done twice, and upkeep wakes whatever nobody came for.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, cast

from celery import Celery, Signature, chain
from celery.exceptions import OperationalError
from celery.signals import after_setup_logger, before_task_publish, worker_ready
from kombu import Queue as Channel
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from pipeline.jobs import STAGES, Queue, Stage
from pipeline.settings import Settings, settings
from workers.queues import TRAIN, UPKEEP, queue_of, queues

log = logging.getLogger(__name__)

SOFT_SHUTDOWN_S = 10.0
"""How long a worker that was sent SIGQUIT lets its tasks run on before they go back to the queue. SIGTERM waits for them."""
HARDER_S = 3.0
"""How long after its time is up a stage that did not hear of it is killed."""
RESTORE_S = 5
"""How often messages of vanished workers are looked for."""

WAKE_S = DELIVER_S = 1.0
TIDY_S = 600.0
"""How often upkeep looks for jobs to wake, for webhooks to send, and for leftovers."""
COLLECT_S, DRIFT_S = 60.0, 900.0
"""How often it takes labelled faces into the data set, and looks for days that can be compared with the hold-out."""
TRAIN_UPKEEP_S = 2.0
"""How often upkeep looks after trainings and schedules."""
STALE_S = 30.0
"""How long after it was wanted a message for upkeep is still taken.

A message is stale from a moment by the sender's clock, and upkeep compares it with its own: this has to be well above what clocks
differ by, or a machine that is a little ahead would throw all of them away. A run that comes late, or twice, does no harm.
"""

DELIVERY, DELIVERY_MS = "unmask.delivery", 2000
"""The broker's key that says that a message for webhooks is on its way, and for how long that is believed."""

NOBODY_READS = ("argsrepr", "kwargsrepr", "origin", "ignore_result")
"""Headers that only tools for watching Celery look at, or that say what the task says anyway."""

app = Celery("unmask")


def configure(chosen: Settings) -> None:
    """Make the application speak to the broker of these settings; done on import with the process's own.

    Another broker can only be chosen before the first message is sent: connections are kept.
    """
    names = [name for stage in STAGES for name in queues(stage)] + [TRAIN, UPKEEP]
    app.conf.update(
        broker_url=chosen.broker_url,
        broker_connection_timeout=3,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # One value for every consumer: on Redis the shortest one wins for all queues.
            "visibility_timeout": 2 * (chosen.stage_limit_s + HARDER_S),
            "unacked_restore_interval": RESTORE_S,
            "unacked_restore_throttle": 1,
            "unacked_restore_limit": 100,
            # A worker looks into its queues in the order they are given: interactive first.
            "queue_order_strategy": "priority",
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 15,
            "retry_on_timeout": True,
            # Without these a sender would try for seconds on end while the broker is away.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.2,
        },
        task_queues=[Channel(name) for name in names],
        task_default_queue=UPKEEP,
        task_create_missing_queues=False,
        task_serializer="json",
        task_compression="zlib",  # a chain says everything thrice: a quarter of the broker's memory
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        # A task whose process was killed comes again, but only so often; the ledger's attempts cap it in any case.
        task_retry_on_worker_lost=True,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5},
        # First an exception, so that the reason is written down; then, where that is not heard, the end of the process.
        task_soft_time_limit=chosen.stage_limit_s,
        task_time_limit=chosen.stage_limit_s + HARDER_S,
        beat_schedule=_schedule(chosen),
        beat_scheduler="workers.beating:Punctual",
        worker_consumer="workers.reconnecting:Reconnecting",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_S,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_lost_wait=1.0,
        worker_proc_alive_timeout=60.0,
        worker_max_memory_per_child=2_000_000,
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
        worker_log_format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        worker_task_log_format="%(asctime)s %(levelname)s %(task_name)s: %(message)s",
        enable_utc=True,
        timezone="UTC",
    )


def _schedule(chosen: Settings) -> dict[str, dict[str, object]]:
    """The periodic tasks of `workers.upkeep`. A run that nobody came to until long after the next was due is of no use any more."""
    periods = {
        "unmask.sweep": chosen.sweep_s,
        "unmask.wake": WAKE_S,
        "unmask.reconcile": chosen.reconcile_s,
        "unmask.deliver": DELIVER_S,
        "unmask.train_upkeep": TRAIN_UPKEEP_S,
        "unmask.tidy": TIDY_S,
        "unmask.collect": COLLECT_S,
        "unmask.drift": DRIFT_S,
    }
    return {
        name: {"task": name, "schedule": period, "options": {"queue": UPKEEP, "expires": period + STALE_S}}
        for name, period in periods.items()
    }


configure(settings())


@after_setup_logger.connect
def _quieten(**_: object) -> None:
    # Two lines for every message say nothing that the ledger does not; what goes wrong is logged as an error all the same.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


@worker_ready.connect
def _watch(sender: Any, **_: object) -> None:
    from workers import pulse

    pulse.watch(sender)


@before_task_publish.connect
def _shorten(headers: dict[str, Any] | None = None, **_: object) -> None:
    # A backlog is as large in the broker as its messages: what a header does not say takes no room.
    said = headers or {}
    for name, value in list(said.items()):
        if name in NOBODY_READS or value in (None, 0, {}, (None, None), [None, None]) or (name == "root_id" and value == said["id"]):
            del said[name]


def wake(job_id: str, stage: Stage = Stage.EXTRACT, queue: Queue = Queue.BULK) -> bool:
    """Send the chain of a job on its way, from `stage` on. Never raises for the broker's sake.

    False: the message could not be sent. Nothing is lost: upkeep wakes the job later, and sooner after `ledger.unwoken`.
    """
    steps = [_step(step, job_id, queue) for step in STAGES[STAGES.index(stage) :]]
    return _sent(chain(*steps), f"job {job_id}")


def wake_training(training_id: str) -> bool:
    """Send a training on its way. False: the message could not be sent; upkeep does it later (see `trainings.unwoken`)."""
    return _sent(app.signature("unmask.train", args=(training_id,), immutable=True, queue=TRAIN), f"training {training_id}")


def deliver_soon() -> bool:
    """Have due webhooks delivered now and not at the next beat. False: the broker did not take the message.

    However many ask, one message is on its way: who takes it says so first (`delivering`), and then sees all that was committed.
    """
    try:
        with cast(Any, app.pool).acquire(block=True) as connection:
            if not connection.default_channel.client.set(DELIVERY, 1, nx=True, px=DELIVERY_MS):
                return True
    except (OperationalError, KombuError, RedisError, OSError) as error:
        log.warning("The broker did not take the message for webhook delivery: %s", error)
        return False
    return _sent(app.signature("unmask.deliver", queue=UPKEEP, expires=STALE_S), "webhook delivery")


def delivering() -> None:
    """Webhooks are looked through from now on: who has more of them sends another message. Never raises for the broker's sake."""
    with suppress(OperationalError, KombuError, RedisError, OSError), cast(Any, app.pool).acquire(block=True) as connection:
        connection.default_channel.client.delete(DELIVERY)


def _step(stage: Stage, job_id: str, queue: Queue) -> Signature:
    return app.signature(f"unmask.{stage.value}", args=(job_id,), immutable=True, queue=queue_of(stage, queue))


def _sent(message: Signature, what: str) -> bool:
    try:
        message.apply_async(retry=False, ignore_result=True)
    except (OperationalError, KombuError, RedisError, OSError) as error:
        log.warning("The broker did not take the message for %s: %s", what, error)
        return False
    return True
