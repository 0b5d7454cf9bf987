"""Errors of layers quantized alone: types, ranking, and the file that they are kept in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ptq4vm.atomic_io import write_json
from ptq4vm.errors import PTQ4VMError, differences
from ptq4vm.quantizers import canonical_bits
from ptq4vm.reading import read_json


class LayerError(NamedTuple):
    """Difference of the mattes to the float network's, mean over frames."""

    mad: float
    """Mean absolute difference ×10³."""
    dtssd: float
    """RMS difference of frame-to-frame steps ×10²; 0 for the first frame of a sequence."""


@dataclass(frozen=True)
class LayerSensitivity:
    """Quantizable layer and the errors of quantizing it alone."""

    name: str
    macs: int
    """Multiply-accumulates for one calibration frame."""
    weights: int
    fixed: str | None = None
    """Bits fixed by the configuration (first and last layer, ``layer_bits``); None if free."""
    errors: dict[str, LayerError] = field(default_factory=dict)
    """Errors by bits, e.g. ``W4A4``."""


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivities of the layers, in order of execution."""

    layers: tuple[LayerSensitivity, ...]

    def ranked(self, bits: str) -> list[LayerSensitivity]:
        """Return the layers, most sensitive first, by :func:`combined_errors`."""
        bits = canonical_bits(bits)
        errors = combined_errors(self.layers, [bits], bits)[:, 0]
        return [self.layers[index] for index in np.argsort(-errors, kind="stable")]

    def shares(self) -> dict[str, float]:
        """Return each layer's share of the MACs of all quantizable layers."""
        total = sum(layer.macs for layer in self.layers)
        return {layer.name: layer.macs / total for layer in self.layers}


def combined_errors(
    layers: Sequence[LayerSensitivity], options: Sequence[str], base: str
) -> np.ndarray:
    """Combine MAD and dtSSD into one error per layer and option, (layers, options).

    Each is divided by its sum over these layers at the base bits, so that both have equal weight
    regardless of units; the two are added.

    Raises:
        PTQ4VMError: a layer was not measured at one of the bits.
    """
    for one in (base, *options):
        missing = [layer.name for layer in layers if one not in layer.errors]
        if missing:
            raise PTQ4VMError(
                f"Expected every layer measured at {one}, got {len(missing)} without "
                f"({missing[0]}, ...). Measure sensitivity at {one} too."
            )
    errors = np.array([[layer.errors[one] for one in options] for layer in layers], dtype=float)
    sums = np.array([layer.errors[base] for layer in layers], dtype=float).sum(0)
    # Where no layer changes a metric, its term is 0 rather than 0 / 0.
    return (errors / np.where(sums > 0, sums, np.inf)).sum(-1)


# ---- the file ----------------------------------------------------------------------------------


def write_sensitivity(path: Path, found: Sensitivity, settings: Mapping[str, Any]) -> None:
    """Write the sensitivity file as JSON, atomically.

    The content is ``{"settings": …, "layers": [{"name", "macs_share", "macs", "weights", "fixed",
    "errors"}, …]}``, where ``errors`` has ``{"mad": …, "dtssd": …}`` by bits.

    Raises:
        PTQ4VMError: the file can't be written.
    """
    shares = found.shares()
    layers = [
        {
            "name": layer.name,
            "macs_share": shares[layer.name],
            "macs": layer.macs,
            "weights": layer.weights,
            "fixed": layer.fixed,
            "errors": {bits: error._asdict() for bits, error in layer.errors.items()},
        }
        for layer in found.layers
    ]
    write_json(path, {"settings": settings, "layers": layers})


class _FileError(TypedDict):
    mad: float
    dtssd: float


class _FileLayer(TypedDict):
    name: str
    errors: dict[str, _FileError]


class _File(TypedDict):
    settings: dict[str, Any]
    layers: list[_FileLayer]


def read_errors(path: Path, settings: dict[str, Any], found: Sensitivity) -> None:
    """Read errors measured before into ``found``; raise if the settings differ."""
    if not path.is_file():
        return
    content: _File = read_json(path, _File, "a sensitivity file", "Remove it.")
    before = content["settings"]
    errors = {
        layer["name"]: {
            bits: LayerError(error["mad"], error["dtssd"])
            for bits, error in layer["errors"].items()
        }
        for layer in content["layers"]
    }
    changed = differences(before, json.loads(json.dumps(settings)))
    if changed:
        raise PTQ4VMError(
            f"Expected {path} to be new or measured with these settings, got another ({changed}). "
            "Choose another folder, or remove the file."
        )
    for layer in found.layers:
        layer.errors.update(errors.get(layer.name, {}))
