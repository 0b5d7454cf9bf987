import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from layouts import (
    HEIGHT,
    WIDTH,
    alpha,
    picture,
    to_unit,
    write,
    write_backgrounds,
    write_evaluation,
    write_foregrounds,
    write_video,
)

from ptq4vm.data import EvaluationSource, VideoMatteSource, VideoSource
from ptq4vm.data.background_clips import BackgroundClips
from ptq4vm.data.files import content_digest, cover_crop_clip, ping_pong
from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.images import natural_key

SIZE = (HEIGHT, WIDTH)


def videomatte(foregrounds, backgrounds, size, **settings):
    return VideoMatteSource(foregrounds, BackgroundClips(backgrounds), size, **settings)


@pytest.fixture
def trees(tmp_path):
    return write_foregrounds(tmp_path / "fg"), write_backgrounds(tmp_path / "bg")


def test_videomatte_composes_in_code_values(trees):
    source = videomatte(*trees, SIZE)
    clip, layers = source.read(0, 1, 4), source.read_layers(0, 1, 4)
    number = 100 * int(source.names[0].split("/")[1].split("+")[0])
    torch.testing.assert_close(
        clip.fgr, torch.stack([to_unit(picture(number + t)) for t in (1, 2, 3)])
    )
    torch.testing.assert_close(clip.pha, torch.stack([to_unit(alpha(t)) for t in (1, 2, 3)]))
    torch.testing.assert_close(clip.src, clip.fgr * clip.pha + layers.bgr * (1 - clip.pha))
    assert layers.bgr.shape == (3, 3, *SIZE)
    assert clip.start == 1


def test_videomatte_meets_every_background_with_every_foreground_evenly(trees):
    names = videomatte(*trees, SIZE, seed=3).names
    assert len(set(names)) == len(names) == 2 * 3
    for begin in range(0, 6, 2):
        assert {name.split("/")[1].split("+")[0] for name in names[begin : begin + 2]} == {
            "0000",
            "0001",
        }
    assert len({name.split("+")[1] for name in names[:2]}) == 2
    assert names == videomatte(*trees, SIZE, seed=3).names
    assert any(names != videomatte(*trees, SIZE, seed=s).names for s in range(4))


def test_videomatte_reads_a_short_moving_background_to_and_fro(trees):
    source = videomatte(*trees, SIZE)
    index = next(i for i, name in enumerate(source.names) if name.endswith("+street"))
    bgr = source.read_layers(index, 0, 6).bgr
    for t, expected in enumerate([0, 1, 2, 1, 0, 1]):
        torch.testing.assert_close(bgr[t], bgr[expected])
    assert not torch.equal(bgr[0], bgr[1])
    assert not torch.equal(bgr[1], bgr[2])


def test_videomatte_takes_plain_images_as_stills(tmp_path):
    write(tmp_path / "bg" / "train" / "hall.png", picture(1))
    source = videomatte(write_foregrounds(tmp_path / "fg", frames=1), tmp_path / "bg", SIZE)
    assert source.names[0].endswith("+hall")
    torch.testing.assert_close(source.read_layers(0, 0, 1).bgr[0], to_unit(picture(1)))


def test_videomatte_scales_everything_to_the_size(trees):
    layers = videomatte(*trees, (20, 50)).read_layers(0, 0, 2)
    assert {layer.shape[-2:] for layer in layers[:3]} == {(20, 50)}


def test_fingerprint_follows_the_files(trees, tmp_path):
    before = videomatte(*trees, SIZE).fingerprint()
    assert videomatte(*trees, SIZE).fingerprint() == before
    copied = [shutil.copytree(tree, tmp_path / "copied" / tree.name) for tree in trees]
    for path in copied[0].rglob("*.*"):
        os.utime(path, (1, 1))
    assert videomatte(*copied, SIZE).fingerprint() == before
    changed = trees[1] / "train" / "room" / "0.png"
    status = changed.stat()
    changed.write_bytes(
        bytes(byte ^ 1 for byte in changed.read_bytes())
    )  # same size, same modification time
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert videomatte(*trees, SIZE).fingerprint() != before


def test_fingerprint_of_some_frames_follows_their_files_alone(tmp_path):
    root = write_evaluation(tmp_path / "evaluation")
    places = [(1, 2, 4), (0, 0, 1)]
    before = EvaluationSource(root).fingerprint(places)
    assert before != EvaluationSource(root).fingerprint(places[::-1])
    frames = sorted((root / "set_a" / "two" / "com").iterdir())
    write(frames[4], picture(200))
    write(root / "set_c" / "new" / "com" / "0.png", picture(1))
    write(root / "set_c" / "new" / "pha" / "0.png", alpha(1))
    assert EvaluationSource(root).fingerprint(places) == before
    write(frames[3], picture(200))
    assert EvaluationSource(root).fingerprint(places) != before


