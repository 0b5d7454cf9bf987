"""Smooth motion of pictures, drawn by seed, with exact sampling and optical flow."""

import math
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn import functional


class Wave:
    """Random sinusoid, value(t) = middle + amplitude · sin(2π t / period + phase).

    Period (50 to 100 frames) and phase are drawn from the generator.
    """

    def __init__(self, generator: Generator, middle: float, amplitude: float) -> None:
        self.middle, self.amplitude = middle, amplitude
        self.period = uniform(generator, 50, 100)
        self.phase = uniform(generator, 0, 2 * math.pi)

    def __call__(self, frame: int) -> float:
        """Return the value at a frame."""
        return self.middle + self.amplitude * math.sin(
            2 * math.pi * frame / self.period + self.phase
        )


def uniform(generator: Generator, low: float, high: float) -> float:
    """Draw a number from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def similarity(
    x: float, y: float, scale: float, angle: float, pivot: tuple[float, float], mirror: bool
) -> Tensor:
    """Return the 3×3 matrix that mirrors, scales and rotates about a pivot placed at (x, y)."""
    cos, sin, flip = scale * math.cos(angle), scale * math.sin(angle), -1 if mirror else 1
    linear = torch.tensor([[cos * flip, -sin], [sin * flip, cos]], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    matrix[:2, 2] = torch.tensor([x, y], dtype=torch.float64) - linear @ torch.tensor(
        pivot, dtype=torch.float64
    )
    return matrix


def pixel_places(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Map the pixel grid of a picture of ``size`` by a matrix: (H, W, 2), x before y."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    return torch.stack([x, y], dim=-1) @ matrix[:2, :2].T + matrix[:2, 2]


def sample(picture: Tensor, matrix: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    """Resample a picture (C, h, w) into a frame (C, H, W).

    Args:
        picture: (C, h, w), floats in [0, 1].
        matrix: 3×3, from picture pixels to frame pixels.
        size: (H, W).
        padding: Padding mode of :func:`torch.nn.functional.grid_sample`.
    """
    places = pixel_places(torch.linalg.inv(matrix), size)
    extent = torch.tensor([picture.shape[-1], picture.shape[-2]])
    grid = ((2 * places + 1) / extent - 1).float()
    return functional.grid_sample(
        picture[None], grid[None], padding_mode=padding, align_corners=False
    )[0].clamp(0, 1)


def way_flow(way: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Compute the backward flow, (T-1, 2, H, W) in pixels, of an object with a matrix per frame."""
    here = pixel_places(torch.eye(3, dtype=torch.float64), size)
    flows = [
        (pixel_places(before @ torch.linalg.inv(after), size) - here).permute(2, 0, 1).float()
        for before, after in pairwise(way)
    ]
    return torch.stack(flows) if flows else torch.zeros(0, 2, *size)
