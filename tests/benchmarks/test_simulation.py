"""The simulation of many workers, held to closed forms of queueing theory, to the store's claims, to sums by hand."""

import asyncio
import math
import random
import statistics
from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.simulation.cluster import Cluster, Database, Ideal
from benchmarks.simulation.costs import Call, Curve, Device, Policy, StoreCosts
from benchmarks.simulation.loop import Loop
from benchmarks.simulation.queue import Queue
from benchmarks.simulation.traffic import HEAVY, LIGHT, Job, Mix, day
from benchmarks.simulation.worker import Worker
from service.store.memory import MemoryStore
from service.store.moves import Candidate
from service.store.records import JobKind, JobRecord, Wants

TICK_S = 0.001
FREE = StoreCosts()
NEVER = 1e9
AT_ONCE = Policy(poll_s=NEVER, beat_s=NEVER)
# About what the builtin models take on a processor.
DEVICE = Device(Curve(((3, 0.029), (12, 0.06), (48, 0.143), (96, 0.276))), decode_s=0.01, load_s=1.0)
COSTS = StoreCosts(
    add=Call(0.012, 0.001),
    claim=Call(0.012, 0.001),
    claimed=Call(0.004, 0.001),
    waiting=Call(6e-6, 5e-6),
    start=Call(0.01, 0.001),
    finish=Call(0.012, 0.001),
    renew=Call(0.01, 0.001),
    notify_s=0.002,
)


def job(number, at, *, steps=1, parts=None, caller="a", priority=5, images=0):
    parts = parts or {0: 1}
    return Job(Candidate(f"{number:06}", caller, priority, at, sum(parts.values())), parts, steps, images)


def poisson(seed, count, rate, mean_s):
    """Jobs of one row with exponential times, in ticks."""
    rng, now, jobs = random.Random(seed), 0.0, []
    for number in range(count):
        now += rng.expovariate(rate)
        jobs.append(job(number, now, steps=max(1, round(rng.expovariate(1 / mean_s) / TICK_S))))
    return jobs


def erlang_c(servers, offered):
    """The probability that a job of M/M/k waits, and its mean wait in mean service times."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    waits = last / (sum(offered**n / math.factorial(n) for n in range(servers)) + last)
    return waits, waits / (servers - offered)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (4, 0.8)])
@pytest.mark.parametrize("ideal", [True, False], ids=["ideal", "cluster"])
def test_without_batches_and_delays_it_is_the_queue_of_erlang(servers, load, ideal):
    """12,000 jobs of fixed seeds."""
    mean_s = 1.0
    jobs = poisson(3, 12_000, servers * load / mean_s, mean_s)
    single = Device(Curve(((1, TICK_S),)), rows=1)
    if ideal:
        course = Ideal(single, servers, jobs, NEVER).run()
    else:
        course = Cluster(single, servers, FREE, AT_ONCE, jobs, NEVER, [[0]] * servers).run()
    waited = [each.started - each.candidate.submitted for each in course.jobs]
    # A worker that is at a job's end at the very moment takes the next one a rounding later.
    share, mean = sum(wait > 1e-6 for wait in waited) / len(waited), statistics.mean(waited)
    expected_share, expected_mean = erlang_c(servers, servers * load)
    assert share == pytest.approx(expected_share, rel=0.05)
    assert mean == pytest.approx(expected_mean * mean_s, rel=0.15)
    assert course.busy_s == pytest.approx(sum(each.steps for each in jobs) * TICK_S)
    assert course.utilisation == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_claims_are_those_of_the_store(seed):
    rng = random.Random(seed)
    queue, store, numbers = Queue(), MemoryStore(), iter(range(10_000))

    async def play():
        now = 0.0
        for _ in range(150):
            now += rng.expovariate(1 / 5)
            for _ in range(rng.randint(0, 3)):
                now += 0.001
                number, caller, priority = next(numbers), rng.choice("abc"), rng.choice((2, 5, 8))
                rows = {model: rng.randint(1, 6) for model in rng.sample(range(3), rng.randint(1, 2))}
                added = job(number, now, parts=rows, caller=caller, priority=priority)
                queue.add(added)
                models = tuple(sorted(f"m{model}" for model in rows))
                request = JobKind.SUPERPOSITION, caller, "", 0, now, models, (), 1
                await store.add(JobRecord(added.candidate.id, *request, added.candidate.rows, priority))
            known = frozenset(rng.sample(range(3), rng.randint(1, 3)))
            wants = Wants(rng.randint(1, 4), rng.randint(0, 12), frozenset(f"m{m}" for m in known), rng.random() < 0.5)
            ours = queue.claim(wants, now, lambda models, known=known: 0.0 if models <= known else math.inf)
            theirs = await store.claim("worker", wants, now)
            assert [each.candidate.id for each in ours] == [claim.record.id for claim in theirs]
            assert len(queue) == (await store.backlog("")).waiting_jobs
            for claim in theirs:  # or their leases would expire
                await store.request_cancel(claim.record.id, now)
                await store.release(claim.lease, now)

    asyncio.run(play())


def played(device, *jobs, warm=(0, 1, 2)):
    """The jobs' ends on one device, each given to it when it comes."""
    loop, ends = Loop(), {}

    def done(worker, over):
        ends.update({int(each.candidate.id): loop.now for each in over})

    worker = Worker(loop, device, device.step.table(device.rows), done, lambda before, now: None, warm)
    for each in jobs:
        loop.at(each.candidate.submitted, worker.join, [each])
    loop.run()
    return ends, worker


