"""Figures of the experiments: small functions on matplotlib's own objects, without pyplot and its state.

A figure is WIDTH pixels wide whatever it holds, so that a page can show it as it is. Colours are Okabe and
Ito's, which colour-blind readers can tell apart; every line has a marker of its own besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Bbox

WIDTH = 900
DPI = 100
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D3B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
INK, FAINT = "#222222", "#DDDDDD"
TEXT = 9
TITLE = 12
LINE_GAP = 0.075
"""Least distance between labels at the ends of lines, as a share of the panel's height."""

ROUND = (1, 2, 5, 10)
TICKS, TICK_GAP = 5, 0.14
"""Ticks on an x axis at most, and the least distance between those of a logarithmic one, as a share of it."""

MARKER_PIXELS = 6
"""Half of what a point's marker takes, with a little room."""


class Series(NamedTuple):
    """One line of a panel."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]


class Point(NamedTuple):
    """One labelled point of a panel."""

    label: str
    x: float
    y: float


class Beside(NamedTuple):
    """Where a name may stand beside its point: an offset in points, and how it is aligned there."""

    offset: tuple[float, float]
    ha: str
    va: str


BESIDE = (
    Beside((9, 0), "left", "center"),
    Beside((-9, 0), "right", "center"),
    Beside((0, 8), "center", "bottom"),
    Beside((0, -8), "center", "top"),
    Beside((6, 7), "left", "bottom"),
    Beside((-6, 7), "right", "bottom"),
    Beside((6, -7), "left", "top"),
    Beside((-6, -7), "right", "top"),
)
"""Those tried, the likeliest first."""


def new_figure(title: str, panels: int, *, columns: int = 3, panel_height: int = 300) -> list[Axes]:
    """The panels of a new figure under one left-aligned title, row by row; each knows its `figure`."""
    columns = max(1, min(columns, panels))
    rows = -(-panels // columns)
    height = 40 + rows * panel_height
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=TITLE, color=INK)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[panels:]:
        figure.delaxes(spare)
    return axes[:panels]


def lines(
    axis: Axes,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    ticks: Sequence[str] = (),
    named: bool = True,
    level: Point | None = None,
    y_range: tuple[float, float] | None = None,
) -> None:
    """One line a series, its name at its right end.

    Args:
        ticks: names of the places 0, 1, ... on the x axis, where it has no numbers.
        named: whether names stand beside this panel; colours and markers are the same in all of them.
        level: a horizontal dashed line at `level.y` with a name (its x is not used).
        y_range: ends of the y axis, where panels share them.
    """
    _style(axis, x_label, y_label, title)
    if log_x:
        axis.set_xscale("log")
    if log_y:
        axis.set_yscale("log")
    for number, line in enumerate(series):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axis.plot(line.xs, line.ys, color=colour, marker=marker, markersize=4, linewidth=1.5)
    if level is not None:
        axis.axhline(level.y, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if ticks:
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlim(-0.4, len(ticks) - 0.6)
    elif log_x:
        _plain_log_ticks(axis, sorted({x for line in series for x in line.xs}))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(TICKS, steps=ROUND))
    ends = [(line.label, line.ys[-1], COLOURS[n % len(COLOURS)]) for n, line in enumerate(series) if line.ys]
    if level is not None:
        ends.append((level.label, level.y, INK))
    if not named:
        ends = []
    low, high = y_range or axis.get_ylim()
    axis.set_ylim(low, high)
    scaled = math.log if log_y else float
    bottom, top = scaled(low), scaled(high)
    places = spread([(scaled(y) - bottom) / (top - bottom) for _, y, _ in ends], LINE_GAP)
    for (label, _, colour), place in zip(ends, places, strict=True):
        axis.text(1.02, place, label, transform=axis.transAxes, color=colour, fontsize=TEXT, va="center")


def points(
    axis: Axes, data: Sequence[Point], *, x_label: str, y_label: str, title: str = "", log_x: bool = False
) -> None:
    """One labelled point each, a colour and a marker of its own."""
    _style(axis, x_label, y_label, title)
    if log_x:
        axis.set_xscale("log")
    for number, point in enumerate(data):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axis.scatter([point.x], [point.y], color=colour, marker=marker, s=45, zorder=3)
    axis.margins(x=0.25, y=0.2)
    if log_x:
        _plain_log_ticks(axis, sorted({point.x for point in data}))
    _name_points(axis, data)


def _name_points(axis: Axes, data: Sequence[Point]) -> None:
    """Names beside their points, each where it lies least over markers, names before it and the rim."""
    axis.figure.draw_without_rendering()  # lays panels out: only then has a name a place in pixels
    panel = axis.get_window_extent()
    centres = axis.transData.transform([(point.x, point.y) for point in data])
    taken = [Bbox.from_bounds(x, y, 0, 0).padded(MARKER_PIXELS) for x, y in centres]
    for number, point in enumerate(data):
        name = axis.annotate(
            point.label,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=COLOURS[number % len(COLOURS)],
            fontsize=TEXT,
        )

        def covered(beside: Beside, name: Annotation = name) -> float:
            name.set(position=beside.offset, ha=beside.ha, va=beside.va)
            box = name.get_window_extent()
            return _area(box) - _common(box, panel) + sum(_common(box, other) for other in taken)

        covered(min(BESIDE, key=covered))
        taken.append(name.get_window_extent())


def _common(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else _area(both)


def _area(box: Bbox) -> float:
    return box.width * box.height


def bars(
    axis: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    *,
    x_label: str,
    title: str = "",
    level: Point | None = None,
    named: bool = True,
) -> None:
    """Horizontal bars from zero, the first on top, each with its value; `level` is a dashed line at its x."""
    _style(axis, x_label, "", title)
    axis.grid(False, axis="y")
    places = range(len(values))
    axis.barh(places, values, height=0.62, color=[COLOURS[n % len(COLOURS)] for n in places])
    axis.set_yticks(places, labels if named else [""] * len(labels))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.18 * max([*values, level.x if level else 0, 1e-9]))
    axis.xaxis.set_major_locator(MaxNLocator(TICKS - 1, steps=ROUND))
    for place, value in zip(places, values, strict=True):
        axis.annotate(
            f"{value:.3g}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=TEXT,
            color=INK,
            va="center",
        )
    if level is not None:
        axis.axvline(level.x, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(f"{title}\ndashed: {level.label}".strip(), loc="left", fontsize=TEXT + 1, color=INK)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places on a unit scale moved apart until neighbours are `gap` away; order stays, the top is 1.

    More labels than fit end below 0, never on top of each other.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    limit = 1.0
    for number in reversed(order):
        moved[number] = min(moved[number], limit)
        limit = moved[number] - gap
    return moved


def save(figure: Figure, file: Path) -> None:
    """Write a PNG of the figure's own size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=DPI)


def _plain_log_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves, in plain numbers, leaving out those too close to the one before."""
    low, high = axis.get_xlim()
    kept: list[float] = []
    for value in values:
        if not kept or math.log(value / kept[-1]) > TICK_GAP * math.log(high / low):
            kept.append(value)
    axis.set_xticks(kept, [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in kept])
    axis.minorticks_off()


def _style(axis: Axes, x_label: str, y_label: str, title: str) -> None:
    axis.set_xlabel(x_label, fontsize=TEXT, color=INK)
    axis.set_ylabel(y_label, fontsize=TEXT, color=INK)
    axis.set_title(title, loc="left", fontsize=TEXT + 1, color=INK)
    axis.tick_params(labelsize=TEXT, colors=INK, length=3)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(INK)
