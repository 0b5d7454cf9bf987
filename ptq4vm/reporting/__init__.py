"""Result tables, charts, the HTML report and run folders."""

from ptq4vm.reporting.bars import LayerBar, draw_sensitivity
from ptq4vm.reporting.comparison import compare_runs, list_runs
from ptq4vm.reporting.pictures import Strip, draw_strips
from ptq4vm.reporting.progress import SteadyProgress, WorkBar
from ptq4vm.reporting.results import Cost, Fidelity, ResultRow, write_metrics
from ptq4vm.reporting.runs import read_run
from ptq4vm.reporting.speeds import speed_cells, write_speeds
from ptq4vm.reporting.tables import markdown_table, render_table
from ptq4vm.reporting.usage import measured

__all__ = [
    "Cost",
    "Fidelity",
    "LayerBar",
    "ResultRow",
    "SteadyProgress",
    "Strip",
    "WorkBar",
    "compare_runs",
    "draw_sensitivity",
    "draw_strips",
    "list_runs",
    "markdown_table",
    "measured",
    "read_run",
    "render_table",
    "speed_cells",
    "write_metrics",
    "write_speeds",
]
