"""Command `ptq4vm benchmark`."""

import platform
from pathlib import Path

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import (
    COLUMNS,
    add_network_option,
    add_ratio_option,
    add_size_option,
    console,
    parse_size,
)
from ptq4vm.deploy import measure_speed
from ptq4vm.reporting import SteadyProgress, speed_cells, write_speeds
from ptq4vm.reporting.tables import render_cells


def run_benchmark(args: list[str]) -> None:
    """Measure the speed of networks and print a table."""
    parser = ArgumentParser(
        prog="ptq4vm benchmark",
        description="Measure networks in alternation, each in its own process, on the CPU, so that "
        "ratios are reliable on a busy machine. The input is random frames.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        help="names, weights files, quantized checkpoints (simulated in torch), run folders or "
        "exported graphs, optionally with a runtime: graph.onnx@openvino; ratios are relative to "
        "the first",
    )
    add_size_option(parser)
    add_ratio_option(parser, "Exported graphs have a fixed ratio.")
    parser.add_argument(
        "--rounds", type=int, default=30, help="number of measurements of each network"
    )
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="threads of each network; by default all cores",
    )
    add_network_option(parser)
    parser.add_argument(
        "--json", type=Path | None, default=None, help="write the results to this file"
    )
    config = parser.parse_args(args)
    with SteadyProgress(*COLUMNS, console=console) as progress:
        task = progress.add_task("loading", total=None)
        speeds = measure_speed(
            config.models,
            *parse_size(config.size),
            config.downsample_ratio,
            config.rounds,
            config.threads,
            config.network,
            progress=lambda done, all: progress.update(
                task, completed=done, total=all, description="timing"
            ),
        )
    render_cells(speed_cells(speeds), console)
    if config.json is not None:
        settings = {
            name: config[name] for name in ("size", "downsample_ratio", "rounds", "threads")
        }
        write_speeds(config.json, speeds, {**settings, "machine": platform.machine()})
