"""The way of a composition as a figure: κ, log-densities, their gap and the particles, step by step.

One line a component is the median over the request's samples, the band around it goes from the least to the most.
Drawing takes tenths of a second and matplotlib is not made for several threads: neither on the event loop's thread, nor
twice at once.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from service.engine.job import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH: Final = 8.0  # inches
_PANEL: Final = 2.1  # inches
_DPI: Final = 120
_BAND: Final = 0.15
_NAME: Final = 40  # characters of a component's name
_BESIDE: Final = 3  # components a line of the legend
_TICKS: Final = 8  # noise levels that are written over the figure
_COLOURS: Final = "petroff10"
_LINES: Final = ("-", "--", ":", "-.")
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "axes.spines.right": False,
    "axes.grid": True,
    "legend.frameon": False,
    "grid.alpha": 0.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "superdiff",
}
# What makes a file differ from one day to the next.
_UNDATED: Final[dict[str, dict[str, None]]] = {"svg": {"Date": None}, "png": {"Software": None}}

Values = Callable[[Point], NDArray[np.float64]]


def draw_trajectory(points: Sequence[Point], names: Sequence[str], form: str) -> bytes:
    """The figure of a trajectory; the same bytes for the same trajectory.

    Args:
        points: One a step; none where no step was taken.
        names: Of the components.
        form: "png" or "svg".
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[str, Values, bool]] = [("κ", lambda p: p.weights, True)]
    if len(names) > 1:
        panels.append(("log q − mean\n(nats)", lambda p: p.log_density - p.log_density.mean(1, keepdims=True), True))
        panels.append(("gap: most − least\nlog q (nats)", lambda p: np.ptp(p.log_density, axis=1)[:, None], False))
    else:
        panels.append(("log q (nats)", lambda p: p.log_density, True))
    if any(point.effective is not None for point in points):
        panels.append(("effective\nsample size", lambda p: _column(p.effective), False))
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A prompt may have letters that the font has not.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = Figure(figsize=(_WIDTH, 0.6 + _PANEL * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), sharex=True)
        for each, (label, values, by_component) in zip(axes, panels, strict=True):
            _draw_panel(each, points, values, len(names) if by_component else 1, coloured=by_component)
            each.set_ylabel(label)
        figure.align_ylabels(axes)
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        _write_sigmas(axes[0], points)
        if points:
            lines = axes[0].get_lines()
            legend = figure.legend(lines, [str(i) for i in range(len(lines))], loc="outside upper left", ncols=_BESIDE)
            # Only now: a label that begins with an underscore would be left out, a dollar sign would begin a formula.
            for text, name in zip(legend.get_texts(), names, strict=True):
                text.set(text=_readable(name), parse_math=False)
        stream = io.BytesIO()
        figure.savefig(stream, format=form, dpi=_DPI, metadata=_UNDATED[form])
    return stream.getvalue()


def _draw_panel(axes: "Axes", points: Sequence[Point], values: Values, lines: int, *, coloured: bool) -> None:
    """The medians of (samples, lines) values and the bands around them, over the steps."""
    import matplotlib as mpl

    colours = mpl.color_sequences[_COLOURS]
    steps = [point.step for point in points]
    columns = [values(point) for point in points]
    for line in range(lines if points else 0):
        spread = np.array([_spread(column[:, line]) for column in columns])
        colour = colours[line % len(colours)] if coloured else "0.35"
        axes.plot(steps, spread[:, 1], color=colour, linestyle=_LINES[line // len(colours) % len(_LINES)])
        axes.fill_between(steps, spread[:, 0], spread[:, 2], color=colour, alpha=_BAND, linewidth=0)
    reason = None if points else "no step was taken"
    if points and not any(np.isfinite(column).any() for column in columns):
        reason = "not estimated: no step added noise"
    if reason:
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _spread(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Least, median and most of the finite values; NaN where there are none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(np.median(finite)), float(finite.max())) if len(finite) else (np.nan,) * 3


def _column(values: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return np.full((1, 1), np.nan) if values is None else values[:, None]


def _write_sigmas(axes: "Axes", points: Sequence[Point]) -> None:
    """The noise levels reached, over some of the steps."""
    if not points:
        return
    places = np.linspace(0, len(points) - 1, min(_TICKS, len(points))).round().astype(int)
    shown = [points[i] for i in np.unique(places)]
    above = axes.secondary_xaxis("top")
    above.set_xticks([point.step for point in shown], [f"{point.sigma:.3g}" for point in shown])
    above.set_xlabel("noise level σ reached")


def _readable(name: str) -> str:
    """A component's name that fits beside the figure, without characters that XML does not take."""
    plain = "".join(letter if letter.isprintable() else " " for letter in name[: _NAME + 1])
    return plain if len(name) <= _NAME else plain[: _NAME - 1] + "…"
