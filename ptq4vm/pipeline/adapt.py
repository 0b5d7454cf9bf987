"""Adaptation of a quantized network to one clip, without labels."""

import glob
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptq4vm.data import VideoMattingDataModule, Videos
from ptq4vm.data.evaluation import working_size
from ptq4vm.data.videos import VideoSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import find_checkpoint, load_quantized
from ptq4vm.phases import GACSettings
from ptq4vm.pipeline.quantize import QuantizeResult, quantize
from ptq4vm.pipeline.rows import Method
from ptq4vm.pipeline.settings import QuantizeSettings
from ptq4vm.quantizers import QConfig

DEFAULT_STEPS = 90
_SEQUENCES, _FRAMES = 15, 6
_SCORED = 48
"""Frames of the clip that are scored, from its beginning."""
_GAC = GACSettings(
    lr=2e-3, weight_lr=1e-3, window=4, average=0.9, feature_weight=1.0, truth_weight=0.0,
    teacher_weight=1.0,
)  # fmt: skip


def adapt(
    model: Path,
    clip: Path,
    output: Path = Path("runs/adapt"),
    steps: int = DEFAULT_STEPS,
    weights: str = "official",
    trainer: dict[str, Any] | None = None,
) -> QuantizeResult:
    """Calibrate a quantized network on the very clip that it is to matte, without labels.

    Global calibration goes on from a finished checkpoint, on sequences of the clip alone, with the
    float network as teacher. The result is meant for this clip and others of its scene. Both
    networks are scored on the clip by their distance to the float network.

    Args:
        model: quantized checkpoint, or run folder of one.
        clip: video file or folder of frames.
        output: run folder.
        steps: optimization steps, rounded up to whole passes over the sequences.
        weights: the float network: ``official``, or a file of its weights.
        trainer: options of Lightning's Trainer.

    Returns:
        Rows ``float``, before and after adaptation, and the checkpoint.

    Raises:
        PTQ4VMError: the model is no quantized checkpoint, the clip can't be read or is shorter than
            six frames, or ``output`` contains another run.

    Example:
        >>> from pathlib import Path
        >>> from ptq4vm.pipeline import adapt
        >>> adapt(Path("runs/w4a4"), Path("clip.mp4")).checkpoints  # doctest: +SKIP
        {'W4A4': PosixPath('runs/adapt/w4a4/quantized.safetensors')}
    """
    checkpoint = find_checkpoint(Path(model))
    network, qconfig = load_quantized(checkpoint)
    settings = _settings(checkpoint, qconfig, steps)
    given = {"weights": weights, "downsample_ratio": network.downsample_ratio, "trainer": trainer}
    return quantize(network.name, _data(Path(clip)), settings, Path(output), **given)  # type: ignore[arg-type]


def _settings(checkpoint: Path, qconfig: QConfig, steps: int) -> QuantizeSettings:
    if steps < 1:
        raise PTQ4VMError(f"Expected at least 1 step, got {steps}. Raise it.")
    rows = {
        "before": Method("before", checkpoint=checkpoint),
        "adapted": Method("adapted to this clip", start="before"),
    }
    epochs = math.ceil(steps / _SEQUENCES)
    own = replace(qconfig, bits=QConfig().bits)
    return QuantizeSettings((qconfig.bits,), rows=rows, qconfig=own, gac=_GAC, gac_epochs=epochs)


def _data(clip: Path) -> VideoMattingDataModule:
    """Return sequences of the clip for calibration, and the clip itself for evaluation."""
    name = glob.escape(clip.stem)
    frame = VideoSource(clip.parent, names=[name]).read(0, 0, 1).src
    height, width = (16 * round(side / 32) for side in working_size(*frame.shape[-2:]))
    return VideoMattingDataModule(
        root=clip.parent,
        source=Videos(".", names=(name,)),
        held_out=[name],
        labels=False,
        score_held_out=True,
        num_sequences=_SEQUENCES,
        seq_length=_FRAMES,
        height=height,
        width=width,
        enlarge=2,
        settle=12,
        augment=False,
        eval_frames=_SCORED,
    )
