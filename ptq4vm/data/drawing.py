"""Drawing of calibration sequences from clip sources, by seed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator

from ptq4vm.data.sources import ClipSource, derive_seed
from ptq4vm.errors import PTQ4VMError

Progress = Callable[[int, int, str], None]
"""progress(done, total, description): called after each step of a long operation."""


class SequencePlace(NamedTuple):
    """Location of a calibration sequence: source, clip index and first frame."""

    source: ClipSource
    clip: int
    start: int


def draw_sequences(
    source: ClipSource, count: int, length: int, seed: int, progress: Progress | None = None
) -> list[SequencePlace]:
    """Draw sequences without cuts, cycling through the clips with a random start in each.

    Args:
        source: Clip source.
        count: Number of sequences.
        length: Frames per sequence. Clips without a shot of this length are skipped.
        seed: Seed of the draw.
        progress: Called after each sequence.

    Raises:
        PTQ4VMError: No clip is long enough; raised before reading if all claimed lengths are far
            too short.
    """
    require_long_enough(source, length)
    generator = Generator().manual_seed(seed)
    drawn: list[SequencePlace] = []
    while len(drawn) < count:
        before = len(drawn)
        for clip in source.draw_order(generator):
            start = _draw_start(source, clip, length, generator) if len(drawn) < count else None
            if start is not None:
                drawn.append(SequencePlace(source, clip, start))
                if progress is not None:
                    progress(len(drawn), count, "drawing sequences")
        if len(drawn) == before:
            # `longest_shot` reads whole clips: needed only if cuts, not lengths, are the cause.
            long = [clip for clip in range(len(source)) if source.num_frames(clip) >= length]
            frames = source.longest_shot if long else source.num_frames
            longest = max(long or range(len(source)), key=frames)
            raise _too_short(source, longest, frames(longest), length)
    return drawn


def _draw_start(source: ClipSource, clip: int, length: int, generator: Generator) -> int | None:
    """Draw the first frame of a sequence without a cut; None if there is none of this length."""
    starts = list(range(source.num_frames(clip) - length + 1))
    while starts:
        start = starts[int(torch.randint(len(starts), (), generator=generator))]
        cuts = source.cuts(clip, start, start + length)
        if not cuts:
            return start
        starts = [
            start for start in starts if not any(start < cut < start + length for cut in cuts)
        ]
    return None


def require_long_enough(source: ClipSource, length: int) -> None:
    """Check the clips' claimed lengths without reading any clip.

    Raises:
        PTQ4VMError: All lengths are known, and ``length`` exceeds the largest by more than the
            factor ``source.claims_are_within``.
    """
    claims = [source.claimed_frames(clip) for clip in range(len(source))]
    known = [claim for claim in claims if claim is not None]
    if len(known) == len(claims) and length > source.claims_are_within * max(known):
        raise _too_short(source, known.index(max(known)), max(known), length)


def _too_short(source: ClipSource, clip: int, frames: int, length: int) -> PTQ4VMError:
    return PTQ4VMError(
        f"Expected clips of at least seq_length = {length} frames without a cut, got at most "
        f"{frames}, in clip "
        f"{source.names[clip]}. Shorten seq_length or add longer clips."
    )


def draw_from_all(
    sources: list[ClipSource], count: int, length: int, seed: int, progress: Progress | None = None
) -> list[SequencePlace]:
    """Draw from several sources in turn; see :func:`draw_sequences` for arguments and errors."""
    for source in sources:
        require_long_enough(source, length)
    shares = [range(i, count, len(sources)) for i in range(len(sources))]
    drawn = [
        draw_sequences(source, len(share), length, derive_seed(seed, i), progress)
        for i, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]
    return [drawn[i % len(sources)][i // len(sources)] for i in range(count)]


def fingerprint_sequences(source: ClipSource, places: list[SequencePlace], length: int) -> str:
    """Hash the frames of one source's sequences; sequences of other sources are ignored."""
    ours = (place for place in places if place.source is source)
    return source.fingerprint((place.clip, place.start, place.start + length) for place in ours)
