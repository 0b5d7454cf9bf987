"""Layer-wise reconstruction, as in AdaRound: every layer of a block on its own input."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ptq4vm.calibration.losses import reconstruction_loss
from ptq4vm.quantizers import QuantizedLinear


def layerwise_loss(
    layers: Sequence[nn.Module],
    originals: Sequence[nn.Module],
    run: Callable[[], object],
    run_float: Callable[[], object],
) -> Tensor:
    """Return the summed reconstruction loss of every single layer; no gradient passes between them.

    Args:
        layers: the quantized layers of a block.
        originals: the float layers, in the same order.
        run: runs the quantized block.
        run_float: runs the float block.
    """
    with torch.no_grad(), _recording(originals, detach=False) as targets:
        run_float()
    with _recording(layers, detach=True) as outputs:
        run()
    # As (N, 1, C, h, w), the form of the blocks' outputs.
    return reconstruction_loss(
        tuple(y[:, None] for y in outputs), tuple(y[:, None] for y in targets)
    )


@contextmanager
def _recording(layers: Sequence[nn.Module], *, detach: bool) -> Iterator[list[Tensor]]:
    """Collect the outputs of layers in order of execution, (N, C, ...); ``detach`` their inputs."""
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, _: object, y: Tensor) -> None:
        channels_last = isinstance(layer, nn.Linear | QuantizedLinear)
        outputs.append(y.movedim(-1, 1) if channels_last else y)

    # Without a path to the layer before, each layer answers for its own rounding only.
    def cut(_: nn.Module, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.detach() for value in x)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(keep).remove)
            if detach:
                stack.callback(layer.register_forward_pre_hook(cut).remove)
        yield outputs
