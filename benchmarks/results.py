"""Measures the tables of docs/results.md: each recipe beside other methods, all on its grid, placement and frames.

For each recipe one run of `ptq4vm quantize`, with the rows below before the recipe's own, scored on the evaluation
clips and, by distance to the float network, on people and places that calibration never saw. What a run has finished
is not done again. The tables replace those in the document; the text around them stays.

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
"""Recipes beside which no other methods are measured."""
HELD_OUT = ["book", "learn", "school", "walk", "hungry", "want", "china", "curtains", "drive"]
"""Two of the five signers and three of the ten backgrounds."""
NEAREST = {"learn_rounding": False, "learn_scales": False}
PER_LAYER = {
    "affine": "per_layer", "weight_lr": 0.0, "average": 0.0, "truth_weight": 1.0, "teacher_weight": 0.0,
    "l1_weight": 0.0, "mse_weight": 1.0, "fgr_weight": 0.0, "state_weight": 0.0, "feature_weight": 0.0,
    "coherence_weight": 0.0,
}  # fmt: skip
"""Of global calibration as published one γ, β for each layer and the squared error against the true alpha alone.

Learning rates, epochs and batch stay the recipe's: these rows are not the paper's.
"""
PUBLISHED_GRID = {
    "weight_grid": "symmetric",
    "activation_grid": "symmetric",
    "range_method": "minmax",
    "depthwise_granularity": "per_tensor",
    "equalize": False,
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
"""What is not learned block by block on our grid."""
DROPPING = {"BRECQ": 0.0, "QDrop": 0.5}
"""The two methods that are, and what they differ in. A recipe's own block reconstruction is one of them."""


def main() -> None:
    """Run the recipes and write their tables into the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        help="the data: foregrounds, backgrounds, evaluation, ...",
    )
    recipes = ["w8a8", "w4a8", "w4a4", *ALONE]
    parser.add_argument("--recipes", nargs="+", default=recipes, help="names of recipes")
    parser.add_argument(
        "--videos", help="folder of the videos, below the root, if it holds several"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which sequences are drawn, and their order"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/results"), help="folder for the runs"
    )
    args = parser.parse_args()
    for recipe in args.recipes:
        folder = args.output / f"{recipe}-{args.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yaml"
        with written_whole(config) as part:
            part.write_text(yaml.safe_dump(with_baselines(recipe), sort_keys=False))
        settings = [
            "--output",
            str(folder / "run"),
            "--data.root",
            str(args.root),
            "--data.seed",
            str(args.seed),
            *(["--data.videos", args.videos] if args.videos else []),
        ]
        cli.main(["quantize", "--config", str(config), *settings])
        put_table(f"{recipe}-{args.seed}", (folder / "run" / "table.md").read_text())


def with_baselines(recipe: str) -> dict[str, Any]:
    """A recipe with people and places held out, and rows of other methods unless it stands alone.

    Ours come last: without flow, then from the recipe. Both begin with the same blocks as per-layer GAC does.
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
    config["rows"] = rows | {name: row for name, row in config["rows"].items() if name not in rows}
    return config


def put_table(name: str, table: str) -> None:
    """Replace a table of the document, between two comments that name it; a new one goes to the end."""
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    text = DOCUMENT.read_text()
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    with written_whole(DOCUMENT) as part:
        part.write_text(pattern.sub(lambda _: f"{begin}\n\n{table.strip()}\n\n{end}", text))


if __name__ == "__main__":
    main()
