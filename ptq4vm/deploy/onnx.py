"""ONNX export of a network as a graph over one frame and its recurrent state."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ptq4vm.atomic_io import written_whole
from ptq4vm.deploy.integer import IntegerLayer
from ptq4vm.deploy.packing import pack_four_bits
from ptq4vm.deploy.simplify import drop_whole_slices, quantize_before_concat, unshare_zero_points
from ptq4vm.deploy.states import STATE_CODES, quantize_states
from ptq4vm.deploy.targets import TargetName, find_target, require_executable
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import (
    bits_label,
    fold_batch_norm_,
    network_cost,
    quantized_layers,
    require_calibrated,
)
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import QConfig
from ptq4vm.video import require_size

OPSETS = range(13, 21)
"""From the first opset with per-channel quantization to the last that torch's exporter writes."""
METADATA = "ptq4vm"
"""Metadata key of the JSON description of an exported graph."""
FORMAT_VERSION = 1


def export_onnx(
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
) -> Path:
    """Export a float or quantized network as an ONNX graph over one frame.

    Inputs are ``src`` (1, 3, height, width), RGB in [0, 1], and the recurrent states ``r1i``,
    ``r2i``, ... with the shapes of :meth:`MattingModel.initial_state`. Outputs are ``fgr``
    (1, 3, height, width), ``pha`` (1, 1, height, width) and the new states ``r1o``, ``r2o``, ...
    A per-frame network has no states. The downsample ratio is constant and BatchNorm is folded.
    Layers of a quantized network are exported in QDQ format: QuantizeLinear and DequantizeLinear
    around the activations and DequantizeLinear behind the integer weights; γ, β and learned
    rounding are folded into the codes.

    Args:
        network: network in evaluation mode; it isn't modified.
        height: frame height in pixels.
        width: frame width in pixels.
        path: file to write, atomically; parent folders are created.
        target: runtime that must execute the quantized network: ``onnxruntime``, ``openvino`` or
            ``tensorrt``.
        opset: ONNX opset version, 13 to 20; ignored with ``pack``.
        dynamic_size: export with dynamic height and width; ``height`` and ``width`` are then those
            of the traced example. The batch size is always 1.
        pack: store weights of up to 4 bits as INT4 or UINT4, two per byte, which requires opset 21;
            otherwise one per byte.
        simulate: also export layers that the target doesn't execute as integers; their result is
            the same, in wider arithmetic.
        state_bits: 32, or 8 for int8 states outside the graph: a quarter of the memory traffic, one
            scale for all states, which is stored in the file. Rounding the states in every frame
            changes the mattes slightly.

    Returns:
        ``path``.

    Raises:
        PTQ4VMError: the network isn't calibrated, the target doesn't execute it, the opset or the
            size isn't supported, ONNX can't express an operation, or the file can't be written.
    """
    require_exportable(network, height, width, target, opset, simulate, state_bits)
    state_scale = _state_scale(network, state_bits)
    description = _describe(network, height, width, target, dynamic_size) | {
        "state_scale": state_scale
    }
    body = copy.deepcopy(network).eval().cpu().float()
    layers = quantized_layers(body)
    if layers:
        for name, layer in layers.items():
            body.set_submodule(name, IntegerLayer(layer))
    else:
        fold_batch_norm_(body)
    src = torch.zeros(1, 3, height, width)
    example = (src, *body.initial_state(src))
    try:
        with written_whole(Path(path)) as part:
            _trace_to(part, _Frame(body), example, OPSETS[-1] if pack else opset, dynamic_size)
            model = onnx.load(part)
            _name_sizes(model, example, dynamic_size)
            drop_whole_slices(model)
            if target == "onnxruntime":
                quantize_before_concat(model)
                unshare_zero_points(model)
            if state_scale is not None:
                quantize_states(model, state_names(len(example) - 1), state_scale)
            if pack:
                pack_four_bits(model)
            onnx.helper.set_model_props(model, {METADATA: json.dumps(description)})
            onnx.save(model, part)
            onnx.checker.check_model(str(part), full_check=True)
    except _NOT_EXPRESSIBLE as error:
        raise PTQ4VMError(
            f"Expected a network that ONNX opset {opset} can express, got: {error}. "
            "Try another opset."
        ) from error
    return Path(path)


