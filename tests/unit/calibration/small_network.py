"""A recurrent matting network of three convolutions, and a calibration batch for it."""

import torch
import torch.nn.functional as F
from torch import nn

from ptq4vm.models.base import Block, MattingModel
from ptq4vm.types import CalibrationClip


class SmallNetwork(MattingModel):
    """An encoder, a recurrent block and a head at full resolution."""

    name = "small"

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.update = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def initial_state(self, src):
        return (src.new_zeros(len(src), 8, *src.shape[-2:]),)

    def blocks(self):
        def update(x, h):
            h = 0.5 * h + 0.5 * torch.tanh(self.update(torch.cat([x, h], 1)))
            return h, h

        def head(x):
            y = self.head(x)
            return y[:, :3], y[:, 3:].clamp(0.0, 1.0), y[:, 3:]

        return (
            Block("encoder", ("src",), ("x",), lambda s: (F.relu(self.encoder(s)),), ("encoder",)),
            Block("update", ("x",), ("y",), update, ("update",), state=0),
            Block("head", ("y",), ("fgr", "pha", "pha_unclamped"), head, ("head",)),
        )


def make_network():
    torch.manual_seed(0)
    network = SmallNetwork().eval().requires_grad_(False)
    network.head.bias[3] = 0.5
    return network


@torch.no_grad()
def make_batch(network, batch=2, time=3, size=(6, 7)):
    """Clips whose teacher_* values are this network's, in its precision."""
    generator = torch.Generator().manual_seed(1)

    def rand(channels, count=time):
        drawn = torch.rand(batch, count, channels, *size, generator=generator)
        return drawn.to(network.head.weight.dtype)

    src = rand(3)
    state, pha, states = network.initial_state(src[:, 0]), [], []
    for frame in src.unbind(1):
        output = network.forward_frame(frame, state)
        state = output.state
        pha.append(output.pha)
        states.append(state[0])
    return CalibrationClip(
        torch.arange(batch),
        src,
        rand(1),
        None,
        torch.stack(pha, 1),
        (torch.stack(states, 1),),
        src.new_zeros(batch, time - 1, 2, *size),
        (rand(1, time - 1) > 0.3).to(src.dtype),
        network.initial_state(src[:, 0]),
    )
