"""Validated partition of a network into blocks."""

import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.convert import quantized_layers
from ptq4vm.graph.trace import example_frame
from ptq4vm.models.base import Block, MattingModel


def partition(network: MattingModel) -> tuple[Block, ...]:
    """Return the network's blocks after validation.

    Raises:
        PTQ4VMError: A quantized layer or a state is not in exactly one block, a value is not a (B,
            C, h, w) map, or the blocks in order do not reproduce ``forward_frame`` bit for bit.

    Example:
        >>> from ptq4vm.graph import partition
        >>> from ptq4vm.models import create_model
        >>> blocks = partition(create_model("rvm_mobilenetv3"))
        >>> [block.name for block in blocks if block.state is not None]
        ['decode4', 'decode3', 'decode2', 'decode1']
    """
    blocks = network.blocks()
    for name in quantized_layers(network):
        owners = [block.name for block in blocks if owns(block, name)]
        if len(owners) != 1:
            raise PTQ4VMError(
                f"Expected layer {name!r} in exactly one block, found it in {owners or 'none'}."
            )
    src = example_frame(network)
    states = network.initial_state(src)
    # A state in no block would not be reconstructed, one in two would be advanced twice a frame.
    homes = sorted(block.state for block in blocks if block.state is not None)
    if homes != list(range(len(states))):
        raise PTQ4VMError(
            f"Expected each of {len(states)} states in exactly one block, found states {homes}."
        )
    with torch.no_grad():
        whole = network.forward_frame(src, states)
        values, new_states = MattingModel.forward_values(network, src, states)
    flat = [f"{name} {tuple(value.shape)}" for name, value in values.items() if value.dim() != 4]
    if flat:
        raise PTQ4VMError(
            f"Expected maps (B, C, h, w) between the blocks of {network.name}, got {flat[0]}. Turn "
            "tokens into maps at the end of a block."
        )
    pairs = [
        (whole.fgr, values["fgr"]),
        (whole.pha, values["pha"]),
        *zip(whole.state, new_states, strict=True),
    ]
    if not all(torch.equal(a, b) for a, b in pairs):
        raise PTQ4VMError(
            f"Expected the blocks of {network.name} in order to equal its forward_frame; they "
            "differ."
        )
    return blocks


def owns(block: Block, layer: str) -> bool:
    """Return whether the layer with this dotted name belongs to the block."""
    return any(layer == prefix or layer.startswith(f"{prefix}.") for prefix in block.modules)


def block_layers(network: MattingModel, block: Block) -> list[str]:
    """Return the names of the quantized layers of one block."""
    return [name for name in quantized_layers(network) if owns(block, name)]
