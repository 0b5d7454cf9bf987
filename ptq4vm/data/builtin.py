"""Clips made from photographs that scikit-image ships: nothing to download, and everything about them is known."""

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import skimage
import torch
from scipy import ndimage
from torch import Generator, Tensor

from ptq4vm.data.files import cover_crop, read_image
from ptq4vm.data.motion import Wave, sample, similarity, uniform, way_flow
from ptq4vm.data.sources import LayeredSource, Layers, derive_seed
from ptq4vm.data.storage import is_whole, make_folder, read_tensors, short_hash, write_tensors
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import Teacher

Cutout = Callable[[Tensor], Tensor]
"""src (1, T, 3, H, W) -> alpha (1, T, 1, H, W)."""

PORTRAIT = "astronaut.png"
BUST = (..., slice(0, 338), slice(0, 400))
"""Rows and columns used of it. Below, she holds a helmet, which networks find half transparent: no alpha to learn."""
PICTURES = {
    "train": ("motorcycle_left.png", "coffee.png", "brick.png", "grass.png"),
    "test": ("rocket.jpg", "chelsea.png", "gravel.png", "hubble_deep_field.jpg"),
}
"""Photographs without people, all of them within scikit-image's wheel."""
WARMUP_FRAMES = 4
"""A recurrent network sees the portrait so often before its alpha is taken."""


def bundled(name: str) -> Path:
    """A photograph's file within the installed scikit-image.

    Raises:
        PTQ4VMError: it isn't there.
    """
    # Not skimage.data.coffee() and the like: depending on the release, those may go to the network.
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise PTQ4VMError(
            f"Expected scikit-image to bring {name}, got nothing at {path}. Install it anew."
        )
    return path


def read_bundled(name: str) -> Tensor:
    """A photograph from within the installed scikit-image, (3, H, W), floats in [0, 1]."""
    return read_image(bundled(name)).float() / 255


def cut_out_portrait(cutout: Cutout) -> Tensor:
    """The portrait's alpha, (1, H, W): a network's, without specks away from the person.

    Args:
        cutout: the network; it is shown the portrait as a clip of a few equal frames.
    """
    still = read_bundled(PORTRAIT).expand(1, WARMUP_FRAMES, -1, -1, -1)
    with torch.no_grad():
        alpha = cutout(still.contiguous())[0, -1].float().cpu()
    alpha = ((alpha - 0.03) / 0.94).clamp(0, 1)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (alpha[0] > 0.05).numpy().astype(np.uint8)
    )
    if len(stats) < 2:
        return alpha
    person = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return alpha * torch.from_numpy(labels == person)


def spread_colours(picture: Tensor, alpha: Tensor) -> Tensor:
    """Carry the colours of the opaque part outward, so that soft edges don't bring along what was behind them.

    Args:
        picture: (3, H, W).
        alpha: (1, H, W).
    """
    opaque = alpha[0] > 0.95
    if not opaque.any():
        return picture
    rows, columns = ndimage.distance_transform_edt(
        ~opaque.numpy(), return_distances=False, return_indices=True
    )
    spread = picture[:, torch.from_numpy(rows), torch.from_numpy(columns)]
    smooth = torch.from_numpy(ndimage.gaussian_filter(spread.numpy(), (0, 2, 2)))
    return torch.where(opaque, picture, smooth)


class Person:
    """The portrait of one clip and its way through the frame. Its lower edge never rises above the frame's."""

    def __init__(
        self, fgr: Tensor, pha: Tensor, size: tuple[int, int], generator: Generator
    ) -> None:
        height, width = size
        # Shrunk with smoothing first: the way through the frame then samples it at nearly its own size.
        tall = round(height * uniform(generator, 0.85, 1.1))
        self.size = (tall, round(tall * fgr.shape[-1] / fgr.shape[-2]))
        self.fgr, self.pha = (cover_crop(layer[None], self.size)[0] for layer in (fgr, pha))
        self.mirror = uniform(generator, 0, 1) < 0.5
        self.x = Wave(generator, width * uniform(generator, 0.42, 0.58), 0.07 * width)
        self.scale = Wave(generator, 1.0, 0.06)
        self.angle = Wave(generator, 0.0, math.radians(uniform(generator, 2, 6)))
        # Turned, a lower corner rises by this much; bobbing comes on top and only goes down.
        rise = math.sin(self.angle.amplitude) * 1.06 * self.size[1] / 2
        self.y = Wave(generator, height + rise + 0.03 * height, 0.03 * height)

    def matrix(self, frame: int) -> Tensor:
        """From the portrait's pixels to the frame's."""
        pivot = ((self.size[1] - 1) / 2, self.size[0] - 1.0)
        return similarity(
            self.x(frame), self.y(frame), self.scale(frame), self.angle(frame), pivot, self.mirror
        )


class Scene:
    """The background of one clip: a picture that is panned and zoomed."""

    def __init__(self, name: str, size: tuple[int, int], generator: Generator) -> None:
        height, width = size
        picture = read_bundled(name)
        if (picture[0] == picture[1]).all():
            # The plain textures are grey; a tint makes walls and ground of them.
            picture = (
                picture
                * torch.tensor([uniform(generator, 0.5, 1.0) for _ in range(3)])[:, None, None]
            )
        zoom = uniform(generator, 1.2, 1.5)
        cover = (math.ceil(height * zoom), math.ceil(width * zoom))
        self.picture = cover_crop(picture[None], cover)[0]
        # Where the lens focuses on the person, the background is a little soft.
        blur = uniform(generator, 0, 1.2)
        self.picture = torch.from_numpy(
            ndimage.gaussian_filter(self.picture.numpy(), (0, blur, blur))
        )
        self.mirror = uniform(generator, 0, 1) < 0.5
        self.middle = ((width - 1) / 2, (height - 1) / 2)
        self.scale = Wave(generator, 1.0, 0.04)
        # The picture must cover the frame even where it is shrunk most.
        self.x = Wave(generator, cover[1] / 2, (cover[1] - width / 0.96) / 2)
        self.y = Wave(generator, cover[0] / 2, (cover[0] - height / 0.96) / 2)

    def matrix(self, frame: int) -> Tensor:
        """From the picture's pixels to the frame's."""
        pivot = (self.x(frame) - 0.5, self.y(frame) - 0.5)
        return similarity(*self.middle, self.scale(frame), 0.0, pivot, self.mirror)


