"""The pace, on a device whose every step is known: no clock, no network."""

import itertools
import math
import random
from dataclasses import dataclass

import pytest

from service.engine.pace import Pace, StepCosts, connected, joined
from service.engine.scheduler import Limits, Scheduler

SHAPE = (4, 8, 8)


def at_shape(rows):
    """Rows by model, all of one shape, as parts."""
    return {(model, SHAPE): count for model, count in rows.items()}


@dataclass(eq=False)
class Work:
    by_model: dict
    left: int
    submitted: float = 0.0
    priority: int = 5
    caller: str = "a"
    deadline: float = math.inf
    weight: int = 0
    cancelled: bool = False

    @property
    def parts(self):
        return at_shape(self.by_model)

    @property
    def rows(self):
        return sum(self.by_model.values())


FIXED, EACH = {"small": 20.0, "large": 100.0}, {"small": 2.0, "large": 60.0}


def step_seconds(parts, speed=1.0):
    """A forward of each network: a fixed part, and one for each row, dearer beyond a hundred."""
    return speed * sum(FIXED[m] + EACH[m] * (rows + max(0, rows - 100) / 2) for (m, _), rows in parts.items())


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
    """When each job is done, and the number of steps, on a device that takes one joint step after another; sets of jobs
    with no model in common take turns by time, as the engine has it.
    """
    made, now, coming, ends, steps = Scheduler(limits), 0.0, list(crowd), {}, 0
    had = {"small": 0.0, "large": 0.0}
    for rows in ({"small": 2}, {"large": 2}, {"small": 20}, {"large": 20}):
        for _ in range(3):
            made.took([Work(rows, 1)], step_seconds(at_shape(rows)))
    while len(ends) < len(crowd):
        while coming and coming[0].submitted <= now:
            made.submit(coming.pop(0))
        made.admit(now)
        groups = connected(made.running)
        if not groups:
            now = coming[0].submitted
            continue
        if len(groups) == 1:
            had = dict.fromkeys(had, 0.0)
        models, group = min(groups, key=lambda each: max(had[model] for model in each[0]))
        seconds = step_seconds(joined(group), speed(now))
        now, steps = now + seconds, steps + 1
        had |= {model: had[model] + seconds for model in models}
        made.took(group, seconds)
        for work in group:
            work.left -= 1
        over = [work for work in group if not work.left]
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
    """Three times slower from some moment on: the bound holds, and batches do not fall apart for it."""

    def speed(now):
        return 3.0 if now > 4000 else 1.0

    steady, slowing = (a_crowd(random.Random(1), 80) for _ in range(2))
    lefts = [work.left for work in steady]
    _, steps = served(steady, Limits(**LIMITS))
    ends, steps_slowed = served(slowing, Limits(**LIMITS), speed)
    assert steps < sum(lefts) / 5
    # While the change is being learned, a job that runs is a little longer under way.
    assert worst_wait(slowing, ends, lefts, speed) < 2.4
    assert steps_slowed < sum(lefts) / 4


def test_under_load_batches_grow_as_large_as_they_may():
    """Forty equal jobs at once: what is lost to the bound is little, by the steps that it takes in all."""
    crowd = [Work({"small": 3}, 25) for _ in range(64)]
    _, bounded = served(crowd, Limits(**LIMITS))
    assert bounded <= 4 * 25


def test_a_job_that_outranks_those_who_run_is_not_held_up_by_them():
    pace = Pace(2.0)
    for rows in (2, 20, 200):
        pace.took([Work({"small": rows}, 1)], step_seconds(at_shape({"small": rows})))
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
    assert costs.seconds(at_shape({"small": 1})) is None
    for _ in range(600):
        rows = {m: rng.choice((1, 3, 8, 20, 48, 90)) for m in rng.choice((["small"], ["large"], ["small", "large"]))}
        parts = at_shape(rows)
        costs.learn(parts, step_seconds(parts) * rng.uniform(0.9, 1.1))
    common = costs.seconds(at_shape({"large": 48})) / step_seconds(at_shape({"large": 48}))
    for rows in ({"small": 3}, {"small": 48}, {"large": 30}, {"small": 10, "large": 60}, {"small": 90}):
        assert costs.seconds(at_shape(rows)) == pytest.approx(common * step_seconds(at_shape(rows)), rel=0.15)


