"""Benchmark behind the quality tables of docs/results.md.

Runs `ptq4vm quantize` once per recipe with additional rows for the baseline methods, which use the
recipe's bit widths, placement and calibration frames. Results are scored on the evaluation clips
and, as distance to the float network, on people and backgrounds held out from calibration. Finished
parts of an earlier run are reused. The tables in the document are replaced; its text is kept.

    python benchmarks/results.py --root ROOT --recipes w8a8 w4a8 w4a4
"""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from ptq4vm import cli
from ptq4vm.atomic_io import written_whole
from ptq4vm.recipes import find_recipe, read_recipe

REPOSITORY = Path(__file__).parents[1]
DOCUMENT = REPOSITORY / "docs" / "results.md"

ALONE = ("w6a6", "w4a4_mixed")
"""Recipes that are compared with rounding to nearest only."""
HELD_OUT = ["book", "learn", "school", "walk", "hungry", "want", "china", "curtains", "drive"]
"""Name patterns of the held-out clips: two of the five signers, three of the ten backgrounds."""
NEAREST = {"learn_rounding": False, "learn_scales": False}
PER_LAYER = {
    "affine": "per_layer", "weight_lr": 0.0, "average": 0.0, "truth_weight": 1.0,
    "teacher_weight": 0.0, "l1_weight": 0.0, "mse_weight": 1.0, "fgr_weight": 0.0,
    "state_weight": 0.0, "feature_weight": 0.0, "coherence_weight": 0.0,
}  # fmt: skip
"""Options of global calibration as published: per-layer γ and β, MSE to the true alpha only.

Learning rates, epochs and batch size are the recipe's, so these rows do not reproduce the paper.
"""
PUBLISHED_GRID = {
    "weight_grid": "symmetric",
    "activation_grid": "symmetric",
    "range_method": "minmax",
    "depthwise_granularity": "per_tensor",
}
BASELINES: dict[str, dict[str, Any]] = {
    "rtn_minmax": {
        "title": "round to nearest, min-max",
        "options": NEAREST,
        "qconfig": {"range_method": "minmax"},
    },
    "rtn": {"title": "round to nearest, MSE", "options": NEAREST},
    "adaround": {
        "title": "AdaRound",
        "options": {"granularity": "layer", "learn_scales": False, "drop_prob": 0.0},
    },
    "published": {
        "title": "QDrop, published grid",
        "options": {"drop_prob": 0.5},
        "qconfig": PUBLISHED_GRID,
    },
}
"""Baseline rows without block-wise reconstruction on our grid."""
DROPPING = {"BRECQ": 0.0, "QDrop": 0.5}
"""Drop probability by block-wise method. A recipe's block reconstruction uses one of the two."""


def main() -> None:
    """Run the recipes and write their tables to docs/results.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        help="data root with foregrounds, backgrounds, evaluation clips, ...",
    )
    recipes = ["w8a8", "w4a8", "w4a4", *ALONE]
    parser.add_argument("--recipes", nargs="+", default=recipes, help="recipe names")
    parser.add_argument(
        "--videos", help="folder of the videos, below the root, if it holds several"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the choice and order of sequences"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/results"), help="folder for the runs"
    )
    args = parser.parse_args()
    for recipe in args.recipes:
        folder = args.output / f"{recipe}-{args.seed}"
        config = write_config(folder / "config.yaml", with_baselines(recipe))
        settings = [
            "--output",
            str(folder / "run"),
            "--data.root",
            str(args.root),
            "--data.seed",
            str(args.seed),
            *(["--data.source.videos", args.videos] if args.videos else []),
        ]
        cli.main(["quantize", "--config", str(config), *settings])
        put_table(f"{recipe}-{args.seed}", (folder / "run" / "table.md").read_text())


def with_baselines(recipe: str) -> dict[str, Any]:
    """Return a recipe's configuration with held-out clips and baseline rows.

    The rows of our global calibration come last, first without flow, even if the recipe goes
    without. They start from the same block reconstruction as per-layer GAC.

    Args:
        recipe: file name in lightning_configs/quantize without suffix; those in `ALONE` get only
            the round-to-nearest baseline.
    """
    config = read_recipe(find_recipe(recipe))
    config["data"]["held_out"] = HELD_OUT
    if recipe in ALONE:
        rows = {"rtn": BASELINES["rtn"], "biq": config["rows"]["biq"]}
    else:
        rows = dict(BASELINES)
        own = config["block_reconstruction"].get("drop_prob", DROPPING["QDrop"])
        for title, drop_prob in DROPPING.items():
            start = "biq" if drop_prob == own else title.lower()
            rows[start] = {
                "title": f"{title} (BIQ)" if start == "biq" else title,
                "options": {"drop_prob": drop_prob},
            }
            for name, part, flow_weight in (("gac", "GAC", 0.0), ("ofa", "GAC + OFA", 0.05)):
                options = {**PER_LAYER, "flow_weight": flow_weight}
                titled = f"{title} + per-layer {part}, MSE to true alpha (our learning rates)"
                rows[f"{title.lower()}_{name}"] = {
                    "title": titled,
                    "start": start,
                    "options": options,
                }
    rows["gac"] = {"title": "BIQ + GAC", "start": "biq", "options": {"flow_weight": 0.0}}
    rows["ofa"] = config["rows"].get("ofa", {"title": "BIQ + GAC + OFA", "start": "biq"})
    config["rows"] = rows
    return config


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a configuration of `ptq4vm quantize`; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def put_table(name: str, table: str, document: Path | None = None) -> None:
    """Replace the table between its two marker comments in a document, or append it.

    Args:
        name: in the markers.
        table: in Markdown.
        document: docs/results.md if not given.
    """
    document = document or DOCUMENT
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    text = document.read_text()
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    with written_whole(document) as part:
        part.write_text(pattern.sub(lambda _: f"{begin}\n\n{table.strip()}\n\n{end}", text))


if __name__ == "__main__":
    main()
