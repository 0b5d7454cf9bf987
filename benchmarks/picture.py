"""Draw the README's picture: a frame, its matte by several networks, the person over a colour.

    python benchmarks/picture.py --clip CLIP --frame 30 --out docs/images/matting.png \\
        float=rvm_mobilenetv3 W8A8=runs/w8a8 W4A4=runs/w4a4
"""

import argparse
from itertools import islice
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

from ptq4vm.atomic_io import written_whole
from ptq4vm.graph import load_model
from ptq4vm.video import open_frames

Column = tuple[str, np.ndarray | None, np.ndarray | None]
"""Title, alpha and composite."""
OVER = np.array([0.13, 0.55, 0.33])


def main() -> None:
    """Draw a picture of mattes side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="+", help="TITLE=MODEL")
    parser.add_argument("--clip", type=Path, required=True, help="a video without cuts")
    parser.add_argument("--frame", type=int, default=30, help="number of the frame, from 0")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    args = parser.parse_args()
    frames = list(islice(open_frames(args.clip), args.frame + 1))
    src = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float() / 255
    columns: list[Column] = [("source", None, None)]
    for model in args.models:
        title, _, name = model.partition("=")
        with torch.no_grad():
            output = load_model(name).unroll(src)
        fgr, pha = (x[0, -1].permute(1, 2, 0).numpy() for x in (output.fgr, output.pha))
        columns.append((title, pha, pha * fgr + (1 - pha) * OVER))
    draw(columns, frames[-1], args.out)


def draw(columns: list[Column], frame: np.ndarray, out: Path) -> None:
    """Draw alpha above and the composite below, one network per column."""
    mpl.use("Agg")
    height = 0.4 + 2 * 3.2 * frame.shape[0] / frame.shape[1]
    size = (3.2 * len(columns), height)
    figure, axes = plt.subplots(2, len(columns), figsize=size, layout="constrained")
    for (title, pha, composite), (above, below) in zip(columns, axes.T, strict=True):
        above.imshow(frame if pha is None else pha, cmap="gray", vmin=0, vmax=1)
        above.set_title(title)
        if composite is not None:
            below.imshow(composite.clip(0, 1))
        for one in (above, below):
            one.set_axis_off()
    with written_whole(out) as part:
        figure.savefig(part, dpi=75, format="png")


if __name__ == "__main__":
    main()
