"""Export targets and the quantization schemes that they execute as integers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantized_layers
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import Placement, QConfig, QuantizedLayer

TargetName = Literal["onnxruntime", "openvino", "tensorrt"]


@dataclass(frozen=True)
class Target:
    """Export target and the quantization schemes that it executes as integers."""

    title: str
    placements: tuple[Placement, ...]
    """Supported placements of quantizers; the first is the default for calibration."""
    channel_grids: bool
    """True if integer depthwise convolutions support per-channel scales of the input."""
    zero_points: bool
    """True if activations may have a zero point; otherwise the grid must be symmetric."""

    def fit(self, qconfig: QConfig) -> QConfig:
        """Return the configuration with a scheme that this target executes.

        Only settings that are at their defaults are changed.

        Raises:
            PTQ4VMError: the configuration asks for a scheme that the target doesn't execute.
        """
        default = QConfig()
        placement = qconfig.placement
        if placement not in self.placements and placement == default.placement:
            placement = self.placements[0]
        by_channel = self.channel_grids and placement == "deploy"
        wanted: dict[str, Any] = {
            "placement": placement if placement in self.placements else self.placements[0],
            "depthwise_granularity": "per_channel" if by_channel else "per_tensor",
            "activation_grid": qconfig.activation_grid if self.zero_points else "symmetric",
        }
        for name, value in wanted.items():
            given = getattr(qconfig, name)
            if given not in (value, getattr(default, name)):
                raise PTQ4VMError(
                    f"Expected {name} {value}, which {self.title} executes, got {given}. Leave it "
                    "out, or leave the target out."
                )
        return replace(qconfig, **wanted)

    def require(self, qconfig: QConfig, what: str) -> None:
        """Check that this target executes a configuration as integers.

        Args:
            qconfig: the configuration.
            what: description of it, for the message.

        Raises:
            PTQ4VMError: it doesn't.
        """
        by_channel = qconfig.depthwise_granularity == "per_channel" and not self.channel_grids
        unsigned = qconfig.activation_grid != "symmetric" and not self.zero_points
        wrong = {
            "placement": qconfig.placement not in self.placements,
            "depthwise_granularity": by_channel,
            "activation_grid": unsigned,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise PTQ4VMError(
                f"Expected {what} to be executed by {self.title}, got {name} "
                f"{getattr(qconfig, name)}. Change it, or leave the target out."
            )


TARGETS: Mapping[str, Target] = {
    # ONNX Runtime fuses integer kernels only if input, weight and output are all quantized.
    "onnxruntime": Target("ONNX Runtime", ("full",), channel_grids=False, zero_points=True),
    "openvino": Target("OpenVINO", ("deploy", "full"), channel_grids=True, zero_points=True),
    "tensorrt": Target("TensorRT", ("deploy", "full"), channel_grids=False, zero_points=False),
}


def find_target(name: str) -> Target:
    """Return the target of this name.

    Raises:
        PTQ4VMError: the name is unknown.
    """
    if name not in TARGETS:
        raise PTQ4VMError(
            f"Expected a target of {', '.join(TARGETS)}, got {name!r}. Choose one of those."
        )
    return TARGETS[name]


def require_executable(network: MattingModel, target: Target) -> None:
    """Check that the target executes a quantized network as it was calibrated.

    Raises:
        PTQ4VMError: it doesn't; the message names the first such layer and the setting to change.
    """
    layers = quantized_layers(network)
    placement: Placement | None = network.qconfig.placement if layers else None
    if placement is not None and placement not in target.placements:
        raise PTQ4VMError(
            f"Expected a network that {target.title} executes as integers, got placement "
            f"{placement}. Calibrate with --target, or with --qconfig.placement "
            + " or ".join(target.placements)
            + "."
        )
    for name, layer in layers.items():
        problem = _problem(layer, target)
        if problem is not None:
            raise PTQ4VMError(
                f"Expected a network that {target.title} executes as integers, "
                f"got {name} with {problem}"
            )


def _problem(layer: QuantizedLayer, target: Target) -> str | None:
    for quantizer in layer.activation_quantizers:
        spec = quantizer.spec
        if spec.bits < 8:
            return (
                f"activations of {spec.bits} bits: no mainstream runtime executes convolutions on "
                "fewer than 8. Calibrate W8A8 or W4A8, or add --simulate true, which computes the "
                "same in wider arithmetic."
            )
        if quantizer.scale.numel() > 1 and not target.channel_grids:
            return (
                "a grid for each channel it reads. "
                "Calibrate with --qconfig.depthwise_granularity per_tensor."
            )
        if spec.grid != "symmetric" and not target.zero_points:
            return f"an {spec.grid} grid. Calibrate with --qconfig.activation_grid symmetric."
    return None
