import numpy as np

from pipelines.card import Card, DataSpace
from pipelines.composition import Prompt
from pipelines.kernel import DenoisingError
from pipelines.params import SamplingParams
from pipelines.plan import make_plan
from service.engine.job import Ask, CancelledJobError, Job, Outcome
from service.registry import Record, Registry

CARD = Card(
    DataSpace("latent", 4, 2),
    0.01,
    80.0,
    DenoisingError((0.01, 80.0), (0.1, 0.2)),
    width=16,
    height=16,
    takes_prompts=True,
    parameters=1,
    calibrated=True,
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def record(caller="a"):
    job = Job(make_plan(Prompt("a", "m"), SamplingParams(), {"m": CARD}), Ask(caller=caller))
    return Record(job)


def over(made, at):
    made.job.end(CancelledJobError("over"))
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
    assert registry.find(done.job.id) is done
    clock.now += 2
    assert registry.find(done.job.id) is None
    clock.now += 10_000
    assert registry.find(running.job.id) is running


def completed(made, at, size):
    pictures = np.zeros((1, 1, size // 3, 3), dtype=np.uint8)
    none = np.zeros((1, 1))
    made.job.end(
        Outcome(
            pictures=pictures,
            log_density=none,
            node_log_density={},
            mean_weights=none,
            clamp_rate=none[:, 0],
            lift=none,
            lift_maps=None,
            candidate=np.zeros(1, np.int64),
            survivors=np.ones(1, np.int64),
            trajectory=(),
            queued_s=0.0,
            run_s=0.0,
        )
    )
    made.job.ended = at
    return made


def test_the_longest_finished_go_first_whenever_they_came():
    clock = Clock()
    registry = Registry(keep_bytes=60, clock=clock)
    early, middle, late = (record() for _ in range(3))
    for each in (early, middle, late):
        registry.add(each)
    completed(middle, clock.now, 30)
    completed(late, clock.now + 1, 30)
    completed(early, clock.now + 2, 30)
    assert registry.of("a") == [late, early]
    assert registry.find(middle.job.id) is None


def test_jobs_without_pictures_take_no_room():
    clock = Clock()
    registry = Registry(keep_bytes=0, clock=clock)
    failed = over(record(), clock.now)
    registry.add(failed)
    assert registry.find(failed.job.id) is failed


def test_lists_are_by_caller():
    registry = Registry()
    mine, other = record("me"), record("you")
    registry.add(mine)
    registry.add(other)
    assert registry.of("me") == [mine]
    assert registry.find(other.job.id) is other
