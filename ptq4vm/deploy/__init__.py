"""Deployment: video matting, export to ONNX runtimes, parity checks and speed measurements."""

from ptq4vm.deploy.benchmark import Speed, measure_speed, open_network
from ptq4vm.deploy.checked_export import Exported, export, require_job
from ptq4vm.deploy.onnx import (
    METADATA,
    OPSETS,
    ask_for_exact_sums,
    export_onnx,
    require_exportable,
    require_options,
    state_names,
)
from ptq4vm.deploy.parity import Parity, measure_parity
from ptq4vm.deploy.runner import (
    MatteFrame,
    MatteReport,
    auto_downsample_ratio,
    composite_over,
    matte,
    matte_video,
)
from ptq4vm.deploy.runtimes import RUNTIMES, ExportedNetwork, Runtime, is_exported
from ptq4vm.deploy.targets import TARGETS, Target, TargetName, find_target, require_executable

__all__ = [
    "METADATA",
    "OPSETS",
    "RUNTIMES",
    "TARGETS",
    "Exported",
    "ExportedNetwork",
    "MatteFrame",
    "MatteReport",
    "Parity",
    "Runtime",
    "Speed",
    "Target",
    "TargetName",
    "ask_for_exact_sums",
    "auto_downsample_ratio",
    "composite_over",
    "export",
    "export_onnx",
    "find_target",
    "is_exported",
    "matte",
    "matte_video",
    "measure_parity",
    "measure_speed",
    "open_network",
    "require_executable",
    "require_exportable",
    "require_job",
    "require_options",
    "state_names",
]
