"""Graph passes, block partition and checkpoints of quantized networks."""

from ptq4vm.graph.capture import SequenceStore, run_block, run_blocks
from ptq4vm.graph.checkpoint import (
    is_quantized_checkpoint,
    load_quantized,
    read_header,
    require_calibrated,
    save_quantized,
)
from ptq4vm.graph.convert import (
    Cost,
    bits_label,
    network_cost,
    network_facts,
    quantize_network,
    quantized_layers,
)
from ptq4vm.graph.fold_bn import fold_batch_norm_
from ptq4vm.graph.loading import FINAL_CHECKPOINT, find_checkpoint, load_model
from ptq4vm.graph.partition import block_layers, partition
from ptq4vm.graph.trace import TracedLayer, trace

__all__ = [
    "FINAL_CHECKPOINT",
    "Cost",
    "SequenceStore",
    "TracedLayer",
    "bits_label",
    "block_layers",
    "find_checkpoint",
    "fold_batch_norm_",
    "is_quantized_checkpoint",
    "load_model",
    "load_quantized",
    "network_cost",
    "network_facts",
    "partition",
    "quantize_network",
    "quantized_layers",
    "read_header",
    "require_calibrated",
    "run_block",
    "run_blocks",
    "save_quantized",
    "trace",
]
