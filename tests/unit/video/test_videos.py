import os
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video import open_frames, open_writer, reader


def write_png(path, frame):
    assert cv2.imwrite(str(path), frame[..., ::-1] if frame.ndim == 3 else frame)


def write_all(path, frames, rate=Fraction(30)):
    with open_writer(path, frames[0].shape[:2], rate) as writer:
        for frame in frames:
            writer.write(frame)


def write_and_raise(path, frame, error):
    with open_writer(path, frame.shape[:2]) as writer:
        writer.write(frame)
        raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_video_is_read_exactly(video, make_frames):
    reader = open_frames(video)
    assert (reader.width, reader.height, reader.rate, reader.num_frames) == (65, 49, 30, 3)
    np.testing.assert_array_equal(list(reader), make_frames())
    # Each iteration restarts at the first frame.
    np.testing.assert_array_equal(next(iter(reader)), make_frames()[0])


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_video_is_read_upright(tmp_path, make_frames, make_video, rotation):
    reader = open_frames(make_video(tmp_path / "turned.mp4", make_frames(), rotation=rotation))
    expected = np.rot90(make_frames(), rotation // 90, (1, 2))
    assert (reader.height, reader.width) == expected.shape[1:3]
    np.testing.assert_array_equal(list(reader), expected)


def test_video_is_decoded_as_asked(video, monkeypatch):
    decoded = []
    convert = reader.to_rgb
    monkeypatch.setattr(reader, "to_rgb", lambda *args: decoded.append(1) or convert(*args))
    frames = iter(open_frames(video))
    assert not decoded  # the size is known without decoding
    next(frames)
    assert len(decoded) == 1
    frames.close()


def test_folder_is_read_in_natural_order(tmp_path, make_frames):
    frames = make_frames(count=3)
    for name, frame in zip(("f2.png", "f10.png", "f1.PNG"), frames, strict=True):
        write_png(tmp_path / name, frame)
    (tmp_path / "._f1.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    reader = open_frames(tmp_path)
    assert (reader.width, reader.height, reader.num_frames) == (65, 49, 3)
    np.testing.assert_array_equal(list(reader), frames[[2, 0, 1]])


def test_one_image_grey_or_16_bit_or_jpeg(tmp_path, make_frames):
    grey = make_frames()[0, ..., 0]
    write_png(tmp_path / "grey.png", grey)
    write_png(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    assert cv2.imwrite(str(tmp_path / "a.jpg"), grey)
    for name, tolerance in (("grey.png", 0), ("deep.png", 0), ("a.jpg", 6)):
        (frame,) = open_frames(tmp_path / name)
        assert frame.dtype == np.uint8
        np.testing.assert_allclose(
            frame.astype(int), np.repeat(grey[..., None], 3, 2).astype(int), atol=tolerance
        )


def test_folder_of_different_sizes(tmp_path, make_frames):
    write_png(tmp_path / "0.png", make_frames()[0])
    write_png(tmp_path / "1.png", make_frames(width=64)[0])
    with pytest.raises(PTQ4VMError, match=r"65x49.*64x49 in 1\.png"):
        list(open_frames(tmp_path))


def make_unreadable(tmp_path, kind, video):
    path = tmp_path / f"bad.{kind}"
    if kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        path.write_bytes(video.read_bytes()[:200])
    elif kind == "sound":
        with av.open(str(path), "w", format="matroska") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 800), np.int16), format="s16", layout="mono"
            )
            samples.sample_rate = 8000
            container.mux(stream.encode(samples))
    elif kind == "frameless":
        with av.open(str(path), "w", format="matroska") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            container.start_encoding()
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"Just words.\n" * 50)
    return path


@pytest.mark.parametrize(
    "kind",
    ["missing", "folder", "empty", "mp4", "txt", "png", "truncated", "sound", "frameless", "a:b"],
)
def test_unreadable(tmp_path, video, kind):
    path = make_unreadable(tmp_path, kind, video)
    with pytest.raises(PTQ4VMError, match=r"bad\."):
        open_frames(path)


