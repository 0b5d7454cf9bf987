"""Fault-tolerant video reader with timestamps."""

import contextlib
import heapq
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.frames import DEFAULT_RATE, Frame, FrameReader
from ptq4vm.video.images import MAX_PIXELS
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
_DEMUXERS = (
    "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg,mxf,gif,nut,ivf,dv,h264,hevc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe"
)
"""FFmpeg formats in use; playlists (e.g. HLS), which open other files, are excluded."""
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
        with self._stream() as (container, stream):
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

    def read(self, start: int, stop: int) -> list[Frame]:
        """Return frames [start, stop), decoded from frame 0: seeking is inexact in some formats."""
        frames = []
        with contextlib.closing(self._timed()) as timed:
            for number, (_, frame) in enumerate(timed):
                if number >= start:
                    frames.append(self._convert(frame))
                if number + 1 == stop:
                    break
        return frames

    def count(self) -> int:
        """Count the frames, without decoding if the container has a timestamp for each."""
        with self._stream() as (container, stream):
            times = {packet.pts for packet in container.demux(stream) if _is_shown(packet)}
        if None in times:
            return sum(1 for _ in self._timed())
        return len(times)

    def _convert(self, frame: Any) -> Frame:
        return to_rgb(frame, self.transfer)

    def _timed(self) -> Generator[tuple[Fraction, Any], None, None]:
        start: Fraction | None = None
        time: Fraction | None = None
        self.concealed = 0
        with self._stream() as (container, stream):
            shown = self._conceal(container, stream)
            for number, (frame, pts) in enumerate(_deinterlace(shown)):
                self._check_size(frame, number)
                seconds = None if pts is None else pts * stream.time_base
                start = (seconds or Fraction(0)) if start is None else start
                if seconds is not None and (time is None or seconds - start > time):
                    time = seconds - start
                else:
                    time = Fraction(0) if time is None else time + 1 / self.rate
                yield time, frame

    def _check_size(self, frame: Any, number: int) -> None:
        size = (frame.height, frame.width)
        if swaps_sides(display_matrix(frame)):
            size = size[::-1]
        if size != (self.height, self.width):
            raise PTQ4VMError(
                f"Expected {self.width}x{self.height} throughout {self.path}, got "
                f"{size[1]}x{size[0]} at frame "
                f"{number}; re-encode it at one size"
            )

    def _conceal(self, container: Any, stream: Any) -> Iterator[tuple[Any, int | None]]:
        """Yield (frame, presentation timestamp) for each timestamp of the stream's packets.

        Packets are in decoding order, frames in presentation order: a timestamp still pending when
        a later frame arrives has no decodable frame.
        """
        waiting: list[int] = []
        seen: set[int] = set()
        last: Any = None

        def note(packet: Any) -> None:
            if packet.pts is not None and packet.pts not in seen and _is_shown(packet):
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

    @contextlib.contextmanager
    def _stream(self) -> Iterator[tuple[Any, Any]]:
        # "file:" keeps FFmpeg from taking a name like "a:b.mkv" for a protocol.
        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
        try:
            with av.open(f"file:{self.path}", options=options) as container:
                if not container.streams.video:
                    raise PTQ4VMError(
                        f"Expected a video, got {self.path}, which has no picture in it"
                    )
                stream = container.streams.video[0]
                context = stream.codec_context
                if context.width * context.height > MAX_PIXELS:
                    raise PTQ4VMError(
                        f"Expected frames of at most {MAX_PIXELS} pixels, got "
                        f"{context.width}x{context.height} in "
                        f"{self.path}. Scale it down"
                    )
                # With frame threads, an error may drop intra-only frames of other threads.
                stream.thread_type = "SLICE" if context.codec.intra_only else "AUTO"
                yield container, stream
        except (av.error.FFmpegError, OSError) as error:
            raise PTQ4VMError(
                f"Expected a video that can be decoded in {self.path}, got: {error}. Convert it to "
                ".mp4 or .mkv with "
                "ffmpeg"
            ) from error

    def _estimate(self, container: Any, stream: Any) -> int | None:
        if stream.duration:
            seconds = stream.duration * stream.time_base
        elif container.duration:
            seconds = Fraction(container.duration, av.time_base)
        else:
            return None
        return max(round(seconds * self.rate), 1)


def _is_shown(packet: Any) -> bool:
    """Return whether a packet holds a picture to be shown."""
    if packet.size == 0 or packet.is_discard:
        return False
    # VP8's show_frame bit is 0 for alternative reference frames (RFC 6386, 9.1).
    hidden = packet.stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10
    return not hidden


def _deinterlace(frames: Iterable[tuple[Any, int | None]]) -> Iterator[tuple[Any, int | None]]:
    """Deinterlace interlaced frames one for one; progressive ones pass unchanged.

    FFmpeg's filter is set up at the first interlaced frame. It delays output by one frame, since it
    also reads the next one.
    """
    graph: Any = None
    times: deque[int | None] = deque()
    for frame, pts in frames:
        if graph is None:
            if not frame.interlaced_frame:
                yield frame, pts
                continue
            graph = _bwdif(frame)
        times.append(pts)
        graph.push(frame)
        for done in _pull(graph):
            yield done, times.popleft()
    if graph is not None:
        graph.push(None)
        for done in _pull(graph):
            yield done, times.popleft()


def _bwdif(frame: Any) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    )
    graph.configure()
    return graph


def _pull(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
