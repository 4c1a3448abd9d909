"""How many workers the work that waits is worth; for any autoscaler.

Requests say little: one may cost a thousand times as much as another. What counts is the work that waits, in seconds
of one worker, and how soon it must be done.

Nothing of this package is imported here: Ray's controller gets this module as data and runs it without the package.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

JOBS = "jobs"
SECONDS = "backlog_seconds"
SLACK = "slack_s"
BUSY = "busy"
# What was told longer ago says nothing of now.
_STALE_S = 60.0


@dataclass(frozen=True)
class Load:
    """What waits, and who works.

    Attributes:
        jobs: Jobs that no worker has.
        seconds: Seconds of one worker that they take; None where no worker's pace is known.
        slack_s: Seconds until the first of them is worthless, below 0 for one that is late; None for never.
        busy: Workers that have jobs.
    """

    jobs: int
    seconds: float | None
    slack_s: float | None
    busy: int


@dataclass(frozen=True)
class Aim:
    """What the workers' number is to achieve, in seconds.

    Attributes:
        target_s: In how many seconds what waits is to be done.
        start_s: How long a new worker takes until it computes.
        settle_s: How long fewer workers must be enough before there are fewer.
    """

    target_s: float = 60.0
    start_s: float = 30.0
    settle_s: float = 300.0


@dataclass(frozen=True)
class Quiet:
    """A time in which fewer workers would have been enough.

    Attributes:
        since: When it began, in Unix time.
        peak: The most that were wanted in it.
    """

    since: float
    peak: int


def backlog_seconds(work: float, rates: Sequence[float]) -> float | None:
    """work ÷ mean rate: seconds of one worker at the workers' mean pace; None where that is not known.

    Args:
        work: Network rows that wait, over all steps.
        rates: Network rows a second, of each worker whose pace is known.
    """
    if not work:
        return 0.0
    return work * len(rates) / sum(rates) if rates else None


def wanted(load: Load, current: int, least: int, most: int, aim: Aim) -> int:
    """⌈seconds ÷ budget⌉ workers, where budget is ``target_s``, or what is left until the first deadline.

    A deadline that comes before a new worker could compute is passed over: more workers would not help. There are never
    more than one a job, as no two share one, and never fewer than have jobs: those would have to move.

    Args:
        load: What waits, and who works.
        current: How many workers there are; as many are wanted while their pace is not known.
        least: The fewest that are allowed.
        most: The most.
        aim: What is to be achieved.
    """
    budget = aim.target_s
    if load.slack_s is not None and load.slack_s > aim.start_s:
        budget = min(budget, load.slack_s - aim.start_s)
    need = max(current, 1) if load.seconds is None else math.ceil(load.seconds / budget)
    need = min(max(need, load.busy), load.busy + load.jobs)
    return min(max(need, least), most)


def settled(want: int, current: int, quiet: Quiet | None, now: float, aim: Aim) -> tuple[int, Quiet | None]:
    """How many workers there shall be: more at once, fewer only after fewer were enough for ``settle_s``.

    Args:
        want: How many are wanted now.
        current: How many there are.
        quiet: Since when fewer would have been enough, as this told the last time.
        now: Unix time.
        aim: What is to be achieved.
    """
    if want >= current:
        return want, None
    quiet = Quiet(now, want) if quiet is None else Quiet(quiet.since, max(quiet.peak, want))
    if now - quiet.since < aim.settle_s:
        return current, quiet
    return min(quiet.peak, current), None


class Context(Protocol):
    """What Ray Serve tells a policy: the part of ``ray.serve.config.AutoscalingContext`` that is used here."""

    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    current_time: float
    policy_state: dict[str, Any]

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[Any]]]:
        """What replicas told, by the metric's name and the replica: values with their Unix times."""
        ...


class BacklogPolicy:
    """A policy of Ray Serve: as many replicas as :func:`settled` says, by what workers told last.

    Where nothing was told lately, as many as there are.

    Args:
        target_s: See :class:`Aim`.
        start_s: Likewise.
        settle_s: Likewise.
    """

    def __init__(self, target_s: float, start_s: float, settle_s: float) -> None:
        self._aim = Aim(target_s, start_s, settle_s)

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """How many replicas there shall be, and what to remember."""
        current, now = context.target_num_replicas, context.current_time
        load = _told(context.raw_metrics, now)
        if load is None:
            return current, context.policy_state
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        want = wanted(load, current, least, most, self._aim)
        since, peak = context.policy_state.get("since"), context.policy_state.get("peak", 0)
        quiet = None if since is None else Quiet(since, peak)
        count, quiet = settled(want, current, quiet, now, self._aim)
        return count, {} if quiet is None else {"since": quiet.since, "peak": quiet.peak}


def metrics_of(load: Load) -> dict[str, float]:
    """A load as a worker tells it to Ray Serve; what is not known is left out."""
    told = {JOBS: load.jobs, SECONDS: load.seconds, SLACK: load.slack_s, BUSY: load.busy}
    return {name: float(value) for name, value in told.items() if value is not None}


def _told(metrics: Mapping[str, Mapping[Any, Sequence[Any]]], now: float) -> Load | None:
    """The load that was told last; None where that was long ago."""
    newest = max(
        ((series[-1].timestamp, replica) for replica, series in metrics.get(JOBS, {}).items() if series),
        key=lambda each: each[0],
        default=None,
    )
    if newest is None or now - newest[0] > _STALE_S:
        return None
    at, replica = newest

    def value(name: str) -> float | None:
        points = metrics.get(name, {}).get(replica, ())
        return next((each.value for each in reversed(points) if each.timestamp == at), None)

    return Load(int(value(JOBS) or 0), value(SECONDS), value(SLACK), int(value(BUSY) or 0))
