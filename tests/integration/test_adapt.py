"""Adaptation of a quantized network to one clip, and rows that take a checkpoint."""

import json

import numpy as np
import pytest
import tiny
import torch
from jobs import quantize
from safetensors.torch import save_file

from ptq4vm import cli
from ptq4vm.data import VideoMattingDataModule, VideoSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_model
from ptq4vm.metrics import mad
from ptq4vm.pipeline import Method
from ptq4vm.video.images import FolderWriter

NEAREST = Method("nearest", options={"learn_rounding": False, "learn_scales": False})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), folder / "tiny.safetensors")
    rng = np.random.default_rng(0)
    for clip in ("walk", "wave"):
        picture = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
        with FolderWriter(folder / "clips" / clip, (64, 96)) as images:
            for step in range(9):
                images.write(np.roll(picture, 2 * step, 1))
    run(folder, folder / "before", {"nearest": NEAREST})
    return folder


def run(folder, output, rows):
    data = VideoMattingDataModule(
        num_sequences=2, seq_length=2, height=32, width=48, eval_clips=1, eval_frames=2,
        cache_dir=folder / "cache",
    )  # fmt: skip
    weights = str(folder / "tiny.safetensors")
    return quantize(
        data, output, "tiny", weights, {"accelerator": "cpu"}, bits=["W4A4"], rows=rows,
        gac={"truth_weight": 0.0, "teacher_weight": 1.0}, gac_epochs=1,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_network_comes_closer_to_float_on_its_clip(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PTQ4VM_CACHE", str(tmp_path / "cache"))
    args = ["adapt", str(folder / "before"), str(folder / "clips" / "walk"), "--steps", "40"]
    args += ["--weights", str(folder / "tiny.safetensors"), "--accelerator", "cpu"]
    args += ["--output", str(tmp_path / "run")]
    assert cli.main(args) == 0
    assert "quantized.safetensors  (W4A4)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["float", "before", "adapted to this clip"]
    assert rows[2]["fidelity"]["mad"] < 0.9 * rows[1]["fidelity"]["mad"]
    # The table's figures are those of the clip alone, frame after frame.
    clip = VideoSource(folder / "clips", names=["walk"]).read(0, 0, 9).src[None]
    mattes = {}
    for name, model in (("float", folder / "tiny.safetensors"), ("now", tmp_path / "run")):
        with torch.no_grad():
            mattes[name] = load_model(model, "tiny").unroll(clip).pha[0]
    distance = float(mad(mattes["now"], mattes["float"]).mean())
    assert rows[2]["fidelity"]["mad"] == pytest.approx(distance, abs=0.05)
    assert cli.main(args) == 0  # finished: nothing is repeated
    args[2] = str(folder / "clips" / "wave")
    assert cli.main(args) == 2
    assert "Choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "clip", "steps", "message"),
    [
        ("tiny.safetensors", "walk", "5", "Expected a quantized checkpoint"),
        ("before", "gone", "5", "Expected videos named gone"),
        ("before", "walk", "0", "Expected at least 1 step, got 0"),
    ],
)
def test_what_cannot_be_adapted_is_an_error(folder, tmp_path, capsys, model, clip, steps, message):
    args = ["adapt", str(folder / model), str(folder / "clips" / clip), "--steps", steps]
    assert cli.main([*args, "--output", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_row_takes_a_checkpoint_as_it_is(folder, tmp_path):
    found = folder / "before" / "w4a4" / "nearest.safetensors"
    rows = {"taken": Method("taken", checkpoint=found), "gac": Method("GAC", start="taken")}
    result = run(folder, tmp_path / "run", rows)
    assert (tmp_path / "run" / "w4a4" / "taken.safetensors").read_bytes() == found.read_bytes()
    assert result.rows[1].cost.minutes is None
    assert result.rows[2].cost.minutes > 0
    # The same file is taken again; another one is not.
    assert run(folder, tmp_path / "run", rows).rows == result.rows
    found.rename(tmp_path / "kept")
    try:
        (tmp_path / "run" / "w4a4" / "gac.safetensors").replace(found)
        with pytest.raises(PTQ4VMError, match=r"that .*taken.safetensors was copied from"):
            run(folder, tmp_path / "run", rows)
    finally:
        (tmp_path / "kept").replace(found)


def test_a_checkpoint_has_no_phase_and_this_runs_bits(folder, tmp_path):
    with pytest.raises(PTQ4VMError, match="to have no start, options or qconfig"):
        Method("both", start="biq", checkpoint=folder / "q.safetensors")
    rows = {"taken": Method("taken", checkpoint=folder / "tiny.safetensors")}
    with pytest.raises(PTQ4VMError, match="a quantized checkpoint"):
        run(folder, tmp_path / "run", rows)
