"""Tests of fits resumed from a checkpoint: bit-identical, or rejected before any output."""

import hashlib
import json
import shutil
from pathlib import Path

import lightning.pytorch as L
import pytest
import tiny
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from ptq4vm import cli
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases import BlockReconstructionModule, GACModule
from ptq4vm.phases.checkpoints import CONTRACT
from ptq4vm.quantizers import QConfig

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = Path(__file__).parents[2] / "lightning_configs"
BLOCKS = 3


def digest(folder):
    """Compute a digest of the names and contents of all files."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        whole.update(
            path.relative_to(folder).as_posix().encode()
            + (path.read_bytes() if path.is_file() else b"/")
        )
    return whole.hexdigest()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), path)
    return path


def changed_weights(path):
    return {
        name: value * 1.01 if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }


def arguments(weights, folder, *more, config="qdrop.yaml"):
    return [
        "--config", str(CONFIGS / "fit" / config), "--model.init_args.network", "tiny",
        "--model.init_args.weights", str(weights),
        "--model.init_args.output", str(folder / "quantized.safetensors"),
        "--data.height", "32", "--data.width", "48", "--data.num_sequences", "2",
        "--data.seq_length", "2", "--data.steps_per_epoch", "2",
        "--data.cache_dir", str(folder.parent / "cache"), "--data.eval_frames", "2",
        "--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", *more,
    ]  # fmt: skip


# With a fixed version, Lightning deletes the previous log when it creates the logger.
LOGGER = ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger",
          "--trainer.logger.init_args.version", "0",
          "--trainer.logger.init_args.save_dir"]  # fmt: skip


def last(folder):
    (path,) = folder.rglob("last.ckpt")
    return path


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    """Run a fit from the command line and resume it once from its last checkpoint."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    args = arguments(weights, folder, *LOGGER, str(folder))
    assert cli.main(["fit", *args]) == 0
    (folder / "quantized.safetensors").unlink()
    assert cli.main(["fit", *args, "--ckpt_path", str(last(folder))]) == 0
    return folder


@pytest.fixture
def told(capsys):
    return lambda: " ".join(capsys.readouterr().err.split())


def test_a_saved_configuration_begins_a_fit_anew(finished):
    (path,) = finished.rglob("config.yaml")
    saved = yaml.safe_load(path.read_text())
    assert "ckpt_path" not in saved
    new = finished.parent / "again"
    changed = ["--model.init_args.qconfig.bits", "W8A8", "--trainer.default_root_dir", str(new)]
    changed += [
        "--model.init_args.output",
        str(new / "q.safetensors"),
        "--trainer.logger.init_args.save_dir",
        str(new),
    ]
    assert cli.main(["fit", "--config", str(path), *changed]) == 0
    one, other = (
        load_file(path) for path in (finished / "quantized.safetensors", new / "q.safetensors")
    )
    scale = "gate.0.weight_quantizer.scale"
    assert (one[scale] > 8 * other[scale]).all()  # 4 bits versus 8 bits


