"""Augmentation that treats all frames of a clip alike, with kornia."""

import torch
from kornia import augmentation
from torch import Tensor

from ptq4vm.data.sources import Layers
from ptq4vm.types import MattingClip


class ClipAugmentation:
    """Flips, shifts, turns and scales a clip, and changes its colours; the same way in every frame.

    Everything is drawn from the seed given, and the global random number generator stays as it was.

    Args:
        scale: the range of the scaling.
        degrees: turns by at most so much.
        translate: shifts by at most this fraction of the width and height.
        jitter: brightness, contrast and saturation change by at most this factor; the hue by a tenth of it.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.8, 1.25),
        degrees: float = 5.0,
        translate: float = 0.05,
        jitter: float = 0.2,
    ) -> None:
        flip = augmentation.RandomHorizontalFlip(p=0.5)
        # What comes in from outside mirrors the picture, alpha too: zeros would cut a person off at the picture's edge.
        affine = augmentation.RandomAffine(
            degrees, (translate, translate), scale, p=1.0, padding_mode="reflection", align_corners=False
        )
        colour = augmentation.ColorJitter(jitter, jitter, jitter, jitter / 10, p=1.0)
        self._geometry = augmentation.VideoSequential(flip, affine, data_format="BTCHW", same_on_frame=True)
        self._colour = augmentation.VideoSequential(colour, data_format="BTCHW", same_on_frame=True)

    def layers(self, layers: Layers, seed: int) -> Layers:
        """Change foreground and background apart from each other; alpha follows the foreground. Flow is dropped."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fgr, pha = _apply(self._geometry, torch.cat([layers.fgr, layers.pha], dim=1)).split([3, 1], dim=1)
            fgr = _apply(self._colour, fgr)
            bgr = _apply(self._colour, _apply(self._geometry, layers.bgr))
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


def _apply(sequential: augmentation.VideoSequential, frames: Tensor) -> Tensor:
    return sequential(frames[None].contiguous())[0].clamp(0, 1)
