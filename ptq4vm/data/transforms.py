"""Augmentation that treats all frames of a clip alike, with kornia."""

from typing import Any

import torch
from kornia import augmentation
from torch import Tensor, nn
from torch.nn import functional

from ptq4vm.data.sources import Layers
from ptq4vm.types import MattingClip


class ClipAugmentation:
    """Flips, shifts, turns and scales a clip, and changes its colours; the same way in every frame.

    Everything is drawn from the seed given, and the global random number generator stays as it was. A background apart
    from its foreground is changed more: it may be enlarged, so that few backgrounds give many, and blurred, as behind
    a person whom the lens focuses on.

    Args:
        scale: the range of the scaling.
        background_scale: likewise, of a background.
        degrees: turns by at most so much.
        translate: shifts by at most this fraction of the width and height.
        jitter: brightness, contrast and saturation change by at most this factor; the hue by a tenth of it.
        blur: share of the backgrounds that are blurred.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.6, 1.4),
        background_scale: tuple[float, float] = (0.9, 2.5),
        degrees: float = 8.0,
        translate: float = 0.2,
        jitter: float = 0.3,
        blur: float = 0.3,
    ) -> None:
        flip = augmentation.RandomHorizontalFlip(p=0.5)
        # What comes in from outside mirrors the picture, alpha too: zeros would cut a person off at the picture's edge.
        affine, background_affine = (
            augmentation.RandomAffine(
                degrees,
                (translate, translate),
                size,
                p=1.0,
                padding_mode="reflection",
                align_corners=False,
            )
            for size in (scale, background_scale)
        )
        colour = augmentation.ColorJitter(jitter, jitter, jitter, jitter / 10, p=1.0)
        lens = augmentation.RandomGaussianBlur((9, 9), (0.5, 3.0), p=blur)
        self._geometry = _for_clips(flip, affine)
        self._colour = _for_clips(colour)
        self._background = _for_clips(flip, background_affine, colour, lens)

    def layers(self, layers: Layers, seed: int) -> Layers:
        """Change foreground and background apart from each other; alpha follows the foreground. Flow is dropped."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fgr, pha = _apply(self._geometry, torch.cat([layers.fgr, layers.pha], dim=1)).split(
                [3, 1], dim=1
            )
            fgr = _apply(self._colour, fgr)
            bgr = _apply(self._background, layers.bgr)
        return Layers(fgr, pha.contiguous(), bgr)

    def clip(self, clip: MattingClip, seed: int) -> MattingClip:
        """Change a composite along with what is known of it. Flow is dropped."""
        parts = [part for part in (clip.src, clip.fgr, clip.pha) if part is not None]
        channels = [part.shape[1] for part in parts]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = list(_apply(self._geometry, torch.cat(parts, dim=1)).split(channels, dim=1))
            # As further frames of one clip, composite and foreground get the same change of colour.
            coloured = [part for part in parts if part.shape[1] == 3]
            coloured = list(_apply(self._colour, torch.cat(coloured)).split(clip.src.shape[0]))
        fgr = coloured[1] if clip.fgr is not None else None
        pha = parts[-1].contiguous() if clip.pha is not None else None
        return clip._replace(src=coloured[0], fgr=fgr, pha=pha, flow=None)


def _for_clips(*steps: nn.Module) -> augmentation.VideoSequential:
    return augmentation.VideoSequential(*steps, data_format="BTCHW", same_on_frame=True)


def _apply(sequential: augmentation.VideoSequential, frames: Tensor) -> Tensor:
    return sequential(frames[None].contiguous())[0].clamp(0, 1)


def cut_or_shrink(clip: MattingClip, size: tuple[int, int], seed: int) -> MattingClip:
    """Bring a clip of larger frames to a size: by chance a part of it that keeps its scale, or the whole, shrunk.

    Args:
        clip: its frames are at least as large. Flow is dropped if they are larger.
        size: height and width.
        seed: decides which of both, and where the part lies: at the same place in all frames.
    """
    height, width = clip.src.shape[-2:]
    if (height, width) == size:
        return clip
    generator = torch.Generator().manual_seed(seed)
    whole, y, x = torch.rand(3, generator=generator).tolist()
    top, left = round(y * (height - size[0])), round(x * (width - size[1]))

    def fit(layer: Tensor) -> Tensor:
        if whole < 0.5:
            return functional.interpolate(layer, size, mode="bilinear", antialias=True)
        return layer[..., top : top + size[0], left : left + size[1]]

    known: dict[str, Any] = {
        name: fit(layer)
        for name in ("src", "pha", "fgr")
        if (layer := getattr(clip, name)) is not None
    }
    return clip._replace(**known, flow=None)
