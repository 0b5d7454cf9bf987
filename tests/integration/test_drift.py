"""Tests of benchmarks/drift.py against a plain loop over the frames."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ptq4vm.graph import load_model, quantize_network, quantized_layers, save_quantized
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig, activation_quantizers, observing

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "drift.py"


@pytest.mark.parametrize("cut", [False, True])
def test_clips_are_played_with_the_state_fed_back(tmp_path, monkeypatch, cut):
    spec = importlib.util.spec_from_file_location("drift", SCRIPT)
    drift = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drift)
    # Frames 3 to 5 are another clip.
    images = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8)
    for t, image in enumerate(images if cut else images[:3]):
        folder = tmp_path / "videos" / str(t // 3)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{t}.png"), image)
    torch.manual_seed(0)
    network = create_model("rvm_mobilenetv3").eval()
    quantized = quantize_network(network, QConfig("W4A8", range_method="minmax"))
    with observing(activation_quantizers(quantized)), torch.no_grad():
        quantized.unroll(torch.rand(1, 2, 3, 48, 64))
    for layer in quantized_layers(quantized).values():
        layer.fix_()
    checkpoint = tmp_path / "quantized.safetensors"
    save_quantized(quantized, QConfig("W4A8", range_method="minmax"), checkpoint, {})
    monkeypatch.setattr(
        drift, "load_model", lambda name: network if name == "rvm_mobilenetv3" else load_model(name)
    )
    arguments = {
        "videos": tmp_path / "videos", "models": checkpoint, "output": tmp_path / "out",
        "frames": 6, "height": 48, "width": 64,
    }  # fmt: skip
    given = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["drift", *given, *(["--cut"] if cut else [])])
    drift.main()
    orders = [[0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]] if cut else [[0, 1, 2, 1, 0, 1]]
    errors = []
    for order in orders:
        frames = torch.from_numpy(images[order, :, :, ::-1].copy()).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            alphas = [one.unroll(frames[None] / 255).pha[0] for one in (quantized, network)]
        errors.append(1e3 * (alphas[0] - alphas[1]).abs().mean((1, 2, 3)))
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    curve, parts = (found[name][str(checkpoint)] for name in ("mad_to_float", "parts"))
    expected = torch.stack(errors).mean(0)
    torch.testing.assert_close(torch.tensor(curve), expected, rtol=1e-4, atol=1e-5)
    assert len(parts) == (4 if cut else 3)
    assert parts[-1] == pytest.approx(float(expected[-len(expected) // len(parts) :].mean()), 1e-3)
    assert (tmp_path / "out" / "drift.png").stat().st_size > 1000
