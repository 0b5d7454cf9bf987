"""Comparison pictures of mattes."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from ptq4vm.atomic_io import written_whole
from ptq4vm.errors import PTQ4VMError

ERROR_MAX = 0.25
"""Error in alpha at the upper end of the heat maps' colour scale."""
_COLUMN_INCHES = 3.0
_TITLE_INCHES = 1.4
_BAR_INCHES = 0.9
_TITLE_LETTERS = 18


class Strip(NamedTuple):
    """One frame and its alpha mattes before and after quantization, on any device."""

    title: str
    """Title to the left of the row, e.g. clip and frame."""
    src: Tensor
    """(3, H, W) RGB in [0, 1]."""
    true_alpha: Tensor | None
    """(1, H, W) in [0, 1]; None without ground truth."""
    float_alpha: Tensor
    """(1, H, W) alpha of the float network."""
    quantized_alpha: Tensor
    """(1, H, W) alpha of the quantized network."""


def draw_strips(
    strips: Sequence[Strip], path: Path, error_max: float = ERROR_MAX, dpi: int = 110
) -> None:
    """Draw one row per frame: source, true alpha, float alpha, quantized alpha, error.

    The error is |quantized - true| if every strip has true alpha. Otherwise that column is left
    out and the error is |quantized - float|; the heading shows which. The colour scale is fixed, so
    that pictures of different runs are comparable; larger errors have the last colour.

    Args:
        strips: at least one; frame sizes may differ.
        path: .png file, written atomically.
        error_max: error in alpha at the upper end of the colour scale.
        dpi: pixels per inch; a column is three inches wide.

    Raises:
        PTQ4VMError: there are no strips, tensor shapes don't match, or the file can't be written.
    """
    if not strips:
        raise PTQ4VMError("Expected at least one frame to draw, got none")
    for strip in strips:
        _check(strip)
    with_truth = all(strip.true_alpha is not None for strip in strips)
    headings = [
        "source",
        *(["true alpha"] if with_truth else []),
        "float alpha",
        "quantized alpha",
        "error",
    ]
    shapes = [strip.src.shape[-2:] for strip in strips]
    heights = [_COLUMN_INCHES * height / width for height, width in shapes]
    size = (
        _TITLE_INCHES + _COLUMN_INCHES * len(headings) + _BAR_INCHES,
        sum(heights) + 0.1 * len(strips) + 0.5,
    )
    # Not pyplot, which keeps figures alive and selects a backend for the whole process.
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(strips), len(headings), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for row, strip in zip(axes, strips, strict=True):
        heat = _draw_row(row, strip, with_truth, error_max)
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=12)
    against = "true" if with_truth else "float"
    axes[0][-1].set_title(f"|quantized − {against}|", fontsize=12)
    figure.colorbar(heat, ax=list(axes[:, -1]), extend="max", label="error in alpha (0…1)")
    with written_whole(path) as part:
        canvas.print_png(part)


def _draw_row(axes: Sequence[Axes], strip: Strip, with_truth: bool, error_max: float) -> AxesImage:
    """Draw one row and return its heat map, for the colour bar."""
    reference = strip.float_alpha
    mattes = [strip.float_alpha, strip.quantized_alpha]
    if with_truth and strip.true_alpha is not None:
        reference = strip.true_alpha
        mattes.insert(0, reference)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].imshow(_array(strip.src).transpose(1, 2, 0))
    lines = strip.title.replace("/", "/\n").splitlines()
    title = "\n".join(textwrap.fill(line, _TITLE_LETTERS) for line in lines)
    axes[0].set_ylabel(
        title, rotation=0, ha="right", va="center", fontsize=11, labelpad=8, parse_math=False
    )
    for axis, matte in zip(axes[1:-1], mattes, strict=True):
        axis.imshow(_array(matte)[0], cmap="gray", vmin=0, vmax=1)
    error = np.abs(_array(strip.quantized_alpha) - _array(reference))[0]
    return axes[-1].imshow(error, cmap="inferno", vmin=0, vmax=error_max)


def _check(strip: Strip) -> None:
    height, width = strip.src.shape[-2:]
    for name, channels in (
        ("src", 3),
        ("true_alpha", 1),
        ("float_alpha", 1),
        ("quantized_alpha", 1),
    ):
        tensor = getattr(strip, name)
        if tensor is not None and tuple(tensor.shape) != (channels, height, width):
            raise PTQ4VMError(
                f"Expected {name} of {(channels, height, width)} in the strip '{strip.title}', "
                f"got {tuple(tensor.shape)}"
            )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().clamp(0, 1).cpu().numpy()
