"""Report of a run: frames, layer signals and runtimes of its networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ptq4vm.calibration import make_teacher
from ptq4vm.data import VideoMattingDataModule, Videos
from ptq4vm.deploy import TARGETS, Target, require_executable
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import FINAL_CHECKPOINT, load_quantized
from ptq4vm.models import create_model
from ptq4vm.models.base import MattingModel
from ptq4vm.reporting.layers import Signal, describe_layers, learned_blocks, measure_signal
from ptq4vm.reporting.page import REPORT, Inside, Shot, write_page
from ptq4vm.reporting.runs import RunFolder, read_run, require_finished
from ptq4vm.types import MattingClip

_WARMUP = 12
"""Frames of warm-up, after which the recurrent state has settled."""
_PLAYED = 24
"""Maximum frames of a clip that are matted."""
_MEASURED = 4
"""Frames on which the layers' signals are compared."""


def report_run(folder: Path, out: Path | None = None) -> tuple[Path, str | None]:
    """Write the report of a finished run from its folder and some frames of its evaluation clips.

    Args:
        folder: run folder.
        out: HTML file; by default ``report.html`` in the run folder.

    Returns:
        The HTML file, and the reason if it contains no frames, else None.

    Raises:
        PTQ4VMError: The run is unfinished or damaged, or the file can't be written.
    """
    run = read_run(Path(folder))
    require_finished(run)
    networks = load_networks(run.folder, run.bits)
    shots: list[Shot] = []
    problem = src = teacher = None
    try:
        settings = run.settings
        if settings["weights"] is None:
            raise PTQ4VMError("the float network was given in memory")
        teacher = create_model(
            settings["network"], settings["weights"], downsample_ratio=settings["downsample_ratio"]
        )
        data = _evaluation_data(run)
        data.attach(make_teacher(teacher))
        shots, src = collect_shots(data, teacher, networks)
    except PTQ4VMError as error:  # data or float weights were moved; report the rest
        problem = str(error)
    path = out or run.folder / REPORT
    write_report(run, networks, teacher, shots, src, path, problem)
    return path, problem


def write_report(
    run: RunFolder,
    networks: dict[str, MattingModel],
    teacher: MattingModel | None,
    shots: Sequence[Shot],
    src: torch.Tensor | None,
    path: Path,
    problem: str | None = None,
) -> None:
    """Write the report of a finished run.

    Args:
        run: finished run.
        networks: final quantized networks by bits.
        teacher: float network, if available.
        shots: shots from :func:`collect_shots`.
        src: frames from :func:`collect_shots`, (T, 3, H, W).
        path: HTML file.
        problem: reason if there are no shots.

    Raises:
        PTQ4VMError: A file in the run folder is damaged, or the report can't be written.
    """
    write_page(run, shots, look_inside(networks, teacher, src), path, problem)


def load_networks(folder: Path, bits: list[str]) -> dict[str, MattingModel]:
    """Load the final quantized networks of a run, by bits."""
    return {name: load_quantized(folder / name.lower() / FINAL_CHECKPOINT)[0] for name in bits}


def _evaluation_data(run: RunFolder) -> VideoMattingDataModule:
    """Return a datamodule with the run's evaluation clips, without calibration data."""
    settings = run.settings["data"]
    height, width = settings["size"]
    options = {name: settings[name] for name in ("evaluation", "eval_clips", "eval_frames")}
    if settings.get("score_held_out"):
        videos = next(one["videos"] for one in settings["sources"] if "videos" in one)
        options |= {name: settings[name] for name in ("held_out", "score_held_out")}
        options["source"] = Videos(videos)
    return VideoMattingDataModule(
        root=Path(settings["root"]), height=height, width=width, **options
    )


def look_inside(
    networks: dict[str, MattingModel], teacher: MattingModel | None, src: torch.Tensor | None
) -> dict[str, Inside]:
    """Describe the layers, learned blocks and runtimes of each network, by bits.

    Args:
        networks: quantized networks by bits.
        teacher: float network, if available.
        src: frames (T, 3, H, W) on which signals are measured; without them, or without the
            teacher, signals are left out.
    """
    found = {}
    for bits, network in networks.items():
        qconfig: Any = network.qconfig
        size = (64, 64) if src is None else src.shape[-2:]
        signals: dict[str, Signal] = {}
        if teacher is not None and src is not None:
            signals = measure_signal(teacher, network, src[:_MEASURED])
        layers = describe_layers(network, *size)
        runtimes = {target.title: _why_not(network, target) for target in TARGETS.values()}
        found[bits] = Inside(
            layers,
            learned_blocks(network),
            qconfig.placement,
            qconfig.ignored_modules,
            runtimes,
            signals,
        )
    return found


def _why_not(network: MattingModel, target: Target) -> str | None:
    try:
        require_executable(network, target)
    except PTQ4VMError as error:
        return f"not as it is: {str(error).partition(', got ')[2]}"
    return None


@torch.inference_mode()
def collect_shots(
    data: VideoMattingDataModule,
    teacher: MattingModel,
    networks: dict[str, MattingModel],
    count: int = 4,
) -> tuple[list[Shot], torch.Tensor]:
    """Matte the beginnings of evaluation clips with all networks and select up to 3 frames of each.

    Frames are selected after warm-up of the recurrent state.

    Args:
        data: datamodule with evaluation clips.
        teacher: float network, for clips without its alpha.
        networks: quantized networks by bits.
        count: maximum number of clips.

    Returns:
        The shots, and the frames of the first clip, (T, 3, H, W).
    """
    chosen = list(dict.fromkeys(chunk.clip for chunk in data.evaluation_set.chunks))[:count]
    shots: list[Shot] = []
    frames = torch.zeros(0)
    for clip in (_beginning(data, number) for number in chosen):
        frames = frames if len(frames) else clip.src
        float_pha = (
            teacher.unroll(clip.src[None]).pha[0] if clip.float_pha is None else clip.float_pha
        )
        mattes = {bits: network.unroll(clip.src[None]).pha[0] for bits, network in networks.items()}
        first, last = min(_WARMUP, len(clip.src)) - 1, len(clip.src) - 1
        for frame in sorted({first, (first + last) // 2, last}):
            truth = None if clip.pha is None else clip.pha[frame]
            if truth is not None and not truth.isfinite().all():  # not annotated
                truth = None
            quantized = {bits: pha[frame] for bits, pha in mattes.items()}
            shots.append(
                Shot(clip.name, frame, clip.src[frame], truth, float_pha[frame], quantized)
            )
    return shots, frames


def _beginning(data: VideoMattingDataModule, number: int) -> MattingClip:
    """Return the first frames of an evaluation clip, joined from its chunks."""
    chunks = data.evaluation_set
    early = [
        i for i, chunk in enumerate(chunks.chunks) if chunk.clip == number and chunk.start < _PLAYED
    ]
    parts = [chunks[index] for index in early]

    def joined(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
        known = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(known)[:_PLAYED] if len(known) == len(tensors) else None

    src = torch.cat([part.src for part in parts])[:_PLAYED]
    pha, float_pha = (
        joined([part.pha for part in parts]),
        joined([part.float_pha for part in parts]),
    )
    return MattingClip(src, pha, name=parts[0].name, float_pha=float_pha)
