"""Fault-tolerant video reader with timestamps."""

import contextlib
import heapq
from collections.abc import Generator, Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.deinterlacing import deinterlace
from ptq4vm.video.frames import DEFAULT_RATE, Frame, FrameReader
from ptq4vm.video.packets import PacketIndex, decode_from, index_packets, is_shown, open_stream
from ptq4vm.video.pictures import HLG, PQ, display_matrix, swaps_sides, to_rgb

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".m2ts",
    ".wmv",
    ".flv",
    ".ogv",
    ".3gp",
    ".mxf",
    ".gif",
)
"""Suffixes of videos in a folder; a file given by path may have any suffix."""
_ENDS_WITHIN = Fraction(1, 10)
"""Tolerance in seconds between the end of an undamaged file and its container's duration."""

_DAMAGED = (av.error.InvalidDataError, av.error.ArgumentError, av.error.PatchWelcomeError)
"""Errors raised by decoders for invalid packets."""


class VideoReader(FrameReader):
    """Reader of a file's first video stream, upright, deinterlaced and in SDR.

    Each frame of the container is returned once, with its timestamp. A frame that can't be decoded
    is concealed by the previous frame (at the beginning, by the first decodable one).

    Args:
        path: Regular file.
        strict: Raise at a frame that can't be decoded.
        whole: Raise at the end of a truncated file; otherwise stop there and add a line to
            :attr:`notes`.

    Raises:
        PTQ4VMError: The file is not a video, it has no frames, or frames are too large.
    """

    def __init__(self, path: Path, strict: bool = False, whole: bool = True) -> None:
        self.path, self.strict, self.whole = path, strict, whole
        self.concealed, self.cut_off = 0, False
        if not path.is_file():
            raise PTQ4VMError(
                f"Expected a file, got {path}, which is a pipe, a device or the like. Save it as a "
                "file."
            )
        with open_stream(self.path) as (container, stream):
            first = next(self._decode(container, stream), None)
            if first is None:
                raise PTQ4VMError(f"Expected a video with frames, got {path}, which holds none")
            rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
            self.rate = Fraction(rate)
            matrix = display_matrix(first)
            self.interlaced = bool(first.interlaced_frame)
            self.transfer = int(stream.codec_context.color_trc or 0)
            self.height, self.width = first.height, first.width
            self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
            if swaps_sides(matrix):
                self.height, self.width, self.pixel_aspect = (
                    self.width,
                    self.height,
                    1 / self.pixel_aspect,
                )
            self.num_frames = stream.frames or self._estimate(container, stream)
        self.concealed = 0

    @property
    def notes(self) -> list[str]:
        """Damage met so far, and properties of the video relevant to the user, one line each."""
        found = []
        if self.concealed:
            found.append(
                f"{self.concealed} frames could not be decoded: the frame before each was repeated"
            )
        if self.cut_off:
            found.append("the file was cut off: the frames that are there are used")
        if self.interlaced:
            found.append(
                "interlaced: deinterlaced to one frame for each pair of fields (FFmpeg's bwdif)"
            )
        if self.transfer in (PQ, HLG):
            name = "PQ" if self.transfer == PQ else "HLG"
            found.append(f"HDR ({name}): tone-mapped to SDR, BT.709, reference white 203 cd/m²")
        return [f"{self.path}: {line}" for line in found]

    def __iter__(self) -> Iterator[Frame]:
        return (frame for _, frame in self.timed())

    def timed(self) -> Iterator[tuple[Fraction, Frame]]:
        """Yield (timestamp, frame); timestamps are in seconds from the first frame.

        Missing or non-increasing timestamps become previous + 1/rate.
        """
        for time, frame in self._timed():
            yield time, self._convert(frame)

    def read(self, start: int, stop: int, num_frames: int | None = None) -> list[Frame]:
        """Return frames [start, stop), the same bits as from iteration.

        If ``num_frames`` is given, decoding starts at the last keyframe that needs no earlier
        packet, and frames are identified by their timestamps. The first such call reads through the
        file for them, without decoding. :attr:`concealed` then counts no damage before the
        keyframe.

        Decoding starts at frame 0 where frames might differ: without as many timestamps as frames;
        with ``strict``; in interlaced videos; if a frame between keyframe and ``stop`` is damaged
        or has another size; if seeking misses the keyframe; and with codecs whose keyframes are not
        known to be independent.

        Args:
            start: First frame.
            stop: Frame after the last.
            num_frames: Number of frames by iteration; None if unknown. :meth:`count` does not
                suffice: from damaged packets a decoder may make more frames than it counts.
        """
        if num_frames is not None:
            found = self._read_from_keyframe(start, stop, num_frames)
            if found is not None:
                return found
        frames = []
        with contextlib.closing(self._timed()) as timed:
            for number, (_, frame) in enumerate(timed):
                if number >= start:
                    frames.append(self._convert(frame))
                if number + 1 == stop:
                    break
        return frames

    def _read_from_keyframe(self, start: int, stop: int, num_frames: int) -> list[Frame] | None:
        """Return frames [start, stop), or None if they have to be decoded from frame 0."""
        if not 0 < start < stop <= num_frames or self.strict or self.interlaced:
            return None
        keyframe = self._index.find(start) if len(self._index.times) == num_frames else None
        if keyframe is None:
            return None
        frames = []
        with open_stream(self.path) as (container, stream):
            for number, frame in decode_from(keyframe, self._index, container, stream):
                if self._size(frame) != (self.height, self.width):
                    break
                if number >= start:
                    frames.append(self._convert(frame))
                if number + 1 == stop:
                    self.concealed = 0
                    return frames
        return None

    @cached_property
    def _index(self) -> PacketIndex:
        try:
            with open_stream(self.path) as (container, stream):
                return index_packets(container, stream)
        except PTQ4VMError:  # Frames before the damage can be decoded.
            return PacketIndex([], [], [])

    def count(self) -> int:
        """Count the frames, without decoding if the container has a timestamp for each."""
        with open_stream(self.path) as (container, stream):
            times = index_packets(container, stream).times
        return len(times) or sum(1 for _ in self._timed())

    def _convert(self, frame: Any) -> Frame:
        return to_rgb(frame, self.transfer)

    def _timed(self) -> Generator[tuple[Fraction, Any], None, None]:
        start: Fraction | None = None
        time: Fraction | None = None
        self.concealed = 0
        with open_stream(self.path) as (container, stream):
            shown = self._conceal(container, stream)
            for number, (frame, pts) in enumerate(deinterlace(shown)):
                self._check_size(frame, number)
                seconds = None if pts is None else pts * stream.time_base
                start = (seconds or Fraction(0)) if start is None else start
                if seconds is not None and (time is None or seconds - start > time):
                    time = seconds - start
                else:
                    time = Fraction(0) if time is None else time + 1 / self.rate
                yield time, frame

    def _check_size(self, frame: Any, number: int) -> None:
        size = self._size(frame)
        if size != (self.height, self.width):
            raise PTQ4VMError(
                f"Expected {self.width}x{self.height} throughout {self.path}, got "
                f"{size[1]}x{size[0]} at frame "
                f"{number}; re-encode it at one size"
            )

    @staticmethod
    def _size(frame: Any) -> tuple[int, int]:
        """Return height and width of the upright picture."""
        swapped = swaps_sides(display_matrix(frame))
        return (frame.width, frame.height) if swapped else (frame.height, frame.width)

    def _conceal(self, container: Any, stream: Any) -> Iterator[tuple[Any, int | None]]:
        """Yield (frame, presentation timestamp) for each timestamp of the stream's packets.

        Packets are in decoding order, frames in presentation order: a timestamp still pending when
        a later frame arrives has no decodable frame.
        """
        waiting: list[int] = []
        seen: set[int] = set()
        last: Any = None

        def note(packet: Any) -> None:
            if packet.pts is not None and packet.pts not in seen and is_shown(packet):
                seen.add(packet.pts)
                heapq.heappush(waiting, packet.pts)

        for frame in self._decode(container, stream, note):
            while waiting and frame.pts is not None and waiting[0] < frame.pts:
                yield self._repeat(last or frame, heapq.heappop(waiting), stream)
            if waiting and waiting[0] == frame.pts:
                heapq.heappop(waiting)
            last = frame
            yield frame, frame.pts
        while waiting and last is not None:
            yield self._repeat(last, heapq.heappop(waiting), stream)

    def _repeat(self, frame: Any, pts: int, stream: Any) -> tuple[Any, int]:
        if self.strict:
            seconds = float((pts - (stream.start_time or 0)) * stream.time_base)
            raise PTQ4VMError(
                f"Expected every frame of {self.path} to be decoded, got a damaged one at "
                f"{seconds:.2f} s. Replace the "
                "file, or leave --strict out: damaged frames are then replaced by the one before"
            )
        self.concealed += 1
        return frame, pts

    def _decode(self, container: Any, stream: Any, note: Any = None) -> Iterator[Any]:
        """Yield decodable frames, and check for truncation, which FFmpeg does not report."""
        # Include sound in the end time: it may be longer than the video.
        reached, packets = Fraction(0), 0
        for packet in container.demux(stream, *container.streams.audio):
            if packet.pts is not None:
                reached = max(reached, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream is stream:
                packets += packet.size > 0
                if note is not None:
                    note(packet)
                # `_conceal` replaces the frames of damaged packets by their timestamps.
                with contextlib.suppress(*_DAMAGED):
                    yield from packet.decode()
        self._require_end(container, stream, reached, packets)

    def _require_end(self, container: Any, stream: Any, reached: Fraction, packets: int) -> None:
        missing = "mov" in container.format.name and packets < stream.frames
        end = Fraction(0)
        if container.duration:
            end = Fraction(container.duration + max(container.start_time or 0, 0), av.time_base)
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        self.cut_off = missing or reached < end - max(3 / Fraction(rate), _ENDS_WITHIN)
        if self.cut_off and self.whole:
            raise PTQ4VMError(
                f"Expected {float(end):.1f} s in {self.path}, as its header says, got "
                f"{float(reached):.1f} s: it was "
                "cut off. Copy or download it again, or cut it to what is there with ffmpeg"
            )

    def _estimate(self, container: Any, stream: Any) -> int | None:
        if stream.duration:
            seconds = stream.duration * stream.time_base
        elif container.duration:
            seconds = Fraction(container.duration, av.time_base)
        else:
            return None
        return max(round(seconds * self.rate), 1)
