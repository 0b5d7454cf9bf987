import matting_metrics as oracle
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics import conn, dtssd, grad, mad, mse, to_png8

FUNCTIONS = {"mad": mad, "mse": mse, "grad": grad, "conn": conn, "dtssd": dtssd}
SIZE = (37, 53)


def random_pair(frames=4, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(frames, 1, *size, generator=generator), torch.rand(
        frames, 1, *size, generator=generator
    )


def disks(frames=4, size=(72, 96), shift=2.0, softness=5.0, radius=20.0):
    """Create a soft disk moving to the right, (frames, 1, H, W)."""
    y, x = torch.meshgrid(*(torch.arange(s, dtype=torch.float32) for s in size), indexing="ij")
    centres = [size[1] / 3 + shift * t for t in range(frames)]
    distances = torch.stack([torch.hypot(x - c, y - size[0] / 2) for c in centres])[:, None]
    return torch.sigmoid((radius - distances) / softness)


def smooth_pair():
    target = disks()
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    return (disks(shift=2.4, radius=19) + 0.05 * noise).clamp(0, 1), target


def islands_pair():
    """Create two blobs joined by a bridge, which is cut in the prediction."""
    target, preds = torch.zeros(1, 1, 20, 40), torch.zeros(1, 1, 20, 40)
    target[..., 4:16, 4:20] = 1
    target[..., 6:14, 24:34] = 0.9
    target[..., 9:11, 20:24] = 0.5
    preds.copy_(target)
    preds[..., 9:11, 21] = 0
    return preds, target


def png8_pair():
    preds, target = random_pair(seed=3)
    return to_png8(preds), to_png8(target)


def diagonal_pair():
    """Create checkerboards, which are 8-connected but not 4-connected."""
    board = (torch.arange(12)[:, None] + torch.arange(12)).remainder(2).float()
    return (board * 0.8).expand(2, 1, 12, 12), board.expand(2, 1, 12, 12)


def constants(p, t):
    return torch.full((2, 1, *SIZE), p), torch.full((2, 1, *SIZE), t)


PAIRS = {
    "random": random_pair(),
    "smooth": smooth_pair(),
    "islands": islands_pair(),
    "diagonal": diagonal_pair(),
    "png8": png8_pair(),
    "tiny": random_pair(2, size=(1, 3)),
    "single frame": random_pair(1),
    "zeros": constants(0.0, 0.0),
    "ones": constants(1.0, 1.0),
    "zero and one": constants(0.0, 1.0),
    "one and zero": constants(1.0, 0.0),
    "grey and one": constants(0.52, 1.0),
    "disjoint": (disks(), disks().flip(-1).roll(30, -1) * 0),
    "one pixel": (
        torch.zeros(1, 1, 9, 9),
        torch.zeros(1, 1, 9, 9).index_fill_(-1, torch.tensor(4), 1.0),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_oracle(name, pair):
    preds, target = PAIRS[pair]
    got = FUNCTIONS[name](preds, target)
    assert got.shape == preds.shape[:1]
    assert got.isfinite().all()
    expected = getattr(oracle, name)(preds[:, 0].numpy(), target[:, 0].numpy())
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_grad_without_normalisation_equals_the_oracle():
    preds, target = smooth_pair()
    expected = oracle.grad(preds[:, 0].numpy(), target[:, 0].numpy(), normalize=False)
    got = grad(preds, target, normalize=False)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)
    assert not torch.allclose(got, grad(preds, target), rtol=1e-2)


def test_conn_by_hand():
    preds, target = islands_pair()
    # Large blob: level 1.0 in both. Island: disconnected from the first threshold on, so level 0
    # in both and no difference. Bridge: its pixels right of the cut belong to the island, those
    # left of it have level 0.5. The cut: 2 pixels at level 0, 0.5 in the target and 0 in the
    # prediction.
    assert_close(conn(preds, target), torch.tensor([2 * 0.5 / 1000]))
    # Without the island, the prediction lacks 0.9 on each of its 80 pixels.
    preds[..., 24:34] = 0
    assert_close(conn(preds, target), torch.tensor([(80 * 0.9 + 2 * 0.5) / 1000]))
    # Differences to the level below 0.15 are ignored.
    flat = torch.full((1, 1, 8, 8), 0.6)
    assert conn(flat + 0.14, flat) == 0


def test_grad_by_hand():
    # Inside the border, the response to a ramp of slope s along x is
    # s * sum(u^2 g(u)) * sum(g(v)) / ||kernel||.
    u = np.arange(-4, 5)
    g = np.exp(-(u**2) / (2 * 1.4**2))
    response = (u**2 * g).sum() * g.sum() / np.sqrt((np.outer(g, u * g) ** 2).sum())

    def error_of(width):
        ramp = (torch.arange(width, dtype=torch.float64) / 100).expand(1, 1, 30, width)
        return grad(ramp, torch.zeros_like(ramp), normalize=False).item()

    # The wider ramp has one more inner column; the contribution of the border is equal.
    assert error_of(41) - error_of(40) == pytest.approx(30 * (response / 100) ** 2 / 1000, rel=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_leading_dimensions(name):
    preds, target = random_pair(6)
    whole = FUNCTIONS[name](preds.view(2, 3, 1, *SIZE), target.view(2, 3, 1, *SIZE))
    parts = [FUNCTIONS[name](preds[i : i + 3], target[i : i + 3]) for i in (0, 3)]
    assert_close(whole, torch.stack(parts))


def test_a_frame_needs_no_leading_dimension():
    preds, target = random_pair(1)
    assert mad(preds[0], target[0]).shape == ()
    assert conn(preds[0], target[0]).shape == ()


def test_dtssd_in_chunks_equals_whole():
    preds, target = random_pair(7)
    chunks = [
        dtssd(preds[:3], target[:3]),
        dtssd(preds[3:4], target[3:4], previous=(preds[2], target[2])),
        dtssd(preds[4:], target[4:], previous=(preds[3], target[3])),
    ]
    assert torch.equal(torch.cat(chunks), dtssd(preds, target))
    batched = dtssd(preds[None, 3:], target[None, 3:], previous=(preds[None, 2], target[None, 2]))
    assert torch.equal(batched[0], dtssd(preds, target)[3:])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_perfect_prediction_is_exactly_zero(name):
    target = disks()
    assert (FUNCTIONS[name](target, target.clone()) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_floats(name, dtype):
    preds, target = (x.to(dtype) for x in random_pair(2))
    got = FUNCTIONS[name](preds, target)
    assert_close(got.float(), FUNCTIONS[name](preds.float(), target.float()), rtol=1e-4, atol=1e-5)


def test_grad_ignores_autocast():
    preds, target = smooth_pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = grad(preds, target)
    assert torch.equal(inside, grad(preds, target))


def test_png8_truncates():
    levels = torch.arange(256) / 255
    assert torch.equal(to_png8(levels), levels)
    assert torch.equal(to_png8((levels[:-1] + levels[1:]) / 2), levels[:-1])
    assert to_png8(torch.tensor(0.99999)) == 254 / 255
    x = torch.rand(1000)
    assert torch.equal(to_png8(x), x.mul(255).byte() / 255)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5), "one shape"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), "1, H, W"),
        (torch.zeros(4, 4), torch.zeros(4, 4), "1, H, W"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4), "non-empty"),
        (torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 255.0), "target in"),
        (torch.full((2, 1, 4, 4), -0.1), torch.zeros(2, 1, 4, 4), "preds in"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2, 1, 4, 4), "nan"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4), "uint8"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, device="meta"), "one device"),
    ],
)
def test_refuses(name, preds, target, message):
    with pytest.raises(PTQ4VMError, match=message):
        FUNCTIONS[name](preds, target)


def test_dtssd_refuses():
    preds, target = random_pair(3)
    with pytest.raises(PTQ4VMError, match="successive"):
        dtssd(preds[0], target[0])
    with pytest.raises(PTQ4VMError, match="previous"):
        dtssd(preds, target, previous=(preds[:2], target[:2]))
