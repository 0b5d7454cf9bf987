"""Tests of reading videos of various codecs and containers, and damaged ones, written by PyAV."""

import os
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from coded import CODECS, COUNT, damage, encode, number_of, numbered
from PIL import Image

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video import open_frames, open_writer
from ptq4vm.video.pictures import HLG, PQ, tone_map
from ptq4vm.video.reader import VideoReader


@pytest.mark.parametrize("name", CODECS)
def test_a_sound_video_has_each_frame_once(tmp_path, name):
    path = encode(tmp_path / name, numbered(), *CODECS[name])
    reader = VideoReader(path, strict=True)
    shown = [number_of(frame) for frame in reader]
    assert shown == list(range(COUNT))
    assert reader.count() == COUNT
    assert not reader.notes
    assert [number_of(frame) for frame in reader.read(20, 23)] == [20, 21, 22]


@pytest.mark.parametrize(
    "name", ["h264.mkv", "h264.mp4", "hevc.mkv", "vp9.webm", "mjpeg.mkv", "prores.mov"]
)
@pytest.mark.parametrize("place", [0, 20, COUNT - 1])
@pytest.mark.parametrize("keep", [0, 12])
def test_a_damaged_packet_costs_no_other_frame_its_place(tmp_path, name, place, keep):
    path = encode(tmp_path / name, numbered(), *CODECS[name], options={"bf": "0"})
    times = [time for time, _ in VideoReader(path).timed()]
    damage(path, place, keep)
    reader = VideoReader(path)
    got = list(reader.timed())
    shown = [number_of(frame) for _, frame in got]
    assert [time for time, _ in got] == times
    assert shown[:place] == list(range(place))
    assert shown[36 if place <= 20 else place + 1 :] == list(
        range(36 if place <= 20 else place + 1, COUNT)
    )
    assert reader.count() == COUNT
    if reader.concealed:
        assert f"{reader.concealed} frames could not be decoded" in reader.notes[0]
        with pytest.raises(PTQ4VMError, match=r"damaged one at .* s"):
            list(VideoReader(path, strict=True))
    if keep == 0 and name in ("vp9.webm", "mjpeg.mkv", "prores.mov"):
        assert reader.concealed
        assert shown[place] == max(place - 1, shown[0])


@pytest.mark.parametrize(("matrix", "expected"), [
    ((1, 0, 0, 1), lambda x: x),
    ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    ((1, 0, 0, -1), lambda x: x[::-1]),
    ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    ((0, -1, 1, 0), lambda x: np.rot90(x)),
    ((0, -1, -1, 0), lambda x: x[::-1, ::-1].swapaxes(0, 1)),
])  # fmt: skip
def test_display_matrices_with_and_without_mirroring(
    tmp_path, make_frames, make_video, matrix, expected
):
    """Map a pixel at (x, y) to (a x + c y, b x + d y), see ISO/IEC 14496-12."""
    path = make_video(tmp_path / "in.mp4", make_frames(height=48, width=64, count=2))
    data = path.read_bytes()
    at = data.find(b"tkhd") + 4 + 40  # version 0: the matrix is at byte 40 of the box
    identity = np.int32([0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]).astype(">i4").tobytes()
    assert data[at : at + 36] == identity
    a, b, c, d = (0x10000 * value for value in matrix)
    changed = np.int64([a, b, 0, c, d, 0, 0, 0, 0x40000000]).astype(">i4").tobytes()
    path.write_bytes(data[:at] + changed + data[at + 36 :])
    reader = open_frames(path)
    upright = expected(make_frames(height=48, width=64, count=2)[0])
    assert (reader.height, reader.width) == upright.shape[:2]
    np.testing.assert_array_equal(next(iter(reader)), upright)


