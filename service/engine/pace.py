"""When each job is due: what keeps sharing from harming those who share.

A batch is cheaper than its rows one by one, but each of its steps takes longer: a short job that steps with a crowd may
wait many times what it would take alone. So every job has a due time,

    due = t + stretch · (F − t),

where t is when it came and F is when strict first come, first served would have finished it, every job alone on the
device with its own rows; and the running set grows only while all in it can still be in time. Under light load that
keeps batches small and answers quick. Under heavy load F lies far ahead, and batches grow as large as they may.

Among equals that come together nobody is first. n equal jobs of length c share the device for n · c ÷ (what sharing
gains) and are all done then; that is long before n · c, when first come, first served is done with the last of them,
but may be late for the first, whose F is c. Which of them is the first is chance; so to one another, and to nobody
else, they are due when the last of them would be:

    due to its equals = F + m · c + c ÷ 2,

where c is its length and m how many equals came together with it, but after it. Two jobs

    are equal       if they ask the same models at the same sample shapes with the same priority, and the longer one is
                    at most 5 ÷ 4 as long as the shorter one;
    came together   if the later one came before half the length of the shorter one had passed.

A length is what all steps of a job take alone, as foreseen. The last term, c ÷ 2, is by how much the last may be later.
Of another caller no more equals count than the job's own caller has among them: callers are served in turn, so that
more could not have run before it.

So a job is done by the later of its two due times, and the second needs equals. For the sake of any other job, be it
longer, shorter, of other models or later, the batch that it is in never grows beyond the first. No job can pass for
another's equal by what it says of itself, since it is its foreseen length that counts; an equal counts for as long as
the job that it delays; and many jobs of one caller delay the single job of another as one of them would.

Time is counted in steps as they were foreseen: on a machine that is slower for a while, first come, first served would
be slower too. What a step takes is learned from the steps taken; before anything is known of a model, its jobs are not
due, and they are counted as soon as it is. A job of an unknown model waits for those who are due, but not for those
that were unknown themselves when they came.
"""

import math
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
# Equals come together within so much of their length, and the longer is at most so many times as long as the shorter.
_TOGETHER: Final = 0.5
_EQUAL: Final = 1.25


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

    @property
    def caller(self) -> str:
        """Who asked."""
        ...


P = TypeVar("P", bound=Paced)


