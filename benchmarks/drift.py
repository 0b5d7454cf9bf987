"""Benchmark of the error of quantized models over long clips.

Computes the MAD to the float network's alpha for every frame, with the recurrent state fed back,
and averages it over the videos. Videos shorter than `--frames` are played forward and backward in
turn. The summary compares two parts of the curve, their means over the same videos: the second and
the last third, since the first one covers the warm-up of the recurrent state. With `--cut`, each
video gives way to the next one after half of the frames, and the state is carried across the cut;
the second and the last quarter are then the same frames, before and behind a cut. A model does not
drift if the later mean is within 10 % of the earlier one. Writes drift.png and drift.json.

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
    parser.add_argument("--cut", action="store_true", help="change to the next video halfway")
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
        [measure(source, index, networks, args.frames, args.cut) for index in range(len(source))]
    ).mean(0)
    named = dict(zip(list(networks)[1:], curves.tolist(), strict=True))
    report(named, 4 if args.cut else 3, source.names, args.output)


@torch.inference_mode()
def measure(
    source: VideoSource, index: int, networks: dict[str, MattingModel], frames: int, cut: bool
) -> Tensor:
    """Compute the MAD (x10^3) to the first network's alpha, shape (networks - 1, frames)."""
    indices = [index, (index + 1) % len(source)] if cut else [index]
    clips = [source.read(one, 0, source.num_frames(one)).src for one in indices]
    order = [clip[ping_pong(t, len(clip))] for clip in clips for t in range(frames // len(clips))]
    states = [network.initial_state(order[0][None]) for network in networks.values()]
    errors = []
    for frame in track(order, source.names[index]):
        outputs = [
            network.forward_frame(frame[None], state)
            for network, state in zip(networks.values(), states, strict=True)
        ]
        states = [output.state for output in outputs]
        target, *others = (output.pha for output in outputs)
        errors.append(torch.cat([mad(pha, target) for pha in others]))
    return torch.stack(errors, 1)


def report(curves: dict[str, list[float]], count: int, videos: list[str], folder: Path) -> None:
    """Print a summary of the curves' parts, so many, and write drift.json and drift.png."""
    parts = {
        name: [float(part.mean()) for part in torch.tensor(curve).tensor_split(count)]
        for name, curve in curves.items()
    }
    for name, (_, second, *_, last) in parts.items():
        CONSOLE.print(
            f"{name}: MAD to float {second:.3f}, then {last:.3f}: {last / second - 1:+.1%}"
        )
    with written_whole(folder / "drift.json") as part:
        part.write_text(
            json.dumps({"videos": videos, "parts": parts, "mad_to_float": curves}, indent=1)
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