def test_the_shape_of_pixels_is_carried_over(tmp_path, make_frames):
    path = encode(
        tmp_path / "in.mp4", numbered(4), "libx264", "yuv420p", sample_aspect_ratio=Fraction(4, 3)
    )
    reader = open_frames(path)
    assert reader.pixel_aspect == Fraction(4, 3)
    for suffix in ("mp4", "mkv", "mov", "webm"):
        with open_writer(
            tmp_path / f"out.{suffix}", (64, 96), reader.rate, pixel_aspect=reader.pixel_aspect
        ) as writer:
            for frame in reader:
                writer.write(frame)
        with av.open(str(tmp_path / f"out.{suffix}")) as container:
            stream = container.streams.video[0]
            # VP9 in PyAV's WebM cannot store the aspect ratio: resized to square pixels.
            expected = (1, 128) if suffix == "webm" else (Fraction(4, 3), 96)
            assert (stream.sample_aspect_ratio, stream.width) == expected


def test_interlaced_video_is_deinterlaced(tmp_path):
    """Weave fields of a moving bar, which causes combing at its edges."""
    height, width, count = 64, 96, 8
    fields = np.zeros((2 * count, height, width), np.uint8)
    for number, field in enumerate(fields):
        field[:, 8 + 4 * number : 24 + 4 * number] = 200
    woven = [
        np.where(np.arange(height)[:, None] % 2 == 1, fields[2 * i], fields[2 * i + 1])
        for i in range(count)
    ]
    frames = [np.repeat(frame[..., None], 3, 2).astype(np.uint8) for frame in woven]

    def combing(frame):
        grey = frame[..., 1].astype(float)
        return np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean()

    options = {"qp": "0", "x264-params": "bff=1"}
    path = encode(tmp_path / "in.mkv", frames, "libx264", "yuv420p", options=options)
    reader = VideoReader(path)
    got = list(reader.timed())
    assert "deinterlaced" in reader.notes[0]
    assert [time for time, _ in got] == [Fraction(round(1000 * i / 24), 1000) for i in range(count)]
    assert combing(frames[3]) > 10
    assert combing(got[3][1]) < combing(frames[3]) / 5
    # Deinterlacing keeps the first field of each frame.
    error = np.abs(got[3][1][..., 1].astype(float)[1::2] - fields[6][1::2]).mean()
    assert error < 3