@dataclass(eq=False, slots=True)
class _Arrival:
    """A job as it came; without the job itself, since its equals remember it when it is done.

    Attributes:
        parts: Network rows of each of its steps.
        priority: 0 to 9.
        caller: Who asked.
        came: When.
        steps: How many it had to take.
        unforeseen: Whether it was placed only after a step was taken.
        served: F, when strict first come, first served would be done with it; infinite while costs are unknown.
        earlier: Its equals that came together with it, but before it; also those that are done.
        later: Those that came after it.
    """

    parts: Parts
    priority: int
    caller: str
    came: float
    steps: int
    unforeseen: bool = False
    served: float = math.inf
    earlier: "set[_Arrival]" = field(default_factory=set)
    later: "set[_Arrival]" = field(default_factory=set)

    @property
    def overtaken(self) -> int:
        """How many equals that came after it could run before it if callers were served in turn."""
        if not self.later:
            return 0
        before, after = (Counter(other.caller for other in group) for group in (self.earlier, self.later))
        own = 1 + before[self.caller] + after[self.caller]
        return sum(max(0, min(before[caller] + count, own) - before[caller]) for caller, count in after.items())


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
        # Those that wait or run, in order of arrival; and of them those of whose models nothing is known yet.
        self._arrivals: dict[Paced, _Arrival] = {}
        self._unknown: list[_Arrival] = []

    def came(self, job: Paced, *, first: bool) -> None:
        """A job comes now.

        Args:
            job: To be told in order of arrival.
            first: Whether nobody else is there.
        """
        if first:
            self._alone_until = self._now
        arrival = _Arrival(job.parts, job.priority, job.caller, self._now, job.left)
        self._arrivals[job] = arrival
        if not self._place(arrival):
            self._unknown.append(arrival)

    def gone(self, job: Paced) -> None:
        """A job goes before it is done: those who come after it no longer have it before them."""
        left = (self._costs.seconds(job.parts) or 0.0) * job.left
        self._alone_until = max(self._now, self._alone_until - left)
        arrival = self._arrivals[job]
        for other in arrival.earlier | arrival.later:
            other.earlier.discard(arrival)
            other.later.discard(arrival)
        self.done(job)

    def done(self, job: Paced) -> None:
        """A job neither waits nor runs any more."""
        arrival = self._arrivals.pop(job, None)
        if arrival is None:
            return
        if arrival in self._unknown:
            self._unknown.remove(arrival)
        # Or each would keep those before it, and those theirs, without end.
        arrival.earlier.clear()
        arrival.later.clear()

    def due(self, job: Paced) -> float:
        """When a job that waits or runs is due to those who are not its equals; infinite while costs are unknown."""
        arrival = self._arrivals[job]
        return arrival.came + _AIM * self._stretch * (arrival.served - arrival.came)

    def due_to_equals(self, job: Paced) -> float:
        """When it is due to its equals that came together with it; never before it is due to others."""
        arrival = self._arrivals[job]
        if not (arrival.earlier or arrival.later):
            return self.due(job)
        length = self._length(arrival) or 0.0
        return max(self.due(job), arrival.served + (arrival.overtaken + _TOGETHER) * length)

    def may_join(self, job: Paced, running: Sequence[Paced]) -> bool:
        """Whether all who run can still be in time if a job joins them.

        Those whom it outranks do not hold it up. Who is late already is granted steps that take ``stretch`` times its
        own, so that a wrong estimate cannot keep the device from everybody else.

        Args:
            job: Who would join; it came, as those who run did.
            running: The jobs that run.
        """
        arrival = self._arrivals[job]
        if self._stretch == math.inf:
            return True
        held = {
            other: self.due_to_equals(other) if its in arrival.earlier or its in arrival.later else self.due(other)
            for other, its in ((other, self._arrivals[other]) for other in running)
            if other.priority >= job.priority
            and its.served < math.inf
            # Who came before anything was learned holds up nobody who is still unknown: both would have begun at once.
            and not (its.unforeseen and arrival.served == math.inf)
        }
        if not held:
            return True
        groups = connected([job, *running])
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
        if self._unknown:
            for arrival in self._unknown:
                arrival.unforeseen = True
            self._unknown = [arrival for arrival in self._unknown if not self._place(arrival)]

    def _place(self, arrival: _Arrival) -> bool:
        """Put a job behind all that came before it, and among its equals; False while its costs are unknown."""
        length = self._length(arrival)
        if length is None:
            return False
        self._alone_until = arrival.served = max(self._alone_until, arrival.came) + length
        for other in reversed(self._arrivals.values()):
            if arrival.came - other.came > _TOGETHER * length:
                break  # all others came earlier still
            if other is not arrival and other.came <= arrival.came and self._equal(other, arrival):
                arrival.earlier.add(other)
                other.later.add(arrival)
        return True

    def _equal(self, earlier: _Arrival, later: _Arrival) -> bool:
        """Whether two jobs are equal and came together."""
        if earlier.served == math.inf or earlier.priority != later.priority:
            return False
        if earlier.parts.keys() != later.parts.keys():
            return False
        shorter, longer = sorted((self._length(earlier) or 0.0, self._length(later) or 0.0))
        return longer <= _EQUAL * shorter and later.came - earlier.came <= _TOGETHER * shorter

    def _length(self, arrival: _Arrival) -> float | None:
        """What all steps that a job had to take when it came would take alone; None while unknown."""
        step = self._costs.seconds(arrival.parts)
        return None if step is None else step * arrival.steps

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
