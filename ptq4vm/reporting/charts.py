"""Charts in numbers: where their points, bars and ticks lie. The page draws them as SVG in its own colours."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 26
_MOST_POINTS = 240
_PLOT = 132
"""Height of the bars."""
_LETTER = 6.0
"""Width of a letter in names that stand upright below bars."""


class Tick(NamedTuple):
    """A line of the grid and what it says."""

    place: float
    label: str


class Line(NamedTuple):
    """One series."""

    number: int
    """Which colour it has."""
    title: str
    points: str
    """As SVG's polyline takes them."""
    highest: float
    """The largest value."""


class LineChart(NamedTuple):
    """Values in order, one line for each series."""

    title: str
    width: int
    height: int
    left: int
    bottom: int
    top: float
    """The value at the upper edge; 0 is at the lower one."""
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    merged: int
    """So many values are one point of a line, their mean."""


class Bar(NamedTuple):
    """One bar, and the text that tells it."""

    number: int
    x: float
    y: float
    width: float
    height: float
    text: str


class BarChart(NamedTuple):
    """A group of bars for each name, a bar for each series."""

    title: str
    width: int
    height: int
    left: int
    bottom: int
    bars: tuple[Bar, ...]
    series: tuple[str, ...]
    x_ticks: tuple[Tick, ...]
    """Names below the groups; none where another chart below has them."""
    y_ticks: tuple[Tick, ...]


def line_chart(title: str, series: Mapping[int, tuple[str, Sequence[float]]]) -> LineChart:
    """Lines over the number of the value, from 0.

    Args:
        title: what is drawn.
        series: by the number of its colour, its title and values; finite ones, at least one.
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
    """The next number whose quarters are easy to read; 1 for (nearly) 0. The page's script does the same."""
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
    """Groups of bars beside each other.

    Args:
        title: what is drawn.
        names: of the groups.
        series: a value for each group; what is None or not finite has no bar.
        logarithmic: by decades; values that aren't positive have no bar.
        named: whether the names stand below.
        group: width of a group.
    """
    values = [
        value
        for numbers in series.values()
        for value in numbers
        if value is not None and math.isfinite(value)
    ]
    low_edge = _TOP + _PLOT
    height = low_edge + 10 + (math.ceil(_LETTER * max(map(len, names))) if named else 0)
    if logarithmic:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        high = max(high, low + 1)
        ticks = [Tick(float(power), f"{10.0**power:g}") for power in range(low, high + 1)]
    else:
        found = MaxNLocator(4).tick_values(min([0.0, *values]), max([*values, 0.0]) or 1.0)
        ticks = [Tick(float(tick), f"{tick:g}") for tick in found]
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
        title, _LEFT + group * len(names) + _RIGHT, height, _LEFT, low_edge, tuple(bars), tuple(series), labels,
        tuple(Tick(low_edge - _PLOT * (tick.place - first) / (last - first), tick.label) for tick in ticks),
    )  # fmt: skip
