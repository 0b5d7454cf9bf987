import av
import cv2
import numpy as np
import pytest
import torch

from ptq4vm.deploy import MatteOutputs, auto_downsample_ratio, matte, matte_video, write_mattes
from ptq4vm.deploy.frames import to_frame
from ptq4vm.errors import PTQ4VMError
from ptq4vm.video import open_frames


def read(folder):
    return np.array(
        [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(folder.iterdir())]
    )


def read_rgb(folder):
    return read(folder)[..., ::-1]


def expected_alpha(frames):
    alpha = (frames.astype(np.float64).mean(-1) / 255 > 0.5).astype(np.float64)
    alpha[:, 0, 0] = np.arange(len(frames)) / 10
    return alpha


def expected_composite(frames, bgr):
    alpha = expected_alpha(frames)[..., None]
    return np.round((255.0 - frames) * alpha + np.asarray(bgr, float) * (1 - alpha))


def test_alpha_and_foreground(tmp_path, model, video, make_frames):
    frames = make_frames()
    assert matte_video(model, video, alpha=tmp_path / "a", foreground=tmp_path / "f").frames == 3
    # The top left pixel depends on the state and on rounding: 0.1 is 25.5, 0.2 is 51.
    np.testing.assert_array_equal(read(tmp_path / "a"), np.round(expected_alpha(frames) * 255))
    np.testing.assert_array_equal(read_rgb(tmp_path / "f"), 255 - frames)
    assert {path.name for path in tmp_path.iterdir()} == {"in.mkv", "a", "f"}


def test_rounded_not_truncated():
    levels = (
        torch.tensor([0.0, 0.4, 0.6, 254.4, 254.6, 255.0, 300.0, -3.0]).div(255).reshape(1, 1, -1)
    )
    assert to_frame(levels).tolist() == [[0, 0, 1, 254, 255, 255, 255, 0]]


@pytest.mark.parametrize(
    ("background", "bgr"), [("green", (120, 255, 155)), ("#0A80ff", (10, 128, 255))]
)
def test_composite_before_a_colour(tmp_path, model, video, make_frames, background, bgr):
    matte_video(model, video, composite=tmp_path / "c", background=background)
    np.testing.assert_array_equal(read_rgb(tmp_path / "c"), expected_composite(make_frames(), bgr))


def test_composite_before_an_image(tmp_path, model, video, make_frames):
    wide = make_frames(49, 101, 1, seed=5)[0]
    cv2.imwrite(str(tmp_path / "b.png"), wide[..., ::-1])
    matte_video(model, video, composite=tmp_path / "c", background=tmp_path / "b.png")
    np.testing.assert_array_equal(
        read_rgb(tmp_path / "c"), expected_composite(make_frames(), wide[:, 18:83])
    )


def test_composite_before_a_video_that_loops(tmp_path, model, video, make_frames, make_video):
    other = make_frames(count=2, seed=5)
    path = make_video(tmp_path / "b.mkv", other)
    matte_video(model, video, composite=tmp_path / "c", background=str(path))
    np.testing.assert_array_equal(
        read_rgb(tmp_path / "c"), expected_composite(make_frames(), other[[0, 1, 0]])
    )


def test_videos_out(tmp_path, model, video):
    matte_video(model, video, alpha=tmp_path / "a.mp4", composite=tmp_path / "c.webm")
    for name in ("a.mp4", "c.webm"):
        reader = open_frames(tmp_path / name)
        assert (reader.height, reader.width, reader.rate, len(list(reader))) == (50, 66, 30, 3)


