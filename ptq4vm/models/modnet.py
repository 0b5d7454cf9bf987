"""MODNet (Ke et al., arXiv 2011.11961), written from the paper.

It loads the authors' checkpoints.
"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq4vm.models.base import Block, MattingModel, chained_blocks, never_in_place
from ptq4vm.models.modnet_modules import (
    FusionBranch,
    HighResolutionBranch,
    LowResolutionBranch,
    MobileNetV2Features,
)
from ptq4vm.models.registry import register_model
from ptq4vm.types import RecurrentState

_TAPS = {1: "enc2x", 3: "enc4x", 18: "enc32x"}
"""Indices of the MobileNetV2 feature layers that the branches read."""
_STRIDE = 32


class MODNet(MattingModel):
    """Per-frame portrait matting network without recurrent state.

    It predicts no foreground and returns the frame as ``fgr``. The convolutions and the two linear
    layers of the squeeze-and-excitation block are quantized. IBNorm stays float: half of its
    channels use the statistics of the frame itself, so it cannot be folded.

    Args:
        downsample_ratio: Scale of the network's input relative to the frame size, in (0, 1]. The
            input size is rounded up to multiples of 32 pixels, and alpha is resized to the frame
            size.

    Raises:
        PTQ4VMError: The ratio is outside (0, 1].
    """

    name = "modnet"

    def __init__(self, downsample_ratio: float = 1.0) -> None:
        super().__init__()
        self.downsample_ratio = downsample_ratio
        self.backbone = MobileNetV2Features()
        self.lr_branch = LowResolutionBranch()
        self.hr_branch = HighResolutionBranch()
        self.f_branch = FusionBranch()
        never_in_place(self)

    def blocks(self) -> tuple[Block, ...]:
        """Return the encoder layers, the squeeze-and-excitation block and the branches' steps."""
        low, high, fusion = "lr_branch", "hr_branch", "f_branch"
        return (
            Block("prepare", ("src",), ("image",), self._prepare),
            *chained_blocks("image", "backbone.model.features", 19, _TAPS, self._encode),
            self._step(f"{low}.se_block", ("enc32x",), "gated", "se_block"),
            self._step(f"{low}.lr16x", ("gated",), "lr16x", "conv_lr16x"),
            self._step(f"{low}.lr8x", ("lr16x",), "lr8x", "conv_lr8x"),
            self._step(f"{high}.skip", ("enc2x",), "skip", "tohr_enc2x"),
            self._step(
                f"{high}.down",
                ("image", "skip", "enc4x"),
                "down",
                *("conv_enc2x", "tohr_enc4x", "conv_enc4x"),
            ),
            self._step(f"{high}.hr4x", ("image", "down", "lr8x"), "hr4x", "conv_hr4x"),
            self._step(f"{high}.hr2x", ("hr4x", "skip"), "hr2x", "conv_hr2x"),
            self._step(f"{fusion}.f2x", ("lr8x", "hr2x"), "f2x", "conv_lr4x", "conv_f2x"),
            self._step(f"{fusion}.f", ("image", "f2x"), "matte", "conv_f"),
            Block("compose", ("src", "matte"), ("fgr", "pha"), _compose),
        )

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return the empty tuple."""
        return ()

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the checkpoint entries that this network lacks.

        The authors' files contain the encoder twice, and batch counters.
        """
        return {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith("lr_branch.backbone.")
            and not name.endswith(".bnorm.num_batches_tracked")
        }

    def _encode(self, index: int, x: Tensor) -> tuple[Tensor]:
        return (self.backbone.get_submodule(f"model.features.{index}")(x),)

    def _step(self, name: str, inputs: tuple[str, ...], output: str, *modules: str) -> Block:
        """Return the block of a branch's method ``to_<output>``.

        Args:
            name: Block name, which begins with the branch's name.
            inputs: Names of the method's arguments.
            output: Name of its result.
            modules: Names of the layers that the method runs, within the branch.
        """
        # The method is looked up at each call, since quantization replaces its layers.
        branch = name.split(".")[0]

        def run(*values: Tensor) -> tuple[Tensor]:
            return (getattr(self.get_submodule(branch), f"to_{output}")(*values),)

        return Block(name, inputs, (output,), run, tuple(f"{branch}.{m}" for m in modules))

    def _prepare(self, src: Tensor) -> tuple[Tensor]:
        # In integer arithmetic, which an exported graph with dynamic sizes can reproduce.
        # ceil(side * ratio / 32) * 32; the encoder halves five times, and the branches then meet
        # at equal sizes.
        share = Fraction(self.downsample_ratio).limit_denominator(10_000)
        step = _STRIDE * share.denominator
        size = [(side * share.numerator + step - 1) // step * _STRIDE for side in src.shape[-2:]]
        return (_resize(src, size) * 2 - 1,)  # to [-1, 1], as MODNet was trained


def _compose(src: Tensor, matte: Tensor) -> tuple[Tensor, Tensor]:
    # No foreground is predicted: the frame stands in for it.
    return src, _resize(matte, src.shape[-2:])


def _resize(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@register_model("modnet")
def modnet(downsample_ratio: float = 1.0) -> MODNet:
    """Return the network; see :class:`MODNet` for the arguments."""
    return MODNet(downsample_ratio)
