"""The report as a single, self-contained HTML file."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from torch import Tensor

from ptq4vm.atomic_io import written_whole
from ptq4vm.deploy import TARGETS, Speed
from ptq4vm.reporting.charts import BarChart, LineChart, bar_chart, line_chart
from ptq4vm.reporting.layers import Layer, Signal
from ptq4vm.reporting.pictures import ERROR_MAX, Strip
from ptq4vm.reporting.results import FLOAT, ResultRow
from ptq4vm.reporting.run_artifacts import (
    Losses,
    RowFiles,
    read_losses,
    read_sensitivity,
    read_timings,
    row_files,
    values_by_frame,
)
from ptq4vm.reporting.runs import RunFolder
from ptq4vm.reporting.speeds import speed_cells
from ptq4vm.reporting.tables import format_number, table_cells

REPORT = "report.html"
_LONGEST_SIDE = 640
_CURVES = {"mad": "MAD ×10³", "dtssd": "dtSSD ×10²"}


class Shot(NamedTuple):
    """One frame and its alpha mattes by the float and the quantized networks, on the CPU."""

    clip: str
    frame: int
    src: Tensor
    """(3, H, W) RGB in [0, 1]."""
    true_alpha: Tensor | None
    """(1, H, W) in [0, 1]; None without ground truth."""
    float_alpha: Tensor
    """(1, H, W) alpha of the float network."""
    quantized: Mapping[str, Tensor]
    """(1, H, W) alpha of the quantized networks, by bits."""

    def strip(self, bits: str) -> Strip:
        """Return this frame as one row of pictures."""
        alphas = (self.true_alpha, self.float_alpha, self.quantized[bits])
        return Strip(f"{self.clip}, frame {self.frame}", self.src, *alphas)


class Inside(NamedTuple):
    """Layers, blocks and signal-to-noise ratios of a quantized network."""

    layers: Sequence[Layer]
    blocks: Sequence[str]
    """Names of the blocks of block reconstruction."""
    placement: str
    ignored_modules: Sequence[str]
    runtimes: Mapping[str, str | None]
    """By runtime name, why it doesn't execute the network as integers; None if it does."""
    signals: Mapping[str, Signal]
    """By layer; empty if not measured."""


