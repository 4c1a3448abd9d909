"""Refused clients that come back when they were told to: on a simulated clock and device, no network."""

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field

import pytest

from service.engine.scheduler import Limits, QueueFullError, Scheduler
from service.engine.waitlist import Load, Room, work_before
from tests.service.engine.test_scheduler import Work

# A full batch of 24 rows steps in 0.29 s: 83 rows a second, a job of 3.5 × 22.5 rows in a second or so.
RATE_ROWS = 24 / 0.29
RATE = RATE_ROWS / (3.5 * 22.5)
ROOM = Room(jobs=3, rows=100, weight=100, running_rows=10, caller_jobs=100)


def loads(*works, rows=1, caller="a", weight=0):
    return [Load(caller, rows, weight, work) for work in works]


@pytest.mark.parametrize(
    ("running", "ahead", "work"),
    [
        ((), (), 0),
        ((50,), (1, 1), 0),
        # The first of the queue leaves when all that run are done.
        ((50, 20), (1, 2, 4), 70),
        ((50, 20), (1, 2, 4, 8), 71),
        ((50, 20), (1, 2, 4, 8, 16), 73),
    ],
)
def test_a_place_is_free_when_the_jobs_before_it_have_started(running, ahead, work):
    assert work_before(*loads(1, caller="b"), loads(*running), loads(*ahead), ROOM) == work


def test_rows_and_bytes_are_waited_for_too():
    room = Room(jobs=100, rows=10, weight=100, running_rows=10, caller_jobs=100)
    ahead = loads(1, 2, 4, rows=3)
    assert work_before(Load("b", 4, 0, 1), loads(50), ahead, room) == 50
    assert work_before(Load("b", 7, 0, 1), loads(50), ahead, room) == 51
    # A job larger than the whole queue waits until it is empty.
    assert work_before(Load("b", 70, 0, 1), loads(50), ahead, room) == 53
    pictures = loads(1, 2, 4, weight=40)
    assert work_before(Load("b", 1, 60, 1), loads(50), pictures, room) == 51
    assert work_before(Load("b", 1, 0, 1), loads(50), pictures, room) == 0


def test_a_caller_waits_until_its_own_are_done():
    room = Room(jobs=100, rows=1000, weight=100, running_rows=2, caller_jobs=2)
    job = Load("a", 1, 0, 1)
    assert work_before(job, loads(50), [], room) == 0
    assert work_before(job, loads(50, 20), [], room) == 70
    assert work_before(job, loads(50), loads(4), room) == 50
    # Its own at the second place, and the two that run along with it.
    mixed = [*loads(1, caller="b"), *loads(2), *loads(4, 8, 16, caller="b")]
    assert work_before(job, loads(50), [*loads(32), *mixed], room) == 50 + 32 + 1 + 2
    assert work_before(job, loads(50, caller="b"), [*mixed, *loads(1)], room) == 50 + 1 + 2 + 4 + 8


@dataclass
class Client:
    caller: str
    rows: int
    left: int
    tries: int = 0
    told: list = field(default_factory=list)
    obeys: bool = True


@dataclass
class Crowd:
    """What clients met: those who got in at their first or second try, and those who were refused twice."""

    scheduler: Scheduler
    rng: random.Random
    clients: list = field(default_factory=list)
    idle_s: float = 0.0

    def simulate(self, arrivals, until_s, wobble=0.2, stay=True):
        """Clients come, and come back when they were told to, within a moment; the device takes joint steps.

        Args:
            arrivals: (when, client), in order of time.
            until_s: When the last of them has come.
            wobble: How much steps vary.
            stay: Whether those who are refused come back.
        """
        made, rng, now = self.scheduler, self.rng, 0.0
        order = itertools.count()
        coming = [(at, next(order), client) for at, client in arrivals]
        heapq.heapify(coming)
        self.clients = [client for _, _, client in coming]
        while now < until_s:
            while coming and coming[0][0] <= now:
                at, _, client = heapq.heappop(coming)
                client.tries += 1
                try:
                    made.submit(Work(client.rows, client.caller, submitted=at, left=client.left))
                except QueueFullError as refused:
                    client.told.append(refused.retry_after_s)
                    again = at + (refused.retry_after_s + rng.uniform(0.01, 0.3) if client.obeys else rng.uniform(0, 4))
                    if stay:
                        heapq.heappush(coming, (again, next(order), client))
                else:
                    client.told.append(None)
            made.admit(now)
            running = list(made.running)
            if not running:
                until = coming[0][0] if coming else until_s
                self.idle_s += until - now
                now = until
                continue
            rows = sum(work.rows for work in running)
            seconds = (0.05 + 0.01 * rows) * rng.uniform(1 - wobble, 1 + wobble)
            now += seconds
            for work in running:
                work.left -= 1
            made.took(running, seconds)
            made.retire([work for work in running if not work.left])
            made.worked(rows, seconds)
        return self

    @property
    def second_try(self):
        """Of those who were refused and came back as told: how many got in."""
        back = [client.told[1] for client in self.clients if client.obeys and len(client.told) > 1]
        assert len(back) >= 30, "too few to tell"
        return sum(told is None for told in back) / len(back)