def test_jobs_join_between_steps_and_share_them():
    device = Device(Curve(((1, 1.0), (2, 1.5))), rows=4)
    ends, _ = played(device, job(0, 0.0, steps=4), job(1, 0.5, steps=2))
    # One step alone until 1; two together of 1.5; one alone.
    assert ends == {0: pytest.approx(5.0), 1: pytest.approx(4.0)}


def test_models_do_not_share_a_forward_and_pictures_are_decoded_between_steps():
    device = Device(Curve(((1, 1.0), (2, 1.5))), rows=4, decode_s=0.25)
    ends, _ = played(device, job(0, 0.0, steps=2, images=2), job(1, 0.0, steps=1, parts={1: 1}, images=1))
    # 0 begins alone; then both, a second each; then three pictures.
    assert ends == {0: pytest.approx(3.75), 1: pytest.approx(3.75)}


def test_loading_holds_everybody_up_and_evicts_what_is_not_used():
    device = Device(Curve(((1, 1.0),)), rows=4, load_s=10.0, models=2)
    ends, worker = played(device, job(0, 0.0, steps=2), job(1, 0.5, parts={2: 1}), warm=(0, 1))
    # One step, loading, then a step of both models, a second each.
    assert ends[1] == pytest.approx(13.0)
    assert worker.loads == 1
    assert worker.patience(5.0, 9.0)(frozenset({0})) == 0.0
    assert worker.patience(5.0, 9.0)(frozenset({1})) == 9.0


def test_patience_depends_on_what_is_loaded_and_what_runs():
    loop = Loop()
    device = Device(Curve(((1, 1.0),)), rows=8, models=2)
    worker = Worker(loop, device, device.step.table(8), lambda *_: None, lambda *_: None, (0, 1))
    patience = [worker.patience(4.0, 9.0)(frozenset(models)) for models in ({0}, {0, 1}, {2}, {0, 2})]
    assert patience == [0.0, 0.0, 9.0, 9.0]
    worker.join([job(0, 0.0)])
    patience = [worker.patience(4.0, 9.0)(frozenset(models)) for models in ({0}, {1}, {0, 1}, {2}, {1, 2})]
    assert patience == [0.0, 4.0, 2.0, 9.0, math.inf]


def test_a_cold_job_is_left_to_others_for_the_patience():
    device = Device(Curve(((1, 1.0),)), rows=4, load_s=3.0, models=1)
    policy = Policy(patience_s=7.0, poll_s=0.5, beat_s=NEVER)
    asked = [job(0, 0.0, parts={1: 1})]
    (cold,) = Cluster(device, 1, FREE, policy, asked, 100, [[0]]).run().jobs
    assert cold.started == pytest.approx(10.25, abs=0.3)
    course = Cluster(device, 1, FREE, replace(policy, patience_s=math.inf), asked, 100, [[0]]).run()
    assert not course.waits
    # It waited all day for a device that did nothing.
    assert (course.needed_s, course.utilisation) == (pytest.approx(100.0), 0.0)


