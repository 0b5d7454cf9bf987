"""Stress test that kills and restarts a small quantization run at random moments.

Usage: `python killed_job.py FOLDER KILLS SEED`.

Each start uses a random number of loader processes; the uninterrupted reference run uses none.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import tiny
import torch
from jobs import quantize
from safetensors.torch import save_file

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.pipeline import Method

KEPT = (
    "w4a8/biq.safetensors",
    "w4a8/ours.safetensors",
    "w4a8/quantized.safetensors",
    "float.json",
    "w4a8/ours.json",
)


def run(folder, workers=0):
    data = VideoMattingDataModule(
        num_sequences=3, seq_length=3, height=32, width=48, eval_clips=1, eval_frames=3,
        cache_dir=folder / "cache", num_workers=workers,
    )  # fmt: skip
    rows = {
        "biq": Method("BIQ"),
        "ours": Method("ours", "biq", {"weight_lr": 0.01, "window": 2, "average": 0.9}),
    }
    weights = str(folder.parent / "tiny.safetensors")
    quantize(data, folder, "tiny", weights, bits=["W4A8"], rows=rows, block_steps=40, gac_epochs=40,
             gac_batch_size=2, trainer={"accelerator": "cpu", "logger": False})  # fmt: skip


def start(folder, log, workers=0):
    """Start a run in a forked process, which avoids importing again."""
    child = os.fork()
    if child == 0:
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            run(folder, workers)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ends_within(child, seconds):
    """Return whether the child succeeded within the time; exit if it failed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                sys.exit(f"a run failed with status {status}")
            return True
        time.sleep(0.01)
    return False


def results(folder):
    return {name: (folder / name).read_bytes() for name in KEPT}


def main(folder, kills, seed):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), folder / "tiny.safetensors")
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    began = time.monotonic()
    if not ends_within(start(folder / "whole", log), 300):
        sys.exit("the uninterrupted run takes too long")
    span, draw = time.monotonic() - began, random.Random(seed)
    done, number, last, differing = 0, 0, False, []
    while not last:
        target, last = folder / f"killed{number}", done == kills
        child = start(target, log, workers=draw.randrange(3))
        if ends_within(child, 300 if last else draw.uniform(0.0, 0.7 * span)):
            if results(target) != results(folder / "whole"):
                differing.append(target.name)
            number += 1
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            if last:
                sys.exit("the last run takes too long")
    print(f"{done} kills, {number} runs finished, {span:.1f} s uninterrupted")  # noqa: T201
    if differing:
        sys.exit(
            f"{len(differing)} of {number} differ from the uninterrupted run: "
            f"{', '.join(differing)}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
