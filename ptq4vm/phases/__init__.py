"""The phases of post-training quantization, as LightningModules."""

from ptq4vm.phases.base import PTQPhase
from ptq4vm.phases.block_reconstruction import (
    BlockReconstructionModule,
    BlockReconstructionSettings,
)
from ptq4vm.phases.gac import GACModule, GACSettings
from ptq4vm.phases.scoring import MattingModule

__all__ = [
    "BlockReconstructionModule",
    "BlockReconstructionSettings",
    "GACModule",
    "GACSettings",
    "MattingModule",
    "PTQPhase",
]
