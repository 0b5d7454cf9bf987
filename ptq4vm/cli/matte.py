"""Command `ptq4vm matte`."""

import dataclasses
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.progress import ProgressColumn, Task
from rich.text import Text

from ptq4vm.cli.common import (
    COLUMNS,
    add_network_option,
    add_ratio_option,
    add_runtime_options,
    built,
    console,
    open_model,
    pick_device,
    print_device,
)
from ptq4vm.deploy import MatteOutputs, write_mattes
from ptq4vm.reporting import SteadyProgress
from ptq4vm.video import CutList, open_frames


class _FramesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Render the speed of the last seconds, or of the whole task when it is finished."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} fps")


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ptq4vm matte", description="Compute the mattes of a video or a folder of frames."
    )
    parser.add_argument("input", type=Path, help="a video file, a folder of frames or an image")
    parser.add_argument(
        "--model",
        type=str,
        default="rvm_mobilenetv3",
        help="name, weights, checkpoint, run folder or graph",
    )
    add_network_option(parser)
    parser.add_class_arguments(MatteOutputs, as_group=False)
    parser.add_argument(
        "--cuts",
        type=str,
        default="auto",
        help="cuts between shots, at which the recurrent state is reset: auto (detected in the "
        "frames), off, or a file with a frame number (from 0) or a time (12.5, 1:02.5) per line",
    )
    add_ratio_option(parser, "An exported graph has a fixed ratio.")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at a damaged frame instead of repeating the previous one",
    )
    parser.add_argument(
        "--device",
        type=str | None,
        default=None,
        help="cpu, cuda, ...; by default an available accelerator",
    )
    add_runtime_options(parser)
    return parser


def run_matte(args: list[str]) -> None:
    """Compute mattes of a video and write the requested files."""
    config = _make_parser().parse_args(args)
    outputs = built(MatteOutputs, config)
    if Path(config.background).exists():
        outputs = dataclasses.replace(outputs, background=Path(config.background))
    # Checks without the network come first, since loading it takes seconds.
    outputs.check(config.input)
    reader = open_frames(config.input, config.strict)
    if config.cuts not in ("auto", "off"):
        CutList.read(Path(config.cuts))
    network = open_model(config)
    network.to(pick_device(config.device))
    print_device(network.runs_on)
    with SteadyProgress(*COLUMNS, _FramesPerSecond(), console=console) as progress:
        task = progress.add_task("matting", total=None)
        report = write_mattes(
            network,
            reader,
            outputs,
            config.downsample_ratio,
            config.cuts,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    found = " found" if config.cuts == "auto" else ""
    cuts = (
        ""
        if config.cuts == "off"
        else f", {len(report.cuts)} cut{'s' * (len(report.cuts) != 1)}{found}"
    )
    console.print(f"{report.frames} frames{cuts}", highlight=False)
    for note in reader.notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
