"""Networks as files that other runtimes execute."""

from ptq4vm.export.onnx import export_float, state_names

__all__ = ["export_float", "state_names"]
