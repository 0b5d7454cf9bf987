"""Tests of the quantization pipeline on tiny built-in data."""

import json
import re
from pathlib import Path

import pytest
import torch
import wandb
from jobs import quantize
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ptq4vm import cli
from ptq4vm.calibration import sensitivity
from ptq4vm.data import VideoMattingDataModule, Videos
from ptq4vm.deploy import ExportOptions, export
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_model, quantized_layers, read_header
from ptq4vm.models import create_model, weights_checksum
from ptq4vm.phases import block_reconstruction, gac
from ptq4vm.phases.callbacks import ResultLog
from ptq4vm.pipeline import Method, report
from ptq4vm.pipeline.report import report_run
from ptq4vm.quantizers import QConfig
from ptq4vm.video import open_frames

OPTIONS = {
    "bits": ["W4A8"],
    "qconfig": QConfig(range_method="minmax", depthwise_granularity="per_channel"),
    "gac": {"feature_weight": 0.5, "weight_lr": 1e-3, "window": 2},
    "block_steps": 2,
    "gac_epochs": 2,
    "trainer": {"accelerator": "cpu"},
}


def make_data(cache):
    return VideoMattingDataModule(
        num_sequences=2,
        seq_length=3,
        height=64,
        width=96,
        eval_clips=1,
        eval_frames=5,
        eval_chunk=3,
        cache_dir=cache,
    )


class Killed(BaseException):
    pass


def killed_in(module, when):
    """Return the module and a training step that raises `Killed` if ``when(module)`` is true."""
    step = module.training_step

    def killed(self, batch, batch_idx):
        if when(self):
            raise Killed
        return step(self, batch, batch_idx)

    return module, killed


def quantize_twice(monkeypatch, killed, cache, folder, options):
    """Interrupt a run with the killed training step, then resume it."""
    module, step = killed
    with monkeypatch.context() as patch:
        patch.setattr(module, "training_step", step)
        with pytest.raises(Killed):
            quantize(make_data(cache), folder, **options)
    return quantize(make_data(cache), folder, **options)