def test_what_is_gone_on_from_is_said(weights, finished, tmp_path, capsys):
    assert (
        cli.main(
            ["test", *arguments(weights, tmp_path / "run"), "--ckpt_path", str(last(finished))]
        )
        == 0
    )
    assert (
        f"goes on from {last(finished)}: block {BLOCKS}, batch 0, step {2 * BLOCKS}"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("command", "changed", "message"),
    [
        ("fit", ["--model.init_args.qconfig.bits", "W8A8"], "qconfig.bits: W4A8 there, W8A8 now"),
        ("fit", ["--model.init_args.drop_prob", "0.25"], "drop_prob: 0.5 there, 0.25 now"),
        ("fit", ["--data.batch_size", "2"], "data.batch_size: 1 there, 2 now"),
        ("fit", ["--data.seed", "1"], "data.seed: 0 there, 1 now"),
        (
            "fit",
            ["--trainer.accumulate_grad_batches", "2"],
            "accumulate_grad_batches: 1 there, 2 now",
        ),
        ("fit", ["--model.init_args.weights", "OTHER"], "float_network: tiny-"),
        ("fit", ["--trainer.precision", "bf16-mixed"], "Expected precision 32-true"),
        ("fit", ["--model.init_args.output", "TAKEN"], "Expected TAKEN to be new"),
        ("fit", ["--data.source", "Videos", "--data.source.videos", "nowhere"], "nowhere"),
        (
            "validate",
            ["--model.init_args.qconfig.bits", "W8A8"],
            "qconfig.bits: W4A8 there, W8A8 now",
        ),
        ("test", ["--model.init_args.qconfig.bits", "W8A8"], "qconfig.bits: W4A8 there, W8A8 now"),
        ("predict", ["--model.init_args.weights", "OTHER"], "float_network: tiny-"),
    ],
)
def test_what_is_refused_changes_nothing(
    command, changed, message, weights, finished, tmp_path, told
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "quantized.safetensors").rename(tmp_path / "taken.safetensors")
    other = tmp_path / "other.safetensors"
    save_file(changed_weights(weights), other)
    named = {"OTHER": str(other), "TAKEN": str(tmp_path / "taken.safetensors")}
    before = digest(folder)
    args = arguments(weights, folder, *LOGGER, str(folder), "--ckpt_path", str(last(folder)))
    assert cli.main([command, *args, *(named.get(one, one) for one in changed)]) == 2
    for short, name in named.items():
        message = message.replace(short, name)
    assert message in told()
    assert digest(folder) == before


@pytest.mark.parametrize("ckpt_path", ["FILE", "last"])
def test_other_places_devices_and_workers_go_on(ckpt_path, weights, finished, tmp_path):
    folder = tmp_path / "elsewhere" / "run"
    shutil.copytree(finished, folder)
    kept = (folder / "quantized.safetensors").read_bytes()
    (folder / "quantized.safetensors").unlink()
    moved = shutil.copy(weights, tmp_path / "moved.safetensors")
    args = arguments(moved, folder, *LOGGER, str(folder), "--data.num_workers", "1")
    args += ["--trainer.callbacks.init_args.save_last", "true"] if ckpt_path == "last" else []
    assert (
        cli.main(
            ["fit", *args, "--ckpt_path", str(last(folder)) if ckpt_path == "FILE" else ckpt_path]
        )
        == 0
    )
    assert (folder / "quantized.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["state_dict"].update({"../../evil": torch.zeros(1)}), "left-over"),
        (
            lambda found: found["state_dict"].update(
                {next(iter(found["state_dict"])): torch.zeros(7)}
            ),
            "shaped",
        ),
        (lambda found: found.update(callbacks=Path.touch), "carries more than tensors"),
        (lambda found: found.pop("state_dict"), "holds something else"),
        (lambda found: found.pop(CONTRACT), "of an earlier version or of another program"),
        (lambda found: found.update(loops={}), "how far its fit was"),
    ],
)
def test_a_fit_goes_on_from_no_foreign_checkpoint(
    change, message, weights, finished, tmp_path, told
):
    checkpoint = torch.load(last(finished), weights_only=True)
    assert checkpoint[CONTRACT] == json.loads(json.dumps(checkpoint[CONTRACT]))
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    folder = tmp_path / "run"
    assert (
        cli.main(["fit", *arguments(weights, folder), "--ckpt_path", str(tmp_path / "last.ckpt")])
        == 2
    )
    assert message in told()
    assert not folder.exists()


def fit(phase, folder, options, workers=0, batch_size=2, checkpoint=None, **trainer):
    data = VideoMattingDataModule(
        num_sequences=5, seq_length=2, height=32, width=48, batch_size=batch_size,
        num_workers=workers, cache_dir=folder.parent / "cache",
        steps_per_epoch=options.pop("steps", None),
    )  # fmt: skip
    output = folder / "out.safetensors"
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
                "enable_model_summary": False, "limit_val_batches": 0,
                "default_root_dir": folder}  # fmt: skip
    made = phase(**options, output=output)
    if made.epochs is not None:
        trainer["max_epochs"] = made.epochs
    trainer = L.Trainer(**settings, **trainer, callbacks=[keep])
    trainer.fit(made, datamodule=data, ckpt_path=checkpoint)
    return output.read_bytes()


