"""Options of an exported graph."""

from dataclasses import dataclass

from ptq4vm.deploy.targets import TargetName, find_target
from ptq4vm.errors import PTQ4VMError

OPSETS = range(13, 21)
"""From the first opset with per-channel quantization to the last that torch's exporter writes."""
DEFAULT_OPSET = 17
STATE_BITS = (8, 32)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an exported graph, besides the network and the frame size.

    Args:
        target: runtime that must execute the quantized network: ``onnxruntime``, ``openvino`` or
            ``tensorrt``, which is checked in ONNX Runtime.
        opset: ONNX opset version, 13 to 20; 17 by default, and 21 with ``pack``.
        dynamic_size: export with dynamic height and width; the given ones are then those of the
            traced example. The batch size is always 1.
        pack: store weights of up to 4 bits as INT4 or UINT4, two per byte, which requires opset 21;
            otherwise one per byte.
        simulate: also export layers that the target doesn't execute as integers; their result is
            the same, in wider arithmetic.
        state_bits: 32, or 8 for int8 states outside the graph: a quarter of the memory traffic, one
            scale for all states, which is stored in the file. Rounding the states in every frame
            changes the mattes slightly.

    Raises:
        PTQ4VMError: the target is unknown, or the opset or the bits of the states aren't supported.
    """

    target: TargetName = "openvino"
    opset: int | None = None
    dynamic_size: bool = False
    pack: bool = False
    simulate: bool = False
    state_bits: int = 32

    def __post_init__(self) -> None:
        find_target(self.target)
        if self.opset is not None and self.opset not in OPSETS:
            raise PTQ4VMError(
                f"Expected an opset from {OPSETS[0]} to {OPSETS[-1]}, got {self.opset}. Leave it "
                f"out for {DEFAULT_OPSET}."
            )
        if self.opset is not None and self.pack:
            raise PTQ4VMError(
                f"Expected no opset with pack, which needs 21, got {self.opset}. Leave it out."
            )
        if self.state_bits not in STATE_BITS:
            raise PTQ4VMError(
                f"Expected states of 8 or 32 bits, got {self.state_bits}. "
                "Leave state_bits out for 32."
            )

    @property
    def graph_opset(self) -> int:
        """Opset that torch's exporter writes; packing then sets 21."""
        return OPSETS[-1] if self.pack else self.opset or DEFAULT_OPSET
