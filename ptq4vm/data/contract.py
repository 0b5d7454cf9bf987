"""Fingerprints of the frames in use, and the settings and cache folders that depend on them."""

from pathlib import Path
from typing import Any

from ptq4vm.data.assembly import DataSettings
from ptq4vm.data.calibration import SequencePlace, fingerprint_sequences
from ptq4vm.data.loading import EvaluationChunks
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.storage import short_hash
from ptq4vm.types import Teacher

FORMAT_VERSION = 6
"""Part of every cache key; increment when the content of the cache or its computation changes."""


class Content:
    """Fingerprints of frames by purpose, each computed once."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def evaluation(self, chunks: EvaluationChunks) -> str:
        """Return the fingerprint of the evaluation clips."""
        if "evaluation" not in self._found:
            self._found["evaluation"] = chunks.source.fingerprint(chunks.clips())
        return self._found["evaluation"]

    def held_out(self, scenes: ClipSource, places: list[SequencePlace], length: int) -> str:
        """Return the fingerprint of held-out people on held-out backgrounds."""
        if "held_out" not in self._found:
            self._found["held_out"] = fingerprint_sequences(scenes, places, length)
        return self._found["held_out"]

    def calibration(
        self, sources: list[ClipSource], places: list[SequencePlace], length: int
    ) -> list[str]:
        """Return one fingerprint per calibration source."""
        if "calibration" not in self._found:
            self._found["calibration"] = [
                fingerprint_sequences(source, places, length) for source in sources
            ]
        return self._found["calibration"]

    def known(self) -> dict[str, Any]:
        """Return the fingerprints computed so far, with the format version."""
        return {**self._found, "format": FORMAT_VERSION}


def calibration_contract(settings: DataSettings, content: list[str]) -> dict[str, Any]:
    """Return all that determines the calibration set, except the float network.

    Args:
        settings: Data settings.
        content: Fingerprint of each source.
    """
    return {
        "format": FORMAT_VERSION,
        "source": settings.sources,
        "content": content,
        "labels": settings.labels,
        "num_sequences": settings.num_sequences,
        "seq_length": settings.seq_length,
        "size": settings.size,
        "enlarge": settings.enlarge,
        "augment": settings.augment,
        "seed": settings.seed,
    }


def calibration_folder(settings: DataSettings, content: list[str], teacher: Teacher) -> Path:
    """Return the cache folder of the calibration set; see :func:`calibration_contract`."""
    # Clips of these sources depend on the network that produced the cut-out alpha.
    cutout = teacher.key if {"builtin", "cutout"} & set(settings.sources) else None
    key = {**calibration_contract(settings, content), "cutout": cutout}
    return settings.cache_dir / "calibration" / short_hash(key)


def references_folder(
    cache_dir: Path, teacher: Teacher, fingerprint: str, chunks: EvaluationChunks
) -> Path:
    """Return the cache folder of the float network's mattes of the evaluation clips."""
    key = {"teacher": teacher.key, "clips": fingerprint, "chunks": chunks.chunks}
    return cache_dir / "references" / short_hash(key | {"format": FORMAT_VERSION})


def held_out_folder(
    cache_dir: Path, teacher: Teacher, fingerprint: str, size: tuple[int, int]
) -> Path:
    """Return the cache folder of held-out people on held-out backgrounds."""
    key = {"teacher": teacher.key, "clips": fingerprint, "size": size}
    return cache_dir / "held_out" / short_hash(key | {"format": FORMAT_VERSION})
