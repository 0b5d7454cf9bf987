"""The report as a single, self-contained HTML file."""

import base64
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
from ptq4vm.reporting.layers import Layer, Signal
from ptq4vm.reporting.page_charts import block_charts, curves, layer_charts, loss_chart
from ptq4vm.reporting.pictures import ERROR_MAX, Strip
from ptq4vm.reporting.results import FLOAT, ResultRow
from ptq4vm.reporting.run_artifacts import read_losses, read_timings, row_files
from ptq4vm.reporting.runs import RunFolder
from ptq4vm.reporting.speeds import speed_cells
from ptq4vm.reporting.tables import format_number, table_cells

REPORT = "report.html"
_LONGEST_SIDE = 640


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
        curves=curves(rows, len(run.bits) > 1),
        layers={
            bits: layer_charts(run, found.layers, found.signals) for bits, found in inside.items()
        },
        inside=inside,
        summaries={bits: _summarise(found.layers) for bits, found in inside.items()},
        block_charts=block_charts(losses, {bits: found.blocks for bits, found in inside.items()}),
        loss_chart=loss_chart([found for found in losses if found.loss], len(run.bits) > 1),
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
        *_alpha_errors(before, after),
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


def _alpha_errors(
    before: ResultRow, after: ResultRow
) -> list[tuple[str, float | None, float | None]]:
    """Return MAD and dtSSD against the true alpha, or the float network's where there is none."""
    if after.metrics or after.fidelity is None or before.fidelity is None:
        return [
            ("MAD ×10³", before.metrics.get("mad"), after.metrics.get("mad")),
            ("dtSSD ×10²", before.metrics.get("dtssd"), after.metrics.get("dtssd")),
        ]
    return [
        ("MAD ×10³ to float", before.fidelity.mad, after.fidelity.mad),
        ("dtSSD ×10² to float", before.fidelity.dtssd, after.fidelity.dtssd),
    ]


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


# ---- layers ------------------------------------------------------------------------------------


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
