"""What a suite has to tell: tables, charts and pictures as plain data, which the reports write out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import Estimate, Rate

Cell = Rate | Estimate | float | int | str | None
"""What may stand in a table; None is an empty cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """Lines with a name each.

    Attributes:
        title: What it shows.
        columns: Their names, without the first.
        rows: Line name → cells.
        note: What a reader must know besides.
        best: Columns of rates whose highest cell is set off.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    note: str = ""
    best: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its interval, over a cost or a step count."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves, or single points with names, of values with intervals.

    Attributes:
        title: What it shows.
        x: What the horizontal axis means.
        y: What the vertical axis means.
        curves: Name → its points, one or more.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is.
        percent: Whether values are shares.
        lines: Name → a value drawn as a dashed line across.
    """

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[Point]]
    log_x: bool = False
    log_y: bool = False
    percent: bool = False
    lines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Unselected pictures, the first ones of each line.

    Attributes:
        title: What it shows.
        rows: Line name → (n, height, width, 3) uint8.
        captions: What each column was asked for, where columns share it.
    """

    title: str
    rows: Mapping[str, NDArray[np.uint8]]
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One suite's part of the report."""

    suite: str
    title: str
    text: str
    parts: Sequence[Table | Chart | Gallery]


def text_of(cell: Cell) -> str:
    """A cell as people read it."""
    match cell:
        case None:
            return ""
        case bool() | str() | int() | Rate() | Estimate():
            return str(cell)
        case float():
            return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def value_of(cell: Cell) -> Any:
    """A cell as JSON."""
    match cell:
        case Rate():
            low, high = cell.interval
            return {"value": cell.value, "low": low, "high": high, "hits": cell.hits, "trials": cell.trials}
        case Estimate():
            return {"value": cell.value, "low": cell.low, "high": cell.high, "count": cell.count}
        case _:
            return cell


def point(x: float, cell: Rate | Estimate) -> Point:
    """A cell as a point of a chart."""
    low, high = cell.interval if isinstance(cell, Rate) else (cell.low, cell.high)
    return Point(x, cell.value, low, high)
