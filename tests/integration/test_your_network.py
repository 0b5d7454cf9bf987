"""Tests of the code in docs/your-network.md, and of its networks and MODNet in the pipeline."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import quantize

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import ExportedNetwork, ExportOptions, export, matte_video, measure_parity
from ptq4vm.graph import load_model, quantized_layers, read_header
from ptq4vm.models import create_model, registry
from ptq4vm.pipeline import Method, report_run
from ptq4vm.quantizers import QConfig, QuantizedLinear
from ptq4vm.video import open_frames, open_writer

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "your-network.md"


@pytest.fixture(scope="module")
def page():
    """Execute the page's last code block, a network's class, and return the others."""
    *pieces, network = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
        exec(network, {})
        yield pieces


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the working directory, which contains a clip of three frames."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTQ4VM_CACHE", str(tmp_path / "cache"))
    with open_writer(Path("clip.mp4"), (64, 96)) as writer:
        for frame in np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8):
            writer.write(frame.repeat(8, 0).repeat(8, 1))
    return tmp_path


def make_run(name, folder, **options):
    torch.manual_seed(0)
    torch.save(create_model(name).state_dict(), folder / "weights.pth")
    data = VideoMattingDataModule(
        num_sequences=2, seq_length=3, height=64, width=96, eval_clips=1, eval_frames=3
    )
    settings = {"block_steps": 2, "gac_epochs": 1, "trainer": {"accelerator": "cpu"}}
    return quantize(
        data, folder / "run", name, str(folder / "weights.pth"), **{**settings, **options}
    )


def test_the_page_runs(page, folder):
    names: dict = {}
    torch.manual_seed(0)
    for piece in page:
        exec(piece, names)
    assert [row.name for row in names["result"].rows] == [
        "float", "round to nearest", "BIQ", "BIQ + GAC", "BIQ + GAC + OFA"
    ]  # fmt: skip
    _, problem = report_run(folder / "run", folder / "again.html")
    assert problem == "the float network was given in memory"
    layers = quantized_layers(names["network"])
    assert "net.backbone.4.block.2.fc1" in (folder / "run" / "report.html").read_text()
    assert f"executes {len(layers)} of {len(layers)} layers as int8" in names["exported"].storage
    assert [len(list(open_frames(Path(path)))) for path in ("alpha.mp4", "over.mp4")] == [3, 3]


@pytest.mark.usefixtures("exact_integer_sums")
def test_linear_layers_run_as_integers(page, folder):
    rows = {"biq": Method("BIQ")}
    network = load_model(
        make_run("patch_matting", folder, bits=["W8A8"], target="openvino", rows=rows).folder
    )
    layers = quantized_layers(network)
    assert sum(isinstance(layer, QuantizedLinear) for layer in layers.values()) == 2 * 6
    exported = export(network, 64, 96, folder / "q.onnx", ExportOptions(target="openvino"))
    assert f"executes {len(layers)} of {len(layers)} layers as int8" in exported.storage


def test_every_layer_runs_as_integers_in_onnx_runtime_too(page, folder):
    gac = {"weight_lr": 1e-3, "feature_weight": 0.5, "coherence_weight": 0.1, "window": 2}
    rows = {"biq": Method("BIQ"), "ours": Method("ours", start="biq")}
    result = make_run(
        "patch_matting", folder, bits=["W8A8"], target="onnxruntime", gac=gac, rows=rows
    )
    network = load_model(result.folder)
    exported = export(
        network, 64, 96, folder / "q.onnx", ExportOptions(target="onnxruntime"), Path("clip.mp4")
    )
    # The layer that computes alpha stays float.
    assert (
        f"executes {len(quantized_layers(network)) - 1} of {len(quantized_layers(network))}"
        in exported.storage
    )


@pytest.mark.usefixtures("exact_integer_sums")
def test_mixed_precision_layer_by_layer_in_four_bits(page, folder):
    options = {
        "block_reconstruction": {"granularity": "layer"},
        "rows": {"ours": Method("AdaRound")},
        "budget": 0.6,
    }
    result = make_run("patch_matting", folder, bits=["auto"], **options)
    header = read_header(result.checkpoints["auto"])
    assert header["layers"]["embed"] == header["layers"]["head"] == "W8A8"
    assert "W4A4" in header["layers"].values()
    network = load_model(result.folder)
    options = ExportOptions(pack=True, simulate=True, dynamic_size=True)
    path = export(network, 64, 96, folder / "q.onnx", options, Path("clip.mp4")).path
    parity = measure_parity(network, ExportedNetwork(path), torch.rand(2, 3, 90, 161))
    assert parity.mean < 2e-3


@pytest.mark.usefixtures("exact_integer_sums")
def test_modnet(folder):
    qconfig = QConfig(range_method="minmax", depthwise_granularity="per_channel")
    rows = {"biq": Method("BIQ"), "ofa": Method("BIQ + GAC + OFA", start="biq")}
    result = make_run("modnet", folder, bits=["W8A8"], qconfig=qconfig, rows=rows)
    assert [row.name for row in result.rows] == ["float", "BIQ", "BIQ + GAC + OFA"]
    network = load_model(result.folder)
    frames = torch.rand(3, 3, 64, 96)
    with torch.inference_mode():
        # With random weights and instance norm over few pixels, invisible noise flips roundings and
        # changes alpha. The tolerance is derived from this sensitivity.
        noise = [
            network.unroll(x[None]).pha for x in (frames, frames + 1e-6 * torch.randn_like(frames))
        ]
    moved = float((noise[0] - noise[1]).abs().mean())
    exported = export(
        network, 64, 96, folder / "q.onnx", tolerance=2 * moved + 1e-4, clip=Path("clip.mp4")
    )
    assert "executes 71 of 71 layers as int8" in exported.storage
    other = ExportedNetwork(exported.path, "onnxruntime", threads=1)
    assert measure_parity(network, other, frames).mean < 2 * moved + 1e-4
    floats = create_model("modnet", weights="weights.pth")
    plain = export(
        floats, 64, 96, folder / "f.onnx", ExportOptions(target="onnxruntime"), Path("clip.mp4")
    )
    assert plain.parity.mean < 1e-5
    assert (
        matte_video(
            network, Path("clip.mp4"), alpha=Path("alpha.mp4"), foreground=Path("fgr")
        ).frames
        == 3
    )
    assert (
        matte_video(
            ExportedNetwork(exported.path), Path("clip.mp4"), composite=Path("over.mp4")
        ).frames
        == 3
    )
