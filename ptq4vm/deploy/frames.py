"""A frame with its matte, and conversions between 8-bit frames and tensors."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ptq4vm.video import Frame


class MatteFrame(NamedTuple):
    """Frame and matte on the network's device, as inference tensors: clone them for training."""

    src: Tensor
    """(3, H, W) RGB in [0, 1]."""
    fgr: Tensor
    """(3, H, W) foreground colour, RGB in [0, 1]."""
    pha: Tensor
    """(1, H, W) alpha in [0, 1]."""
    cut: bool = False
    """True if a new shot begins at this frame, where the recurrent state was reset."""


def to_tensor(frame: Frame, device: torch.device | str) -> Tensor:
    """Convert (H, W, 3) uint8 to (3, H, W) float in [0, 1]."""
    # Transferred as uint8, a quarter of the size of float32.
    return torch.from_numpy(np.stack(cv2.split(frame))).to(device).float().div_(255)


def to_frame(picture: Tensor) -> Frame:
    """Convert float (1, 3 or 4, H, W) in [0, 1] to rounded uint8 (H, W) or (H, W, 3 or 4)."""
    levels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).squeeze(2).cpu().numpy()


def composite_over(fgr: Tensor, pha: Tensor, bgr: Tensor) -> Tensor:
    """Composite ``fgr`` (…, 3, H, W) over ``bgr`` (…, 3, H, W) with alpha ``pha`` (…, 1, H, W)."""
    return fgr * pha + bgr * (1 - pha)
