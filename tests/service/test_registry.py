import pytest

from pipelines.composition import Prompt
from pipelines.sampler import SamplingParams
from service.engine.job import Ask, CancelledJobError, Job
from service.registry import Record, Registry, UnknownJobError
from service.schemas import OrRequest


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def record(caller="a"):
    job = Job(Prompt("a", "m"), SamplingParams(), rows=1, ask=Ask(caller=caller))
    return Record(job, OrRequest(components=["a"]))


def over(made, at):
    made.job.fail(CancelledJobError("over"))
    made.job.ended = at
    return made


def test_finished_jobs_are_kept_for_a_time_and_running_ones_for_ever():
    clock = Clock()
    registry = Registry(keep_s=60, clock=clock)
    done, running = record(), record()
    for each in (done, running):
        registry.add(each)
    over(done, clock.now)
    clock.now += 59
    assert registry.get(done.job.id) is done
    clock.now += 2
    with pytest.raises(UnknownJobError, match="kept for 60 s"):
        registry.get(done.job.id)
    clock.now += 10_000
    assert registry.get(running.job.id) is running


def test_the_oldest_finished_jobs_go_first():
    clock = Clock()
    registry = Registry(keep_jobs=2, clock=clock)
    records = [over(record(), clock.now) for _ in range(4)]
    for each in records:
        registry.add(each)
    assert registry.of("a") == records[:1:-1]


def test_lists_are_by_caller():
    registry = Registry()
    mine, other = record("me"), record("you")
    registry.add(mine)
    registry.add(other)
    assert registry.of("me") == [mine]
    assert registry.get(other.job.id) is other
