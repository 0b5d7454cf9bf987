"""Complete jobs: quantization of a float network with table and report, and evaluation."""

from ptq4vm.pipeline.adapt import adapt
from ptq4vm.pipeline.evaluation import evaluate
from ptq4vm.pipeline.quantize import QuantizeResult, quantize
from ptq4vm.pipeline.report import report_run
from ptq4vm.pipeline.rows import DEFAULT_ROWS, Method
from ptq4vm.pipeline.settings import QuantizeSettings

__all__ = [
    "DEFAULT_ROWS",
    "Method",
    "QuantizeResult",
    "QuantizeSettings",
    "adapt",
    "evaluate",
    "quantize",
    "report_run",
]