def assert_same_network(whole, resumed):
    one, other = (load_model(result.folder).state_dict() for result in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def run(tmp_path_factory, official_weights):
    folder = tmp_path_factory.mktemp("run")
    return quantize(make_data(folder / "cache"), folder / "run", **OPTIONS), folder


@pytest.mark.slow
def test_rows_and_files(run):
    result, _ = run
    assert [row.name for row in result.rows] == [
        "float",
        "round to nearest",
        "BIQ",
        "BIQ + GAC",
        "BIQ + GAC + OFA",
    ]
    assert all(set(row.metrics) == {"mad", "mse", "grad", "conn", "dtssd"} for row in result.rows)
    assert all(row.fidelity.mad >= 0 and row.fidelity.dtssd >= 0 for row in result.rows)
    assert result.rows[0].fidelity.mad < 0.01
    assert all(row.cost.minutes > 0 and row.cost.peak_gb > 0 for row in result.rows[1:])
    assert result.rows[1].cost.size_mb < 0.2 * result.rows[0].cost.size_mb
    assert [(row.method, row.plan) for row in result.rows] == [
        ("float", ""), ("rtn", "W4A8"), ("biq", "W4A8"), ("gac", "W4A8"), ("ofa", "W4A8")
    ]  # fmt: skip
    assert result.pictures.stat().st_size > 10_000
    assert len(json.loads(result.metrics.read_text())["rows"]) == 5
    assert "data:image/webp" in result.report.read_text()
    header = read_header(result.checkpoints["W4A8"])
    assert (
        header["layers"]["backbone.features.0.0"] == header["layers"]["project_mat.conv"] == "W8A8"
    )
    assert header["layers"]["aspp.aspp1.0"] == "W4A8"


@pytest.mark.slow
def test_the_run_folder_describes_itself(run):
    result, _ = run
    record = json.loads((result.folder / "run.json").read_text())
    assert record["seed"] == 0
    assert record["weights_checksum"] == weights_checksum(
        create_model("rvm_mobilenetv3", weights="official")
    )
    assert record["starts"][0]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["starts"][0]["time"] <= record["finished"]
    assert record["data"]["sources"] == [{"source": "Builtin"}]  # without photographs
    assert "W4A8: scoring BIQ + GAC\n" in (result.folder / "log.txt").read_text()
    for name, row in zip(
        ["float", "w4a8/rtn", "w4a8/biq", "w4a8/gac", "w4a8/ofa"], result.rows, strict=True
    ):
        (frames,) = json.loads((result.folder / f"{name}.frames.json").read_text()).values()
        to_float = {f"{key}_to_float": one for key, one in row.fidelity._asdict().items()}
        for metric in ("mad", "dtssd", "mad_to_float", "dtssd_to_float"):
            value = {**row.metrics, **to_float}[metric]
            assert len(frames[metric]) == 5
            assert sum(frames[metric]) / 5 == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_the_report_is_made_again_from_the_folder(run, tmp_path, monkeypatch):
    result, _ = run
    again, problem = report_run(result.folder, tmp_path / "again.html")
    assert problem is None
    # Float alpha is recomputed instead of read from its 16-bit cache, so the pictures may differ
    # by one level.
    shown, before = (
        path.read_text().partition('id="pictures"')[0] for path in (again, result.report)
    )
    assert shown == before
    assert "builtin_test/0000" in shown

    def moved(*_):
        raise PTQ4VMError("Expected clips, got none.")

    monkeypatch.setattr(report, "collect_shots", moved)
    again, problem = report_run(result.folder, tmp_path / "again.html")
    assert problem == "Expected clips, got none."
    assert problem in again.read_text()


@pytest.mark.slow
def test_the_run_folder_is_a_model(run):
    result, _ = run
    network = load_model(result.folder)
    assert network.unroll(torch.rand(1, 2, 3, 65, 49)).pha.shape == (1, 2, 1, 65, 49)


@pytest.mark.slow
def test_a_second_run_does_nothing_again(run, monkeypatch):
    result, folder = run
    monkeypatch.setattr(block_reconstruction.BlockReconstructionModule, "training_step", None)
    for name in ("run.json", "log.txt", "report.html", "w4a8/biq.frames.json"):
        (folder / "run" / name).unlink()  # older versions did not write these
    again = quantize(make_data(folder / "cache"), folder / "run", **OPTIONS)
    assert again.rows == result.rows
    assert again.report.is_file()
    assert len(json.loads((folder / "run" / "run.json").read_text())["starts"]) == 1


@pytest.mark.slow
def test_another_configuration_in_the_same_folder_is_refused(run):
    _, folder = run
    with pytest.raises(PTQ4VMError, match="block_steps: 2 there, 3 now"):
        quantize(make_data(folder / "cache"), folder / "run", **{**OPTIONS, "block_steps": 3})


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_block_reconstruction_goes_on_after_a_kill(tmp_path, run, monkeypatch, granularity):
    """Compare a run interrupted at a block and resumed with an uninterrupted run, bit for bit."""
    _, folder = run
    options = {
        **OPTIONS,
        "gac_epochs": 1,
        "block_reconstruction": {"granularity": granularity, "drop_prob": 0.0},
    }
    whole = quantize(make_data(folder / "cache"), tmp_path / "whole", **options)

    killed = killed_in(
        block_reconstruction.BlockReconstructionModule, lambda m: m.learns and m.current_epoch == 7
    )
    resumed = quantize_twice(monkeypatch, killed, folder / "cache", tmp_path / "killed", options)
    assert_same_network(whole, resumed)


def test_a_mistake_claims_no_folder(tmp_path):
    data = VideoMattingDataModule(source=Videos(), root=tmp_path, cache_dir=tmp_path)
    with pytest.raises(PTQ4VMError, match="user_clips"):
        quantize(data, tmp_path / "run", weights="official")
    assert not (tmp_path / "run").exists()


def test_other_precisions_are_refused(tmp_path, official_weights):
    with pytest.raises(PTQ4VMError, match="32-true, got bf16-mixed"):
        quantize(
            make_data(tmp_path),
            tmp_path / "run",
            **OPTIONS | {"trainer": {"precision": "bf16-mixed"}},
        )


def test_global_calibration_wants_an_alpha_to_learn_from():
    with pytest.raises(PTQ4VMError, match="truth_weight or teacher_weight"):
        gac.GACModule(Path("not looked at"), truth_weight=0.0, teacher_weight=0.0)


@pytest.mark.slow
def test_global_calibration_keeps_the_average_of_its_steps(tmp_path, run, monkeypatch):
    _, folder = run
    seen, kept = [], []

    def shift(module):
        return quantized_layers(module.network)["project_mat.conv"].affine.shift.detach().clone()

    absorb = gac.GACModule.on_fit_end
    monkeypatch.setattr(
        gac.GACModule, "on_train_batch_end", lambda module, *_: seen.append(shift(module))
    )
    monkeypatch.setattr(
        gac.GACModule, "on_fit_end", lambda module: kept.append(shift(module)) or absorb(module)
    )
    rows = {"biq": Method("BIQ"), "ours": Method("ours", start="biq", options={"average": 0.75})}
    quantize(make_data(folder / "cache"), tmp_path / "run", **OPTIONS, rows=rows)
    average = seen[0]
    for step in seen[1:]:
        average = 0.75 * average + 0.25 * step
    assert len(seen) == 4
    assert not torch.equal(seen[-1], average)
    torch.testing.assert_close(kept[0], average)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gac_options", [{}, {"weight_lr": 0.05, "window": 2, "coherence_weight": 1.0, "average": 0.9}]
)
def test_global_calibration_goes_on_after_a_kill(tmp_path, run, monkeypatch, gac_options):
    """Compare a run interrupted at an epoch and resumed with an uninterrupted run, bit for bit."""
    _, folder = run
    options = {
        **OPTIONS,
        "gac": gac_options,
        "rows": {"biq": Method("BIQ"), "ours": Method("ours", start="biq")},
    }
    whole = quantize(make_data(folder / "cache"), tmp_path / "whole", **options)
    assert [row.name for row in whole.rows] == ["float", "BIQ", "ours"]

    killed = killed_in(gac.GACModule, lambda module: module.current_epoch == 1)
    resumed = quantize_twice(monkeypatch, killed, folder / "cache", tmp_path / "killed", options)
    assert_same_network(whole, resumed)


