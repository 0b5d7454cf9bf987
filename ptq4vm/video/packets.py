"""Packets of a file's first video stream: their index, and decoding from a keyframe."""

import contextlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.images import MAX_PIXELS

_DEMUXERS = (
    "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg,mxf,gif,nut,ivf,dv,h264,hevc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe"
)
"""FFmpeg formats in use; playlists (e.g. HLS), which open other files, are excluded."""
_TRUSTED = ("mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9")
"""Codecs whose keyframes, as their containers mark them, need no earlier packet."""
_NAL_TYPES = {"h264": range(5, 6), "hevc": range(16, 22)}
"""NAL unit types of keyframes after which frames that are shown later need no earlier packet.

H.264's other keyframes may begin a gradual recovery (ITU-T H.264, 7.4.1; H.265, 7.4.2.2).
"""
_AV1 = ("av1", "libdav1d", "libaom-av1")
"""Names of FFmpeg's decoders."""


class Start(NamedTuple):
    """Packet at which decoding can start."""

    pts: int
    position: int
    """Number of the packet in decoding order."""
    seek_to: int
    """Timestamp to seek to."""


class PacketIndex(NamedTuple):
    """Packets of a video stream, which are read without decoding them."""

    packets: list[tuple[int | None, int]]
    """(presentation timestamp, bytes), in decoding order."""
    times: list[int]
    """Timestamp of each frame; empty if timestamps are missing."""
    starts: list[Start]
    """Packets at which decoding can start, in order; empty if timestamps are missing or repeat."""

    def find(self, frame: int) -> Start | None:
        """Return the last start at or before a frame of the index; None if it is packet 0."""
        place = bisect_right(self.starts, self.times[frame], key=lambda start: start.pts)
        return self.starts[place - 1] if place else None


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file; yield its container and its first video stream.

    Raises:
        PTQ4VMError: The file is not a video, its frames are too large, or decoding it within the
            context fails.
    """
    # "file:" keeps FFmpeg from taking a name like "a:b.mkv" for a protocol.
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", options=options) as container:
            if not container.streams.video:
                raise PTQ4VMError(f"Expected a video, got {path}, which has no picture in it")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context.width * context.height > MAX_PIXELS:
                raise PTQ4VMError(
                    f"Expected frames of at most {MAX_PIXELS} pixels, got "
                    f"{context.width}x{context.height} in "
                    f"{path}. Scale it down"
                )
            # With frame threads, an error may drop intra-only frames of other threads.
            stream.thread_type = "SLICE" if context.codec.intra_only else "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise PTQ4VMError(
            f"Expected a video that can be decoded in {path}, got: {error}. Convert it to "
            ".mp4 or .mkv with "
            "ffmpeg"
        ) from error


def is_shown(packet: Any) -> bool:
    """Return whether a packet holds a picture to be shown."""
    if packet.size == 0 or packet.is_discard:
        return False
    # VP8's show_frame bit is 0 for alternative reference frames (RFC 6386, 9.1).
    hidden = packet.stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10
    return not hidden


def index_packets(container: Any, stream: Any) -> PacketIndex:
    """Read all packets of a stream, without decoding them."""
    packets: list[tuple[int | None, int]] = []
    shown: list[int | None] = []
    starts: list[Start] = []
    latest: int | None = None
    for packet in container.demux(stream):
        pts = packet.pts
        # After an earlier packet that is shown later, frames from `pts` on may need that packet.
        if pts is not None and latest is not None and pts > latest and _is_start(packet, stream):
            before = pts if packet.dts is None else min(pts, packet.dts)
            starts.append(Start(pts, len(packets), before))
        if packet.size:
            packets.append((pts, packet.size))
        if is_shown(packet):
            shown.append(pts)
            latest = pts if latest is None or pts is None else max(latest, pts)
    times = sorted({time for time in shown if time is not None})
    if None in shown:
        return PacketIndex(packets, [], [])
    return PacketIndex(packets, times, starts if len(times) == len(shown) else [])


def decode_from(
    start: Start, index: PacketIndex, container: Any, stream: Any
) -> Iterator[tuple[int, Any]]:
    """Yield (number, frame) of the frames from a start on, as decoding from frame 0 gives them.

    Iteration ends early where this can't be shown: the packets are not those of the index, a
    packet or a frame is damaged, a frame of the index is not decoded, or a frame is interlaced
    (deinterlacing reads the frames before it).
    """
    # Damage that the decoder would conceal, perhaps by frames before the start, becomes an error.
    stream.codec_context.options = {"err_detect": "explode"}
    number = bisect_left(index.times, start.pts)
    with contextlib.suppress(av.error.FFmpegError):
        container.seek(start.seek_to, stream=stream)
        for packet in _packets_from(start, index, container, stream):
            for frame in packet.decode():
                if frame.pts is not None and frame.pts < start.pts:
                    continue  # shown before the keyframe, decoded after it
                expected = index.times[number] if number < len(index.times) else None
                if frame.pts != expected or frame.is_corrupt or frame.interlaced_frame:
                    return
                yield number, frame
                number += 1


def _packets_from(start: Start, index: PacketIndex, container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets from a start on, while they are those of the index, and the flush."""
    demuxed = container.demux(stream)
    for packet in demuxed:
        if packet.pts == start.pts:
            break
    else:
        return
    expected = islice(index.packets, start.position, None)
    while packet.size:
        if (packet.pts, packet.size) != next(expected, None):
            return
        yield packet
        packet = next(demuxed)
    if next(expected, None) is None:
        yield packet


