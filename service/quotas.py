"""How much of its allowance a caller has left, and when there will be more.

Requests are counted over the minute that just passed, in memory: each process counts its own. Pixel-steps are counted
over a day that begins with the first of them (a sliding day would have to remember every job), in the database: a
restart forgets none, and processes that share it count together.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from pipelines.errors import InvalidInputError
from pipelines.plan import Plan
from service.callers import Caller
from service.store.port import Spent, StoreError, Usage
from service.store.usage import DAY_S, MemoryUsage

_LOG: Final = logging.getLogger(__name__)
REQUESTS: Final = "requests"
PIXEL_STEPS: Final = "pixel-steps"
JOBS: Final = "concurrent-jobs"


class QuotaError(Exception):
    """A caller has asked for as much as it may for now.

    Attributes:
        retry_after_s: When it may ask again.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Standing:
    """How a caller stands with one of its limits.

    Attributes:
        name: Of the limit.
        quota: What it allows.
        left: How much of it is left.
        window_s: The time that it counts over; None for what is had at once.
        reset_s: Seconds until there is more; None where that is not known.
    """

    name: str
    quota: int
    left: int
    window_s: int | None = None
    reset_s: int | None = None


def pixel_steps(plan: Plan) -> int:
    """What a request comes to: width × height × network rows over all steps."""
    return plan.width * plan.height * plan.work


class Quotas:
    """What callers have asked for so far. For one event loop."""

    def __init__(self) -> None:
        self._minutes = MovingWindowRateLimiter(MemoryStorage())
        self._usage: Usage = MemoryUsage()

    def open(self, usage: Usage) -> None:
        """Count pixel-steps there from now on."""
        self._usage = usage

    def count_request(self, caller: Caller) -> None:
        """Count a request; :class:`QuotaError` where it is one too many."""
        quota = caller.allowance.requests_per_minute
        if quota is None:
            return
        item = RateLimitItemPerMinute(quota)
        if not self._minutes.hit(item, caller.id):
            raise _spent(REQUESTS, f"{quota} a minute", self._minute_s(item, caller))

    async def spend(self, caller: Caller, cost: int) -> Spent | None:
        """Count the pixel-steps of a job that is about to be taken in.

        Returns:
            What the caller has used now, for :meth:`give_back`; None where nobody counts.

        Raises:
            QuotaError: It has not enough left today.
            InvalidInputError: It never has.
            StoreError: They cannot be counted now.
        """
        quota = caller.allowance.pixel_steps_per_day
        if quota is None:
            return None
        if cost > quota:
            detail = f"the request takes {cost} pixel-steps, and this API key may use {quota} a day"
            raise InvalidInputError(detail, field=("steps",))
        now = time.time()
        spent = await self._usage.spend(caller.id, cost, quota, now)
        if spent is None:
            before = await self._usage.spent(caller.id, now)
            detail = f"{quota} a day, {max(0, quota - before.used)} are left, and this request takes {cost}"
            raise _spent(PIXEL_STEPS, detail, _day_s(before, now))
        return spent

    async def give_back(self, caller: Caller, cost: int, spent: Spent | None) -> None:
        """Undo :meth:`spend` for a job that was not taken in."""
        if spent is None:
            return
        try:
            await self._usage.give_back(caller.id, cost, spent.began)
        except StoreError as error:
            _LOG.warning("%d pixel-steps of a refused job stay counted for %s: %s", cost, caller.id, error)

    async def standings(self, caller: Caller, jobs: int) -> list[Standing]:
        """How a caller stands with the limits that it has; what cannot be read now is left out.

        Args:
            caller: Who.
            jobs: How many jobs it has waiting and running.
        """
        allowance, found = caller.allowance, []
        if allowance.requests_per_minute is not None:
            minute = RateLimitItemPerMinute(allowance.requests_per_minute)
            left = max(0, self._minutes.get_window_stats(minute, caller.id).remaining)
            found.append(Standing(REQUESTS, minute.amount, left, minute.get_expiry(), self._minute_s(minute, caller)))
        if (quota := allowance.pixel_steps_per_day) is not None:
            now = time.time()
            try:
                spent = await self._usage.spent(caller.id, now)
            except StoreError as error:
                _LOG.warning("what %s has used today cannot be read: %s", caller.id, error)
            else:
                left = max(0, quota - spent.used)
                found.append(Standing(PIXEL_STEPS, quota, left, DAY_S, _day_s(spent, now) if spent.used else 0))
        if allowance.concurrent_jobs is not None:
            quota = allowance.concurrent_jobs
            found.append(Standing(JOBS, quota, max(0, quota - jobs)))
        return found

    def _minute_s(self, item: RateLimitItemPerMinute, caller: Caller) -> int:
        reset = self._minutes.get_window_stats(item, caller.id).reset_time
        return max(0, math.ceil(reset - time.time()))


def _day_s(spent: Spent, now: float) -> int:
    """Seconds until the day is over."""
    return max(0, math.ceil(spent.began + DAY_S - now))


def _spent(name: str, allowed: str, reset_s: int) -> QuotaError:
    after = max(1, reset_s)
    return QuotaError(f"the limit {name!r} of this API key is reached: {allowed}; try again in {after} s", after)
