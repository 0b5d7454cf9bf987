"""Clip augmentation with kornia, identical for all frames of a clip."""

from typing import Any

import torch
from kornia import augmentation
from torch import Tensor, nn
from torch.nn import functional

from ptq4vm.data.sources import Layers
from ptq4vm.types import MattingClip


class ClipAugmentation:
    """Random flip, shift, rotation, scaling and colour jitter, identical for all frames of a clip.

    All parameters are drawn from the given seed; the global random state is unchanged. A separate
    background is augmented more strongly: it may be enlarged, to give many backgrounds from few,
    and blurred, as by a lens focused on the person.

    Args:
        scale: Range of the scale factor.
        background_scale: Range of the background's scale factor.
        degrees: Maximum rotation in degrees.
        translate: Maximum shift as a fraction of width and height.
        jitter: Maximum relative change of brightness, contrast and saturation; a tenth of it is the
            maximum change of hue.
        blur: Probability of blurring the background.
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
        # Reflection padding of picture and alpha: zeros would cut off a person at the edge.
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
        """Augment foreground and background independently; alpha follows the foreground.

        Flow is dropped.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fgr, pha = _apply(self._geometry, torch.cat([layers.fgr, layers.pha], dim=1)).split(
                [3, 1], dim=1
            )
            fgr = _apply(self._colour, fgr)
            bgr = _apply(self._background, layers.bgr)
        return Layers(fgr, pha.contiguous(), bgr)

    def clip(self, clip: MattingClip, seed: int) -> MattingClip:
        """Augment a composite together with its alpha and foreground, if known; flow is dropped."""
        parts = [part for part in (clip.src, clip.fgr, clip.pha) if part is not None]
        channels = [part.shape[1] for part in parts]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = list(_apply(self._geometry, torch.cat(parts, dim=1)).split(channels, dim=1))
            # Concatenated along time, composite and foreground get the same colour jitter.
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
    """Crop or downscale a clip to a size, with equal probability.

    Args:
        clip: Frames at least as large as ``size``. Flow is dropped if they are larger.
        size: Height and width.
        seed: Seed of the choice and of the crop's position, the same in all frames.
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
