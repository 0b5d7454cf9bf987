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
from ptq4vm.deploy.onnx import ask_for_exact_sums, export_onnx, require_exportable, require_options
from ptq4vm.deploy.parity import Parity, measure_parity
from ptq4vm.deploy.runner import to_tensor
from ptq4vm.deploy.runtimes import ExportedNetwork, checking_runtime, import_runtime
from ptq4vm.deploy.targets import TargetName
from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.video import Frame, open_frames

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
    target: TargetName = "openvino",
    opset: int = 17,
    dynamic_size: bool = False,
    pack: bool = False,
    simulate: bool = False,
    state_bits: int = 32,
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
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``, which is checked in ONNX Runtime.
        opset: ONNX opset version.
        dynamic_size: export with dynamic height and width.
        pack: store weights of up to 4 bits as INT4 or UINT4.
        simulate: also export layers that the target doesn't execute as integers.
        state_bits: 32, or 8 for int8 recurrent states outside the graph, at a small loss of
            accuracy.
        clip: video or folder of images for the parity check; a built-in clip by default. Frames are
            resized to the export size; a clip that is too short is repeated back and forth.
        frames: number of frames to compare, at least 30.
        tolerance: maximum mean |Δα| between PyTorch and the runtime.
        progress: callback, called with (frames done, total frames, description).

    Returns:
        The written file's properties and the parity.

    Raises:
        PTQ4VMError: as for :func:`ptq4vm.deploy.export_onnx`; the runtime isn't installed; or the
            mattes differ by more than ``tolerance``.
    """
    require_job(height, width, path, target, opset, clip, frames)
    require_exportable(network, height, width, target, opset, simulate, state_bits)
    with written_whole(Path(path)) as part:
        export_onnx(
            network, height, width, part, target, opset, dynamic_size, pack, simulate, state_bits
        )
        exported = ExportedNetwork(part)
        src = _frames(network, clip, height, width, frames)

        def report(done: int) -> None:
            if progress is not None:
                progress(done, frames, f"comparing with {exported.runtime}")

        parity = measure_parity(network, exported, src, report, exported.state_scale)
        if not parity.mean <= tolerance and exported.runtime == "onnxruntime":
            ask_for_exact_sums(part)
            exported = ExportedNetwork(part)
            parity = measure_parity(network, exported, src, report, exported.state_scale)
        if not parity.mean <= tolerance:
            raise PTQ4VMError(
                f"Expected mattes from {exported.runtime} that differ from PyTorch's by "
                f"{tolerance:g} in the mean, got {parity.mean:.2g} over {parity.frames} frames "
                f"(at most {parity.highest:.2g}). Nothing was written. Where the network wavers "
                "by itself, its roundings tip over; on a CPU without VNNI, OpenVINO's sums of "
                "8-bit weights may saturate. Try another --clip or CPU, or raise --tolerance."
            )
        storage = _storage(part, exported)
        size_mb = part.stat().st_size / 1e6
    return Exported(Path(path), size_mb, storage, exported.runtime, parity)


def require_job(
    height: int,
    width: int,
    path: Path,
    target: TargetName,
    opset: int,
    clip: Path | None,
    frames: int,
) -> None:
    """Check the arguments of :func:`export` that don't depend on the network.

    Raises:
        PTQ4VMError: as for :func:`export`, except for errors that depend on the network.
    """
    require_options(height, width, target, opset)
    if frames < MIN_FRAMES:
        raise PTQ4VMError(
            f"Expected at least {MIN_FRAMES} frames to compare on, got {frames}. Give more."
        )
    import_runtime(checking_runtime(target))
    if clip is not None:
        open_frames(clip)
    require_writable(path)


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
