"""Records to test with."""

from itertools import count

from service.store.records import Ending, Failure, Idempotency, JobKind, JobRecord, JobState, Wants

NUMBERS = count()
ALL = Wants(jobs=1000)
DONE = Ending(JobState.COMPLETED)
CANCELLED = Ending(JobState.CANCELLED)
BROKEN = Ending(JobState.FAILED, Failure("the picture has values that are not finite", 422))


def job(job_id=None, *, caller="ann", created=0.0, key=None, digest="d", **fields):
    """A queued job."""
    return JobRecord(
        id=job_id or f"job-{next(NUMBERS):05}",
        kind=fields.pop("kind", JobKind.SUPERPOSITION),
        caller=caller,
        request=fields.pop("request", '{"prompt": "a cat ☂"}'),
        seed=fields.pop("seed", 2**53 - 1),
        created=created,
        models=fields.pop("models", ("shapes",)),
        components=fields.pop("components", ("a cat", 'a "quoted" dog')),
        steps=fields.pop("steps", 25),
        idempotency=None if key is None else Idempotency(key, digest),
        **fields,
    )


async def added(store, *records):
    """The ids of jobs that wait now."""
    for record in records:
        assert await store.add(record) is None
    return [record.id for record in records]


async def claimed(store, now=0.0, worker="w1", wants=ALL):
    """The ids that a worker claims."""
    return [claim.record.id for claim in await store.claim(worker, wants, now)]


async def held(store, now=0.0, worker="w1", **fields):
    """A lease on a new job that nobody else waits beside."""
    record = job(created=now, **fields)
    await store.add(record)
    (claim,) = await store.claim(worker, ALL, now)
    assert claim.record.id == record.id
    return claim.lease
