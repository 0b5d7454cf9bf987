"""Recognition of data layouts, and evaluation on videos kept out of calibration."""

import pytest
import torch
from layouts import (
    make_flow,
    make_teacher,
    write_backgrounds,
    write_evaluation,
    write_foregrounds,
    write_video,
)

from ptq4vm.data import Auto, CutOuts, VideoMattingDataModule, Videos
from ptq4vm.data.discovery import Layout, discover, held_out_clips
from ptq4vm.errors import PTQ4VMError


def write_videos(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_video(folder / f"clip [{number}].mkv")


def test_all_layouts_are_found_below_the_root(tmp_path):
    write_foregrounds(tmp_path / "people")
    write_backgrounds(tmp_path / "places")
    write_evaluation(tmp_path / "judge")
    write_videos(tmp_path / "mine", 1)
    assert discover(tmp_path) == Layout("mine", "people", "places", "judge")


def test_videos_and_folders_of_frames_may_lie_in_the_root(tmp_path):
    write_videos(tmp_path, 1)
    assert discover(tmp_path) == Layout(videos=".")


def test_two_folders_of_videos_are_refused_unless_one_is_named(tmp_path):
    write_videos(tmp_path / "a", 1)
    write_videos(tmp_path / "b", 1)
    with pytest.raises(
        PTQ4VMError, match=r"one folder of videos in .*, got a, b.*--data.source.videos"
    ):
        discover(tmp_path)
    assert discover(tmp_path, videos="b").videos == "b"
    write_backgrounds(tmp_path / "c")
    write_backgrounds(tmp_path / "d")
    assert discover(tmp_path, videos="b", backgrounds="d") == Layout("b", backgrounds="d")


@pytest.mark.parametrize("missing", [True, False])
def test_a_root_without_clips_is_refused(tmp_path, missing):
    root = tmp_path / "nothing" if missing else tmp_path
    with pytest.raises(PTQ4VMError, match=r"Expected a folder of clips|Expected videos, folders"):
        discover(root)


def test_every_fifth_clip_is_held_out():
    assert held_out_clips([]) == held_out_clips(["a"]) == []
    assert held_out_clips(["a", "b", "c"]) == ["c"]
    assert held_out_clips(list("abcdefghijk")) == ["e", "j"]


def test_auto_scores_videos_that_calibration_never_sees(tmp_path):
    write_videos(tmp_path, 6)
    data = VideoMattingDataModule(
        tmp_path, Auto(), num_sequences=4, seq_length=2, height=32, width=48,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    teacher, flow = make_teacher()[0], make_flow()[0]
    data.attach(teacher, flow)
    data.add_references(teacher, flow)
    assert data.settings()["sources"] == [
        {"source": "CutOuts", "videos": ".", "backgrounds": None, "photographs": True},
        {"source": "Videos", "names": None, "videos": "."},
    ]
    assert [type(source) for source in data._clips.settings.sources] == [CutOuts, Videos]
    names = {clip for source in data._clips.calibration_sources for clip in source.names}
    assert not any("[4]" in name for name in names)
    clips = [data.evaluation_set[index] for index in range(len(data.evaluation_set))]
    assert {clip.name for clip in clips} == {f"{tmp_path.name}/clip [4].mkv"}
    assert all(clip.pha is None and clip.float_pha is not None for clip in clips)
    assert torch.isfinite(clips[0].float_pha).all()
