"""Float network as a teacher: cache key and forward function for the datamodule."""

import copy

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ptq4vm.graph import fold_batch_norm_
from ptq4vm.models import weights_checksum
from ptq4vm.models.base import MattingModel
from ptq4vm.types import MattingOutput, RecurrentState, Teacher


def teacher_key(network: MattingModel) -> str:
    """Return a cache key of the network's name, weights and downsample ratio."""
    return f"{network.name}-{weights_checksum(network)}-{network.downsample_ratio:g}"


def make_teacher(network: MattingModel, key: str | None = None) -> Teacher:
    """Wrap a copy of the float network as a :class:`~ptq4vm.types.Teacher` for a datamodule.

    BatchNorm is folded in the copy.

    Args:
        network: float network; the copy stays on its device.
        key: cache key; by default :func:`teacher_key`.
    """
    key = key or teacher_key(network)
    given = fold_batch_norm_(copy.deepcopy(network))
    on_cpu = copy.deepcopy(given).cpu()

    @torch.no_grad()
    def forward(src: Tensor, state: RecurrentState | None = None) -> MattingOutput:
        # DataLoader workers are forked processes, in which CUDA can't be used.
        network = given if get_worker_info() is None else on_cpu
        src = src.to(next(network.parameters()).device)
        state = network.initial_state(src[:, 0]) if state is None else state
        fgr, pha, states = [], [], []
        for frame in src.unbind(1):
            output = network.forward_frame(frame, state)
            state = output.state
            fgr.append(output.fgr)
            pha.append(output.pha)
            states.append(state)
        stacked = tuple(torch.stack(steps, 1) for steps in zip(*states, strict=True))
        # Unlike unroll, all states are returned: losses and windows need them.
        return MattingOutput(torch.stack(fgr, 1), torch.stack(pha, 1), stacked)

    return Teacher(forward, key)
