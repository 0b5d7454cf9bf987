"""Tests of benchmarks/people.py against plain numpy."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ptq4vm.models import create_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "people.py"


@pytest.fixture
def people():
    spec = importlib.util.spec_from_file_location("people", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_distances_are_those_of_numpy(people):
    generator = torch.Generator().manual_seed(0)
    pha, reference = (torch.rand(3, 1, 20, 30, generator=generator) for _ in range(2))
    reference[..., :10], reference[..., -10:] = 0.001, 0.999
    pha[0, ..., :5], pha[0, ..., -5:] = 0.0, 1.0
    found = people.distance(pha, reference)
    p, r = pha.numpy().astype(float), reference.numpy().astype(float)
    assert found.mad == pytest.approx(1e3 * np.abs(p - r).mean(), rel=1e-4)
    assert found.fog == pytest.approx(1e3 * p[r < 1 / 255].mean(), rel=1e-4)
    assert found.holes == pytest.approx(1e3 * (1 - p[r > 254 / 255]).mean(), rel=1e-4)
    assert found.zeros == pytest.approx(100 * (np.rint(p * 255) == 0).mean(), rel=1e-4)
    assert found.ones == pytest.approx(100 * (np.rint(p * 255) == 255).mean(), rel=1e-4)
    change = np.diff(p, axis=0) - np.diff(r, axis=0)
    steps = np.sqrt((change**2).mean((1, 2, 3)))
    assert found.dtssd == pytest.approx(1e2 * np.append(0, steps).mean(), rel=1e-4)


def test_the_float_network_is_at_no_distance_from_itself(people, tmp_path, monkeypatch, capsys):
    clip = tmp_path / "videos" / "clip"
    clip.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    for t, image in enumerate(images):
        cv2.imwrite(str(clip / f"{t}.png"), image)
    torch.manual_seed(0)
    network = create_model("rvm_mobilenetv3")
    monkeypatch.setattr(people, "load_model", lambda name: network)
    arguments = ["--videos", str(clip.parent), "--models", "same", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["people", *arguments])
    people.main()
    found = json.loads((tmp_path / "people.json").read_text())["mean"]
    assert found["same"] == found["float"]
    assert (found["same"]["mad"], found["same"]["dtssd"]) == (0, 0)
    assert found["same"]["cold"] == pytest.approx(people.LEAST)
    assert found["same"]["settled"] is None
    assert "| same |" in capsys.readouterr().out


def test_starts_are_cold_or_with_the_float_networks_state(people, monkeypatch):
    torch.manual_seed(0)
    reference, other = (create_model("rvm_mobilenetv3").eval() for _ in range(2))
    monkeypatch.setattr(people, "EVERY", 2)
    src = torch.rand(5, 3, 32, 48)
    with torch.inference_mode():
        states = people.states_before(reference, src)
        assert list(states) == [2]
        (start,) = people.begin(reference, src, states)
        found = start.error(other)
        _, alpha, _ = reference.unroll(src[None, :4])
        pha = other.unroll(src[None, 2:4], reference.unroll(src[None, :2]).state).pha
        assert found == pytest.approx(1e3 * float((pha - alpha[:, 2:]).abs().mean()), rel=1e-4)
        first = people.begin(reference, src, dict.fromkeys((0, 2)))[0].error(other)
        pha, alpha = (one.unroll(src[None, :2]).pha for one in (other, reference))
        assert first == pytest.approx(1e3 * float((pha - alpha).abs().mean()), rel=1e-4)
    assert people.Starts([1.0, 100.0], []).means() == {"cold": pytest.approx(10), "settled": None}
