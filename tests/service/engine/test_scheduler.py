from dataclasses import dataclass

import pytest

from service.engine.scheduler import QueueFullError, Scheduler


@dataclass(eq=False)
class Work:
    rows: int
    cancelled: bool = False


def admitted(scheduler):
    return [work.rows for work in scheduler.admit()]


def test_first_come_first_served_within_the_row_budget():
    scheduler = Scheduler(max_waiting=10, max_rows=10)
    for rows in (4, 5, 3, 1):
        scheduler.submit(Work(rows))
    assert admitted(scheduler) == [4, 5]
    assert admitted(scheduler) == []
    scheduler.retire(scheduler.running[0])
    assert admitted(scheduler) == [3, 1]


def test_a_small_job_never_overtakes_a_large_one():
    scheduler = Scheduler(max_waiting=10, max_rows=10)
    for rows in (6, 8, 1):
        scheduler.submit(Work(rows))
    assert admitted(scheduler) == [6]
    scheduler.retire(scheduler.running[0])
    assert admitted(scheduler) == [8, 1]


def test_a_job_larger_than_the_budget_runs_alone():
    scheduler = Scheduler(max_waiting=10, max_rows=10)
    for rows in (1, 50, 1):
        scheduler.submit(Work(rows))
    assert admitted(scheduler) == [1]
    scheduler.retire(scheduler.running[0])
    assert admitted(scheduler) == [50]
    scheduler.retire(scheduler.running[0])
    assert admitted(scheduler) == [1]


def test_a_full_queue_refuses_and_loses_nothing():
    scheduler = Scheduler(max_waiting=2, max_rows=1)
    scheduler.submit(Work(1))
    scheduler.submit(Work(1))
    with pytest.raises(QueueFullError, match="2 jobs are waiting"):
        scheduler.submit(Work(1))
    assert len(scheduler.waiting) == 2
    scheduler.admit()
    scheduler.submit(Work(1))


def test_cancelled_jobs_leave_wherever_they_are():
    scheduler = Scheduler(max_waiting=10, max_rows=4)
    works = [Work(2), Work(2), Work(2), Work(2)]
    for work in works:
        scheduler.submit(work)
    scheduler.admit()
    works[1].cancelled = works[2].cancelled = True
    assert scheduler.drop_cancelled() == [works[2], works[1]]
    assert list(scheduler.running) == [works[0]]
    assert scheduler.admit() == [works[3]]


def test_clear_gives_back_everything():
    scheduler = Scheduler(max_waiting=10, max_rows=2)
    works = [Work(2), Work(2)]
    for work in works:
        scheduler.submit(work)
    scheduler.admit()
    assert set(scheduler.clear()) == set(works)
    assert not scheduler.waiting
    assert not scheduler.running
