"""Video writer, and the choice of reader and writer by path."""

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.frames import DEFAULT_RATE, Frame, FrameReader, FrameWriter
from ptq4vm.video.images import (
    IMAGE_SUFFIXES,
    FolderWriter,
    ImageReader,
    ImageWriter,
    require_supported,
)
from ptq4vm.video.pictures import BT709
from ptq4vm.video.reader import VideoReader

_CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".webm": "webm", ".mov": "mov"}
_WITH_ALPHA = (".mov", ".webm")
_LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG
_TICKS = 120_000
"""Ticks per second of a video's clock.

Frame periods at 24, 25, 30, 50, 60 frames per second, and 1000/1001 of those, are whole ticks.
"""
_JITTER = Fraction(1, 1000)
"""Seconds; timestamps this close to the constant rate are snapped to it.

Some containers round timestamps to milliseconds.
"""
_LUMA = np.rint(16 + np.arange(256) * 219 / 255).astype(np.uint8)
"""Luma codes of grey 0 to 255 in BT.709's limited range."""


def open_frames(path: Path, strict: bool = False) -> FrameReader:
    """Open a video, a folder of images (natural order) or one image for reading.

    Args:
        path: Path of the source.
        strict: Raise at a video frame that can't be decoded, instead of repeating the previous one.

    Raises:
        PTQ4VMError: Nothing exists at ``path``, or it can't be read as frames.
    """
    path = Path(path)
    if not path.exists():
        raise PTQ4VMError(
            f"Expected a video, an image or a folder of images, got {path}, which does not exist"
        )
    require_supported(path)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageReader(path)
    return VideoReader(path, strict)


def require_output(path: Path, alpha: bool = False) -> None:
    """Check that an output's format can be written.

    Args:
        path: .mp4, .mkv, .webm or .mov for a video; no suffix for a folder of PNGs; .png for one
            image.
        alpha: Frames have four channels. Videos with alpha are .mov (ProRes 4444) or .webm (VP9).

    Raises:
        PTQ4VMError: The format is unknown or can't hold alpha.
    """
    suffix = path.suffix.lower()
    if path.is_dir() or not suffix or suffix == ".png":
        return
    if suffix not in _CONTAINERS:
        raise PTQ4VMError(
            f"Expected an output ending in {', '.join(_CONTAINERS)} (video), .png (one image) or "
            "nothing (folder of "
            f"PNGs), got {path}"
        )
    if alpha and suffix not in _WITH_ALPHA:
        raise PTQ4VMError(
            f"Expected an output that holds alpha: {', '.join(_WITH_ALPHA)}, .png or a folder, got "
            f"{path}"
        )


def open_writer(
    path: Path,
    size: tuple[int, int],
    rate: Fraction = DEFAULT_RATE,
    alpha: bool = False,
    sound: Path | None = None,
    pixel_aspect: Fraction = Fraction(1),
    names: Sequence[str] = (),
) -> FrameWriter:
    """Open a writer by suffix: a video, a folder of PNGs (no suffix) or one .png image.

    Args:
        path: Target; written atomically when the writer is closed. Videos are .mp4, .mkv, .webm or
            .mov.
        size: (height, width) of the frames.
        rate: Frames per second of a video.
        alpha: Frames have four channels. Videos with alpha are .mov (ProRes 4444) or .webm (VP9).
        sound: Video whose sound is copied unchanged to an output video.
        pixel_aspect: Width of a pixel as a multiple of its height, stored in a video.
        names: Names of the frames in a folder, without suffix; numbers if not given.

    Raises:
        PTQ4VMError: The suffix is unknown, the format can't hold alpha or the sound, or the target
            can't be written.
    """
    path = Path(path)
    require_output(path, alpha)
    if path.is_dir() or not path.suffix:
        return FolderWriter(path, size, names)
    if path.suffix.lower() == ".png":
        return ImageWriter(path, size)
    return VideoWriter(path, size, rate, alpha, sound, pixel_aspect)


