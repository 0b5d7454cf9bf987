"""Charts of the report's page, from the files of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ptq4vm.reporting.charts import BarChart, LineChart, bar_chart, line_chart
from ptq4vm.reporting.layers import Layer, Signal
from ptq4vm.reporting.run_artifacts import Losses, RowFiles, read_sensitivity, values_by_frame
from ptq4vm.reporting.runs import RunFolder

_CURVES = {"mad": "MAD ×10³", "dtssd": "dtSSD ×10²"}


class Curves(NamedTuple):
    """MAD and dtSSD curves of each clip."""

    series: list[tuple[int, str, bool]]
    """(index of the colour, title, True if visible at first) per series."""
    clips: dict[str, list[LineChart]]


def curves(rows: Sequence[RowFiles], several: bool) -> Curves:
    """Lay out the errors of each clip by frame, one line per row.

    Args:
        rows: files of the rows.
        several: True if the run has several bits, which the titles then name.
    """
    values = [values_by_frame(row) for row in rows]
    last = {row.bits: number for number, row in enumerate(rows)}
    series = [
        (number, _label(row, several), last[row.bits] == number)
        for number, (row, clips) in enumerate(zip(rows, values, strict=True))
        if clips
    ]
    charts: dict[str, list[LineChart]] = {}
    for clip in dict.fromkeys(clip for clips in values for clip in clips):
        for metric, title in _CURVES.items():
            known = any(metric in clips.get(clip, {}) for clips in values)
            key, title = (metric, title) if known else (f"{metric}_to_float", f"{title} to float")
            found = {n: (label, values[n].get(clip, {}).get(key, ())) for n, label, _ in series}
            lines = {
                n: line for n, line in found.items() if line[1] and all(map(math.isfinite, line[1]))
            }
            if lines:
                charts.setdefault(clip, []).append(line_chart(title, lines))
    return Curves(series, charts)


def _label(row: RowFiles, several: bool) -> str:
    return f"{row.title} {row.bits}" if several and row.bits else row.title


def layer_charts(
    run: RunFolder, layers: Sequence[Layer], signals: Mapping[str, Signal]
) -> list[BarChart]:
    """Lay out bits, signal-to-noise ratios and sensitivity of the layers, one below the other.

    Args:
        run: run whose sensitivity file is read, if it has one.
        layers: layers of a quantized network.
        signals: ratios by layer; empty if not measured.
    """
    names = [layer.name for layer in layers]
    charts: list[tuple[str, Mapping[str, Sequence[float | None]], bool]] = []
    weights, activations = zip(
        *((layer.weight_bits, layer.activation_bits) for layer in layers), strict=True
    )
    charts.append(("bits", {"weights": weights, "activations": activations}, False))
    if signals:
        found = [signals.get(name, Signal(None, None)) for name in names]
        sides = {"weights": [one.weights for one in found], "output": [one.output for one in found]}
        charts.append(("signal to quantization noise, dB", sides, False))
    sensitivity = read_sensitivity(run)
    bits = dict.fromkeys(bits for errors in sensitivity.values() for bits in errors)
    if bits:
        measured = {one: [sensitivity.get(name, {}).get(one) for name in names] for one in bits}
        charts.append(
            ("sensitivity: MAD ×10³ to float of each layer quantized alone", measured, True)
        )
    return [
        bar_chart(title, names, series, logarithmic, named=number == len(charts) - 1)
        for number, (title, series, logarithmic) in enumerate(charts)
    ]


def block_charts(
    losses: Sequence[Losses], blocks: Mapping[str, Sequence[str]]
) -> list[tuple[str, BarChart]]:
    """Lay out the block losses of each block reconstruction row and each of the bits.

    Args:
        losses: losses of the rows.
        blocks: names of the blocks, by bits.

    Returns:
        Titles and charts.
    """
    charts = []
    for found in losses:
        if not found.hard or found.hard == found.nearest:  # global calibration, or nothing to learn
            continue
        names = blocks[found.row.bits]
        series = {
            label: [values.get(number) for number in range(len(names))]
            for label, values in (("rounded to nearest", found.nearest), ("as learned", found.hard))
        }
        charts.append(
            (
                f"{found.row.title}, {found.row.bits}",
                bar_chart("loss of each block", names, series, True, group=20),
            )
        )
    return charts


def loss_chart(losses: Sequence[Losses], several: bool) -> tuple[list[str], LineChart] | None:
    """Lay out the losses of global calibration by step; None if there are none.

    Arguments are those of :func:`curves`.

    Returns:
        Titles of the lines, and the chart.
    """
    if not losses:
        return None
    series = {
        number: (_label(found.row, several), found.loss) for number, found in enumerate(losses, 1)
    }
    return [title for title, _ in series.values()], line_chart("loss of global calibration", series)
