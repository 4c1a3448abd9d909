"""What is remembered of a job, as plain frozen values.

A job is queued, then running, then for good completed, failed or cancelled. A job whose worker stopped is queued again.
All times are Unix seconds.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from service.engine.scheduler import DEFAULT_PRIORITY


class JobKind(StrEnum):
    """What a job gives."""

    SUPERPOSITION = "superposition"
    DENSITY = "density"


class JobState(StrEnum):
    """Where a job is; the last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether the job never changes its state again."""
        return self in OVER


OVER: Final = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a request that is sent twice one job.

    Attributes:
        key: As the client sent it; a caller's own.
        digest: Of all that the request asks for.
    """

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed.

    Attributes:
        reason: One sentence for the client.
        status: The HTTP status of the fault.
    """

    reason: str
    status: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a job can go on.

    Attributes:
        address: Of the saved state among the artifacts.
        step: Network calls made.
    """

    address: str
    step: int


@dataclass(frozen=True, slots=True)
class Message:
    """What is owed to a job's client when the job is over.

    Attributes:
        url: Where it goes.
        tries: How often somebody began to send it.
        due: When it goes out next, if the job is over by then; None for never again.
        outcome: How it ended, as the sender says; None while it is owed.
    """

    url: str
    tries: int = 0
    due: float | None = 0.0
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it stands.

    Attributes:
        id: Unlike any other.
        kind: What it gives.
        caller: Who asked.
        request: What was asked for, as a text that only the intake reads. Large pictures belong among the artifacts.
        seed: Of its noise.
        created: When it was accepted.
        models: The models that it needs.
        components: The names of its components, for lists.
        steps: Network calls in all.
        rows: Network rows of every step.
        priority: 0 to 9; higher runs earlier.
        deadline: When it is worthless; None for never.
        idempotency: The client's key, if it sent one.
        state: Where it is.
        step: Network calls made, as its worker last said.
        attempts: How many workers took it up and did not give it back.
        started: When its latest attempt left the queue.
        ended: When it reached its last state.
        failure: Why it failed; None in every other state.
        artifacts: Name → content address, of what came with the request and of what was made.
        checkpoint: Where the next attempt goes on.
        cancel_requested: Whether its worker shall drop it.
        label: How its client groups its jobs; None for not at all.
        weight: Bytes of its known picture.
        message: What its client is told at its end; None for nothing.
        durable: Whether it must outlive a crash of the database; one that ends with its client's request need not, and
            what is written of it may reach the disk a moment later.
    """

    id: str
    kind: JobKind
    caller: str
    request: str
    seed: int
    created: float
    models: tuple[str, ...]
    components: tuple[str, ...]
    steps: int
    rows: int = 1
    priority: int = DEFAULT_PRIORITY
    deadline: float | None = None
    idempotency: Idempotency | None = None
    state: JobState = JobState.QUEUED
    step: int = 0
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    failure: Failure | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict, hash=False)
    checkpoint: Checkpoint | None = None
    cancel_requested: bool = False
    label: str | None = None
    weight: int = 0
    message: Message | None = None
    durable: bool = True

    @property
    def submitted(self) -> float:
        """When it came, by the name that :mod:`service.engine.turns` has for it."""
        return self.created

    @property
    def key(self) -> str | None:
        """Its idempotency key."""
        return self.idempotency.key if self.idempotency else None

    @property
    def addresses(self) -> set[str]:
        """The content addresses that it refers to."""
        return {*self.artifacts.values(), *([self.checkpoint.address] if self.checkpoint else [])}


def to_plain(record: JobRecord) -> dict[str, Any]:
    """A record as names and plain values: texts, numbers, booleans, None."""
    key, failure, checkpoint, message = record.idempotency, record.failure, record.checkpoint, record.message
    return {
        "id": record.id,
        "kind": str(record.kind),
        "caller": record.caller,
        "request": record.request,
        "seed": record.seed,
        "created": record.created,
        "models": _packed(record.models),
        "components": _packed(record.components),
        "steps": record.steps,
        "rows": record.rows,
        "priority": record.priority,
        "deadline": record.deadline,
        "idempotency_key": key.key if key else None,
        "request_digest": key.digest if key else None,
        "state": str(record.state),
        "step": record.step,
        "attempts": record.attempts,
        "started": record.started,
        "ended": record.ended,
        "reason": failure.reason if failure else None,
        "status": failure.status if failure else None,
        "artifacts": _packed(dict(record.artifacts)),
        "checkpoint": checkpoint.address if checkpoint else None,
        "checkpoint_step": checkpoint.step if checkpoint else None,
        "cancel_requested": record.cancel_requested,
        "label": record.label,
        "weight": record.weight,
        "message_url": message.url if message else None,
        "message_tries": message.tries if message else 0,
        "message_due": message.due if message else None,
        "message_outcome": message.outcome if message else None,
        "durable": record.durable,
    }


def from_plain(plain: Mapping[Any, Any]) -> JobRecord:
    """The record that :func:`to_plain` made this of; further names are ignored."""
    key, reason, checkpoint = plain["idempotency_key"], plain["reason"], plain["checkpoint"]
    return JobRecord(
        id=plain["id"],
        kind=JobKind(plain["kind"]),
        caller=plain["caller"],
        request=plain["request"],
        seed=plain["seed"],
        created=plain["created"],
        models=tuple(json.loads(plain["models"])),
        components=tuple(json.loads(plain["components"])),
        steps=plain["steps"],
        rows=plain["rows"],
        priority=plain["priority"],
        deadline=plain["deadline"],
        idempotency=None if key is None else Idempotency(key, plain["request_digest"]),
        state=JobState(plain["state"]),
        step=plain["step"],
        attempts=plain["attempts"],
        started=plain["started"],
        ended=plain["ended"],
        failure=None if reason is None else Failure(reason, plain["status"]),
        artifacts=json.loads(plain["artifacts"]),
        checkpoint=None if checkpoint is None else Checkpoint(checkpoint, plain["checkpoint_step"]),
        cancel_requested=bool(plain["cancel_requested"]),
        label=plain["label"],
        weight=plain["weight"],
        message=None if plain["message_url"] is None else _message(plain),
        durable=bool(plain["durable"]),
    )


def _message(plain: Mapping[Any, Any]) -> Message:
    told = (plain[f"message_{name}"] for name in ("url", "tries", "due", "outcome"))
    return Message(*told)


def _packed(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to write to a job, until it expires and another one takes it.

    Attributes:
        job_id: The job.
        worker: Who holds it.
        fence: Grows whenever the job changes hands; a write with an older one is refused.
        expires: Until when it must be renewed.
    """

    job_id: str
    worker: str
    fence: int
    expires: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker took.

    Attributes:
        record: The job.
        lease: The right to it.
        watched: Whether somebody in another process waits for its progress.
    """

    record: JobRecord
    lease: Lease
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Wants:
    """What a worker can take now.

    Attributes:
        jobs: At most so many.
        rows: At most so many network rows, all together; None for any number.
        models: Only jobs that need none but these; None for any.
        idle: Whether it has no other work: the first job is taken then whatever its rows, and runs alone.
        warm: The models that it has loaded; None for all. A job that needs another is left to workers that have it,
            until it has waited for ``patience_s``.
        patience_s: How long.
    """

    jobs: int = 1
    rows: int | None = None
    models: frozenset[str] | None = None
    idle: bool = True
    warm: frozenset[str] | None = None
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat brought.

    Attributes:
        kept: The leases with their new end.
        lost: The jobs that are another worker's now, or nobody's; to be dropped without a further write.
        cancel: The kept jobs that were asked to be cancelled.
        watched: The kept jobs whose progress somebody in another process waits for.
    """

    kept: tuple[Lease, ...]
    lost: frozenset[str]
    cancel: frozenset[str]
    watched: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker tells of a running job between two writes that count; the next one replaces it.

    Attributes:
        job_id: The job.
        fence: Of the worker's lease.
        number: Of its newest event; grows.
        told: As bytes that only the service reads.
    """

    job_id: str
    fence: int
    number: int
    told: bytes


@dataclass(frozen=True, slots=True)
class Glance:
    """What those who wait for a job look at again and again.

    Attributes:
        state: Where it is.
        step: Network calls made, as its worker last said.
        attempts: How many workers took it up.
        progress: What its worker last told; None for nothing.
    """

    state: JobState
    step: int
    attempts: int
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """A worker, as it last told of itself.

    Attributes:
        worker: Its id.
        seen: When it said so.
        told: What it said, as a text that only the service reads.
    """

    worker: str
    seen: float
    told: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ends a job.

    Attributes:
        state: One that is for good.
        failure: Why, for a failed one and for no other.
        artifacts: What it made, name → content address; added to what the record has.
        step: Network calls made; None to leave what the record has.
    """

    state: JobState
    failure: Failure | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict, hash=False)
    step: int | None = None

    def __post_init__(self) -> None:
        """Refuse an ending that is none."""
        if not self.state.over:
            raise ValueError(f"state must be one of {', '.join(sorted(OVER))}, got {self.state}")
        if (self.failure is not None) != (self.state is JobState.FAILED):
            raise ValueError(f"failure belongs to a failed job and to no other, got {self.failure} for {self.state}")


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs a list shows; None for all.

    Attributes:
        caller: Whose.
        state: In which state.
        kind: Of which kind.
        label: With which label.
        open: Only those that are not over.
    """

    caller: str | None = None
    state: JobState | None = None
    kind: JobKind | None = None
    label: str | None = None
    open: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, newest first.

    Attributes:
        records: The jobs.
        cursor: Asks for the part after this one; None at the end. Jobs that come in between neither shift nor repeat
            what follows.
    """

    records: tuple[JobRecord, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits and runs, for whoever decides whether more may come.

    Attributes:
        waiting_jobs: Jobs that no worker has.
        waiting_rows: Their network rows.
        waiting_work: Their network rows over all steps.
        caller_jobs: Jobs of one caller that are not over.
        deadline: When the first waiting job is worthless; None for never.
        waiting_bytes: Bytes of the known pictures of waiting jobs.
    """

    waiting_jobs: int
    waiting_rows: int
    waiting_work: int
    caller_jobs: int
    deadline: float | None = None
    waiting_bytes: int = 0


class CursorError(ValueError):
    """A cursor that no page gave."""


Place = tuple[float, str]
"""Where a list goes on: the last job's creation and id."""


def cursor_of(place: Place) -> str:
    """The place as an opaque text that may stand in an address."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def place_of(cursor: str) -> Place:
    """The place that :func:`cursor_of` made this of.

    Raises:
        CursorError: It is none.
    """
    try:
        created, job_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return float(created), str(job_id)
    except (ValueError, TypeError, binascii.Error) as error:
        raise CursorError("cursor must be the one that an earlier page gave, unchanged") from error
