"""How many workers the work that waits is worth, by the formulas alone; no Ray is needed."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from service.workers.scaling import Aim, BacklogPolicy, Load, Quiet, backlog_seconds, metrics_of, settled, wanted

AIM = Aim(target_s=60, start_s=30, settle_s=300)
MANY = 1000


def load(seconds=0.0, jobs=MANY, slack_s=None, busy=0):
    return Load(jobs, seconds, slack_s, busy)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (load(0, jobs=0), 1),
        (load(60), 1),
        (load(61), 2),
        (load(600), 10),
        (load(60_000), 20),
        # No job is computed by two workers.
        (load(600, jobs=3), 3),
        (load(600, jobs=3, busy=2), 5),
        # Workers that have jobs are left to them.
        (load(0, jobs=0, busy=7), 7),
        # 300 s of work in 45 − 30 s.
        (load(300, slack_s=45), 20),
        (load(300, slack_s=75), 7),
        (load(300, slack_s=1000), 5),
        # A worker that starts now would come too late.
        (load(300, slack_s=30), 5),
        (load(300, slack_s=-5), 5),
        # Nobody knows how long it takes.
        (load(None, busy=1), 4),
    ],
)
def test_workers_that_are_wanted(given, count):
    assert wanted(given, current=4, least=1, most=20, aim=AIM) == count


def test_more_work_never_wants_fewer_and_the_bounds_hold():
    rng = random.Random(3)
    for _ in range(500):
        least = rng.randint(1, 5)
        most = least + rng.randint(0, 20)
        jobs, busy, slack = rng.randint(0, 50), rng.randint(0, 30), rng.choice([None, rng.uniform(-100, 200)])
        counts = [wanted(Load(jobs, 50.0 * k, slack, busy), 3, least, most, AIM) for k in range(40)]
        assert all(a <= b for a, b in pairwise(counts))
        assert least <= counts[0] <= counts[-1] <= most


def test_seconds_are_by_the_mean_pace_of_those_that_have_one():
    assert backlog_seconds(1000, [10, 30]) == 50
    assert backlog_seconds(1000, []) is None
    assert backlog_seconds(0, []) == 0


def test_more_come_at_once_and_fewer_when_fewer_were_enough_for_a_while():
    count, quiet = 4, None
    heard = []
    # At 100 s one more is wanted for a moment, which begins the time anew; at 250 s two would have been needed.
    for now in range(0, 500, 50):
        want = {100: 5, 250: 2}.get(now, 1)
        count, quiet = settled(want, count, quiet, now, AIM)
        heard.append(count)
    assert heard == [4, 4, 5, 5, 5, 5, 5, 5, 5, 2]
    assert quiet is None
    assert settled(1, 2, None, 500, AIM) == (2, Quiet(500, 1))


@dataclass
class Point:
    timestamp: float
    value: float


@dataclass
class Context:
    """What Ray Serve tells a policy."""

    raw_metrics: dict
    current_time: float
    target_num_replicas: int = 2
    policy_state: dict = field(default_factory=dict)
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 8


def told(**replicas):
    """Metrics as replicas told them: name → times and loads."""
    metrics = {}
    for replica, points in replicas.items():
        for at, given in points:
            for name, value in metrics_of(given).items():
                metrics.setdefault(name, {}).setdefault(replica, []).append(Point(at, value))
    return metrics


def test_the_policy_goes_by_what_was_told_last_and_remembers():
    policy = BacklogPolicy(60, 30, 300)
    # The deadline of an earlier moment counts no more.
    metrics = told(one=[(1, load(6000, slack_s=40)), (9, load(200))], two=[(5, load(6000))])
    assert policy(Context(metrics, 10)) == (4, {})
    quiet = told(one=[(11, load(0, jobs=0))])
    count, state = policy(Context(quiet, 12, 4))
    assert (count, state) == (4, {"since": 12, "peak": 1})
    later = told(one=[(311, load(0, jobs=0))])
    assert policy(Context(later, 312, 4, state)) == (1, {})


def test_the_policy_leaves_all_as_it_is_where_nothing_is_told():
    policy = BacklogPolicy(60, 30, 300)
    state = {"since": 3, "peak": 1}
    assert policy(Context({}, 100, 5, state)) == (5, state)
    assert policy(Context(told(one=[(10, load(6000))]), 100, 5, state)) == (5, state)
