"""Run folders of ``ptq4vm quantize`` with synthetic results."""

import json

import torch

from ptq4vm.reporting import Cost, Fidelity, ResultRow, write_metrics
from ptq4vm.reporting.layers import Layer, Signal
from ptq4vm.reporting.page import Inside, Shot

ROWS = {"biq": "BIQ", "ofa": "BIQ + <GAC>"}
CLIPS = ("set/clip one", "set/two </script>")
FRAMES = 6


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(folder, bits=("W8A8", "W4A8"), finished=True, mad=5.0, seed=0):
    """Write the folder of a run with two rows per bit width and return it."""
    rows = {
        name: {"title": title, "start": None, "options": {}, "qconfig": {}}
        for name, title in ROWS.items()
    }
    data = {
        "seed": seed,
        "root": "/nowhere",
        "size": [64, 96],
        "evaluation": None,
        "eval_clips": 1,
        "eval_frames": 5,
    }
    settings = {
        "network": "rvm_mobilenetv3",
        "weights": "official",
        "downsample_ratio": 1.0,
        "target": None,
    }
    write(folder / "settings.json", {**settings, "bits": list(bits), "rows": rows, "data": data})
    start = {
        "time": "2026-01-02T03:04:05+00:00",
        "git": None,
        "machine": "a machine",
        "versions": {"torch": "2.7"},
    }
    write(
        folder / "run.json",
        {"starts": [start], "seed": seed, "weights_checksum": "0123456789abcdef"},
    )
    if not finished:
        return folder
    cost = Cost(14.9, 1e12)
    table = [
        ResultRow("float", "W32A32", "", metrics(mad), cost, Fidelity(0.0, 0.0), method="float")
    ]
    write_frames(folder / "float", mad)
    for number, (one, name) in enumerate([(one, name) for one in bits for name in ROWS], 1):
        table.append(
            ResultRow(
                ROWS[name],
                one,
                "deploy",
                metrics(mad + number),
                Cost(3.9, 6e10),
                Fidelity(1.0 * number, 0.5),
                method=name,
                plan=one,
            )
        )
        write_frames(folder / one.lower() / name, mad + number)
    for one in bits:
        log = folder / one.lower() / "biq" / "version_0" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text(
            "biq/block,biq/hard,biq/nearest,step\n,,,9\n0.0,0.1,0.4,10\n1.0,2.0,30.0,20\n"
        )
        log = folder / one.lower() / "ofa" / "version_3" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text("epoch,gac/loss,step\n0,0.5,9\n0,0.25,19\n")
    write_metrics(folder / "metrics.json", table, {})
    return folder


def metrics(mad):
    return {"mad": mad, "mse": 1.0, "grad": 0.1, "conn": 0.1, "dtssd": mad / 2}


def write_frames(stem, mad):
    values = {
        name: [mad + t for t in range(FRAMES)]
        for name in ("mad", "dtssd", "mad_to_float", "dtssd_to_float")
    }
    write(stem.with_suffix(".frames.json"), dict.fromkeys(CLIPS, values))


def make_shots(bits=("W8A8", "W4A8")):
    """Create shots with white alpha of the float network and black alpha of the quantized ones."""
    white = torch.ones(1, 36, 64)
    src = torch.linspace(0, 1, 64).expand(3, 36, 64)
    return [
        Shot(
            clip,
            frame,
            src,
            white if clip == CLIPS[0] else None,
            white,
            dict.fromkeys(bits, 0 * white),
        )
        for clip in CLIPS
        for frame in (1, 5)
    ]


def make_inside(bits=("W8A8", "W4A8")):
    layers = [
        Layer("encoder.first", "encoder", 8, 8, 0.25, "weight, input"),
        Layer("decoder.last", "decoder", 4, 8, 0.7, "weight, input by channel"),
        Layer("decoder.left", "decoder", 32, 32, 0.05, ""),
    ]
    signals = {"encoder.first": Signal(40.0, 30.0), "decoder.last": Signal(20.0, -3.0)}
    runtimes = {"OpenVINO": None, "TensorRT": "not as it is: an affine grid."}
    inside = Inside(layers, ["encoder", "decoder"], "deploy", ["refiner"], runtimes, signals)
    return dict.fromkeys(bits, inside)