def test_progress_and_ratio(tmp_path, model, video):
    calls = []
    matte_video(
        model,
        video,
        alpha=tmp_path / "a",
        downsample_ratio=0.5,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert model.ratios == [0.5] * 3
    assert model.downsample_ratio == 1.0
    assert auto_downsample_ratio(49, 65) == 1
    assert auto_downsample_ratio(1080, 1920) == pytest.approx(512 / 1920)
    for ratio in (0, 1.5, float("nan")):
        with pytest.raises(PTQ4VMError, match="downsample ratio"):
            matte_video(model, video, alpha=tmp_path / "a", downsample_ratio=ratio)


def two_shots(make_frames):
    """Create two shots of five and four frames with sensor noise."""
    pictures = make_frames(count=2, seed=3)
    noise = np.random.default_rng(0).integers(0, 3, (9, 49, 65, 3), dtype=np.uint8)
    return pictures[[0] * 5 + [1] * 4] + noise


@pytest.mark.parametrize(
    ("cuts", "counts"),
    [
        ("auto", [0, 1, 2, 3, 4, 0, 1, 2, 3]),
        ("off", range(9)),
        ([2, 7, 0], [0, 1, 0, 1, 2, 3, 4, 0, 1]),
        (lambda frame: bool(frame[0, 0, 0] >= 0), [0] * 9),
    ],
)
def test_the_state_is_restarted_at_cuts(model, make_frames, cuts, counts):
    mattes = list(matte(model, two_shots(make_frames), cuts=cuts))
    assert [round(float(one.pha[0, 0, 0]) * 10) for one in mattes] == list(counts)
    if not callable(cuts):
        assert [one.cut for one in mattes[1:]] == [count == 0 for count in list(counts)[1:]]


def test_cuts_of_videos_are_found_listed_and_counted(tmp_path, model, make_frames, make_video):
    source = make_video(tmp_path / "in.mkv", two_shots(make_frames))
    listed = tmp_path / "cuts.txt"
    listed.write_text("2\n0.233  # the frame at 7/30 s\n")
    for cuts, found in (("auto", (5,)), ("off", ()), (listed, (2, 7)), (str(listed), (2, 7))):
        assert matte_video(model, source, alpha=tmp_path / "a", cuts=cuts) == (9, found)
        levels = read(tmp_path / "a")[:, 0, 0] / 25.5
        assert [n for n in range(1, 9) if levels[n] == 0] == list(found)
    listed.write_text("2\n9\n1:00\n")
    with pytest.warns(
        UserWarning, match=r"Expected cuts within 9 frames, got 2 behind the end in .*cuts\.txt"
    ):
        matte_video(model, source, alpha=tmp_path / "a", cuts=listed)
    with pytest.raises(PTQ4VMError, match="Expected auto, off or a file"):
        matte_video(model, source, alpha=tmp_path / "a", cuts="on")
    with pytest.raises(PTQ4VMError, match="Expected cuts to be auto, off or numbers"):
        list(matte(model, [], cuts="on"))


def test_frames_are_pulled_one_at_a_time(model, make_frames):
    pulled = []

    def frames():
        for number, frame in enumerate(make_frames(count=4)):
            pulled.append(number)
            yield frame

    stream = matte(model, frames(), device="cpu")
    assert pulled == []
    for number, output in enumerate(stream):
        assert pulled == list(range(number + 1))
        assert output.src.shape == output.fgr.shape == (3, 49, 65)
        assert output.pha.shape == (1, 49, 65)
        # Inference mode is active in the network only, not in the caller.
        assert output.pha.is_inference()
        assert not torch.is_inference_mode_enabled()


def test_training_mode_comes_back(model, make_frames):
    model.child, model.frozen = torch.nn.Dropout(), torch.nn.Dropout().eval()
    model.train()
    model.frozen.eval()
    stream = matte(model, make_frames())
    next(stream)
    assert not model.training
    stream.close()
    assert [module.training for module in (model, model.child, model.frozen)] == [True, True, False]


@pytest.mark.parametrize("names", [("a", "c"), ("a.mp4", "c.mkv")])
def test_no_partial_output_after_a_failure(tmp_path, model, video, names):
    def fail(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        matte_video(
            model,
            video,
            tmp_path / names[0],
            tmp_path / names[1],
            downsample_ratio=0.5,
            progress=fail,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]
    assert model.downsample_ratio == 1.0


def test_wrong_frames_and_wrong_networks(model, make_frames):
    frames = make_frames()
    for bad in (frames[0, ..., :2], frames[0].astype(float), frames[0, :-1]):
        with pytest.raises(PTQ4VMError, match="at frame 1 after"):
            list(matte(model, [frames[0], bad]))
    forward = model._forward
    model._forward = lambda src, count: (src, forward(src, count)[1][..., 1:], count)
    with pytest.raises(PTQ4VMError, match=r"Expected pha of \(1, 1, 49, 65\)"):
        list(matte(model, frames))
    model._forward = lambda src, count: (src * float("nan"), forward(src, count)[1], count)
    with pytest.raises(PTQ4VMError, match="finite fgr"):
        list(matte(model, frames))


def test_an_opened_source_is_matted_into_the_same_files(tmp_path, model, video):
    matte_video(model, video, tmp_path / "a", tmp_path / "c", background="blue")
    outputs = MatteOutputs(tmp_path / "b", tmp_path / "d", background="blue")
    assert write_mattes(model, open_frames(video), outputs).frames == 3
    for one, other in (("a", "b"), ("c", "d")):
        np.testing.assert_array_equal(read(tmp_path / one), read(tmp_path / other))


def test_notes_on_the_source_are_warnings(tmp_path, model, video, monkeypatch):
    monkeypatch.setattr("ptq4vm.video.reader.VideoReader.notes", ("one frame is damaged",))
    with pytest.warns(UserWarning, match="one frame is damaged"):
        matte_video(model, video, alpha=tmp_path / "a")


def test_bad_calls(tmp_path, model, video):
    with pytest.raises(PTQ4VMError, match="Expected an output"):
        matte_video(model, video)
    with pytest.raises(PTQ4VMError, match="the input"):
        matte_video(model, video, alpha=tmp_path / "x" / ".." / "in.mkv")
    with pytest.raises(PTQ4VMError, match="already the place for alpha"):
        matte_video(model, video, alpha=tmp_path / "a.mp4", composite=tmp_path / "a.mp4")
    with pytest.raises(PTQ4VMError, match="#rrggbb, one of green"):
        matte_video(model, video, composite=tmp_path / "c.mp4", background="mauve-ish")
    with pytest.raises(PTQ4VMError, match="does not exist"):
        matte_video(model, tmp_path / "gone.mp4", alpha=tmp_path / "a")
    with pytest.raises(PTQ4VMError, match="Expected an output ending"):
        matte_video(model, video, alpha=tmp_path / "a.mp4", composite=tmp_path / "c.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def write_with_sound(path, frames, codec="aac"):
    """Write the frames with an audio track of 0.5 s of a 440 Hz tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=30, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "rgb24"
        sound = container.add_stream(codec, rate=48000, layout="mono")
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        tone = np.sin(2 * np.pi * 440 * np.arange(24000) / 48000)
        for start in range(0, 24000, 1024):
            audio = av.AudioFrame.from_ndarray(
                (tone[None, start : start + 1024] * 20000).astype(np.int16), "s16", "mono"
            )
            audio.sample_rate, audio.pts = 48000, start
            container.mux(sound.encode(audio))
        container.mux(sound.encode(None))
    return path


def hear(path):
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_sound_is_copied_to_composite_and_cutout(tmp_path, model, make_frames):
    source = write_with_sound(tmp_path / "in.mkv", make_frames(48, 64, count=15))
    outputs = {
        "composite": tmp_path / "over.mp4",
        "cutout": tmp_path / "cut.mov",
        "alpha": tmp_path / "alpha.mp4",
    }
    assert matte_video(model, source, **outputs).frames == 15
    for name in ("composite", "cutout"):
        np.testing.assert_array_equal(hear(outputs[name]), hear(source))
        with av.open(str(outputs[name])) as container:
            assert len(list(container.decode(video=0))) == 15
    with av.open(str(outputs["alpha"])) as container:
        assert not container.streams.audio
    matte_video(model, source, composite=tmp_path / "silent.mp4", sound=False)
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert not container.streams.audio


def test_sound_that_the_output_cannot_hold_is_told(tmp_path, model, make_frames):
    source = write_with_sound(tmp_path / "in.mkv", make_frames(48, 64), "aac")
    with pytest.raises(PTQ4VMError, match=r"aac.*\.mkv.*--sound false"):
        matte_video(model, source, composite=tmp_path / "over.webm")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize(
    ("suffix", "decoder", "tolerance"), [(".mov", "prores", 2), (".webm", "libvpx-vp9", 8)]
)
def test_foreground_and_alpha_in_one_video(
    tmp_path, model, video, make_frames, suffix, decoder, tolerance
):
    path = tmp_path / f"cut{suffix}"
    assert matte_video(model, video, cutout=path).frames == 3
    with av.open(str(path)) as container:
        codec = av.codec.CodecContext.create(decoder, "r")
        codec.extradata = container.streams.video[0].codec_context.extradata
        packets = [packet for packet in container.demux(video=0) if packet.size]
        frames = [frame for packet in (*packets, None) for frame in codec.decode(packet)]
        got = np.stack([frame.to_ndarray(format="rgba")[:49, :65, 3] for frame in frames]).astype(
            int
        )
    wanted = expected_alpha(make_frames())
    assert np.abs(got - 255 * wanted).mean() < tolerance


def test_foreground_and_alpha_as_images(tmp_path, model, video, make_frames):
    matte_video(model, video, cutout=tmp_path / "cut")
    pictures = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((tmp_path / "cut").iterdir())
    ]
    np.testing.assert_array_equal(
        np.stack(pictures)[..., 3], np.round(255 * expected_alpha(make_frames()))
    )
    np.testing.assert_array_equal(np.stack(pictures)[..., 2::-1], 255 - make_frames())


def test_a_video_without_room_for_alpha_is_told(tmp_path, model, video):
    with pytest.raises(PTQ4VMError, match=r"holds alpha: \.mov, \.webm"):
        matte_video(model, video, cutout=tmp_path / "cut.mp4")
