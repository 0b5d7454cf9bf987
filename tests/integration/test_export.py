"""Tests of `ptq4vm export` and of the exported graphs."""

import functools
import json

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from skimage.data import astronaut

from ptq4vm import cli
from ptq4vm.deploy import ExportedNetwork, ExportOptions, Parity, export
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantize_network, quantized_layers
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig

pytestmark = pytest.mark.usefixtures("official_weights")


@pytest.fixture
def tree(tmp_path):
    """Write a clip of three frames in RVM's evaluation layout."""
    frame = cv2.resize(astronaut(), (96, 80))
    for kind in ("com", "pha"):
        folder = tmp_path / "tree" / "set" / "0000" / kind
        folder.mkdir(parents=True)
        for t in range(3):
            image = np.roll(frame, t, 1)
            cv2.imwrite(
                str(folder / f"{t}.png"),
                image[..., 1] // 128 * 255 if kind == "pha" else image[..., ::-1],
            )
    return tmp_path / "tree"


def test_an_exported_network_is_scored_and_matted_with(tree, tmp_path, capsys):
    graph, frames = tmp_path / "float.onnx", tree / "set" / "0000" / "com"
    args = ["export", "rvm_mobilenetv3", "--bits", "32", "--size", "80x96", "--out", str(graph)]
    assert cli.main([*args, "--clip", str(frames), "--target", "onnxruntime"]) == 0
    told = capsys.readouterr().out
    assert "weights stored at 32 bits; onnxruntime executes 0 of 78 layers as int8" in told
    assert "over 30 frames in onnxruntime" in told
    scores = []
    for model in ("rvm_mobilenetv3", str(graph)):
        path = tmp_path / "m.json"
        run = [
            "evaluate",
            model,
            "--data",
            str(tree),
            "--json",
            str(path),
            "--accelerator",
            "cpu",
            "--threads",
            "1",
        ]
        assert cli.main(run) == 0
        scores.append(json.loads(path.read_text())["rows"][0])
    assert scores[1]["metrics"] == pytest.approx(scores[0]["metrics"], rel=1e-3)
    assert scores[1]["bits"] == "W32A32"
    alpha = tmp_path / "alpha"
    assert cli.main(["matte", str(frames), "--model", str(graph), "--alpha", str(alpha)]) == 0
    assert len(list(alpha.glob("*.png"))) == 3
    assert "3 frames, 0 cuts found" in capsys.readouterr().out
    cuts = tmp_path / "cuts.txt"
    for text, status, message in (
        ("2\n", 0, "3 frames, 1 cut\n"),
        ("soon\n", 2, "got 'soon' as number 1"),
    ):
        cuts.write_text(text)
        run = [
            "matte",
            str(frames),
            "--model",
            str(graph),
            "--alpha",
            str(alpha),
            "--cuts",
            str(cuts),
        ]
        assert cli.main(run) == status
        assert message in "".join(capsys.readouterr()).replace(" \n'soon", " 'soon")


def test_bad_input_is_told_in_a_line(tmp_path, capsys):
    out = str(tmp_path / "q.onnx")
    for args, message in (
        (["rvm_mobilenetv3", "--size", "80"], "Expected a size as HEIGHTxWIDTH"),
        (["rvm_mobilenetv3", "--size", "80x96", "--frames", "3"], "Expected at least 30 frames"),
        (["nothing", "--size", "80x96"], "Expected a model"),
    ):
        assert cli.main(["export", *args, "--out", out]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sums_that_may_saturate_are_asked_to_be_exact(tmp_path, monkeypatch):
    """Simulate a CPU with saturating kernels, where the first parity check fails."""
    found = iter([Parity(30, 1e-2, 0.5, 0.1), Parity(30, 1e-4, 0.1, 0.0)])
    monkeypatch.setattr("ptq4vm.deploy.checked_export.measure_parity", lambda *_: next(found))
    asked = []
    entry = onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "add_session_config_entry",
        lambda *args: asked.append(args[1:]) or entry(*args),
    )
    network = create_model("rvm_mobilenetv3", weights="official")
    exported = export(network, 64, 64, tmp_path / "q.onnx", ExportOptions(target="onnxruntime"))
    assert exported.parity.mean == 1e-4
    assert asked == [("session.x64quantprecision", "1")]
    ExportedNetwork(exported.path)
    assert len(asked) == 2


def test_mattes_that_differ_leave_no_file(tmp_path):
    network = create_model("rvm_mobilenetv3", weights="official")
    with pytest.raises(
        PTQ4VMError, match=r"Expected mattes from openvino that differ .*Nothing was written"
    ):
        export(network, 64, 64, tmp_path / "q.onnx", tolerance=-1.0)
    assert not list(tmp_path.iterdir())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("options", "message"), [
    (["--size", "0x0"], "Expected a frame of at least 1 x 1 pixels, got 0 x 0"),
    (["--size", "999999x999999"], "got 999999 x 999999; at most 16384 a side"),
    (["--opset", "7"], "Expected an opset from 13 to 20, got 7"),
    (["--clip", "nowhere.mp4"], "nowhere.mp4, which does not exist"),
    (["--out", "file/q.onnx"], "Can't write"),
    (["--out", "."], "got the folder"),
    (["--downsample_ratio", "1.5"], "downsample ratio in (0, 1], got 1.5"),
    (["--frames", "29"], "at least 30 frames"),
])  # fmt: skip
def test_mistakes_are_found_before_any_work(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    for name in ("measure_parity", "export_onnx", "_frames"):
        monkeypatch.setattr(
            f"ptq4vm.deploy.checked_export.{name}", lambda *_: pytest.fail("work was done")
        )
    if "ratio" not in message:
        monkeypatch.setattr(
            "ptq4vm.cli.export.load_model", lambda *_: pytest.fail("the network was loaded")
        )
    given = dict(
        zip(["--size", "--out", *options[::2]], ["64x64", "q.onnx", *options[1::2]], strict=True)
    )
    assert (
        cli.main(["export", "rvm_mobilenetv3", *(word for pair in given.items() for word in pair)])
        == 2
    )
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_network_for_another_target_is_refused_before_any_work(tmp_path, monkeypatch, random_rvm):
    monkeypatch.setattr(
        "ptq4vm.deploy.checked_export._frames", lambda *_: pytest.fail("frames were made")
    )
    network = quantize_network(random_rvm, QConfig(bits="W8A8", placement="full"))
    for layer in quantized_layers(network).values():
        layer.fix_()
        for quantizer in layer.activation_quantizers:
            quantizer.ready.fill_(True)
    network.qconfig = QConfig(bits="W8A8", placement="paper")
    with pytest.raises(PTQ4VMError, match="executes as integers, got placement paper"):
        export(network, 64, 64, tmp_path / "q.onnx")


@pytest.mark.parametrize("given", [[], ["--downsample_ratio", "0.5"]])
def test_the_ratio_that_is_baked_in_is_chosen_and_shown(given, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("ptq4vm.cli.export.load_model", lambda *_: create_model("rvm_mobilenetv3"))

    @functools.wraps(export)
    def stop(network, height, width, *_, **__):
        seen.append((network.downsample_ratio, height, width))
        raise PTQ4VMError("enough")

    monkeypatch.setattr("ptq4vm.cli.export.export", stop)
    args = ["export", "rvm_mobilenetv3", "--size", "1080x1920", "--out", str(tmp_path / "q.onnx")]
    assert cli.main([*args, *given]) == 2
    ((ratio, *size),) = seen
    assert size == [1080, 1920]
    assert ratio == pytest.approx(0.5 if given else 512 / 1920)
