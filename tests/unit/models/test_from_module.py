"""Tests of the blocks that are cut out of any network, against the network itself."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import partition, run_blocks
from ptq4vm.models import create_model, from_module, registry

SIZE = (32, 48)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))


class Excitation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        x = self.expand(x)
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Recurrent(nn.Module):
    """Gate over the features and the state, half of the channels."""

    def __init__(self, width):
        super().__init__()
        self.gate, self.new = nn.Conv2d(2 * width, width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x, h):
        both = torch.cat([x, h], 1)
        z = self.gate(both).sigmoid()
        h = (1 - z) * h + z * self.new(both).tanh()
        return x + h, h


class Video(nn.Module):
    """Encoder, squeeze-and-excitation, residual unit and two recurrent states."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.residual, self.excitation = Residual(8), Excitation(8)
        self.deep, self.shallow = Recurrent(8), Recurrent(8)
        self.down, self.head = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, src, h1, h2):
        x = self.excitation(self.residual(self.stem(src)))
        y, h2 = self.deep(self.down(x), h2)
        x, h1 = self.shallow(x + F.interpolate(y, x.shape[2:], mode="bilinear"), h1)
        y = self.head(F.interpolate(x, src.shape[2:], mode="bilinear"))
        return (src + y[:, :3]).clamp(0, 1), y[:, 3:].clamp(0, 1), h1, h2


STATES = (torch.zeros(1, 8, 16, 24), torch.zeros(1, 8, 8, 12))


@pytest.fixture
def net():
    net = Video()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def frames_of(*shape):
    """Return random frames, (T, B, 3, H, W), in the memory format in which blocks get them."""
    return [x.contiguous(memory_format=torch.channels_last) for x in torch.rand(*shape, 3, *SIZE)]


def pha_of(network, frame):
    return network.forward_frame(frame, network.initial_state(frame)).pha


def block_of(network, layer):
    (found,) = [block.name for block in network.blocks() if layer in block.modules]
    return found


@pytest.mark.parametrize("max_layers", [1, 2, 5, 99])
@torch.no_grad()
def test_blocks_reproduce_the_network(net, max_layers):
    network = from_module(net, SIZE, STATES, name="video", max_layers=max_layers)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    partition(network)
    frames = frames_of(4, 2)
    states = tuple(state.repeat(2, 1, 1, 1) for state in STATES)
    given = network.initial_state(frames[0])
    for frame in frames:
        fgr, pha, *states = net(frame, *states)
        output = network.forward_frame(frame, given)
        given = output.state
        assert torch.equal(output.fgr, fgr)
        assert torch.equal(output.pha, pha)
    values, _ = run_blocks(
        network.blocks(), {"src": torch.stack(frames, 1)}, network.initial_state(frames[0])
    )
    torch.testing.assert_close(values["pha"][:, -1], pha)
    assert {"pha_unclamped", "fgr"} <= values.keys()


def test_units_stay_whole(net):
    network = from_module(net, SIZE, STATES, name="video", max_layers=3)
    for first, last in (
        ("residual.conv1", "residual.conv2"),
        ("excitation.expand", "excitation.up"),
        ("deep.gate", "deep.new"),
        ("shallow.gate", "shallow.new"),
    ):
        assert block_of(network, f"net.{first}") == block_of(network, f"net.{last}")
    homes = [block.state for block in network.blocks() if block.state is not None]
    assert homes == [0, 1]
    assert max(len(block.modules) for block in network.blocks()) <= 3


def test_the_given_network_is_unchanged(net):
    before = copy.deepcopy(net.state_dict())
    from_module(net.train(), SIZE, STATES, name="video")
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_other_sizes_of_frame(net):
    network = from_module(net, SIZE, STATES, name="video")
    frame = torch.rand(1, 3, 30, 50).contiguous(memory_format=torch.channels_last)
    states = (torch.zeros(1, 8, 15, 25), torch.zeros(1, 8, 8, 13))
    with torch.no_grad():
        wanted = net(frame, *states)[1]
        assert torch.equal(network.unroll(frame[None]).pha[0], wanted)


def test_a_size_that_the_trace_does_not_cover_is_refused():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bias = nn.Conv2d(3, 1, 1), nn.Parameter(torch.zeros(1, 1, *SIZE))

        def forward(self, src):
            return (self.conv(src) + self.bias).sigmoid()

    network = from_module(Fixed(), SIZE, name="fixed")
    with pytest.raises(PTQ4VMError, match=r"32 x 48.*got 64 x 48.*example of this size"):
        network.unroll(torch.rand(1, 1, 3, 64, 48))


