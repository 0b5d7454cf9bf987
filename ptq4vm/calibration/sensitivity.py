"""Measurement of single layers' sensitivity to quantization."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq4vm.calibration.layer_errors import (
    LayerError,
    LayerSensitivity,
    Sensitivity,
    read_errors,
    write_sensitivity,
)
from ptq4vm.calibration.teacher import teacher_key
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.data.drawing import Progress
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import (
    block_layers,
    partition,
    quantize_network,
    quantized_layers,
    run_blocks,
    trace,
)
from ptq4vm.graph.trace import example_frame
from ptq4vm.metrics import dtssd, mad
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.quantizers import (
    QConfig,
    activation_quantizers,
    canonical_bits,
    disable_quantization,
    observing,
)

BASE_BITS = "W4A4"
SEQUENCES = 4
"""Default number of calibration sequences to measure on."""


def measure_sensitivity(
    network: MattingModel,
    data: VideoMattingDataModule,
    bits: Iterable[str] = (BASE_BITS,),
    qconfig: QConfig = QConfig(),  # noqa: B008  (frozen)
    sequences: int | None = SEQUENCES,
    path: Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Quantize each layer alone and measure the difference of the mattes to the float network's.

    Activation ranges are calibrated once for each of ``bits`` on the float network's activations,
    and weights are rounded to nearest. Evaluation clips are not used. Inputs of the current block
    are kept in memory, so that only this and the following blocks run; for RVM at most about 20
    floats per pixel of the frames measured on.

    Args:
        network: float network, on the device to measure on.
        data: datamodule with an attached calibration set.
        bits: bits to measure each layer at, including first and last layer.
        qconfig: other quantization settings; its ``first_last_bits`` and ``layer_bits`` only set
            :attr:`LayerSensitivity.fixed`.
        sequences: number of calibration sequences to measure on; None for all.
        path: JSON file, written atomically after each layer; errors in it are not measured again.
        progress: callback, called with (done, total, layer and bits) before each measurement.

    Returns:
        The layers with their errors, in order of execution.

    Raises:
        PTQ4VMError: invalid bits or number of sequences; ``path`` has other content or settings, or
            can't be written.
    """
    if sequences is not None and sequences < 1:
        raise PTQ4VMError(
            f"Expected at least one sequence to measure on, got {sequences}. Raise it."
        )
    wanted = [canonical_bits(one) for one in bits]
    count = min(len(data.calibration_set), sequences or len(data.calibration_set))
    settings = {
        "network": teacher_key(network),
        "calibration": data.calibration_set.folder.name,
        "sequences": count,
        "qconfig": {
            k: v
            for k, v in qconfig.to_dict().items()
            if k not in ("bits", "first_last_bits", "layer_bits")
        },
    }
    found = list_layers(network, qconfig, *data.size)
    if path is not None:
        read_errors(path, settings, found)
    todo = {
        (layer.name, one) for layer in found.layers for one in wanted if one not in layer.errors
    }
    if todo:
        _measure(
            _Walk(network, data, count, wanted, qconfig), found, todo, settings, path, progress
        )
    return found


def list_layers(network: MattingModel, qconfig: QConfig, height: int, width: int) -> Sensitivity:
    """List the quantizable layers in order of execution, without errors; MACs are for this size."""
    traced = [
        t
        for t in trace(network, example_frame(network, height, width))
        if not qconfig.is_float(t.name)
    ]
    edge = f"W{qconfig.first_last_bits}A{qconfig.first_last_bits}"
    fixed = {traced[0].name: edge, traced[-1].name: edge, **qconfig.layer_bits} if traced else {}
    layers = []
    for layer in traced:
        weight: Tensor = network.get_submodule(layer.name).weight  # type: ignore[assignment]
        bits = fixed.get(layer.name)
        layers.append(
            LayerSensitivity(layer.name, layer.macs, weight.numel(), bits and canonical_bits(bits))
        )
    return Sensitivity(tuple(layers))