def crowd(seed, **limits):
    rng = random.Random(seed)
    given = {"waiting_jobs": 16, "running_rows": 24, "stretch": math.inf, "caller_jobs": 1000} | limits
    made = Scheduler(Limits(**given))
    # What was measured before the crowd came.
    made.worked(2400, 2400 / RATE_ROWS)
    return Crowd(made, rng)


def clients(rng, count, gap_s, callers=None, obeys=lambda _: True):
    at = 0.0
    for i in range(count):
        at += rng.expovariate(1 / gap_s) if gap_s else 0.0
        caller = f"caller {i if callers is None else i % callers}"
        yield at, Client(caller, rng.randint(1, 6), rng.randint(5, 40), obeys=obeys(i))


@pytest.mark.parametrize("seed", range(4))
def test_in_tenfold_overload_those_who_obey_get_in_at_their_second_try(seed):
    """Ten come where one can be served, for a minute; then for as long as it takes those who were told to come back."""
    made = crowd(seed)
    made.simulate(clients(made.rng, int(60 * 10 * RATE), 0.1 / RATE), until_s=900)
    assert made.second_try >= 0.9


@pytest.mark.parametrize("seed", range(4))
def test_a_burst_of_ten_times_as_many_as_may_wait(seed):
    made = crowd(seed)
    made.simulate(clients(made.rng, 160, 0), until_s=400)
    assert made.second_try >= 0.9


@pytest.mark.parametrize("seed", range(4))
def test_clients_of_one_caller_get_in_too(seed):
    made = crowd(seed, waiting_jobs=256, caller_jobs=16)
    made.simulate(clients(made.rng, 160, 0, callers=1), until_s=400)
    assert made.second_try >= 0.9


def test_they_do_not_come_back_together():
    made = crowd(1)
    made.simulate(clients(made.rng, 160, 0), until_s=0.01)
    told = [client.told[0] for client in made.clients if client.told[0] is not None]
    assert len(told) == 160 - 16
    assert max(told.count(second) for second in set(told)) <= 3 + 2 * RATE
    assert max(told) == pytest.approx(len(told) / RATE * 1.15, rel=0.2)


def test_before_anything_is_measured_they_are_spread_by_a_guess():
    made = Scheduler(Limits(waiting_jobs=1))
    made.submit(Work())
    told = []
    for _ in range(3):
        with pytest.raises(QueueFullError) as refused:
            made.submit(Work())
        told.append(refused.value.retry_after_s)
    assert told == [5, 6, 7]


def test_clients_that_never_come_back_leave_no_device_idle():
    made = crowd(2)
    made.simulate(clients(made.rng, int(120 * 3 * RATE), 1 / (3 * RATE)), until_s=120, stay=False)
    assert sum(client.told[0] is not None for client in made.clients) > 100
    assert made.idle_s < 6


def test_who_comes_early_gains_nothing_on_who_obeys():
    made = crowd(3)
    comers = clients(made.rng, int(30 * 10 * RATE), 0.1 / RATE, obeys=lambda i: i % 5 != 0)
    assert made.simulate(comers, until_s=60).second_try >= 0.9
