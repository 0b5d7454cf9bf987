import pytest
import torch
from safetensors.torch import save_file
from skimage.data import astronaut
from torchvision.models.optical_flow import raft_small

from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import create_flow, warp


def photo():
    return torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255


def moving_crops(dx, dy, frames=3, size=(144, 192), start=(120, 160)):
    """Simulate a panning camera with crops at start + t (dy, dx).

    A pixel at p in frame t + 1 was at p + (dx, dy) in frame t.
    """
    y, x = start
    return torch.stack(
        [
            photo()[:, y + t * dy : y + t * dy + size[0], x + t * dx : x + t * dx + size[1]]
            for t in range(frames)
        ]
    )


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


def test_dis_recovers_a_translation():
    src = moving_crops(4, -3)
    flow, visible = create_flow("dis").forward(src)
    assert flow.shape == (2, 2, 144, 192)
    assert visible.shape == (2, 1, 144, 192)
    error = (flow - torch.tensor([4.0, -3.0]).view(1, 2, 1, 1)).norm(dim=1)
    assert error[visible[:, 0] == 1].median() < 0.3
    assert visible.mean() > 0.7
    assert visible[..., :, -3:].mean() < 0.05, "what has just come into the frame has no past"
    before = (src[:-1] - src[1:]).abs() * visible
    after = (warp(src[:-1], flow) - src[1:]).abs() * visible
    assert after.mean() < 0.3 * before.mean()


def test_dis_marks_what_was_covered():
    background = photo()[:, 300:444, 60:252]
    src = background.expand(2, -1, -1, -1).clone()
    patch = photo()[:, 60:124, 190:254]
    src[0, :, 40:104, 50:114] = patch
    src[1, :, 40:104, 62:126] = patch
    _, visible = create_flow("dis").forward(src)
    uncovered = visible[0, 0, 46:98, 52:60].mean()
    assert uncovered < 0.5
    assert visible[0, 0, 46:98, 70:120].mean() > 0.9
    assert visible[0, 0, :, 150:].mean() > 0.9


def test_a_single_frame_has_no_flow():
    flow, visible = create_flow("dis").forward(torch.rand(1, 3, 32, 40))
    assert flow.shape == (0, 2, 32, 40)
    assert visible.shape == (0, 1, 32, 40)


@pytest.mark.parametrize("size", [(61, 45), (136, 131)])
def test_raft_runs_at_odd_sizes(raft_weights, size):
    src = torch.rand(2, 3, *size, requires_grad=True)
    flow, visible = create_flow("raft", raft_weights).forward(src)
    assert flow.shape == (1, 2, *size)
    assert visible.shape == (1, 1, *size)
    assert flow.isfinite().all()
    assert set(visible.unique().tolist()) <= {0.0, 1.0}
    assert not flow.requires_grad


def test_raft_gives_the_flow_from_later_to_earlier(raft_weights):
    src = moving_crops(2, 1, frames=2, size=(128, 128))
    model = raft_small(weights=None).eval()
    model.load_state_dict(torch.load(raft_weights, weights_only=True))
    with torch.no_grad():
        expected = model(src[1:] * 2 - 1, src[:1] * 2 - 1)[-1]
    flow, _ = create_flow("raft", raft_weights).forward(src)
    torch.testing.assert_close(flow, expected, rtol=1e-3, atol=1e-3)


def test_keys(raft_weights, tmp_path):
    same, other = tmp_path / "same.pth", tmp_path / "other.safetensors"
    same.write_bytes(raft_weights.read_bytes())
    save_file(raft_small(weights=None).state_dict(), other)
    keys = [create_flow("raft", path).key for path in (raft_weights, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0].startswith("raft-small-")
    assert create_flow("dis").key.startswith("dis-")


def test_refuses_names_and_weights(raft_weights, tmp_path):
    with pytest.raises(PTQ4VMError, match=r"dis, raft.*weight of its loss"):
        create_flow("none")
    with pytest.raises(PTQ4VMError, match=r"'dis', which needs none"):
        create_flow("raft")
    with pytest.raises(PTQ4VMError, match="no such file"):
        create_flow("raft", tmp_path / "absent.pth")
    with pytest.raises(PTQ4VMError, match="no weights"):
        create_flow("dis", raft_weights)
    with pytest.raises(PTQ4VMError, match="arch"):
        create_flow("raft", raft_weights, arch="tiny")
    with pytest.raises(PTQ4VMError, match="raft_large"):
        create_flow("raft", raft_weights, arch="large")


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors", "empty.pth"])
def test_refuses_unreadable_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"not weights at all")
    with pytest.raises(PTQ4VMError, match=r"Expected RAFT's weights, got .*damaged"):
        create_flow("raft", tmp_path / name)


def test_refuses_weights_of_another_network(tmp_path, raft_weights):
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(PTQ4VMError, match="large"):
        create_flow("raft", path)
    torch.save({"state_dict": torch.load(raft_weights, weights_only=True)}, path)
    with pytest.raises(PTQ4VMError, match="plain dictionary"):
        create_flow("raft", path)
    state = torch.load(raft_weights, weights_only=True)
    state.pop(next(k for k in state if k.endswith("bias")))
    torch.save(state, path)
    with pytest.raises(PTQ4VMError, match="raft_small"):
        create_flow("raft", path)


@pytest.mark.parametrize(
    "src",
    [
        torch.rand(3, 32, 32),
        torch.rand(2, 1, 32, 32),
        torch.rand(0, 3, 32, 32),
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.rand(2, 3, 8, 32),
    ],
)
def test_refuses_frames(src):
    with pytest.raises(PTQ4VMError, match="Expected frames"):
        create_flow("dis").forward(src)
