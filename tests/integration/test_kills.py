"""Tests of runs killed at random moments."""

import os
import random
import subprocess
import sys
from pathlib import Path

import killed_job
import pytest
import tiny
import torch
from safetensors.torch import save_file

from ptq4vm.phases import BlockReconstructionModule, GACModule

HERE = Path(__file__).parent
KILLS = 20


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_if_it_had_not_been(tmp_path):
    """Draw new moments on every run; the assertion message contains the seed."""
    seed = random.randrange(2**31)
    command = [sys.executable, str(HERE / "killed_job.py"), str(tmp_path), str(KILLS), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, f"seed {seed}: {done.stderr}\n{log[-3000:]}"
    assert done.stdout.startswith(f"{KILLS} kills")


@pytest.mark.filterwarnings("ignore")
def test_finished_blocks_are_not_learned_again(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    save_file(tiny.TinyMatting().state_dict(), tmp_path / "tiny.safetensors")
    step, learned, kill = BlockReconstructionModule.training_step, [], [True]

    def watched(self, batch, batch_idx):
        learned.append(self.block.name)
        if kill and self.block.name == "recurrent":
            raise Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(BlockReconstructionModule, "training_step", watched)
    with pytest.raises(Killed):
        killed_job.run(tmp_path / "run")
    assert set(learned) == {"encoder", "recurrent"}
    learned.clear()
    kill.clear()
    killed_job.run(tmp_path / "run")
    assert set(learned) == {"recurrent", "head"}


@pytest.mark.filterwarnings("ignore")
def test_a_run_killed_after_the_last_step_still_averages(tmp_path, monkeypatch):
    """Lightning skips training then, and the end of it, where the average is taken."""
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), tmp_path / "tiny.safetensors")
    killed_job.run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(GACModule, "on_fit_end", leave)
        with pytest.raises(SystemExit):
            killed_job.run(tmp_path / "cut")
    killed_job.run(tmp_path / "cut")
    assert killed_job.results(tmp_path / "cut") == killed_job.results(tmp_path / "whole")


def leave(phase):
    raise SystemExit(9)
