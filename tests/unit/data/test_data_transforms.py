import pytest
import torch
from layouts import alpha, picture, to_unit

from ptq4vm.data import ClipAugmentation, Layers
from ptq4vm.types import MattingClip

FRAMES = 4


@pytest.fixture
def layers():
    """Frames that are all alike, so that whatever differs afterwards was done differently."""
    fgr, pha, bgr = (to_unit(image).expand(FRAMES, -1, -1, -1) for image in (picture(1), alpha(0), picture(2)))
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
    """A foreground that is its own alpha still is, once colours are left alone."""
    same = layers._replace(fgr=layers.pha.expand(-1, 3, -1, -1))
    for seed in range(5):
        changed = ClipAugmentation(jitter=0.0).layers(same, seed)
        torch.testing.assert_close(changed.fgr, changed.pha.expand(-1, 3, -1, -1), atol=1e-3, rtol=0)


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
    """The disc's area changes by no more than the square of the scale's range."""
    pha = layers.pha
    augmentation = ClipAugmentation(degrees=0, translate=0)
    areas = [float(augmentation.layers(layers, seed).pha.mean() / pha.mean()) for seed in range(12)]
    assert 0.8**2 * 0.9 < min(areas) < 0.95
    assert 1.05 < max(areas) < 1.25**2 * 1.1
