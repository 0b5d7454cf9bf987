"""Benchmark of optical flow and its visibility mask against exact flow.

Scenes are the built-in clips, a cut-out person over photographs, and squares that move 6 to 12
pixels over a background, both with fine or coarse texture. Reported are the end-point error in
pixels where a point is visible in both frames, and the shares of pixels that pass the
forward-backward check, and the photometric one too, among those that are visible and those that
are uncovered. The latter should be 0.

    python benchmarks/flow.py
    python benchmarks/flow.py --raft raft_large
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from rich.console import Console
from rich.progress import track
from torch import Generator, Tensor
from torch.nn import functional as F

from ptq4vm.data.builtin import BuiltinSource
from ptq4vm.data.calibration import exact_visibility
from ptq4vm.flow import forward_backward_mask, photometric_mask
from ptq4vm.flow.providers import FlowPair, dis_pair
from ptq4vm.flow.raft import load_raft
from ptq4vm.graph import load_model
from ptq4vm.models import fetch_weights
from ptq4vm.reporting.tables import markdown_cells

HEADINGS = ["flow", "scene", "", "end-point error", "visible", "uncovered"]
HEADINGS += ["visible, both checks", "uncovered, both checks"]
SCENES = 4
SIZE = (144, 256)
SIDE, TOP, LEFT = 60, 40, 60
"""Side and place of the squares."""
FINE, COARSE = 4, 24
"""Pixels between the values that a texture is interpolated from."""


def main() -> None:
    """Compare the methods and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--raft", nargs="*", default=[], choices=["raft_small", "raft_large"], help="also these"
    )
    parser.add_argument("--noise", type=float, default=0.01, help="deviation, added to frames")
    args = parser.parse_args()
    network = load_model("rvm_mobilenetv3")
    clips = BuiltinSource("test", (288, 512), SCENES, 12)
    clips.use(lambda src: network.unroll(src).pha)
    scenes: dict[str, Callable[[int], tuple[Tensor, Tensor, Tensor]]] = {
        "people": partial(person, clips),
        "squares, fine": partial(square, FINE),
        "squares, coarse": partial(square, COARSE),
    }
    methods: dict[str, FlowPair] = {"DIS": dis_pair}
    methods |= {name: load_raft(fetch_weights(name))[0] for name in args.raft}
    body = []
    for name, method in methods.items():
        for scene, make in track(scenes.items(), name, console=Console(stderr=True)):
            found = [measure(make(seed), method, args.noise, seed) for seed in range(SCENES)]
            numbers = torch.stack(found).mean(0).tolist()
            body.append([name, scene, "", *(f"{one:.3f}" for one in numbers)])
    Console(highlight=False).print(markdown_cells((HEADINGS, body)), soft_wrap=True)


def person(clips: BuiltinSource, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames of a built-in clip, their flow and visibility."""
    clip = clips.read(index, 0, clips.num_frames(index))
    assert clip.flow is not None
    assert clip.pha is not None
    return clip.src, clip.flow, exact_visibility(clip.pha, clip.flow)


def square(grain: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two frames of a moving square, their flow and visibility."""
    generator = Generator().manual_seed(seed)
    step = 6 + 2 * seed
    frames = texture(SIZE, grain, generator).expand(2, -1, -1, -1).clone()
    inside = texture((SIDE, SIDE), grain, generator)
    flow, visible = torch.zeros(1, 2, *SIZE), torch.ones(1, 1, *SIZE)
    rows, after = slice(TOP, TOP + SIDE), slice(LEFT + step, LEFT + step + SIDE)
    frames[0, :, rows, LEFT : LEFT + SIDE] = frames[1, :, rows, after] = inside
    flow[:, 0, rows, after] = -step
    visible[..., rows, LEFT : LEFT + step] = 0
    return frames, flow, visible


def texture(size: tuple[int, int], grain: int, generator: Generator) -> Tensor:
    """Return a random picture (3, H, W) about a random colour."""
    coarse = [side // grain + 2 for side in size]
    values = torch.rand(1, 3, *coarse, generator=generator) - 0.5
    colour = 0.2 + 0.6 * torch.rand(3, 1, 1, generator=generator)
    return (colour + 0.5 * F.interpolate(values, size, mode="bicubic")[0]).clamp(0, 1)


@torch.no_grad()
def measure(
    scene: tuple[Tensor, Tensor, Tensor], method: FlowPair, noise: float, seed: int
) -> Tensor:
    """Return the numbers of a scene, (5,)."""
    frames, exact, visibility = scene
    seen = visibility[:, 0] > 0
    generator = Generator().manual_seed(seed)
    src = (frames + noise * torch.randn(frames.shape, generator=generator)).clamp(0, 1)
    there, back = map(torch.stack, zip(*(method(*pair) for pair in pairwise(src)), strict=True))
    passed = forward_backward_mask(there, back)[:, 0]
    both = passed * photometric_mask(src[:-1], src[1:], back)[:, 0]
    error = (back - exact).norm(dim=1)[seen].mean()
    return torch.stack(
        [error, *(mask[at].mean() for mask in (passed, both) for at in (seen, ~seen))]
    )


if __name__ == "__main__":
    main()
