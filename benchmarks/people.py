"""Benchmark of the distance of quantized networks to the float network on videos without alpha.

For every clip, each network mattes all frames with its own recurrent state, at a longer side of 512
pixels. Reported are, as means over the clips:

* MAD ×10³ and dtSSD ×10² to the float network's alpha,
* fog: the mean alpha ×10³ where the float network's is below 1/255,
* holes: the mean of 1 - alpha ×10³ where the float network's is above 254/255,
* the shares of pixels that are exactly 0 and 255 in 8 bits, in percent,
* MAD of two frames after a cold start, without a recurrent state, and of two frames that begin with
  the float network's own state, at every 15th frame; geometric means over clips and starts, since
  a few cold starts are larger by orders of magnitude.

The float network's own fog, holes and shares are in the first row. Clips of people on whom a
network was calibrated say little; give a folder of others.

    python benchmarks/people.py --videos ROOT/other_people --models runs/w8a8 runs/w4a4
"""

import argparse
import statistics
from collections.abc import Mapping
from itertools import chain
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
from ptq4vm.types import RecurrentState

CONSOLE = Console(highlight=False)
EVERY = 15
"""Frames from one start to the next: enough for the recurrent state to settle."""
LEAST = 1e-3
"""Smallest MAD ×10³ in a geometric mean."""


class Distance(NamedTuple):
    """Distance of a network's mattes to the float network's on one clip, or their mean."""

    mad: float
    dtssd: float
    fog: float
    holes: float
    zeros: float
    ones: float


class Start(NamedTuple):
    """Frames, (1, 2, 3, H, W), the state before them, and the float network's alpha of them."""

    frames: Tensor
    state: RecurrentState | None
    alpha: Tensor

    def error(self, network: MattingModel) -> float:
        """Return a network's MAD."""
        return float(mad(network.unroll(self.frames, self.state).pha[0], self.alpha).mean())


class Starts(NamedTuple):
    """MAD after each start of one clip, or of all."""

    cold: list[float]
    settled: list[float]

    def means(self) -> dict[str, float | None]:
        """Return the geometric means; None of no starts."""
        return {
            name: statistics.geometric_mean(max(one, LEAST) for one in found) if found else None
            for name, found in self._asdict().items()
        }


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
    clips = {
        name: {key: {**whole._asdict(), **starts.means()} for key, (whole, starts) in clip.items()}
        for name, clip in zip(source.names, found, strict=True)
    }
    means = {name: mean([clip[name] for clip in found]) for name in networks}
    write_json(args.output / "people.json", {"mean": means, "clips": clips})
    CONSOLE.print(table(means), soft_wrap=True)


@torch.inference_mode()
def compare(
    source: VideoSource, index: int, networks: dict[str, MattingModel]
) -> dict[str, tuple[Distance, Starts]]:
    """Matte a clip by every network; the first one is the float network."""
    src = read(source, index)
    mattes = {name: network.unroll(src[None]).pha[0] for name, network in networks.items()}
    alpha, reference = next(iter(mattes.values())), next(iter(networks.values()))
    states, cold = states_before(reference, src), dict.fromkeys(range(0, len(src) - 1, EVERY))
    begun = [begin(reference, src, one) for one in (cold, states)]
    return {
        name: (
            distance(mattes[name], alpha),
            Starts(*([start.error(network) for start in starts] for starts in begun)),
        )
        for name, network in networks.items()
    }


def read(source: VideoSource, index: int, count: int | None = None) -> Tensor:
    """Return the first frames of a clip, or all, (T, 3, H, W), at the size to be matted."""
    frames = source.num_frames(index)
    src = source.read(index, 0, frames if count is None else min(count, frames)).src
    return cover_crop_clip(src, working_size(*src.shape[-2:]))


def states_before(network: MattingModel, src: Tensor) -> dict[int, RecurrentState]:
    """Return the states of a network before every start but the first."""
    states: dict[int, RecurrentState] = {}
    state = network.initial_state(src[:1])
    for start in range(EVERY, len(src) - 1, EVERY):
        states[start] = state = network.unroll(src[None, start - EVERY : start], state).state
    return states


def begin(
    reference: MattingModel, src: Tensor, states: Mapping[int, RecurrentState | None]
) -> list[Start]:
    """Return two frames from every start, with these states and the float network's alpha."""
    starts = [(src[None, start : start + 2], state) for start, state in states.items()]
    return [Start(*start, reference.unroll(*start).pha[0]) for start in starts]


def mean(found: list[tuple[Distance, Starts]]) -> dict[str, float | None]:
    """Return the means over clips, and over the starts of all clips."""
    wholes, starts = zip(*found, strict=True)
    whole = Distance(*map(statistics.fmean, zip(*wholes, strict=True)))
    together = Starts(*(list(chain(*one)) for one in zip(*starts, strict=True)))
    return {**whole._asdict(), **together.means()}


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


def table(means: dict[str, dict[str, float | None]]) -> str:
    """Return the means as a table in Markdown."""
    headings = ["network", "", "", "MAD to float", "dtSSD to float", "fog ×10³", "holes ×10³"]
    headings += ["% at 0", "% at 255", "cold", "settled"]
    body = [[name, "", "", *map(format_number, one.values())] for name, one in means.items()]
    return markdown_cells((headings, body))


if __name__ == "__main__":
    main()
