"""Benchmark of the error of quantized models over long clips.

Computes the MAD to the float network's alpha for every frame, with the recurrent state fed back,
and averages it over the videos. Videos shorter than `--frames` are played forward and backward in
turn. A model does not drift if the mean over the last third of its curve is within 10 % of the
second third; the first third covers the warm-up of the recurrent state. Writes drift.png and
drift.json.

    python benchmarks/drift.py --videos ROOT/user_clips --names book walk \\
        --models runs/w8a8 runs/w4a4 --frames 300
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ptq4vm.atomic_io import written_whole
from ptq4vm.data import VideoSource
from ptq4vm.data.files import ping_pong
from ptq4vm.graph import load_model
from ptq4vm.metrics import mad
from ptq4vm.models.base import MattingModel

CONSOLE = Console(highlight=False)


def main() -> None:
    """Run the float network and the quantized models on every video and report the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--names", nargs="+", default=["*"], help="glob patterns of video names")
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, help="run folders or quantized checkpoints"
    )
    parser.add_argument("--network", default="rvm_mobilenetv3", help="registered float network")
    parser.add_argument("--frames", type=int, default=300, help="frames per video")
    parser.add_argument("--height", type=int, default=288, help="frame height in pixels")
    parser.add_argument("--width", type=int, default=512, help="frame width in pixels")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/drift"),
        help="folder for drift.png and drift.json",
    )
    args = parser.parse_args()
    source = VideoSource(args.videos, (args.height, args.width), args.names)
    networks = {
        "float": load_model(args.network),
        **{str(model): load_model(model) for model in args.models},
    }
    curves = torch.stack(
        [measure(source, index, networks, args.frames) for index in range(len(source))]
    ).mean(0)
    report(dict(zip(list(networks)[1:], curves.tolist(), strict=True)), source.names, args.output)


@torch.inference_mode()
def measure(
    source: VideoSource, index: int, networks: dict[str, MattingModel], frames: int
) -> Tensor:
    """Compute the MAD (x10^3) to the first network's alpha, shape (networks - 1, frames)."""
    clip = source.read(index, 0, source.num_frames(index)).src
    states = [network.initial_state(clip[:1]) for network in networks.values()]
    errors = []
    for t in track(range(frames), source.names[index]):
        frame = clip[ping_pong(t, len(clip))][None]
        outputs = [
            network.forward_frame(frame, state)
            for network, state in zip(networks.values(), states, strict=True)
        ]
        states = [output.state for output in outputs]
        target, *others = (output.pha for output in outputs)
        errors.append(torch.cat([mad(pha, target) for pha in others]))
    return torch.stack(errors, 1)


def report(curves: dict[str, list[float]], videos: list[str], folder: Path) -> None:
    """Print a summary of the curves and write drift.json and drift.png."""
    thirds = {
        name: [float(part.mean()) for part in torch.tensor(curve).chunk(3)]
        for name, curve in curves.items()
    }
    for name, (_, second, last) in thirds.items():
        CONSOLE.print(
            f"{name}: MAD to float {second:.3f}, then {last:.3f}: {last / second - 1:+.1%}"
        )
    with written_whole(folder / "drift.json") as part:
        part.write_text(
            json.dumps({"videos": videos, "thirds": thirds, "mad_to_float": curves}, indent=1)
        )
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve, label=name, linewidth=1)
    axes.set(xlabel="frame", ylabel="MAD ×10³ to float", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    with written_whole(folder / "drift.png") as part:
        FigureCanvasAgg(figure).print_png(part)
    CONSOLE.print(f"Written to {folder}")


if __name__ == "__main__":
    main()
