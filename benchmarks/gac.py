"""Benchmark behind docs/paper.md: does global calibration reduce errors, does optical flow help?

From finished block reconstruction, global calibration as published (one γ and β a layer, MSE of
alpha alone, the blocks' roundings kept) by learning rate, target of the loss and optical flow, over
seeds. Networks are scored on the evaluation clips, and by their distance to the float network on
videos of people left out of calibration. A killed run continues with the same command.

    ptq4vm quantize --recipe w4a4 --data.root ROOT --data.held_out "[PEOPLE]"
    python benchmarks/gac.py --root ROOT --blocks runs/w4a4 --left_out PEOPLE
"""

import argparse
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from paper import DOCUMENT
from people import distance, read
from results import PER_LAYER, put_table, write_config

from ptq4vm import cli
from ptq4vm.atomic_io import write_json
from ptq4vm.data import VideoSource
from ptq4vm.graph import load_model
from ptq4vm.reading import read_json
from ptq4vm.recipes import find_recipe, read_recipe
from ptq4vm.reporting.results import ResultRow, read_rows
from ptq4vm.reporting.tables import format_number, markdown_cells

RATES: dict[str, dict[str, Any]] = {
    "1e-4": {"lr": 1e-4, "absolute_scales": True, "max_grad_norm": 0.0},
    "2e-3": {"lr": 2e-3},
}
"""Options by learning rate: that of the scales themselves, as published, and our recipes'."""
TARGETS = {
    "true alpha": {"truth_weight": 1.0, "teacher_weight": 0.0},
    "teacher": {"truth_weight": 0.0, "teacher_weight": 1.0},
}
FLOWS = {"": 0.0, "OFA": 0.05}
HEADINGS = ["MAD", "dtSSD", "MAD to float", "left out", "other people"]


def main() -> None:
    """Calibrate, score and write the table of each width to docs/paper.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="data root")
    parser.add_argument(
        "--blocks", type=Path, nargs="+", required=True, help="run folders with a row biq"
    )
    parser.add_argument("--videos", default="user_clips", help="folder of videos, below the root")
    parser.add_argument(
        "--left_out", nargs="+", required=True, help="patterns of videos the blocks never saw"
    )
    parser.add_argument("--others", default="other_people", help="further videos, below the root")
    parser.add_argument("--frames", type=int, default=12, help="frames scored of each video")
    parser.add_argument("--eval_frames", type=int, default=8, help="frames scored of each clip")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of 16 steps at batch 4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument("--output", type=Path, default=Path("runs/gac"), help="folder of runs")
    args = parser.parse_args()
    groups = {"left out": (args.videos, args.left_out), "other people": (args.others, ["*"])}
    for blocks in args.blocks:
        bits = read_rows(blocks / "metrics.json")[-1].bits
        found: dict[str, list[list[float]]] = {}
        for seed in args.seeds:
            run = args.output / f"{bits.lower()}-{seed}"
            calibrate(args, blocks, bits, run, seed)
            for row in read_rows(run / "metrics.json"):
                network = run / bits.lower() / f"{row.method}.safetensors"
                people = distances(args, groups, network) if row.plan else [0.0] * len(groups)
                found.setdefault(row.name, []).append([*scores(row), *people])
        put_table(f"gac {bits}", table(found, bits, args), DOCUMENT)


def calibrate(args: argparse.Namespace, blocks: Path, bits: str, run: Path, seed: int) -> None:
    """Run all of global calibration from one block reconstruction."""
    config = read_recipe(find_recipe(bits.lower()))
    rows: dict[str, Any] = {
        "biq": {"title": "BIQ", "checkpoint": str(blocks / bits.lower() / "biq.safetensors")}
    }
    for number, (rate, target, flow) in enumerate(product(RATES, TARGETS, FLOWS)):
        own = {**PER_LAYER, "window": None, **RATES[rate], **TARGETS[target]}
        rows[f"gac{number}"] = {
            "title": ", ".join(filter(None, (rate, target, flow))),
            "start": "biq",
            "options": {**own, "flow_weight": FLOWS[flow]},
        }
    data = {"root": str(args.root), "seed": seed, "source": "Composites", "num_sequences": 64}
    data |= {"seq_length": 4, "settle": 0, "eval_frames": args.eval_frames}
    config |= {"rows": rows, "gac_epochs": args.epochs, "gac_batch_size": 4}
    config["data"] |= data
    file = write_config(run.with_suffix(".yaml"), config)
    if done := cli.main(["quantize", "--config", str(file), "--output", str(run)]):
        raise SystemExit(done)


def scores(row: ResultRow) -> list[float]:
    """Return a row's MAD, dtSSD and distance to the float network on the evaluation clips."""
    to_float = 0.0 if row.fidelity is None else row.fidelity.mad
    return [row.metrics["mad"], row.metrics["dtssd"], to_float]


@torch.inference_mode()
def distances(
    args: argparse.Namespace, groups: dict[str, tuple[str, list[str]]], model: Path
) -> list[float]:
    """Return a checkpoint's MAD to the float network on each group of videos, kept beside it."""
    cache = model.with_suffix(".people.json")
    settings = {"groups": {name: list(one) for name, one in groups.items()}, "frames": args.frames}
    if cache.is_file() and (kept := read_json(cache)).get("settings") == settings:
        return kept["mad"]
    reference, network = load_model("rvm_mobilenetv3"), load_model(model)
    means = []
    for folder, names in groups.values():
        source = VideoSource(args.root / folder, names=names)
        found = []
        for index in range(len(source)):
            src = read(source, index, args.frames)
            alphas = (one.unroll(src[None]).pha[0] for one in (network, reference))
            found.append(distance(*alphas).mad)
        means.append(statistics.fmean(found))
    write_json(cache, {"settings": settings, "mad": means})
    return means


def table(found: dict[str, list[list[float]]], bits: str, args: argparse.Namespace) -> str:
    """Return mean and largest deviation from it over seeds, in Markdown."""
    body = [[name, "", "", *map(spread, zip(*seeds, strict=True))] for name, seeds in found.items()]
    return (
        f"{bits}, {args.epochs} epochs, {args.eval_frames} frames of each clip and {args.frames} "
        f"of each video, seeds {', '.join(map(str, args.seeds))}.\n\n"
        + markdown_cells((["global calibration", "", "", *HEADINGS], body))
    )


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the largest deviation from it if there is one."""
    mean = statistics.fmean(values)
    off = max(abs(one - mean) for one in values)
    return format_number(mean) + (f" ± {format_number(off)}" if off > 0 else "")


if __name__ == "__main__":
    main()
