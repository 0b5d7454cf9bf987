"""From a folder of clips to an exported network, in one command."""

import json

import av
import numpy as np
import pytest

from ptq4vm import cli
from ptq4vm.deploy import ExportedNetwork
from ptq4vm.graph import load_model


def write_clip(path, seed, frames=6, height=96, width=128):
    """Write a moving noise pattern."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mjpeg", rate=30)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p"
        for step in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * step, 1), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_clips_becomes_a_checked_graph(tmp_path, official_weights, capsys):
    clips, run = tmp_path / "clips", tmp_path / "run"
    clips.mkdir()
    for number in range(5):
        write_clip(clips / f"{number}.mkv", number)
    small = ["--data.num_sequences", "2", "--data.seq_length", "2", "--data.height", "64"]
    small += ["--data.width", "96", "--data.eval_frames", "3", "--data.enlarge", "1"]
    small += ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.accelerator", "cpu"]
    small += ["--tolerance", "0.01"]  # one step leaves mattes that a rounding tips over
    small += ["--block_steps", "1", "--gac_epochs", "1", "--target", "openvino"]
    args = ["quantize", "rvm_mobilenetv3", "--data", str(clips), "--recipe", "w4a8", *small]
    assert cli.main([*args, "--size", "64x96", "--output", str(run)]) == 0
    said = capsys.readouterr().out
    assert "device      cpu" in said
    assert "mean |Δα|" in said
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["float", "BIQ", "BIQ + GAC + OFA"]
    assert all(row["fidelity"]["mad"] >= 0 for row in rows)
    assert not any(row["metrics"] for row in rows)  # no true alpha
    exported = ExportedNetwork(run / "w4a8" / "openvino_64x96.onnx")
    assert exported.description["bits"].startswith("W4A8")
    assert load_model(run).qconfig.bits == "W4A8"
    timed = json.loads((run / "speed.json").read_text())["rows"]
    assert len(timed) == 2
    assert "openvino_64x96" in (run / "report.html").read_text()
