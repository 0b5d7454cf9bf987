"""Bar chart of the layers' sensitivity to quantization."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ptq4vm.atomic_io import written_whole
from ptq4vm.errors import PTQ4VMError

_BAR_INCHES = 0.19
_PANEL_INCHES = 3.0
_MARKERS = "ov^sD"


class LayerBar(NamedTuple):
    """Sensitivity of one layer, quantized alone."""

    name: str
    """Dotted module name; bars are coloured by its first component."""
    mad: Mapping[str, float]
    """MAD ×10³ to the float network's mattes, by bits; every layer has the same bits."""
    dtssd: Mapping[str, float]
    """dtSSD ×10² to the float network's mattes, by bits."""


def draw_sensitivity(layers: Sequence[LayerBar], path: Path, dpi: int = 110) -> None:
    """Draw a MAD panel and a dtSSD panel with one bar per layer, on a logarithmic scale.

    Layers keep their order. Bars show the first of the bits, markers the others.

    Args:
        layers: at least one layer.
        path: .png file, written atomically.
        dpi: pixels per inch.

    Raises:
        PTQ4VMError: there are no layers or no bits, or the file can't be written.
    """
    if not layers or not layers[0].mad:
        raise PTQ4VMError("Expected at least one measured layer to draw, got none")
    parts = list(dict.fromkeys(layer.name.split(".")[0] for layer in layers))
    colours = dict(zip(parts, colormaps["tab10"].colors * len(parts), strict=False))  # type: ignore[attr-defined]
    size = (max(7.0, 1.2 + _BAR_INCHES * len(layers)), 2 * _PANEL_INCHES + 2.0)
    # Not pyplot, as in pictures.py.
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    colour = [colours[layer.name.split(".")[0]] for layer in layers]
    _draw_panel(above, [layer.mad for layer in layers], colour, "MAD ×10³ to float")
    _draw_panel(below, [layer.dtssd for layer in layers], colour, "dtSSD ×10² to float")
    names = [".".join(layer.name.split(".")[1:]) or layer.name for layer in layers]
    below.set_xticks(range(len(layers)), names, rotation=90, fontsize=8, parse_math=False)
    below.set_xlim(-0.7, len(layers) - 0.3)
    bits = next(iter(layers[0].mad))
    above.set_title(
        f"Each layer alone at {bits}, all others float; in order of execution", fontsize=12
    )
    marks = above.get_legend_handles_labels()[0]
    handles = [*(Patch(color=colours[part], label=part) for part in parts), *marks]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=10)
    with written_whole(path) as part:
        canvas.print_png(part)


def _draw_panel(
    axes: Axes, values: Sequence[Mapping[str, float]], colours: Sequence[object], label: str
) -> None:
    first, *others = values[0]
    axes.bar(range(len(values)), [value[first] for value in values], color=colours, width=0.8)
    for marker, bits in zip(_MARKERS, others, strict=False):
        axes.plot(
            [value[bits] for value in values], marker, markersize=4, label=bits,
            markerfacecolor="white", markeredgecolor="black", markeredgewidth=0.8,
        )  # fmt: skip
    positive = [number for value in values for number in value.values() if number > 0]
    if positive:
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(positive) / 1.5)
    axes.set_ylabel(label, fontsize=11)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
