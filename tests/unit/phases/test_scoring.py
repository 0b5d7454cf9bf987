import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics import dtssd, mad
from ptq4vm.models.base import MattingModel
from ptq4vm.phases import MattingModule
from ptq4vm.phases.scoring import FloatMattes
from ptq4vm.types import MattingClip


class Grey(MattingModel):
    """Network whose alpha is the mean of RGB."""

    name = "grey"

    def blocks(self):
        return ()

    def initial_state(self, src):
        return ()

    def forward_values(self, src, state):
        return {"fgr": src, "pha": src.mean(1, keepdim=True)}, ()


def test_float_mattes_that_clips_bring_are_scored_as_the_float_network_is():
    torch.manual_seed(0)
    src, pha = torch.rand(1, 5, 3, 8, 9), torch.rand(1, 5, 1, 8, 9)
    network = Grey()
    run, kept = MattingModule(network), FloatMattes(network)
    for start, stop in ((0, 3), (3, 5)):
        part = slice(start, stop)
        mattes = src[:, part].mean(2, keepdim=True)
        clip = MattingClip(src[:, part], pha=pha[:, part], float_pha=mattes, name="a", start=start)
        run.test_step(clip, 0)
        kept.test_step(clip._replace(src=torch.zeros_like(clip.src)), 0)
    assert kept.per_frame == run.per_frame
    assert kept.per_frame["a"]["mad_to_float"] == [0.0] * 5
    with pytest.raises(PTQ4VMError, match="add_references"):
        kept.test_step(clip._replace(float_pha=None), 0)


def test_frames_without_an_annotation_are_left_out():
    torch.manual_seed(0)
    src, pha = torch.rand(7, 3, 8, 9), torch.rand(7, 1, 8, 9)
    known = [1, 2, 6]
    sparse = torch.full_like(pha, torch.nan)
    sparse[known] = pha[known]
    module = MattingModule(Grey())
    for start, stop in ((0, 2), (2, 3), (3, 5), (5, 7)):
        batch = {"src": src[None, start:stop], "pha": sparse[None, start:stop]}
        module.test_step(MattingClip(**batch, name="a", start=start), 0)
    preds = src.mean(1, keepdim=True)[known]
    assert module.per_frame["a"]["mad"] == pytest.approx(mad(preds, pha[known]).tolist())
    # From one annotated frame to the next.
    assert module.per_frame["a"]["dtssd"] == pytest.approx(dtssd(preds, pha[known]).tolist())
    assert module.test_metrics.compute()["test/mad"] == pytest.approx(
        float(mad(preds, pha[known]).mean())
    )


def test_values_of_each_frame_are_kept_across_chunks():
    torch.manual_seed(0)
    module = MattingModule(Grey())
    clips = {
        name: (torch.rand(5, 3, 8, 9), torch.rand(5, 1, 8, 9), torch.rand(5, 1, 8, 9))
        for name in ("a", "b")
    }
    for name, (src, pha, float_pha) in clips.items():
        for start, stop in ((0, 3), (3, 5)):
            parts = {"src": src[start:stop], "float_pha": float_pha[start:stop]}
            if name == "a":
                parts["pha"] = pha[start:stop]
            batch = {key: part[None] for key, part in parts.items()}
            module.test_step(MattingClip(**batch, name=name, start=start), 0)
    assert list(module.per_frame["b"]) == ["dtssd_to_float", "mad_to_float"]
    for name, (src, pha, float_pha) in clips.items():
        preds = src.mean(1, keepdim=True)
        kept = module.per_frame[name]
        for suffix, target in (("", pha), ("_to_float", float_pha)):
            if f"mad{suffix}" in kept:
                assert kept[f"mad{suffix}"] == pytest.approx(mad(preds, target).tolist())
                assert kept[f"dtssd{suffix}"] == pytest.approx(dtssd(preds, target).tolist())
    assert set(module.per_frame["a"]) == {"mad", "dtssd", "mad_to_float", "dtssd_to_float"}