class VideoWriter(FrameWriter):
    """Video writer: H.264 in .mp4, .mkv and .mov, VP9 in .webm, 8-bit 4:2:0 in BT.709.

    Without x264, MPEG-4 Part 2 replaces H.264. With alpha, .mov uses ProRes 4444 (10-bit 4:4:4)
    and .webm VP9. 4:2:0 needs even sides: an odd side is padded by repeating the last row or
    column. Grey frames are encoded without chroma. The pixel aspect ratio is stored, except in
    .webm, which does not support it: frames are resized to square pixels there.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        rate: Fraction = DEFAULT_RATE,
        alpha: bool = False,
        sound: Path | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        super().__init__(path, size)
        container_format = _CONTAINERS[self.path.suffix.lower()]
        codec, options = _choose_codec(container_format, alpha)
        self._format = (
            ("yuva444p10le" if codec == "prores_ks" else "yuva420p") if alpha else "yuv420p"
        )
        # MPEG-4 stores numerator and denominator in 16 bits.
        self._rate = rate.limit_denominator(1001 if rate < 60 else 100)
        self._time = Fraction(-1)
        height, width = size
        if codec == "libvpx-vp9":
            width, pixel_aspect = round(width * pixel_aspect), Fraction(1)
        self._shown = (height, width)
        self._pad = [(0, height % 2), (0, width % 2), (0, 0)]
        try:
            # FFmpeg opens the file at the first packet; fail before a frame is computed.
            self._part.touch(exist_ok=False)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._container: Any = av.open(f"file:{self._part}", "w", format=container_format)
        try:
            stream: Any = self._container.add_stream(codec, rate=self._rate, options=options)
        except ValueError as error:  # base of PyAV's UnknownCodecError
            self._discard()
            raise PTQ4VMError(
                f"Can't write {self.path}: this PyAV has no {codec}; name an .mp4 instead"
            ) from error
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = self._format
        context: Any = stream.codec_context
        context.sample_aspect_ratio = pixel_aspect
        # MPEG-4's own clock is too coarse for timestamps off the frame rate.
        self._tick = context.time_base = 1 / self._rate if codec == "mpeg4" else Fraction(1, _TICKS)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = _LIMITED_RANGE
        self._stream = stream
        try:
            self._sound = None if sound is None else _Sound(sound, self._container)
        except PTQ4VMError as error:
            self._discard()
            raise PTQ4VMError(f"Can't write {self.path}: {error}") from error

    def _write(self, frame: Frame, time: Fraction | None) -> None:
        steady = self.num_frames / self._rate
        time = steady if time is None or abs(time - steady) <= _JITTER else time
        self._time = max(time, self._time + self._tick)  # codecs require increasing timestamps
        if self._shown != self.size:
            frame = cv2.resize(frame, self._shown[::-1]).astype(np.uint8, copy=False)
        if any(side % 2 for side in self._shown):
            frame = np.pad(frame, self._pad[: frame.ndim], mode="edge")
        if frame.ndim == 2:
            planes = np.full((len(frame) * 3 // 2, frame.shape[1]), 128, np.uint8)
            planes[: len(frame)] = _LUMA[frame]
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        else:
            layout = "rgb24" if frame.shape[2] == 3 else "rgba"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=layout)
            picture = picture.reformat(format=self._format, dst_colorspace=BT709)
        picture.colorspace, picture.color_range = BT709, _LIMITED_RANGE
        picture.pts, picture.time_base = round(self._time / self._tick), self._tick
        self._encode(picture)
        self._copy_sound()

    def _finish(self) -> None:
        self._encode(None)
        self._copy_sound()
        try:
            self._container.close()
        except av.error.FFmpegError as error:
            raise self._cannot_write(error) from error

    def _encode(self, picture: Any) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except av.error.FFmpegError as error:
            raise self._cannot_write(error) from error

    def _copy_sound(self) -> None:
        """Mux the sound up to the end of the last frame."""
        if self._sound is not None:
            try:
                for packet in self._sound.until(self._time + 1 / self._rate):
                    self._container.mux(packet)
            except av.error.FFmpegError as error:
                raise self._cannot_write(error) from error

    def _discard(self) -> None:
        if getattr(self, "_sound", None) is not None:
            self._sound.close()  # type: ignore[union-attr]
        # Closing writes a trailer, which fails again on a full disk; the file is removed anyway.
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._container.close()
        super()._discard()


class _Sound:
    """Sound packets of a video, copied unchanged to another container; none if it has no sound.

    Raises:
        PTQ4VMError: The container can't hold the sound.
    """

    def __init__(self, path: Path, target: Any) -> None:
        self._source: Any = av.open(f"file:{path}")
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        if not self._source.streams.audio or not self._source.streams.video:
            return
        stream, video = self._source.streams.audio[0], self._source.streams.video[0]
        try:
            self._stream = target.add_stream_from_template(stream)
        except (ValueError, av.error.FFmpegError) as error:
            self.close()
            raise PTQ4VMError(
                f"expected sound that it can hold, got {stream.codec_context.name} from {path}. "
                "Name an .mkv, which "
                "holds any, or leave the sound out with --sound false"
            ) from error
        # The output starts at time 0.
        self._start = Fraction((video.start_time or 0) * (video.time_base or 1))
        self._packets = self._source.demux(stream)

    def until(self, seconds: Fraction) -> Iterator[Any]:
        """Yield the remaining packets that begin before ``seconds``."""
        while True:
            packet = next(self._packets, None) if self._next is None else self._next
            self._next = None
            if packet is None:
                return
            if packet.dts is None:  # flush packet at the end of the stream
                continue
            if packet.pts * packet.time_base - self._start >= seconds:
                self._next = packet
                return
            shift = round(self._start / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._stream
            yield packet

    def close(self) -> None:
        """Close the source file."""
        self._source.close()


def _choose_codec(container_format: str, alpha: bool = False) -> tuple[str, dict[str, str]]:
    if alpha and container_format == "mov":
        return "prores_ks", {"profile": "4444"}
    if container_format == "webm":
        return "libvpx-vp9", {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4"}
    if "libx264" in av.codecs_available:
        # Visually lossless at any preset; slow presets would take longer than the network.
        return "libx264", {"crf": "16", "preset": "superfast"}
    return "mpeg4", {
        "flags": "+qscale",
        "global_quality": str(2 * 118),
    }  # quantiser 2, in FFmpeg's FF_QP2LAMBDA
