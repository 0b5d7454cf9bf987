"""A network from whatever a user calls a model."""

from pathlib import Path

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.checkpoint import is_quantized_checkpoint, load_quantized
from ptq4vm.models import create_model, list_models
from ptq4vm.models.base import MattingModel

FINAL_CHECKPOINT = "quantized.safetensors"
"""Name of the finished quantized checkpoint in a run folder."""


def load_model(model: str | Path, network: str = "rvm_mobilenetv3") -> MattingModel:
    """The network that ``model`` means, ready to run.

    Args:
        model: a registered name (with official weights), a file of float weights, a quantized checkpoint, or a run
            folder of ``ptq4vm quantize`` that holds exactly one.
        network: which network a file of float weights belongs to.

    Raises:
        PTQ4VMError: it is none of these, or a run folder with no or several checkpoints.
    """
    if str(model) in list_models():
        return create_model(str(model), weights="official")
    path = Path(model)
    if path.is_dir():
        path = _checkpoint_of_run(path)
    if not path.is_file():
        raise PTQ4VMError(
            f"Expected a model: one of {', '.join(list_models())}, a weights file, a quantized checkpoint or a run "
            f"folder; got {str(model)!r}, which is none of them. Check the spelling and the path."
        )
    return (
        load_quantized(path)[0]
        if is_quantized_checkpoint(path)
        else create_model(network, weights=path)
    )


def _checkpoint_of_run(folder: Path) -> Path:
    found = sorted(folder.rglob(FINAL_CHECKPOINT))
    if len(found) != 1:
        listing = ", ".join(str(path.parent) for path in found) or "none"
        raise PTQ4VMError(
            f"Expected exactly one finished {FINAL_CHECKPOINT} in the run folder {folder}, found {listing}. "
            "Name one of its folders, or finish the run with `ptq4vm quantize`."
        )
    return found[0]
