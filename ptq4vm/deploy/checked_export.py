"""Export of a network to a runtime, with a parity check against PyTorch."""

from collections.abc import Callable, Iterator
from itertools import chain, cycle, islice
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from ptq4vm.atomic_io import require_writable, written_whole
from ptq4vm.data.builtin import BuiltinSource
from ptq4vm.deploy.exported import ExportedNetwork
from ptq4vm.deploy.frames import to_tensor
from ptq4vm.deploy.onnx import ask_for_exact_sums, export_onnx, require_exportable
from ptq4vm.deploy.options import ExportOptions
from ptq4vm.deploy.parity import Parity, measure_parity
from ptq4vm.deploy.runtimes import checking_runtime, import_runtime
from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.video import Frame, open_frames, require_size

MIN_FRAMES = 30
"""Minimum number of frames of the parity check: drift shows only after the state has settled."""


class Exported(NamedTuple):
    """Result of :func:`export`."""

    path: Path
    size_mb: float
    storage: str
    """Bits of the stored weights and the arithmetic of the layers, as text."""
    runtime: str
    """Runtime in which parity was measured."""
    parity: Parity


def export(
    network: MattingModel,
    height: int,
    width: int,
    path: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  (frozen)
    clip: Path | None = None,
    frames: int = MIN_FRAMES,
    tolerance: float = 5e-4,
    progress: Callable[[int, int, str], None] | None = None,
) -> Exported:
    """Export a network and check its mattes in the runtime against PyTorch over a clip.

    The file is kept only if the mean absolute difference of alpha is within ``tolerance``.

    Args:
        network: float or quantized network.
        height: frame height in pixels.
        width: frame width in pixels.
        path: ONNX file to write.
        options: target, opset and storage.
        clip: video or folder of images for the parity check; a built-in clip by default. Frames are
            resized to the export size; a clip that is too short is repeated back and forth.
        frames: number of frames to compare, at least 30.
        tolerance: maximum mean |Δα| between PyTorch and the runtime.
        progress: callback, called with (frames done, total frames, description).

    Raises:
        PTQ4VMError: as for :func:`ptq4vm.deploy.export_onnx`; the runtime isn't installed; or the
            mattes differ by more than ``tolerance``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ptq4vm import export, load_model
        >>> from ptq4vm.deploy import ExportOptions
        >>> network, folder = load_model("rvm_mobilenetv3"), Path(tempfile.mkdtemp())
        >>> options = ExportOptions(target="onnxruntime")  # needs the extra onnx
        >>> exported = export(network, 64, 96, folder / "float.onnx", options)
        >>> exported.runtime, exported.parity.frames
        ('onnxruntime', 30)
    """
    require_job(height, width, path, options, clip, frames)
    require_exportable(network, height, width, options)
    with written_whole(Path(path)) as part:
        export_onnx(network, height, width, part, options)
        src = _frames(network, clip, height, width, frames)
        exported, parity = _compared(network, part, src, tolerance, progress)
        size_mb = part.stat().st_size / 1e6
        return Exported(Path(path), size_mb, _storage(part, exported), exported.runtime, parity)


def require_job(
    height: int,
    width: int,
    path: Path,
    options: ExportOptions,
    clip: Path | None = None,
    frames: int = MIN_FRAMES,
) -> None:
    """Check the arguments of :func:`export` that don't depend on the network.

    Raises:
        PTQ4VMError: as for :func:`export`, except for errors that depend on the network.
    """
    require_size(height, width)
    if frames < MIN_FRAMES:
        raise PTQ4VMError(
            f"Expected at least {MIN_FRAMES} frames to compare on, got {frames}. Give more."
        )
    import_runtime(checking_runtime(options.target))
    if clip is not None:
        open_frames(clip)
    require_writable(path)


def _compared(
    network: MattingModel,
    path: Path,
    src: Tensor,
    tolerance: float,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[ExportedNetwork, Parity]:
    """Compare a written graph with its network over a clip (T, 3, H, W).

    A graph for ONNX Runtime that differs is compared again with exact sums, which are then stored
    in the file.

    Raises:
        PTQ4VMError: the mattes differ by more than ``tolerance``.
    """
    exported = ExportedNetwork(path)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(src), f"comparing with {exported.runtime}")

    parity = measure_parity(network, exported, src, report, exported.state_scale)
    if not parity.mean <= tolerance and exported.runtime == "onnxruntime":
        ask_for_exact_sums(path)
        exported = ExportedNetwork(path)
        parity = measure_parity(network, exported, src, report, exported.state_scale)
    if not parity.mean <= tolerance:
        raise PTQ4VMError(
            f"Expected mattes from {exported.runtime} that differ from PyTorch's by "
            f"{tolerance:g} in the mean, got {parity.mean:.2g} over {parity.frames} frames "
            f"(at most {parity.highest:.2g}). Nothing was written. Where the network wavers "
            "by itself, its roundings tip over; on a CPU without VNNI, OpenVINO's sums of "
            "8-bit weights may saturate. Try another --clip or CPU, or raise --tolerance."
        )
    return exported, parity


def _frames(
    network: MattingModel, clip: Path | None, height: int, width: int, count: int
) -> Tensor:
    """Return the clip of the parity check, (count, 3, height, width), RGB in [0, 1]."""
    if clip is None:
        # Any moving picture is sufficient, so the cut-out alpha of this network is good enough.
        source = BuiltinSource(
            "test",
            (height, width),
            1,
            count,
            cutout=lambda src: network.unroll(src).pha,
            labels=False,
        )
        return source.read(0, 0, count).src
    return torch.cat(
        [_resized(frame, height, width) for frame in islice(_to_and_fro(clip, count), count)]
    )


def _to_and_fro(clip: Path, count: int) -> Iterator[Frame]:
    once = list(islice(open_frames(clip), count))
    return cycle(chain(once, once[-2:0:-1]))


def _resized(frame: Frame, height: int, width: int) -> Tensor:
    picture = to_tensor(frame, "cpu")[None]
    picture = torch.nn.functional.interpolate(
        picture, (height, width), mode="bilinear", antialias=True
    )
    return picture.clamp(0, 1)


def _storage(path: Path, exported: ExportedNetwork) -> str:
    """Describe the bits of the stored weights and the arithmetic reported by the runtime."""
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT8: 8}
    widths = sorted({bits[kind] for kind in stored & bits.keys()}) or [32]
    counts = exported.layers
    return (
        f"weights stored at {' and '.join(map(str, widths))} bits; {exported.runtime} executes "
        f"{counts['int8']} of {sum(counts.values())} layers as int8, the others in float32"
    )
