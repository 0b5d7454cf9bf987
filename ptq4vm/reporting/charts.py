"""Chart geometry: positions of points, bars and ticks, which the report's page draws as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 26
_MOST_POINTS = 240
_PLOT = 132
"""Height of the bars, in pixels."""
_LETTER = 6.0
"""Width of a letter in vertical labels below bars, in pixels."""


class Tick(NamedTuple):
    """Grid line and its label."""

    place: float
    label: str


class Line(NamedTuple):
    """One series of a line chart."""

    number: int
    """Index of the colour."""
    title: str
    points: str
    """Value of the ``points`` attribute of an SVG polyline."""
    highest: float
    """Maximum of the plotted values."""


class LineChart(NamedTuple):
    """Line chart of values by index, one line per series."""

    title: str
    width: int
    height: int
    left: int
    bottom: int
    top: float
    """Value at the upper edge; the lower edge is 0."""
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    merged: int
    """Number of consecutive values that are averaged to one point."""


class Bar(NamedTuple):
    """Bar and its tooltip."""

    number: int
    x: float
    y: float
    width: float
    height: float
    text: str


class BarChart(NamedTuple):
    """Grouped bar chart: one group per name, one bar per series in each group."""

    title: str
    width: int
    height: int
    left: int
    bottom: int
    bars: tuple[Bar, ...]
    series: tuple[str, ...]
    x_ticks: tuple[Tick, ...]
    """Names below the groups; empty if a chart below shows them."""
    y_ticks: tuple[Tick, ...]


def line_chart(title: str, series: Mapping[int, tuple[str, Sequence[float]]]) -> LineChart:
    """Lay out a line chart of values over their index, from 0.

    Args:
        title: title of the chart.
        series: (title, values) by index of the colour; values are finite, at least one per series.
    """
    longest = max(len(values) for _, values in series.values())
    merged = math.ceil(longest / _MOST_POINTS)
    top = round_up(max(max(values) for _, values in series.values()))
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(place: float) -> float:
        return _LEFT + plot_width * place / max(1, longest - 1)

    def y(value: float) -> float:
        return _TOP + plot_height * (1 - value / top)

    lines = []
    for number, (name, values) in series.items():
        places = range(0, len(values), merged)
        means = [
            sum(part) / len(part) for part in (values[start : start + merged] for start in places)
        ]
        points = " ".join(
            f"{x(place):.1f},{y(mean):.2f}" for place, mean in zip(places, means, strict=True)
        )
        lines.append(Line(number, name, points, max(means)))
    steps = MaxNLocator(6, integer=True).tick_values(0, max(1, longest - 1))
    return LineChart(
        title, _WIDTH, _HEIGHT, _LEFT, _HEIGHT - _BOTTOM, top, tuple(lines),
        tuple(Tick(x(step), f"{step:.0f}") for step in steps if 0 <= step <= longest - 1),
        tuple(Tick(y(top * part / 4), f"{top * part / 4:g}") for part in range(5)), merged,
    )  # fmt: skip


def round_up(value: float) -> float:
    """Round up to a number whose quarters are easy to read; 1 for (nearly) 0.

    The page's script has the same function.
    """
    if value <= 1e-300:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(
        step for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if value <= step * power * (1 + 1e-9)
    )


def bar_chart(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    logarithmic: bool = False,
    named: bool = True,
    group: int = 13,
) -> BarChart:
    """Lay out a grouped bar chart.

    Args:
        title: title of the chart.
        names: names of the groups.
        series: one value per group; None and non-finite values have no bar.
        logarithmic: use a logarithmic scale; values that aren't positive have no bar.
        named: show the names below the groups.
        group: width of a group in pixels.
    """
    known = (value for numbers in series.values() for value in numbers if value is not None)
    low_edge = _TOP + _PLOT
    height = low_edge + 10 + (math.ceil(_LETTER * max(map(len, names))) if named else 0)
    ticks = _value_ticks([value for value in known if math.isfinite(value)], logarithmic)
    first, last = ticks[0].place, ticks[-1].place

    def y(value: float) -> float:
        value = math.log10(value) if logarithmic else value
        return low_edge - _PLOT * (value - first) / (last - first)

    bars, thick = [], (group - 3) / len(series)
    for number, (label, numbers) in enumerate(series.items()):
        for place, value in enumerate(numbers):
            if value is None or not math.isfinite(value) or (logarithmic and value <= 0):
                continue
            base = low_edge if logarithmic else y(0.0)
            top, text = min(y(value), base), f"{names[place]}: {label} {value:.4g}"
            bars.append(
                Bar(
                    number,
                    _LEFT + place * group + 1.5 + number * thick,
                    top,
                    thick,
                    abs(base - y(value)),
                    text,
                )
            )
    labels = tuple(
        Tick(_LEFT + (place + 0.5) * group, name) for place, name in enumerate(names) if named
    )
    return BarChart(
        title, _LEFT + group * len(names) + _RIGHT, height, _LEFT, low_edge,
        tuple(bars), tuple(series), labels,
        tuple(
            Tick(low_edge - _PLOT * (tick.place - first) / (last - first), tick.label)
            for tick in ticks
        ),
    )  # fmt: skip


def _value_ticks(values: Sequence[float], logarithmic: bool) -> list[Tick]:
    """Return the ticks of the vertical axis, at values or at their decimal logarithms."""
    if logarithmic:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        high = max(high, low + 1)
        return [Tick(float(power), f"{10.0**power:g}") for power in range(low, high + 1)]
    found = MaxNLocator(4).tick_values(min([0.0, *values]), max([*values, 0.0]) or 1.0)
    return [Tick(float(tick), f"{tick:g}") for tick in found]
