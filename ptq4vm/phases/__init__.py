"""The phases of post-training quantization, as LightningModules."""

from ptq4vm.phases.base import MattingModule, PTQPhase
from ptq4vm.phases.block_reconstruction import BlockReconstructionModule
from ptq4vm.phases.gac import GACModule

__all__ = ["BlockReconstructionModule", "GACModule", "MattingModule", "PTQPhase"]
