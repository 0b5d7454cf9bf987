"""Command `ptq4vm matte`."""

from pathlib import Path

from jsonargparse import ArgumentParser
from rich.progress import ProgressColumn, Task
from rich.text import Text

from ptq4vm.cli.common import (
    COLUMNS,
    add_network_option,
    add_ratio_option,
    add_runtime_options,
    console,
    open_model,
    pick_device,
    print_device,
)
from ptq4vm.deploy import ExportedNetwork, matte_video
from ptq4vm.deploy.runner import check_paths
from ptq4vm.reporting import SteadyProgress
from ptq4vm.video import CutList, open_frames


class _FramesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Render the speed of the last seconds, or of the whole task when it is finished."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} fps")


def run_matte(args: list[str]) -> None:
    """Compute mattes of a video and write the requested files."""
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
    parser.add_argument(
        "--alpha",
        type=Path | None,
        default=None,
        help="write alpha to .mp4, .mkv, .webm or a folder of PNG",
    )
    parser.add_argument(
        "--foreground", type=Path | None, default=None, help="write the foreground, likewise"
    )
    parser.add_argument(
        "--composite",
        type=Path | None,
        default=None,
        help="write the composite over the background, likewise",
    )
    parser.add_argument(
        "--cutout",
        type=Path | None,
        default=None,
        help="write foreground and alpha to one .mov (ProRes 4444), .webm (VP9) or folder of PNG",
    )
    parser.add_argument(
        "--sound", type=bool, default=True, help="copy a video's sound to composite and cutout"
    )
    parser.add_argument(
        "--cuts",
        type=str,
        default="auto",
        help="cuts between shots, at which the recurrent state is reset: auto (detected in the "
        "frames), off, or a file with a frame number (from 0) or a time (12.5, 1:02.5) per line",
    )
    parser.add_argument(
        "--background", type=str, default="green", help="a colour, an image or a video"
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
    config = parser.parse_args(args)
    background = Path(config.background) if Path(config.background).exists() else config.background
    targets = {name: config[name] for name in ("alpha", "composite", "foreground", "cutout")}
    check_paths(config.input, targets, background)
    open_frames(config.input)
    if config.cuts not in ("auto", "off"):
        CutList.read(Path(config.cuts))  # fails before the network is loaded
    network = open_model(config)
    if not isinstance(network, ExportedNetwork):
        device = pick_device(config.device)
        print_device(device)
        network.to(device)
    notes: list[str] = []
    with SteadyProgress(*COLUMNS, _FramesPerSecond(), console=console) as progress:
        task = progress.add_task("matting", total=None)
        report = matte_video(
            network,
            config.input,
            config.alpha,
            config.composite,
            background,
            config.foreground,
            config.downsample_ratio,
            lambda done, total: progress.update(task, completed=done, total=total),
            config.cutout,
            config.sound,
            config.cuts,
            config.strict,
            notes.append,
        )
    found = " found" if config.cuts == "auto" else ""
    cuts = (
        ""
        if config.cuts == "off"
        else f", {len(report.cuts)} cut{'s' * (len(report.cuts) != 1)}{found}"
    )
    console.print(f"{report.frames} frames{cuts}", highlight=False)
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
