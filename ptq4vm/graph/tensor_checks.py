"""Validation of the tensors in a quantized checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.convert import quantized_layers
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import QuantSpec
from ptq4vm.quantizers.fake_quantize import DRIFT

_SCALES = (1e-15, 1e8)
"""Valid range of scales.

Calibration yields at least 1e-8, times γ; the product of two scales remains a normal float32.
"""


def check_tensors(network: MattingModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that names, shapes, dtypes and value ranges are those of the network.

    Integer codes are not checked here: their shape is packed.

    Raises:
        PTQ4VMError: The tensors are others, or a value is not finite or outside its range.
    """
    expected = network.state_dict()
    wrong = sorted(set(expected) ^ set(tensors))
    if wrong:
        raise PTQ4VMError(
            f"Expected in {path} the {len(expected)} tensors of a quantized {network.name}, "
            f"missing or left over: {', '.join(wrong[:5])}. Quantize again."
        )
    packed = {f"{name}.weight" for name in quantized_layers(network)}
    for name in sorted(expected.keys() - packed):
        got, value = tensors[name], expected[name]
        if got.shape != value.shape or got.dtype != value.dtype or not torch.isfinite(got).all():
            raise PTQ4VMError(
                f"Expected finite values, {tuple(value.shape)} of {value.dtype}, for {name} in "
                f"{path}, got {tuple(got.shape)} of {got.dtype}. Quantize again."
            )
        owner, _, key = name.rpartition(".")
        # The owner of a scale or an offset is a quantizer, which knows its grid.
        rule = _RANGES.get(key)
        spec = getattr(network.get_submodule(owner), "spec", None)
        wanted = None if rule is None else rule(got, spec if isinstance(spec, QuantSpec) else None)
        if wanted is not None:
            raise PTQ4VMError(
                f"Expected {wanted} for {name} in {path}, got values from {got.min().item():g} to "
                f"{got.max().item():g}. Quantize again."
            )


def _wrong_scale(scale: Tensor, spec: QuantSpec | None) -> str | None:
    return None if spec is None else _wrong_input_scale(scale, spec)


def _wrong_input_scale(scale: Tensor, spec: QuantSpec | None) -> str | None:
    """Check a scale whose owner, a layer, has no grid of its own."""
    low, high = _SCALES
    return None if ((scale >= low) & (scale <= high)).all() else f"scales from {low:g} to {high:g}"


def _wrong_log_scale(log_scale: Tensor, spec: QuantSpec | None) -> str | None:
    return (
        None
        if _wrong_scale(log_scale.exp(), spec) is None
        else "logarithms of scales from 1e-15 to 1e8"
    )


def _wrong_zero_point(zero_point: Tensor, spec: QuantSpec | None) -> str | None:
    if spec is None:
        return None
    low, high = (spec.quant_min, spec.quant_max) if spec.grid == "affine" else (0, 0)
    inside = ((zero_point >= low) & (zero_point <= high) & (zero_point == zero_point.round())).all()
    return None if inside else f"integers from {low} to {high}"


def _wrong_offset(offset: Tensor, spec: QuantSpec | None) -> str | None:
    """Check a learned zero point, stored as a fraction of the number of codes.

    It is rounded and clamped at use.
    """
    if spec is None:
        return None
    codes = spec.quant_max - spec.quant_min
    low, high = spec.quant_min / codes - DRIFT, spec.quant_max / codes + DRIFT
    low, high = (low, high) if spec.grid == "affine" else (0, 0)
    return (
        None
        if ((offset >= low) & (offset <= high)).all()
        else f"zero points from {low:g} to {high:g} of the codes"
    )


def _not_ready(ready: Tensor, spec: QuantSpec | None) -> str | None:
    return None if spec is None or bool(ready) else "a range that was found, true,"


def _negative(variance: Tensor, spec: QuantSpec | None) -> str | None:
    return None if (variance >= 0).all() else "no negative variance"


_RANGES: dict[str, Callable[[Tensor, QuantSpec | None], str | None]] = {
    "scale": _wrong_scale,
    "absorbed": _wrong_scale,
    "input_scale": _wrong_input_scale,
    "zero_point": _wrong_zero_point,
    "log_scale": _wrong_log_scale,
    "offset": _wrong_offset,
    "ready": _not_ready,
    "running_var": _negative,
}
"""Checks by the last part of a tensor's name.

Each takes the tensor and its owner's grid, and returns the expected range, or None if the tensor is
valid.
"""
