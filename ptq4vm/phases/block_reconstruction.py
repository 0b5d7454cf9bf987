"""BIQ: block-wise initial quantization, as a Lightning fit with one epoch for each block."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from ptq4vm import distributed
from ptq4vm.calibration.losses import cosine, reconstruction_loss
from ptq4vm.data.sources import derive_seed
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import (
    SequenceStore,
    block_layers,
    partition,
    quantize_network,
    quantized_layers,
    run_block,
)
from ptq4vm.models import create_model
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.phases.base import PTQPhase, Scoring, learning_settings
from ptq4vm.phases.checkpoints import reached
from ptq4vm.quantizers import (
    Observer,
    QConfig,
    QuantizedLayer,
    QuantizedLinear,
    activation_quantizers,
    annealed_beta,
    cached_weights,
    dropping,
    merge_observers,
    observing,
    random_mask,
    rounding_regularizer,
)

_SCORED_SEQUENCES = 2
"""Enough to see in the log what a block's rounding costs; three such scores a block are no learning."""


class BlockReconstructionModule(PTQPhase):
    """Quantizes a network block by block against the float network's own blocks.

    Each epoch is one block: its activation ranges are found on what the already quantized blocks give it, then the
    rounding of its weights (AdaRound) and its activation scales are learned, then its roundings are made hard. What
    flows between blocks is kept, so every block runs once over the calibration set. Each step takes
    ``batch_size`` sequences of the datamodule; the steps of a block are the datamodule's ``steps_per_epoch``.

    Known methods are settings: round to nearest (``learn_rounding`` and ``learn_scales`` false), AdaRound
    (``granularity: layer``, no scales, no dropping), BRECQ (no dropping), QDrop (the default).

    Args:
        network: the registry's name of the network.
        weights: ``official``, or a file with the float network's weights.
        downsample_ratio: the network's body works at this fraction of the frame's size.
        qconfig: what is quantized how.
        granularity: reconstruct the outputs of blocks, or of every single layer (all layers of a block side by side,
            each on what reaches it, without gradients between them).
        learn_rounding: learn the rounding of the weights, else round to nearest.
        learn_scales: learn scales and zero points of the activations.
        drop_prob: QDrop: share of values that stay float, in the block's input and at each quantizer inside it.
        rounding_lr: Adam's learning rate for the roundings' V.
        scale_lr: its learning rate for log scales and zero points, with cosine decay within each block.
        rounding_weight: weight of AdaRound's regulariser.
        warmup: share of a block's steps before the regulariser sets in.
        output: where the quantized checkpoint goes.
        flow: optical flow of the calibration set (used by the next phase; made once).
        flow_weights: torchvision RAFT weights, for ``flow: raft``.
        scoring: ``float`` or ``png8`` metrics.
    """

    def __init__(
        self,
        network: str = "rvm_mobilenetv3",
        weights: str = "official",
        downsample_ratio: float = 1.0,
        qconfig: QConfig = QConfig(),  # noqa: B008  (frozen)
        granularity: Literal["block", "layer"] = "block",
        learn_rounding: bool = True,
        learn_scales: bool = True,
        drop_prob: float = 0.5,
        rounding_lr: float = 1e-2,
        scale_lr: float = 1e-3,
        rounding_weight: float = 0.01,
        warmup: float = 0.2,
        output: Path | None = None,
        flow: Literal["dis", "raft"] = "dis",
        flow_weights: Path | None = None,
        scoring: Scoring = "float",
    ) -> None:
        settings = learning_settings(locals())
        if granularity == "layer" and qconfig.placement != "deploy":
            raise PTQ4VMError(
                f"Expected granularity block with placement {qconfig.placement}, got layer: a layer's output is "
                "compared before its activation function, which that placement takes into the layer. Choose "
                "placement deploy."
            )
        teacher = create_model(network, weights=weights, downsample_ratio=downsample_ratio)
        quantized = quantize_network(teacher, qconfig)
        super().__init__(quantized, qconfig, teacher, output, flow, flow_weights, scoring, settings)
        self.granularity = granularity
        self.learn_rounding, self.learn_scales = learn_rounding, learn_scales
        self.drop_prob = drop_prob
        self.rounding_lr, self.scale_lr = rounding_lr, scale_lr
        self.rounding_weight, self.warmup = rounding_weight, warmup
        self.blocks = partition(self.network)
        layers = quantized_layers(self.network)
        self.layers: dict[str, dict[str, QuantizedLayer]] = {
            block.name: {name: layers[name] for name in block_layers(self.network, block)}
            for block in self.blocks
        }
        """The quantized layers, by block and name."""
        self.learned_blocks = tuple(block for block in self.blocks if self.layers[block.name])
        for layer in layers.values():
            for parameter in (p for one in layer.activation_quantizers for p in one.parameters()):
                parameter.requires_grad_(parameter.requires_grad and learn_scales)
            if learn_rounding:
                layer.weight_quantizer.start_rounding(layer.weight)
        # Round to nearest learns nothing, but Lightning wants a parameter that does.
        self.unused = None if self.learns else nn.Parameter(torch.zeros(()))
        self._store: SequenceStore | None = None
        self._walked = 0

    epoch_is = "block"
    keeps_sequences = True

    # ---- the fit ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:  # noqa: D102
        super().setup(stage)
        if stage == "fit":
            self.trainer.fit_loop.max_epochs = self._max_epochs(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Blocks that were learned have hard roundings."""
        super().on_load_checkpoint(checkpoint)
        for block in self.learned_blocks[: reached(checkpoint)[0]]:
            self._set_mode(block, "hard")

    def _max_epochs(self, trainer: L.Trainer) -> int:
        return len(self.learned_blocks)

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        layers = quantized_layers(self.network).values()
        roundings = [layer.weight_quantizer.rounding for layer in layers if self.learn_rounding]
        scales = [
            p
            for q in activation_quantizers(self.network)
            for p in q.parameters()
            if p.requires_grad
        ]
        groups = [
            {"params": roundings, "lr": self.rounding_lr, "name": "rounding"},
            {"params": scales, "lr": self.scale_lr, "name": "scales"},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]] or [self.unused])  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        """Begin the walk through the network; after a restart, the finished blocks are walked through again."""
        super().on_fit_start()
        clips = self.calibration.calibration_set
        share = distributed.share(range(len(clips)))
        folder = Path(self.trainer.default_root_dir)
        self._store, self._walked = SequenceStore(folder, len(share), self.device), 0
        for place, index in enumerate(share):
            for side in ("float", "quantized"):
                self._store.write(f"{side}/src", slice(place, place + 1), clips[index].src[None])

    def teardown(self, stage: str) -> None:
        """Give the disk back."""
        super().teardown(stage)
        if self._store is not None:
            self._store.close()
            self._store = None

    @property
    def learns(self) -> bool:
        """False for round to nearest."""
        return self.learn_rounding or self.learn_scales

    @property
    def block(self) -> Block:
        """The block of the current epoch."""
        return self.learned_blocks[self.current_epoch]

    def on_train_start(self) -> None:
        """Take up the block that a checkpoint was written within: its epoch isn't begun again."""
        epoch, batches = self.calibration.reached
        if not self.trainer.fit_loop.restarted_mid_epoch or epoch == len(self.learned_blocks):
            return
        if batches == 0:
            self.on_train_epoch_start()
            return
        self._reach_block()  # its ranges were found, and since then learned
        self._set_mode(self.block, "soft")

    def on_train_epoch_start(self) -> None:
        """Bring the walk to the current block, compute its float outputs, find its ranges."""
        self._reach_block()
        observed = observing(self._quantizers(self.block), _choose_together)
        with (
            self._mode(self.block, "nearest"),
            torch.no_grad(),
            observed,
            cached_weights(self._layers(self.block)),
        ):
            for index in range(self.store.num_sequences):
                self._run(
                    self.block,
                    self.network,
                    self._inputs(self.block, "quantized", slice(index, index + 1)),
                )
        self.log("biq/nearest", self._score("nearest"), sync_dist=True)
        self._set_mode(self.block, "soft")

    def _reach_block(self) -> None:
        for block in self.blocks[self._walked :]:
            if block is self.block:
                break
            self._set_mode(block, "hard")
            if (
                f"float/{block.outputs[0]}" not in self.store
            ):  # a block that was learned has been walked in float
                self._walk(block, "float", self.teacher)
            self._walk(block, "quantized", self.network)
            self._forget_after(block)
        self._walked = self.blocks.index(self.block)
        self._walk(self.block, "float", self.teacher)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Cosine decay of the scales' learning rate within the block."""
        # By step and process: a fit that goes on after a kill must drop the same values, and no two processes should.
        seed = derive_seed(derive_seed(self.calibration.seed, self.global_step), distributed.rank())
        torch.manual_seed(seed)
        for group in self.trainer.optimizers[0].param_groups:
            if group.get("name") == "scales":
                group["lr"] = self.scale_lr * cosine(self._progress(batch_idx))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One step on the current block, for the sequences with these numbers, (B,)."""
        if self.unused is not None:
            return self.unused * 1.0
        # Their places in this process's share.
        index = batch.cpu() // distributed.count()
        inputs = self._inputs(self.block, "quantized", index)
        if self.drop_prob > 0.0:
            floats = self._inputs(self.block, "float", index)
            inputs = [_mix(q, f, self.drop_prob) for q, f in zip(inputs, floats, strict=True)]
        with (
            dropping(self._quantizers(self.block), self.drop_prob),
            cached_weights(self._layers(self.block)),
        ):
            reconstruction = self._reconstruction(inputs, index)
        loss = reconstruction
        beta = annealed_beta(self._progress(batch_idx), self.warmup)
        if self.learn_rounding and beta is not None:
            roundings = [layer.weight_quantizer.rounding for layer in self._layers(self.block)]
            penalty = torch.stack(
                [rounding_regularizer(v, beta) for v in roundings if v is not None]
            ).sum()
            loss = loss + self.rounding_weight * penalty
            self.log("biq/round", penalty)
        self.log("biq/rec", reconstruction, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Make the block's roundings hard, and log what that cost."""
        self.log("biq/block", float(self.current_epoch), sync_dist=True)
        self.log("biq/soft", self._score("soft"), sync_dist=True)
        self.log("biq/hard", self._score("hard"), sync_dist=True)
        self._set_mode(self.block, "hard")

    def on_fit_end(self) -> None:
        """Put every weight on its grid and write the quantized checkpoint."""
        for layer in quantized_layers(self.network).values():
            layer.fix_()
        self._save({"phase": "block_reconstruction"})

    # ---- the pieces -------------------------------------------------------------------------------------------

    @property
    def store(self) -> SequenceStore:
        """What flows between blocks; there while a fit runs."""
        if self._store is None:
            raise RuntimeError("the store exists only during a fit")
        return self._store

    def _layers(self, block: Block) -> list[QuantizedLayer]:
        return list(self.layers[block.name].values())

    def _quantizers(self, block: Block) -> list[Any]:
        return [one for layer in self._layers(block) for one in layer.activation_quantizers]

    def _progress(self, batch_idx: int) -> float:
        return batch_idx / max(1, int(self.trainer.num_training_batches))

    def _inputs(self, block: Block, side: str, index: Tensor | slice) -> list[Tensor]:
        return [self.store.read(f"{side}/{name}", index) for name in block.inputs]

    def _targets(self, index: Tensor | slice) -> tuple[Tensor, ...]:
        names = (*self.block.outputs, *_state_name(self.block))
        return tuple(self.store.read(f"float/{name}", index) for name in names)

    def _run(self, block: Block, network: MattingModel, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """The block of this name in ``network``, from a fresh state."""
        twin = next(other for other in network.blocks() if other.name == block.name)
        state = None
        if block.state is not None:
            height, width = self.store.read("float/src", slice(0, 1)).shape[-2:]
            like = inputs[0].new_zeros(len(inputs[0]), 3, height, width)
            state = network.initial_state(like)[block.state]
        return run_block(twin, inputs, state)

    @torch.no_grad()
    def _walk(self, block: Block, side: str, network: MattingModel) -> None:
        """Run a block over all sequences and keep its outputs."""
        names = (*block.outputs, *_state_name(block))
        count = self.store.num_sequences
        if side == "float" and not self.learns:  # then nothing but the scores compares with them
            count = min(_SCORED_SEQUENCES, count)
        at_once = (
            self.calibration.batch_size
        )  # so many fit, with their gradients, when the block is learned
        with cached_weights(self._layers(block)):
            for start in range(0, count, at_once):
                part = slice(start, min(start + at_once, count))
                outputs = self._run(block, network, self._inputs(block, side, part))
                for name, value in zip(names, outputs, strict=True):
                    self.store.write(f"{side}/{name}", part, value)

    def _forget_after(self, block: Block) -> None:
        """Drop what no later block reads."""
        position = self.blocks.index(block)
        needed = {name for later in self.blocks[position + 1 :] for name in later.inputs} | {"src"}
        written = {
            name
            for done in self.blocks[: position + 1]
            for name in (*done.outputs, *_state_name(done))
        }
        for name in written - needed:
            self.store.drop(f"float/{name}")
            self.store.drop(f"quantized/{name}")

    def _reconstruction(self, inputs: list[Tensor], index: Tensor | slice) -> Tensor:
        if self.granularity == "block":
            return reconstruction_loss(
                self._run(self.block, self.network, inputs), self._targets(index)
            )
        names = list(self.layers[self.block.name])
        with torch.no_grad(), _recording(self.teacher, names, detach=False) as targets:
            self._run(self.block, self.teacher, self._inputs(self.block, "float", index))
        with _recording(self.network, names, detach=True) as outputs:
            self._run(self.block, self.network, inputs)
        # As (N, 1, C, h, w), the form of the blocks' outputs.
        return reconstruction_loss(
            tuple(y[:, None] for y in outputs), tuple(y[:, None] for y in targets)
        )

    @torch.no_grad()
    def _score(self, mode: str) -> Tensor:
        """Block loss with these roundings, without dropping, over some of the sequences."""
        index = slice(0, min(_SCORED_SEQUENCES, self.store.num_sequences))
        with self._mode(self.block, mode):
            return self._reconstruction(self._inputs(self.block, "quantized", index), index)

    def _set_mode(self, block: Block, mode: str) -> None:
        for layer in self._layers(block):
            layer.weight_quantizer.mode = mode if self.learn_rounding else "nearest"

    @contextmanager
    def _mode(self, block: Block, mode: str) -> Iterator[None]:
        layers = self._layers(block)
        before = [layer.weight_quantizer.mode for layer in layers]
        self._set_mode(block, mode)
        try:
            yield
        finally:
            for layer, was in zip(layers, before, strict=True):
                layer.weight_quantizer.mode = was


def _choose_together(observer: Observer) -> tuple[Tensor, Tensor]:
    """Scale and zero point for what all processes saw, as the first works them out."""
    merged = merge_observers(distributed.gather(observer))
    return distributed.gather(merged.calculate_qparams())[0]


def _state_name(block: Block) -> tuple[str, ...]:
    return () if block.state is None else (f"state{block.state}",)


def _mix(quantized: Tensor, floats: Tensor, drop_prob: float) -> Tensor:
    """QDrop's mixing of the two inputs."""
    return torch.lerp(quantized, floats, random_mask(quantized, drop_prob).to(quantized.dtype))


def _channels_second(layer: nn.Module, y: Tensor) -> Tensor:
    return y.movedim(-1, 1) if isinstance(layer, nn.Linear | QuantizedLinear) else y


@contextmanager
def _recording(network: MattingModel, names: list[str], *, detach: bool) -> Iterator[list[Tensor]]:
    """Collect the outputs of these layers; with ``detach`` no gradient flows back into what a layer reads."""
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        for name in names:
            layer = network.get_submodule(name)
            stack.callback(
                layer.register_forward_hook(
                    lambda m, _x, y: outputs.append(_channels_second(m, y))
                ).remove
            )
            if detach:
                cut = layer.register_forward_pre_hook(
                    lambda _m, x: tuple(value.detach() for value in x)
                )
                stack.callback(cut.remove)
        yield outputs
