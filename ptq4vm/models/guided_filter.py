"""Guided filters that upsample a matte to the frame size.

Sources: arXiv 2108.11515, section 3.3, and arXiv 1803.05619.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _with_gray(src: Tensor) -> Tensor:
    """Append the channel mean to an RGB image: (B, 3, H, W) -> (B, 4, H, W)."""
    # One guide for each filtered channel: R, G, B for the residual's, grey for alpha.
    return torch.cat([src, src.mean(1, keepdim=True)], 1)


def _apply(slope: Tensor, offset: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Resize the linear model to the guide (B, 4, H, W), apply it, and split residual and alpha.

    Alpha is not clamped.
    """
    # q = A I + b at the full size (1505.00996, algorithm 2): A and b are smooth, so they can be
    # resized where alpha can't.
    size = guide.shape[-2:]
    slope = F.interpolate(slope, size, mode="bilinear", align_corners=False)
    offset = F.interpolate(offset, size, mode="bilinear", align_corners=False)
    matte = slope * guide + offset
    return matte[:, :3], matte[:, 3:]


class DeepGuidedFilter(nn.Module):
    """Learned guided filter.

    The slope is predicted from local statistics and the decoder's features.
    """

    def __init__(self, hidden_channels: int = 16) -> None:
        super().__init__()
        # A mean over 3x3 pixels; a convolution, because the checkpoints hold its weight.
        self.box_filter = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        nn.init.constant_(self.box_filter.weight, 1 / 9)
        self.conv = nn.Sequential(
            nn.Conv2d(8 + hidden_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, 4, 1),
        )

    def forward(
        self, src: Tensor, src_small: Tensor, residual: Tensor, pha: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Upsample residual and alpha to the frame size.

        Args:
            src: (B, 3, H, W), RGB in [0, 1].
            src_small: (B, 3, h, w), the downsampled frame.
            residual: (B, 3, h, w), foreground minus src_small.
            pha: (B, 1, h, w), alpha before the clamp.
            hidden: (B, hidden_channels, h, w), the decoder's last features.

        Returns:
            Residual (B, 3, H, W) and alpha before the clamp (B, 1, H, W).
        """
        x, y = _with_gray(src_small), torch.cat([residual, pha], 1)
        # A guided filter has A = cov(x, y) / var(x) and b = mean(y) - A mean(x) in each window.
        # Here 1x1 convolutions take the place of the quotient, and see the features too.
        mean_x, mean_y = self.box_filter(x), self.box_filter(y)
        cov_xy = self.box_filter(x * y) - mean_x * mean_y
        var_x = self.box_filter(x * x) - mean_x * mean_x
        slope = self.conv(torch.cat([cov_xy, var_x, hidden], 1))
        return _apply(slope, mean_y - slope * mean_x, _with_gray(src))


class FastGuidedFilter(nn.Module):
    """Parameter-free guided filter of radius 1 (arXiv 1505.00996)."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    @staticmethod
    def _box(x: Tensor) -> Tensor:
        # Count zero padding, like the convolution of the learned filter.
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True)

    def forward(
        self, src: Tensor, src_small: Tensor, residual: Tensor, pha: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Upsample residual and alpha to the frame size.

        Arguments and results are those of :meth:`DeepGuidedFilter.forward`; ``hidden`` is not used.
        """
        x, y = _with_gray(src_small), torch.cat([residual, pha], 1)
        mean_x, mean_y = self._box(x), self._box(y)
        cov_xy = self._box(x * y) - mean_x * mean_y
        var_x = self._box(x * x) - mean_x * mean_x
        # eps keeps flat windows, without variance, from dividing 0 by 0: their A is 0.
        slope = cov_xy / (var_x + self.eps)
        return _apply(slope, mean_y - slope * mean_x, _with_gray(src))
