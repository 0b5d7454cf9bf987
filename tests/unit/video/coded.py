"""Videos of various codecs and containers, written by PyAV, and damage to them."""

import av
import numpy as np

COUNT = 48
CODECS = {
    "h264.mp4": ("libx264", "yuv420p"),
    "h264.mkv": ("libx264", "yuv420p"),
    "h264.ts": ("libx264", "yuv420p"),
    "hevc.mkv": ("libx265", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "vp8.webm": ("libvpx", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "mjpeg.mkv": ("mjpeg", "yuvj420p"),
    "prores.mov": ("prores_ks", "yuv422p10le"),
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mpeg2.mpg": ("mpeg2video", "yuv420p"),
    "h264.flv": ("libx264", "yuv420p"),
}


def numbered(count=COUNT, height=64, width=96):
    """Create frames that encode their number in six dark or bright vertical bars."""
    bits = np.arange(width) * 6 // width
    return [
        np.uint8(40 + 170 * ((number >> bits) & 1))[None, :, None].repeat(height, 0).repeat(3, 2)
        for number in range(count)
    ]


def number_of(frame):
    bars = frame.astype(float).mean((0, 2)).reshape(6, -1).mean(1)
    return sum(1 << bit for bit, level in enumerate(bars) if level > 125)


def encode(path, frames, codec, pix_fmt, options=None, **context):
    with av.open(str(path), "w") as container:
        quiet = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=24, options={**quiet, **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.gop_size = 12
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def damage(path, place, keep):
    """Overwrite a packet's content in the file, except its first `keep` bytes."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        content, position = bytes(packets[place]), packets[place].pos
    data = path.read_bytes()
    at = data.find(content, position)
    assert at >= 0
    path.write_bytes(
        data[: at + keep] + b"\xff" * (len(content) - keep) + data[at + len(content) :]
    )