def fit_with(logger, result, folder, output):
    """Run global calibration alone through `fit`, with a logger configuration."""
    configs = Path(__file__).parents[2] / "lightning_configs"
    args = [
        "fit",
        "--config",
        str(configs / "fit" / "gac.yaml"),
        "--config",
        str(configs / "logger" / logger),
    ]
    args += ["--model.init_args.checkpoint", str(result.folder / "w4a8" / "biq.safetensors")]
    args += ["--model.init_args.output", str(output), "--data.cache_dir", str(folder / "cache")]
    args += [
        "--data.num_sequences",
        "2",
        "--data.seq_length",
        "3",
        "--data.height",
        "64",
        "--data.width",
        "96",
        # One clip is one batch. limit_val_batches would do too, but where Optional[Union[float,
        # int]] was evaluated before Lightning's Optional[Union[int, float]], typing's cache makes
        # them one, and jsonargparse takes 1 for 1.0, all batches.
        "--data.eval_clips",
        "1",
    ]
    args += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    assert cli.main(args) == 0


@pytest.mark.slow
def test_a_fit_is_tracked_by_weights_and_biases_offline(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit_with("wandb.yaml", *run, tmp_path / "gac.safetensors")
    wandb.finish()
    assert list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))
    media = next((tmp_path / "runs" / "wandb").glob("offline-run-*/files/media"))
    assert list(media.glob("images/val/alpha*.png"))
    (video,) = media.glob("videos/val/video*.mp4")
    assert (next(iter(open_frames(video)))).shape[
        1
    ] == 3 * 96  # source, float and quantized side by side
    assert load_model(tmp_path / "gac.safetensors").name == "rvm_mobilenetv3"


