"""The phases of post-training quantization, as LightningModules."""

from ptq4vm.phases.base import PTQPhase
from ptq4vm.phases.block_reconstruction import BlockReconstructionModule
from ptq4vm.phases.gac import GACModule
from ptq4vm.phases.scoring import MattingModule
from ptq4vm.phases.settings import BlockReconstructionSettings, GACSettings

__all__ = [
    "BlockReconstructionModule",
    "BlockReconstructionSettings",
    "GACModule",
    "GACSettings",
    "MattingModule",
    "PTQPhase",
]