def test_the_stores_cores_are_shared_first_come_first_served():
    loop, answered = Loop(), []
    store = Database(loop, 2, 10.0)
    for _ in range(3):
        store.call("add", Call(1.5, 1.0), lambda: answered.append(loop.now))
    loop.run()
    assert answered == [1.5, 1.5, 2.5]
    assert (store.busy_s, store.calls) == (3.0, {"add": 3})


def test_a_store_at_its_limit_holds_the_workers_up():
    jobs = day(5, Mix(), DEVICE, 10, 0.5, 60)
    swift, slow = (replace(COSTS, cores=1, claim=Call(0.012, busy_s)) for busy_s in (0.0005, 0.5))
    given = scaling.DEFAULT, jobs, 60, [[0, 1, 2]] * 10
    before, after = (Cluster(DEVICE, 10, costs, *given).run() for costs in (swift, slow))
    assert after.store_busy_s / 60 > 0.95
    assert statistics.median(after.waits) > 2 * statistics.median(before.waits)


def test_a_day_has_its_load_night_noon_bursts_and_callers():
    mix = Mix(swing=0.5)
    jobs = day(1, mix, DEVICE, 20, 0.8, 600)
    assert [each.candidate.submitted for each in jobs] == sorted(each.candidate.submitted for each in jobs)
    work = sum(each.work(DEVICE, DEVICE.step.best(DEVICE.rows)) for each in jobs)
    assert work / (20 * 600) == pytest.approx(0.8, rel=0.1)
    night = sum(each.candidate.submitted % 600 < 100 or each.candidate.submitted > 500 for each in jobs)
    noon = sum(200 < each.candidate.submitted < 400 for each in jobs)
    assert noon > 1.8 * night
    callers = [each.candidate.caller for each in jobs]
    assert callers.count(HEAVY) / len(jobs) == pytest.approx(mix.heavy, abs=0.1)
    assert 0.02 < callers.count(LIGHT) / len(jobs) < 0.08
    assert {len(each.parts) for each in jobs} == {1, 2}
    again = day(1, mix, DEVICE, 20, 0.8, 600)
    assert [each.candidate for each in again] == [each.candidate for each in jobs]


def test_models_are_placed_and_divided_by_what_is_asked_of_them():
    jobs = day(1, Mix(two=0.0), DEVICE, 20, 0.8, 200)
    morning = scaling.placed(jobs, 40, 2)
    held = [sum(model in own for own in morning) for model in range(8)]
    assert all(len(set(own)) == 2 for own in morning)
    assert held[0] > 2 * held[4] > 0
    groups = scaling.divided(jobs, 3)
    assert set().union(*groups) == set(range(8))
    assert sum(map(len, groups)) == 8
    setting = scaling.Setting(DEVICE, COSTS, Mix(two=0.0))
    course = scaling.partitioned(setting, 3, jobs, 20, 200)
    assert course.workers == 20
    assert [each.candidate for each in course.jobs] == [each.candidate for each in jobs]
    assert len(course.waits) == len(jobs)


def test_the_recommended_policy_keeps_near_the_ideal():
    """Simulated, so the same on every machine."""
    setting = scaling.Setting(DEVICE, COSTS, Mix())
    jobs = setting.jobs(20, 60, seed=20)
    ideal = setting.ideal(jobs, 20, 60)
    course = setting.course(scaling.DEFAULT, jobs, 20, 60)
    ours = scaling.compared(course, ideal)
    assert ours["utilisation"] >= scaling.UTILISATION
    assert ours["p99 ÷ ideal"] <= scaling.P99
    assert ours["not done"] == 0
    assert all(each.candidate.submitted < each.started < each.ended for each in course.jobs)
    careless = setting.course(Policy(together=64, patience_s=10.0), jobs, 20, 60)
    assert scaling.compared(careless, ideal)["p50 ÷ ideal"] > 1.2 * ours["p50 ÷ ideal"]
    assert ours["light ÷ heavy caller"] < 1
