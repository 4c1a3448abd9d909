"""Trajectories as few arrays: the points' rows one after another, since their number falls at the last step."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from service.durable.blobs import Array
from service.engine.job import Point

_STEP: Final = "trajectory.step"
_SIGMA: Final = "trajectory.sigma"
_ROWS: Final = ("weights", "log_density", "effective")


def write_points(points: Sequence[Point]) -> dict[str, Array]:
    """A trajectory as arrays by name; none for an empty one."""
    if not points:
        return {}
    written: dict[str, Array] = {
        _STEP: np.array([point.step for point in points], np.int64),
        _SIGMA: np.array([point.sigma for point in points], np.float64),
    }
    for name in _ROWS:
        rows = [values for point in points if (values := getattr(point, name)) is not None]
        if rows:
            written[f"trajectory.{name}"] = np.concatenate(rows)
            written[f"trajectory.{name}.count"] = np.array([len(each) for each in rows], np.int64)
    return written


def read_points(written: Mapping[str, Array]) -> tuple[Point, ...]:
    """The trajectory that was written; KeyError where a part of it is missing."""
    if _STEP not in written:
        return ()
    weights, log_density, effective = (_split(written, name) for name in _ROWS)
    given: Sequence[Array | None] = effective or [None] * len(weights)
    each = zip(written[_STEP].tolist(), written[_SIGMA].tolist(), weights, log_density, given, strict=True)
    return tuple(Point(*parts) for parts in each)


def _split(written: Mapping[str, Array], name: str) -> list[Array]:
    counts = written.get(f"trajectory.{name}.count")
    if counts is None:
        return []
    return np.split(written[f"trajectory.{name}"], np.cumsum(counts)[:-1])
