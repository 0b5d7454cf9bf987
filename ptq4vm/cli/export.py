"""Command `ptq4vm export`."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import (
    COLUMNS,
    add_network_option,
    add_ratio_option,
    add_size_option,
    built,
    console,
    parse_size,
)
from ptq4vm.deploy import ExportOptions, choose_downsample_ratio, export, require_job
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_model
from ptq4vm.reporting import SteadyProgress


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ptq4vm export",
        description="Export a network as an ONNX graph of integers, run it on a clip in its "
        "runtime, and keep the file only if the mattes agree within the tolerance.",
    )
    parser.add_argument(
        "model", help="a network's name, a weights file, a quantized checkpoint or a run folder"
    )
    add_size_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file")
    parser.add_argument(
        "--bits",
        type=Literal[32] | None,
        default=None,
        help="32: fail unless the model is a float model",
    )
    add_network_option(parser)
    add_ratio_option(parser, "Fixed in the graph, also with a dynamic size.")
    parser.add_class_arguments(ExportOptions, as_group=False)
    skip: set[str | int] = {"network", "height", "width", "path", "options", "progress"}
    parser.add_function_arguments(export, skip=skip, as_group=False)
    return parser


def run_export(args: list[str]) -> None:
    """Write a network as an ONNX graph and check it in its runtime."""
    config = _make_parser().parse_args(args)
    size, options = parse_size(config.size), built(ExportOptions, config)
    # Checks without the network come first, since loading it takes seconds.
    require_job(*size, config.out, options, config.clip, config.frames)
    network = load_model(config.model, config.network)
    if config.bits == 32 and network.qconfig is not None:
        raise PTQ4VMError(
            f"Expected a float model with --bits 32, got {config.model}. Name the network or its "
            "weights."
        )
    network.downsample_ratio = choose_downsample_ratio(network, config.downsample_ratio, *size)
    with SteadyProgress(*COLUMNS, console=console) as progress:
        task = progress.add_task("exporting", total=None)
        exported = export(
            network,
            *size,
            config.out,
            options,
            config.clip,
            config.frames,
            config.tolerance,
            lambda done, total, what: progress.update(
                task, completed=done, total=total, description=what
            ),
        )
    parity = exported.parity
    console.print(
        f"file        {exported.path}  ({exported.size_mb:.2f} MB)\n"
        f"ratio       {network.downsample_ratio:.4g} of {config.size}, baked in\n"
        f"executes    {exported.storage}\n"
        f"parity      mean |Δα| {parity.mean:.1e}, largest {parity.highest:.1e}, "
        f"{100 * parity.share:.2f} % of pixels more than 1/255 apart, over {parity.frames} frames "
        f"in {exported.runtime}",
        highlight=False,
        soft_wrap=True,
    )