BIQ = {"network": "tiny", "qconfig": QConfig("W4A8", range_method="minmax"), "steps": 2}


@pytest.mark.parametrize(
    ("workers", "names"),
    [
        (1, "step=[34].ckpt"),
        *(pytest.param(n, "step=*.ckpt", marks=pytest.mark.slow) for n in (0, 1, 2)),
    ],
)
def test_both_phases_go_on_from_any_step(workers, names, weights, tmp_path):
    """Resume at every step with worker processes; the reference fit uses none."""
    biq = BIQ | {"weights": str(weights)}
    gac = {"weights": str(weights), "checkpoint": tmp_path / "biq" / "out.safetensors",
           "weight_lr": 0.05, "lr": 0.01, "average": 0.5, "window": 1}  # fmt: skip
    for phase, options, name, epochs in (
        (BlockReconstructionModule, biq, "biq", None),
        (GACModule, gac, "gac", 3),
        (GACModule, gac | {"steps": 2}, "steps", 3),
    ):
        whole = fit(phase, tmp_path / name, dict(options), max_epochs=epochs)
        for checkpoint in sorted((tmp_path / name).glob(names)):
            again = tmp_path / f"{name}-{checkpoint.stem}"
            assert (
                fit(phase, again, dict(options), workers, checkpoint=checkpoint, max_epochs=epochs)
                == whole
            ), again


def test_a_fit_by_steps_alone_is_not_gone_on_with(weights, tmp_path):
    biq = BIQ | {"weights": str(weights), "learn_rounding": False, "learn_scales": False}
    fit(BlockReconstructionModule, tmp_path / "biq", dict(biq))
    gac = {"weights": str(weights), "checkpoint": tmp_path / "biq" / "out.safetensors"}
    fit(GACModule, tmp_path / "gac", dict(gac), max_steps=4)
    with pytest.raises(PTQ4VMError, match="max_steps = 4"):
        fit(
            GACModule,
            tmp_path / "again",
            dict(gac),
            max_steps=4,
            checkpoint=tmp_path / "gac" / "step=3.ckpt",
        )


def test_global_calibration_goes_on_with_the_checkpoint_it_started_from_alone(weights, tmp_path):
    for seed, name in enumerate(("biq", "other")):
        biq = BIQ | {"weights": str(weights), "rounding_lr": 0.5 * seed + 0.01}
        fit(BlockReconstructionModule, tmp_path / name, biq)
    gac = {"weights": str(weights), "checkpoint": tmp_path / "start.safetensors"}
    shutil.copy(tmp_path / "biq" / "out.safetensors", gac["checkpoint"])
    whole = fit(GACModule, tmp_path / "gac", dict(gac), max_epochs=2)
    step = tmp_path / "gac" / "step=3.ckpt"
    moved = gac | {"checkpoint": shutil.copy(gac["checkpoint"], tmp_path / "moved.safetensors")}
    assert fit(GACModule, tmp_path / "again", moved, max_epochs=2, checkpoint=step) == whole
    shutil.copy(tmp_path / "other" / "out.safetensors", gac["checkpoint"])
    with pytest.raises(PTQ4VMError, match=r"start: \w+ there, \w+ now"):
        fit(GACModule, tmp_path / "third", dict(gac), max_epochs=2, checkpoint=step)


def test_block_reconstruction_needs_an_epoch_for_each_block(weights, tmp_path):
    phase = BlockReconstructionModule("tiny", str(weights))
    data = VideoMattingDataModule(num_sequences=1, height=32, width=48, cache_dir=tmp_path)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(PTQ4VMError, match=f"max_epochs {len(phase.blocks)}, a block each, got 1"):
        trainer.fit(phase, datamodule=data)
