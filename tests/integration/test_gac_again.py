"""Tests of repeated global calibration."""

from itertools import pairwise

import lightning.pytorch as L
import pytest
import tiny
import torch
from safetensors.torch import save_file
from shared_job import QUIET

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.graph import quantized_layers
from ptq4vm.phases import BlockReconstructionModule, GACModule
from ptq4vm.quantizers import QConfig


def latents(checkpoint, weights):
    """Return the initial latent weights of global calibration by layer."""
    network = GACModule(checkpoint, weights=weights, weight_lr=1e-3).network
    return {
        name: layer.weight_quantizer.rounding.latent.detach()
        for name, layer in quantized_layers(network).items()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("affine", ["per_channel", "per_layer"])
def test_a_third_global_calibration_starts_from_the_codes_of_the_first(affine, tmp_path):
    torch.manual_seed(0)
    weights = str(tmp_path / "tiny.safetensors")
    save_file(tiny.TinyMatting().state_dict(), weights)
    data = VideoMattingDataModule(
        num_sequences=2,
        seq_length=2,
        height=32,
        width=48,
        eval_clips=1,
        eval_frames=2,
        cache_dir=tmp_path / "cache",
    )
    settings = {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path, **QUIET}
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    phase = BlockReconstructionModule("tiny", weights, qconfig=QConfig("W4A8"), output=paths[0])
    L.Trainer(**settings, max_epochs=phase.epochs).fit(phase, datamodule=data)
    for before, after in pairwise(paths):
        phase = GACModule(before, weights=weights, affine=affine, lr=0.02, output=after)
        L.Trainer(**settings, max_epochs=2).fit(phase, datamodule=data)
    first, third = latents(paths[0], weights), latents(paths[2], weights)
    moved = [
        layer.weight_quantizer.absorbed.log().abs().max()
        for layer in quantized_layers(phase.network).values()
    ]
    assert max(moved) > 0.04
    for name, latent in first.items():
        torch.testing.assert_close(third[name], latent, rtol=0, atol=1e-3)
