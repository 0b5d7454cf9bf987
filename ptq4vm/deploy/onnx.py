"""A network as ONNX: one frame and the state before it in, the matte and the state after it out."""

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
"""From the first that knows quantization per channel to the last that torch's exporter writes."""
METADATA = "ptq4vm"
"""Key of the JSON that says what an exported graph is."""
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
    """Write a network, float or quantized, as an ONNX graph over one frame, the downsample ratio baked in.

    Inputs are ``src`` (1, 3, height, width), RGB in [0, 1], and the states ``r1i``, ``r2i``, ... as
    :meth:`MattingModel.initial_state` shapes them; outputs are ``fgr`` (1, 3, height, width), ``pha``
    (1, 1, height, width) and the new states ``r1o``, ``r2o``, ... A per-frame network has no states. BatchNorm is
    folded; a quantized network's layers have QuantizeLinear and DequantizeLinear around their input and integer
    weights behind DequantizeLinear, and nothing is left of γ, β and learned rounding.

    Args:
        network: in evaluation mode; it is left alone.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        path: the file to write, whole or not at all; folders above it are made.
        target: the runtime whose rules a quantized network must meet: onnxruntime, openvino or tensorrt.
        opset: version of ONNX's operators, 13 to 20; without effect on ``pack``.
        dynamic_size: leave height and width open; ``height`` and ``width`` are then those of the example. Batch is 1.
        pack: store weights of up to 4 bits as INT4 or UINT4, two to a byte, which takes opset 21; else one.
        simulate: write also what the target does not execute as integers; it computes the same in wider arithmetic.
        state_bits: 32, or 8: the states are then int8 outside the graph, a quarter of the traffic, on one grid that
            the file tells; rounded from frame to frame, they change the mattes a little.

    Returns:
        ``path``.

    Raises:
        PTQ4VMError: the network isn't calibrated, the target doesn't execute it, the opset or the size can't be
            served, ONNX has no form for something the network does, or nothing can be written there.
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
            f"Expected a network that ONNX opset {opset} can express, got: {error}. Try another opset."
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
    """Find what :func:`export_onnx`, which has these arguments, would refuse, without any work.

    Raises:
        PTQ4VMError: the network isn't calibrated, the target doesn't execute it, or opset or size can't be served.
    """
    require_options(height, width, target, opset)
    require_calibrated(network)
    _state_scale(network, state_bits)
    if not simulate:
        require_executable(network, find_target(target))


def require_options(height: int, width: int, target: str, opset: int) -> None:
    """The part of :func:`require_exportable` that needs no network."""
    find_target(target)
    if opset not in OPSETS:
        raise PTQ4VMError(
            f"Expected an opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset}. Leave it out for 17."
        )
    require_size(height, width)


def ask_for_exact_sums(path: Path) -> None:
    """Have ONNX Runtime, where it runs this exported graph, leave out kernels whose sums may saturate."""
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA:
            entry.value = json.dumps(json.loads(entry.value) | {"exact_sums": True})
    onnx.save(model, path)


def state_names(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in the graph of ``count`` states, before the frame and after it: (r1i, ...), (r1o, ...)."""
    return tuple(f"r{i}i" for i in range(1, count + 1)), tuple(
        f"r{i}o" for i in range(1, count + 1)
    )


def _state_scale(network: MattingModel, bits: int) -> float | None:
    """What a code of an 8-bit state is worth."""
    if bits == 32:
        return None
    if bits != 8 or network.state_bound is None:
        raise PTQ4VMError(
            f"Expected states of 32 bits, or 8 where the network knows their state_bound, got {bits} for "
            f"{network.name}. Leave state_bits out."
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
    """What a reader of the file must know; plain JSON."""
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


def _name_sizes(model: onnx.ModelProto, example: tuple[Tensor, ...], open_size: bool) -> None:
    """Write the true shapes of what a graph takes and gives, in place; the exporter leaves names of its own in them.

    Open sizes are ``height`` and ``width``, those of state k ``rk_height`` and ``rk_width``; batch and channels are
    numbers.
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
    """One frame of a network with tensors alone for arguments and results, as an exporter takes them."""

    def __init__(self, network: MattingModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output = self.network.forward_frame(src, state)
        return (output.fgr, output.pha, *output.state)
