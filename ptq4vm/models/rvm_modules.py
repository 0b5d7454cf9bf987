"""Modules of Robust Video Matting (arXiv 2108.11515, section 3).

Parameter names are those of the authors' checkpoints.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LRASPP(nn.Module):
    """Lite reduced atrous spatial pyramid pooling (arXiv 1905.02244).

    Features are gated by their global average.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.aspp1 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.aspp2 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        return self.aspp1(x) * self.aspp2(x)


class ConvGRU(nn.Module):
    """Gated recurrent unit with 3x3 convolutional gates (arXiv 1511.06432)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ih = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.Sigmoid())
        self.hh = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the new state, which is also the output; all are (B, channels, h, w)."""
        # h' = (1 - z) h + z o with o = tanh(W [x, r h]): in the checkpoints z weighs the candidate.
        # ih computes r and z in one convolution.
        reset, update = self.ih(torch.cat([x, state], 1)).chunk(2, 1)
        candidate = self.hh(torch.cat([x, reset * state], 1))
        return (1 - update) * state + update * candidate


class BottleneckBlock(nn.Module):
    """Deepest decoder step; half of the channels pass through a GRU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gru = ConvGRU(channels // 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return features shaped like x, and the new state.

        Args:
            x: (B, channels, h, w).
            state: (B, channels / 2, h, w).
        """
        # Half of the channels bypass the GRU, at a quarter of its cost (section 3.2).
        kept, recurrent = x.chunk(2, 1)
        state = self.gru(recurrent, state)
        return torch.cat([kept, state], 1), state


def _upsample_like(x: Tensor, like: Tensor) -> Tensor:
    """Upsample by 2 and crop to the size of ``like``.

    The encoder rounds odd sizes up.
    """
    x = F.interpolate(
        x, scale_factor=2.0, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    if x.requires_grad:
        # The gradient is a slice of a concatenation's gradient; its strides make the backward
        # pass of interpolation slow on CPU.
        x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return x[:, :, : like.shape[2], : like.shape[3]]


class UpsamplingBlock(nn.Module):
    """Recurrent decoder step that doubles the resolution."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, halvings: int
    ) -> None:
        super().__init__()
        self.halvings = halvings
        """Number of times the image is halved to match the size of the features."""
        self.conv = nn.Sequential(
            # 3 for the image, which every step reads at its own resolution.
            nn.Conv2d(in_channels + skip_channels + 3, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.gru = ConvGRU(out_channels // 2)

    def forward(self, x: Tensor, skip: Tensor, src: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the upsampled features and the new state.

        Args:
            x: Features of the deeper step.
            skip: Encoder features at this resolution.
            src: Input image; it is halved ``halvings`` times.
            state: Recurrent state of this step.
        """
        for _ in range(self.halvings):
            # Rounded up, as strided convolutions round odd sizes; a window over the edge averages
            # the pixels inside.
            src = F.avg_pool2d(src, 2, 2, ceil_mode=True, count_include_pad=False)
        x = self.conv(torch.cat([_upsample_like(x, src), skip, src], 1))
        kept, recurrent = x.chunk(2, 1)
        state = self.gru(recurrent, state)
        return torch.cat([kept, state], 1), state


class OutputBlock(nn.Module):
    """Last decoder step, at the image size, without recurrence."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels + 3, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, src: Tensor) -> Tensor:
        """Map features at half the size and the image (B, 3, h, w) to (B, out_channels, h, w)."""
        return self.conv(torch.cat([_upsample_like(x, src), src], 1))


class Decoder(nn.Module):
    """Container of the recurrent decoder's steps, deepest first; the network's blocks run them."""

    def __init__(
        self, features: tuple[int, int, int], bottleneck: int, channels: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        # features are the widths of f1, f2 and f3, read by the step at their resolution.
        self.decode4 = BottleneckBlock(bottleneck)
        self.decode3 = UpsamplingBlock(bottleneck, features[2], channels[0], halvings=3)
        self.decode2 = UpsamplingBlock(channels[0], features[1], channels[1], halvings=2)
        self.decode1 = UpsamplingBlock(channels[1], features[0], channels[2], halvings=1)
        self.decode0 = OutputBlock(channels[2], channels[3])


class Projection(nn.Module):
    """1x1 convolution, named as in the checkpoints."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        return self.conv(x)
