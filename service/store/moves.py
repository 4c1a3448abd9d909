"""What every store does to a job, as pure functions: a store only has to make each of them one transaction."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from service.engine.turns import in_turn
from service.store.port import LostLeaseError, Rules
from service.store.records import Checkpoint, Claim, Ending, Failure, JobRecord, JobState, Lease, Wants


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store holds of a job.

    Attributes:
        record: What all may read.
        fence: Grows by one whenever the job changes hands.
        worker: Who has it; None for nobody.
        expires: When its lease does; None without a worker.
    """

    record: JobRecord
    fence: int = 0
    worker: str | None = None
    expires: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether it can be claimed."""
        return self.worker is None and not self.record.state.over

    @property
    def claim(self) -> Claim:
        """Of the worker that has it."""
        if self.worker is None or self.expires is None:
            raise ValueError(f"nobody has the job {self.record.id!r}")
        return Claim(self.record, Lease(self.record.id, self.worker, self.fence, self.expires))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the order of claims depends on.

    Attributes:
        id: The job.
        caller: Who asked.
        priority: 0 to 9.
        submitted: When it was created.
        rows: Network rows of every step.
    """

    id: str
    caller: str
    priority: int
    submitted: float
    rows: int


def taken(entry: Entry, worker: str, now: float, rules: Rules) -> Entry:
    """A waiting job in a worker's hands."""
    record = replace(entry.record, attempts=entry.record.attempts + 1)
    return Entry(record, entry.fence + 1, worker, now + rules.lease_s)


def held(entry: Entry | None, lease: Lease) -> Entry:
    """The entry, if the lease is a right to write to it; :class:`LostLeaseError` otherwise."""
    # A database that crashed may have lost a claim that it had told, and give its fence to another worker.
    if entry is None or (entry.worker, entry.fence) != (lease.worker, lease.fence):
        raise LostLeaseError(lease)
    return entry


def started(entry: Entry, now: float) -> Entry:
    """A held job that runs."""
    return replace(entry, record=replace(entry.record, state=JobState.RUNNING, started=now))


def checkpointed(entry: Entry, checkpoint: Checkpoint) -> Entry:
    """A held job that can go on from here."""
    return replace(entry, record=replace(entry.record, checkpoint=checkpoint, step=checkpoint.step))


def finished(entry: Entry, ending: Ending, now: float) -> Entry:
    """A held job that is over."""
    step = entry.record.step if ending.step is None else ending.step
    record = replace(entry.record, artifacts={**entry.record.artifacts, **ending.artifacts}, step=step)
    return _over(replace(entry, record=record), ending.state, now, ending.failure)


def released(entry: Entry, now: float) -> Entry:
    """A held job that its worker gives back."""
    if entry.record.cancel_requested:
        return _over(entry, JobState.CANCELLED, now)
    return _waits(replace(entry, record=replace(entry.record, attempts=entry.record.attempts - 1)))


def cancel_asked(entry: Entry, now: float) -> Entry:
    """A job that its caller does not want any more."""
    if entry.record.state.over:
        return entry
    entry = replace(entry, record=replace(entry.record, cancel_requested=True))
    return _over(entry, JobState.CANCELLED, now) if entry.waiting else entry


def owed(entry: Entry, now: float) -> bool:
    """Whether a job is over and its client is still to be told, now."""
    message = entry.record.message
    return entry.record.state.over and message is not None and message.due is not None and message.due <= now


def sending(entry: Entry, now: float, held_s: float) -> Entry:
    """A job of whose end somebody begins to tell, and nobody else for a while."""
    message = entry.record.message
    if message is None:
        raise ValueError(f"nothing is owed of the job {entry.record.id!r}")
    message = replace(message, tries=message.tries + 1, due=now + held_s)
    return replace(entry, record=replace(entry.record, message=message))


def noted(entry: Entry, tries: int, due: float | None, outcome: str | None) -> Entry:
    """A job of whose end was told, or is to be later; as it was where another try began since, or it is noted."""
    message = entry.record.message
    if message is None or message.tries != tries or message.due is None:
        return entry
    return replace(entry, record=replace(entry.record, message=replace(message, due=due, outcome=outcome)))


def reaped(entry: Entry, now: float, rules: Rules) -> Entry:
    """A job whose lease has expired or whose deadline has passed, free or at its end; any other as it was."""
    record = entry.record
    if record.state.over or (entry.expires is not None and entry.expires > now):
        return entry
    if record.cancel_requested:
        return _over(entry, JobState.CANCELLED, now)
    if record.deadline is not None and record.deadline <= now:
        # As an engine says it; the difference of two times of the clock has no more digits.
        allowed = round(record.deadline - record.created, 3)
        return _over(entry, JobState.FAILED, now, Failure(f"not done within {allowed:g} s", 504))
    if entry.worker is None:
        return entry
    if record.attempts >= rules.attempts:
        reason = f"{record.attempts} workers stopped while they had this job; it is not tried again"
        return _over(entry, JobState.FAILED, now, Failure(reason, 500))
    return _waits(entry)


def _waits(entry: Entry) -> Entry:
    """Back in the queue; it goes on from its checkpoint."""
    step = entry.record.checkpoint.step if entry.record.checkpoint else 0
    return Entry(replace(entry.record, state=JobState.QUEUED, started=None, step=step), entry.fence + 1)


def _over(entry: Entry, state: JobState, now: float, failure: Failure | None = None) -> Entry:
    """At its end, in nobody's hands."""
    return Entry(replace(entry.record, state=state, ended=now, failure=failure, checkpoint=None), entry.fence + 1)


def in_order(
    waiting: Iterable[Candidate], served: Mapping[str, int], admissions: int, now: float, rules: Rules
) -> Iterator[Candidate]:
    """Waiting jobs in the order in which they are claimed.

    Args:
        waiting: In any order; of each caller and priority the first ones.
        served: Caller → when it was last served, as a count of claims.
        admissions: The highest count so far.
        now: In Unix seconds.
        rules: For the ageing.
    """
    ordered = sorted(waiting, key=lambda each: (each.caller, each.priority, each.submitted, each.id))
    queues = [list(queue) for _, queue in groupby(ordered, key=lambda each: (each.caller, each.priority))]
    return in_turn(queues, served, admissions, now, rules.ageing_s)


def suits(models: Collection[str], created: float, wants: Wants, now: float) -> bool:
    """Whether a worker takes a job of these models, created then, at all."""
    if wants.models is not None and not wants.models.issuperset(models):
        return False
    return wants.warm is None or wants.warm.issuperset(models) or created + wants.patience_s <= now


def fitting(ordered: Iterable[Candidate], wants: Wants) -> list[Candidate]:
    """The first jobs that a worker can take together; none behind one that does not fit."""
    chosen: list[Candidate] = []
    rows = 0
    for each in ordered:
        alone = wants.idle and not chosen
        if len(chosen) >= wants.jobs or (wants.rows is not None and rows + each.rows > wants.rows and not alone):
            break
        chosen.append(each)
        rows += each.rows
    return chosen