def _is_start(packet: Any, stream: Any) -> bool:
    """Return whether a packet, and those shown after it, need no earlier packet."""
    name, codec = stream.codec_context.name, stream.codec_context.codec
    if not packet.is_keyframe or packet.is_discard or packet.is_corrupt:
        return False
    if name in _AV1:
        return _begins_with_av1_keyframe(bytes(packet))
    if name in _NAL_TYPES:
        first = next((kind for kind in _nal_types(packet, stream) if _is_picture(kind, name)), None)
        return first in _NAL_TYPES[name]
    return bool(codec.intra_only) or name in _TRUSTED


def _is_picture(kind: int, codec: str) -> bool:
    return 1 <= kind <= 5 if codec == "h264" else kind < 32


def _nal_types(packet: Any, stream: Any) -> Iterator[int]:
    """Yield the type of each NAL unit of an H.264 or HEVC packet."""
    data, extradata = bytes(packet), stream.codec_context.extradata or b""
    at, hevc = 0, stream.codec_context.name == "hevc"
    place = 21 if hevc else 4
    # With lengths (ISO/IEC 14496-15), as in MP4 and Matroska.
    if extradata[:1] == b"\1" and len(extradata) > place:
        width = (extradata[place] & 3) + 1
        heads = []
        while at + width < len(data):
            heads.append(at + width)
            at += width + int.from_bytes(data[at : at + width], "big")
    else:
        heads = [found.end() for found in re.finditer(b"\0\0\1(?=.)", data, re.DOTALL)]
    for head in heads:
        yield data[head] >> 1 & 0x3F if hevc else data[head] & 0x1F


def _begins_with_av1_keyframe(data: bytes) -> bool:
    """Return whether the first frame of an AV1 packet is a keyframe that is shown at once.

    One that is shown later may follow frames that need earlier packets (AV1 specification, 7.20).
    """
    at = 0
    while at < len(data):
        head = data[at]
        kind, at = head >> 3 & 0xF, at + 1 + (head >> 2 & 1)
        size = shift = 0
        while head & 2 and at < len(data):  # leb128
            size |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not data[at - 1] & 0x80:
                break
        if kind in (3, 6):  # OBU_FRAME_HEADER, OBU_FRAME
            # show_existing_frame 0, frame_type 00 (KEY_FRAME), show_frame 1
            return at < len(data) and data[at] >> 4 == 1
        at += size if head & 2 else len(data)
    return False
