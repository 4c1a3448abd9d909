"""What every store promises: the same tests for each of them."""

import asyncio
import itertools
import random
from dataclasses import replace

import pytest

from service.engine.scheduler import Limits, Scheduler
from service.store.port import REMEMBERED_S, JobExistsError, KeyTakenError, LostLeaseError, Topic, UnknownJobError
from service.store.records import (
    Backlog,
    Checkpoint,
    CursorError,
    Ending,
    Failure,
    Filters,
    Glance,
    Idempotency,
    JobKind,
    JobRecord,
    JobState,
    Message,
    Presence,
    Progress,
    Wants,
)
from tests.service.engine.test_scheduler import Work
from tests.service.store.made import ALL, BROKEN, CANCELLED, DONE, added, claimed, held, job

pytestmark = pytest.mark.anyio


async def test_a_record_returns_as_it_was_added(store):
    record = JobRecord(
        id="a",
        kind=JobKind.DENSITY,
        caller="Ünser Caller",
        request='{"text": "☂ \\u0041"}',
        seed=2**53 - 1,
        created=1_700_000_000.123456,
        models=("one", "two"),
        components=("x", 'y"z', ""),
        steps=40,
        rows=12,
        priority=9,
        deadline=1_700_003_600.5,
        idempotency=Idempotency("k", "digest"),
        artifacts={"image": "aa", "mask": "bb"},
        weight=1 << 40,
        message=Message("https://hooks.example/ü", 2, 1_700_000_001.5),
        durable=False,
    )
    await store.add(record)
    assert await store.get("a") == record


async def test_what_does_not_exist_is_refused(store):
    for call in (store.get("x"), store.request_cancel("x", 0)):
        with pytest.raises(UnknownJobError, match="'x'"):
            await call


async def test_an_id_is_taken_once(store):
    await store.add(job("a"))
    with pytest.raises(JobExistsError):
        await store.add(job("a", caller="bob"))


# Keys


async def test_a_key_stands_for_one_job_of_a_caller(store):
    await added(store, job("a", key="k", digest="one"), job("b", caller="bob", key="k"), job("c", key="other"))
    with pytest.raises(KeyTakenError) as refused:
        await store.add(job("d", key="k", digest="two"))
    assert refused.value.winner.id == "a"
    assert refused.value.winner.idempotency.digest == "one"
    assert (await store.standing("ann", "k")).id == "a"
    assert (await store.standing("bob", "k")).id == "b"
    assert await store.standing("bob", "other") is None
    with pytest.raises(UnknownJobError):
        await store.get("d")


async def test_of_many_duplicates_at_once_one_wins_and_all_others_learn_which(store):
    ids = [f"same-{i}" for i in range(12)]
    tries = await asyncio.gather(*(store.add(job(each, key="k")) for each in ids), return_exceptions=True)
    losers = [each for each in tries if isinstance(each, KeyTakenError)]
    assert len(losers) == 11
    (winner,) = (each for each, result in zip(ids, tries, strict=True) if result is None)
    assert {each.winner.id for each in losers} == {winner}
    assert [record.id for record in (await store.page()).records] == [winner]


@pytest.mark.parametrize("ending", [BROKEN, CANCELLED], ids=["failed", "cancelled"])
async def test_the_key_of_a_job_that_came_to_nothing_is_free_again(store, ending):
    await store.finish(await held(store, key="k"), ending, 1.0)
    await store.add(job("again", key="k"))


async def test_the_key_of_a_completed_job_stands_until_the_job_is_forgotten(store):
    lease = await held(store, key="k")
    await store.finish(lease, DONE, 1.0)
    with pytest.raises(KeyTakenError):
        await store.add(job(key="k"))
    assert await store.delete([lease.job_id]) == 1
    await store.add(job(key="k"))


# Claims


async def test_a_claim_leases_and_counts_an_attempt(store):
    (job_id,) = await added(store, job(created=5.0))
    (claim,) = await store.claim("w1", ALL, 7.0)
    assert claim.record == await store.get(job_id)
    assert claim.record.state is JobState.QUEUED
    assert claim.record.attempts == 1
    assert (claim.lease.job_id, claim.lease.worker, claim.lease.expires) == (job_id, "w1", 37.0)
    assert await claimed(store, 8.0, "w2") == []


