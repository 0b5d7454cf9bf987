"""Tests of `ptq4vm benchmark`."""

import json
from pathlib import Path

import pytest

from ptq4vm import cli
from ptq4vm.deploy import export_onnx, measure_speed, open_network
from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import create_model
from ptq4vm.reporting import speed_cells
from ptq4vm.reporting.speeds import read_speeds

pytestmark = pytest.mark.usefixtures("official_weights")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return export_onnx(
        create_model("rvm_mobilenetv3"), 64, 96, tmp_path_factory.mktemp("graph") / "float.onnx"
    )


def test_networks_stand_side_by_side(graph, tmp_path, capsys, monkeypatch):
    # Subprocesses must not import modules from the current directory.
    for name in ("multiprocessing", "pickle", "random", "struct", "torch"):
        (tmp_path / f"{name}.py").write_text(
            "raise SystemExit('imported from the current directory')"
        )
    monkeypatch.chdir(tmp_path)
    models = ["rvm_mobilenetv3", str(graph), f"{graph}@onnxruntime"]
    settings = [
        "--size",
        "64x96",
        "--rounds",
        "3",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "speed.json"),
    ]
    assert cli.main(["benchmark", *models, *settings]) == 0
    assert "median" in capsys.readouterr().out
    written = json.loads((tmp_path / "speed.json").read_text())
    rows = written["rows"]
    assert [row["model"] for row in rows] == models
    assert [(row["runtime"], row["layers"]) for row in rows] == [
        ("torch", ""),
        ("openvino", "78 float32"),
        ("onnxruntime", "78 float32"),
    ]
    for row in rows:
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert row["fps"] == pytest.approx(1e3 / row["median_ms"])
        assert 1 < row["memory_mb"] < 2000
    _, cells = speed_cells(read_speeds(tmp_path / "speed.json"))
    for row, shown in zip(rows, cells, strict=True):
        assert float(shown[7]) == pytest.approx(row["fps"] / rows[0]["fps"], rel=0.05)
    assert rows[1]["size_mb"] == pytest.approx(Path(graph).stat().st_size / 1e6)


@pytest.mark.parametrize(("model", "message"), [
    ("nothing", "Expected a model"),
    ("rvm_mobilenetv3@openvino", "Expected an exported graph for openvino"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_told(model, message):
    with pytest.raises(PTQ4VMError, match=message):
        measure_speed([model], 64, 96, rounds=1, threads=1)


def test_a_graph_of_another_size_is_told(graph):
    with pytest.raises(PTQ4VMError, match="frames of 64 x 96"):
        measure_speed([str(graph)], 96, 64, rounds=1, threads=1)


def test_no_rounds_are_refused(graph):
    with pytest.raises(PTQ4VMError, match="at least one round"):
        measure_speed([str(graph)], 64, 96, rounds=0)


def test_a_runtime_is_an_exported_graphs():
    with pytest.raises(PTQ4VMError, match="exported graph"):
        open_network("rvm_mobilenetv3", runtime="openvino")
