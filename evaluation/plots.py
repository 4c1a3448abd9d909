"""Charts as SVG that takes its ink from the page around it, so that one drawing serves light and dark."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator, PercentFormatter, ScalarFormatter

from evaluation.findings import Chart, Point

# A colour that nothing else has; the page's own takes its place.
_INK: Final = "#010203"
# Okabe and Ito's colours, which most colour-blind readers tell apart, without the black that a dark page would swallow.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
# Factor between two marks of an axis.
_APART: Final = 1.2
_MARKS: Final = "osD^vPX*"
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "superdiff",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
}


def draw(chart: Chart) -> str:
    """The chart as an <svg> element to stand in a page."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 3.9), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(chart.curves.items()):
            _draw_curve(axes, name, points, i)
        for name, value in chart.lines.items():
            axes.axhline(value, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), label=name)
        axes.set(xlabel=chart.x, ylabel=chart.y)
        if chart.log_x:
            axes.set_xscale("log")
            axes.set_xticks(_spread({p.x for points in chart.curves.values() for p in points}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
        if chart.log_y:
            axes.set_yscale("log")
            for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatted(LogFormatter(minor_thresholds=(2, 0.5)))
        if chart.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # The page sets its width; the height follows.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


def _spread(values: Iterable[float]) -> list[float]:
    """The values that are far enough from the one before to be read on a logarithmic axis."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value > _APART * kept[-1]:
            kept.append(value)
    return kept


def _draw_curve(axes: Axes, name: str, points: Sequence[Point], index: int) -> None:
    ordered = sorted(points, key=lambda p: p.x)
    x, y = [p.x for p in ordered], [p.value for p in ordered]
    spread = [[p.value - p.low for p in ordered], [p.high - p.value for p in ordered]]
    axes.errorbar(
        x,
        y,
        yerr=spread,
        label=name,
        color=_COLOURS[index % len(_COLOURS)],
        marker=_MARKS[index // len(_COLOURS) % len(_MARKS)],
        markersize=5,
        linewidth=1.4,
        elinewidth=1,
        capsize=2.5,
    )