async def test_a_job_may_be_leased_as_it_is_added(store):
    lease = await store.add(job("a", created=5.0), lease_to="here")
    assert (lease.worker, lease.expires) == ("here", 35.0)
    assert await claimed(store, 6.0) == []
    assert (await store.get("a")).attempts == 1
    assert (await store.finish(lease, DONE, 9.0)).state is JobState.COMPLETED


async def test_jobs_are_claimed_in_the_order_in_which_the_engine_s_scheduler_runs_them(store):
    rng = random.Random(0)
    works = [
        Work(caller=rng.choice("abcd"), priority=rng.randint(3, 6), submitted=rng.uniform(0, 100)) for _ in range(40)
    ]
    scheduler = Scheduler(Limits())
    for work in sorted(works, key=lambda work: work.submitted):
        scheduler.submit(work)
    names = {
        id(work): await added(store, job(caller=work.caller, priority=work.priority, created=work.submitted))
        for work in works
    }
    expected = [names[id(work)][0] for work in scheduler.order(120.0)]
    assert list(await store.order(120.0)) == expected
    taken = []
    for jobs in (1, 3, 1, 7, 28):
        taken += await claimed(store, 120.0, wants=Wants(jobs=jobs))
    assert taken == expected
    assert await store.order(120.0) == ()


async def test_a_caller_that_was_served_lets_others_go_first_even_when_it_comes_again(store):
    await added(store, job("a1", caller="a"), job("a2", caller="a", created=1.0))
    assert await claimed(store, 2.0, wants=Wants(jobs=1)) == ["a1"]
    await added(store, job("b1", caller="b", created=3.0))
    assert await claimed(store, 4.0, wants=Wants(jobs=2)) == ["b1", "a2"]


async def test_a_job_that_does_not_fit_is_waited_for(store):
    await added(store, job("a", rows=4), job("b", rows=5, created=1.0), job("c", rows=1, created=2.0))
    assert await claimed(store, 3.0, wants=Wants(jobs=9, rows=8)) == ["a"]
    assert await claimed(store, 3.0, wants=Wants(jobs=9, rows=4, idle=False)) == []
    assert await claimed(store, 3.0, wants=Wants(jobs=9, rows=4)) == ["b"]
    assert await claimed(store, 3.0, wants=Wants(jobs=9, rows=1, idle=False)) == ["c"]


async def test_only_jobs_whose_models_the_worker_has_are_claimed(store):
    await added(store, job("a", models=("x", "y")), job("b", models=("y",)), job("c", models=("z",)))
    assert await claimed(store, wants=Wants(jobs=9, models=frozenset("y"))) == ["b"]
    assert await claimed(store, wants=Wants(jobs=9, models=frozenset())) == []
    assert await claimed(store, wants=Wants(jobs=9, models=frozenset("xy"))) == ["a"]
    assert await claimed(store) == ["c"]


async def test_many_workers_at_once_take_each_job_once(store):
    ids = await added(store, *(job(caller=f"c{i % 3}", created=float(i)) for i in range(60)))

    async def worker(name):
        taken = []
        while claims := await store.claim(name, Wants(jobs=4), 100.0):
            taken += [claim.record.id for claim in claims]
        return taken

    taken = await asyncio.gather(*(worker(f"w{i}") for i in range(6)))
    assert sorted(itertools.chain(*taken)) == sorted(ids)


# Leases


async def test_a_heartbeat_keeps_leases_and_tells_what_was_lost_or_shall_be_cancelled(store):
    ours, theirs, over = [await held(store) for _ in range(3)]
    await store.request_cancel(ours.job_id, 1.0)
    await store.finish(over, DONE, 1.0)
    (taken,) = await store.claim("w2", Wants(), 31.0)
    stale = next(lease for lease in (ours, theirs) if lease.job_id == taken.record.id)
    assert stale == theirs  # the other one was cancelled as its lease expired
    renewal = await store.renew([ours, theirs, over], 32.0)
    assert renewal.kept == ()
    assert renewal.lost == {ours.job_id, theirs.job_id, over.job_id}
    await store.request_cancel(taken.record.id, 33.0)
    renewal = await store.renew([taken.lease], 40.0, {taken.record.id: 7})
    assert renewal.kept == (replace(taken.lease, expires=70.0),)
    assert renewal.cancel == {taken.record.id}
    assert renewal.lost == frozenset()
    assert (await store.get(taken.record.id)).step == 7
    assert (await store.renew([], 40.0)).kept == ()


