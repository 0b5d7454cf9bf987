"""MODNet (Ke et al., arXiv 2011.11961), written from the paper.

It loads the authors' checkpoints.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import FrozenBatchNorm2d

from ptq4vm.models.base import Block, MattingModel, chained_blocks
from ptq4vm.models.registry import register_model
from ptq4vm.models.rvm_modules import never_in_place
from ptq4vm.types import RecurrentState


class _Encoder(NamedTuple):
    """Channels of the MobileNetV2 features in use, by stride."""

    enc2x: int = 16
    enc4x: int = 24
    enc8x: int = 32
    enc16x: int = 96
    enc32x: int = 1280


_ENCODER = _Encoder()
_TAPS = {1: "enc2x", 3: "enc4x", 18: "enc32x"}
"""Indices of the MobileNetV2 feature layers that the branches read."""
_DETAIL = 32
"""Channels of the high-resolution branches."""
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
        self.backbone = _Backbone()
        self.lr_branch = _LowResolutionBranch()
        self.hr_branch = _HighResolutionBranch()
        self.f_branch = _FusionBranch()
        never_in_place(self)

    def blocks(self) -> tuple[Block, ...]:
        """Return the encoder layers, the squeeze-and-excitation block and the branches' steps."""
        lr, hr, fusion = "lr_branch", "hr_branch", "f_branch"
        return (
            Block("prepare", ("src",), ("image",), self._prepare),
            *chained_blocks("image", "backbone.model.features", 19, _TAPS, self._encode),
            Block(
                f"{lr}.se_block",
                ("enc32x",),
                ("gated",),
                self._run(lr, "gate"),
                (f"{lr}.se_block",),
            ),
            Block(
                f"{lr}.lr16x",
                ("gated",),
                ("lr16x",),
                self._run(lr, "to_lr16x"),
                (f"{lr}.conv_lr16x",),
            ),
            Block(
                f"{lr}.lr8x", ("lr16x",), ("lr8x",), self._run(lr, "to_lr8x"), (f"{lr}.conv_lr8x",)
            ),
            Block(
                f"{hr}.skip", ("enc2x",), ("skip",), self._run(hr, "to_skip"), (f"{hr}.tohr_enc2x",)
            ),
            Block(
                f"{hr}.down",
                ("image", "skip", "enc4x"),
                ("down",),
                self._run(hr, "to_down"),
                (f"{hr}.conv_enc2x", f"{hr}.tohr_enc4x", f"{hr}.conv_enc4x"),
            ),
            Block(
                f"{hr}.hr4x",
                ("image", "down", "lr8x"),
                ("hr4x",),
                self._run(hr, "to_hr4x"),
                (f"{hr}.conv_hr4x",),
            ),
            Block(
                f"{hr}.hr2x",
                ("hr4x", "skip"),
                ("hr2x",),
                self._run(hr, "to_hr2x"),
                (f"{hr}.conv_hr2x",),
            ),
            Block(
                f"{fusion}.f2x",
                ("lr8x", "hr2x"),
                ("f2x",),
                self._run(fusion, "to_f2x"),
                (f"{fusion}.conv_lr4x", f"{fusion}.conv_f2x"),
            ),
            Block(
                f"{fusion}.f",
                ("image", "f2x"),
                ("matte",),
                self._run(fusion, "to_matte"),
                (f"{fusion}.conv_f",),
            ),
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

    def _run(self, branch: str, step: str) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *values: (getattr(self.get_submodule(branch), step)(*values),)

    def _prepare(self, src: Tensor) -> tuple[Tensor]:
        # Integer arithmetic, which an exported graph with dynamic sizes can reproduce.
        share = Fraction(self.downsample_ratio).limit_denominator(10_000)
        step = _STRIDE * share.denominator
        size = [(side * share.numerator + step - 1) // step * _STRIDE for side in src.shape[-2:]]
        return (_resize(src, size) * 2 - 1,)


def _compose(src: Tensor, matte: Tensor) -> tuple[Tensor, Tensor]:
    return src, _resize(matte, src.shape[-2:])


def _resize(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


# ---- modules, named as in the checkpoints ----


class _Backbone(nn.Module):
    """MobileNetV2 (arXiv 1801.04381) without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.features = features = mobilenet_v2(weights=None).features
        for block in features:
            if isinstance(block, InvertedResidual):
                # The checkpoints have no nested Sequential around each convolution.
                parts = [
                    list(part) if isinstance(part, nn.Sequential) else [part] for part in block.conv
                ]
                block.conv = nn.Sequential(*(module for part in parts for module in part))


class _IBNorm(nn.Module):
    """BatchNorm on the first half of the channels, InstanceNorm on the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.bnorm = FrozenBatchNorm2d(self.split)
        self.inorm = nn.InstanceNorm2d(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.bnorm(x[:, : self.split]), self.inorm(x[:, self.split :])], 1)


class _ConvNorm(nn.Module):
    """Convolution, IBNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.layers = nn.Sequential(conv, _IBNorm(out_channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Head(nn.Module):
    """Output convolution with one channel."""

    def __init__(self, in_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 1, kernel, stride, padding=kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Gate(nn.Module):
    """Squeeze-and-excitation block (arXiv 1709.01507)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class _LowResolutionBranch(nn.Module):
    """Semantic branch at 1/8 of the input size."""

    def __init__(self) -> None:
        super().__init__()
        self.se_block = _Gate(_ENCODER.enc32x)
        self.conv_lr16x = _ConvNorm(_ENCODER.enc32x, _ENCODER.enc16x, 5)
        self.conv_lr8x = _ConvNorm(_ENCODER.enc16x, _ENCODER.enc8x, 5)
        # Used in training only; kept so that the authors' checkpoints load strictly.
        self.conv_lr = _Head(_ENCODER.enc8x, 3, stride=2)

    def gate(self, enc32x: Tensor) -> Tensor:
        return self.se_block(enc32x)

    def to_lr16x(self, gated: Tensor) -> Tensor:
        return self.conv_lr16x(_double(gated))

    def to_lr8x(self, lr16x: Tensor) -> Tensor:
        return self.conv_lr8x(_double(lr16x))


class _HighResolutionBranch(nn.Module):
    """Detail branch at 1/2 of the input size."""

    def __init__(self) -> None:
        super().__init__()
        c = _DETAIL
        self.tohr_enc2x = _ConvNorm(_ENCODER.enc2x, c, 1)
        self.conv_enc2x = _ConvNorm(c + 3, c, 3, stride=2)
        self.tohr_enc4x = _ConvNorm(_ENCODER.enc4x, c, 1)
        self.conv_enc4x = _ConvNorm(2 * c, 2 * c, 3)
        self.conv_hr4x = _chain(3 * c + 3, 2 * c, 2 * c, c)
        self.conv_hr2x = _chain(2 * c, 2 * c, c, c, c)
        # Used in training only, like conv_lr.
        self.conv_hr = nn.Sequential(_ConvNorm(c + 3, c, 3), _Head(c, 1))

    def to_skip(self, enc2x: Tensor) -> Tensor:
        return self.tohr_enc2x(enc2x)

    def to_down(self, image: Tensor, skip: Tensor, enc4x: Tensor) -> Tensor:
        half = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.conv_enc4x(
            torch.cat([self.conv_enc2x(torch.cat([half, skip], 1)), self.tohr_enc4x(enc4x)], 1)
        )

    def to_hr4x(self, image: Tensor, down: Tensor, lr8x: Tensor) -> Tensor:
        quarter = F.interpolate(image, scale_factor=0.25, mode="bilinear", align_corners=False)
        return self.conv_hr4x(torch.cat([down, _double(lr8x), quarter], 1))

    def to_hr2x(self, hr4x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_hr2x(torch.cat([_double(hr4x), skip], 1))


class _FusionBranch(nn.Module):
    """Fusion of both branches into alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_lr4x = _ConvNorm(_ENCODER.enc8x, _DETAIL, 5)
        self.conv_f2x = _ConvNorm(2 * _DETAIL, _DETAIL, 3)
        self.conv_f = nn.Sequential(_ConvNorm(_DETAIL + 3, _DETAIL // 2, 3), _Head(_DETAIL // 2, 1))

    def to_f2x(self, lr8x: Tensor, hr2x: Tensor) -> Tensor:
        return self.conv_f2x(torch.cat([_double(self.conv_lr4x(_double(lr8x))), hr2x], 1))

    def to_matte(self, image: Tensor, f2x: Tensor) -> Tensor:
        return self.conv_f(torch.cat([_double(f2x), image], 1)).sigmoid()


def _chain(*channels: int) -> nn.Sequential:
    return nn.Sequential(*(_ConvNorm(a, b, 3) for a, b in pairwise(channels)))


@register_model("modnet")
def modnet(downsample_ratio: float = 1.0) -> MODNet:
    """Return the network; see :class:`MODNet` for the arguments."""
    return MODNet(downsample_ratio)
