"""Tests of benchmarks/paper.py, gac.py, hd_set.py and flow.py, without their runs."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from ptq4vm.flow import warp
from ptq4vm.pipeline import Method, QuantizeSettings
from ptq4vm.quantizers import QConfig
from ptq4vm.reporting.results import Cost, Fidelity, ResultRow, write_metrics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Return a function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def settings_of(config):
    rows = {name: Method(**row) for name, row in config["rows"].items()}
    return QuantizeSettings(
        tuple(config["bits"]), rows=rows, qconfig=QConfig(**config.get("qconfig", {}))
    )


@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4A4"])
def test_rows_of_the_comparison(benchmark, bits):
    paper = benchmark("paper")
    rows = {}
    for family in paper.FAMILIES:
        config = paper.configuration(bits, family)
        rows |= settings_of(config).methods
        assert config["data"]["num_sequences"] * config["data"]["seq_length"] == 256
    published = ["brecq", "brecq_gac", "brecq_gac_ofa", "qdrop", "qdrop_gac", "qdrop_gac_ofa"]
    ours = ["ours_biq"] if bits == "W8A8" else ["ours_biq", "ours_ofa"]
    assert list(rows) == [
        *(name for one in published for name in (one, f"{one}_grids")), *ours
    ]  # fmt: skip
    assert not rows["qdrop"].qconfig
    assert rows["qdrop_grids"].qconfig["placement"] == "deploy"
    assert rows["qdrop_gac_ofa_grids"].start == "qdrop_grids"
    assert rows["qdrop_gac_ofa_grids"].options == {"flow_weight": 0.05}


def test_table_has_the_papers_figures_beside_the_measured(benchmark):
    paper = benchmark("paper")
    metrics = {"mad": 1.0, "mse": 2.0, "grad": 3.0, "conn": 4.0, "dtssd": 5.0}
    rows = [
        ResultRow("float", "W32A32", "", metrics, Cost(16.0, 0.0, 4e9), method="float"),
        ResultRow(
            "QDrop", "W4A4", "paper", metrics, Cost(9.0, 0.0, 5e8), Fidelity(0.5, 0.25),
            method="qdrop",
        ),
    ]  # fmt: skip
    table = paper.paper_table(rows)
    assert "| float | W32A32 |  | 4.00 | 16.00 | 1.00 |" in table
    # 16 MB times 4/32, as the paper counts.
    assert "| QDrop | W4A4 | paper | 0.50 | 2.00 | 1.00 |" in table
    assert table.strip().endswith("| 5.00 | 0.50 | 24.36 | 18.02 | 4.70 |")


def test_global_calibration_is_run_by_rate_target_and_flow(benchmark, tmp_path, monkeypatch):
    gac = benchmark("gac")
    seen = []

    def quantize(args):
        config = yaml.safe_load(Path(args[2]).read_text())
        seen.append(settings_of({**config, "qconfig": {}}))
        rows = [ResultRow("float", "W32A32", "", {"mad": 5.0, "dtssd": 2.0})]
        for key, method in seen[-1].methods.items():
            figures = {"mad": 5.0 + config["data"]["seed"], "dtssd": 3.0}
            fidelity = Fidelity(1.0, 1.0)
            rows.append(
                ResultRow(method.title, "W4A4", "", figures, Cost(), fidelity, None, key, "W4A4")
            )
        write_metrics(Path(args[4]) / "metrics.json", rows, {})
        return 0

    write_metrics(
        tmp_path / "blocks" / "metrics.json", [ResultRow("BIQ", "W4A4", "deploy", {})], {}
    )
    monkeypatch.setattr(gac.cli, "main", quantize)
    monkeypatch.setattr(gac, "distances", lambda args, groups, network: [7.0, 8.0])
    document = tmp_path / "paper.md"
    document.write_text("# Text\n")
    monkeypatch.setattr(gac, "DOCUMENT", document)
    arguments = ["--root", str(tmp_path), "--blocks", str(tmp_path / "blocks"), "--seeds", "0", "1"]
    arguments += ["--left_out", "one", "--output", str(tmp_path / "gac")]
    monkeypatch.setattr("sys.argv", ["gac", *arguments])
    gac.main()
    methods = seen[0].methods
    own = {method.title: seen[0].options(method) for method in methods.values() if method.start}
    assert len(own) == 8
    assert own["1e-4, true alpha"].absolute_scales
    assert own["1e-4, true alpha"].truth_weight == own["2e-3, teacher, OFA"].teacher_weight == 1
    assert own["2e-3, teacher"].truth_weight == own["2e-3, teacher"].flow_weight == 0
    assert all(one.affine == "per_layer" and one.weight_lr == 0 for one in own.values())
    text = document.read_text()
    assert text.startswith("# Text\n")
    assert "| float |  |  | 5.00 | 2.00 | 0.00 | 0.00 | 0.00 |" in text
    assert "| 2e-3, teacher, OFA |  |  | 5.50 ± 0.50 | 3.00 | 1.00 | 7.00 | 8.00 |" in text


def test_hd_set_is_composed_of_enlarged_layers(benchmark, tmp_path, monkeypatch):
    hd_set = benchmark("hd_set")
    generator = np.random.default_rng(0)
    for clip in ("a_static/one", "a_motion/one"):
        for part in ("com", "pha", "fgr"):
            folder = tmp_path / "evaluation" / clip / part
            folder.mkdir(parents=True)
            for t in range(2):
                image = generator.integers(0, 256, (9, 16, 3), np.uint8)
                cv2.imwrite(str(folder / f"{t}.png"), image[..., 0] if part == "pha" else image)
    for stage, count in (("still", 1), ("moving", 2)):
        folder = tmp_path / "backgrounds" / "train" / stage
        folder.mkdir(parents=True)
        for t in range(count):
            cv2.imwrite(str(folder / f"{t}.png"), np.full((9, 16, 3), 60 * (t + 1), np.uint8))
    monkeypatch.setattr(hd_set, "SIZE", (36, 64))
    monkeypatch.setattr(
        "sys.argv", ["hd_set", "--root", str(tmp_path), "--output", str(tmp_path / "hd")]
    )
    hd_set.main()
    for clip, levels in (("a_static", (60, 60)), ("a_motion", (60, 120))):
        folder = tmp_path / "hd" / hd_set.FOLDER / clip / "one"
        for t, level in enumerate(levels):
            com, pha, fgr = (
                cv2.imread(str(folder / part / f"000{t}.png")).astype(float)
                for part in ("com", "pha", "fgr")
            )
            assert com.shape == (36, 64, 3)
            alpha = pha / 255
            assert np.abs(com - (fgr * alpha + level * (1 - alpha))).max() < 1.5


@pytest.mark.parametrize("seed", [0, 3])
def test_squares_move_by_their_flow(benchmark, seed):
    flow = benchmark("flow")
    frames, exact, visible = flow.square(flow.FINE, seed)
    again = warp(frames[:1], exact)
    seen = visible.bool().expand_as(again)
    assert torch.equal(again[seen], frames[1:][seen])
    uncovered = ~visible[0, 0].bool()
    assert uncovered.sum() == (6 + 2 * seed) * flow.SIDE
    assert (again - frames[1:]).abs().amax(1)[0][uncovered].median() > 0.05


def test_distances_are_kept(benchmark, tmp_path, monkeypatch):
    gac = benchmark("gac")
    network = tmp_path / "a.safetensors"
    args = type("Args", (), {"frames": 3, "root": tmp_path})
    groups = {"left out": ("videos", ["x"])}
    settings = {"groups": {"left out": ["videos", ["x"]]}, "frames": 3}
    (tmp_path / "a.people.json").write_text(json.dumps({"settings": settings, "mad": [4.0]}))
    monkeypatch.setattr(gac, "load_model", None)  # not called
    assert gac.distances(args, groups, network) == [4.0]
