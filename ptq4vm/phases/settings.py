"""Settings of the phases, which are also their resume contract."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptq4vm.calibration.global_calibration import GlobalLossSettings
from ptq4vm.calibration.reconstruction import ReconstructionSettings
from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers import QConfig
from ptq4vm.reading import check_fields


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """Optical flow of the calibration clips.

    Args:
        flow: ``dis`` needs no weights, ``raft`` needs ``flow_weights``.
        flow_weights: RAFT's weights: a file with torchvision's names, or ``raft_small`` or
            ``raft_large`` for the published ones, which are downloaded.

    Raises:
        PTQ4VMError: a setting has another type or is out of range.
    """

    flow: Literal["dis", "raft"] = "dis"
    flow_weights: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.flow == "raft") != (self.flow_weights is not None):
            got = "none" if self.flow_weights is None else str(self.flow_weights)
            raise PTQ4VMError(
                f"Expected flow_weights with flow raft, and none with dis, got {got} with "
                f"{self.flow}. Correct one of them."
            )


@dataclass(frozen=True)
class BlockReconstructionSettings(ReconstructionSettings, FlowSettings):
    """Settings of :class:`BlockReconstructionModule`; the defaults are QDrop.

    Known methods: rounding to nearest (``learn_rounding`` and ``learn_scales`` false), AdaRound
    (``granularity: layer``, no scales, no dropping), BRECQ (no dropping), QDrop.

    Args:
        granularity: reconstruct the outputs of blocks, or of every single layer (all layers of a
            block side by side, each on its own input, without gradients between them).
    """

    granularity: Literal["block", "layer"] = "block"

    def __post_init__(self) -> None:
        FlowSettings.__post_init__(self)
        ReconstructionSettings.__post_init__(self)

    def require_placement(self, qconfig: QConfig) -> None:
        """Check that single layers can be reconstructed with a placement.

        Raises:
            PTQ4VMError: ``granularity`` is ``layer``, and the placement isn't ``deploy``.
        """
        if self.granularity == "layer" and qconfig.placement != "deploy":
            raise PTQ4VMError(
                f"Expected granularity block with placement {qconfig.placement}, got layer: a "
                "layer's output is compared before its activation function, which that placement "
                "takes into the layer. Choose placement deploy."
            )


@dataclass(frozen=True)
class GACSettings(GlobalLossSettings, FlowSettings):
    """Settings of :class:`GACModule`.

    Args:
        affine: ``per_channel`` γ and β, or the paper's ``per_layer`` scalars.
        scale_bias: γ scales the bias too, γ (W x + b) + β, as in the paper's published code; by
            default it scales the product alone, as in the paper's formula.
        lr: Adam's learning rate for log γ, β, log scales and zero points; cosine decay over the
            fit.
        absolute_scales: ``lr`` is that of the activation scales themselves instead of their
            logarithms, as published: at a scale of 0.05, 1e-4 is one of 2e-3 in its logarithm.
        weight_lr: Adam's learning rate for the weights' codes, in steps of their grids, straight
            through the rounding; each moves by at most one step. 0 keeps the roundings of block
            reconstruction, as the paper does.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them as they are.
        window: frames to unroll over, from anywhere in a sequence, beginning with the float
            network's state there; by default the whole sequence from its beginning.
        average: decay of an exponential moving average, over the steps, of all that is learned; the
            result is the average. 0 keeps the last step. Codes that oscillate between two values
            come to rest at the more frequent one.
    """

    affine: Literal["per_channel", "per_layer"] = "per_channel"
    scale_bias: bool = False
    lr: float = 1e-3
    absolute_scales: bool = False
    weight_lr: float = 0.0
    max_grad_norm: float = 1.0
    window: int | None = None
    average: float = 0.0

    def __post_init__(self) -> None:
        FlowSettings.__post_init__(self)
        GlobalLossSettings.__post_init__(self)
        if self.window is not None and self.window < 1:
            raise PTQ4VMError(
                f"Expected a window of at least 1 frame, got {self.window}. Raise it."
            )
        if not 0 <= self.average < 1:
            raise PTQ4VMError(f"Expected average within [0, 1), got {self.average}. Correct it.")
