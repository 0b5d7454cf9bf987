"""Tests of `VideoReader.read` against iteration, at places in shuffled order."""

import pickle
import random
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from coded import CODECS, COUNT, damage, encode, numbered
from PIL import Image

from ptq4vm.data import VideoSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.reader import VideoReader

X265 = "log-level=none:bframes=3"
VARIANTS = CODECS | {
    "open.mkv": ("libx264", "yuv420p", {"x264-params": "open-gop=1:bframes=3"}),
    "refresh.mkv": ("libx264", "yuv420p", {"x264-params": "intra-refresh=1:scenecut=0"}),
    "open.ts": ("libx265", "yuv420p", {"x265-params": f"{X265}:open-gop=1"}),
    "open.mp4": ("libx265", "yuv420p", {"x265-params": f"{X265}:open-gop=1"}),
    "leading.mkv": ("libx265", "yuv420p", {"x265-params": f"{X265}:open-gop=0:radl=2"}),
    "interlaced.mkv": ("libx264", "yuv420p", {"x264-params": "tff=1"}),
    "interlaced.ts": ("libx264", "yuv420p", {"x264-params": "tff=1:bframes=3"}),
    "alternative.vp8.webm": ("libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "alternative.vp9.webm": ("libvpx-vp9", "yuv420p", {"auto-alt-ref": "1"}),
    "bidirectional.mpeg4.mkv": ("mpeg4", "yuv420p", {"bf": "2"}),
    "bidirectional.mpeg4.avi": ("mpeg4", "yuv420p", {"bf": "2"}),
    "bidirectional.mpeg2.ts": ("mpeg2video", "yuv420p", {"bf": "2"}),
    "without-times.h264": ("libx264", "yuv420p", {"bf": "2"}),
    "ffv1.mkv": ("ffv1", "yuv420p"),
    "av1.mkv": ("libsvtav1", "yuv420p"),
    "av1.mp4": ("libsvtav1", "yuv420p"),
}


def noisy(count=COUNT):
    """Create numbered frames with noise, so that no two are equal when decoded."""
    draw = np.random.default_rng(0)
    return [
        np.uint8(np.clip(frame + draw.integers(-30, 30, frame.shape), 0, 255))
        for frame in (one.astype(int) for one in numbered(count))
    ]


def write(folder, name):
    codec, pix_fmt, *options = VARIANTS[name]
    try:
        return encode(folder / name, noisy(), codec, pix_fmt, *options)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"FFmpeg is built without {codec}")


def assert_reads_as_iterated(path, count=COUNT, **settings):
    expected = list(VideoReader(path, **settings))
    assert len(expected) == count
    places = [(start, min(start + 1 + start % 5, count)) for start in range(count)]
    random.Random(0).shuffle(places)
    reader = VideoReader(path, **settings)
    for start, stop in places:
        np.testing.assert_array_equal(reader.read(start, stop, count), expected[start:stop])
    return expected


@pytest.mark.parametrize("name", VARIANTS)
def test_frames_are_those_of_iteration(tmp_path, name):
    assert_reads_as_iterated(write(tmp_path, name))


def test_frames_of_a_gif_are_those_of_iteration(tmp_path):
    first, *others = map(Image.fromarray, noisy(20))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
    assert_reads_as_iterated(tmp_path / "a.gif", 20)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("first", [0, -200])
def test_frames_at_varying_intervals_and_cut_by_an_edit_list(tmp_path, suffix, first):
    """Write intervals of 20 to 59 ms; MP4 hides frames before time 0 by an edit list."""
    path, shown = tmp_path / f"a.{suffix}", COUNT
    intervals = np.random.default_rng(0).integers(20, 60, COUNT).tolist()
    options = {"avoid_negative_ts": "disabled"} if suffix == "mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=24, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 12
        time = first
        for image, interval in zip(noisy(), intervals, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base, time = time, Fraction(1, 1000), time + interval
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if suffix == "mp4":
        times = first + np.cumsum([0, *intervals[:-1]])
        shown = COUNT - int((times < 0).sum())
        assert (shown < COUNT) == (first < 0)
    assert_reads_as_iterated(path, shown)


@pytest.mark.parametrize("name", [
    "h264.mp4", "h264.mkv", "h264.ts", "hevc.mkv", "vp9.webm", "mjpeg.mkv", "prores.mov",
    "open.mp4", "bidirectional.mpeg4.mkv", "av1.mkv",
])  # fmt: skip
def test_what_comes_before_the_keyframe_is_not_decoded(tmp_path, name):
    path = write(tmp_path, name)
    if path.suffix == ".ts":
        data = path.read_bytes()
        path.write_bytes(data[: 4 * 188] + b"\xff" * 4 * 188 + data[8 * 188 :])
    else:
        damage(path, 0, 0)
    reader = VideoReader(path)
    expected = list(reader)
    count = len(expected)
    assert reader.concealed
    np.testing.assert_array_equal(reader.read(40, 43, count), expected[40:43])
    assert reader.concealed == 0
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read(40, 43, count), expected[40:43])
    assert again.concealed == 0
    # From frame 0: the number of frames is unknown, or not that of the timestamps.
    for wrong in (None, count + 1):
        np.testing.assert_array_equal(reader.read(40, 43, wrong), expected[40:43])
        assert reader.concealed
    with pytest.raises(PTQ4VMError, match="got a damaged one"):
        VideoReader(path, strict=True).read(40, 43, count)


@pytest.mark.parametrize("name", ["vp9.webm", "mjpeg.mkv", "prores.mov"])
@pytest.mark.parametrize("place", [1, 12, 20, COUNT - 1])
def test_damaged_frames_are_concealed_as_in_iteration(tmp_path, name, place):
    path = write(tmp_path, name)
    damage(path, place, 0)
    assert_reads_as_iterated(path)
    reader = VideoReader(path)
    reader.read(place, place + 1, COUNT)
    assert reader.concealed
    assert "frames could not be decoded" in reader.notes[0]
    with pytest.raises(PTQ4VMError, match="got a damaged one"):
        VideoReader(path, strict=True).read(place, place + 1, COUNT)


@pytest.mark.parametrize("name", ["vp9.webm", "h264.mkv", "hevc.mkv"])
def test_truncated_files_are_read_as_iterated(tmp_path, name):
    path = write(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    count = sum(1 for _ in VideoReader(path, whole=False))
    assert 12 < count < COUNT
    assert_reads_as_iterated(path, count, whole=False)
    for known in (None, count, COUNT):
        with pytest.raises(PTQ4VMError, match="cut off"):
            VideoReader(path).read(count - 1, COUNT, known)
        assert len(VideoReader(path, whole=False).read(count - 1, COUNT, known)) == 1


def test_another_file_of_the_same_name_is_noticed(tmp_path):
    path = write(tmp_path, "h264.mkv")
    reader = VideoReader(path)
    reader.read(40, 43, COUNT)
    encode(path, noisy()[::-1], "libx264", "yuv420p")
    expected = list(VideoReader(path))
    np.testing.assert_array_equal(reader.read(40, 43, COUNT), expected[40:43])


def test_a_source_of_clips_warns_only_of_frames_it_decodes(tmp_path):
    path = write(tmp_path, "vp9.webm")
    damage(path, 1, 0)
    source = VideoSource(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.read(0, 40, 43)
    with pytest.warns(UserWarning, match="could not be decoded"):
        source.read(0, 1, 3)
