"""When each job is due: what keeps sharing from harming those who share.

A batch is cheaper than its rows one by one, but each of its steps takes longer: a short job that steps with a crowd may
wait many times what it would take alone. So every job has a due time,

    due = t + stretch · (F − t),

where t is when it came and F is when strict first come, first served would have finished it, every job alone on the
device with its own rows; and the running set grows only while all in it can still be in time. Under light load that
keeps batches small and answers quick. Under heavy load F lies far ahead, and batches grow as large as they may.

Time is counted in steps as they were foreseen: on a machine that is slower for a while, first come, first served would
be slower too. What a step takes is learned from the steps taken; before anything is known, nothing is due.
"""

import math
from bisect import bisect
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final, Protocol

Parts = Mapping[Hashable, int]
"""Network rows of one step, by what computes them: rows of different networks, or of samples of other shapes, cost
differently."""

_DRIFTING: Final = 0.5
# What a point is the mean of, in whole steps: what came before fades.
_SEEN_AT_MOST: Final = 5.0
_SHORTEST_S: Final = 1e-6
# A step that took so many times what was foreseen met something else (a first call, a busy machine): it counts as this.
_OUTLIER: Final = 4.0


class _Curve:
    """Seconds of a step by its rows: a smoothed point for every doubling of the rows, and lines between them.

    Points stay, so that a long time at one size does not wipe out what is known of the others.
    """

    def __init__(self) -> None:
        # By the doubling: rows, seconds, and how much was observed.
        self._points: dict[int, tuple[float, float, float]] = {}
        self._sorted: list[tuple[float, float]] = []

    def learn(self, rows: int, seconds: float, share: float) -> None:
        """One more observation.

        Args:
            rows: How many.
            seconds: What they took.
            share: Of the step's time that is theirs: the less, the less is known of them by it.
        """
        size = rows.bit_length()
        old_rows, old_seconds, seen = self._points.get(size, (float(rows), seconds, 0.0))
        seen = min(seen + share, _SEEN_AT_MOST)
        gain = share / seen
        self._points[size] = old_rows + gain * (rows - old_rows), old_seconds + gain * (seconds - old_seconds), seen
        self._sorted = sorted((r, t) for r, t, _ in self._points.values())

    def seconds(self, rows: int) -> float:
        """What so many rows take.

        While one size alone was seen, in proportion to the rows: a larger batch is taken for dearer than it is, and one
        is soon tried.
        """
        points = self._sorted
        place = min(max(1, bisect(points, (float(rows), math.inf))), len(points) - 1)
        (r0, t0), (r1, t1) = points[place - 1], points[place]
        if len(points) == 1:
            return t0 * rows / r0
        on_line = t0 + (t1 - t0) * (rows - r0) / (r1 - r0)
        # Beyond the ends, what is known of the nearest point bounds the line.
        return max(on_line, t1) if rows > r1 else max(on_line, t0 * min(1.0, rows / r0))


class StepCosts:
    """What steps take, learned as they are taken."""

    def __init__(self) -> None:
        self._curves: dict[Hashable, _Curve] = {}
        # How much longer all steps take at present than the curves have it: machines have slower hours.
        self._drift = 1.0

    def seconds(self, parts: Parts) -> float | None:
        """What one step of these rows takes, up to a factor common to all; None while that of some part is unknown."""
        if any(part not in self._curves for part in parts):
            return None
        return sum(self._curves[part].seconds(rows) for part, rows in parts.items())

    def learn(self, parts: Parts, seconds: float) -> None:
        """Learn from a step taken.

        Its time is shared out among the parts as they were foreseen; what is left belongs to those not seen before.
        """
        foreseen = {part: self._curves[part].seconds(rows) for part, rows in parts.items() if part in self._curves}
        known = sum(foreseen.values())
        fresh = sum(rows for part, rows in parts.items() if part not in foreseen)
        seconds = max(seconds, _SHORTEST_S) / self._drift
        if not fresh:
            ratio = min(seconds / known, _OUTLIER)
            self._drift *= ratio**_DRIFTING
            seconds = known * ratio ** (1 - _DRIFTING)
        for part, rows in parts.items():
            if part not in foreseen:
                own = max(_SHORTEST_S, seconds - known) * rows / fresh
            else:
                own = foreseen[part] if fresh else seconds * foreseen[part] / known
            self._curves.setdefault(part, _Curve()).learn(rows, own, min(1.0, own / seconds))


class Paced(Protocol):
    """What the pace knows of a job."""

    @property
    def parts(self) -> Parts:
        """Network rows of each of its steps."""
        ...

    @property
    def left(self) -> int:
        """Steps still to take."""
        ...

    @property
    def priority(self) -> int:
        """0 to 9; higher runs earlier."""
        ...


class Pace:
    """Due times, and whether one more job may join those that run. Not thread-safe: the engine holds its lock.

    Args:
        stretch: How many times as long as by first come, first served a job may be made to wait; infinite for no bound.
    """

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._costs = StepCosts()
        self._now = 0.0
        # When first come, first served would be done with all that came so far.
        self._alone_until = 0.0

    def due(self, job: Paced, *, first: bool) -> float:
        """When a job that comes now is due; infinite while costs are unknown.

        Args:
            job: To be asked for once, in order of arrival.
            first: Whether nobody else is there.
        """
        step = self._costs.seconds(job.parts)
        if step is None:
            return math.inf
        self._alone_until = (self._now if first else max(self._alone_until, self._now)) + step * job.left
        return self._now + self._stretch * (self._alone_until - self._now)

    def may_join(self, job: Paced, running: Sequence[tuple[Paced, float]]) -> bool:
        """Whether all who run can still be in time if a job joins them.

        Those whom it outranks do not hold it up. Who is late already is granted steps that take ``stretch`` times its
        own, so that a wrong estimate cannot keep the device from everybody else.

        Args:
            job: Who would join.
            running: The jobs that run, each with its due time.
        """
        held = [(other, due) for other, due in running if other.priority >= job.priority and due < math.inf]
        together = self._costs.seconds(joined([job, *(other for other, _ in running)])) if held else None
        return together is None or all(together <= self._granted(other, due) for other, due in held)

    def took(self, jobs: Iterable[Paced], seconds: float) -> None:
        """Count a joint step of these jobs, and learn from it."""
        parts = joined(jobs)
        self._costs.learn(parts, seconds)
        self._now += self._costs.seconds(parts) or 0.0

    def _granted(self, job: Paced, due: float) -> float:
        """How long each of a job's steps may take."""
        own = self._costs.seconds(job.parts) or 0.0
        return max((due - self._now) / max(1, job.left), self._stretch * own)


def joined(jobs: Iterable[Paced]) -> dict[Hashable, int]:
    """The rows of one step of several jobs together."""
    total: dict[Hashable, int] = {}
    for job in jobs:
        for part, rows in job.parts.items():
            total[part] = total.get(part, 0) + rows
    return total
