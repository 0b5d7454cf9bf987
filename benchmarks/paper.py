"""Benchmark behind docs/paper.md: the table of arXiv 2506.10840 beside what is measured here.

For each width, runs of `ptq4vm quantize` have the paper's rows, from lightning_configs/paper/; the
same rows on the grids that our recipes have; and our method. All have the paper's calibration set,
steps, epochs and batches, times `--scale`. Several run side by side, each with its log in the run's
folder. A killed run continues with the same command. The table of this scale in the document is
made anew from all finished runs; the rest of the document is kept.

    python benchmarks/paper.py --root ROOT --scale 1/200
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fractions import Fraction
from itertools import product
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import torch
from results import put_table, write_config
from rich.console import Console
from rich.progress import track

from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.quantizers.qconfig import parse_bits
from ptq4vm.recipes import find_recipe, read_recipe, recipes_folder
from ptq4vm.reporting.results import ResultRow, read_rows
from ptq4vm.reporting.tables import format_number, markdown_cells

CONSOLE = Console(highlight=False)
CORES = os.cpu_count() or 1
DOCUMENT = Path(__file__).parents[1] / "docs" / "paper.md"
PAPER = recipes_folder().parent / "paper"
WIDTHS = ("W8A8", "W4A8", "W4A4")
FAMILIES = ("brecq", "qdrop")
"""Rows that follow from one block reconstruction, on the published grids and on ours.

Our method's rows run with the last."""
STEPS = ("", "_gac", "_gac_ofa")
"""Configurations of a family in lightning_configs/paper/, whose last row is the method."""
SMALL_BELOW = Fraction(1, 50)
"""Below this scale, calibration and evaluation are smaller than published, by default."""
SMALL = {
    "height": 64, "width": 96, "num_sequences": 8, "seq_length": 2, "eval_clips": 3,
    "eval_frames": 3,
}  # fmt: skip
COUNTS = {
    "num_sequences": "calibration sequences",
    "seq_length": "frames of each sequence",
    "eval_clips": "evaluation clips",
    "eval_frames": "frames scored of each clip",
}
"""Further settings of the data that can be given."""
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
    args = arguments()
    data: dict[str, Any] = read_recipe(PAPER / "base.yaml")["data"]
    data |= SMALL if args.scale < SMALL_BELOW else {}
    data |= {} if args.size is None else dict(zip(("height", "width"), args.size, strict=True))
    data |= {name: getattr(args, name) for name in COUNTS if getattr(args, name) is not None}
    data |= {"root": str(args.root), "seed": args.seed}
    folder = args.output / f"{str(args.scale).replace('/', '-')}-{args.seed}"
    wanted = product(FAMILIES[::-1], args.bits)  # the longest runs first
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, bits, family, data, args, folder) for family, bits in wanted]
        for done in track(as_completed(runs), "runs", total=len(runs), console=CONSOLE):
            CONSOLE.print(f"{done.result()} done")
    table: list[ResultRow] = []
    for bits, family in product(WIDTHS, FAMILIES):
        metrics = run_folder(folder, bits, family) / "metrics.json"
        if metrics.is_file():
            rows = read_rows(metrics)
            table += rows[1:] if table else rows
    conditions = (
        f"Scale {args.scale}, {data['num_sequences']} calibration sequences of "
        f"{data['seq_length']} frames of {data['height']} x {data['width']} pixels. Scored: "
        f"{data.get('eval_frames', 'all')} frames of {data.get('eval_clips', 'all')} clips."
    )
    put_table(f"paper {args.scale}", f"{conditions}\n\n{paper_table(table)}", DOCUMENT)


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="data root with foregrounds, backgrounds, ..."
    )
    parser.add_argument(
        "--scale", type=Fraction, default=Fraction(1), help="share of the published lengths, 1/100"
    )
    small = "{height}x{width}, {num_sequences}, {seq_length}, {eval_clips} and {eval_frames}"
    parser.epilog = (
        "The last five are 288x512, 64, 4, all and all by default, as published, but below a scale "
        f"of {SMALL_BELOW} {small.format(**SMALL)}."
    )
    parser.add_argument("--bits", nargs="+", default=WIDTHS, choices=WIDTHS, help="widths")
    parser.add_argument("--seed", type=int, default=0, help="seed of sequences and order")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"), help="folder of runs")
    jobs = 1 if torch.accelerator.is_available() else min(CORES, len(WIDTHS) * len(FAMILIES))
    parser.add_argument(
        "--jobs", type=int, default=jobs, help="runs side by side; one for each core without a GPU"
    )
    parser.add_argument("--size", type=size, help="HxW of calibration frames")
    for name, text in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, help=text)
    return parser.parse_args()


def run_folder(folder: Path, bits: str, family: str) -> Path:
    """Return the folder of a run."""
    return folder / f"{bits}-{family}".lower()


def run(
    bits: str, family: str, data: dict[str, Any], args: argparse.Namespace, folder: Path
) -> Path:
    """Run a family of rows in a process of its own; return the run's folder.

    Raises:
        SystemExit: It failed; the message ends with that of the process.
    """
    output = run_folder(folder, bits, family)
    config = {**configuration(bits, family), "data": data}
    file, log = write_config(output.with_suffix(".yaml"), config), output.with_suffix(".log")
    command = [sys.executable, "-m", "ptq4vm.cli", "quantize", "--config", str(file)]
    command += ["--scale", str(args.scale), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, CORES // args.jobs))}
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode:
        *_, last = log.read_text().strip().splitlines() or [""]
        raise SystemExit(f"{output} failed with status {done.returncode}; see {log}: {last}")
    return output


def size(text: str) -> tuple[int, int]:
    """Parse HxW."""
    height, width = map(int, text.split("x"))
    return height, width


def configuration(bits: str, family: str) -> dict[str, Any]:
    """Return the paper's settings with the rows of a family.

    Args:
        bits: one width.
        family: ``brecq`` or ``qdrop``, as published and on our grids; our method's follow the
            latter.
    """
    config = read_recipe(PAPER / "base.yaml")
    recipe = read_recipe(find_recipe(bits.lower()))
    grids = {"placement": "deploy", "activation_grid": "affine", "range_method": "mse"}
    grids |= {"depthwise_granularity": "per_channel", **recipe.get("qconfig", {})}
    rows: dict[str, Any] = {}
    for method in (f"{family}{step}" for step in STEPS):
        *_, row = read_recipe(PAPER / f"{method}.yaml")["rows"].values()
        start = row.get("start")
        own: dict[str, Any] = {"start": f"{start}_grids"} if start else {"qconfig": grids}
        rows[method] = row
        rows[f"{method}_grids"] = {**row, **own, "title": f"{row['title']}, our grids"}
    if family == FAMILIES[-1]:
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
