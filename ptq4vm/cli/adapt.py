"""Command `ptq4vm adapt`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import console, print_device, trainer_device
from ptq4vm.cli.quantize_job import print_files
from ptq4vm.pipeline import adapt
from ptq4vm.pipeline.adapt import DEFAULT_STEPS
from ptq4vm.reporting import render_table


def run_adapt(args: list[str]) -> None:
    """Calibrate a quantized network on one clip and print the distances to float."""
    parser = ArgumentParser(
        prog="ptq4vm adapt",
        description="Calibrate a quantized network on the very clip that it is to matte, without "
        "labels: global calibration goes on from a finished checkpoint, on this clip alone. The "
        "result is for this clip and others of its scene; a killed run continues with the same "
        "command.",
        epilog="Then: ptq4vm matte CLIP --model OUTPUT --alpha alpha.mkv",
    )
    parser.add_argument("model", type=Path, help="quantized checkpoint, or run folder of one")
    parser.add_argument("clip", type=Path, help="a video file or a folder of frames")
    parser.add_argument("--output", type=Path, default=Path("runs/adapt"), help="the run folder")
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_STEPS, help="optimization steps, about a second each"
    )
    parser.add_argument(
        "--weights",
        type=str,
        default="official",
        help="the float network: official, or a file of float weights",
    )
    parser.add_argument(
        "--accelerator", type=str, default="auto", help="Lightning's accelerator, e.g. cpu or gpu"
    )
    config = parser.parse_args(args)
    print_device(trainer_device(config.accelerator))
    trainer = {"accelerator": config.accelerator}
    given = (config.model, config.clip, config.output, config.steps, config.weights)
    result = adapt(*given, trainer=trainer)
    render_table(result.rows, console)
    print_files(result)