@pytest.mark.parametrize("size", [10, 2**20, 2**20 + 1, 50 * 2**20])
def test_content_is_digested_from_the_first_byte_to_the_last(size, tmp_path):
    """Detect edits at both ends of a file; large files are digested by sampled blocks."""
    paths = [tmp_path / name for name in ("whole", "first", "last", "longer")]
    for path, edit in zip(paths, (None, 0, size - 1, size), strict=True):
        with path.open("wb") as file:
            file.truncate(size)
            if edit is not None:
                file.seek(edit)
                file.write(b"x")
    assert len({content_digest(path) for path in paths}) == 4
    assert content_digest(paths[0]) == content_digest(paths[0].rename(tmp_path / "elsewhere"))


def test_a_file_that_vanished_is_told(trees):
    source = videomatte(*trees, SIZE)
    shutil.rmtree(trees[1])
    with pytest.raises(PTQ4VMError, match=r"hall.*Put it back"):
        source.fingerprint()


@pytest.mark.parametrize("deeper", [False, True])
def test_evaluation_reads_its_sets_also_one_folder_deeper(tmp_path, deeper):
    root = write_evaluation(
        tmp_path / "evaluation" / "small" if deeper else tmp_path / "evaluation"
    )
    source = EvaluationSource(tmp_path / "evaluation")
    assert source.names == EvaluationSource(root).names == ["set_a/one", "set_a/two", "set_b/one"]
    clip = source.read(1, 2, 5)
    torch.testing.assert_close(clip.src, torch.stack([to_unit(picture(50 + t)) for t in (2, 3, 4)]))
    torch.testing.assert_close(clip.fgr[0], to_unit(picture(59)))
    torch.testing.assert_close(clip.pha[0], to_unit(alpha(2)))
    assert (clip.name, clip.start, clip.flow) == ("set_a/two", 2, None)


def test_evaluation_does_without_foreground_and_without_labels(tmp_path):
    assert (
        EvaluationSource(write_evaluation(tmp_path / "a", parts=("com", "pha"))).read(0, 0, 1).fgr
        is None
    )
    unlabelled = EvaluationSource(
        write_evaluation(tmp_path / "b", parts=("com",)), labels=False
    ).read(0, 0, 1)
    assert unlabelled.pha is None
    assert unlabelled.fgr is None


def test_evaluation_of_one_set(tmp_path):
    root = write_evaluation(tmp_path / "evaluation")
    source = EvaluationSource(root / "set_a")
    assert source.names == ["set_a/one", "set_a/two"]
    assert source.fingerprint() != EvaluationSource(root / "set_b").fingerprint()


def test_evaluation_with_alpha_of_some_frames(tmp_path):
    root = write_evaluation(tmp_path / "evaluation")
    folder = root / "set_a" / "one"
    (folder / "pha").rename(folder / "annotated")
    for t in (0, 2, 3):
        lose(folder / "annotated" / f"{t:04d}.png")
    source = EvaluationSource(root, sparse=True)
    known = EvaluationSource(root / "set_a", sparse=True).read(1, 0, 5).pha
    assert known.isfinite().all()
    pha = source.read(0, 0, 5).pha
    assert pha.flatten(1).isnan().all(1).tolist() == [True, False, True, True, False]
    torch.testing.assert_close(pha[4], to_unit(alpha(4)))
    assert source.read(0, 2, 4).pha.isnan().all()
    assert [name for name, _ in source.files(0, 0, 3)] == [
        *(f"set_a/one/com/000{t}.png" for t in range(3)),
        *(f"set_a/one/fgr/000{t}.png" for t in range(3)),
        "set_a/one/annotated/0001.png",
    ]


def test_evaluation_scales_only_when_asked(tmp_path):
    root = write_evaluation(tmp_path)
    assert EvaluationSource(root).read(0, 0, 1).pha.shape == (1, 1, HEIGHT, WIDTH)
    assert EvaluationSource(root, (16, 16)).read(0, 0, 1).pha.shape == (1, 1, 16, 16)


