import warnings

import pytest
import skimage
import torch
from layouts import make_teacher
from torch.nn import functional

from ptq4vm.data import BuiltinSource
from ptq4vm.data import builtin as builtin_module
from ptq4vm.data.builtin import (
    BUST,
    PICTURES,
    PORTRAIT,
    Person,
    cut_out_portrait,
    read_bundled,
    spread_colours,
)
from ptq4vm.data.calibration import exact_visibility
from ptq4vm.errors import PTQ4VMError

SIZE = (96, 160)


def cutout(src):
    return make_teacher()[0].forward(src).pha


@pytest.fixture(scope="module", params=["train", "test"])
def source(request):
    return BuiltinSource(request.param, SIZE, num_clips=5, num_frames=40, seed=1, cutout=cutout)


def warp(frames, flow):
    """Warp frames backward bilinearly, independent of the code under test."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y]) + flow
    grid = torch.stack(
        [place[:, 0] * 2 / (width - 1) - 1, place[:, 1] * 2 / (height - 1) - 1], dim=-1
    )
    return functional.grid_sample(frames, grid, align_corners=True, padding_mode="border")


def test_composites_are_exact_to_eight_bits(source):
    clip, layers = source.read(0, 3, 8), source.read_layers(0, 3, 8)
    src, pha, fgr, bgr = (
        (x * 255).round() / 255 for x in (clip.src, clip.pha, clip.fgr, layers.bgr)
    )
    assert (fgr * pha + bgr * (1 - pha) - src).abs().max() * 255 <= 1.5
    assert clip.src.dtype == torch.float32
    assert clip.src.shape == (5, 3, *SIZE)
    assert clip.flow.shape == (4, 2, *SIZE)
    assert clip.name.startswith("builtin_")
    assert 0.05 < clip.pha.mean() < 0.9


def test_flow_carries_each_layer_to_the_next_frame(source):
    for index in range(len(source)):
        clip = source.read(index, 5, 15)
        visible = exact_visibility(clip.pha, clip.flow).bool()
        inner = functional.max_pool2d((clip.pha - clip.pha.round()).abs(), 5, 1, 2)[1:] < 0.01
        error = (warp(clip.src[:-1], clip.flow) - clip.src[1:]).abs().mean(1, keepdim=True)
        still = (clip.src[:-1] - clip.src[1:]).abs().mean(1, keepdim=True)
        assert error[visible & inner].mean() < 0.012
        assert error[visible & inner].mean() < 0.5 * still[visible & inner].mean()
        assert 0.8 < visible.float().mean() < 1
        carried = (warp(clip.pha[:-1], clip.flow) - clip.pha[1:]).abs()
        assert carried[(clip.pha[1:] >= 0.5) & visible].mean() < 0.02


def test_each_pixel_has_the_flow_of_what_is_seen_there(source):
    """Fit an affine map to each layer's flow: both layers move affinely, so the fit is exact."""
    clip = source.read(0, 0, 12)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SIZE), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    for pha, flow in zip(clip.pha[1:], clip.flow.double(), strict=True):
        for layer in (pha[0] >= 0.5, pha[0] < 0.5):
            points, values = places[layer], flow.permute(1, 2, 0)[layer]
            fit = torch.linalg.lstsq(points, values).solution
            torch.testing.assert_close(points @ fit, values, atol=1e-3, rtol=0)


