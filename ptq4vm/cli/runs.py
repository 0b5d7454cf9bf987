"""Commands `ptq4vm report`, `ptq4vm runs` and `ptq4vm compare`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import console
from ptq4vm.pipeline import report_run
from ptq4vm.reporting import compare_runs, list_runs, read_run


def run_report(args: list[str]) -> None:
    """Write the HTML report of a finished run."""
    parser = ArgumentParser(prog="ptq4vm report", description=report_run.__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="HTML file; by default RUN/report.html"
    )
    config = parser.parse_args(args)
    path, problem = report_run(config.run, config.out)
    if problem is not None:
        console.print(
            f"no frames   {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    console.print(f"report      {path}", highlight=False, soft_wrap=True)


def run_runs(args: list[str]) -> None:
    """List the runs below a folder."""
    parser = ArgumentParser(
        prog="ptq4vm runs", description="List the runs of `ptq4vm quantize` below a folder."
    )
    parser.add_argument("folder", type=Path, help="folder to search, e.g. runs")
    list_runs(parser.parse_args(args).folder, console)


def run_compare(args: list[str]) -> None:
    """Print a table that compares finished runs."""
    parser = ArgumentParser(
        prog="ptq4vm compare", description="Compare finished runs in one table."
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument(
        "--json", type=Path | None, default=None, help="write the comparison to this file"
    )
    config = parser.parse_args(args)
    compare_runs([read_run(folder) for folder in config.runs], console, config.json)