def test_video_counts_what_can_be_decoded_and_reads_the_frames_asked_for(tmp_path):
    write_video(tmp_path / "clips" / "b.avi", frames=8)
    for t in range(3):
        write(tmp_path / "clips" / "a" / f"{t}.png", picture(t))
    source = VideoSource(tmp_path / "clips")
    assert source.names == ["clips/a", "clips/b.avi"]
    assert [source.num_frames(i) for i in range(2)] == [3, 8]
    clip = source.read(1, 3, 6)
    assert (clip.pha, clip.fgr, clip.start) == (None, None, 3)
    torch.testing.assert_close(
        clip.src.mean((1, 2, 3)) * 255, torch.tensor([70.0, 90.0, 110.0]), atol=2, rtol=0
    )
    torch.testing.assert_close(source.read(0, 1, 2).src[0], to_unit(picture(1)))


def test_video_counts_a_cut_off_file_truly(tmp_path):
    path = write_video(tmp_path / "whole.avi", frames=20)
    data = path.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 7 // 10])
    source = VideoSource(tmp_path)
    count = source.num_frames(source.names.index(f"{tmp_path.name}/cut.avi"))
    assert 0 < count < 20
    assert source.read(0, 0, count).src.shape[0] == count


def test_frames_are_ordered_by_number(tmp_path):
    paths = [tmp_path / name for name in ("10.png", "9.png", "a2.png", "a10.png")]
    assert [path.name for path in sorted(paths, key=natural_key)] == [
        "9.png",
        "10.png",
        "a2.png",
        "a10.png",
    ]


def test_cover_crop_keeps_the_centre():
    frames = torch.zeros(1, 1, 10, 30)
    frames[..., 10:20] = 1
    assert (cover_crop_clip(frames, (10, 10)) == 1).all()
    assert cover_crop_clip(torch.rand(2, 3, 17, 31), (40, 23)).shape == (2, 3, 40, 23)


def test_ping_pong():
    assert [ping_pong(t, 3) for t in range(6)] == [0, 1, 2, 1, 0, 1]
    assert [ping_pong(t, 1) for t in range(3)] == [0, 0, 0]


def break_tree(tmp_path, how):
    """Write valid data sets and pass their folders to `how`, which damages and reads them."""
    fg, bg, ev, vid = (tmp_path / name for name in ("fg", "bg", "ev", "vid"))
    write_foregrounds(fg)
    write_backgrounds(bg)
    write_evaluation(ev)
    write_video(vid / "a.avi")
    return how(fg, bg, ev, vid)


def lose(path):
    path.unlink()


def garble(path):
    path.write_bytes(b"no picture")