async def test_a_renewed_lease_outlives_its_first_end(store):
    lease = await held(store)
    await store.renew([lease], 20.0)
    assert await claimed(store, 49.0, "w2") == []
    assert await claimed(store, 50.0, "w2") == [lease.job_id]


async def test_an_expired_lease_that_nobody_took_is_renewed(store):
    lease = await held(store)
    (kept,) = (await store.renew([lease], 99.0)).kept
    assert kept.expires == 129.0
    await store.start(kept, 99.0)


@pytest.mark.parametrize("reclaimed", [False, True])
async def test_who_lost_a_lease_writes_nothing(store, reclaimed):
    lease = await held(store)
    await store.start(lease, 1.0)
    if reclaimed:
        assert await claimed(store, 31.0, "w2") == [lease.job_id]
    else:
        assert await store.reap(31.0) == []
    before = await store.get(lease.job_id)
    assert before.state is JobState.QUEUED
    assert before.started is None
    for write in (
        store.start(lease, 32.0),
        store.checkpoint(lease, Checkpoint("c", 3)),
        store.finish(lease, DONE, 32.0),
        store.release(lease, 32.0),
    ):
        with pytest.raises(LostLeaseError, match=lease.job_id):
            await write
    assert (await store.renew([lease], 32.0)).lost == {lease.job_id}
    assert await store.get(lease.job_id) == before


async def test_the_same_worker_is_refused_under_its_older_lease(store):
    old = await held(store)
    (claim,) = await store.claim(old.worker, ALL, 31.0)
    with pytest.raises(LostLeaseError):
        await store.finish(old, DONE, 32.0)
    assert (await store.finish(claim.lease, DONE, 33.0)).state is JobState.COMPLETED


async def test_another_worker_is_refused_under_a_lease_of_the_same_fence(store):
    """A database that crashed may have forgotten a claim that it had told."""
    lease = await held(store)
    forgotten = replace(lease, worker="another")
    for write in (
        store.start(forgotten, 1.0),
        store.checkpoint(forgotten, Checkpoint("c", 3)),
        store.finish(forgotten, DONE, 1.0),
        store.release(forgotten, 1.0),
    ):
        with pytest.raises(LostLeaseError):
            await write
    assert (await store.renew([forgotten], 1.0)).lost == {lease.job_id}
    assert (await store.finish(lease, DONE, 2.0)).state is JobState.COMPLETED


async def test_a_job_whose_workers_stop_fails_after_its_last_attempt(store):
    lease = await held(store)
    for attempt, now in ((2, 31.0), (3, 62.0)):
        (claim,) = await store.claim(f"w{attempt}", ALL, now)
        assert claim.record.attempts == attempt
    assert await claimed(store, 93.0) == []
    record = await store.get(lease.job_id)
    assert (record.state, record.attempts, record.ended) == (JobState.FAILED, 3, 93.0)
    assert record.failure == Failure("3 workers stopped while they had this job; it is not tried again", 500)


async def test_a_job_that_is_given_back_has_lost_no_attempt_and_goes_on_from_its_checkpoint(store):
    lease = await held(store)
    await store.start(lease, 1.0)
    await store.checkpoint(lease, Checkpoint("state", 12))
    record = await store.release(lease, 2.0)
    assert (record.state, record.attempts, record.step, record.started) == (JobState.QUEUED, 0, 12, None)
    (claim,) = await store.claim("w2", ALL, 2.0)
    assert claim.record.checkpoint == Checkpoint("state", 12)
    assert claim.record.attempts == 1
    with pytest.raises(LostLeaseError):
        await store.finish(lease, DONE, 3.0)


# Ends


