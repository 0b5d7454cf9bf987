"""Tests of two processes on one CPU against a single process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import shared_job
import tiny
import torch
from safetensors.torch import save_file

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.graph import load_model
from ptq4vm.pipeline.run import Run
from ptq4vm.quantizers import QConfig

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def launch(script, *args, cwd):
    """Run a script and return the completed process; fail if it takes more than 300 s."""
    command = [sys.executable, str(HERE / script), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared")
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), path / "tiny.safetensors")
    return path


@pytest.fixture(scope="module")
def shared(folder):
    done = launch("shared_job.py", folder, 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    shared_job.main(folder, 1)
    return folder


@pytest.mark.parametrize("phase", ["BlockReconstructionModule", "GACModule"])
def test_processes_end_bit_identical(shared, phase):
    first, second = (torch.load(shared / f"{phase}-end-{rank}of2.pt") for rank in range(2))
    assert len(first) > 10
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("phase", ["BlockReconstructionModule", "GACModule"])
def test_two_processes_learn_what_one_learns_from_twice_the_batch(shared, phase):
    one, two = (torch.load(shared / f"{phase}-early-0of{count}.pt") for count in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_a_process_without_clips_neither_hangs_nor_counts(shared):
    """Evaluate one clip on two processes."""
    one, two = (json.loads((shared / f"metrics{count}.json").read_text()) for count in (1, 2))
    assert two.keys() == one.keys()
    assert two["test/mad"] == pytest.approx(one["test/mad"], rel=1e-2)


def test_a_process_that_fails_ends_the_run_with_its_error(shared):
    done = launch("shared_job.py", shared, 2, "fail", cwd=shared)
    assert done.returncode != 0
    assert "the second process fails" in done.stderr


def test_quantize_with_uneven_shares(folder):
    """Run five sequences and three clips on two processes; compare the scores with one process."""
    sizes = {
        "num_sequences": 5,
        "seq_length": 2,
        "height": 32,
        "width": 48,
        "eval_clips": 3,
        "eval_frames": 5,
    }
    args = [
        f"--data.{name}={value}" for name, value in {**sizes, "cache_dir": folder / "cache"}.items()
    ]
    args += [
        "--network=tiny",
        f"--weights={folder / 'tiny.safetensors'}",
        "--output=run",
        "--block_steps=2",
    ]
    args += ["--gac_epochs=1", "--bits=[W4A8]", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    done = launch("tiny.py", "quantize", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint ") == 1
    data = VideoMattingDataModule(**sizes, cache_dir=folder / "cache")
    run = Run(folder / "alone", data, {"accelerator": "cpu"}, "float")
    teacher = load_model(folder / "tiny.safetensors", "tiny")
    run.folder.mkdir()
    run.prepare(teacher, {})
    rows = json.loads((folder / "run" / "metrics.json").read_text())["rows"]
    assert len(rows) == 5
    assert len(json.loads((folder / "run" / "float.frames.json").read_text())) == 3
    for row, network, plan in (
        (rows[0], teacher, None),
        (rows[-1], load_model(folder / "run"), QConfig()),
    ):
        expected = run.score(folder / "alone" / f"{row['name']}.json", "alone", network, plan)
        assert row["metrics"] == pytest.approx(expected.metrics, rel=1e-5)


def test_chunks_of_a_clip_stay_together(monkeypatch, folder):
    data = VideoMattingDataModule(
        height=32, width=48, eval_chunk=2, eval_frames=5, eval_clips=3, cache_dir=folder
    )
    data.attach(tiny_teacher())
    seen = []
    for rank in range(2):
        monkeypatch.setattr("ptq4vm.distributed.count", lambda: 2)
        monkeypatch.setattr("ptq4vm.distributed.rank", lambda rank=rank: rank)
        seen.append([(clip.name, int(clip.start)) for clip in data.test_dataloader()])
    assert [start for _, start in seen[0]] == [0, 2, 4, 0, 2, 4]
    assert [start for _, start in seen[1]] == [0, 2, 4]
    assert len({name for share in seen for name, _ in share}) == 3


def tiny_teacher():
    from ptq4vm.calibration import make_teacher

    return make_teacher(tiny.TinyMatting().eval(), "tiny")