class _Walk:
    """Block-by-block traversal that caches the float network's inputs of the current block."""

    def __init__(
        self,
        network: MattingModel,
        data: VideoMattingDataModule,
        count: int,
        bits: Sequence[str],
        qconfig: QConfig,
    ) -> None:
        device = next(network.parameters()).device
        clips = [data.calibration_set[index] for index in range(count)]
        self.targets = [clip.teacher_pha.to(device) for clip in clips]
        # Shape (1, T, C, h, w) per sequence.
        self.values = [{"src": clip.src[None].to(device)} for clip in clips]
        layers = list_layers(network, qconfig, *data.size).layers
        self.networks: dict[str, MattingModel] = {}
        for one in bits:
            # layer_bits override first_last_bits: the edges are measured at these bits too.
            edges = {layer.name: one for layer in (layers[0], layers[-1])} if layers else {}
            self.networks[one] = quantize_network(
                network, replace(qconfig, bits=one, layer_bits=edges).used()
            ).to(device)
            self._calibrate(self.networks[one])
        self.blocks = {one: partition(converted) for one, converted in self.networks.items()}

    def _calibrate(self, network: MattingModel) -> None:
        layers = quantized_layers(network).values()
        with (
            torch.inference_mode(),
            disable_quantization(layers),
            observing(activation_quantizers(network)),
        ):
            for values in self.values:
                network.unroll(values["src"])

    def __len__(self) -> int:
        return len(next(iter(self.blocks.values())))

    def layers(self, position: int) -> list[str]:
        """Return the names of the quantizable layers of a block."""
        # Blocks and layers have the same names for all bits.
        bits, network = next(iter(self.networks.items()))
        return block_layers(network, self.blocks[bits][position])

    @torch.inference_mode()
    def error(self, position: int, name: str, bits: str) -> LayerError:
        """Return the error of quantizing one layer of the current block."""
        network, frames = self.networks[bits], []
        others = [layer for other, layer in quantized_layers(network).items() if other != name]
        with disable_quantization(others):
            for values, target in zip(self.values, self.targets, strict=True):
                pha = _run(network, self.blocks[bits][position:], values)["pha"][0]
                # (2, T): both metrics of each frame.
                frames.append(torch.stack([mad(pha, target), dtssd(pha, target)]))
        return LayerError(*torch.cat(frames, 1).double().mean(1).tolist())

    @torch.inference_mode()
    def advance(self, position: int) -> None:
        """Compute a block's outputs and drop the values that no later block reads."""
        bits, network = next(iter(self.networks.items()))
        block, later = self.blocks[bits][position], self.blocks[bits][position + 1 :]
        needed = {"src", *(name for other in later for name in other.inputs)}
        # The float network's values, whichever network runs: quantization is off in all its layers.
        with disable_quantization(quantized_layers(network).values()):
            for index, values in enumerate(self.values):
                values = _run(network, (block,), values)
                self.values[index] = {
                    name: value for name, value in values.items() if name in needed
                }


def _run(
    network: MattingModel, blocks: Sequence[Block], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run the blocks on these values, from an initial recurrent state."""
    return run_blocks(blocks, values, network.initial_state(values["src"][:, 0]))[0]


def _measure(
    walk: _Walk,
    found: Sensitivity,
    todo: set[tuple[str, str]],
    settings: dict[str, Any],
    path: Path | None,
    progress: Progress | None,
) -> None:
    """Measure the missing errors and save them after each layer."""
    layers, total = {layer.name: layer for layer in found.layers}, len(todo)
    for position in range(len(walk)):
        for name in walk.layers(position):
            for bits in [bits for bits in walk.networks if (name, bits) in todo]:
                if progress is not None:
                    progress(total - len(todo), total, f"{name} {bits}")
                layers[name].errors[bits] = walk.error(position, name, bits)
                todo.remove((name, bits))
            if path is not None:
                write_sensitivity(path, found, settings)
        if not todo:
            break
        walk.advance(position)
    if progress is not None:
        progress(total, total, "every layer measured")
