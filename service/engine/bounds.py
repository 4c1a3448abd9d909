"""What bounds the executor: conditions kept, rows in one forward, steps queued on an accelerator."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

import torch

_RECOVERY_TICKS: Final = 64

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LeastRecentlyUsed(Generic[K, V]):
    """A bounded cache that forgets what was not asked for longest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        """Whether the key is held."""
        return key in self._held

    def get(self, key: K, make: Callable[[], V]) -> V:
        """What is held under the key, made now if there is nothing."""
        if key in self._held:
            self._held.move_to_end(key)
        else:
            self._held[key] = make()
            if len(self._held) > self._size:
                self._held.popitem(last=False)
        return self._held[key]


class RowBudget:
    """How many rows one forward may take: halved when memory runs out, doubled back when it has not for a while."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._quiet = 0
        self.rows = limit

    def shrink(self, tried: int) -> bool:
        """Halve after ``tried`` rows were too many; False where one row was."""
        if min(tried, self.rows) <= 1:
            return False
        self.rows, self._quiet = max(1, min(tried, self.rows) // 2), 0
        return True

    def went_well(self) -> None:
        """Count a tick without trouble."""
        self._quiet += 1
        if self._quiet >= _RECOVERY_TICKS and self.rows < self._limit:
            self.rows, self._quiet = min(self._limit, 2 * self.rows), 0


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Event(Protocol):
    """A mark in an accelerator's queue."""

    def record(self) -> None:
        """Set it behind all that is queued."""
        ...

    def synchronize(self) -> None:
        """Wait until all before it is done."""
        ...


class RunAhead:
    """Keeps an accelerator's queue short: one step is computed while the next is queued, and no more.

    The host reads nothing back, so without a bound it would queue all of a job's steps at once: a cancelled job's rows
    would not be free, and a new job not begin, until the device had worked them off, and step times would be those of
    queueing. Where other models take their turn, the host waits for their step itself: its time is theirs alone.

    Args:
        mark: Makes a mark on a device.
    """

    def __init__(self, mark: Callable[[torch.device], Event] = torch.Event) -> None:
        self._mark = mark
        self._marks: dict[torch.device, deque[Event]] = {}
        self._latest: dict[torch.device, Hashable] = {}

    def queued(self, device: torch.device, what: Hashable) -> None:
        """A step was queued: wait until the one before it is done. On the CPU steps are done when they return.

        Args:
            device: Where.
            what: The models that step.
        """
        if device.type == "cpu":
            return
        marks = self._marks.setdefault(device, deque())
        marks.append(self._mark(device))
        marks[-1].record()
        alike, self._latest[device] = self._latest.get(device) == what, what
        while len(marks) > alike:
            marks.popleft().synchronize()