def require_exportable(
    network: MattingModel,
    height: int,
    width: int,
    target: TargetName,
    opset: int,
    simulate: bool = False,
    state_bits: int = 32,
) -> None:
    """Check the arguments of :func:`export_onnx`, without exporting.

    Raises:
        PTQ4VMError: the network isn't calibrated, the target doesn't execute it, or the opset or
            the size isn't supported.
    """
    require_options(height, width, target, opset)
    require_calibrated(network)
    _state_scale(network, state_bits)
    if not simulate:
        require_executable(network, find_target(target))


def require_options(height: int, width: int, target: str, opset: int) -> None:
    """Check the arguments of :func:`require_exportable` that don't depend on the network.

    Raises:
        PTQ4VMError: the target is unknown, or the opset or the size isn't supported.
    """
    find_target(target)
    if opset not in OPSETS:
        raise PTQ4VMError(
            f"Expected an opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset}. Leave it out for 17."
        )
    require_size(height, width)


def ask_for_exact_sums(path: Path) -> None:
    """Exclude ONNX Runtime kernels with saturating sums for this exported graph."""
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA:
            entry.value = json.dumps(json.loads(entry.value) | {"exact_sums": True})
    onnx.save(model, path)


def state_names(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the graph's names of ``count`` input and output states: (r1i, ...), (r1o, ...)."""
    return tuple(f"r{i}i" for i in range(1, count + 1)), tuple(
        f"r{i}o" for i in range(1, count + 1)
    )


def _state_scale(network: MattingModel, bits: int) -> float | None:
    """Return the scale of 8-bit states, or None for 32 bits."""
    if bits == 32:
        return None
    if bits != 8 or network.state_bound is None:
        raise PTQ4VMError(
            f"Expected states of 32 bits, or 8 where the network knows their state_bound, "
            f"got {bits} for {network.name}. Leave state_bits out."
        )
    return network.state_bound / STATE_CODES


_NOT_EXPRESSIBLE = (
    torch.onnx.errors.OnnxExporterError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


def _describe(
    network: MattingModel, height: int, width: int, target: str, dynamic_size: bool
) -> dict[str, Any]:
    """Return the description stored in the file, as plain JSON values."""
    cost = network_cost(network, height, width)
    qconfig: QConfig | None = getattr(network, "qconfig", None)
    return {
        "format_version": FORMAT_VERSION,
        "network": network.name,
        "downsample_ratio": network.downsample_ratio,
        "arguments": dict(network.arguments),
        "target": target,
        "size": None if dynamic_size else [height, width],
        "bits": "W32A32" if qconfig is None else bits_label(qconfig, cost),
        "placement": "" if qconfig is None else qconfig.placement,
        "bit_operations": cost.bit_operations,
    }


def _trace_to(
    path: Path, frame_network: "_Frame", example: tuple[Tensor, ...], opset: int, open_size: bool
) -> None:
    inputs, outputs = state_names(len(example) - 1)
    inputs, outputs = ("src", *inputs), ("fgr", "pha", *outputs)
    axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in inputs + outputs}
    with torch.no_grad(), warnings.catch_warnings():
        # The legacy exporter warns that it is deprecated, and of every size made constant.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            frame_network,
            example,
            str(path),
            input_names=inputs,
            output_names=outputs,
            opset_version=opset,
            dynamic_axes=axes if open_size else None,
            dynamo=False,  # dynamo needs another package and writes paths of source files
        )


def _name_sizes(model: onnx.ModelProto, example: tuple[Tensor, ...], open_size: bool) -> None:
    """Set the shapes of the graph's inputs and outputs, in place of the exporter's names.

    Dynamic sizes are named ``height`` and ``width``, those of state k ``rk_height`` and
    ``rk_width``; batch and channels are constants.
    """
    befores, afters = state_names(len(example) - 1)
    shapes = {"src": ("", example[0].shape), "fgr": ("", example[0].shape)}
    shapes["pha"] = ("", torch.Size([1, 1, *example[0].shape[2:]]))
    for names in zip(befores, afters, example[1:], strict=True):
        shapes |= dict.fromkeys(names[:2], (f"{names[0][:-1]}_", names[2].shape))
    for value in (*model.graph.input, *model.graph.output):
        prefix, shape = shapes[value.name]
        dims = value.type.tensor_type.shape
        del dims.dim[:]
        for place, side in enumerate(shape):
            if open_size and place >= 2:
                dims.dim.add().dim_param = f"{prefix}{'height' if place == 2 else 'width'}"
            else:
                dims.dim.add().dim_value = side


class _Frame(nn.Module):
    """Single-frame wrapper of a network with only tensors as arguments and results, for export."""

    def __init__(self, network: MattingModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output = self.network.forward_frame(src, state)
        return (output.fgr, output.pha, *output.state)
