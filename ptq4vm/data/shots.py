"""Shot detection in clips, with a cache of the results."""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptq4vm.atomic_io import write_json
from ptq4vm.data.files import read_image
from ptq4vm.data.storage import make_folder, short_hash
from ptq4vm.video.cuts import MEMORY, CutDetector, find_cuts
from ptq4vm.video.frames import Frame

VERSION = 1
"""Part of every cache key; increment when the cut detector changes."""


class Shots(NamedTuple):
    """Number of frames of a clip, and first frames of all shots but the first."""

    frames: int
    cuts: tuple[int, ...]


def find_shots(frames: Iterable[Frame], fingerprint: str, cache: Path | None) -> Shots:
    """Count frames and detect cuts, or read the cached result.

    Args:
        frames: (H, W, 3) uint8 RGB; not consumed if the result is cached.
        fingerprint: Hash of the frames, the cache key.
        cache: Cache folder; None disables the cache.

    Raises:
        PTQ4VMError: The cache can't be written, or ``frames`` raises it.
    """
    path = (
        cache
        and make_folder(cache / "shots")
        / f"{short_hash({'clip': fingerprint, 'version': VERSION})}.json"
    )
    if path and (known := _read(path)) is not None:
        return known
    count, is_cut, cuts = 0, CutDetector(), []
    for count, frame in enumerate(frames, 1):
        if is_cut(frame):
            cuts.append(count - 1)
    if path:
        write_json(path, {"frames": count, "cuts": cuts})
    return Shots(count, tuple(cuts))


def cuts_of_images(paths: Sequence[Path], start: int, stop: int) -> list[int]:
    """Detect the cuts in (start, stop) of a sequence of images; also reads a few images before."""
    first = max(0, start - MEMORY)
    found = find_cuts(image_frames(paths[first:stop]))
    return [first + cut for cut in found if first + cut > start]


def image_frames(paths: Iterable[Path]) -> Iterable[Frame]:
    """Read each file as (H, W, 3) uint8 RGB."""
    return (read_image(path).permute(1, 2, 0).numpy() for path in paths)


def _read(path: Path) -> Shots | None:
    if not path.is_file():
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        frames, cuts = found["frames"], found["cuts"]
        numbers = [frames, *cuts]
        if all(type(one) is int for one in numbers) and sorted({0, *cuts, frames}) == [
            0,
            *cuts,
            frames,
        ]:
            return Shots(frames, tuple(cuts))
        problem = "its numbers are no frames in order"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = repr(error)
    warnings.warn(f"Remaking {path}, which is damaged: {problem}", stacklevel=2)
    return None
