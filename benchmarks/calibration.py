"""Benchmark of the training speed of both calibration phases.

Each round fits block reconstruction with a few steps per block, then global calibration from the
resulting checkpoint, on built-in data and with the settings of `ptq4vm quantize`. Reports steps per
second and the time that block reconstruction spends outside its steps. Medians over the rounds are
printed and written as JSON.

`--against` takes the JSON of another version, measured on the same machine with the same options,
and adds a column with the speedup. Times depend on the machine and its load; CPU time varies less
than wall time under load.

    python benchmarks/calibration.py --size 256x144 --threads 1 --rounds 3 \\
        --output after.json --against before.json
"""

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.phases.block_reconstruction import BlockReconstructionModule
from ptq4vm.phases.gac import GACModule
from ptq4vm.quantizers import QConfig


@dataclass
class Seconds:
    """Wall and CPU time in seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Seconds:
    """Return wall and CPU time (all threads), after synchronizing the GPU if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def median(values: list[Seconds]) -> Seconds:
    """Compute the median of each clock separately."""
    return Seconds(
        statistics.median(v.wall for v in values), statistics.median(v.cpu for v in values)
    )


@dataclass
class Round:
    """Timings of one fit of each phase."""

    steps: dict[str, list[Seconds]] = field(default_factory=lambda: defaultdict(list))
    """Time of each training step by block name; global calibration under `gac`."""
    hooks: dict[str, Seconds] = field(default_factory=lambda: defaultdict(Seconds))
    """Total time of block reconstruction by hook (values of `HOOKS`)."""
    fit: Seconds = field(default_factory=Seconds)
    """Total time of block reconstruction, from the first block to the last."""


