"""The job after quantization: a network exported for a runtime, and shown to compute there what was calibrated."""

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
"""A recurrent network drifts, if it does, after its state has settled."""


class Exported(NamedTuple):
    """What :func:`export_checked` leaves behind."""

    path: Path
    size_mb: float
    storage: str
    """How weights are stored, and how they execute."""
    runtime: str
    """The runtime that parity was measured in."""
    parity: Parity


def export_checked(
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
    """Export a network, play a clip through it in its runtime, and keep the file only if the mattes are the same.

    Args:
        network: float or quantized.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        path: the ONNX file.
        target: onnxruntime, openvino or tensorrt; the last is checked in ONNX Runtime.
        opset: version of ONNX's operators.
        dynamic_size: leave height and width open.
        pack: store weights of up to 4 bits as INT4 or UINT4.
        simulate: write also what the target does not execute as integers.
        state_bits: 32, or 8: states are int8 outside the graph, which costs a little accuracy.
        clip: a video, or a folder of images, to play; by default a built-in one. Frames are resized to the export's
            size, and a clip that is too short is played to and fro.
        frames: how many are played, at least 30.
        tolerance: the largest mean |Δα| between PyTorch and the runtime that is let through.
        progress: told the frames played, their number, and what is done.

    Raises:
        PTQ4VMError: as :func:`ptq4vm.deploy.export_onnx`; the runtime isn't installed; or the mattes differ.
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
                f"Expected mattes from {exported.runtime} that differ from PyTorch's by {tolerance:g} in the mean, got "
                f"{parity.mean:.2g} over {parity.frames} frames (at most {parity.highest:.2g}). Nothing was written. "
                "Where the network wavers by itself, its roundings tip over; on a CPU without VNNI, OpenVINO's sums of "
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
    """Find mistakes in the arguments of :func:`export_checked`, which has the same, before a network is loaded.

    Raises:
        PTQ4VMError: as :func:`export_checked`, but for what the network decides.
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
    """(count, 3, height, width), RGB in [0, 1]."""
    if clip is None:
        # Any moving picture will do; whom the network finds in it doesn't matter.
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
    """What the graph stores its weights as, and what its runtime said that it executes."""
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT8: 8}
    widths = sorted({bits[kind] for kind in stored & bits.keys()}) or [32]
    counts = exported.layers
    return (
        f"weights stored at {' and '.join(map(str, widths))} bits; {exported.runtime} executes {counts['int8']} of "
        f"{sum(counts.values())} layers as int8, the others in float32"
    )
