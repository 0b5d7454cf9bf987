"""Modules of MODNet (arXiv 2011.11961, section 3).

Parameter names are those of the authors' checkpoints. A suffix such as ``8x`` is the stride: maps
of ``lr8x`` have 1/8 of the input's height and width.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import FrozenBatchNorm2d


class _Encoder(NamedTuple):
    """Channels of the MobileNetV2 features in use, by stride."""

    enc2x: int = 16
    enc4x: int = 24
    enc8x: int = 32
    enc16x: int = 96
    enc32x: int = 1280


# enc32x is the output of the last 1x1 convolution, before the classifier.
_ENCODER = _Encoder()
_DETAIL = 32
"""Channels of the high-resolution branches."""


class MobileNetV2Features(nn.Module):
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


class IBNorm(nn.Module):
    """BatchNorm on the first half of the channels, InstanceNorm on the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        # Frozen, so that it is no nn.BatchNorm2d: those must be folded (graph.fold_bn), which is
        # not possible for half of a convolution.
        self.bnorm = FrozenBatchNorm2d(self.split)
        self.inorm = nn.InstanceNorm2d(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised, (B, channels, h, w)."""
        return torch.cat([self.bnorm(x[:, : self.split]), self.inorm(x[:, self.split :])], 1)


class ConvNorm(nn.Module):
    """Convolution, IBNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.layers = nn.Sequential(conv, IBNorm(out_channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride)."""
        return self.layers(x)


class Head(nn.Module):
    """Output convolution with one channel."""

    def __init__(self, in_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 1, kernel, stride, padding=kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, 1, h / stride, w / stride)."""
        return self.layers(x)


class Gate(nn.Module):
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
        """Scale the channels of x, (B, channels, h, w)."""
        # The linear layers see (B, channels): one value of each map.
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class LowResolutionBranch(nn.Module):
    """Semantic branch at 1/8 of the input size."""

    def __init__(self) -> None:
        super().__init__()
        self.se_block = Gate(_ENCODER.enc32x)
        self.conv_lr16x = ConvNorm(_ENCODER.enc32x, _ENCODER.enc16x, 5)
        self.conv_lr8x = ConvNorm(_ENCODER.enc16x, _ENCODER.enc8x, 5)
        # Used in training only; kept so that the authors' checkpoints load strictly.
        self.conv_lr = Head(_ENCODER.enc8x, 3, stride=2)

    def to_gated(self, enc32x: Tensor) -> Tensor:
        """Weight the encoder's last features, (B, 1280, h / 32, w / 32)."""
        return self.se_block(enc32x)

    def to_lr16x(self, gated: Tensor) -> Tensor:
        """Map the gated features to (B, 96, h / 16, w / 16)."""
        return self.conv_lr16x(_double(gated))

    def to_lr8x(self, lr16x: Tensor) -> Tensor:
        """Map to the semantic features, (B, 32, h / 8, w / 8)."""
        return self.conv_lr8x(_double(lr16x))


class HighResolutionBranch(nn.Module):
    """Detail branch at 1/2 of the input size."""

    def __init__(self) -> None:
        super().__init__()
        c = _DETAIL
        self.tohr_enc2x = ConvNorm(_ENCODER.enc2x, c, 1)
        # + 3: the image at this resolution is an input of the step too.
        self.conv_enc2x = ConvNorm(c + 3, c, 3, stride=2)
        self.tohr_enc4x = ConvNorm(_ENCODER.enc4x, c, 1)
        self.conv_enc4x = ConvNorm(2 * c, 2 * c, 3)
        # 2 c of conv_enc4x, c of lr8x, 3 of the image.
        self.conv_hr4x = _chain(3 * c + 3, 2 * c, 2 * c, c)
        self.conv_hr2x = _chain(2 * c, 2 * c, c, c, c)
        # Used in training only, like conv_lr.
        self.conv_hr = nn.Sequential(ConvNorm(c + 3, c, 3), Head(c, 1))

    def to_skip(self, enc2x: Tensor) -> Tensor:
        """Map encoder features to (B, 32, h / 2, w / 2), read by two steps."""
        return self.tohr_enc2x(enc2x)

    def to_down(self, image: Tensor, skip: Tensor, enc4x: Tensor) -> Tensor:
        """Join image and encoder features at 1/4, (B, 64, h / 4, w / 4)."""
        half = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
        # The order of a concatenation is that of the checkpoints' kernels, here and below.
        return self.conv_enc4x(
            torch.cat([self.conv_enc2x(torch.cat([half, skip], 1)), self.tohr_enc4x(enc4x)], 1)
        )

    def to_hr4x(self, image: Tensor, down: Tensor, lr8x: Tensor) -> Tensor:
        """Add the semantic features: (B, 32, h / 4, w / 4)."""
        quarter = F.interpolate(image, scale_factor=0.25, mode="bilinear", align_corners=False)
        return self.conv_hr4x(torch.cat([down, _double(lr8x), quarter], 1))

    def to_hr2x(self, hr4x: Tensor, skip: Tensor) -> Tensor:
        """Map to the detail features, (B, 32, h / 2, w / 2)."""
        return self.conv_hr2x(torch.cat([_double(hr4x), skip], 1))


class FusionBranch(nn.Module):
    """Fusion of both branches into alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_lr4x = ConvNorm(_ENCODER.enc8x, _DETAIL, 5)
        self.conv_f2x = ConvNorm(2 * _DETAIL, _DETAIL, 3)
        self.conv_f = nn.Sequential(ConvNorm(_DETAIL + 3, _DETAIL // 2, 3), Head(_DETAIL // 2, 1))

    def to_f2x(self, lr8x: Tensor, hr2x: Tensor) -> Tensor:
        """Fuse semantic and detail features, (B, 32, h / 2, w / 2)."""
        # lr8x is doubled on either side of its convolution, 1/8 -> 1/4 -> 1/2.
        return self.conv_f2x(torch.cat([_double(self.conv_lr4x(_double(lr8x))), hr2x], 1))

    def to_matte(self, image: Tensor, f2x: Tensor) -> Tensor:
        """Return alpha in [0, 1], (B, 1, h, w)."""
        return self.conv_f(torch.cat([_double(f2x), image], 1)).sigmoid()


def _chain(*channels: int) -> nn.Sequential:
    return nn.Sequential(*(ConvNorm(a, b, 3) for a, b in pairwise(channels)))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