def test_networks_that_are_registered(net):
    network = from_module(net, SIZE, STATES, name="video")
    made, (frame,) = create_model("video"), frames_of(1, 1)
    with torch.no_grad():
        made.net.head.bias += 1.0
        changed = pha_of(made, frame)
        assert not torch.equal(changed, pha_of(network, frame))
        network.net.head.bias += 1.0
        assert torch.equal(changed, pha_of(network, frame))
    from_module(net, SIZE, STATES, name="video")  # replaces it
    with pytest.raises(PTQ4VMError, match="modnet"):
        from_module(net, SIZE, STATES, name="modnet")


def test_weights_have_the_networks_own_names(net, tmp_path):
    from_module(net, SIZE, STATES, name="video")
    torch.manual_seed(1)
    other = Video().eval()
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    made = create_model("video", weights=str(tmp_path / "weights.pth"))
    (frame,) = frames_of(1, 1)
    with torch.no_grad():
        assert torch.equal(pha_of(made, frame), other(frame, *STATES)[1])


def test_tokens_become_maps_between_blocks():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, stride=8)
            self.layers = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
                for _ in range(3)
            )
            self.head = nn.Linear(16, 64)

        def forward(self, src):
            x = self.embed(src)
            size = x.shape[2:]
            x = x.flatten(2).transpose(1, 2)
            for layer in self.layers:
                x = x + layer(x)
            x = self.head(x).transpose(1, 2).unflatten(2, size)
            return F.pixel_shuffle(x, 8).sigmoid()

    net = Tokens()
    network = from_module(net, SIZE, max_layers=2)
    assert network.name == "Tokens"
    assert len(partition(network)) >= 4  # which requires maps
    (frame,) = frames_of(1, 1)
    with torch.no_grad():
        assert torch.equal(pha_of(network, frame), net(frame))


def test_assignments_to_parts_of_a_tensor():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

        def forward(self, src):
            x = self.conv(src)
            x[:, 2:] = 0.5 * x[:, 2:]
            x.mul_(2.0)
            return {"pha": self.last(x).sigmoid()}

    net = Parts()
    network = from_module(net, SIZE)
    (frame,) = frames_of(1, 1)
    with torch.no_grad():
        assert torch.equal(pha_of(network, frame), net(frame)["pha"])


def test_a_layer_that_is_called_twice_is_in_one_block():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Conv2d(3, 1, 1)

        def forward(self, src):
            return self.last(self.conv(self.conv(src).relu()).relu()).sigmoid()

    network = from_module(Twice(), SIZE, max_layers=1)
    assert next(block.modules for block in network.blocks()) == ("net.conv",)
    partition(network)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, src):
        x = self.conv(src)
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Branching(), {}, "torch.export can trace.*tensor operations"),
        (nn.Conv2d(3, 2, 1), {}, r"Expected pha among.*\(1, 2, 32, 48\).*Give outputs"),
        (nn.Conv2d(3, 1, 1), {"outputs": lambda _: "no"}, "got str.*Give outputs"),
        (nn.Conv2d(3, 1, 1), {"outputs": lambda x: (x, x, x)}, "got 3 values"),
        (nn.Conv2d(3, 1, 1), {"inputs": torch.rand(3, 32, 48)}, r"\(1, 3, H, W\), got \(3, 32"),
        (nn.Conv2d(3, 1, 1), {"inputs": (32, 0)}, "example frame or its height"),
        (Video(), {"states": (torch.ones(1, 8, 16, 24), STATES[1])}, "states of zeros"),
    ],
)
def test_what_is_refused(net, options, message):
    with pytest.raises(PTQ4VMError, match=message):
        from_module(net, **{"inputs": SIZE, "name": "refused", **options})
    assert "refused" not in registry._FACTORIES


def test_a_matting_model_has_blocks_already():
    with pytest.raises(PTQ4VMError, match="has its blocks already"):
        from_module(create_model("modnet"), SIZE)


@pytest.mark.parametrize("max_layers", [0, -1, 2.5])
def test_block_size(max_layers):
    with pytest.raises(PTQ4VMError, match="max_layers of at least 1"):
        from_module(nn.Conv2d(3, 1, 1), SIZE, max_layers=max_layers)
