"""Tests of benchmarks/peers.py: scoring, calibration frames, and a run with ONNX Runtime."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import lightning.pytorch as L
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import export_onnx
from ptq4vm.models import RobustVideoMatting
from ptq4vm.phases import MattingModule

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"
HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write two evaluation clips of four frames: a soft disc moving over noise."""
    root = tmp_path_factory.mktemp("root")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0)
    for clip in ("one", "two"):
        for t in range(4):
            pha = np.clip(16 - np.hypot(x - 24 - 3 * t, y - 24), 0, 1) * 255
            com = noise.integers(0, 256, (HEIGHT, WIDTH, 3))
            for kind, image in (("com", com), ("pha", pha), ("fgr", com)):
                path = root / "evaluation" / "set" / clip / kind / f"{t:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), image.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def network():
    """Create a random network with BatchNorm statistics estimated on noise."""
    torch.manual_seed(0)
    network = RobustVideoMatting()
    with torch.no_grad():
        network.train()(torch.rand(2, 1, 3, 64, 64))
    return network.eval().requires_grad_(False)


def test_float_graph_scores_as_the_network(peers, root, network, tmp_path):
    # Chunks of three frames: the state and the last frame are carried over within a clip only.
    data = VideoMattingDataModule(root, evaluation="evaluation", eval_chunk=3)
    data.setup("test")
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    expected = trainer.test(MattingModule(network), datamodule=data, verbose=False)[0]
    assert peers.evaluation_sizes(data) == {(HEIGHT, WIDTH)}
    run = peers.open_onnx_runtime(export_onnx(network, HEIGHT, WIDTH, tmp_path / "float.onnx"))
    frames = []
    got = peers.score({"float": run}, network, data, advance=lambda: frames.append(1))["float"]
    assert len(frames) == data.evaluation_set.num_frames == 8
    assert got.pop("mad_to_float") < 1e-2
    assert got.pop("dtssd_to_float") < 1e-2
    assert got == {
        key.removeprefix("test/"): pytest.approx(value, rel=1e-3) for key, value in expected.items()
    }
    assert got["dtssd"] > 0


def test_distance_is_that_to_the_networks_own_alpha(peers, root, network):
    data = VideoMattingDataModule(root, evaluation="evaluation", eval_clips=1)
    data.setup("test")

    def off_by_a_tenth(feed):
        state = tuple(torch.from_numpy(value) for name, value in feed.items() if name != "src")
        output = network.forward_frame(torch.from_numpy(feed["src"]), state)
        pha = torch.where(output.pha > 0.5, output.pha - 0.1, output.pha + 0.1)
        return [tensor.numpy() for tensor in (output.fgr, pha, *output.state)]

    scores = peers.score({"off": off_by_a_tenth}, network, data)["off"]
    assert scores["mad_to_float"] == pytest.approx(100, rel=1e-4)


def test_calibration_frames_carry_the_float_networks_state(peers, network, tmp_path):
    run = peers.open_onnx_runtime(export_onnx(network, HEIGHT, WIDTH, tmp_path / "float.onnx"))
    src = torch.rand(3, 3, HEIGHT, WIDTH)
    fresh = peers.make_feeds(run, network, iter([src]), "fresh")
    settled = peers.make_feeds(run, network, iter([src]), "settled")
    assert [list(feed) for feed in fresh + settled] == [["src", "r1i", "r2i", "r3i", "r4i"]] * 6
    assert not fresh[0]["r4i"].any()
    state = network.unroll(src[None, :2]).state
    np.testing.assert_allclose(fresh[2]["r4i"], state[3], atol=1e-4)
    state = network.unroll(src[None, [2, 1, 0, 0, 1]]).state
    np.testing.assert_allclose(settled[2]["r1i"], state[0], atol=1e-4)
    np.testing.assert_array_equal(settled[2]["src"], src[2:])


@pytest.mark.parametrize("opener", ["open_onnx_runtime", "open_openvino"])
def test_exact_sums_of_the_largest_codes(peers, opener, tmp_path):
    """Exceed 16 bits with the sum of two products 255 * 127, which saturates without VNNI."""
    scale, zero_u8, zero_s8 = np.float32(1 / 255), np.uint8(0), np.int8(0)
    initializers = {
        "scale": scale,
        "zero": zero_u8,
        "w": np.full((1, 16, 1, 1), 127, np.int8),
        "zero_w": zero_s8,
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("QuantizeLinear", ["src", "scale", "zero"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
            onnx.helper.make_node("DequantizeLinear", ["w", "scale", "zero_w"], ["weight"]),
            onnx.helper.make_node("Conv", ["x", "weight"], ["y"]),
        ],
        "layer",
        [onnx.helper.make_tensor_value_info("src", onnx.TensorProto.FLOAT, [1, 16, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 8, 8])],
        [
            onnx.numpy_helper.from_array(np.asarray(value), name)
            for name, value in initializers.items()
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "layer.onnx")
    run = getattr(peers, opener)(tmp_path / "layer.onnx", exact_sums=True)
    (y,) = run({"src": np.ones((1, 16, 8, 8), np.float32)})
    np.testing.assert_allclose(y, 16 * 127 / 255, rtol=1e-5)


@pytest.mark.slow
def test_a_run_leaves_graphs_and_metrics(peers, root, network, tmp_path, capsys):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    # The evaluation clips are larger than the calibration frames: graphs need dynamic sizes.
    args = [
        "--data.root",
        str(root),
        "--data.source",
        "EvaluationTree",
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    args += [
        "--data.num_sequences",
        "2",
        "--data.seq_length",
        "2",
        "--data.height",
        "32",
        "--data.width",
        "48",
    ]
    args += ["--output", str(tmp_path / "out"), "--weights", str(tmp_path / "weights.safetensors")]
    assert peers.main([*args, "--peers", "[minmax,percentile]"]) == 0
    written = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert written["meta"]["calibration_frames"] == 4
    assert written["meta"]["graphs"] == "open height and width"
    reference, *rows = written["rows"]
    assert reference["bits"] == "W32A32"
    assert reference["fidelity"]["mad"] < 1e-2
    for row in rows:
        assert row["bits"] == "W8A8"
        assert row["cost"]["size_mb"] < 0.4 * reference["cost"]["size_mb"]
        assert 0 < row["fidelity"]["mad"] < 100
        assert row["cost"]["minutes"] > 0
        assert set(row["metrics"]) == {"mad", "mse", "grad", "conn", "dtssd"}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "float.onnx", "onnxruntime_minmax.onnx", "onnxruntime_percentile.onnx", "peers.json"
    ]  # fmt: skip
    assert "ONNX Runtime, min-max" in capsys.readouterr().out


def test_a_missing_package_is_told_before_any_work(peers, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name)
    )
    assert peers.main(["--data.root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "nncf" in message
    assert ".[peers]" in message
    assert not list(tmp_path.iterdir())
