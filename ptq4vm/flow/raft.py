"""RAFT from torchvision, with weights from a file."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large, raft_small

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import load_safetensors
from ptq4vm.torch_files import load_plain

RaftArch = Literal["auto", "large", "small"]

_MIN_SIDE = 128  # RAFT pools its 1/8-resolution features three more times
_FIRST_CONV = "feature_encoder.convnormrelu.0.weight"
_ARCH_OF_WIDTH = {64: "large", 32: "small"}
_REMEDY = (
    "Give a file with torchvision's raft_large or raft_small weights, or use flow 'dis', which "
    "needs none."
)


def load_raft(
    weights: str | Path | None, arch: RaftArch = "auto"
) -> tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]:
    """Load RAFT with strictly matching weights.

    Args:
        weights: .pth (read with weights_only) or .safetensors file with torchvision's parameter
            names.
        arch: Size of RAFT; ``auto`` detects it from the width of the first convolution.

    Returns:
        A function from frames (3, H, W) t and t+1 in [0, 1] to forward and backward flow (2, H, W)
        in pixels, and a key that changes with architecture and file content.

    Raises:
        PTQ4VMError: Weights are missing, unreadable, or not those of ``arch``.
    """
    if arch not in get_args(RaftArch):
        raise PTQ4VMError(
            f"Expected arch to be one of {', '.join(get_args(RaftArch))}, got {arch!r}."
        )
    if weights is None:
        raise PTQ4VMError(f"Expected a weights file for flow 'raft', got none. {_REMEDY}")
    path = Path(weights)
    state = _read(path)
    found = _detect(state, path) if arch == "auto" else arch
    model = (raft_large if found == "large" else raft_small)(weights=None)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise PTQ4VMError(
            f"Expected weights of raft_{found} in {path}, got others: {error} {_REMEDY}"
        ) from error
    model.eval().requires_grad_(False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return _pairwise(model), f"raft-{found}-{digest}"


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PTQ4VMError(f"Expected RAFT's weights at {path}, got no such file. {_REMEDY}")
    if path.suffix.lower() == ".safetensors":
        try:
            return load_safetensors(path.read_bytes())[0]
        except (OSError, ValueError) as error:
            raise PTQ4VMError(
                f"Expected RAFT's weights, got {path}, which is damaged: {error}. {_REMEDY}"
            ) from error
    state = load_plain(path, "RAFT's weights", _REMEDY)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise PTQ4VMError(
            f"Expected a plain dictionary of tensors in {path}, got {type(state).__name__}. "
            f"{_REMEDY}"
        )
    return state


def _detect(state: dict[str, Tensor], path: Path) -> str:
    width = state[_FIRST_CONV].shape[0] if _FIRST_CONV in state else None
    if width not in _ARCH_OF_WIDTH:
        raise PTQ4VMError(
            f"Expected {_FIRST_CONV} with 64 (large) or 32 (small) channels in {path}, got "
            f"{width}. {_REMEDY}"
        )
    return _ARCH_OF_WIDTH[width]


def _pairwise(model: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    @torch.no_grad()  # not inference_mode, whose tensors autograd cannot save for backward
    def flow_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        model.to(first.device)
        height, width = first.shape[-2:]
        images = F.pad(
            torch.stack((first, second)) * 2 - 1, _padding(height, width), mode="replicate"
        )
        # Both directions in one batch; RAFT's last refinement is the estimate.
        forward, backward = model(images, images.flip(0))[-1][..., :height, :width]
        return forward, backward

    return flow_pair


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the padding to multiples of 8 and at least 128 pixels.

    Only the right and bottom are padded, so that pixel (0, 0) keeps its position.
    """
    right, bottom = (max(-(-side // 8) * 8, _MIN_SIDE) - side for side in (width, height))
    return 0, right, 0, bottom
