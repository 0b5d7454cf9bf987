"""Tests of benchmarks/drift.py against a plain loop over the frames."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from ptq4vm.graph import load_model, quantize_network, quantized_layers, save_quantized
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig, activation_quantizers, observing

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "drift.py"


def test_a_clip_is_played_to_and_fro_with_the_state_fed_back(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("drift", SCRIPT)
    drift = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drift)
    clip = tmp_path / "videos" / "clip"
    clip.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    for t, image in enumerate(images):
        cv2.imwrite(str(clip / f"{t}.png"), image)
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
    arguments = [
        "--videos",
        str(clip.parent),
        "--models",
        str(checkpoint),
        "--frames",
        "6",
        "--height",
        "48",
    ]
    monkeypatch.setattr(
        sys, "argv", ["drift", *arguments, "--width", "64", "--output", str(tmp_path / "out")]
    )
    drift.main()
    order = (
        torch.from_numpy(images[[0, 1, 2, 1, 0, 1], :, :, ::-1].copy())
        .permute(0, 3, 1, 2)
        .float()[None]
        / 255
    )
    with torch.no_grad():
        error = (load_model(checkpoint).unroll(order).pha - network.unroll(order).pha)[
            0
        ].abs().mean((1, 2, 3)) * 1e3
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    torch.testing.assert_close(
        torch.tensor(found["mad_to_float"][str(checkpoint)]), error, rtol=1e-4, atol=1e-5
    )
    assert (tmp_path / "out" / "drift.png").stat().st_size > 1000