class BuiltinSource(LayeredSource):
    """A portrait that moves before moving photographs, with exact alpha, foreground and flow.

    Args:
        split: `train` and `test` have different photographs and different ways.
        size: height and width.
        num_clips: how many clips there are.
        num_frames: the length of each clip.
        seed: decides all of them.
        cutout: cuts the person out of the portrait. It is asked once, when the first frame is read; clips can't be
            read while it is None.
        labels: whether its alpha is learned from or scored against; then a network that finds nobody is warned of.

    Raises:
        PTQ4VMError: a photograph isn't there.
    """

    exact_flow = True

    def __init__(
        self,
        split: Literal["train", "test"],
        size: tuple[int, int],
        num_clips: int,
        num_frames: int,
        seed: int = 0,
        cutout: Cutout | None = None,
        labels: bool = True,
    ) -> None:
        self.labels = labels
        self.split, self.size, self.seed, self.cutout = split, size, seed, cutout
        self.names = [f"builtin_{split}/{clip:04d}" for clip in range(num_clips)]
        self._num_frames = num_frames
        self._portrait: tuple[Tensor, Tensor] | None = None
        for name in (PORTRAIT, *PICTURES[split]):
            bundled(name)

    def use(self, cutout: Cutout) -> None:
        """Cut the person out anew, when the next frame is read, with something else."""
        self.cutout, self._portrait = cutout, None

    def num_frames(self, index: int) -> int:
        """The same for each clip."""
        return self._num_frames

    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Frames [start, stop) of a clip before composition, with the exact flow of the composite.

        Raises:
            PTQ4VMError: nothing has been given that cuts the portrait out.
        """
        self.check_range(index, start, stop)
        fgr, pha = self.portrait()
        generator = Generator().manual_seed(
            derive_seed(2 * self.seed + (self.split == "test"), index)
        )
        person = Person(fgr, pha, self.size, generator)
        scene = Scene(self._picture(index), self.size, generator)
        way, scene_way = (
            [layer.matrix(t) for t in range(start, stop)] for layer in (person, scene)
        )
        alpha = torch.stack([sample(person.pha, matrix, self.size, "zeros") for matrix in way])
        return Layers(
            fgr=torch.stack([sample(person.fgr, matrix, self.size, "border") for matrix in way]),
            pha=alpha,
            bgr=torch.stack(
                [sample(scene.picture, matrix, self.size, "reflection") for matrix in scene_way]
            ),
            flow=torch.where(
                alpha[1:] >= 0.5, way_flow(way, self.size), way_flow(scene_way, self.size)
            ),
        )

    def portrait(self) -> tuple[Tensor, Tensor]:
        """The person's colours (3, h, w) and alpha (1, h, w), down to the chest."""
        if self._portrait is None:
            if self.cutout is None:
                raise PTQ4VMError(
                    "Expected something that cuts the person out of the built-in portrait, got none. Call "
                    "attach(teacher) on the datamodule first, or name an evaluation tree."
                )
            pha = cut_out_portrait(self.cutout)
            if self.labels and pha.max() < 0.5:
                warnings.warn(
                    "Expected the network to find the person in the built-in portrait, got nothing: figures on the "
                    "built-in clips say nothing of it. Name data of its own kind (--data.source, --data.evaluation).",
                    stacklevel=2,
                )
            fgr = spread_colours(read_bundled(PORTRAIT), pha)
            self._portrait = fgr[BUST].contiguous(), pha[BUST].contiguous()
            self.cutout = None  # What it holds on to, a network, need not go to loader processes.
        return self._portrait

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """The portrait and the photograph behind it."""
        return [(name, bundled(name)) for name in (PORTRAIT, self._picture(index))]

    def fingerprint(self, places: Iterable[tuple[int, int, int]] | None = None) -> str:
        """Hash of the pictures and of the settings, which decide how all moves."""
        settings = (self.split, self.size, len(self), self._num_frames, self.seed)
        pictures = super().fingerprint(places)
        return short_hash({"settings": settings, "pictures": pictures, "version": 2})

    def _picture(self, index: int) -> str:
        pictures = PICTURES[self.split]
        return pictures[(index + self.seed) % len(pictures)]


def cached_cutout(teacher: Teacher, src: Tensor, cache_dir: Path, version: int) -> Tensor:
    """Alpha of the portrait's frames by the float network, computed once and kept.

    Args:
        teacher: the float network.
        src: the portrait, (1, T, 3, H, W).
        cache_dir: the cache.
        version: changes with the cache's format.
    """
    key = short_hash(
        {"teacher": teacher.key, "portrait": PORTRAIT, "frames": WARMUP_FRAMES, "format": version}
    )
    path = make_folder(cache_dir / "cutouts") / f"{key}.safetensors"
    if not is_whole(path, ["pha"]):
        write_tensors(path, {"pha": teacher.forward(src).pha})
    return read_tensors(path)["pha"]
