"""How much of its allowance a caller has left, and when there will be more.

Requests are counted over the minute that just passed. Pixel-steps are counted over a day that begins with the first of
them: a sliding day would have to remember every job. Both live in memory and begin anew with the process.
"""

import math
import time
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter

from pipelines.errors import InvalidInputError
from pipelines.plan import Plan
from service.callers import Caller

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
    """What callers have asked for so far. For one event loop: between asking and counting nothing may be awaited."""

    def __init__(self) -> None:
        storage = MemoryStorage()
        self._minutes = MovingWindowRateLimiter(storage)
        self._days = FixedWindowRateLimiter(storage)

    def count_request(self, caller: Caller) -> None:
        """Count a request; :class:`QuotaError` where it is one too many."""
        quota = caller.allowance.requests_per_minute
        if quota is None:
            return
        item = RateLimitItemPerMinute(quota)
        if not self._minutes.hit(item, caller.id):
            raise _spent(REQUESTS, f"{quota} a minute", self._reset_s(self._minutes, item, caller))

    def check_pixel_steps(self, caller: Caller, cost: int) -> None:
        """Refuse a job for which a caller has not enough left.

        Raises:
            QuotaError: It has not today.
            InvalidInputError: It never has.
        """
        quota = caller.allowance.pixel_steps_per_day
        if quota is None:
            return
        if cost > quota:
            detail = f"the request takes {cost} pixel-steps, and this API key may use {quota} a day"
            raise InvalidInputError(detail, field=("steps",))
        item = RateLimitItemPerDay(quota)
        if not self._days.test(item, caller.id, cost=cost):
            left = self._days.get_window_stats(item, caller.id).remaining
            detail = f"{quota} a day, {left} are left, and this request takes {cost}"
            raise _spent(PIXEL_STEPS, detail, self._reset_s(self._days, item, caller))

    def count_pixel_steps(self, caller: Caller, cost: int) -> None:
        """Count what a job takes that was taken in."""
        quota = caller.allowance.pixel_steps_per_day
        if quota is not None:
            self._days.hit(RateLimitItemPerDay(quota), caller.id, cost=cost)

    def standings(self, caller: Caller, jobs: int) -> list[Standing]:
        """How a caller stands with the limits that it has.

        Args:
            caller: Who.
            jobs: How many jobs it has waiting and running.
        """
        allowance, found = caller.allowance, []
        if allowance.requests_per_minute is not None:
            minute = RateLimitItemPerMinute(allowance.requests_per_minute)
            found.append(self._standing(REQUESTS, self._minutes, minute, caller))
        if allowance.pixel_steps_per_day is not None:
            day = RateLimitItemPerDay(allowance.pixel_steps_per_day)
            found.append(self._standing(PIXEL_STEPS, self._days, day, caller))
        if allowance.concurrent_jobs is not None:
            quota = allowance.concurrent_jobs
            found.append(Standing(JOBS, quota, max(0, quota - jobs)))
        return found

    def _standing(self, name: str, limiter: RateLimiter, item: RateLimitItem, caller: Caller) -> Standing:
        left = max(0, limiter.get_window_stats(item, caller.id).remaining)
        return Standing(name, item.amount, left, item.get_expiry(), self._reset_s(limiter, item, caller))

    def _reset_s(self, limiter: RateLimiter, item: RateLimitItem, caller: Caller) -> int:
        reset = limiter.get_window_stats(item, caller.id).reset_time
        return max(0, math.ceil(reset - time.time()))


def _spent(name: str, allowed: str, reset_s: int) -> QuotaError:
    after = max(1, reset_s)
    return QuotaError(f"the limit {name!r} of this API key is reached: {allowed}; try again in {after} s", after)
