"""What a run has to show: tables, metrics.json and pictures."""

from ptq4vm.reporting.bars import LayerBar, draw_sensitivity
from ptq4vm.reporting.pictures import Strip, draw_strips
from ptq4vm.reporting.tables import ResultRow, markdown_table, render_table, write_metrics
from ptq4vm.reporting.usage import measured

__all__ = [
    "LayerBar",
    "ResultRow",
    "Strip",
    "draw_sensitivity",
    "draw_strips",
    "markdown_table",
    "measured",
    "render_table",
    "write_metrics",
]
