"""Synthetic clips from scikit-image's bundled photographs, with exact alpha and optical flow."""

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

from ptq4vm.data.files import cover_crop_clip, read_image
from ptq4vm.data.motion import Wave, sample, similarity, uniform, way_flow
from ptq4vm.data.sources import LayeredSource, Layers, derive_seed
from ptq4vm.data.storage import CheckedFiles, make_folder, short_hash
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import Teacher

Cutout = Callable[[Tensor], Tensor]
"""Matting function: src (1, T, 3, H, W) -> alpha (1, T, 1, H, W)."""

PORTRAIT = "astronaut.png"
BUST = (..., slice(0, 338), slice(0, 400))
"""Rows and columns of the portrait in use.

The helmet below is excluded: networks predict it half-transparent, which is no usable label.
"""
PICTURES = {
    "train": ("motorcycle_left.png", "coffee.png", "brick.png", "grass.png"),
    "test": ("rocket.jpg", "chelsea.png", "gravel.png", "hubble_deep_field.jpg"),
}
"""Photographs without people, per split, all included in scikit-image's wheel."""
WARMUP_FRAMES = 4
"""Copies of the portrait fed to a recurrent network; the alpha of the last one is used."""


def bundled(name: str) -> Path:
    """Return the path of a photograph in the installed scikit-image.

    Raises:
        PTQ4VMError: The file is missing.
    """
    # skimage.data.coffee() and its siblings may download files, depending on the release.
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise PTQ4VMError(
            f"Expected scikit-image to bring {name}, got nothing at {path}. Install it anew."
        )
    return path


def read_bundled(name: str) -> Tensor:
    """Read a photograph of the installed scikit-image: (3, H, W), floats in [0, 1]."""
    return read_image(bundled(name)).float() / 255


def cut_out_portrait(cutout: Cutout) -> Tensor:
    """Compute the portrait's alpha, (1, H, W), keeping only the largest connected component.

    Args:
        cutout: Matting function; its input is a static clip of ``WARMUP_FRAMES`` frames.
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
    """Extend the colours of the opaque region outward, to remove background colour from soft edges.

    Args:
        picture: (3, H, W).
        alpha: (1, H, W).

    Returns:
        (3, H, W); unchanged if no pixel is opaque (alpha > 0.95).
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
    """Foreground of one clip: the portrait and its trajectory.

    The portrait's lower edge always stays below the bottom of the frame.
    """

    def __init__(
        self, fgr: Tensor, pha: Tensor, size: tuple[int, int], generator: Generator
    ) -> None:
        height, width = size
        # Downscale with antialiasing first: the trajectory then samples at a scale close to 1.
        tall = round(height * uniform(generator, 0.85, 1.1))
        self.size = (tall, round(tall * fgr.shape[-1] / fgr.shape[-2]))
        self.fgr, self.pha = (cover_crop_clip(layer[None], self.size)[0] for layer in (fgr, pha))
        self.mirror = uniform(generator, 0, 1) < 0.5
        self.x = Wave(generator, width * uniform(generator, 0.42, 0.58), 0.07 * width)
        self.scale = Wave(generator, 1.0, 0.06)
        self.angle = Wave(generator, 0.0, math.radians(uniform(generator, 2, 6)))
        # Rotation raises a lower corner by up to `rise`; the offset keeps it below the frame.
        rise = math.sin(self.angle.amplitude) * 1.06 * self.size[1] / 2
        self.y = Wave(generator, height + rise + 0.03 * height, 0.03 * height)

    def matrix(self, frame: int) -> Tensor:
        """Return the 3×3 matrix from portrait pixels to frame pixels."""
        pivot = ((self.size[1] - 1) / 2, self.size[0] - 1.0)
        return similarity(
            self.x(frame), self.y(frame), self.scale(frame), self.angle(frame), pivot, self.mirror
        )


