"""Numbers with their uncertainty: rates, means, and differences of two ways on the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

LEVEL: Final = 0.95
_RESAMPLES: Final = 4000
# Resampled at once: bounds the memory of large samples.
_CHUNK: Final = 250


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something was true: ``hits`` of ``trials`` independent pictures, at least one."""

    hits: int
    trials: int

    @classmethod
    def of(cls, verdicts: Sequence[bool] | NDArray[np.bool_]) -> "Rate":
        """The rate of true verdicts, one a picture."""
        return cls(int(np.sum(verdicts)), len(verdicts))

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson, *Probable Inference*, JASA 1927)."""
        found = binomtest(self.hits, self.trials).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: The number.
        low: Where the interval begins.
        high: Where it ends.
        count: How many pictures, or independent runs, it was taken from.
        percent: Whether it is a share or a difference of shares, and is written in per cent.
    """

    value: float
    low: float
    high: float
    count: int
    percent: bool = False

    def __str__(self) -> str:
        if self.percent:
            return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return f"{self.value:.3g} ({self.low:.3g}–{self.high:.3g})"


def bootstrap_mean(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Estimate:
    """The mean and its percentile-bootstrap interval.

    Args:
        values: (n,) one a picture or run, independent of each other.
        seed: Of the resampling, so that a report prints the same twice.
    """
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [sample[rng.integers(len(sample), size=(_CHUNK, len(sample)))].mean(1) for _ in range(_RESAMPLES // _CHUNK)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sample.mean()), float(low), float(high), len(sample))


def root(mean: Estimate) -> Estimate:
    """The root of a mean of squares with its interval: a root mean square."""
    return Estimate(mean.value**0.5, mean.low**0.5, mean.high**0.5, mean.count)


def paired_difference(
    verdicts: Sequence[bool] | NDArray[np.bool_], other: Sequence[bool] | NDArray[np.bool_], seed: int = 0
) -> Estimate:
    """The rate of ``verdicts`` less that of ``other``, both on the same pictures' seeds, in the same order.

    Whole pictures are resampled, so what the seed and the captions do to both ways alike cancels. Two ways that never
    differ would get an interval of no width; at least what one differing picture on either side could do is granted.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (verdicts, other))
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same pictures on both sides, got {len(a)} and {len(b)}")
    found = bootstrap_mean(a - b, seed)
    one = 1 / len(a)
    return Estimate(
        found.value, min(found.low, found.value - one), max(found.high, found.value + one), len(a), percent=True
    )
