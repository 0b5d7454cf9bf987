"""Benchmark of optical flow and its visibility mask against exact flow.

The built-in clips move a cut-out person over photographs, so that flow and uncovered pixels are
known. Reported are, by method: the end-point error in pixels where a point is visible in both
frames, and the shares of pixels that pass the forward-backward check, and the photometric one too,
among those that are visible and those that are uncovered. The second should be 0.

    python benchmarks/flow.py
    python benchmarks/flow.py --raft raft_large
"""

import argparse
from itertools import pairwise

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ptq4vm.data.builtin import BuiltinSource
from ptq4vm.data.calibration import exact_visibility
from ptq4vm.flow import forward_backward_mask, photometric_mask
from ptq4vm.flow.providers import FlowPair, dis_pair
from ptq4vm.flow.raft import load_raft
from ptq4vm.graph import load_model
from ptq4vm.models import fetch_weights
from ptq4vm.reporting.tables import markdown_cells

HEADINGS = [
    "flow",
    "",
    "",
    "end-point error",
    "visible",
    "uncovered",
    "visible, both",
    "uncovered, both",
]


def main() -> None:
    """Compare the methods and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--raft",
        nargs="*",
        default=[],
        choices=["raft_small", "raft_large"],
        help="weights to fetch",
    )
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=12, help="of each clip")
    parser.add_argument(
        "--noise", type=float, default=0.01, help="standard deviation, added to frames"
    )
    args = parser.parse_args()
    network = load_model("rvm_mobilenetv3")
    clips = BuiltinSource("test", (288, 512), args.clips, args.frames)
    clips.use(lambda src: network.unroll(src).pha)
    methods: dict[str, FlowPair] = {"DIS": dis_pair}
    methods |= {name: load_raft(fetch_weights(name))[0] for name in args.raft}
    body = []
    for name, method in methods.items():
        found = [
            measure(clips, index, method, args.noise)
            for index in track(range(len(clips)), name, console=Console(stderr=True))
        ]
        body.append([name, "", "", *(f"{x:.3f}" for x in torch.stack(found).mean(0).tolist())])
    Console(highlight=False).print(markdown_cells((HEADINGS, body)), soft_wrap=True)


@torch.no_grad()
def measure(clips: BuiltinSource, index: int, method: FlowPair, noise: float) -> Tensor:
    """Return the numbers of a clip, (5,)."""
    clip = clips.read(index, 0, clips.num_frames(index))
    assert clip.flow is not None
    assert clip.pha is not None
    exact, visible = clip.flow, exact_visibility(clip.pha, clip.flow)[:, 0] > 0
    generator = torch.Generator().manual_seed(index)
    src = (clip.src + noise * torch.randn(clip.src.shape, generator=generator)).clamp(0, 1)
    pairs = [method(*pair) for pair in pairwise(src)]
    there, back = map(torch.stack, zip(*pairs, strict=True))
    passed = forward_backward_mask(there, back)[:, 0]
    both = passed * photometric_mask(src[:-1], src[1:], back)[:, 0]
    error = (back - exact).norm(dim=1)[visible].mean()
    shares = [mask[where].mean() for mask in (passed, both) for where in (visible, ~visible)]
    return torch.stack([error, *shares])


if __name__ == "__main__":
    main()
