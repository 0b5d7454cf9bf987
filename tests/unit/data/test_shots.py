import warnings

import pytest
import torch
from layouts import (
    alpha,
    make_flow,
    make_teacher,
    shot,
    write,
    write_backgrounds,
    write_evaluation,
    write_shots,
    write_video,
)

from ptq4vm.data import (
    Builtin,
    BuiltinSource,
    CutOuts,
    EvaluationSource,
    VideoMatteSource,
    VideoMattingDataModule,
    Videos,
    VideoSource,
)
from ptq4vm.data.background_clips import BackgroundClips
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.drawing import draw_from_all, draw_sequences
from ptq4vm.data.loading import EvaluationChunks
from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.reader import VideoReader


def spanned(places, length, cuts):
    return [
        place for place in places if any(place.start < cut < place.start + length for cut in cuts)
    ]


@pytest.mark.parametrize("name", ["a.avi", "a"])
def test_sequences_lie_within_shots(tmp_path, name):
    write_shots(tmp_path / "v" / name, 9, 8, 7)
    source = VideoSource(tmp_path / "v")
    assert source.num_frames(0) == 24
    assert source.cuts(0, 0, 24) == [9, 17]
    assert source.cuts(0, 9, 17) == []
    assert source.longest_shot(0) == 9
    places = draw_sequences(source, 200, 5, seed=0)
    assert not spanned(places, 5, [9, 17])
    assert {place.start for place in places} == {0, 1, 2, 3, 4, 9, 10, 11, 12, 17, 18, 19}
    people = CutoutSource(source, BackgroundClips(write_backgrounds(tmp_path / "bg")), (32, 48))
    assert not spanned(draw_sequences(people, 40, 5, seed=0), 5, [9, 17])


def test_sequences_of_clips_without_cuts_are_those_of_before(tmp_path):
    """Compare with a draw that ignores shots: the generator must be consumed equally."""
    write_shots(tmp_path / "a.avi", 20)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(10):
        torch.randperm(1, generator=generator)
        expected.append(int(torch.randint(17, (), generator=generator)))
    assert [
        place.start for place in draw_sequences(VideoSource(tmp_path), 10, 4, seed=3)
    ] == expected


def test_sequences_longer_than_every_shot_are_refused(tmp_path):
    write_shots(tmp_path / "long.avi", 12, 9)
    write_video(tmp_path / "short.avi", frames=3)
    with pytest.raises(
        PTQ4VMError, match=r"seq_length = 13 frames without a cut, got at most 12, in .*long.avi"
    ):
        draw_sequences(VideoSource(tmp_path), 4, 13, seed=0)


def test_cuts_in_folders_of_images_are_looked_for_where_sequences_lie(tmp_path):
    for t, frame in enumerate([*shot(0, 9), *shot(7, 9)]):
        write(tmp_path / "fg/train/fgr/a" / f"{t:02d}.png", frame)
        write(tmp_path / "fg/train/pha/a" / f"{t:02d}.png", alpha(0))
        write(tmp_path / "ev/s/a/com" / f"{t:02d}.png", frame)
        write(tmp_path / "ev/s/a/pha" / f"{t:02d}.png", alpha(0))
    foregrounds = VideoMatteSource(
        tmp_path / "fg", BackgroundClips(write_backgrounds(tmp_path / "bg")), (32, 48)
    )
    for source in (foregrounds, EvaluationSource(tmp_path / "ev")):
        places = draw_sequences(source, 14, 8, seed=0)
        assert {place.start for place in places} == {0, 1, 9, 10}


def test_a_video_is_looked_through_once(tmp_path, monkeypatch):
    path = write_shots(tmp_path / "v" / "a.avi", 9, 8)
    looked = []

    def counted(reader):
        looked.append(reader.path.name)
        yield from (frame for _, frame in reader.timed())

    monkeypatch.setattr(VideoReader, "__iter__", counted)

    def shots():
        source = VideoSource(tmp_path / "v", cache=tmp_path / "cache")
        return source.num_frames(0), source.cuts(0, 0, 17)

    for _ in range(2):
        assert shots() == (17, [9])
    kept = list((tmp_path / "cache" / "shots").iterdir())
    assert looked == ["a.avi"] * len(kept) == ["a.avi"]
    for damage in (
        "{",
        '{"frames": 17}',
        '{"frames": 17, "cuts": [20]}',
        '{"frames": 17, "cuts": [9.5]}',
        "[]",
    ):
        kept[0].write_text(damage)
        with pytest.warns(UserWarning, match="Remaking .* which is damaged"):
            assert shots() == (17, [9])
    write_shots(path, 6, 7)
    source = VideoSource(tmp_path / "v", cache=tmp_path / "cache")
    assert source.cuts(0, 0, 13) == [6]


def test_far_too_long_sequences_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    write_video(tmp_path / "v" / "a.avi", frames=3)
    write_video(tmp_path / "v" / "b.avi", frames=8)

    def read(reader):
        yield pytest.fail(f"{reader.path} is read")

    monkeypatch.setattr(VideoReader, "__iter__", read)
    source = VideoSource(tmp_path / "v")
    with pytest.raises(PTQ4VMError, match=r"seq_length = 1000 .* got at most 8, in clip v/b\.avi"):
        draw_from_all([BuiltinSource("train", (32, 48), 1, 2000), source], 4, 1000, 0)
    scenes = CutoutSource(source, BackgroundClips(write_backgrounds(tmp_path / "bg")), (32, 48))
    with pytest.raises(PTQ4VMError, match=r"got at most 8, in clip v/b\.avi\+"):
        draw_sequences(scenes, 4, 1000, 0)