MISTAKES = {
    "missing foregrounds": (
        lambda f, b, e, v: videomatte(f / "no", b, SIZE),
        "Expected a folder of foregrounds",
    ),
    "missing backgrounds": (
        lambda f, b, e, v: videomatte(f, b / "no", SIZE),
        "Expected a folder of backgrounds",
    ),
    "empty backgrounds": (
        lambda f, b, e, v: (
            (b / "none" / "train").mkdir(parents=True),
            videomatte(f, b / "none", SIZE),
        ),
        "got no image",
    ),
    "empty foregrounds": (
        lambda f, b, e, v: (
            [(f / "none" / "train" / part).mkdir(parents=True) for part in ("fgr", "pha")],
            videomatte(f / "none", b, SIZE),
        ),
        "Expected clips laid out as train",
    ),
    "alpha frame lacks": (
        lambda f, b, e, v: (lose(f / "train/pha/0001/00003.png"), videomatte(f, b, SIZE)),
        "clip 0001, got 6 in .* and 5 in ",
    ),
    "alpha clip lacks": (
        lambda f, b, e, v: (
            [lose(p) for p in (f / "train/pha/0001").iterdir()],
            videomatte(f, b, SIZE),
        ),
        "Expected frames of clip 0001 in .*pha.0001, got none",
    ),
    "other names": (
        lambda f, b, e, v: (
            (f / "train/pha/0001/00000.png").rename(f / "train/pha/0001/7.png"),
            videomatte(f, b, SIZE),
        ),
        "Expected the same frame names in each layer of clip 0001",
    ),
    "other size": (
        lambda f, b, e, v: (
            [
                write(f / f"train/pha/{c}/0000{t}.png", alpha(t, 20, 20))
                for c in ("0000", "0001")
                for t in range(6)
            ],
            videomatte(f, b, SIZE).read(0, 0, 2),
        ),
        r"Expected one size in all layers of clip train/000.*48×32 .* 20×20",
    ),
    "size changes": (
        lambda f, b, e, v: (
            write(e / "set_a/one/com/0001.png", picture(0, 20, 20)),
            EvaluationSource(e).read(0, 0, 2),
        ),
        "Expected frames of one size within a clip, got 48×32 in .* and 20×20",
    ),
    "garbled image": (
        lambda f, b, e, v: (
            garble(e / "set_a/one/com/0001.png"),
            EvaluationSource(e).read(0, 0, 2),
        ),
        "Expected an image at .*0001.png, got 10 bytes",
    ),
    "empty image": (
        lambda f, b, e, v: (
            (e / "set_a/one/com/0001.png").write_bytes(b""),
            EvaluationSource(e).read(0, 0, 2),
        ),
        "got 0 bytes",
    ),
    "lost image": (
        lambda f, b, e, v: (
            s := EvaluationSource(e),
            lose(e / "set_a/one/com/0001.png"),
            s.read(0, 0, 2),
        ),
        "Expected a readable image",
    ),
    "no evaluation": (
        lambda f, b, e, v: EvaluationSource(e / "no"),
        "Expected a folder of evaluation sets",
    ),
    "not an evaluation": (
        lambda f, b, e, v: EvaluationSource(f),
        "Expected evaluation clips laid out as .* got none",
    ),
    "alpha of no frame": (
        lambda f, b, e, v: (
            (e / "set_b/one/pha").rename(e / "set_b/one/annotated"),
            [lose(e / f"set_b/one/{part}/0001.png") for part in ("com", "fgr")],
            EvaluationSource(e, sparse=True),
        ),
        r"Expected alpha of frames of clip set_b/one, got 0001.png .* Rename or remove it",
    ),
    "annotated frames to calibrate on": (
        lambda f, b, e, v: (
            (e / "set_b/one/pha").rename(e / "set_b/one/annotated"),
            EvaluationSource(e),
        ),
        "Expected the true alpha of clip set_b/one .* labels: false",
    ),
    "two evaluations": (
        lambda f, b, e, v: (
            write_evaluation(e / "x"),
            write_evaluation(e / "y"),
            EvaluationSource(e),
        ),
        "Expected one folder of evaluation sets, got 3",
    ),
    "no alpha": (
        lambda f, b, e, v: (
            [lose(p) for p in (e / "set_b/one/pha").iterdir()],
            EvaluationSource(e),
        ),
        "Expected the true alpha of clip set_b/one .* labels: false",
    ),
    "no composites": (
        lambda f, b, e, v: (
            [lose(p) for p in (e / "set_b/one/com").iterdir()],
            EvaluationSource(e),
        ),
        "Expected frames of clip set_b/one",
    ),
    "frames out of range": (
        lambda f, b, e, v: EvaluationSource(e).read(0, 3, 9),
        r"Expected frames within \[0, 5\)",
    ),
    "no videos": (lambda f, b, e, v: VideoSource(v / "no"), "Expected a folder of videos"),
    "folder without videos": (
        lambda f, b, e, v: ((v / "none").mkdir(), VideoSource(v / "none")),
        "got none in",
    ),
    "unreadable video": (
        lambda f, b, e, v: (garble(v / "b.mp4"), VideoSource(v)),
        "can be decoded in .*b.mp4",
    ),
    "empty video": (
        lambda f, b, e, v: ((v / "b.mp4").write_bytes(b""), VideoSource(v)),
        "can be decoded in .*b.mp4",
    ),
    "file for folder": (lambda f, b, e, v: VideoSource(v / "a.avi"), "got a file at"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(tmp_path, mistake):
    how, message = MISTAKES[mistake]
    with pytest.raises(PTQ4VMError, match=message):
        break_tree(tmp_path, how)


def test_video_without_frames_is_explained(tmp_path):
    write_video(tmp_path / "a.avi", frames=0)
    with pytest.raises(PTQ4VMError, match=r"Expected a video .*a\.avi"):
        VideoSource(tmp_path)


def test_video_that_shrinks_after_counting_is_explained(tmp_path):
    source = VideoSource(write_video(tmp_path / "a.avi", frames=8).parent)
    assert source.num_frames(0) == 8
    write_video(tmp_path / "a.avi", frames=3)
    with pytest.raises(PTQ4VMError, match=r"Expected 6 frames .* got 3"):
        source.read(0, 4, 6)


def test_alpha_saved_in_three_channels_is_read_alike(tmp_path):
    root = write_evaluation(tmp_path, names=("s/c",), frames=1)
    cv2.imwrite(str(root / "s/c/pha/0000.png"), np.repeat(alpha(0)[..., None], 3, 2))
    torch.testing.assert_close(EvaluationSource(root).read(0, 0, 1).pha[0], to_unit(alpha(0)))