async def test_a_job_starts_and_ends_once(store):
    lease = await held(store, artifacts={"image": "in"})
    record = await store.start(lease, 3.0)
    assert (record.state, record.started) == (JobState.RUNNING, 3.0)
    await store.checkpoint(lease, Checkpoint("state", 4))
    record = await store.finish(lease, Ending(JobState.COMPLETED, artifacts={"0.png": "out"}, step=25), 9.0)
    assert (record.state, record.ended, record.step) == (JobState.COMPLETED, 9.0, 25)
    assert record.artifacts == {"image": "in", "0.png": "out"}
    assert record.checkpoint is None
    assert await store.get(lease.job_id) == record
    for ending in (DONE, BROKEN):
        with pytest.raises(LostLeaseError):
            await store.finish(lease, ending, 10.0)
    assert await store.request_cancel(lease.job_id, 11.0) == record
    assert await store.reap(1e9) == []
    assert await store.get(lease.job_id) == record


async def test_a_failed_job_tells_why(store):
    lease = await held(store)
    record = await store.finish(lease, BROKEN, 2.0)
    assert (await store.get(lease.job_id)).failure == record.failure == BROKEN.failure


def test_an_ending_that_is_none_is_refused():
    for state, failure in (
        (JobState.RUNNING, None),
        (JobState.FAILED, None),
        (JobState.COMPLETED, Failure("why", 500)),
    ):
        with pytest.raises(ValueError, match=r"state must be|failure belongs"):
            Ending(state, failure)


async def test_a_waiting_job_is_cancelled_at_once(store):
    (job_id,) = await added(store, job())
    record = await store.request_cancel(job_id, 4.0)
    assert (record.state, record.ended) == (JobState.CANCELLED, 4.0)
    assert await store.request_cancel(job_id, 5.0) == record
    assert await claimed(store, 6.0) == []


async def test_a_leased_job_is_cancelled_by_its_worker_or_ends_as_it_may(store):
    obeying, late = await held(store), await held(store)
    for lease in (obeying, late):
        record = await store.request_cancel(lease.job_id, 4.0)
        assert record.state is JobState.QUEUED
        assert record.cancel_requested
    assert (await store.finish(obeying, CANCELLED, 5.0)).state is JobState.CANCELLED
    assert (await store.finish(late, DONE, 5.0)).state is JobState.COMPLETED


@pytest.mark.parametrize("how", ["release", "expire"])
async def test_a_cancelled_job_is_not_tried_again(store, how):
    lease = await held(store)
    await store.request_cancel(lease.job_id, 4.0)
    if how == "release":
        await store.release(lease, 5.0)
    else:
        assert [record.id for record in await store.reap(31.0)] == [lease.job_id]
    assert (await store.get(lease.job_id)).state is JobState.CANCELLED
    assert await claimed(store, 99.0) == []


async def test_late_jobs_fail_unless_a_worker_has_them(store):
    lease = await held(store, deadline=10.0)
    waiting, patient = await added(store, job(deadline=10.0), job(deadline=11.0))
    ended = await store.reap(10.0)
    assert [(record.id, record.state) for record in ended] == [(waiting, JobState.FAILED)]
    assert ended[0].failure == Failure("not done within 10 s", 504)
    assert await claimed(store, 10.5) == [patient]
    assert {record.id for record in await store.reap(50.0)} == {lease.job_id, patient}


# Messages


def told(records):
    return [(record.id, record.message.tries, record.message.due) for record in records]


async def test_a_message_is_due_when_its_job_is_over_whoever_ends_it(store):
    lease = await held(store, job_id="done", message=Message("u"))
    assert await store.take_messages(4.0, 30.0, 9) == []
    await store.finish(lease, DONE, 4.0)
    taken = await store.take_messages(4.0, 30.0, 9)
    assert told(taken) == [("done", 1, 34.0)]
    assert taken == [await store.get("done")]
    await added(store, job("late", deadline=5.0, message=Message("u")), job("unwanted", message=Message("u")), job())
    await store.request_cancel("unwanted", 5.0)
    await store.reap(6.0)
    assert sorted(told(await store.take_messages(6.0, 30.0, 9))) == [("late", 1, 36.0), ("unwanted", 1, 36.0)]


