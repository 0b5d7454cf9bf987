"""Model loading from a name, weights file, checkpoint or run folder."""

from pathlib import Path

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.checkpoint import is_quantized_checkpoint, load_quantized
from ptq4vm.models import create_model, list_models
from ptq4vm.models.base import MattingModel

FINAL_CHECKPOINT = "quantized.safetensors"
"""File name of the finished quantized checkpoint in a run folder."""


def load_model(model: str | Path, network: str = "rvm_mobilenetv3") -> MattingModel:
    """Load a network in eval mode.

    Args:
        model: Registered name (with official weights), float weights file, quantized checkpoint, or
            run folder of ``ptq4vm quantize`` with exactly one finished checkpoint.
        network: Registry name of the network if ``model`` is a float weights file.

    Raises:
        PTQ4VMError: ``model`` is none of these, or the run folder has no or several checkpoints.

    Example:
        >>> import torch
        >>> from ptq4vm import load_model
        >>> network = load_model("rvm_mobilenetv3")  # fetches the official weights once
        >>> with torch.no_grad():
        ...     output = network.unroll(torch.rand(1, 2, 3, 64, 96))
        >>> output.pha.shape
        torch.Size([1, 2, 1, 64, 96])
    """
    if str(model) in list_models():
        return create_model(str(model), weights="official")
    path = find_checkpoint(Path(model))
    if not path.is_file():
        raise PTQ4VMError(
            f"Expected a model: one of {', '.join(list_models())}, a weights file, a quantized "
            f"checkpoint or a run folder; got {str(model)!r}, which is none of them. Check the "
            "spelling and the path."
        )
    return (
        load_quantized(path)[0]
        if is_quantized_checkpoint(path)
        else create_model(network, weights=path)
    )


def find_checkpoint(path: Path) -> Path:
    """Return the finished checkpoint of a run folder; any other path unchanged.

    Raises:
        PTQ4VMError: The folder has none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.rglob(FINAL_CHECKPOINT))
    if len(found) != 1:
        listing = ", ".join(str(path.parent) for path in found) or "none"
        raise PTQ4VMError(
            f"Expected exactly one finished {FINAL_CHECKPOINT} in the run folder {path}, found "
            f"{listing}. Name one of its folders, or finish the run with `ptq4vm quantize`."
        )
    return found[0]