def test_containers_are_not_trusted_with_little(tmp_path):
    """Accept frame counts of the container that are missing or wrong by less than half."""
    write_video(tmp_path / "a.avi", frames=16)
    for claim in (9, 0, -1, 16):
        source = VideoSource(tmp_path)
        for reader in source._readers.values():
            reader.num_frames = claim
        assert draw_sequences(source, 1, 16, 0)[0].start == 0


def evaluation(tmp_path):
    for t, frame in enumerate([*shot(0, 7), *shot(7, 6)]):
        write(tmp_path / "ev/s/cut/com" / f"{t:02d}.png", frame)
        write(tmp_path / "ev/s/cut/pha" / f"{t:02d}.png", alpha(0))
        write(tmp_path / "ev/s/one/com" / f"{t:02d}.png", shot(5, 13)[t])
        write(tmp_path / "ev/s/one/pha" / f"{t:02d}.png", alpha(0))
    return EvaluationSource(tmp_path / "ev")


@pytest.mark.parametrize("chunk", [3, 25])
def test_cuts_in_evaluation_clips_are_named_once(tmp_path, chunk):
    chunks = EvaluationChunks(evaluation(tmp_path), chunk)
    with pytest.warns(UserWarning, match="at frame 7 of s/cut") as told:
        clips = [chunks[index] for index in range(len(chunks))]
    assert [str(one.message).partition(". It")[0] for one in told] == [
        "Expected one shot in each evaluation clip, got a cut at frame 7 of s/cut"
    ]
    assert {clip.start for clip in clips} == set(range(0, 13, chunk))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(len(chunks)):
            chunks[index]


def test_built_in_clips_have_no_cuts():
    source = BuiltinSource(
        "test", (96, 160), 4, 25, cutout=lambda src: make_teacher()[0].forward(src).pha
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunks = EvaluationChunks(source, 10)
        for index in range(len(chunks)):
            chunks[index]


def test_held_out_people_are_drawn_within_shots(tmp_path):
    write_shots(tmp_path / "vid" / "held.avi", 9, 5)
    write_video(tmp_path / "vid" / "a.avi")
    write_backgrounds(tmp_path / "bg")
    write_evaluation(tmp_path / "ev")
    module = VideoMattingDataModule(
        tmp_path, CutOuts("vid", "bg"), evaluation="ev",
        held_out=["held", "room"], height=32, width=48, cache_dir=tmp_path / "cache",
        num_sequences=2,
    )  # fmt: skip
    seen = []
    module.attach(make_teacher()[0], make_flow()[0], lambda *what: seen.append(what[2]))
    module.add_references(make_teacher()[0], make_flow()[0], lambda *what: seen.append(what[2]))
    assert [clip.src.shape[1] for clip in module.held_out_dataloader()] == [9] * 8
    assert list(dict.fromkeys(seen)) == [
        "drawing sequences", "looking for calibration sequences", "calibration sequences",
        "looking at held-out people", "float mattes of the evaluation clips",
        "looking for held-out people", "held-out people",
    ]  # fmt: skip


def test_sequences_drawn_elsewhere_are_another_set(tmp_path):
    """Use another cache folder if the cuts found in the same files have changed."""
    write_shots(tmp_path / "vid" / "a.avi", 20)
    write_evaluation(tmp_path / "ev")
    folders = []
    for shots in ("{}", '{"frames": 20, "cuts": [4, 8, 12, 16]}'):
        for kept in (tmp_path / "cache" / "shots").glob("*"):
            kept.write_text(shots)
        module = VideoMattingDataModule(
            tmp_path, Videos("vid"), evaluation="ev", height=32, width=48,
            cache_dir=tmp_path / "cache", num_sequences=8, seq_length=3,
        )  # fmt: skip
        module.attach(make_teacher()[0], make_flow()[0])
        folders.append(module.calibration_set.folder)
    assert folders[0] != folders[1]


def test_the_portrait_is_asked_for_only_where_it_is_shown(tmp_path):
    """Warn about an empty portrait matte only if built-in clips are used."""
    write_shots(tmp_path / "vid" / "a.avi", 8)

    def blind(src, state=None):
        return make_teacher()[0].forward(src, state)._replace(pha=torch.zeros_like(src[:, :, :1]))

    teacher = make_teacher()[0]._replace(forward=blind, key="blind")
    settings = {
        "height": 32,
        "width": 48,
        "cache_dir": tmp_path / "cache",
        "num_sequences": 2,
        "seq_length": 2,
    }
    module = VideoMattingDataModule(tmp_path, Videos("vid"), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.attach(teacher, make_flow()[0])
        assert len(list(module.train_dataloader())) == 2
    with pytest.warns(UserWarning, match=r"Expected the network to find the person .* Name data"):
        module.val_dataloader()
    with pytest.warns(UserWarning, match="Expected the network to find the person"):
        VideoMattingDataModule(tmp_path, Builtin(), **settings).attach(teacher, make_flow()[0])
