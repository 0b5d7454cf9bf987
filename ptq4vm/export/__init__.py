"""Networks as files that other runtimes execute."""

from ptq4vm.export.onnx import METADATA, OPSETS, export_onnx, state_names
from ptq4vm.export.targets import TARGETS, Target, TargetName

__all__ = ["METADATA", "OPSETS", "TARGETS", "Target", "TargetName", "export_onnx", "state_names"]