def test_motion_is_smooth_and_moderate(source):
    flow = source.read(2, 0, 40).flow
    assert flow.abs().amax() < 0.05 * SIZE[1]
    assert flow.abs().mean() > 0.1
    centre = flow[:, :, SIZE[0] // 2, 5]
    assert (centre[1:] - centre[:-1]).abs().max() < 0.5


def test_any_part_of_a_clip_is_the_same(source):
    whole, part = source.read(1, 0, 10), source.read(1, 4, 7)
    for a, b in (
        (whole.src[4:7], part.src),
        (whole.pha[4:7], part.pha),
        (whole.flow[4:6], part.flow),
    ):
        assert torch.equal(a, b)
    assert source.read(1, 4, 5).flow.shape == (0, 2, *SIZE)


def test_seed_decides_everything():
    def clip(seed, split="train"):
        return BuiltinSource(split, SIZE, 4, 20, seed, cutout).read(0, 0, 3).src

    state = torch.random.get_rng_state()
    assert torch.equal(clip(1), clip(1))
    assert not torch.equal(clip(1), clip(2))
    assert not torch.equal(clip(1), clip(1, "test"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_splits_share_no_picture_and_fingerprints_tell_settings_apart():
    assert not set(PICTURES["train"]) & set(PICTURES["test"])
    prints = {
        BuiltinSource(split, SIZE, n, 9, s).fingerprint()
        for split in PICTURES
        for n in (3, 4)
        for s in (0, 1)
    }
    assert len(prints) == 8


def test_the_cut_edge_never_shows():
    """Check that the portrait's lower edge stays below the frame at every position and angle."""
    fgr, pha = read_bundled(PORTRAIT)[BUST], torch.ones(1, 512, 512)[BUST]
    for seed in range(30):
        person = Person(fgr, pha, SIZE, torch.Generator().manual_seed(seed))
        height, width = person.size
        corners = torch.tensor(
            [[-0.5, height - 0.5, 1], [width - 0.5, height - 0.5, 1]], dtype=torch.float64
        )
        for frame in range(0, 400, 3):
            lowest = (person.matrix(frame) @ corners.T)[1]
            assert lowest.min() >= SIZE[0] - 0.5


def test_photographs_come_from_the_installed_wheel(monkeypatch):
    """Read the files directly: some of scikit-image's functions download them."""
    monkeypatch.setattr(builtin_module.skimage, "data", None, raising=False)
    for name in (PORTRAIT, *PICTURES["train"], *PICTURES["test"]):
        assert read_bundled(name).shape[0] == 3


def test_missing_photograph_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(PTQ4VMError, match=r"Expected scikit-image to bring astronaut\.png"):
        BuiltinSource("train", SIZE, 1, 1)


def test_reading_without_a_cutout_is_explained():
    with pytest.raises(PTQ4VMError, match=r"attach\(teacher\)"):
        BuiltinSource("test", SIZE, 1, 4).read(0, 0, 2)


def test_cutout_lets_the_network_settle_and_is_asked_once():
    calls = []

    def count(src):
        calls.append(src.shape)
        return cutout(src)

    source = BuiltinSource("train", SIZE, 2, 9, cutout=count)
    source.read(0, 0, 2)
    source.read(1, 0, 2)
    assert calls == [(1, 4, 3, 512, 512)]
    source.use(lambda src: torch.ones_like(src[:, :, :1]))
    assert (source.portrait()[1] > 0.99).all()


def test_specks_away_from_the_person_are_no_alpha():
    def specked(src):
        pha = cutout(src).clone()
        pha[..., 5:9, 5:9] = 1
        return pha

    torch.testing.assert_close(cut_out_portrait(specked), cut_out_portrait(cutout))


def test_a_network_that_finds_nobody_is_told_of_and_leaves_clips_readable():
    source = BuiltinSource("train", SIZE, 1, 4, cutout=lambda src: torch.zeros_like(src[:, :, :1]))
    with pytest.warns(UserWarning, match="Expected the network to find the person"):
        clip = source.read(0, 0, 2)
    assert clip.pha.sum() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.read(0, 0, 2)
        # Without labels the missing person does not matter: no warning.
        unlabelled = BuiltinSource(
            "train", SIZE, 1, 4, 0, lambda src: torch.zeros_like(src[:, :, :1]), labels=False
        )
        assert torch.equal(unlabelled.read(0, 0, 2).src, clip.src)


def test_colours_spread_from_the_opaque_part():
    picture, alpha = torch.zeros(3, 20, 20), torch.zeros(1, 20, 20)
    picture[:, :, :10], alpha[:, :, :10] = 0.7, 1
    assert (spread_colours(picture, alpha) - 0.7).abs().max() < 1e-4
