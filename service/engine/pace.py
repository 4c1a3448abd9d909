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
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

Part = tuple[str, tuple[int, ...]]
"""What computes a row: a model, at a sample shape."""

Parts = Mapping[Part, int]
"""Network rows of one step, by what computes them."""

# What a point is the mean of, in whole steps: what came before fades.
_SEEN_AT_MOST: Final = 50.0
# From how many on the machine's own pace is judged by it, how fast that moves, and for how much of a step a first one
# counts.
_WELL_SEEN: Final = 1.0
_DRIFTING: Final = 0.3
_FIRST: Final = 0.1
_SHORTEST_S: Final = 1e-6
# A step that took so many times what was foreseen, or so little, met something else (a busy machine, a failure): it
# counts as this.
_OUTLIER: Final = 4.0
_CURVES: Final = 256
# How much dearer a row of a large batch may be taken for than one of a small batch.
_DEARER: Final = 1.25
# Due times aim at so much of the stretch: a job joins where its step is taken for shorter than it is, sooner than where
# for longer, and costs are known to a tenth or so. On simulated devices whose steps vary by a tenth, jobs then wait 1.8
# times as long as first come, first served at worst where 2 is asked for.
_AIM: Final = 0.8


class _Curve:
    """Seconds of a step by its rows: a smoothed point for every doubling of the rows, and lines between them.

    Points stay, so that a long time at one size does not wipe out what is known of the others.
    """

    def __init__(self) -> None:
        # By the doubling: rows, seconds, and how much was observed.
        self._points: dict[int, tuple[float, float, float]] = {}
        self._sorted: list[tuple[float, float]] = []

    def learn(self, rows: int, seconds: float, share: float) -> None:
        """One more observation. The first of a size counts little once there is a second: first calls take longer.

        Args:
            rows: How many.
            seconds: What they took.
            share: Of the step's time that is theirs: the less, the less is known of them by it.
        """
        size = rows.bit_length()
        if size in self._points:
            old_rows, old_seconds, seen = self._points[size]
            seen = min(seen + share, _SEEN_AT_MOST)
            gain = share / seen
            self._points[size] = old_rows + gain * (rows - old_rows), old_seconds + gain * (seconds - old_seconds), seen
        else:
            self._points[size] = float(rows), seconds, _FIRST * share
        self._sorted = sorted((r, t) for r, t, _ in self._points.values())

    def knows(self, rows: int) -> bool:
        """Whether enough steps of about this size were seen to judge others by it."""
        return self._points.get(rows.bit_length(), (0.0, 0.0, 0.0))[2] >= _WELL_SEEN

    def seconds(self, rows: int) -> float:
        """What so many rows take.

        No more by the row than smaller sizes take, but for a little: a large size that was seen at a bad moment would
        else not be tried again.
        """
        smaller = [seconds / seen for seen, seconds in self._sorted if seen <= rows]
        most = _DEARER * min(smaller) * rows if smaller else math.inf
        return min(most, self._on_points(rows))

    def _on_points(self, rows: int) -> float:
        """By the line between the two points next to it.

        While one size alone was seen, in proportion to the rows: a larger batch is taken for dearer than it is, and one
        is soon tried.
        """
        points = self._sorted
        (first_rows, first), (last_rows, last) = points[0], points[-1]
        if len(points) == 1:
            return first * rows / first_rows
        # Beyond what was seen, by the slope of the whole: neighbours may lie so close that theirs is noise.
        slope = max(0.0, (last - first) / (last_rows - first_rows))
        if rows >= last_rows:
            return last + slope * (rows - last_rows)
        if rows <= first_rows:
            return max(first * rows / first_rows, first - slope * (first_rows - rows))
        place = bisect(points, (float(rows), math.inf))
        (r0, t0), (r1, t1) = points[place - 1], points[place]
        return t0 + (t1 - t0) * (rows - r0) / (r1 - r0)


