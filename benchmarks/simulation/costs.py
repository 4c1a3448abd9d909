"""What steps and calls to the store take. All times are in seconds."""

from bisect import bisect
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of a step by its rows: lines between measured points, the last line goes on.

    Attributes:
        points: (rows, seconds), rows ascending and above 0.
    """

    points: tuple[tuple[int, float], ...]

    def seconds(self, rows: int) -> float:
        """What a step of so many rows of one model takes; nothing for no rows."""
        if not rows:
            return 0.0
        points = self.points
        if len(points) == 1 or rows <= points[0][0]:
            # Fewer rows than were measured take no less: the overhead of a call is in both.
            return points[0][1] if rows <= points[0][0] else points[0][1] * rows / points[0][0]
        place = min(bisect(points, (rows, 0.0)), len(points) - 1)
        (r0, t0), (r1, t1) = points[place - 1], points[place]
        return t0 + (t1 - t0) * (rows - r0) / (r1 - r0)

    def table(self, most: int) -> list[float]:
        """The seconds of 0, 1, … up to so many rows."""
        return [self.seconds(rows) for rows in range(most + 1)]

    def best(self, most: int) -> float:
        """Seconds of a row in the cheapest batch of at most so many rows."""
        return min(self.seconds(rows) / rows for rows in range(1, most + 1))


@dataclass(frozen=True, slots=True)
class Device:
    """A worker's device.

    Attributes:
        step: A step of one model, by its rows.
        decode_s: Decoding a picture.
        load_s: Loading a model; the device does nothing else meanwhile.
        rows: Network rows that may run at once.
        models: Models that it can hold at once.
    """

    step: Curve
    decode_s: float = 0.0
    load_s: float = 0.0
    rows: int = 96
    models: int = 3


@dataclass(frozen=True, slots=True)
class Call:
    """A call to the store.

    Attributes:
        seconds: How long it takes when the store has nothing else to do.
        busy_s: How long of that a core of the store works.
    """

    seconds: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: "Call") -> "Call":
        """Both, as one call."""
        return Call(self.seconds + other.seconds, self.busy_s + other.busy_s)

    def __mul__(self, times: float) -> "Call":
        """So many of it, as one call."""
        return Call(self.seconds * times, self.busy_s * times)


@dataclass(frozen=True, slots=True)
class StoreCosts:
    """What the store takes.

    Attributes:
        add: Accepting a job.
        claim: A claim that finds nothing.
        claimed: Each job that a claim takes, besides.
        waiting: Each job that waits while a claim is made, besides.
        start: Noting that a job runs.
        finish: Ending a job.
        renew: A heartbeat.
        renewed: Each lease that it renews, besides.
        notify_s: From a ring to those who hear it.
        cores: How many calls the store works on at the same time.
    """

    add: Call = field(default_factory=Call)
    claim: Call = field(default_factory=Call)
    claimed: Call = field(default_factory=Call)
    waiting: Call = field(default_factory=Call)
    start: Call = field(default_factory=Call)
    finish: Call = field(default_factory=Call)
    renew: Call = field(default_factory=Call)
    renewed: Call = field(default_factory=Call)
    notify_s: float = 0.0
    cores: int = 4

    @property
    def job_busy_s(self) -> float:
        """Seconds of a core of the store for one job that is claimed alone at the first try."""
        calls = self.add, self.claim, self.claimed, self.start, self.finish
        return sum(call.busy_s for call in calls)


@dataclass(frozen=True, slots=True)
class Policy:
    """How workers claim.

    Attributes:
        together: Jobs that one claim may take.
        patience_s: A job whose models a worker has not loaded is left to others until it has waited so long; infinite
            for always.
        mixed_s: A job whose models it has loaded, but does not compute with at the moment, is left to others until it
            has waited so long; not where it does nothing.
        spread_s: After a ring a worker claims at a random moment within so many seconds.
        defer_s: A worker with a full batch would wait so long before each claim, one with half a batch half of it.
        poll_s: Seconds until it asks without a ring.
        beat_s: Seconds between two heartbeats.
        ring_finished: Whether workers are rung also where a job ended.
    """

    together: int = 1
    patience_s: float = 0.0
    mixed_s: float = 0.0
    spread_s: float = 0.0
    defer_s: float = 0.0
    poll_s: float = 2.0
    beat_s: float = 10.0
    ring_finished: bool = True
