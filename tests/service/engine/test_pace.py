"""The pace, on a device whose every step is known: no clock, no network."""

import gc
import itertools
import math
import random
from dataclasses import dataclass

import pytest

from service.engine.pace import Pace, StepCosts, _Arrival, connected, joined
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


def learned(made):
    """A scheduler or a pace that has seen steps of two sizes of both models."""
    for rows in ({"small": 2}, {"large": 2}, {"small": 20}, {"large": 20}):
        for _ in range(3):
            made.took([Work(rows, 1)], step_seconds(at_shape(rows)))
    return made


def served(crowd, limits, speed=lambda now: 1.0, *, fresh=False):
    """When each job is done, and the number of steps, on a device that takes one joint step after another; sets of jobs
    with no model in common take turns by time, as the engine has it. A fresh one has seen no step before.
    """
    made, now, coming, ends, steps = Scheduler(limits), 0.0, list(crowd), {}, 0
    had = {"small": 0.0, "large": 0.0}
    if not fresh:
        learned(made)
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
    running, large, urgent = Work({"small": 2}, 10), Work({"small": 100}, 10), Work({"small": 100}, 10, priority=6)
    for work in (running, large, urgent):
        pace.came(work, first=work is running)
    assert not pace.may_join(large, [running])
    assert pace.may_join(urgent, [running])


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


def test_jobs_of_two_unknown_models_that_come_at_once_run_side_by_side():
    """Though a step of the first is taken, and tells when it is due, before the second one is looked at."""
    made = Scheduler(Limits(**LIMITS))
    first, second = Work({"small": 2}, 10), Work({"large": 2}, 10)
    made.submit(first)
    assert made.admit(0) == [first]
    made.submit(second)
    made.took([first], step_seconds(at_shape({"small": 2})))
    assert made.admit(0) == [second]


def test_models_with_nothing_in_common_may_both_run_though_one_has_dearer_steps():
    """Sets of models take turns by time: beside a set whose steps are long, one with short ones still gets its half."""
    pace = Pace(2.0)
    for _ in range(3):
        for rows in ({"small": 2}, {"large": 2}):
            pace.took([Work(rows, 1)], step_seconds(at_shape(rows)))
    pace.took([Work({"third": 2}, 1)], 1.0)
    small, large, third = (Work({model: 2}, 50) for model in ("small", "large", "third"))
    for work in (small, large, third):
        pace.came(work, first=work is small)
    assert pace.may_join(large, [small])
    assert not pace.may_join(third, [small, large])


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
    assert made._pace.due(after) - now == pytest.approx(2 * (made._pace.due(first) - now))


THREE = step_seconds(at_shape({"small": 3}))


def equals(count, apart=0.0, steps=25, **given):
    """Equal jobs that come one after the other, ``apart`` seconds from one to the next."""
    return [Work({"small": 3}, steps, place * apart, **given) for place in range(count)]


@pytest.mark.parametrize("fresh", [False, True], ids=["learned", "fresh"])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 0.3])
def test_equals_that_come_together_run_together(fresh, spread):
    """Spread over so much of their length, sixteen take hardly longer than without a bound, learned or not."""
    length = 25 * THREE
    ends, _ = served(equals(16, spread * length / 15), Limits(**LIMITS), fresh=fresh)
    free, _ = served(equals(16, spread * length / 15), Limits(**LIMITS, stretch=math.inf), fresh=fresh)
    assert max(ends.values()) <= 1.03 * max(free.values())
    assert max(ends.values()) < 16 * length / 3


def test_equals_that_come_later_are_no_more_to_a_job_than_others():
    """Past half of its length it stands by its first due time."""
    alone, *others = crowd = equals(17)
    for work in others:
        work.submitted = 0.6 * 25 * THREE
    ends, _ = served(crowd, Limits(**LIMITS))
    assert ends[alone] < 2 * 25 * THREE


@pytest.mark.parametrize(
    "longer", [Work({"small": 3}, 40), Work({"small": 12}, 25), Work({"small": 3, "large": 1}, 25)]
)
def test_a_short_job_is_no_equal_of_long_ones_that_come_with_it(longer):
    """Sixteen jobs that are longer by a third and more, in steps, in rows, or by a model, come at the same moment."""
    short = Work({"small": 3}, 25)
    ends, _ = served([short, *(Work(longer.by_model, longer.left) for _ in range(16))], Limits(**LIMITS))
    assert ends[short] < 2 * 25 * THREE


def test_the_room_that_equals_make_is_no_room_for_others():
    """Equals run together; a long job that came with them joins none of them before the due time of the first."""
    pace = learned(Pace(2.0))
    works, long = equals(8), Work({"small": 5}, 60)
    for work in (*works, long):
        pace.came(work, first=work is works[0])
    for place in range(1, 8):
        assert pace.may_join(works[place], works[:place])
    assert not pace.may_join(long, works)


