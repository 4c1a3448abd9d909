"""The pace, on a device whose every step is known: no clock, no network."""

import itertools
import math
import random
from dataclasses import dataclass, field

import pytest

from service.engine.pace import Pace, StepCosts, joined
from service.engine.scheduler import Limits, Scheduler


@dataclass(eq=False)
class Work:
    parts: dict
    left: int
    submitted: float = 0.0
    priority: int = 5
    caller: str = "a"
    deadline: float = math.inf
    weight: int = 0
    cancelled: bool = False
    alone: float = field(init=False, default=0.0)

    @property
    def rows(self):
        return sum(self.parts.values())


FIXED, EACH = {"small": 20.0, "large": 100.0}, {"small": 2.0, "large": 60.0}


def step_seconds(parts, speed=1.0):
    """A forward of each network: a fixed part, and one for each row, dearer beyond a hundred."""
    return speed * sum(FIXED[m] + EACH[m] * (rows + max(0, rows - 100) / 2) for m, rows in parts.items())


def a_crowd(rng, count, gap=50.0):
    times = itertools.accumulate(rng.expovariate(1 / gap) for _ in range(count))
    return [
        Work(
            {m: rng.randint(1, 5) for m in rng.choice((["small"], ["small"], ["small", "large"], ["large"]))},
            rng.randint(5, 60),
            at,
        )
        for at in times
    ]


def served(crowd, limits, speed=lambda now: 1.0):
    """When each job is done, on a device that takes one joint step after another; and the number of steps."""
    made, now, coming, ends, steps = Scheduler(limits), 0.0, list(crowd), {}, 0
    for parts in ({"small": 2}, {"large": 2}, {"small": 20}, {"large": 20}):
        made.took([Work(parts, 1)], step_seconds(parts))
    while len(ends) < len(crowd):
        while coming and coming[0].submitted <= now:
            made.submit(coming.pop(0))
        made.admit(now)
        running = list(made.running)
        if not running:
            now = coming[0].submitted
            continue
        seconds = step_seconds(joined(running), speed(now))
        now, steps = now + seconds, steps + 1
        made.took(running, seconds)
        for work in running:
            work.left -= 1
        over = [work for work in running if not work.left]
        ends |= dict.fromkeys(over, now)
        made.retire(over)
    return ends, steps


def worst_wait(crowd, ends, lefts, speed=lambda now: 1.0):
    """The largest wait in units of what strict first come, first served, everybody alone, would have made it."""
    free, worst = 0.0, 0.0
    for work, left in zip(crowd, lefts, strict=True):
        free = max(free, work.submitted)
        for _ in range(left):
            free += step_seconds(work.parts, speed(free))
        worst = max(worst, (ends[work] - work.submitted) / (free - work.submitted))
    return worst


LIMITS = {"running_rows": 200, "caller_jobs": 1000, "waiting_jobs": 1000}


@pytest.mark.parametrize("seed", range(6))
def test_nobody_waits_longer_than_the_stretch_and_without_one_somebody_does(seed):
    crowd = a_crowd(random.Random(seed), 80)
    lefts = [work.left for work in crowd]
    ends, _ = served(crowd, Limits(**LIMITS, stretch=2.0))
    # A step that is under way when a job comes is not counted in steps: a tenth for it.
    assert worst_wait(crowd, ends, lefts) < 2.2
    free = a_crowd(random.Random(seed), 80)
    ends, _ = served(free, Limits(**LIMITS, stretch=math.inf))
    assert worst_wait(free, ends, lefts) > 2.5


def test_a_machine_that_slows_down_slows_first_come_first_served_too():
    """Three times slower from some moment on: the bound holds, and batches do not shrink for it."""

    def speed(now):
        return 3.0 if now > 4000 else 1.0

    steady, slowing = (a_crowd(random.Random(1), 80) for _ in range(2))
    lefts = [work.left for work in steady]
    _, steps = served(steady, Limits(**LIMITS))
    ends, steps_slowed = served(slowing, Limits(**LIMITS), speed)
    assert worst_wait(slowing, ends, lefts, speed) < 2.2
    assert steps_slowed < 1.3 * steps


def test_under_load_batches_grow_as_large_as_they_may():
    """Forty equal jobs at once: what is lost to the bound is little, by the steps that it takes in all."""
    crowd = [Work({"small": 3}, 25) for _ in range(64)]
    _, bounded = served(crowd, Limits(**LIMITS))
    assert bounded <= 4 * 25


def test_a_job_that_outranks_those_who_run_is_not_held_up_by_them():
    pace = Pace(2.0)
    for rows in (2, 20, 200):
        pace.took([Work({"small": rows}, 1)], step_seconds({"small": rows}))
    running, large = Work({"small": 2}, 10), Work({"small": 100}, 10)
    pair = [(running, pace.due(running, first=True))]
    assert not pace.may_join(large, pair)
    large.priority = 6
    assert pace.may_join(large, pair)


def test_before_anything_is_known_nothing_is_due():
    made = Scheduler(Limits(**LIMITS))
    works = [Work({"small": 50}, 10) for _ in range(4)]
    for work in works:
        made.submit(work)
    assert made.admit(0) == works


def test_costs_are_learned_by_size_and_part():
    costs, rng = StepCosts(), random.Random(0)
    assert costs.seconds({"small": 1}) is None
    for _ in range(600):
        parts = {m: rng.choice((1, 3, 8, 20, 48, 90)) for m in rng.choice((["small"], ["large"], ["small", "large"]))}
        costs.learn(parts, step_seconds(parts) * rng.uniform(0.9, 1.1))
    common = costs.seconds({"large": 48}) / step_seconds({"large": 48})
    for parts in ({"small": 3}, {"small": 48}, {"large": 30}, {"small": 10, "large": 60}, {"small": 90}):
        assert costs.seconds(parts) == pytest.approx(common * step_seconds(parts), rel=0.2)


def test_a_single_size_is_taken_to_cost_in_proportion_and_a_hiccup_counts_little():
    costs = StepCosts()
    costs.learn({"small": 4}, 8.0)
    assert costs.seconds({"small": 8}) == pytest.approx(16)
    costs.learn({"small": 4}, 8000.0)
    assert costs.seconds({"small": 4}) < 20