class StepTimer(pl.Callback):
    """Callback that times every training step, including the optimizer, excluding data loading."""

    def __init__(self, into: Round, name: Callable[[Any], str]) -> None:
        self.into, self.name = into, name

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        self.begin = now()

    def on_train_batch_start(  # noqa: D102
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step = now()

    def on_train_batch_end(  # noqa: D102
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.into.steps[self.name(pl_module)].append(now() - self.step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        self.end = now()


@contextlib.contextmanager
def timed(module: Any, hooks: dict[str, str], into: dict[str, Seconds]) -> Iterator[None]:
    """Accumulate the time spent in the given methods of a module.

    Nested calls are counted once, for the innermost method.

    Args:
        module: object to instrument while the context is active.
        hooks: method name -> key in `into`.
        into: accumulated time by key, updated in place.
    """
    inner = [Seconds()]

    def wrap(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inner.append(Seconds())
            begin = now()
            try:
                return method(*args, **kwargs)
            finally:
                spent = now() - begin
                into[name] += spent - inner.pop()
                inner[-1] += spent

        return call

    for method, name in hooks.items():
        setattr(module, method, wrap(getattr(module, method), name))
    try:
        yield
    finally:
        for method in hooks:
            delattr(module, method)


HOOKS = {
    "_walk": "walks: outputs of finished blocks",
    "on_train_epoch_start": "ranges of a block's activations",
    "_score": "scores for the log",
    "_inputs": "cache reads: inputs (steps too)",
    "_targets": "cache reads: targets (steps too)",
}


def fit(
    module: Any, data: VideoMattingDataModule, timer: StepTimer, folder: Path, accelerator: str
) -> None:
    """Fit a module like the pipeline does, without logger and checkpoints."""
    pl.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator=accelerator, devices=1, callbacks=[timer], max_epochs=module.epochs or 1,
        limit_val_batches=0,
        num_sanity_val_steps=0, enable_model_summary=False, default_root_dir=folder,
        **quiet,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def run_round(arguments: argparse.Namespace, data: VideoMattingDataModule, folder: Path) -> Round:
    """Fit both phases once and return the timings."""
    result, checkpoint = Round(), folder / "biq.safetensors"
    checkpoint.unlink(missing_ok=True)
    qconfig = QConfig(arguments.bits, range_method="minmax")
    blocks = BlockReconstructionModule(arguments.network, qconfig=qconfig, output=checkpoint)
    timer = StepTimer(result, lambda module: module.block.name)
    with timed(blocks, HOOKS, result.hooks):
        batches = data.batches(arguments.batch, arguments.block_steps)
        fit(blocks, batches, timer, folder, arguments.accelerator)
    result.fit = timer.end - timer.begin
    fit(
        GACModule(checkpoint),
        data.batches(arguments.batch, arguments.gac_steps),
        StepTimer(result, lambda _: "gac"),
        folder,
        arguments.accelerator,
    )
    return result


def summarize(rounds: list[Round], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute medians over the rounds, without the first step of each block and of GAC."""
    steps = {
        name: median([s for r in rounds for s in r.steps[name][1:]]) for name in rounds[0].steps
    }
    gac = steps.pop("gac")
    block_step = sum(steps.values(), Seconds())
    total = median([r.fit for r in rounds])
    learned = median(
        [sum((s for n, v in r.steps.items() if n != "gac" for s in v), Seconds()) for r in rounds]
    )
    beside = total - learned
    # Time outside the steps is a fixed cost per block, independent of the number of steps.
    shares = {
        str(count): beside.wall / (beside.wall + count * block_step.wall)
        for count in sorted({arguments.block_steps, 30, 100, 300, 2000})
    }
    return {
        "block_step": asdict(block_step),
        "gac_step": asdict(gac),
        "blocks": {name: asdict(value) for name, value in steps.items()},
        "fit": asdict(total),
        "beside_steps": asdict(beside),
        "hooks": {
            name: asdict(median([r.hooks[name] for r in rounds])) for name in rounds[0].hooks
        },
        "share_beside_steps": shares,
    }


def show(summary: dict[str, Any], before: dict[str, Any] | None, title: str) -> None:
    """Print the tables; `before` adds a column with the speedup in CPU time."""
    console = Console()
    table = Table(
        "step", "steps/s", "wall ms", "CPU ms", *(["times faster"] if before else []), title=title
    )

    def row(name: str, get: Callable[[dict[str, Any]], dict[str, float] | None]) -> None:
        value = get(summary) or {}
        cells = [
            f"{1 / value['wall']:.2f}",
            f"{1e3 * value['wall']:.1f}",
            f"{1e3 * value['cpu']:.1f}",
        ]
        old = get(before) if before else None
        table.add_row(
            name, *cells, *([f"{old['cpu'] / value['cpu']:.2f}" if old else "-"] if before else [])
        )

    row("one step of every block", lambda s: s["block_step"])
    row("global calibration", lambda s: s["gac_step"])
    table.add_section()
    for name in summary["blocks"]:
        row(name, lambda s, name=name: s["blocks"].get(name))  # type: ignore[misc]
    console.print(table)
    table = Table("block reconstruction beside its steps", "wall s", title="a whole fit")
    for name, value in summary["hooks"].items():
        table.add_row(name, f"{value['wall']:.2f}")
    table.add_section()
    table.add_row("all beside the steps", f"{summary['beside_steps']['wall']:.2f}")
    for count, share in summary["share_beside_steps"].items():
        table.add_row(f"its share with {count} steps a block", f"{share:.0%}")
    console.print(table)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network", default="rvm_mobilenetv3", help="registered network; uses its official weights"
    )
    parser.add_argument(
        "--bits", default="W4A4", help="bit widths W<weights>A<activations>; little effect on speed"
    )
    parser.add_argument("--size", default="256x144", help="calibration frame size, WIDTHxHEIGHT")
    parser.add_argument("--frames", type=int, default=4, help="frames per sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences per step")
    parser.add_argument(
        "--sequences",
        type=int,
        default=8,
        help="number of calibration sequences; more make the cache passes longer",
    )
    parser.add_argument("--block-steps", type=int, default=4, help="steps per block, at least 2")
    parser.add_argument(
        "--gac-steps", type=int, default=6, help="steps of global calibration, at least 2"
    )
    parser.add_argument("--rounds", type=int, default=3, help="fits of each phase")
    parser.add_argument(
        "--threads", type=int, default=1, help="number of PyTorch threads; use 1 on a busy machine"
    )
    parser.add_argument(
        "--accelerator", default="cpu", choices=["cpu", "gpu"], help="Lightning accelerator"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("calibration-speed.json"),
        help="JSON file for the results",
    )
    parser.add_argument("--against", type=Path, help="JSON file of another version to compare with")
    arguments = parser.parse_args()
    if min(arguments.block_steps, arguments.gac_steps) < 2:
        parser.error(
            "--block-steps and --gac-steps must be at least 2: the first step of each is left out"
        )
    return arguments


def main() -> None:
    """Run the benchmark, print the tables and write the JSON file."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    width, height = (int(side) for side in arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        data = VideoMattingDataModule(
            num_sequences=arguments.sequences, seq_length=arguments.frames, height=height,
            width=width, batch_size=arguments.batch, eval_clips=1, eval_frames=2,
            cache_dir=Path(folder) / "cache",
        )  # fmt: skip
        rounds = [run_round(arguments, data, Path(folder)) for _ in range(arguments.rounds)]
    summary = summarize(rounds, arguments)
    before = json.loads(arguments.against.read_text()) if arguments.against else None
    shape = f"{arguments.size}, {arguments.batch} x {arguments.frames} frames"
    where = f"{arguments.accelerator}, {arguments.threads} threads"
    show(summary, before, f"{arguments.network} {shape}, {where}")
    options = {key: str(value) for key, value in vars(arguments).items()}
    arguments.output.write_text(
        json.dumps({"options": options, "torch": torch.__version__, **summary}, indent=2)
    )


if __name__ == "__main__":
    main()