class StepCosts:
    """What steps take, learned as they are taken."""

    def __init__(self) -> None:
        # The longest not learned of first; bounded, since shapes are the callers' choice.
        self._curves: dict[Part, _Curve] = {}
        # How much longer all steps take at present than the curves have it: machines have slower hours. It moves faster
        # than well-known points, or what is the machine's would be taken for one size's.
        self._drift = 1.0

    def seconds(self, parts: Parts) -> float | None:
        """What one step of these rows takes, up to a factor common to all; None while nothing is known of some model.

        A shape that its model was never seen at is taken to cost, by its size, what another does.
        """
        each = [self._seconds(part, rows) for part, rows in parts.items()]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def learn(self, parts: Parts, seconds: float) -> None:
        """Learn from a step taken.

        Its time is shared out among the parts as they were foreseen. Those not seen before get at least the share of
        their rows: what was foreseen of the others may be too much.
        """
        foreseen = {part: self._curves[part].seconds(rows) for part, rows in parts.items() if part in self._curves}
        known, total = sum(foreseen.values()), sum(parts.values())
        fresh = sum(rows for part, rows in parts.items() if part not in foreseen)
        seconds = max(seconds, _SHORTEST_S) / self._drift
        left = max(seconds - known, seconds * fresh / total) if fresh else 0.0
        if not fresh:
            seconds = max(known / _OUTLIER, min(seconds, known * _OUTLIER))
            if all(self._curves[part].knows(rows) for part, rows in parts.items()):
                self._drift *= (seconds / known) ** _DRIFTING
        for part, rows in parts.items():
            own = (seconds - left) * foreseen[part] / known if part in foreseen else left * rows / fresh
            curve = self._curves.pop(part, None) or _Curve()
            curve.learn(rows, own, own / seconds)
            self._curves[part] = curve
        while len(self._curves) > _CURVES:
            del self._curves[next(iter(self._curves))]

    def _seconds(self, part: Part, rows: int) -> float | None:
        if part in self._curves:
            return self._curves[part].seconds(rows)
        model, shape = part
        for (other, seen), curve in reversed(self._curves.items()):
            if other == model:
                return curve.seconds(rows) * math.prod(shape) / math.prod(seen)
        return None


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


P = TypeVar("P", bound=Paced)


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
        return self._now + _AIM * self._stretch * (self._alone_until - self._now)

    def give_back(self, job: Paced) -> None:
        """A job goes before it is done: those who come after it no longer have it before them."""
        left = (self._costs.seconds(job.parts) or 0.0) * job.left
        self._alone_until = max(self._now, self._alone_until - left)

    def may_join(self, job: Paced, running: Sequence[tuple[Paced, float]]) -> bool:
        """Whether all who run can still be in time if a job joins them.

        Those whom it outranks do not hold it up. Who is late already is granted steps that take ``stretch`` times its
        own, so that a wrong estimate cannot keep the device from everybody else.

        Args:
            job: Who would join.
            running: The jobs that run, each with its due time.
        """
        held = {other: due for other, due in running if other.priority >= job.priority and due < math.inf}
        if not held:
            return True
        groups = connected([job, *(other for other, _ in running)])
        for _, group in groups:
            together = self._costs.seconds(joined(group))
            if together is None:
                return False
            # Groups take turns by time: where there are several, each has that share of the device.
            round_s, margin = together * len(groups), _AIM if len(groups) == 1 else 1.0
            if any(other in held and round_s > self._granted(other, held[other], margin) for other in group):
                return False
        return True

    def took(self, jobs: Iterable[Paced], seconds: float) -> None:
        """Count a joint step of these jobs, and learn from it."""
        parts = joined(jobs)
        self._costs.learn(parts, seconds)
        self._now += self._costs.seconds(parts) or 0.0

    def _granted(self, job: Paced, due: float, margin: float) -> float:
        """How long each of a job's steps may take."""
        own = self._costs.seconds(job.parts) or 0.0
        return max((due - self._now) / max(1, job.left), margin * self._stretch * own)


def joined(jobs: Iterable[Paced]) -> dict[Part, int]:
    """The rows of one step of several jobs together."""
    total: dict[Part, int] = {}
    for job in jobs:
        for part, rows in job.parts.items():
            total[part] = total.get(part, 0) + rows
    return total


def connected(jobs: Iterable[P]) -> list[tuple[set[str], list[P]]]:
    """Jobs grouped so that groups have no model in common; each with its models."""
    groups: list[tuple[set[str], list[P]]] = []
    for job in jobs:
        models = {model for model, _ in job.parts}
        members = [job]
        apart = []
        for others in groups:
            if others[0] & models:
                models |= others[0]
                members = [*others[1], *members]
            else:
                apart.append(others)
        groups = [*apart, (models, members)]
    return groups
