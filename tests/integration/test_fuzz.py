"""Fuzz tests: every mutated file is accepted or raises `PTQ4VMError`, without hanging."""

import copy
import io
import json
import shutil

import onnx
import pytest
import tiny
import torch
import yaml
from fuzzing import fuzz, mutate_bytes, mutate_proto, mutate_safetensors, mutate_text
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save

from ptq4vm import cli
from ptq4vm.cli import quantize_job as quantize_command
from ptq4vm.data.storage import CheckedFiles, read_tensors, write_tensors
from ptq4vm.deploy import ExportedNetwork, ExportOptions, Speed, export_onnx
from ptq4vm.graph import (
    FINAL_CHECKPOINT,
    load_quantized,
    quantize_network,
    quantized_layers,
    save_quantized,
)
from ptq4vm.models.weights import load_weights
from ptq4vm.quantizers import QConfig, activation_quantizers, observing
from ptq4vm.recipes import read_recipe, recipes_folder
from ptq4vm.reporting import Cost, ResultRow, write_metrics, write_speeds

CHECKPOINTS, CONFIGS, WEIGHTS, GRAPHS, RUNS, CACHES = 500, 250, 150, 300, 250, 250
"""Number of mutations, 2,000 in total; `WEIGHTS` counts for each of three file types."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    qconfig = QConfig("W4A8", range_method="minmax")
    network = quantize_network(tiny.TinyMatting().eval(), qconfig)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(torch.rand(1, 2, 3, 32, 32))
    for layer in quantized_layers(network).values():
        layer.fix_()
    path = tmp_path_factory.mktemp("fuzz") / "tiny.safetensors"
    save_quantized(network, qconfig, path, {})
    return path.read_bytes()


@pytest.mark.slow
def test_changed_checkpoints(checkpoint, tmp_path):
    path = tmp_path / "changed.safetensors"

    def attempt(data):
        path.write_bytes(data)
        network, _ = load_quantized(path)
        network.unroll(torch.rand(1, 2, 3, 32, 32))
        return True

    assert (
        fuzz(CHECKPOINTS, lambda draw: mutate_safetensors(checkpoint, draw), attempt)
        < CHECKPOINTS / 2
    )


def weights_graph(network):
    """Create an ONNX file of the network's convolution weights."""
    nodes, tensors, last = [], [], "src"
    convolutions = [
        (name, one) for name, one in network.named_modules() if isinstance(one, torch.nn.Conv2d)
    ]
    for number, (_, conv) in enumerate(convolutions):
        bias = torch.zeros(len(conv.weight)) if conv.bias is None else conv.bias
        for kind, value in (("weight", conv.weight), ("bias", bias)):
            tensors.append(
                numpy_helper.from_array(value.detach().numpy(), f"onnx::Conv_{kind}{number}")
            )
        inputs = [last, f"onnx::Conv_weight{number}", f"onnx::Conv_bias{number}"]
        nodes.append(helper.make_node("Conv", inputs, [f"y{number}"], name=f"Conv_{number}"))
        last = f"y{number}"
    src = helper.make_tensor_value_info("src", TensorProto.FLOAT, [1, 3, 32, 32])
    out = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "weights", [src], [out], tensors))


def mutate_state(state, draw):
    """Put an unexpected tensor or value into a state dict and serialize it."""
    name = draw.choice(list(state))
    value = state[name]
    odd = [
        value.to_sparse(), value.to("meta"), value.double(), value.long(),
        value.to(torch.complex64), value[None], value * float("nan"), value.numpy().tolist(), None,
        "text", 3, [value], {"a": value}, value.to(torch.bool), value.to(torch.float8_e4m3fn),
        torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
    ]  # fmt: skip
    changed = {**state, draw.choice([name, name, "x", 3]): draw.choice(odd)}
    prefixed = {f"module.{key}": one for key, one in changed.items()}
    kept = draw.choice([changed, {"state_dict": changed}, list(changed.values()), prefixed])
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
def test_changed_weights(tmp_path, suffix):
    network = tiny.TinyMatting().eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path / f"changed{suffix}"
    if suffix == ".onnx":
        graph = weights_graph(network)
    buffer = io.BytesIO()
    torch.save(state, buffer)

    def mutate(draw):
        if suffix == ".onnx":
            return mutate_proto(graph, draw)
        if suffix == ".safetensors":
            return mutate_safetensors(save(state), draw)
        return (
            mutate_bytes(buffer.getvalue(), draw)
            if draw.random() < 0.5
            else mutate_state(state, draw)
        )

    def attempt(data):
        path.write_bytes(data)
        load_weights(tiny.TinyMatting().eval(), path)
        return True

    fuzz(WEIGHTS, mutate, attempt)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_changed_exported_graphs(tmp_path):
    options = ExportOptions(target="onnxruntime")
    path = export_onnx(tiny.TinyMatting().eval(), 32, 32, tmp_path / "graph.onnx", options)
    model = onnx.load(path)
    description = json.loads(model.metadata_props[0].value)

    def mutate(draw):
        if draw.random() < 0.5:
            return mutate_proto(model, draw)
        changed = copy.deepcopy(model)
        changed.metadata_props[0].value = mutate_text(description, draw)
        return changed.SerializeToString()

    def attempt(data):
        path.write_bytes(data)
        network = ExportedNetwork(path, threads=1)
        network.unroll(torch.rand(1, 2, 3, 32, 32))
        return True

    fuzz(GRAPHS, mutate, attempt)