@pytest.mark.parametrize(
    ("size", "bt709"), [((576, 720), False), ((536, 1280), True), ((720, 960), True)]
)
def test_the_matrix_of_untagged_frames_goes_by_size(tmp_path, size, bt709):
    """Decode limited-range red, encoded with the BT.709 or BT.601 matrix."""
    planes = {True: (63, 102, 240), False: (81, 90, 240)}
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        height, width = size
        luma, blue, red = planes[bt709]
        data = np.full((height * 3 // 2, width), luma, np.uint8)
        chroma = data[height:].reshape(-1)
        chroma[: len(chroma) // 2], chroma[len(chroma) // 2 :] = blue, red
        container.mux(stream.encode(av.VideoFrame.from_ndarray(data, format="yuv420p")))
        container.mux(stream.encode(None))
    mean = next(iter(open_frames(tmp_path / "in.mkv"))).mean((0, 1))
    np.testing.assert_allclose(mean, (255, 0, 0), atol=4)


def test_hdr_white_and_grey_come_out_as_in_sdr():
    """Tone-map HDR reference white (203 cd/m², 58 % PQ, 75 % HLG, ITU-R BT.2408) and grey."""
    for transfer, code in ((PQ, 0.5807), (HLG, 0.75)):
        white = tone_map(np.full((1, 1, 3), round(code * 65535), np.uint16), transfer)
        assert 236 <= white.min() <= white.max() <= 246
        assert tone_map(np.zeros((1, 1, 3), np.uint16), transfer).max() == 0
        peak = tone_map(np.full((1, 1, 3), 65535, np.uint16), transfer)
        assert peak.min() >= 254
        ramp = tone_map(
            np.linspace(0, 65535, 512).astype(np.uint16)[None, :, None].repeat(3, 2), transfer
        )
        assert (np.diff(ramp[0, :, 0].astype(int)) >= 0).all()
    # 18 % of reference white, 36.5 cd/m², encoded with the inverse EOTF of ST 2084.
    light = (0.18 * 203 / 10000) ** 0.1593017578125
    code = ((0.8359375 + 18.8515625 * light) / (1 + 18.6875 * light)) ** 78.84375
    grey = tone_map(np.full((1, 1, 3), round(code * 65535), np.uint16), PQ)
    np.testing.assert_allclose(grey, 255 * 0.18 ** (1 / 2.4), atol=1)


def test_an_hdr_video_is_tone_mapped_and_says_so(tmp_path):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream(
            "libx265", rate=24, options={"x265-params": "log-level=none:lossless=1"}
        )
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            16,
            9,
            9,
            1,
        )
        data = np.full((96, 96), 512, np.uint16)
        data[:64] = round(64 + 0.5807 * 876)
        frame = av.VideoFrame.from_ndarray(data.view(np.uint16), format="yuv420p10le")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader = open_frames(tmp_path / "in.mkv")
    frame = next(iter(reader))
    assert 234 <= frame.min() <= frame.max() <= 248
    assert "HDR (PQ): tone-mapped" in reader.notes[0]


def test_playlists_and_pipes_are_no_videos(tmp_path, video):
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video.name}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "list.mkv").write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    for name in ("list.m3u8", "list.mkv"):
        with pytest.raises(PTQ4VMError, match=name):
            open_frames(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.mkv")
    with pytest.raises(PTQ4VMError, match="is a pipe"):
        open_frames(tmp_path / "pipe.mkv")
    (tmp_path / "loop.mkv").symlink_to(tmp_path / "loop.mkv")
    with pytest.raises(PTQ4VMError, match="does not exist"):
        open_frames(tmp_path / "loop.mkv")


def test_kinds_of_images_are_read_alone_and_in_folders(tmp_path, make_frames):
    frame = make_frames()[0]
    for suffix in ("png", "bmp", "tif", "tiff", "webp"):
        folder = tmp_path / suffix
        folder.mkdir()
        options = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(frame).save(folder / f"0.{suffix}", **options)
        for place in (folder, folder / f"0.{suffix}"):
            np.testing.assert_array_equal(list(open_frames(place)), [frame])


@pytest.mark.parametrize("suffix", ["webp", "png", "tif"])
def test_animated_images_are_refused(tmp_path, make_frames, suffix):
    first, *others = map(Image.fromarray, make_frames())
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
    with pytest.raises(PTQ4VMError, match=r"one frame at .*, got 3\. Convert it to a video"):
        open_frames(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["avif", "jxl", "heic"])
def test_unsupported_kinds_of_images_are_refused_by_name(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"image")
    with pytest.raises(PTQ4VMError, match=r"Convert it, to \.png"):
        open_frames(tmp_path / f"a.{suffix}")


def test_an_animated_gif_is_a_video(tmp_path, make_frames):
    first, *others = map(Image.fromarray, make_frames())
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
    reader = open_frames(tmp_path / "a.gif")
    got = list(reader)
    assert len(got) == 3 == reader.count()
    assert np.abs(np.array(got, int) - make_frames()).mean() < 6


def test_an_image_that_claims_to_be_huge_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    png += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "huge.png").write_bytes(png)
    with pytest.raises(PTQ4VMError, match="at most 134217728 pixels"):
        open_frames(tmp_path / "huge.png")


def test_an_image_sequence_keeps_its_names(tmp_path, make_frames):
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(make_frames(), 1001):
        Image.fromarray(frame).save(tmp_path / "in" / f"shot.{number}.png")
    reader = open_frames(tmp_path / "in")
    with open_writer(tmp_path / "out", (49, 65), names=reader.names) as writer:
        for frame in reader:
            writer.write(frame)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["shot.1001.png", "shot.1002.png", "shot.1003.png"]
    with open_writer(tmp_path / "out", (49, 65), names=("again",)) as writer:
        writer.write(frame)
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["again.png"]
    # Equal names in a folder not written by ptq4vm may be original files.
    with pytest.raises(PTQ4VMError, match=r"shot\.100.\.png in it; name another folder"):
        open_writer(tmp_path / "in", (49, 65), names=reader.names)
    with pytest.raises(PTQ4VMError, match="got two named a"):
        open_writer(tmp_path / "other", (49, 65), names=("a", "a"))
