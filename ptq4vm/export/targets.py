"""What the runtimes that a network can be exported for execute as integers, and what they don't."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantized_layers
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import QuantizedConv2d

TargetName = Literal["onnxruntime", "openvino", "tensorrt"]


@dataclass(frozen=True)
class Target:
    """A runtime, and what of a quantized network it executes as integers."""

    name: str
    title: str
    channel_grids: bool
    """It executes integer depthwise convolutions whose input has a grid for each channel."""
    zero_points: bool
    """Activations may have a zero point, else it wants the grid symmetric."""


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("onnxruntime", "ONNX Runtime", channel_grids=False, zero_points=True),
        Target("openvino", "OpenVINO", channel_grids=True, zero_points=True),
        Target("tensorrt", "TensorRT", channel_grids=False, zero_points=False),
    )
}


def find_target(name: str) -> Target:
    """The target of this name. Raises PTQ4VMError when there is none."""
    if name not in TARGETS:
        raise PTQ4VMError(f"Expected a target of {', '.join(TARGETS)}, got {name!r}. Choose one of those.")
    return TARGETS[name]


def require_executable(network: MattingModel, target: Target) -> None:
    """See that the target executes a quantized network as it was calibrated.

    Raises:
        PTQ4VMError: it can't; the message names the first layer and the setting to calibrate with.
    """
    for name, layer in quantized_layers(network).items():
        problem = _problem(layer, target)
        if problem is not None:
            raise PTQ4VMError(f"Expected a network that {target.title} executes as integers, got {name} with {problem}")


def _problem(layer: QuantizedConv2d, target: Target) -> str | None:
    inputs = layer.input_quantizer
    if inputs is None:
        return "its output quantized. Calibrate with --qconfig.placement deploy."
    if inputs.spec.bits < 8:
        return (
            f"inputs of {inputs.spec.bits} bits: no mainstream runtime executes convolutions on fewer than 8. "
            "Calibrate W8A8 or W4A8, or add --simulate true, which computes the same in wider arithmetic."
        )
    if inputs.scale.numel() > 1 and not target.channel_grids:
        return "a grid for each channel it reads. Calibrate with --qconfig.depthwise_granularity per_tensor."
    if inputs.spec.grid != "symmetric" and not target.zero_points:
        return f"an {inputs.spec.grid} grid. Calibrate with --qconfig.activation_grid symmetric."
    if layer.weight_quantizer.spec.grid != "symmetric":
        return "weights that have zero points. Calibrate with --qconfig.weight_grid symmetric."
    return None
