"""Benchmark behind the speed tables of docs/results.md.

Times the float network in PyTorch, ONNX Runtime and OpenVINO, our W8A8 networks, and the W8A8
networks of the stock quantizers, in alternation. Speed does not depend on the weights' values, so
ranges are observed on a few built-in frames and nothing is learned. The graphs have the structure
that `ptq4vm quantize --target` and `ptq4vm export` produce. NNCF requires the extra `peers`.

    python benchmarks/speed.py --peers minmax nncf
"""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import onnx
import peers
import torch
from results import put_table
from rich.console import Console
from torch import Tensor

from ptq4vm.data import BuiltinSource
from ptq4vm.deploy import METADATA, TARGETS, ExportOptions, TargetName, export_onnx, measure_speed
from ptq4vm.graph import load_model, quantize_network, quantized_layers
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import QConfig, activation_quantizers, observing
from ptq4vm.reporting import speed_cells, write_speeds
from ptq4vm.reporting.tables import markdown_cells

SIZES = {"288x512": (288, 512, 1.0), "720x1280": (720, 1280, 0.375)}
"""Height, width and downsample ratio by name."""
FRAMES = 4
OURS: tuple[TargetName, ...] = ("onnxruntime", "openvino")


def main() -> None:
    """Export and time all graphs, and write the tables to docs/results.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=list(SIZES),
        choices=list(SIZES),
        help="frame sizes, HEIGHTxWIDTH",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["minmax"],
        choices=["minmax", "percentile", "nncf"],
        help="stock quantizers to compare with",
    )
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds per graph")
    parser.add_argument(
        "--threads", type=int, default=None, help="threads per runtime (default: all cores)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder for the graphs and tables"
    )
    args = parser.parse_args()
    peers.require_packages(["nncf"] if "nncf" in args.peers else [])
    for size in args.sizes:
        height, width, ratio = SIZES[size]
        folder = args.output / size
        folder.mkdir(parents=True, exist_ok=True)
        models = {
            "PyTorch float": "rvm_mobilenetv3",
            **make_graphs(folder, height, width, ratio, args.peers),
        }
        with peers.make_progress() as bar:
            advance = peers.task(bar, f"timing at {size}", args.rounds)
            speeds = measure_speed(
                list(models.values()), height, width, ratio, args.rounds, args.threads,
                progress=lambda *_, advance=advance: advance(),
            )  # fmt: skip
        titled = [replace(speed, model=t) for t, speed in zip(models, speeds, strict=True)]
        write_speeds(
            folder / "speed.json", titled, {"size": size, "ratio": ratio, "rounds": args.rounds}
        )
        table = markdown_cells(speed_cells(titled))
        put_table(f"speed-{size}", table)
        Console().print(table, highlight=False, soft_wrap=True)


@torch.no_grad()
def make_graphs(
    folder: Path, height: int, width: int, ratio: float, stock: list[str]
) -> dict[str, str]:
    """Export all graphs to a folder.

    Args:
        folder: existing output folder.
        height: frame height in pixels.
        width: frame width in pixels.
        ratio: downsample ratio of the network.
        stock: stock quantizers: minmax, percentile, nncf.

    Returns:
        Row title -> graph, in the notation of :func:`measure_speed`.
    """
    network = load_model("rvm_mobilenetv3", "rvm_mobilenetv3")
    network.downsample_ratio = ratio
    source = BuiltinSource(
        "test", (height, width), 1, FRAMES, cutout=lambda src: network.unroll(src).pha
    )
    src = source.read(0, 0, FRAMES).src
    graph = export_onnx(network, height, width, folder / "float.onnx")
    models = {f"{TARGETS[name].title} float": f"{graph}@{name}" for name in OURS}
    for name in OURS:
        quantized = ranged(network, src, name)
        path = export_onnx(
            quantized, height, width, folder / f"{name}.onnx", ExportOptions(target=name)
        )
        models[f"{TARGETS[name].title} W8A8, ours"] = str(path)
    feeds = peers.make_feeds(peers.open_onnx_runtime(graph), network, iter([src]), "settled")
    for peer in stock:
        model = (
            nncf_graph(graph, feeds)
            if peer == "nncf"
            else onnx.load(peers.quantize(peer, graph, feeds)[0])
        )
        said = json.loads(onnx.load(graph).metadata_props[0].value)
        said |= {"bits": "W8A8", "target": "openvino" if peer == "nncf" else "onnxruntime"}
        onnx.helper.set_model_props(model, {METADATA: json.dumps(said)})
        path = folder / f"{peer}.onnx"
        onnx.save(model, path)
        models["NNCF" if peer == "nncf" else peers.PEERS[peer][0]] = str(path)
    return models


def nncf_graph(graph: Path, feeds: list[peers.Feed]) -> onnx.ModelProto:
    """Quantize an ONNX graph with NNCF's defaults and the mixed preset (asymmetric activations)."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    preset = nncf.QuantizationPreset.MIXED
    quantized: onnx.ModelProto = nncf.quantize(onnx.load(graph), nncf.Dataset(feeds), preset=preset)
    return quantized


def ranged(network: MattingModel, src: Tensor, target: TargetName) -> MattingModel:
    """Quantize the network to W8A8 for a target, with ranges observed on frames (T, 3, H, W)."""
    qconfig = TARGETS[target].fit(QConfig("W8A8", range_method="minmax"))
    quantized = quantize_network(network, qconfig)
    with observing(activation_quantizers(quantized)):
        quantized.unroll(src[None])
    for layer in quantized_layers(quantized).values():
        layer.fix_()
    return quantized


if __name__ == "__main__":
    main()