def test_a_single_size_is_taken_to_cost_in_proportion_and_a_hiccup_counts_little():
    costs = StepCosts()
    four = at_shape({"small": 4})
    costs.learn(four, 900.0)  # a first call
    for _ in range(30):
        costs.learn(four, 8.0)
    usual = costs.seconds(four)
    assert costs.seconds(at_shape({"small": 8})) == pytest.approx(2 * usual)
    for hiccup in (8000.0, 1e-6):
        costs.learn(four, hiccup)
    assert costs.seconds(four) == pytest.approx(usual, rel=0.5)


def test_a_model_first_seen_beside_another_is_not_taken_to_be_free():
    """Of the other only a small size is known, so that more is foreseen of its many rows than both together take."""
    costs = StepCosts()
    for _ in range(5):
        costs.learn(at_shape({"small": 2}), 24.0)
    costs.learn(at_shape({"small": 20, "large": 1}), 160.0)
    assert costs.seconds(at_shape({"large": 1})) > 1


def test_a_size_that_was_seen_at_a_bad_moment_is_tried_again():
    costs = StepCosts()
    for _ in range(20):
        costs.learn(at_shape({"small": 3}), 26.0)
    costs.learn(at_shape({"small": 24}), 5000.0)
    assert costs.seconds(at_shape({"small": 24})) <= 1.25 * 8 * costs.seconds(at_shape({"small": 3}))


def test_steps_that_vary_change_the_bound_little():
    """Every step takes a tenth more or less than it should, at random, and the machine is slower by turns."""
    rng = random.Random(0)

    def speed(now):
        return math.exp(0.2 * math.sin(now / 1500) + rng.gauss(0, 0.1))

    for seed in range(4):
        crowd = a_crowd(random.Random(seed), 80)
        lefts = [work.left for work in crowd]
        ends, _ = served(crowd, Limits(**LIMITS), speed)
        assert worst_wait(crowd, ends, lefts, lambda now: math.exp(0.2 * math.sin(now / 1500))) < 2.2


def test_a_shape_never_seen_costs_by_its_size():
    costs = StepCosts()
    for _ in range(3):
        costs.learn({("m", (4, 8, 8)): 2}, 10.0)
    assert costs.seconds({("m", (4, 16, 16)): 2}) == pytest.approx(4 * costs.seconds({("m", (4, 8, 8)): 2}))


def test_a_model_of_which_nothing_is_known_waits_for_those_who_have_a_due_time():
    made = Scheduler(Limits(**LIMITS))
    for _ in range(3):
        made.took([Work({"small": 2}, 1)], step_seconds(at_shape({"small": 2})))
    known, unknown = Work({"small": 2}, 10), Work({"large": 2}, 10)
    for work in (known, unknown):
        made.submit(work)
    assert made.admit(0) == [known]
    made.retire([known])
    assert made.admit(0) == [unknown]


def test_models_with_nothing_in_common_may_both_run_though_one_has_dearer_steps():
    """Sets of models take turns by time: beside a set whose steps are long, one with short ones still gets its half."""
    pace = Pace(2.0)
    for _ in range(3):
        for rows in ({"small": 2}, {"large": 2}):
            pace.took([Work(rows, 1)], step_seconds(at_shape(rows)))
    small, large = Work({"small": 2}, 50), Work({"large": 2}, 50)
    assert pace.may_join(large, [(small, pace.due(small, first=True))])
    third = Work({"third": 2}, 50)
    pace.took([third], 1.0)
    both = [(small, pace.due(small, first=True)), (large, pace.due(large, first=False))]
    assert not pace.may_join(third, both)


def test_jobs_that_go_before_they_are_done_no_longer_stand_before_others():
    made = Scheduler(Limits(**LIMITS))
    for _ in range(3):
        made.took([Work({"small": 2}, 1)], 1.0)
    first = Work({"small": 2}, 10)
    gone = [Work({"small": 2}, 1000) for _ in range(5)]
    for work in (first, *gone):
        made.submit(work)
    for work in gone:
        work.cancelled = True
    made.drop(0)
    after = Work({"small": 2}, 10)
    made.submit(after)
    now = 3.0  # three steps of one second
    assert made._due[after] - now == pytest.approx(2 * (made._due[first] - now))
