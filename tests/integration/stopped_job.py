"""Stress test that stops commands by signals at random moments and restarts them.

Usage: `python stopped_job.py FOLDER STOPS SEED`.
"""

import atexit
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import tiny
import torch
from safetensors.torch import save_file

import ptq4vm.cli.matte
import ptq4vm.cli.quantize_job  # noqa: F401  (imported before forking)
from ptq4vm import cli
from ptq4vm.video.videos import open_writer

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: None}
RESULTS = {
    "quantize": (
        "w4a8/biq.safetensors",
        "w4a8/gac.safetensors",
        "w4a8/quantized.safetensors",
        "float.json",
    ),
    "matte": ("alpha.mp4", "frames/0000.png", "frames/0119.png"),
}


def arguments(command, folder):
    root = folder.parent
    if command == "matte":
        return ["matte", root / "clip", "--model", root / "tiny.safetensors", "--network", "tiny",
                "--device", "cpu", "--alpha", folder / "alpha.mp4",
                "--foreground", folder / "frames"]  # fmt: skip
    data = {
        "num_sequences": 3,
        "seq_length": 3,
        "height": 32,
        "width": 48,
        "eval_clips": 1,
        "eval_frames": 3,
    }
    return ["quantize", "--network=tiny", f"--weights={root / 'tiny.safetensors'}",
            f"--output={folder}", "--bits=[W4A8]", "--block_steps=60", "--gac_epochs=15",
            "--trainer.accelerator=cpu",
            *(f"--data.{name}={value}" for name, value in data.items()),
            f"--data.cache_dir={folder.with_name(folder.name + '-cache')}"]  # fmt: skip


def start(command, folder, log):
    """Start a command in a forked process, which avoids importing again."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                sys.argv[1:] = map(str, arguments(command, folder))
                status = cli.main()
            except KeyboardInterrupt:  # outside of cli.main's handler
                status = 130
            with contextlib.suppress(KeyboardInterrupt):
                atexit._run_exitfuncs()
        finally:
            os._exit(status)
    return child


def wait(child, seconds):
    """Return the exit status in shell convention, or None if the child still runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.01)
    return None


def left_behind(folder):
    places = (folder, folder.with_name(folder.name + "-cache"))
    names = [path.name for place in places for path in place.rglob("*")]
    return [name for name in names if ".part" in name or name.startswith((".", "activations"))]


def results(command, folder):
    return {name: (folder / name).read_bytes() for name in RESULTS[command]}


def stop_often(command, root, stops, draw, log):
    """Run the command until it was stopped `stops` times; return the counts of outcomes."""
    began = time.monotonic()
    if wait(start(command, root / "whole", log), 300) != 0:
        sys.exit(f"the undisturbed {command} failed")
    span, whole, counts = time.monotonic() - began, results(command, root / "whole"), Counter()
    number = 0
    while True:
        folder, last = root / f"stopped{number}", counts.total() >= stops
        child = start(command, folder, log)
        status = wait(child, 300 if last else draw.uniform(0.0, 0.9 * span))
        if status is None and last:
            sys.exit(f"the last {command} takes too long")
        if status is None:
            sent = draw.choice(list(STATUS))
            os.kill(child, sent)
            status = wait(child, 60)
            if status is None:
                os.kill(child, signal.SIGKILL)
                sys.exit(f"{command} in {folder} did not end by {sent.name}")
            counts[f"{sent.name}-{status}"] += 1
            if sent != signal.SIGKILL and left_behind(folder):
                sys.exit(
                    f"{command} in {folder} left {left_behind(folder)} behind after {sent.name}"
                )
            if status not in (0, 128 + sent):
                sys.exit(f"{command} in {folder} ended with status {status} by {sent.name}")
        if status == 0:
            if results(command, folder) != whole:
                sys.exit(f"{folder} differs from the undisturbed {command}")
            if left_behind(folder):
                sys.exit(f"{command} in {folder} left {left_behind(folder)} behind at its end")
            number += 1
            if last:
                return {"finished": number, **counts}
        elif last:
            sys.exit(f"the last {command} ended with status {status}")


def main(folder, stops, seed):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw = random.Random(seed)
    for command in RESULTS:
        root = folder / command
        root.mkdir()
        save_file(tiny.TinyMatting().state_dict(), root / "tiny.safetensors")
        if command == "matte":
            frames = np.random.default_rng(0).integers(0, 255, (120, 96, 128, 3), np.uint8)
            with open_writer(root / "clip", (96, 128), Fraction(25)) as writer:
                for frame in frames:
                    writer.write(frame)
        log = os.open(root / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        print(command, stop_often(command, root, stops, draw, log), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
