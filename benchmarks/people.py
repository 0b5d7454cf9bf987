"""Benchmark of the distance of quantized networks to the float network on videos without alpha.

For every clip, each network mattes all frames with its own recurrent state, at a longer side of 512
pixels. Reported are, as means over the clips:

* MAD ×10³ and dtSSD ×10² to the float network's alpha,
* fog: the mean alpha ×10³ where the float network's is below 1/255,
* holes: the mean of 1 - alpha ×10³ where the float network's is above 254/255,
* the shares of pixels that are exactly 0 and 255 in 8 bits, in percent.

The float network's own fog, holes and shares are in the first row. Clips of people on whom a
network was calibrated say little; give a folder of others.

    python benchmarks/people.py --videos ROOT/other_people --models runs/w8a8 runs/w4a4
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ptq4vm.atomic_io import write_json
from ptq4vm.data import VideoSource
from ptq4vm.data.evaluation import working_size
from ptq4vm.data.files import cover_crop_clip
from ptq4vm.graph import load_model
from ptq4vm.metrics import dtssd, mad
from ptq4vm.models.base import MattingModel
from ptq4vm.reporting.tables import format_number, markdown_cells

CONSOLE = Console(highlight=False)


class Distance(NamedTuple):
    """Distance of a network's mattes to the float network's on one clip, or their mean."""

    mad: float
    dtssd: float
    fog: float
    holes: float
    zeros: float
    ones: float


def main() -> None:
    """Compare the networks on every video, print a table and write people.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--names", nargs="+", default=["*"], help="glob patterns of video names")
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, help="run folders or quantized checkpoints"
    )
    parser.add_argument("--network", default="rvm_mobilenetv3", help="registered float network")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/people"), help="folder for people.json"
    )
    args = parser.parse_args()
    source = VideoSource(args.videos, names=args.names)
    networks = {
        "float": load_model(args.network),
        **{str(model): load_model(model) for model in args.models},
    }
    found = [
        compare(source, index, networks) for index in track(range(len(source)), console=CONSOLE)
    ]
    means = {
        name: Distance(*torch.tensor([clip[name] for clip in found]).mean(0).tolist())
        for name in networks
    }
    clips = {
        name: {key: one._asdict() for key, one in clip.items()}
        for name, clip in zip(source.names, found, strict=True)
    }
    means_plain = {key: one._asdict() for key, one in means.items()}
    write_json(args.output / "people.json", {"mean": means_plain, "clips": clips})
    CONSOLE.print(table(means), soft_wrap=True)


@torch.inference_mode()
def compare(
    source: VideoSource, index: int, networks: dict[str, MattingModel]
) -> dict[str, Distance]:
    """Matte a clip by every network; the first one is the float network."""
    src = source.read(index, 0, source.num_frames(index)).src
    src = cover_crop_clip(src, working_size(*src.shape[-2:]))
    mattes = {name: network.unroll(src[None]).pha[0] for name, network in networks.items()}
    reference = next(iter(mattes.values()))
    return {name: distance(pha, reference) for name, pha in mattes.items()}


def distance(pha: Tensor, reference: Tensor) -> Distance:
    """Return the distance of alpha to the float network's, both (T, 1, H, W)."""
    background, inside = reference < 1 / 255, reference > 254 / 255
    levels = (pha * 255).round()
    return Distance(
        float(mad(pha, reference).mean()),
        float(dtssd(pha, reference).mean()),
        float(1e3 * pha[background].mean()),
        float(1e3 * (1 - pha[inside]).mean()),
        float(100 * (levels == 0).float().mean()),
        float(100 * (levels == 255).float().mean()),
    )


def table(means: dict[str, Distance]) -> str:
    """Return the means as a table in Markdown."""
    headings = ["network", "", "", "MAD to float", "dtSSD to float", "fog ×10³", "holes ×10³"]
    headings += ["% at 0", "% at 255"]
    body = [[name, "", "", *map(format_number, one)] for name, one in means.items()]
    return markdown_cells((headings, body))


if __name__ == "__main__":
    main()