def write_run(folder, checkpoint):
    """Write the folder of a finished run of the tiny network, without its evaluation clips."""
    rows = {"biq": {"title": "BIQ", "start": None, "options": {}, "qconfig": {}}}
    data = {
        "seed": 0,
        "root": str(folder),
        "size": [32, 32],
        "evaluation": "moved",
        "eval_clips": 1,
        "eval_frames": 5,
    }
    weights = folder / "tiny.pth"
    settings = {"network": "tiny", "weights": str(weights), "downsample_ratio": 1.0, "target": None}
    start = {
        "time": "2026-01-02T03:04:05+00:00",
        "git": None,
        "machine": "a machine",
        "versions": {"torch": "2.7"},
    }
    curves = {
        "clip": {
            name: [1.0, 2.0, 3.0] for name in ("mad", "dtssd", "mad_to_float", "dtssd_to_float")
        }
    }
    layer = {"name": "head", "macs_share": 0.5, "macs": 9, "weights": 9, "fixed": None}
    contents = {
        "settings.json": {**settings, "bits": ["W4A8"], "rows": rows, "data": data},
        "run.json": {"starts": [start], "seed": 0, "weights_checksum": "0123456789abcdef"},
        "float.frames.json": curves,
        "w4a8/biq.frames.json": curves,
        "sensitivity.json": {
            "settings": {},
            "layers": [{**layer, "errors": {"W4A4": {"mad": 0.5, "dtssd": 0.25}}}],
        },
    }
    log = folder / "w4a8" / "biq" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text(
        "biq/block,biq/hard,biq/nearest,gac/loss,step\n"
        ",,,0.5,9\n0.0,0.1,0.4,,10\n1.0,2.0,30.0,,20\n"
    )
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    metrics = {"mad": 1.0, "dtssd": 0.5}
    table = [
        ResultRow("float", "W32A32", "", metrics, method="float"),
        ResultRow("BIQ", "W4A8", "deploy", metrics, Cost(1.0, 1e9), method="biq", plan="W4A8"),
    ]
    write_metrics(folder / "metrics.json", table, {})
    timed = [Speed("a", "W4A8", "torch", "", 1.0, 1.0, 1.0, 2.0, 1.0)]
    write_speeds(folder / "speed.json", timed, {"size": "32x32"})
    (folder / "w4a8" / FINAL_CHECKPOINT).write_bytes(checkpoint)
    torch.save(tiny.TinyMatting().state_dict(), weights)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_changed_run_folders(tmp_path, checkpoint, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "runs" / "changed"
    write_run(whole, checkpoint)
    assert cli.main(["report", str(whole), "--out", str(tmp_path / "report.html")]) == 0
    names = [
        *map(
            str,
            sorted(p.relative_to(whole) for p in whole.rglob("*") if p.suffix in (".json", ".csv")),
        )
    ]

    def mutate(draw):
        name = draw.choice(names)
        data = (whole / name).read_bytes()
        if name.endswith(".csv"):
            cells = [line.split(",") for line in data.decode().split("\n")]
            row = draw.choice(cells)
            row[draw.randrange(len(row))] = draw.choice(
                ["", "x", "inf", "nan", "1e308", "-1", "1" * 5000, '"', "\0", ",,"]
            )
            structured = "\n".join(map(",".join, cells)).encode()
        else:
            structured = mutate_text(json.loads(data), draw).encode()
        return name, structured if draw.random() < 0.75 else mutate_bytes(data, draw)

    def attempt(changed):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        (folder / changed[0]).write_bytes(changed[1])
        codes = [
            cli.main(["runs", str(folder.parent)]),
            cli.main(["compare", str(folder), str(whole)]),
        ]
        codes.append(cli.main(["report", str(folder), "--out", str(tmp_path / "report.html")]))
        assert set(codes) <= {0, 2}
        assert "Traceback" not in capsys.readouterr().err
        return codes == [0, 0, 0]

    fuzz(RUNS, mutate, attempt)


@pytest.mark.slow
def test_changed_caches_are_remade(tmp_path):
    path = tmp_path / "set" / "teacher" / "00000.safetensors"
    path.parent.mkdir(parents=True)
    write_tensors(
        path,
        {
            "pha": torch.rand(2, 1, 4, 4),
            "flow": torch.zeros(0, 2, 4, 4),
            "src": torch.ones(3).byte(),
        },
    )
    data = path.read_bytes()

    def attempt(changed):
        path.write_bytes(changed)
        whole = CheckedFiles().is_whole(path, ["pha"])
        if whole:
            read_tensors(path)
        return whole

    fuzz(
        CACHES,
        lambda draw: data if draw.random() < 0.02 else mutate_safetensors(data, draw),
        attempt,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_changed_configurations(tmp_path, monkeypatch, capsys):
    class Reached(Exception):
        pass

    def stop(*_, **options):
        raise Reached

    real = quantize_command.quantize
    stop.__doc__, stop.__signature__ = real.__doc__, __import__("inspect").signature(real)
    monkeypatch.setattr(quantize_command, "quantize", stop)
    path, recipes = tmp_path / "changed.yaml", sorted(recipes_folder().glob("*.yaml"))

    def mutate(draw):
        text = yaml.safe_dump(read_recipe(draw.choice(recipes)))
        if draw.random() < 0.6:
            return mutate_text(
                yaml.safe_load(text), draw, lambda tree: yaml.safe_dump(tree, allow_unicode=True)
            )
        return mutate_bytes(text.encode(), draw).decode("latin-1")

    def attempt(text):
        path.write_text(text)
        try:
            assert cli.main(["quantize", "--config", str(path)]) == 2
        except Reached:
            return True
        except SystemExit as end:
            if end.code != 2:
                raise
        assert "Traceback" not in capsys.readouterr().err
        return False

    fuzz(CONFIGS, mutate, attempt)
