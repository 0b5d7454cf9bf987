"""Deployment: video matting, export to ONNX runtimes, parity checks and speed measurements."""

from ptq4vm.deploy.benchmark import Speed, measure_speed, open_network
from ptq4vm.deploy.checked_export import Exported, export, require_job
from ptq4vm.deploy.description import METADATA, is_exported
from ptq4vm.deploy.exported import ExportedNetwork
from ptq4vm.deploy.frames import MatteFrame, composite_over
from ptq4vm.deploy.onnx import ask_for_exact_sums, export_onnx, require_exportable
from ptq4vm.deploy.options import OPSETS, ExportOptions
from ptq4vm.deploy.outputs import MatteOutputs
from ptq4vm.deploy.parity import Parity, measure_parity
from ptq4vm.deploy.ratio import Ratio, auto_downsample_ratio, choose_downsample_ratio
from ptq4vm.deploy.runner import MatteReport, matte, matte_video, write_mattes
from ptq4vm.deploy.runtimes import RUNTIMES, Runtime
from ptq4vm.deploy.states import state_names
from ptq4vm.deploy.targets import TARGETS, Target, TargetName, find_target, require_executable

__all__ = [
    "METADATA",
    "OPSETS",
    "RUNTIMES",
    "TARGETS",
    "ExportOptions",
    "Exported",
    "ExportedNetwork",
    "MatteFrame",
    "MatteOutputs",
    "MatteReport",
    "Parity",
    "Ratio",
    "Runtime",
    "Speed",
    "Target",
    "TargetName",
    "ask_for_exact_sums",
    "auto_downsample_ratio",
    "choose_downsample_ratio",
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
    "state_names",
    "write_mattes",
]
