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
from ptq4vm.deploy.description import FORMAT_VERSION, METADATA
from ptq4vm.deploy.integer import IntegerLayer
from ptq4vm.deploy.options import ExportOptions
from ptq4vm.deploy.packing import pack_four_bits
from ptq4vm.deploy.simplify import drop_whole_slices, quantize_before_concat, unshare_zero_points
from ptq4vm.deploy.states import STATE_CODES, quantize_states, state_names
from ptq4vm.deploy.targets import find_target, require_executable
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import fold_batch_norm_, network_facts, quantized_layers, require_calibrated
from ptq4vm.models.base import MattingModel
from ptq4vm.video import require_size


def export_onnx(
    network: MattingModel,
    height: int,
    width: int,
    path: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  (frozen)
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
        options: target, opset and storage.

    Returns:
        ``path``.

    Raises:
        PTQ4VMError: the network isn't calibrated, the target doesn't execute it, the size isn't
            supported, ONNX can't express an operation, or the file can't be written.
    """
    require_exportable(network, height, width, options)
    state_scale = _state_scale(network, options.state_bits)
    description = _describe(network, height, width, options) | {"state_scale": state_scale}
    body = _exportable(network)
    src = torch.zeros(1, 3, height, width)
    example = (src, *body.initial_state(src))
    try:
        with written_whole(Path(path)) as part:
            _trace_to(part, FrameFunction(body), example, options)
            model = onnx.load(part)
            _name_sizes(model, example, options.dynamic_size)
            _simplify(model, options)
            if state_scale is not None:
                quantize_states(model, state_names(len(example) - 1), state_scale)
            if options.pack:
                pack_four_bits(model)
            onnx.helper.set_model_props(model, {METADATA: json.dumps(description)})
            onnx.save(model, part)
            onnx.checker.check_model(str(part), full_check=True)
    except _NOT_EXPRESSIBLE as error:
        raise PTQ4VMError(
            f"Expected a network that ONNX opset {options.graph_opset} can express, got: {error}. "
            "Try another opset."
        ) from error
    return Path(path)


def require_exportable(
    network: MattingModel, height: int, width: int, options: ExportOptions
) -> None:
    """Check the arguments of :func:`export_onnx`, without exporting.

    Raises:
        PTQ4VMError: the network isn't calibrated, its weights aren't fixed, the target doesn't
            execute it, or the size isn't supported.
    """
    require_size(height, width)
    if not isinstance(network, MattingModel):
        raise PTQ4VMError(
            f"Expected a network that can be taken apart, got {type(network).__name__}. "
            "Give its weights or its checkpoint."
        )
    require_calibrated(network)
    _require_fixed(network)
    _state_scale(network, options.state_bits)
    if not options.simulate:
        require_executable(network, find_target(options.target))


def _require_fixed(network: MattingModel) -> None:
    for name, layer in quantized_layers(network).items():
        if not layer.weight_quantizer.fixed or layer.affine is not None:
            raise PTQ4VMError(
                f"Expected a network whose weights are fixed codes, got {name}, which still "
                "learns. Call fix_() and absorb_affine_() of each of quantized_layers(network), "
                "or let its fit run to the end."
            )


def ask_for_exact_sums(path: Path) -> None:
    """Exclude ONNX Runtime kernels with saturating sums for this exported graph."""
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA:
            entry.value = json.dumps(json.loads(entry.value) | {"exact_sums": True})
    onnx.save(model, path)


def _state_scale(network: MattingModel, bits: int) -> float | None:
    """Return the scale of 8-bit states, or None for 32 bits."""
    if bits == 32:
        return None
    if network.state_bound is None:
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
    network: MattingModel, height: int, width: int, options: ExportOptions
) -> dict[str, Any]:
    """Return the description stored in the file, as plain JSON values."""
    facts = network_facts(network, height, width)
    return {
        "format_version": FORMAT_VERSION,
        "network": network.name,
        "downsample_ratio": network.downsample_ratio,
        "arguments": dict(network.arguments),
        "target": options.target,
        "size": None if options.dynamic_size else [height, width],
        "bits": facts.bits,
        "placement": facts.placement,
        "bit_operations": facts.bit_operations,
        "effective_flops": facts.effective_flops,
    }


def _exportable(network: MattingModel) -> MattingModel:
    """Return a copy on the CPU with integer layers, or with BatchNorm folded in a float network."""
    body = copy.deepcopy(network).eval().cpu().float()
    layers = quantized_layers(body)
    for name, layer in layers.items():
        body.set_submodule(name, IntegerLayer(layer))
    return body if layers else fold_batch_norm_(body)


def _simplify(model: onnx.ModelProto, options: ExportOptions) -> None:
    drop_whole_slices(model)
    if options.target == "onnxruntime":
        quantize_before_concat(model)
        unshare_zero_points(model)


def _trace_to(
    path: Path, frame_network: "FrameFunction", example: tuple[Tensor, ...], options: ExportOptions
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
            opset_version=options.graph_opset,
            dynamic_axes=axes if options.dynamic_size else None,
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


class FrameFunction(nn.Module):
    """Frame function of a network with only tensors as arguments and results, for tracing."""

    def __init__(self, network: MattingModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return fgr, pha and the new state of one frame."""
        output = self.network.forward_frame(src, state)
        return (output.fgr, output.pha, *output.state)
