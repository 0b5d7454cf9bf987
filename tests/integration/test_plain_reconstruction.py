"""The plain loop over blocks computes what the Lightning fit computes."""

import lightning.pytorch as L
import pytest
import tiny
import torch
from safetensors.torch import save_file
from shared_job import QUIET

from ptq4vm.calibration.reconstruction import ReconstructionSettings, reconstruct_block
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.graph import fold_batch_norm_, quantize_network, quantized_layers, run_block
from ptq4vm.models import create_model
from ptq4vm.phases import BlockReconstructionModule
from ptq4vm.quantizers import QConfig

STEPS = 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [{}, {"scale_inputs": True, "rounding": "codes"}])
def test_the_plain_loop_ends_at_the_bits_of_the_fit(tmp_path, given):
    torch.manual_seed(0)
    weights, qconfig = str(tmp_path / "tiny.safetensors"), QConfig("W4A4")
    before = tiny.TinyMatting()
    with torch.no_grad():
        before.encoder[0].weight[0] *= 20 if given else 1  # one loud channel
    save_file(before.state_dict(), weights)
    data = VideoMattingDataModule(
        num_sequences=1,
        seq_length=3,
        height=32,
        width=48,
        steps_per_epoch=STEPS,
        cache_dir=tmp_path,
    )
    phase = BlockReconstructionModule("tiny", weights, qconfig=qconfig, drop_prob=0.0, **given)
    settings = {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path, **QUIET}
    L.Trainer(**settings, max_epochs=phase.epochs).fit(phase, datamodule=data)

    teacher = create_model("tiny", weights=weights)
    network = quantize_network(teacher, qconfig)
    fold_batch_norm_(teacher.requires_grad_(False))
    src = data.calibration_set[0].src[None]
    floats, values = {"src": src}, {"src": src}
    for block, original in zip(network.blocks(), teacher.blocks(), strict=True):
        state = None if block.state is None else teacher.initial_state(src[:, 0])[block.state]
        targets = run_block(original, [floats[name] for name in block.inputs], state)
        inputs = [values[name] for name in block.inputs]
        settings = ReconstructionSettings(drop_prob=0.0, **given)
        report = reconstruct_block(block, network, inputs, targets, settings, steps=STEPS)
        assert given or report.soft < report.nearest
        floats.update(zip(block.outputs, targets, strict=False))
        with torch.no_grad():
            outputs = run_block(block, inputs, state)
        values.update(zip(block.outputs, outputs, strict=False))
    for layer in quantized_layers(network).values():
        layer.fix_()
    assert network.gate[0].scales_input == bool(given)
    expected = phase.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
