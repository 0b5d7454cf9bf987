"""The float network as ONNX: one frame and the state before it in, the matte and the state after it out."""

import copy
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import fold_batch_norm_, quantized_layers
from ptq4vm.models.base import MattingModel
from ptq4vm.writing import written_whole

OPSETS = range(13, 21)
"""From the first that knows quantization per channel to the last that torch's exporter writes."""


def export_float(
    network: MattingModel, height: int, width: int, path: Path, opset: int = 17, dynamic_size: bool = False
) -> Path:
    """Write a float network as an ONNX graph over one frame, BatchNorm folded, the downsample ratio baked in.

    Inputs are ``src`` (1, 3, height, width), RGB in [0, 1], and the states ``r1i``, ``r2i``, ... as
    :meth:`MattingModel.initial_state` shapes them; outputs are ``fgr`` (1, 3, height, width), ``pha``
    (1, 1, height, width) and the new states ``r1o``, ``r2o``, ... A per-frame network has no states.

    Args:
        network: the float network; it is left alone.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        path: the file to write, whole or not at all; folders above it are made.
        opset: version of ONNX's operators, 13 to 20.
        dynamic_size: leave height and width open; ``height`` and ``width`` are then those of the example.

    Returns:
        ``path``.

    Raises:
        PTQ4VMError: the network is quantized, the opset or the size can't be served, ONNX has no form for something
            the network does, or nothing can be written there.
    """
    if quantized_layers(network):
        raise PTQ4VMError(f"Expected a float network to export, got quantized {network.name}. Give its float weights.")
    if opset not in OPSETS:
        raise PTQ4VMError(f"Expected an opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset}. Leave it out for 17.")
    if height < 1 or width < 1:
        raise PTQ4VMError(f"Expected a frame of at least 1 x 1 pixels, got {height} x {width}. Give the frames' size.")
    frame_network = _Frame(fold_batch_norm_(copy.deepcopy(network).eval().cpu().float()))
    src = torch.zeros(1, 3, height, width)
    _write(Path(path), frame_network, (src, *frame_network.network.initial_state(src)), opset, dynamic_size)
    return Path(path)


def state_names(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in the graph of ``count`` states, before the frame and after it: (r1i, ...), (r1o, ...)."""
    return tuple(f"r{i}i" for i in range(1, count + 1)), tuple(f"r{i}o" for i in range(1, count + 1))


_NOT_EXPRESSIBLE = (
    torch.onnx.errors.OnnxExporterError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


def _write(path: Path, frame_network: "_Frame", example: tuple[Tensor, ...], opset: int, open_size: bool) -> None:
    try:
        with written_whole(path) as part:
            _trace_to(part, frame_network, example, opset, open_size)
            onnx.checker.check_model(str(part), full_check=True)
    except _NOT_EXPRESSIBLE as error:
        raise PTQ4VMError(
            f"Expected a network that ONNX opset {opset} can express, got: {error}. Try another opset."
        ) from error


def _trace_to(path: Path, frame_network: "_Frame", example: tuple[Tensor, ...], opset: int, open_size: bool) -> None:
    inputs, outputs = state_names(len(example) - 1)
    inputs, outputs = ("src", *inputs), ("fgr", "pha", *outputs)
    axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in inputs + outputs}
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter calls itself outdated, and warns of every size that it bakes in, as it is to.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            frame_network,
            example,
            str(path),
            input_names=inputs,
            output_names=outputs,
            opset_version=opset,
            dynamic_axes=axes if open_size else None,
            dynamo=False,  # the newer exporter wants a package more, and writes paths of source files
        )


class _Frame(nn.Module):
    """One frame of a network with tensors alone for arguments and results, as an exporter takes them."""

    def __init__(self, network: MattingModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output = self.network.forward_frame(src, state)
        return (output.fgr, output.pha, *output.state)
