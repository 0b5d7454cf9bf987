"""Benchmark of RVM's automatic blocks against its hand-written ones.

Both networks are quantized by BIQ, then by GAC + OFA, on the same sequences, and scored on the same
evaluation clips. Reported are alpha's errors against truth and its distance to the float network.

    python benchmarks/blocks.py --root ROOT --seeds 0 1
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from ptq4vm.data import VideoMattingDataModule, Videos
from ptq4vm.deploy.onnx import FrameFunction
from ptq4vm.models import create_model, from_module
from ptq4vm.phases import BlockReconstructionSettings
from ptq4vm.pipeline import Method, QuantizeSettings, quantize
from ptq4vm.reporting.tables import markdown_cells

ROWS = {"biq": Method("BIQ"), "ofa": Method("BIQ + GAC + OFA", start="biq")}


def main() -> None:
    """Quantize and score both networks with each seed, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of user_clips, evaluation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--bits", default="W4A8")
    parser.add_argument("--sequences", type=int, default=12, help="of 4 frames, 144 x 256 pixels")
    parser.add_argument("--steps", type=int, default=20, help="steps for each block")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of global calibration")
    parser.add_argument("--eval_clips", type=int, default=3)
    parser.add_argument("--eval_frames", type=int, default=24)
    parser.add_argument("--output", type=Path, default=Path("runs/blocks"))
    args = parser.parse_args()
    rvm = create_model("rvm_mobilenetv3", weights="official")
    automatic = from_module(
        FrameFunction(rvm), (144, 256), states=rvm.initial_state, name="rvm_blocks"
    )
    settings = QuantizeSettings(
        bits=(args.bits,), rows=ROWS, target="openvino", block_steps=args.steps,
        gac_epochs=args.epochs, block_reconstruction=BlockReconstructionSettings(drop_prob=0.0),
    )  # fmt: skip
    lines = [["blocks", "seed", "method", "MAD", "dtSSD", "MAD to float", "dtSSD to float"]]
    for seed in args.seeds:
        for title, network in (("hand-written", rvm), ("automatic", automatic)):
            data = VideoMattingDataModule(
                args.root, Videos(), evaluation="evaluation", num_sequences=args.sequences,
                seq_length=4, height=144, width=256, seed=seed, eval_clips=args.eval_clips,
                eval_frames=args.eval_frames,
            )  # fmt: skip
            torch.manual_seed(seed)
            result = quantize(network, data, settings, args.output / f"{network.name}_{seed}")
            count = sum(bool(block.modules) for block in network.blocks())
            for row in result.rows:
                if row.fidelity is not None and row.plan:
                    figures = (row.metrics["mad"], row.metrics["dtssd"], *row.fidelity)
                    cells = [f"{title} ({count})", str(seed), row.name]
                    lines.append([*cells, *(f"{one:.2f}" for one in figures)])
    Console(highlight=False).print(markdown_cells((lines[0], lines[1:])), soft_wrap=True)


if __name__ == "__main__":
    main()
