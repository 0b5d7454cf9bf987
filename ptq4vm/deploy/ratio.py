"""Downsample ratio at which a network works."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import WORKING_SIDE, FrameModel

Ratio = float | Literal["auto"]
"""Downsample ratio in (0, 1], or ``auto`` for :func:`auto_downsample_ratio`."""


def auto_downsample_ratio(height: int, width: int) -> float:
    """Return the ratio for a longer side of 512 pixels, at most 1; recommended by RVM."""
    return min(WORKING_SIDE / max(height, width), 1.0)


def choose_downsample_ratio(model: FrameModel, ratio: Ratio, height: int, width: int) -> float:
    """Resolve ``auto`` to an exported graph's ratio, else :func:`auto_downsample_ratio`.

    Raises:
        PTQ4VMError: the ratio is outside (0, 1].
    """
    if ratio == "auto":
        return (
            auto_downsample_ratio(height, width) if model.fixed_ratio is None else model.fixed_ratio
        )
    if not 0 < ratio <= 1:
        raise PTQ4VMError(
            f"Expected a downsample ratio in (0, 1], got {ratio}. Leave it out for auto."
        )
    return ratio


@contextmanager
def working_at(model: FrameModel, ratio: float) -> Iterator[None]:
    """Set a network's downsample ratio for the duration of a context."""
    before = model.downsample_ratio
    model.downsample_ratio = ratio
    try:
        yield
    finally:
        model.downsample_ratio = before
