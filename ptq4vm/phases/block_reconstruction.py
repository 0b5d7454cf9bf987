"""BIQ: block-wise initial quantization, as a Lightning fit with one epoch for each block."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq4vm import distributed
from ptq4vm.calibration.input_scales import choose_input_scales, set_input_scales
from ptq4vm.calibration.layerwise import layerwise_loss
from ptq4vm.calibration.losses import reconstruction_loss
from ptq4vm.calibration.reconstruction import (
    block_step,
    find_ranges,
    harden,
    make_optimizer,
    prepare_layers,
    set_learning_rates,
)
from ptq4vm.calibration.walk import BlockWalk
from ptq4vm.data.sources import derive_seed
from ptq4vm.graph import SequenceStore, block_layers, partition, quantize_network, quantized_layers
from ptq4vm.models import float_network
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.phases.base import PTQPhase
from ptq4vm.phases.checkpoints import reached
from ptq4vm.phases.scoring import Scoring
from ptq4vm.phases.settings import BlockReconstructionSettings
from ptq4vm.quantizers import (
    NearestRounding,
    Observer,
    QConfig,
    QuantizedLayer,
    merge_observers,
    temporary_rounding,
)

_SCORED_SEQUENCES = 2
"""Sequences of the logged losses of a block: enough for a log, and little work beside learning."""


class BlockReconstructionModule(PTQPhase):
    """Quantizes a network block by block against the float network's own blocks.

    Each epoch is one block, so a trainer needs ``max_epochs=phase.epochs``: its activation ranges
    are found on the outputs of the blocks already quantized, then the rounding of its weights
    (AdaRound) and its activation scales are learned, then its roundings become hard, as in
    :func:`~ptq4vm.calibration.reconstruction.reconstruct_block`. The activations between blocks are
    kept, so that every block runs once over the calibration set. Each step takes ``batch_size``
    sequences of the datamodule; the steps of a block are the datamodule's ``steps_per_epoch``.

    Args:
        network: registry name of the network, or the float network itself.
        weights: ``official``, or a file with the float network's weights.
        downsample_ratio: the network's body works at this fraction of the frame's size.
        qconfig: bits, grids and placement of the quantizers.
        output: path of the quantized checkpoint.
        scoring: ``float`` or ``png8`` metrics.
        settings: fields of :class:`BlockReconstructionSettings`.

    Raises:
        PTQ4VMError: ``granularity`` doesn't suit the placement; or as in
            :func:`~ptq4vm.graph.quantize_network`.

    Example:
        >>> from ptq4vm.phases import BlockReconstructionModule
        >>> from ptq4vm.quantizers import QConfig
        >>> phase = BlockReconstructionModule(qconfig=QConfig("W4A8"), drop_prob=0.0)  # BRECQ
        >>> phase.settings.drop_prob, len(phase.blocks)
        (0.0, 25)
    """

    def __init__(
        self,
        network: str | MattingModel = "rvm_mobilenetv3",
        weights: str = "official",
        downsample_ratio: float = 1.0,
        qconfig: QConfig = QConfig(),  # noqa: B008  (frozen)
        output: Path | None = None,
        scoring: Scoring = "float",
        **settings: Any,
    ) -> None:
        own = BlockReconstructionSettings(**settings)
        own.require_placement(qconfig)
        teacher = float_network(network, weights, downsample_ratio)
        quantized = quantize_network(teacher, qconfig)
        super().__init__(quantized, qconfig, teacher, own, output, scoring)
        self.blocks = partition(self.network)
        layers = quantized_layers(self.network)
        self.layers: dict[str, dict[str, QuantizedLayer]] = {
            block.name: {name: layers[name] for name in block_layers(self.network, block)}
            for block in self.blocks
        }
        """The quantized layers, by block and name."""
        self.learned_blocks = tuple(block for block in self.blocks if self.layers[block.name])
        prepare_layers(layers.values(), own)
        self._walk: BlockWalk | None = None

    settings: BlockReconstructionSettings
    epoch_is = "block"
    keeps_sequences = True

    # ---- the fit ---------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Number of blocks that learn."""
        return len(self.learned_blocks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the roundings of learned blocks hard; without a fit, those of all blocks."""
        super().on_load_checkpoint(checkpoint)
        fitting = str(self.trainer.state.fn.value) == "fit"  # type: ignore[union-attr]
        for block in self.learned_blocks[: reached(checkpoint)[0] if fitting else None]:
            harden(self._layers(block))

    def _require_same(self, checkpoint: Mapping[str, Any], *args: Any) -> None:
        # Earlier versions kept a parameter of no use in fits that round to nearest.
        checkpoint["state_dict"].pop("unused", None)
        super()._require_same(checkpoint, *args)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return Adam over what all blocks learn; None for rounding to nearest."""
        layers = quantized_layers(self.network).values()
        return make_optimizer(layers, self.settings) if self.learns else None

    def on_fit_start(self) -> None:
        """Open the store of activations; a resumed fit runs the finished blocks again."""
        super().on_fit_start()
        clips = self.calibration.calibration_set
        share = distributed.share(range(len(clips)))
        store = SequenceStore(Path(self.trainer.default_root_dir), len(share), self.device)
        layers = {block.name: self._layers(block) for block in self.blocks}
        self._walk = BlockWalk(
            store, self.network, self.teacher, layers, self.calibration.batch_size,
            None if self.learns else _SCORED_SEQUENCES,
        )  # fmt: skip
        for place, index in enumerate(share):
            clip, part = clips[index], slice(place, place + 1)
            for side in ("float", "quantized"):
                store.write(f"{side}/src", part, clip.src[None])
            for number, state in enumerate(clip.first_state):
                store.write(f"first/state{number}", part, state[None])

    def teardown(self, stage: str) -> None:
        """Free the store of activations."""
        super().teardown(stage)
        if self._walk is not None:
            self._walk.store.close()
            self._walk = None

    @property
    def learns(self) -> bool:
        """False for rounding to nearest."""
        return self.settings.learns

    @property
    def block(self) -> Block:
        """The block of the current epoch."""
        return self.learned_blocks[self.current_epoch]

    def on_train_start(self) -> None:
        """Resume within a block: Lightning doesn't begin its epoch again."""
        epoch, batches = self.reached
        if not self.trainer.fit_loop.restarted_mid_epoch or epoch == len(self.learned_blocks):
            return
        if batches == 0:
            self.on_train_epoch_start()
        else:
            self.walk.reach(self.block)  # its ranges are in the checkpoint

    def on_train_epoch_start(self) -> None:
        """Run the network up to the current block, and find its ranges."""
        walk, block = self.walk, self.block
        walk.reach(block)

        def run_each() -> None:
            for index in range(walk.store.num_sequences):
                part = slice(index, index + 1)
                walk.run(block, "quantized", walk.inputs(block, "quantized", part), part)

        if self.settings.scale_inputs:
            scales = choose_input_scales(self._layers(block), run_each)
            # Those of the first process: all must have the same weights.
            set_input_scales(self._layers(block), distributed.gather(scales)[0])
        find_ranges(self._layers(block), run_each, _choose_together)
        with temporary_rounding(self._layers(block), NearestRounding):
            self.log("biq/nearest", self._score(), sync_dist=True)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Seed the step's random draws, and decay the scales' learning rate within the block."""
        # By step and process: a resumed fit must drop the same values, and no two processes should.
        seed = derive_seed(derive_seed(self.calibration.seed, self.global_step), distributed.rank())
        torch.manual_seed(seed)
        set_learning_rates(
            self.trainer.optimizers[0],
            self._layers(self.block),
            self.settings,
            self._progress(batch_idx),
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of the current block for the sequences with these numbers, (B,)."""
        if not self.learns:
            # Lightning wants a loss, in several processes at least; no parameter is in it.
            return torch.zeros((), device=self.device, requires_grad=True)
        # Their places in this process's share.
        index = batch.cpu() // distributed.count()
        inputs, floats = self.walk.inputs(self.block, "quantized", index), None
        if self.settings.drop_prob > 0.0:
            floats = self.walk.inputs(self.block, "float", index)
        losses = block_step(
            lambda given: self._loss(given, index), self._layers(self.block), inputs, floats,
            self.settings, self._progress(batch_idx),
        )  # fmt: skip
        if losses.rounding is not None:
            self.log("biq/round", losses.rounding)
        self.log("biq/rec", losses.reconstruction, prog_bar=True)
        return losses.total

    def on_train_epoch_end(self) -> None:
        """Make the block's roundings hard, and log the loss before and after."""
        self.log("biq/block", float(self.current_epoch), sync_dist=True)
        self.log("biq/soft", self._score(), sync_dist=True)
        harden(self._layers(self.block))
        self.log("biq/hard", self._score(), sync_dist=True)

    def on_fit_end(self) -> None:
        """Put every weight on its grid and write the quantized checkpoint."""
        for layer in quantized_layers(self.network).values():
            layer.fix_()
        self._save({"phase": "block_reconstruction"})

    # ---- the pieces ------------------------------------------------------------------------------

    @property
    def walk(self) -> BlockWalk:
        """The activations between blocks.

        Raises:
            RuntimeError: no fit is running.
        """
        if self._walk is None:
            raise RuntimeError("activations are kept only during a fit")
        return self._walk

    def _layers(self, block: Block) -> list[QuantizedLayer]:
        return list(self.layers[block.name].values())

    def _progress(self, batch_idx: int) -> float:
        return batch_idx / max(1, int(self.trainer.num_training_batches))

    def _loss(self, inputs: Sequence[Tensor], index: Tensor | slice) -> Tensor:
        """Return the current block's reconstruction loss for sequences of this process."""
        walk, block = self.walk, self.block
        if self.settings.granularity == "block":
            outputs = walk.run(block, "quantized", inputs, index)
            return reconstruction_loss(outputs, walk.targets(block, index))
        return layerwise_loss(
            [self.network.get_submodule(name) for name in self.layers[block.name]],
            [self.teacher.get_submodule(name) for name in self.layers[block.name]],
            lambda: walk.run(block, "quantized", inputs, index),
            lambda: walk.run(block, "float", walk.inputs(block, "float", index), index),
        )

    @torch.no_grad()
    def _score(self) -> Tensor:
        """Return the block's loss over some of the sequences, without dropping."""
        index = slice(0, min(_SCORED_SEQUENCES, self.walk.store.num_sequences))
        return self._loss(self.walk.inputs(self.block, "quantized", index), index)


def _choose_together(observer: Observer) -> tuple[Tensor, Tensor]:
    """Return scale and zero point for the values of all processes, computed by the first."""
    merged = merge_observers(distributed.gather(observer))
    return distributed.gather(merged.calculate_qparams())[0]