async def test_a_message_is_one_sender_s_until_its_time_is_over(store):
    await store.finish(await held(store, job_id="a", message=Message("u")), DONE, 1.0)
    senders = [store.take_messages(2.0, 30.0, 9) for _ in range(3)]
    assert [told(records) for records in await asyncio.gather(*senders) if records] == [[("a", 1, 32.0)]]
    assert await store.take_messages(31.9, 30.0, 9) == []
    # The first one has stopped.
    assert told(await store.take_messages(32.0, 30.0, 9)) == [("a", 2, 62.0)]
    # If it has not, what it says does not count any more.
    await store.note_message("a", 1, None, "delivered")
    assert (await store.get("a")).message == Message("u", 2, 62.0)
    await store.note_message("a", 2, 40.0)
    assert await store.take_messages(39.0, 30.0, 9) == []
    assert told(await store.take_messages(40.0, 30.0, 9)) == [("a", 3, 70.0)]
    await store.note_message("a", 3, None, "delivered")
    await store.note_message("a", 3, 1.0)
    assert await store.take_messages(1e9, 30.0, 9) == []
    assert (await store.get("a")).message == Message("u", 3, None, "delivered")


async def test_the_longest_due_messages_go_first_and_none_of_deleted_jobs(store):
    for job_id, due in (("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 0.5)):
        await store.finish(await held(store, job_id=job_id, message=Message("u", due=due)), DONE, 1.0)
    await store.delete(["d"])
    assert {record.id for record in await store.take_messages(9.0, 30.0, 2)} == {"b", "c"}
    assert told(await store.take_messages(9.0, 30.0, 2)) == [("a", 1, 39.0)]
    await store.note_message("d", 0, None, "refused")


# Lists


async def test_lists_are_newest_first_and_filtered(store):
    a, b = await held(store, kind=JobKind.DENSITY), await held(store, caller="bob")
    await store.start(a, 0.0)
    await store.finish(b, BROKEN, 0.0)
    await added(store, job("c", created=2.0), job("d", created=1.0))

    async def shown(**filters):
        return [record.id for record in (await store.page(Filters(**filters))).records]

    assert await shown() == ["c", "d", *sorted([a.job_id, b.job_id], reverse=True)]
    assert await shown(caller="ann") == ["c", "d", a.job_id]
    assert await shown(caller="bob", state=JobState.FAILED) == [b.job_id]
    assert await shown(state=JobState.QUEUED) == ["c", "d"]
    assert await shown(kind=JobKind.DENSITY) == [a.job_id]
    assert await shown(kind=JobKind.DENSITY, state=JobState.FAILED) == []
    assert await shown(caller="carl") == []
    assert await shown(open=True) == ["c", "d", a.job_id]
    assert await shown(open=True, caller="bob") == []


async def test_pages_hold_every_job_once_although_others_come_in_between(store):
    ids = await added(store, *(job(created=float(i // 3)) for i in range(10)))  # several of one moment
    seen, cursor = [], None
    for new in range(9):
        page = await store.page(cursor=cursor, limit=3)
        seen += [record.id for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
        await added(store, job(created=100.0 + new))
    assert seen == ids[9:] + ids[6:9][::-1] + ids[3:6][::-1] + ids[:3][::-1]


async def test_a_last_page_that_is_full_has_no_cursor(store):
    await added(store, *(job(created=float(i)) for i in range(4)))
    first = await store.page(limit=2)
    assert (await store.page(cursor=first.cursor, limit=2)).cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "bm90IGEgcGxhY2U", "WzFd", "MQ", "W251bGwsIG51bGxd", "é"])
async def test_a_cursor_that_no_page_gave_is_refused(store, cursor):
    with pytest.raises(CursorError, match="cursor must be"):
        await store.page(cursor=cursor)


async def test_the_backlog_counts_what_waits_and_what_a_caller_has(store):
    assert await store.backlog("ann") == Backlog(0, 0, 0, 0)
    lease, done = await held(store), await held(store)
    await store.start(lease, 0.0)
    await store.finish(done, DONE, 0.0)
    await added(store, job(rows=3), job(rows=4, caller="bob"))
    assert await store.backlog("ann") == Backlog(2, 7, 175, 2)
    assert await store.backlog("carl") == Backlog(2, 7, 175, 0)


# Forgetting


async def test_only_jobs_that_are_over_are_deleted_longest_ended_first(store):
    early, late, running = await held(store), await held(store), await held(store)
    await store.finish(late, DONE, 9.0)
    await store.finish(early, CANCELLED, 5.0)
    (waiting,) = await added(store, job())
    assert [record.id for record in await store.expired(10.0)] == [early.job_id, late.job_id]
    assert [record.id for record in await store.expired(10.0, limit=1)] == [early.job_id]
    assert [record.id for record in await store.expired(9.0)] == [early.job_id]
    assert await store.delete([early.job_id, running.job_id, waiting, "unknown"]) == 1
    assert await store.delete([]) == 0
    with pytest.raises(UnknownJobError):
        await store.get(early.job_id)
    with pytest.raises(LostLeaseError):
        await store.finish(early, DONE, 10.0)
    for kept in (late.job_id, running.job_id, waiting):
        await store.get(kept)


async def test_references_are_those_of_all_jobs(store):
    assert await store.references() == set()
    lease = await held(store, artifacts={"image": "in", "mask": "mask"})
    await store.checkpoint(lease, Checkpoint("state", 3))
    assert await store.references() == {"in", "mask", "state"}
    await store.finish(lease, Ending(JobState.COMPLETED, artifacts={"0.png": "out"}), 1.0)
    assert await store.references() == {"in", "mask", "out"}
    await store.delete([lease.job_id])
    assert await store.references() == set()


# Warm models


async def test_a_job_of_other_models_is_left_to_others_for_a_while(store):
    await added(store, job("cold", models=("x", "y"), created=10.0), job("warm", models=("x",), created=11.0))
    wants = Wants(jobs=9, models=frozenset("xyz"), warm=frozenset("x"), patience_s=5.0)
    assert await claimed(store, now=14.9, wants=wants) == ["warm"]
    assert await claimed(store, now=14.9, wants=wants) == []
    assert await claimed(store, now=15.0, wants=wants) == ["cold"]


async def test_patience_makes_no_worker_take_what_it_cannot_have(store):
    await added(store, job("a", models=("z",), created=0.0))
    wants = Wants(jobs=9, models=frozenset("xy"), warm=frozenset("x"), patience_s=5.0)
    assert await claimed(store, now=100.0, wants=wants) == []
    endless = Wants(jobs=9, models=frozenset("xz"), warm=frozenset("x"), patience_s=float("inf"))
    assert await claimed(store, now=100.0, wants=endless) == []


# What workers tell


async def test_what_a_worker_tells_of_a_watched_job_can_be_seen(store):
    lease = await held(store)
    progress = Progress(lease.job_id, lease.fence, 7, b"\x00half \xff")
    await store.tell([progress])
    glance = Glance(JobState.QUEUED, 0, 1)
    assert await store.glance([lease.job_id, "nobody"]) == {lease.job_id: glance}, "nobody watches"
    await store.watch([lease.job_id, "nobody"], 50.0)
    await store.tell([progress])
    await store.start(lease, 1.0)
    await store.renew([lease], 1.0, {lease.job_id: 3})
    glance = Glance(JobState.RUNNING, 3, 1, progress)
    assert await store.glance([lease.job_id, "nobody"]) == {lease.job_id: glance}


async def test_a_heartbeat_learns_what_is_watched_and_until_when(store):
    lease, other = await held(store), await held(store)
    assert (await store.renew([lease, other], 1.0)).watched == frozenset()
    await store.watch([lease.job_id], 50.0)
    await store.watch([lease.job_id], 40.0)
    assert (await store.renew([lease, other], 49.9)).watched == {lease.job_id}
    assert (await store.renew([lease, other], 50.0)).watched == frozenset()


async def test_older_news_replace_no_newer(store):
    (job_id,) = await added(store, job())
    await store.watch([job_id], 50.0)
    newest = Progress(job_id, 3, 2, b"newest")
    for each in (Progress(job_id, 2, 9, b"of an earlier lease"), newest, Progress(job_id, 3, 1, b"late")):
        await store.tell([each])
    await store.tell([Progress(job_id, 2, 99, b"of a worker that lost its lease")])
    assert (await store.glance([job_id]))[job_id].progress == newest


async def test_what_was_told_last_is_there_until_the_job_is_forgotten(store):
    lease = await held(store)
    await store.watch([lease.job_id], 50.0)
    last = Progress(lease.job_id, lease.fence, 1, b"told")
    await store.tell([last])
    await store.finish(lease, DONE, 1.0)
    await store.watch([lease.job_id], 60.0)
    glance = Glance(JobState.COMPLETED, 0, 1, last)
    assert await store.glance([lease.job_id]) == {lease.job_id: glance}
    (other,) = await added(store, job())
    await store.watch([other], 50.0 + REMEMBERED_S)
    assert (await store.glance([lease.job_id]))[lease.job_id] == glance
    await store.watch([other], 50.5 + REMEMBERED_S)
    assert (await store.glance([lease.job_id]))[lease.job_id].progress is None
    await store.delete([lease.job_id])
    assert await store.glance([lease.job_id]) == {}


async def test_a_job_can_be_watched_from_its_first_moment(store):
    record = job()
    await store.add(record, watched_until=50.0)
    await store.add(job())
    claims = await store.claim("w1", ALL, 1.0)
    assert {claim.record.id: claim.watched for claim in claims} == {
        each.record.id: each.record.id == record.id for each in claims
    }
    assert len(claims) == 2
    assert (await store.renew([claim.lease for claim in claims], 1.0)).watched == {record.id}


async def test_the_backlog_tells_what_waits(store):
    await held(store, rows=50)
    await added(store, job(rows=3, steps=10, weight=7, deadline=90.0), job(rows=2, steps=5, weight=1, deadline=80.0))
    assert await store.backlog("nobody") == Backlog(2, 5, 40, 0, 80.0, 8)


async def test_workers_are_there_while_they_say_so(store):
    assert await store.present(0.0) == []
    for each in (Presence("w2", 10.0, "b"), Presence("w1", 11.0, '{"ü": 1}'), Presence("w2", 12.0, "c")):
        await store.report(each)
    first, second = Presence("w1", 11.0, '{"ü": 1}'), Presence("w2", 12.0, "c")
    assert await store.present(11.0) == [first, second]
    assert await store.present(11.5) == [second]
    assert await store.present(0.0) == [second], "who was silent for long is forgotten"
    await store.leave("w2")
    await store.leave("w2")
    assert await store.present(0.0) == []


# Bells


async def test_a_bell_rings_for_its_topics(store):
    async with store.listen(Topic.WORK) as work, store.listen(Topic.NEWS) as news:
        (job_id,) = await added(store, job())
        assert await work.wait(5.0)
        (claim,) = await store.claim("w1", ALL, 0.0)
        while await work.wait(0.05) or await news.wait(0.05):
            pass
        await store.watch([job_id], 9.0)
        assert await work.wait(5.0)
        assert not await news.wait(0.05)
        for act in (store.start(claim.lease, 1.0), store.tell([Progress(job_id, 1, 1, b"")])):
            await act
            assert await news.wait(5.0)
        await store.request_cancel(job_id, 2.0)
        assert await work.wait(5.0)
        assert await news.wait(5.0)
        while await work.wait(0.05) or await news.wait(0.05):
            pass
        await store.finish(claim.lease, DONE, 2.0)
        assert await news.wait(5.0)
        assert not await work.wait(0.05)


async def test_a_bell_rings_for_what_others_wait_for(store):
    async with store.listen() as bell, store.listen() as other:
        assert not await bell.wait(0.01)
        (first, second) = await added(store, job(), job())
        assert await bell.wait(5.0)
        while await bell.wait(0.05):
            pass
        await store.request_cancel(first, 1.0)
        assert await bell.wait(5.0)
        (claim,) = await store.claim("w1", ALL, 1.0)
        while await bell.wait(0.05):
            pass
        await store.finish(claim.lease, DONE, 2.0)
        assert await bell.wait(5.0)
        while await bell.wait(0.05):
            pass
        await store.wake()
        assert await bell.wait(5.0)
        assert await other.wait(5.0)