class Scene:
    """Background of one clip: a photograph with pan and zoom."""

    def __init__(self, name: str, size: tuple[int, int], generator: Generator) -> None:
        height, width = size
        picture = read_bundled(name)
        if (picture[0] == picture[1]).all():
            # Tint the greyscale textures.
            picture = (
                picture
                * torch.tensor([uniform(generator, 0.5, 1.0) for _ in range(3)])[:, None, None]
            )
        zoom = uniform(generator, 1.2, 1.5)
        cover = (math.ceil(height * zoom), math.ceil(width * zoom))
        self.picture = cover_crop_clip(picture[None], cover)[0]
        # Imitate a lens focused on the person.
        blur = uniform(generator, 0, 1.2)
        self.picture = torch.from_numpy(
            ndimage.gaussian_filter(self.picture.numpy(), (0, blur, blur))
        )
        self.mirror = uniform(generator, 0, 1) < 0.5
        self.middle = ((width - 1) / 2, (height - 1) / 2)
        self.scale = Wave(generator, 1.0, 0.04)
        # The picture must cover the frame at the smallest scale, 1 - 0.04.
        self.x = Wave(generator, cover[1] / 2, (cover[1] - width / 0.96) / 2)
        self.y = Wave(generator, cover[0] / 2, (cover[0] - height / 0.96) / 2)

    def matrix(self, frame: int) -> Tensor:
        """Return the 3×3 matrix from picture pixels to frame pixels."""
        pivot = (self.x(frame) - 0.5, self.y(frame) - 0.5)
        return similarity(*self.middle, self.scale(frame), 0.0, pivot, self.mirror)


class BuiltinSource(LayeredSource):
    """Clips of a moving portrait over moving photographs, with exact alpha, foreground and flow.

    Args:
        split: `train` and `test` differ in photographs and trajectories.
        size: Height and width.
        num_clips: Number of clips.
        num_frames: Frames per clip.
        seed: Seed of all clips.
        cutout: Function that computes the portrait's alpha. It is called once, on the first read;
            reading fails while it is None.
        labels: True if the alpha is a training target or evaluation reference; a warning is then
            issued if the network finds no person.

    Raises:
        PTQ4VMError: A photograph is missing.
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
        """Replace the cut-out function; the alpha is recomputed on the next read."""
        self.cutout, self._portrait = cutout, None

    def num_frames(self, index: int) -> int:
        """Return the number of frames, equal for all clips."""
        return self._num_frames

    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Return the layers of frames [start, stop), with the exact flow of the composite.

        Raises:
            PTQ4VMError: No cut-out function is set.
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
        """Return the person's colours (3, h, w) and alpha (1, h, w), cropped to :data:`BUST`.

        Raises:
            PTQ4VMError: No cut-out function is set.
        """
        if self._portrait is None:
            if self.cutout is None:
                raise PTQ4VMError(
                    "Expected something that cuts the person out of the built-in portrait, got "
                    "none. Call "
                    "attach(teacher) on the datamodule first, or name an evaluation tree."
                )
            pha = cut_out_portrait(self.cutout)
            if self.labels and pha.max() < 0.5:
                warnings.warn(
                    "Expected the network to find the person in the built-in portrait, got "
                    "nothing: figures on the "
                    "built-in clips say nothing of it. Name data of its own kind (--data.source, "
                    "--data.evaluation).",
                    stacklevel=2,
                )
            fgr = spread_colours(read_bundled(PORTRAIT), pha)
            self._portrait = fgr[BUST].contiguous(), pha[BUST].contiguous()
            self.cutout = None  # Don't carry the network into DataLoader workers.
        return self._portrait

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Return the portrait and the background photograph."""
        return [(name, bundled(name)) for name in (PORTRAIT, self._picture(index))]

    def fingerprint(self, places: Iterable[tuple[int, int, int]] | None = None) -> str:
        """Hash the photographs and the settings that determine the clips."""
        settings = (self.split, self.size, len(self), self._num_frames, self.seed)
        pictures = super().fingerprint(places)
        return short_hash({"settings": settings, "pictures": pictures, "version": 2})

    def _picture(self, index: int) -> str:
        pictures = PICTURES[self.split]
        return pictures[(index + self.seed) % len(pictures)]


def cached_cutout(teacher: Teacher, src: Tensor, cache_dir: Path, version: int) -> Tensor:
    """Return the teacher's alpha of the portrait, (1, T, 1, H, W), computed once and cached.

    Args:
        teacher: Float network.
        src: Portrait, (1, T, 3, H, W).
        cache_dir: Cache folder.
        version: Cache format version.
    """
    key = short_hash(
        {"teacher": teacher.key, "portrait": PORTRAIT, "frames": WARMUP_FRAMES, "format": version}
    )
    path = make_folder(cache_dir / "cutouts") / f"{key}.safetensors"
    files = CheckedFiles()
    if not files.is_whole(path, ["pha"]):
        files.write(path, {"pha": teacher.forward(src).pha})
    return files.read(path)["pha"]
