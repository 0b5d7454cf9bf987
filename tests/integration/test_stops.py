"""Tests of interrupted runs, lost ranks and concurrent runs in one folder."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
STOPS = 12
pytestmark = pytest.mark.slow


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


def test_what_is_stopped_at_random_moments_leaves_nothing_and_ends_the_same(tmp_path):
    """Stop by SIGINT, SIGTERM and SIGKILL; the assertion message contains the random seed."""
    seed = random.randrange(2**31)
    command = [sys.executable, str(HERE / "stopped_job.py"), str(tmp_path), str(STOPS), str(seed)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*/log.txt"))
    assert done.returncode == 0, f"seed {seed}: {done.stderr}\n{logs}"
    assert "Traceback" not in logs, f"seed {seed}: {logs}"
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["quantize", "matte"]


@pytest.fixture
def quantize(tmp_path):
    """Return a function that starts `quantize`; its processes are killed after the test."""
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), tmp_path / "tiny.safetensors")
    started = []

    def start(ranks, **settings):
        data = {
            "num_sequences": 4,
            "seq_length": 2,
            "height": 32,
            "width": 48,
            "eval_clips": 2,
            "eval_frames": 3,
        }
        options = {"network": "tiny", "weights": tmp_path / "tiny.safetensors",
                   "output": tmp_path / "run", "bits": "[W4A8]", "block_steps": 100,
                   "gac_epochs": 1, "trainer.accelerator": "cpu", "trainer.devices": ranks,
                   "data.cache_dir": tmp_path / "cache", **settings,
                   **{f"data.{name}": value for name, value in data.items()}}  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in options.items()]
        process = subprocess.Popen(
            [sys.executable, str(HERE / "tiny.py"), "quantize", *arguments], cwd=tmp_path,
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until_learning(folder, process):
    """Wait until block reconstruction is running."""
    log = folder / "log.txt"
    while not (log.is_file() and ": BIQ" in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(0.5)


def other_rank(process):
    """Return the process id of the second rank."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:  # the process has ended
            continue
        if parent == process.pid and b"tiny.py" in command:
            return int(entry.name)
    raise AssertionError("the second rank is not there")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="ranks are found in /proc")
def test_a_lost_rank_is_told_in_a_line_and_the_same_command_goes_on(tmp_path, quantize):
    process = quantize(ranks=2)
    until_learning(tmp_path / "run", process)
    lost = other_rank(process)
    os.kill(lost, signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Traceback" not in said
    line = (
        f"rank 1 of 2 (pid {lost}) was lost; the same command goes on from the last block or epoch."
    )
    assert line in " ".join(said.split())
    process = quantize(ranks=2)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="ranks are found in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_first_rank_ends_all(tmp_path, quantize, number, status):
    process = quantize(ranks=2)
    until_learning(tmp_path / "run", process)
    other = other_rank(process)
    process.send_signal(number)
    _, said = process.communicate(
        timeout=300
    )  # returns when both ranks, which share the pipes, have ended
    assert process.returncode == status
    assert (
        not Path(f"/proc/{other}").exists()
        or "State:\tZ" in Path(f"/proc/{other}/status").read_text()
    )
    assert said.count("the same command goes on") == 1
    assert "Traceback" not in said
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_second_run_in_one_folder_is_refused_and_the_first_is_not_disturbed(tmp_path, quantize):
    first = quantize(ranks=1)
    until_learning(tmp_path / "run", first)
    first.send_signal(signal.SIGSTOP)  # keep it alive until the second starts
    _, said = quantize(ranks=1).communicate(timeout=300)
    first.send_signal(signal.SIGCONT)
    assert f"got one that process {first.pid} on" in " ".join(said.split())
    _, said = first.communicate(timeout=300)
    assert first.returncode == 0, said


def test_two_runs_make_one_calibration_cache_side_by_side(tmp_path, quantize):
    both = [quantize(ranks=1, output=tmp_path / name, block_steps=2) for name in ("run", "other")]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    one, two = (
        (tmp_path / name / "w4a8/quantized.safetensors").read_bytes() for name in ("run", "other")
    )
    assert one == two
    assert not list((tmp_path / "cache").rglob(".*"))
