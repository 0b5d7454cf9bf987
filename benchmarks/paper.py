"""Benchmark behind docs/paper.md: the table of arXiv 2506.10840 beside what is measured here.

For each width, one run of `ptq4vm quantize` has the paper's rows, from lightning_configs/paper/;
the same rows on the grids that our recipes have; and our method. All have the paper's calibration
set, steps, epochs and batches, times `--scale`. A killed run continues with the same command. The
table of this scale in the document is replaced; its text and the tables of other scales are kept.

    python benchmarks/paper.py --root ROOT --scale 1/200
"""

import argparse
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import yaml
from results import put_table

from ptq4vm import cli
from ptq4vm.atomic_io import written_whole
from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.quantizers.qconfig import parse_bits
from ptq4vm.recipes import find_recipe, read_recipe, recipes_folder
from ptq4vm.reporting.results import ResultRow, read_rows
from ptq4vm.reporting.tables import format_number, markdown_cells

DOCUMENT = Path(__file__).parents[1] / "docs" / "paper.md"
PAPER = recipes_folder().parent / "paper"
WIDTHS = ("W8A8", "W4A8", "W4A4")
METHODS = ("brecq", "brecq_gac", "brecq_gac_ofa", "qdrop", "qdrop_gac", "qdrop_gac_ofa")
"""Configurations in lightning_configs/paper/, whose last row is the method."""
SMALL_BELOW = Fraction(1, 50)
"""Below this scale, calibration frames are small and few frames are scored, by default."""
SMALL = {"height": 72, "width": 128, "eval_frames": 3}
PUBLISHED: dict[tuple[str, str], tuple[float, float, float]] = {
    ("float", "W32A32"): (6.08, 1.47, 1.36),
    ("qdrop_gac_ofa", "W8A8"): (6.03, 1.29, 1.46),
    ("qdrop_gac_ofa", "W4A8"): (10.61, 4.28, 2.34),
    ("qdrop_gac_ofa", "W4A4"): (20.81, 11.17, 3.77),
    ("brecq", "W4A4"): (168.34, 161.61, 5.10),
    ("brecq_gac", "W4A4"): (50.75, 39.84, 8.01),
    ("brecq_gac_ofa", "W4A4"): (46.16, 27.29, 3.15),
    ("qdrop", "W4A4"): (24.36, 18.02, 4.70),
    ("qdrop_gac", "W4A4"): (22.01, 11.85, 3.96),
}
"""The paper's figures by method and bits: ``PUBLISHED_METRICS``, on other clips than ours."""
PUBLISHED_METRICS = ("mad", "mse", "dtssd")
METRICS = {"mad": "MAD", "mse": "MSE", "grad": "Grad", "conn": "Conn", "dtssd": "dtSSD"}


def main() -> None:
    """Run the widths and write their table to docs/paper.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="data root with foregrounds, backgrounds, ..."
    )
    parser.add_argument(
        "--scale", type=Fraction, default=Fraction(1), help="share of the published lengths, 1/100"
    )
    parser.add_argument(
        "--size",
        type=size,
        help=f"HxW of calibration frames; by default 288x512, as published, and below a scale of "
        f"{SMALL_BELOW} {SMALL['height']}x{SMALL['width']}",
    )
    parser.add_argument(
        "--eval_frames",
        type=int,
        help=f"frames scored of each clip; by default all, below that scale {SMALL['eval_frames']}",
    )
    parser.add_argument("--bits", nargs="+", default=WIDTHS, choices=WIDTHS, help="widths")
    parser.add_argument("--seed", type=int, default=0, help="seed of sequences and order")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"), help="folder of runs")
    args = parser.parse_args()
    data: dict[str, Any] = dict(SMALL) if args.scale < SMALL_BELOW else {}
    data |= {} if args.size is None else dict(zip(("height", "width"), args.size, strict=True))
    data |= {} if args.eval_frames is None else {"eval_frames": args.eval_frames}
    scale = str(args.scale)
    folder = args.output / f"{scale.replace('/', '-')}-{args.seed}"
    table: list[ResultRow] = []
    for bits in args.bits:
        config = configuration(bits)
        config["data"] |= {**data, "root": str(args.root), "seed": args.seed}
        run = folder / bits.lower()
        file = folder / f"{bits.lower()}.yaml"
        with written_whole(file) as part:
            part.write_text(yaml.safe_dump(config, sort_keys=False))
        done = cli.main(["quantize", "--config", str(file), "--scale", scale, "--output", str(run)])
        if done:
            raise SystemExit(done)
        rows = read_rows(run / "metrics.json")
        table += rows[1:] if table else rows
    size_text = "{height} x {width}".format(**config["data"])
    frames = config["data"].get("eval_frames", "all")
    conditions = f"Scale {scale}, calibration frames of {size_text}, {frames} frames of each clip."
    put_table(f"paper {scale}", f"{conditions}\n\n{paper_table(table)}", DOCUMENT)


def size(text: str) -> tuple[int, int]:
    """Parse HxW."""
    height, width = map(int, text.split("x"))
    return height, width


def configuration(bits: str) -> dict[str, Any]:
    """Return the paper's settings with its rows, those on our grids, and our method.

    Args:
        bits: one width.
    """
    config = read_recipe(PAPER / "base.yaml")
    recipe = read_recipe(find_recipe(bits.lower()))
    grids = {"placement": "deploy", "activation_grid": "affine", "range_method": "mse"}
    grids |= {"depthwise_granularity": "per_channel", **recipe.get("qconfig", {})}
    rows: dict[str, Any] = {}
    for method in METHODS:
        *_, row = read_recipe(PAPER / f"{method}.yaml")["rows"].values()
        start = row.get("start")
        own: dict[str, Any] = {"start": f"{start}_grids"} if start else {"qconfig": grids}
        rows[method] = {**row, "start": start}
        rows[f"{method}_grids"] = {**row, **own, "title": f"{row['title']}, our grids"}
    blocks = vars(BlockReconstructionSettings(**recipe["block_reconstruction"]))
    for key, row in recipe["rows"].items():
        own = {"qconfig": grids, "options": blocks}
        if start := row.get("start"):
            own = {"start": f"ours_{start}", "options": vars(GACSettings(**recipe["gac"]))}
        title = row["title"].replace("BIQ", "our BIQ")
        rows[f"ours_{key}"] = {**row, **own, "title": title}
    return {**config, "bits": [bits], "rows": rows}


def paper_table(rows: Sequence[ResultRow]) -> str:
    """Return the rows with the paper's columns and figures, in Markdown.

    Args:
        rows: of the float network first, then of all widths.
    """
    headings = ["row", "bits", "", "eff. GFLOPs", "MB", *METRICS.values(), "MAD to float"]
    headings += [f"paper: {METRICS[name]}" for name in PUBLISHED_METRICS]
    size = rows[0].cost.size_mb or math.nan
    body = []
    for row in rows:
        flops = (row.cost.effective_flops or math.nan) / 1e9
        # The paper's share of the float network's size and operations.
        share = harmonic_mean(parse_bits(row.bits)) / 32
        measured = [row.metrics.get(name) for name in METRICS]
        to_float = None if row.fidelity is None else row.fidelity.mad
        published = PUBLISHED.get((row.method, row.bits), (None,) * len(PUBLISHED_METRICS))
        numbers = [flops, size * share, *measured, to_float, *published]
        body.append([row.name, row.bits, row.placement, *map(format_number, numbers)])
    return markdown_cells((headings, body))


if __name__ == "__main__":
    main()
