"""Script that runs both phases and a test on one or several processes.

Usage: `python shared_job.py FOLDER PROCESSES [FAIL]`.
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as L
import tiny  # noqa: F401  (registers the network)
import torch

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.phases import BlockReconstructionModule, GACModule, MattingModule
from ptq4vm.quantizers import QConfig

STEPS, SEQUENCES = 20, 8
QUIET = {
    "limit_val_batches": 0, "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip


class Keeper(L.Callback):
    """Callback that saves the module's state after `STEPS` steps and at the end, per rank."""

    def __init__(self, folder):
        self.folder = folder

    def keep(self, trainer, module, when):
        name = f"{type(module).__name__}-{when}-{trainer.global_rank}of{trainer.world_size}.pt"
        torch.save(module.state_dict(), self.folder / name)

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == STEPS:
            self.keep(trainer, module, "early")

    def on_train_end(self, trainer, module):
        self.keep(trainer, module, "end")


class Failing(GACModule):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1 and self.global_step == 1:
            raise RuntimeError("the second process fails")
        return super().training_step(batch, batch_idx)


def main(folder, processes, fail=False):
    torch.set_num_threads(1)
    strategy = "ddp" if processes > 1 else "auto"
    settings = {
        "accelerator": "cpu",
        "devices": processes,
        "strategy": strategy,
        "default_root_dir": folder,
        **QUIET,
    }
    data = VideoMattingDataModule(
        num_sequences=SEQUENCES, seq_length=3, height=32, width=48,
        batch_size=SEQUENCES // processes, eval_clips=1, eval_frames=5, eval_chunk=2,
        cache_dir=folder / "cache",
    )  # fmt: skip
    weights, biq = str(folder / "tiny.safetensors"), folder / f"biq{processes}.safetensors"
    if not fail:
        data.steps_per_epoch = STEPS
        L.seed_everything(0)
        phase = BlockReconstructionModule(
            "tiny", weights, qconfig=QConfig("W4A4"), drop_prob=0.0, output=biq
        )
        L.Trainer(**settings, callbacks=[Keeper(folder)], max_epochs=phase.epochs).fit(
            phase, datamodule=data
        )
    data.steps_per_epoch = None
    options = {
        "weights": weights,
        "feature_weight": 0.5,
        "weight_lr": 1e-3,
        "window": 2,
        "coherence_weight": 1.0,
        "average": 0.9,
    }
    phase = (Failing if fail else GACModule)(biq, **options)
    L.Trainer(**settings, callbacks=[Keeper(folder)], max_epochs=STEPS).fit(phase, datamodule=data)
    (metrics,) = L.Trainer(**settings).test(
        MattingModule(phase.network), datamodule=data, verbose=False
    )
    (folder / f"metrics{processes}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3)