def write_page(
    run: RunFolder,
    shots: Sequence[Shot],
    inside: Mapping[str, Inside],
    path: Path,
    problem: str | None = None,
) -> None:
    """Write the report of a finished run.

    Args:
        run: the run.
        shots: frames to show; empty if they couldn't be computed.
        inside: the final networks, by bits.
        path: .html file, written atomically.
        problem: why there are no frames.

    Raises:
        PTQ4VMError: a file in the run folder is damaged, or the report can't be written.
    """
    environment = Environment(
        loader=PackageLoader("ptq4vm.reporting", "page"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    rows = row_files(run)
    headings, body = table_cells(run.rows)
    last = [id(row) for row in run.final.values()]
    losses = [found for found in map(read_losses, rows[1:]) if found is not None]
    html = environment.get_template("report.html").render(
        run=run,
        name=run.folder.resolve().name,
        headlines=[_headline(run.rows[0], bits, row) for bits, row in run.final.items()],
        headings=headings,
        body=[
            (row.method == FLOAT or id(row) in last, cells)
            for row, cells in zip(run.rows, body, strict=True)
        ],
        timings={title: _plain_table(timed) for title, timed in read_timings(run).items()},
        shots=_pictures(shots),
        problem=problem,
        error_max=ERROR_MAX,
        curves=_curves(rows, len(run.bits) > 1),
        layers={bits: _layer_charts(run, found) for bits, found in inside.items()},
        inside=inside,
        summaries={bits: _summarise(found.layers) for bits, found in inside.items()},
        block_charts=_block_charts(losses, inside),
        loss_chart=_loss_chart([found for found in losses if found.loss], len(run.bits) > 1),
        target=TARGETS.get(run.settings.get("target") or ""),
        format=format_number,
    )
    with written_whole(path) as part:
        part.write_text(html, encoding="utf-8")


def _plain_table(speeds: Sequence[Speed]) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    headings, body = speed_cells(speeds)
    return headings, [(False, cells) for cells in body]


class Fact(NamedTuple):
    """Figure before and after quantization."""

    name: str
    before: str
    after: str
    ratio: str


def _headline(before: ResultRow, bits: str, after: ResultRow) -> tuple[str, list[Fact]]:
    pairs: list[tuple[str, float | None, float | None]] = [
        ("MAD ×10³", before.metrics.get("mad"), after.metrics.get("mad")),
        ("dtSSD ×10²", before.metrics.get("dtssd"), after.metrics.get("dtssd")),
        ("weights, MB", before.cost.size_mb, after.cost.size_mb),
        ("bit operations ×10⁹", _billions(before), _billions(after)),
    ]
    facts = [
        Fact(
            name,
            format_number(one),
            format_number(other),
            f"×{other / one:.2f}" if one and other else "",
        )
        for name, one, other in pairs
    ]
    return bits, facts


def _billions(row: ResultRow) -> float | None:
    operations = row.cost.bit_operations
    return None if operations is None else operations / 1e9


# ---- pictures ----------------------------------------------------------------------------------


def _pictures(shots: Sequence[Shot]) -> list[dict[str, Any]]:
    """Return the frames of each clip as data URIs."""
    clips: dict[str, list[dict[str, Any]]] = {}
    for shot in shots:
        seen = {
            "frame": shot.frame,
            "source": _encode(_pixels(shot.src)),
            "truth": "" if shot.true_alpha is None else _encode(_pixels(shot.true_alpha)),
            "float": _encode(_pixels(shot.float_alpha)),
            "quantized": {bits: _encode(_pixels(alpha)) for bits, alpha in shot.quantized.items()},
            "error": {
                bits: _encode(_heat(alpha, shot.float_alpha))
                for bits, alpha in shot.quantized.items()
            },
        }
        clips.setdefault(shot.clip, []).append(seen)
    height = {shot.clip: shot.src.shape[-2:] for shot in shots}
    return [
        {"name": name, "size": tuple(height[name]), "frames": frames}
        for name, frames in clips.items()
    ]


def _pixels(picture: Tensor) -> np.ndarray:
    """Convert to uint8 (H, W, 3) in BGR or (H, W, 1), for OpenCV."""
    return np.rint(picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)[..., ::-1]


def _heat(alpha: Tensor, reference: Tensor) -> np.ndarray:
    error = (alpha - reference).abs()[0].numpy() / ERROR_MAX
    return np.ascontiguousarray(colormaps["inferno"](error.clip(0, 1), bytes=True)[..., 2::-1])


def _encode(pixels: np.ndarray) -> str:
    scale = _LONGEST_SIDE / max(pixels.shape[:2])
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    webp = cv2.imencode(".webp", np.ascontiguousarray(pixels), [cv2.IMWRITE_WEBP_QUALITY, 85])[1]
    return "data:image/webp;base64," + base64.b64encode(webp.tobytes()).decode()


# ---- charts ------------------------------------------------------------------------------------


class Curves(NamedTuple):
    """MAD and dtSSD curves of each clip."""

    series: list[tuple[int, str, bool]]
    """(index of the colour, title, True if visible at first) per series."""
    clips: dict[str, list[LineChart]]


def _curves(rows: Sequence[RowFiles], several: bool) -> Curves:
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


def _layer_charts(run: RunFolder, inside: Inside) -> list[BarChart]:
    names = [layer.name for layer in inside.layers]
    charts: list[tuple[str, Mapping[str, Sequence[float | None]], bool]] = []
    weights, activations = zip(
        *((layer.weight_bits, layer.activation_bits) for layer in inside.layers), strict=True
    )
    charts.append(("bits", {"weights": weights, "activations": activations}, False))
    if inside.signals:
        signals = [inside.signals.get(name, Signal(None, None)) for name in names]
        sides = {
            "weights": [one.weights for one in signals],
            "output": [one.output for one in signals],
        }
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


def _block_charts(
    losses: Sequence[Losses], inside: Mapping[str, Inside]
) -> list[tuple[str, BarChart]]:
    """Lay out the block losses of each block reconstruction row and each of the bits."""
    charts = []
    for found in losses:
        if not found.hard or found.hard == found.nearest:  # global calibration, or nothing to learn
            continue
        names = inside[found.row.bits].blocks
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


def _loss_chart(losses: Sequence[Losses], several: bool) -> tuple[list[str], LineChart] | None:
    if not losses:
        return None
    series = {
        number: (_label(found.row, several), found.loss) for number, found in enumerate(losses, 1)
    }
    return [title for title, _ in series.values()], line_chart("loss of global calibration", series)


class Kind(NamedTuple):
    """Group of layers with the same bits and quantized tensors."""

    bits: str
    grids: str
    layers: int
    share: float
    names: list[str]


def _summarise(layers: Sequence[Layer]) -> list[Kind]:
    kinds = dict.fromkeys((layer.bits, layer.grids) for layer in layers)
    groups = [
        (kind, [layer for layer in layers if (layer.bits, layer.grids) == kind]) for kind in kinds
    ]
    found = [
        Kind(
            *kind, len(group), sum(layer.share for layer in group), [layer.name for layer in group]
        )
        for kind, group in groups
    ]
    return sorted(found, key=lambda kind: -kind.share)
