import pytest
import torch
from layouts import alpha, picture, to_unit

from ptq4vm.data import ClipAugmentation, Layers
from ptq4vm.data.transforms import cut_or_shrink
from ptq4vm.types import MattingClip

FRAMES = 4


@pytest.fixture
def layers():
    """Create a clip of identical frames, in which per-frame differences become visible."""
    fgr, pha, bgr = (
        to_unit(image).expand(FRAMES, -1, -1, -1) for image in (picture(1), alpha(0), picture(2))
    )
    return Layers(fgr, pha, bgr, torch.zeros(FRAMES - 1, 2, *fgr.shape[-2:]))


def test_every_frame_is_changed_alike(layers):
    changed = ClipAugmentation().layers(layers, seed=3)
    for before, after in zip(layers[:3], changed[:3], strict=True):
        assert after.shape == before.shape
        assert not torch.allclose(after[0], before[0], atol=0.01)
        torch.testing.assert_close(after, after[:1].expand(FRAMES, -1, -1, -1), atol=1e-6, rtol=0)
        assert after.min() >= 0
        assert after.max() <= 1
    assert changed.flow is None


def test_alpha_follows_the_foreground_and_keeps_its_values(layers):
    """Use alpha as the foreground: without colour jitter both remain equal."""
    same = layers._replace(fgr=layers.pha.expand(-1, 3, -1, -1))
    for seed in range(5):
        changed = ClipAugmentation(jitter=0.0).layers(same, seed)
        torch.testing.assert_close(
            changed.fgr, changed.pha.expand(-1, 3, -1, -1), atol=1e-3, rtol=0
        )


def test_foreground_and_background_are_changed_apart(layers):
    alike = layers._replace(bgr=layers.fgr)
    changed = ClipAugmentation().layers(alike, seed=0)
    assert not torch.allclose(changed.fgr, changed.bgr, atol=0.02)


def test_composite_foreground_and_alpha_are_changed_together(layers):
    augmentation = ClipAugmentation()
    clip = MattingClip(layers.fgr, layers.pha, layers.fgr, layers.flow, "set/clip", 5)
    changed = augmentation.clip(clip, seed=2)
    torch.testing.assert_close(changed.src, changed.fgr)
    assert (changed.name, changed.start, changed.flow) == ("set/clip", 5, None)
    alone = augmentation.clip(MattingClip(layers.fgr), seed=2)
    assert alone.pha is None
    assert alone.fgr is None
    torch.testing.assert_close(alone.src, changed.src)
    torch.testing.assert_close(augmentation.clip(clip._replace(fgr=None), seed=2).pha, changed.pha)


def test_the_seed_decides_and_the_global_generator_stays(layers):
    augmentation, state = ClipAugmentation(), torch.random.get_rng_state()
    first = augmentation.layers(layers, seed=7)
    torch.rand(3)
    again, other = augmentation.layers(layers, seed=7), augmentation.layers(layers, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first.fgr, other.fgr)
    torch.random.set_rng_state(state)
    augmentation.clip(MattingClip(layers.fgr), seed=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_scale_is_moderate(layers):
    """Bound the change of the disc's area by the square of the scale range."""
    pha = layers.pha
    augmentation = ClipAugmentation(scale=(0.8, 1.25), degrees=0, translate=0)
    areas = [float(augmentation.layers(layers, seed).pha.mean() / pha.mean()) for seed in range(12)]
    assert 0.8**2 * 0.9 < min(areas) < 0.95
    assert 1.05 < max(areas) < 1.25**2 * 1.1


def test_a_larger_clip_is_cut_or_shrunk_alike_in_all_layers(layers):
    clip = MattingClip(layers.fgr, layers.pha, layers.fgr, layers.flow, "set/clip", 5)
    height, width = (side // 2 for side in clip.src.shape[-2:])
    shrunk = torch.nn.functional.interpolate(
        clip.src, (height, width), mode="bilinear", antialias=True
    )
    seen = set()
    for seed in range(12):
        small = cut_or_shrink(clip, (height, width), seed)
        assert small.pha.shape == (FRAMES, 1, height, width)
        assert torch.equal(small.src, small.fgr)
        assert (small.name, small.start, small.flow) == ("set/clip", 5, None)
        if torch.equal(small.src, shrunk):
            seen.add("whole")
            continue
        places = [(y, x) for y in range(height + 1) for x in range(width + 1)]
        window = next(
            (slice(y, y + height), slice(x, x + width))
            for y, x in places
            if torch.equal(clip.src[..., y : y + height, x : x + width], small.src)
        )
        assert torch.equal(clip.pha[..., window[0], window[1]], small.pha)
        seen.add("part")
    assert seen == {"whole", "part"}
    assert cut_or_shrink(clip, tuple(clip.src.shape[-2:]), 0) is clip
    assert cut_or_shrink(MattingClip(layers.fgr), (height, width), 0).pha is None


def test_few_backgrounds_give_many(layers):
    """Compare an enlarged background with its resized center crop."""
    augmentation = ClipAugmentation(
        background_scale=(2.0, 2.0), degrees=0, translate=0, jitter=0, blur=0
    )
    changed = augmentation.layers(layers, seed=0).bgr[0]
    height, width = changed.shape[-2:]
    middle = layers.bgr[
        0, :, height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2
    ]
    enlarged = torch.nn.functional.interpolate(middle[None], (height, width), mode="bilinear")[0]
    error = min((changed - enlarged).abs().mean(), (changed - enlarged.flip(-1)).abs().mean())
    assert error < 0.03 < (changed - layers.bgr[0]).abs().mean()
