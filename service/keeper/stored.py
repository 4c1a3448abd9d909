"""Jobs as the store has them, and back."""

import math
import time
from collections.abc import Mapping
from typing import Final

from pipelines.composition import leaves
from service.durable.requests import read_request, write_request
from service.engine.events import Channel
from service.engine.job import CancelledJobError, Job, Phase
from service.expressions import leaf_names
from service.keeper.errors import EarlierFailureError
from service.registry import Record
from service.store.records import Idempotency, JobKind, JobRecord, JobState, Message

SOURCE: Final = "source"
"""The artifact of a known picture."""
OUTCOME: Final = "outcome"
"""The artifact of what a job gave."""
_RUN_EVENTS: Final = 1_000_000  # more than one run of a job has events
_LAST_EVENTS: Final = 1 << 52  # above the events of all runs; JSON's readers count exactly so far


def stored_of(
    record: Record,
    idempotency: Idempotency | None,
    artifacts: Mapping[str, str],
    callback_url: str | None,
) -> JobRecord:
    """A job that was just accepted, as the store gets it.

    Args:
        record: The job.
        idempotency: The client's key, if it sent one.
        artifacts: What came with the request, name → content address.
        callback_url: Where its end is told; None for nowhere.
    """
    job = record.job
    names = leaf_names(leaves(job.expression))
    return JobRecord(
        id=job.id,
        kind=JobKind.DENSITY if job.plan.retrace else JobKind.SUPERPOSITION,
        caller=job.caller,
        request=write_request(job.plan, job.ask, record.rendering, on_canvas=job.source is not None),
        seed=job.params.seed,
        created=job.created,
        models=job.plan.models,
        components=tuple(names),
        steps=job.plan.calls,
        rows=job.rows,
        priority=job.priority,
        deadline=job.created + job.ask.timeout_s if math.isfinite(job.ask.timeout_s) else None,
        idempotency=idempotency,
        artifacts=artifacts,
        label=record.rendering.label,
        weight=job.weight,
        message=None if callback_url is None else Message(callback_url),
        durable=record.durable,
    )


def record_of(stored: JobRecord, fence: int | None = None) -> Record:
    """A job of the store as one of this process, not queued; it keeps its id and its age.

    Args:
        stored: The job.
        fence: Of the lease under which it runs here; None where it does not. Its events' ids are above those of earlier
            leases.

    Raises:
        UnreadableError: Another version of the service wrote it.
    """
    plan, ask, rendering = read_request(stored.request)
    age = max(0.0, time.time() - stored.created)
    job = Job(
        plan,
        ask,
        id=stored.id,
        channel=Channel(after=_LAST_EVENTS if fence is None else (fence - 1) * _RUN_EVENTS),
        attempt=max(1, stored.attempts),
        submitted=time.monotonic() - age,
        created=stored.created,
        phase=phase_of(stored),
        steps_taken=stored.step,
        # Where it runs here, its engine says when.
        started=_started(stored) if fence is None else 0.0,
    )
    return Record(job, rendering, kept=True, durable=stored.durable)


def _started(stored: JobRecord) -> float:
    """When it left the queue, on the monotonic clock; 0 where it did not."""
    if stored.started is None or stored.state is JobState.QUEUED:
        return 0.0
    return time.monotonic() - max(0.0, time.time() - stored.started)


def phase_of(stored: JobRecord) -> Phase:
    """Where a job is that is not over; one that is over is queued until its end is told."""
    return Phase.RUNNING if stored.state is JobState.RUNNING else Phase.QUEUED


def failure_of(stored: JobRecord) -> Exception:
    """Why a job of the store that is over gave nothing."""
    if stored.failure is not None:
        return EarlierFailureError(stored.failure.reason, stored.failure.status)
    return CancelledJobError("the job was cancelled")
