import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import Limits, QueueFullError, Scheduler


@dataclass(eq=False)
class Work:
    rows: int = 1
    caller: str = "a"
    priority: int = 5
    submitted: float = 0.0
    deadline: float = math.inf
    cancelled: bool = False
    weight: int = 0
    left: int = 1

    @property
    def parts(self):
        return {("m", (4, 8, 8)): self.rows}


def scheduler(*works, **limits):
    made = Scheduler(Limits(**limits))
    for work in works:
        made.submit(work)
    return made


def drained(made, now=0.0):
    """The order in which everything runs when each job runs alone to its end."""
    order = []
    while admitted := made.admit(now):
        order += admitted
        made.retire(admitted)
    return order


def test_first_come_first_served_within_the_row_budget():
    works = [Work(4), Work(5), Work(3), Work(1)]
    made = scheduler(*works, running_rows=10)
    assert made.admit(0) == works[:2]
    assert made.admit(0) == []
    made.retire(works[:1])
    assert made.admit(0) == works[2:]


def test_only_a_waiting_job_can_be_withdrawn():
    running, waiting = Work(10), Work(10)
    made = scheduler(running, waiting, running_rows=10)
    assert made.admit(0) == [running]
    assert not made.withdraw(running)
    assert made.withdraw(waiting)
    assert not made.withdraw(waiting)
    assert made.waiting == []
    assert made.running == [running]


def test_a_small_job_never_overtakes_a_large_one():
    works = [Work(6), Work(8), Work(1)]
    made = scheduler(*works, running_rows=10)
    assert made.admit(0) == works[:1]
    made.retire(works[:1])
    assert made.admit(0) == works[1:]


def test_a_job_larger_than_the_budget_runs_alone():
    works = [Work(1), Work(50), Work(1)]
    made = scheduler(*works, running_rows=10)
    for work in works:
        assert made.admit(0) == [work]
        made.retire([work])


def test_higher_priorities_run_first():
    works = [Work(priority=p) for p in (5, 0, 9, 5)]
    assert drained(scheduler(*works, running_rows=1)) == [works[2], works[0], works[3], works[1]]


def test_callers_take_turns_however_many_jobs_each_has():
    many, few = [Work(caller="many") for _ in range(5)], [Work(caller="few") for _ in range(2)]
    order = drained(scheduler(*many, *few, running_rows=1))
    assert [work.caller for work in order] == ["many", "few", "many", "few", "many", "many", "many"]
    assert [w for w in order if w.caller == "many"] == many


def test_waiting_raises_the_priority_so_that_nobody_starves():
    patient = Work(priority=0, submitted=0)
    made = scheduler(patient, running_rows=1, ageing_s=10)
    for second in range(100):
        made.submit(Work(priority=9, submitted=second))
        admitted = made.admit(second)
        made.retire(admitted)
        if patient in admitted:
            break
    # Nine priorities at ten seconds each bring it level with the newcomer, and it is the older of the two.
    assert second == 90


def test_a_job_that_needs_much_room_is_not_overtaken_for_ever_by_fresh_callers():
    big = Work(rows=10, priority=5, caller="big")
    made = scheduler(big, running_rows=10, ageing_s=10)
    small = Work(rows=1, priority=9, caller="first")
    made.submit(small)
    made.admit(0)
    for second in range(1, 200):
        made.submit(Work(rows=1, priority=9, caller=f"fresh {second}", submitted=second))
        admitted = made.admit(second)
        made.retire(made.running[:1])
        if big in admitted:
            break
    assert second < 60
    assert len(made._served) <= 200


def test_order_tells_what_would_run_and_changes_nothing():
    rng = random.Random(0)
    works = [Work(caller=rng.choice("abc"), priority=rng.randint(3, 6)) for _ in range(30)]
    made = scheduler(*works, running_rows=1)
    told = made.order(0)
    assert made.order(0) == told
    assert drained(made) == told


@pytest.mark.parametrize(
    ("limits", "works", "told"),
    [
        ({"waiting_jobs": 2}, [Work(), Work()], "2 jobs are waiting"),
        ({"waiting_rows": 10}, [Work(8)], "8 network rows wait already"),
        ({"caller_jobs": 2}, [Work(), Work()], "this caller has 2 jobs"),
    ],
)
def test_a_full_queue_refuses_and_loses_nothing(limits, works, told):
    made = scheduler(*works, **limits)
    with pytest.raises(QueueFullError, match=told) as refused:
        made.submit(Work(3))
    assert refused.value.waiting == len(works)
    assert made.waiting == works


def test_the_cap_counts_running_jobs_and_only_the_caller_s_own():
    made = scheduler(Work(), Work(), caller_jobs=2)
    made.admit(0)
    with pytest.raises(QueueFullError):
        made.submit(Work())
    made.submit(Work(caller="b"))


def test_a_job_larger_than_the_queue_may_wait_alone():
    made = scheduler(waiting_rows=10)
    made.submit(Work(100))
    assert made.admit(0)


def test_cancelled_and_overdue_jobs_leave_wherever_they_are():
    works = [Work(2), Work(2), Work(2), Work(2, deadline=5), Work(2, deadline=50)]
    made = scheduler(*works, running_rows=4)
    made.admit(0)
    works[1].cancelled = works[2].cancelled = True
    assert set(made.drop(10)) == {works[1], works[2], works[3]}
    assert made.running == [works[0]]
    assert made.admit(10) == [works[4]]


def test_clear_empties_the_queue_alone():
    works = [Work(2), Work(2)]
    made = scheduler(*works, running_rows=2)
    made.admit(0)
    assert made.clear_waiting() == works[1:]
    assert made.running == works[:1]
    assert made.waiting == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from("abcd"), st.integers(0, 9), st.integers(1, 5)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 60),
)
def test_every_job_runs_once_and_the_budget_holds(jobs, running_rows):
    works = [Work(rows, caller, priority, submitted=i) for i, (rows, caller, priority, _) in enumerate(jobs)]
    left = {id(work): steps for work, (*_, steps) in zip(works, jobs, strict=True)}
    made = scheduler(*works, running_rows=running_rows)
    ran = []
    for now in range(len(works), 10_000):
        ran += made.admit(now)
        rows = sum(work.rows for work in made.running)
        assert rows <= running_rows or len(made.running) == 1
        if not made.running:
            break
        for work in made.running:
            left[id(work)] -= 1
        made.retire([work for work in made.running if not left[id(work)]])
    assert len(ran) == len(set(map(id, ran))) == len(works)