def test_user_names_with_a_colon(tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "in.mkv", make_frames()).rename(tmp_path / "http:b.mkv")
    assert open_frames(path).num_frames == 3


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("mp4", 3), ("mkv", 3), ("webm", 3), ("no264", 3)]
)
def test_video_round_trip_pads_odd_sizes(tmp_path, make_frames, monkeypatch, suffix, tolerance):
    if suffix == "no264":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
        suffix = "mkv"
    frames = make_frames()
    write_all(tmp_path / f"out.{suffix}", frames, Fraction(30000, 1001))
    reader = open_frames(tmp_path / f"out.{suffix}")
    assert (reader.width, reader.height, reader.num_frames) == (66, 50, 3)
    assert float(reader.rate) == pytest.approx(29.97, abs=1e-2)
    padded = np.pad(frames, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    # Compare channel means: chroma subsampling changes single pixels, a wrong color matrix whole
    # channels.
    error = np.abs(np.array(list(reader), int) - padded.astype(int))
    assert error.mean((0, 1, 2)).max() < tolerance
    assert names(tmp_path) == [f"out.{suffix}"]


def test_grey_video(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    write_all(tmp_path / "a.mp4", [ramp] * 2)
    frame = next(iter(open_frames(tmp_path / "a.mp4"))).astype(int)
    assert np.ptp(frame, axis=2).max() == 0
    np.testing.assert_allclose(frame[..., 0], ramp.astype(int), atol=3)
    flat = np.repeat(np.uint8([[0], [255]]), 64, 1).repeat(32, 0)
    write_all(tmp_path / "b.mp4", [flat] * 2)
    frame = next(iter(open_frames(tmp_path / "b.mp4")))
    np.testing.assert_array_equal(frame[:24], 0)
    np.testing.assert_array_equal(frame[-24:], 255)


def test_folder_round_trip(tmp_path, make_frames):
    frames = make_frames()
    write_all(tmp_path / "deep" / "out", frames)
    assert names(tmp_path / "deep" / "out") == ["0000.png", "0001.png", "0002.png"]
    np.testing.assert_array_equal(list(open_frames(tmp_path / "deep" / "out")), frames)
    # All earlier frames are replaced, even if there were more.
    write_all(tmp_path / "deep" / "out", frames[:1, ..., 0])
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["0000.png"]
    image = cv2.imread(str(tmp_path / "deep" / "out" / "0000.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image, frames[0, ..., 0])


def test_folder_with_other_files_is_kept(tmp_path, make_frames):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(PTQ4VMError, match=r"thesis\.tex"):
        open_writer(tmp_path / "out", (49, 65))
    assert names(tmp_path) == ["out"]


def test_one_image_out(tmp_path, make_frames):
    write_all(tmp_path / "a.png", make_frames()[:1])
    np.testing.assert_array_equal(next(iter(open_frames(tmp_path / "a.png"))), make_frames()[0])
    with pytest.raises(PTQ4VMError, match="one image holds one frame"):
        write_all(tmp_path / "b.png", make_frames())
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out", "out.png"])
def test_nothing_is_left_after_an_error(tmp_path, make_frames, name):
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(tmp_path / name, make_frames()[0], KeyboardInterrupt)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out", "out.png"])
def test_no_frames_and_wrong_frames(tmp_path, make_frames, name):
    with (
        pytest.raises(PTQ4VMError, match="at least one frame"),
        open_writer(tmp_path / name, (49, 65)),
    ):
        pass
    for frame in (make_frames(width=64)[0], make_frames()[0].astype(np.float32)):
        with (
            pytest.raises(PTQ4VMError, match="uint8 frames of"),
            open_writer(tmp_path / name, (49, 65)) as writer,
        ):
            writer.write(frame)
    assert names(tmp_path) == []


def test_earlier_output_survives_a_failure(tmp_path, make_frames):
    write_all(tmp_path / "out.mp4", make_frames())
    before = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(KeyError):
        write_and_raise(tmp_path / "out.mp4", make_frames()[0], KeyError)
    assert (tmp_path / "out.mp4").read_bytes() == before


@pytest.mark.parametrize("name", ["out.avi", "out.jpg", "out.v2"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(PTQ4VMError, match=r"\.mp4, \.mkv, \.webm"):
        open_writer(tmp_path / name, (49, 65))


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_no_permission(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PTQ4VMError, match="Can't write"):
        open_writer(tmp_path / "file" / name, (49, 65))
    if os.geteuid() != 0:  # root ignores permissions
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PTQ4VMError, match="Can't write"):
            open_writer(tmp_path / "locked" / name, (49, 65))


def test_full_disk(tmp_path, make_frames, monkeypatch):
    writer = open_writer(tmp_path / "out.mkv", (49, 65))
    monkeypatch.setattr(
        type(writer._part),
        "replace",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")),
    )
    with pytest.raises(PTQ4VMError, match="No space left"), writer:
        writer.write(make_frames()[0])
    assert names(tmp_path) == []


def test_grey_frames_are_the_grey_of_rgb_ones(tmp_path):
    """Compare grey frames, written as planes directly, with the library's RGB conversion."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (33, 1))[:, :255]  # odd size
    levels = []
    for name, frame in (("grey", ramp), ("rgb", np.repeat(ramp[..., None], 3, 2))):
        with open_writer(tmp_path / f"{name}.mkv", ramp.shape) as writer:
            for _ in range(3):
                writer.write(frame)
        levels.append(next(iter(open_frames(tmp_path / f"{name}.mkv"))).astype(int))
    assert np.abs(levels[0] - levels[1]).max() <= 2
    assert np.abs(levels[0][:33, :255, 0] - ramp).mean() < 1.5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_frames_keep_their_times(tmp_path, make_frames, suffix):
    times = [Fraction(0), Fraction(1, 24), Fraction(1, 4), Fraction(1)]
    frame = make_frames()[0]
    path = tmp_path / f"uneven{suffix}"
    with open_writer(path, frame.shape[:2], Fraction(24)) as writer:
        for time in times:
            writer.write(frame, time)
    got = [time for time, _ in open_frames(path).timed()]
    assert [float(time) for time in got] == pytest.approx([float(time) for time in times], abs=1e-3)


def test_a_clock_of_milliseconds_is_a_constant_rate(tmp_path, make_frames):
    frame, rate = make_frames()[0], Fraction(30000, 1001)
    path = tmp_path / "steady.mp4"
    with open_writer(path, frame.shape[:2], rate) as writer:
        for number in range(20):
            writer.write(frame, Fraction(round(number / rate * 1000), 1000))
    assert open_frames(path).rate == rate
    assert [time for time, _ in open_frames(path).timed()] == [
        number / rate for number in range(20)
    ]


def test_a_video_that_was_cut_off_is_refused(tmp_path, make_frames):
    write_all(tmp_path / "whole.mkv", [make_frames()[0]] * 60)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    assert len(list(open_frames(tmp_path / "whole.mkv"))) == 60
    with pytest.raises(PTQ4VMError, match=r"Expected 2\.0 s in .*cut\.mkv.*cut off"):
        list(open_frames(tmp_path / "cut.mkv"))