@pytest.mark.slow
def test_a_fit_is_tracked_by_tensorboard(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit_with("tensorboard.yaml", *run, tmp_path / "gac.safetensors")
    told = capsys.readouterr().out
    assert "drawing sequences" in told
    assert "calibration sequences" in told
    events = (
        EventAccumulator(str(next((tmp_path / "runs" / "tensorboard").iterdir()))).Reload().Tags()
    )
    assert {f"calibration/{name}" for name in ("activation range, log2", "gamma", "beta")} == set(
        events["histograms"]
    )
    assert len(events["images"]) == 1
    assert {"gac/loss", "val/mad"} <= set(events["scalars"])


@pytest.mark.slow
def test_a_run_hands_its_results_to_weights_and_biases(run, tmp_path):
    _, folder = run
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer = {**OPTIONS["trainer"], "logger": logger, "callbacks": [ResultLog()]}
    result = quantize(
        make_data(folder / "cache"), folder / "run", **{**OPTIONS, "trainer": trainer}
    )
    assert logger.experiment.summary["result/mad"] == result.rows[-1].metrics["mad"]
    assert logger.experiment.config["network"] == "rvm_mobilenetv3"
    wandb.finish()
    media = next(tmp_path.glob("wandb/offline-run-*/files/media"))
    assert list(media.glob("html/report*.html"))
    assert list(media.glob("images/pictures*.png"))
    table = json.loads(next(media.glob("table/table*.json")).read_text())
    assert [row[0] for row in table["data"]] == [row.name for row in result.rows]


@pytest.mark.slow
def test_mixed_precision_is_chosen_once_and_said_in_the_table(tmp_path, run, monkeypatch):
    _, folder = run
    trainer = {**OPTIONS["trainer"], "logger": CSVLogger(tmp_path, name="own")}
    options = {**OPTIONS, "bits": ["auto"], "budget": 0.15, "gac_epochs": 1, "trainer": trainer}
    result = quantize(make_data(folder / "cache"), tmp_path / "run", **options)
    header = read_header(result.checkpoints["auto"])
    changed = {name: bits for name, bits in header["layers"].items() if bits != "W4A4"}
    assert changed == {
        "backbone.features.0.0": "W8A8",
        "project_mat.conv": "W8A8",
        **header["qconfig"]["layer_bits"],
    }
    assert len(changed) > 2
    assert all(re.fullmatch(r"W4A4 mixed \(W[34]\.\dA4\.\d\)", row.bits) for row in result.rows[1:])
    # The report's losses are logged in addition to the user's own logger.
    assert list((tmp_path / "own").glob("*/metrics.csv"))
    assert (tmp_path / "run" / "auto" / "biq" / "version_0" / "metrics.csv").is_file()
    layers = json.loads((tmp_path / "run" / "auto" / "sensitivity.json").read_text())["layers"]
    assert [set(layer["errors"]) for layer in layers] == [{"W3A4", "W4A4", "W4A8", "W8A8"}] * 78
    fixed = {"backbone.features.0.0": "W8A8", "project_mat.conv": "W8A8"}
    mixed, plain = (
        sum(one["macs"] * bit_product(bits.get(one["name"], "W4A4")) for one in layers)
        for bits in (changed, fixed)
    )
    assert mixed <= 1.15 * plain
    monkeypatch.setattr(sensitivity, "quantize_network", None)
    assert quantize(make_data(folder / "cache"), tmp_path / "run", **options).rows == result.rows
    with pytest.raises(PTQ4VMError, match=r"budget: 0.15 there, 0.2 now"):
        quantize(make_data(folder / "cache"), tmp_path / "run", **{**options, "budget": 0.2})


def bit_product(bits):
    return int(bits[1]) * int(bits[3])


@pytest.mark.slow
def test_sensitivity_as_a_user_calls_it(tmp_path, capsys, official_weights):
    size = [
        "--data.height",
        "32",
        "--data.width",
        "48",
        "--data.seq_length",
        "2",
        "--data.cache_dir",
        str(tmp_path),
    ]
    args = [
        "sensitivity",
        "rvm_mobilenetv3",
        "--data.num_sequences",
        "2",
        "--sequences",
        "1",
        *size,
    ]
    args += [
        "--qconfig.range_method",
        "minmax",
        "--bits",
        "w4a8",
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert cli.main(args) == 0
    assert "sensitive to W4A8" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert len(content["layers"]) == 78
    assert sum(layer["macs_share"] for layer in content["layers"]) == pytest.approx(1.0)
    assert all(set(layer["errors"]["W4A8"]) == {"mad", "dtssd"} for layer in content["layers"])
    assert (tmp_path / "out" / "sensitivity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_is_calibrated_for_a_target_is_what_it_runs(tmp_path, official_weights):
    """Quantize for ONNX Runtime, export, and execute the graph with integer kernels."""
    options = {**OPTIONS, "target": "onnxruntime"}
    with pytest.raises(PTQ4VMError, match="depthwise_granularity per_tensor, which ONNX Runtime"):
        quantize(make_data(tmp_path / "cache"), tmp_path / "run", **options)
    options["qconfig"] = QConfig(range_method="minmax")
    result = quantize(make_data(tmp_path / "cache"), tmp_path / "run", **options)
    network = load_model(result.folder)
    assert network.qconfig.placement == "full"
    assert network.qconfig.depthwise_granularity == "per_tensor"
    # After two calibration steps the mattes are sensitive to single roundings: a larger tolerance
    # than the default.
    options = ExportOptions(target="onnxruntime")
    exported = export(network, 64, 96, tmp_path / "q.onnx", options, tolerance=2e-3)
    executed = int(re.search(r"executes (\d+) of 78 layers as int8", exported.storage)[1])
    assert (
        executed
        >= sum(layer.output_quantizer is not None for layer in quantized_layers(network).values())
        > 50
    )
    with pytest.raises(PTQ4VMError, match="nowhere"):
        quantize(make_data(tmp_path / "cache"), tmp_path / "other", **OPTIONS, target="nowhere")
    assert not (tmp_path / "other").exists()
