"""`ptq4vm export`."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import COLUMNS, console, parse_size
from ptq4vm.deploy import export_checked
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_model
from ptq4vm.reporting import SteadyProgress


def run_export(args: list[str]) -> None:
    """Write a network as an ONNX graph and check it in its runtime."""
    parser = ArgumentParser(
        prog="ptq4vm export",
        description="Write a network as an ONNX graph of integers, play a clip through it in its runtime, and keep the "
        "file only if the mattes are the same.",
    )
    parser.add_argument("model", help="a network's name, a weights file, a quantized checkpoint or a run folder")
    parser.add_argument("--size", type=str, required=True, help="height x width of the frames, e.g. 288x512")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--bits", type=Literal[32] | None, default=None, help="32: insist on a float model")
    parser.add_argument("--network", type=str, default="rvm_mobilenetv3", help="what a file of float weights is of")
    parser.add_argument(
        "--downsample_ratio", type=float | None, default=None,
        help="baked in: the network works at this fraction of the frame's size; by default the model's own",
    )  # fmt: skip
    parser.add_function_arguments(
        export_checked, skip={"network", "height", "width", "path", "progress"}, as_group=False
    )
    config = parser.parse_args(args)
    network = load_model(config.model, config.network)
    if config.bits == 32 and getattr(network, "qconfig", None) is not None:
        raise PTQ4VMError(
            f"Expected a float model with --bits 32, got {config.model}. Name the network or its weights."
        )
    if config.downsample_ratio is not None:
        network.downsample_ratio = config.downsample_ratio
    chosen = ("target", "opset", "dynamic_size", "pack", "simulate", "state_bits", "clip", "frames", "tolerance")
    with SteadyProgress(*COLUMNS, console=console) as progress:
        task = progress.add_task("exporting", total=None)
        exported = export_checked(
            network, *parse_size(config.size), config.out, **{name: config[name] for name in chosen},
            progress=lambda done, total, what: progress.update(task, completed=done, total=total, description=what),
        )  # fmt: skip
    parity = exported.parity
    console.print(
        f"file        {exported.path}  ({exported.size_mb:.2f} MB)\n"
        f"executes    {exported.storage}\n"
        f"parity      mean |Δα| {parity.mean:.1e}, largest {parity.highest:.1e}, {100 * parity.share:.2f} % of pixels "
        f"more than 1/255 apart, over {parity.frames} frames in {exported.runtime}",
        highlight=False,
        soft_wrap=True,
    )