def test_many_jobs_of_one_caller_delay_the_single_job_of_another_as_one_would():
    single, *many = crowd = equals(33)
    for work in many:
        work.caller = "many"
    ends, _ = served(crowd, Limits(**LIMITS))
    assert ends[single] < 2.5 * 25 * THREE
    own, _ = served(equals(33), Limits(**LIMITS))
    assert min(own.values()) > 3.5 * 25 * THREE


def test_equals_of_many_callers_run_together_as_those_of_one():
    crowd = equals(16)
    for place, work in enumerate(crowd):
        work.caller = str(place)
    _, steps = served(crowd, Limits(**LIMITS))
    assert steps == 25


def test_equals_differ_in_no_more_than_their_length_by_a_quarter():
    """How much later than F a job is due to those who came with it: one equal more is one length more."""

    def room(*others, first=None):
        pace = learned(Pace(1.0))
        job = first or Work({"small": 3}, 20)
        for work in (job, *others):
            pace.came(work, first=work is job)
        step = pace._costs.seconds(job.parts)
        return (pace.due_to_equals(job) - pace._now) / (step * job.left)

    none = room()
    assert none < 1
    assert room(Work({"small": 3}, 20)) == pytest.approx(2.5)
    assert room(Work({"small": 3}, 25), Work({"small": 3}, 16)) == pytest.approx(3.5)
    for other in (
        Work({"small": 3}, 26),
        Work({"small": 3}, 15),
        Work({"large": 3}, 20),
        Work({"small": 3}, 20, priority=4),
        Work({"small": 3}, 20, priority=6),
    ):
        assert room(other) == none


def test_equals_that_were_cancelled_count_no_more():
    pace = learned(Pace(1.0))
    job, gone, stays = works = equals(3)
    for work in works:
        pace.came(work, first=work is job)
    before = pace.due_to_equals(job)
    pace.gone(gone)
    length = pace._costs.seconds(job.parts) * job.left
    assert before - pace.due_to_equals(job) == pytest.approx(length)
    pace.done(stays)  # whoever is done took its time
    assert before - pace.due_to_equals(job) == pytest.approx(length)


@pytest.mark.parametrize("seed", range(6))
def test_bursts_of_equals_in_a_crowd_make_nobody_wait_beyond_what_the_bound_says(seed):
    """Each is done within twice what first come, first served takes, or when that is done with its last equal."""
    rng = random.Random(seed)
    crowd = []
    for at in itertools.accumulate(rng.expovariate(1 / 400) for _ in range(30)):
        rows = {m: rng.randint(1, 5) for m in rng.choice((["small"], ["small"], ["small", "large"], ["large"]))}
        steps, count = rng.randint(5, 60), rng.choice((1, 1, 1, 4, 8))
        crowd += [Work(rows, steps, at) for _ in range(count)]
    lefts = [work.left for work in crowd]
    ends, _ = served(crowd, Limits(**LIMITS))
    free, strict = 0.0, {}
    for work, left in zip(crowd, lefts, strict=True):
        strict[work] = free = max(free, work.submitted) + left * step_seconds(work.parts)
    early = 0
    for work, left in zip(crowd, lefts, strict=True):
        length = left * step_seconds(work.parts)
        # Of independent jobs some are equal by chance; here those count too that are nearly so.
        last = sum(
            other.parts.keys() == work.parts.keys()
            and strict[other] > strict[work]
            and other.submitted - work.submitted < 0.6 * length
            and 0.7 < its * step_seconds(other.parts) / length < 1.4
            for other, its in zip(crowd, lefts, strict=True)
        )
        by_equals = strict[work] - work.submitted + (last + 0.5) * length if last else 0.0
        waited = ends[work] - work.submitted
        assert waited < 1.1 * max(2 * (strict[work] - work.submitted), by_equals)
        early += waited < strict[work] - work.submitted
    assert early > len(crowd) / 2


def test_an_endless_stream_of_equals_leaves_nothing_behind():
    """Each came together with the next, and so with all there ever were."""
    pace = learned(Pace(2.0))
    running = []
    for _ in range(300):
        work = Work({"small": 3}, 10)
        pace.came(work, first=not running)
        running.append(work)
        pace.took(running, step_seconds(joined(running)))
        for other in running:
            other.left -= 1
        if len(running) > 4:
            pace.done(running.pop(0))
    del work, other
    gc.collect()
    assert sum(type(thing) is _Arrival for thing in gc.get_objects()) < 20
