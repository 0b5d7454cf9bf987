"""Tests of benchmarks/speed.py on a small frame."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("official_weights")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_all_are_timed_and_stand_in_the_document(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("speed")
    document = tmp_path / "results.md"
    document.write_text("# Results\n")
    monkeypatch.setattr(sys.modules["results"], "DOCUMENT", document)
    monkeypatch.setattr(speed, "SIZES", {"64x96": (64, 96, 0.5)})
    output = str(tmp_path / "bench")
    monkeypatch.setattr(
        sys, "argv", ["speed.py", "--rounds", "2", "--threads", "1", "--output", output]
    )
    speed.main()
    text = document.read_text()
    titles = ["PyTorch float", "ONNX Runtime float", "OpenVINO W8A8, ours", "ONNX Runtime, min-max"]
    assert all(f"| {title} |" in text for title in titles)
    rows = json.loads((tmp_path / "bench" / "64x96" / "speed.json").read_text())["rows"]
    assert [row["layers"] for row in rows[:2]] == ["", "85 float32"]
    assert rows[4]["layers"] == "78 int8, 7 float32"
    for name in ("speed", "results", "peers"):
        sys.modules.pop(name, None)
