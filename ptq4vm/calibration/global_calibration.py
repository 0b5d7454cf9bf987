"""The loss of global affine calibration (GAC) and of optical flow assistance (OFA)."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ptq4vm.calibration.losses import alpha_loss, feature_loss, temporal_loss
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantized_layers, run_blocks
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import clamp_ste
from ptq4vm.types import CalibrationClip


@dataclass(frozen=True)
class GlobalLossSettings:
    """Weights of the terms of :func:`global_loss`.

    Args:
        truth_weight: weight of the alpha loss against the true alpha, or the teacher's where there
            is no true one.
        teacher_weight: weight of the alpha loss against the teacher's alpha.
        l1_weight: weight of the mean absolute error within an alpha loss.
        mse_weight: weight of the mean squared error within it. The paper's loss is this one alone.
        fgr_weight: weight of the mean absolute foreground error against the teacher.
        state_weight: weight of the mean absolute error of the recurrent states against the
            teacher's.
        feature_weight: weight of the error of the blocks' feature maps, as a share of their
            variance, against the teacher's. It constrains the network where alpha is right
            already, and so on people and places never seen.
        coherence_weight: weight of the squared error of alpha's change between frames, against the
            teacher's.
        flow_weight: λ of optical flow assistance; 0 turns it off.

    Raises:
        PTQ4VMError: a weight is negative, or neither ``truth_weight`` nor ``teacher_weight`` is
            above 0.
    """

    truth_weight: float = 0.5
    teacher_weight: float = 0.5
    l1_weight: float = 1.0
    mse_weight: float = 5.0
    fgr_weight: float = 0.1
    state_weight: float = 0.02
    feature_weight: float = 0.0
    coherence_weight: float = 0.0
    flow_weight: float = 0.05

    def __post_init__(self) -> None:
        if self.truth_weight <= 0 and self.teacher_weight <= 0:
            raise PTQ4VMError(
                "Expected truth_weight or teacher_weight above 0, got neither. Set one of them."
            )
        for name in (one.name for one in fields(GlobalLossSettings)):
            if (weight := getattr(self, name)) < 0:
                raise PTQ4VMError(f"Expected {name} of at least 0, got {weight}. Raise it.")


def begin_global_calibration(
    network: MattingModel,
    teacher: MattingModel,
    *,
    per_channel: bool,
    learn_codes: bool,
    scale_bias: bool = False,
) -> None:
    """Add γ and β to every quantized layer, in place; all learned parameters require gradients.

    Args:
        network: quantized, its weights fixed.
        teacher: the float network, BatchNorm folded.
        per_channel: one γ and β for each output channel, or for each layer.
        learn_codes: learn the weights' codes too.
        scale_bias: γ scales the bias too.

    Raises:
        PTQ4VMError: codes are to be learned, and the γ in the weight scales are not known.
    """
    for name, layer in quantized_layers(network).items():
        layer.start_affine(per_channel=per_channel, scale_bias=scale_bias)
        # A loaded checkpoint is frozen throughout.
        for quantizer in layer.activation_quantizers:
            quantizer.log_scale.requires_grad_(True)
            quantizer.offset.requires_grad_(quantizer.spec.grid == "affine")
        if learn_codes:
            floats = teacher.get_submodule(name).weight
            layer.weight_quantizer.start_latent(layer.weight, layer.scaled_like(floats))  # type: ignore[arg-type]


def end_global_calibration(network: MattingModel) -> None:
    """Fix the weights and fold γ and β into weight scales and biases, in place."""
    for layer in quantized_layers(network).values():
        # In this order: γ is folded into codes that no longer change.
        layer.fix_()
        layer.absorb_affine_()


def global_loss(
    network: MattingModel,
    teacher: MattingModel,
    batch: CalibrationClip,
    settings: GlobalLossSettings,
) -> Tensor:
    """Unroll the quantized network over a batch of clips; return the weighted loss.

    The network's own state is fed back. Before the first frame both networks have that of the
    clips, so that only the networks differ.

    Args:
        network: the quantized network.
        teacher: the float network.
        batch: clips, (B, T, C, H, W).
        settings: the weights of the terms.

    Returns:
        The weighted sum of the terms, ().

    Example:
        >>> import torch
        >>> from ptq4vm.calibration import make_teacher
        >>> from ptq4vm.calibration.global_calibration import GlobalLossSettings, global_loss
        >>> from ptq4vm.models import create_model
        >>> from ptq4vm.types import CalibrationClip, RecurrentState
        >>> network = create_model("rvm_mobilenetv3")  # random weights
        >>> src = torch.rand(1, 3, 3, 32, 32)
        >>> fgr, pha, states = make_teacher(network).forward(src)
        >>> still, seen = torch.zeros(1, 2, 2, 32, 32), torch.ones(1, 2, 1, 32, 32)
        >>> targets = (pha, fgr, pha, states, still, seen, network.initial_state(src[:, 0]))
        >>> batch = CalibrationClip(torch.zeros(1), src, *targets)
        >>> loss = global_loss(network, network, batch, GlobalLossSettings(flow_weight=0.0))
        >>> bool(loss < 1e-3)  # the float network against itself
        True
    """
    given = {"src": batch.src}, batch.first_state
    with torch.no_grad():
        targets, target_states = run_blocks(teacher.blocks(), *given)
    values, states = run_blocks(network.blocks(), *given)
    # A loss against a target in [0, 1] then has no gradient where the clamp already gives the
    # target, and a helpful one where it doesn't.
    raw = values.get("pha_unclamped")
    pha = values["pha"] if raw is None else clamp_ste(raw, 0.0, 1.0)
    losses = [
        weight * alpha_loss(pha, target, settings.l1_weight, settings.mse_weight)
        for weight, target in (
            (settings.truth_weight, batch.pha),
            (settings.teacher_weight, targets["pha"]),
        )
        if weight > 0
    ]
    if settings.fgr_weight > 0:
        losses.append(settings.fgr_weight * (values["fgr"] - targets["fgr"]).abs().mean())
    if settings.state_weight > 0:
        pairs = zip(states, target_states, strict=True)
        losses += [settings.state_weight * (s - y).abs().mean() for s, y in pairs]
    if settings.feature_weight > 0:
        losses.append(settings.feature_weight * feature_loss(values, targets))
    losses += _temporal_losses(pha, targets["pha"], batch, settings)
    return torch.stack(losses).sum()


def _temporal_losses(
    pha: Tensor, target: Tensor, batch: CalibrationClip, settings: GlobalLossSettings
) -> list[Tensor]:
    """Compare alpha's changes from frame to frame; a mean over frames, of which the first has none.

    Args:
        pha: alpha, (B, T, 1, H, W).
        target: the float network's.
        batch: the clips with their flow.
        settings: ``flow_weight`` and ``coherence_weight``.
    """
    losses: list[Tensor] = []
    time = pha.shape[1]
    if time == 1:
        return losses
    # A mean over all frames, as the other terms, though the first has no predecessor.
    share = (time - 1) / time
    if settings.flow_weight > 0:
        along = (pha[:, 1:], pha[:, :-1], batch.flow, batch.visible)
        error = temporal_loss(*(x.flatten(0, 1) for x in along))
        losses.append(share * settings.flow_weight * error)
    if settings.coherence_weight > 0:
        error = (pha.diff(dim=1) - target.diff(dim=1)).square().mean()
        losses.append(share * settings.coherence_weight * error)
    return losses
