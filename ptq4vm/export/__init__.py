"""Networks as files that other runtimes execute."""

from ptq4vm.export.onnx import (
    METADATA,
    OPSETS,
    ask_for_exact_sums,
    export_onnx,
    require_exportable,
    require_options,
    state_names,
)
from ptq4vm.export.targets import TARGETS, Target, TargetName, find_target, require_executable

__all__ = [
    "METADATA",
    "OPSETS",
    "TARGETS",
    "Target",
    "TargetName",
    "ask_for_exact_sums",
    "export_onnx",
    "find_target",
    "require_executable",
    "require_exportable",
    "require_options",
    "state_names",
]
