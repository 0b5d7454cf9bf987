"""Quantized checkpoints: safetensors with a JSON header and weights as integer codes.

Loading a checkpoint runs no code from it.
"""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptq4vm.atomic_io import written_whole
from ptq4vm.errors import PTQ4VMError
from ptq4vm.former_names import with_present_names
from ptq4vm.graph.convert import quantize_network, quantized_layers
from ptq4vm.graph.described import create_described
from ptq4vm.graph.tensor_checks import check_tensors
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import FixedRounding, QConfig, QuantizedLayer, QuantSpec
from ptq4vm.reading import load_safetensors, parse_json, typed

FORMAT_VERSION = 1
_HEADER = "ptq4vm"


class _Header(TypedDict):
    network: str
    arguments: dict[str, Any]
    qconfig: QConfig
    layers: dict[str, str]


def save_quantized(
    network: MattingModel, qconfig: QConfig, path: Path, made: dict[str, Any]
) -> None:
    """Write a quantized network, with its weights on their grids, atomically.

    Args:
        network: Calibrated network from :func:`quantize_network`.
        qconfig: Configuration of its conversion.
        path: File to write.
        made: Provenance of the checkpoint, plain JSON, stored in the header.

    Raises:
        PTQ4VMError: A layer has no activation range.
        RuntimeError: A layer's rounding is not fixed, or its affine calibration is not absorbed.
    """
    layers = quantized_layers(network)
    require_calibrated(network)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    for name, layer in layers.items():
        if not layer.weight_quantizer.fixed or layer.affine is not None:
            raise RuntimeError(
                f"layer {name} must be fixed and its affine absorbed before it is saved"
            )
        codes = layer.weight_quantizer.codes(layer.weight).contiguous()
        tensors[f"{name}.weight"] = _pack(codes, layer.weight_quantizer.spec.bits)
    header = {
        "format_version": FORMAT_VERSION,
        "network": network.name,
        "arguments": {**network.arguments, "downsample_ratio": network.downsample_ratio},
        "qconfig": qconfig.to_dict(),
        "layers": {name: layer_bits(layer) for name, layer in layers.items()},
        "made": made,
    }
    with written_whole(path) as part:
        save_file(tensors, part, metadata={_HEADER: json.dumps(header)})


def require_calibrated(network: MattingModel) -> None:
    """Check that every layer has its activation ranges.

    Raises:
        PTQ4VMError: An activation range is missing.
    """
    layers = quantized_layers(network).items()
    missing = [
        name
        for name, layer in layers
        if not all(bool(one.ready) for one in layer.activation_quantizers)
    ]
    if missing:
        raise PTQ4VMError(
            f"Expected a calibrated network, got {len(missing)} layers without activation ranges "
            f"({missing[0]}, ...). Let the fit of block reconstruction run to its end; after a "
            "stop go on with --ckpt_path."
        )


def layer_bits(layer: torch.nn.Module) -> str:
    """Return the bits of a quantized layer, e.g. ``W4A8``."""
    return f"W{layer.weight_quantizer.spec.bits}A{layer.activation_spec.bits}"  # type: ignore[union-attr]


def is_quantized_checkpoint(path: Path) -> bool:
    """Return whether the file is a safetensors file with ptq4vm's header.

    Float weights have no such header.
    """
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    with path.open("rb") as file:
        # safetensors: the header's length in 8 bytes, little endian, then the header as JSON. In
        # another file the length may be anything, hence the bound.
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        head = file.read(min(size, 64 * 2**20))
    return f'"{_HEADER}"'.encode() in head


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a quantized checkpoint, with validated types.

    Raises:
        PTQ4VMError: The file is no ptq4vm checkpoint, or has another format version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        header = parse_json(metadata[_HEADER])
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise PTQ4VMError(
            f"Expected a quantized checkpoint as ptq4vm writes it, got {path} "
            f"({type(error).__name__}: {error}). Make one with `ptq4vm quantize`."
        ) from error
    version = header.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise PTQ4VMError(
            f"Expected a checkpoint of format {FORMAT_VERSION}, got {version!r} in {path}. "
            "Use the version of ptq4vm that wrote it, or quantize again."
        )
    if isinstance(header.get("qconfig"), dict):
        header["qconfig"] = with_present_names(header["qconfig"])
    return typed(header, _Header, "the header of a quantized checkpoint", path, "Quantize again.")  # type: ignore[no-any-return]


def load_quantized(path: Path) -> tuple[MattingModel, QConfig]:
    """Load a quantized network in eval mode, and the configuration of its conversion.

    Raises:
        PTQ4VMError: The file is no ptq4vm checkpoint, its tensors do not fit the network in its
            header, or values are outside the range of their grids.
    """
    path = Path(path)
    header = read_header(path)
    try:
        network, qconfig = _build(header, path)
        tensors, _ = load_safetensors(path.read_bytes())
    except PTQ4VMError:
        raise
    # A damaged or foreign header may cause any exception while the network is built.
    except Exception as error:
        raise PTQ4VMError(
            f"Expected a complete quantized checkpoint, got {path}: {error}. Quantize again."
        ) from error
    layers = quantized_layers(network)
    bits = {name: layer_bits(layer) for name, layer in layers.items()}
    if header["layers"] != bits:
        name = min(
            name
            for name in bits.keys() | header["layers"]
            if bits.get(name) != header["layers"].get(name)
        )
        raise PTQ4VMError(
            f"Expected {bits.get(name, 'no such layer')} for {name} in {path}, as its qconfig has "
            f"it, got {header['layers'].get(name, 'nothing')} in its table of layers. Quantize "
            "again."
        )
    if not any(f"{name}.weight_quantizer.absorbed" in tensors for name in layers):
        _complete_absorbed(network, tensors, header.get("made"))
    for key in ("input_scale", "input_shift"):
        if not any(f"{name}.{key}" in tensors for name in layers):  # an older checkpoint
            values = {name: getattr(layer, key) for name, layer in layers.items()}
            tensors |= {f"{name}.{key}": one for name, one in values.items() if one is not None}
    check_tensors(network, tensors, path)
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = _dequantized(name, layer, tensors, path)
        # Fixed, so that the forward pass neither rounds it again nor adds float values.
        layer.weight_quantizer.rounding = FixedRounding()
    network.load_state_dict(tensors)
    network.qconfig = qconfig
    return network.eval().requires_grad_(False), qconfig


def _build(header: dict[str, Any], path: Path) -> tuple[MattingModel, QConfig]:
    """Return the network that a header describes, before its weights are loaded."""
    qconfig = QConfig(**header["qconfig"]).used()  # versions before 0.2 kept an unused grid
    # The file replaces weights and scales, so the cheapest range method suffices.
    quick = dataclasses.replace(qconfig, range_method="minmax")
    return quantize_network(
        create_described(header["network"], header["arguments"], path), quick
    ), qconfig


# ---- integer codes ----


def _dequantized(
    name: str, layer: QuantizedLayer, tensors: dict[str, Tensor], path: Path
) -> Tensor:
    spec = layer.weight_quantizer.spec
    codes = _unpack(tensors[f"{name}.weight"], spec, layer.weight.shape, f"{path}: {name}.weight")
    scale, zero_point = (
        tensors[f"{name}.weight_quantizer.{key}"] for key in ("scale", "zero_point")
    )
    return (codes - zero_point) * scale


def _complete_absorbed(network: MattingModel, tensors: dict[str, Tensor], made: Any) -> None:
    """Add the γ that weight scales have absorbed, missing from older checkpoints, in place.

    It is 1 after block reconstruction and unknown otherwise.
    """
    for name, layer in quantized_layers(network).items():
        if made == {"phase": "block_reconstruction"}:
            tensors[f"{name}.weight_quantizer.absorbed"] = torch.ones_like(
                layer.weight_quantizer.scale
            )
        else:
            layer.weight_quantizer.absorbed = None


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes as bytes, or two per byte (low nibble first) for at most 4 bits."""
    if bits > 4:
        return codes.round().to(torch.int16).remainder(256).to(torch.uint8)
    # remainder gives the two's complement: -1 -> 15.
    nibbles = codes.round().to(torch.int16).remainder(16).to(torch.uint8).flatten()
    nibbles = torch.cat([nibbles, nibbles.new_zeros(nibbles.numel() % 2)])
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _unpack(packed: Tensor, spec: QuantSpec, shape: torch.Size, where: str) -> Tensor:
    """Return the codes as floats of the given shape.

    Negative codes are stored as two's complement of 4 or 8 bits.
    """
    size = (shape.numel() + 1) // 2 if spec.bits <= 4 else shape.numel()
    if packed.dtype != torch.uint8 or packed.numel() != size:
        raise PTQ4VMError(
            f"Expected {size} bytes with {spec.bits}-bit codes in {where}, got {packed.numel()} of "
            f"{packed.dtype}. Quantize again."
        )
    if spec.bits <= 4:
        packed = torch.stack([packed & 15, packed >> 4], -1).flatten()[: shape.numel()]
    codes = packed.to(torch.float32).reshape(shape)
    modulus = 16 if spec.bits <= 4 else 256
    # Undo the two's complement; affine codes are unsigned already.
    if spec.grid == "symmetric":
        codes = torch.where(codes >= modulus // 2, codes - modulus, codes)
    if codes.min() < spec.quant_min or codes.max() > spec.quant_max:
        raise PTQ4VMError(
            f"Expected codes of {spec.bits} bits, from {spec.quant_min} to {spec.quant_max}, in "
            f"{where}, got some from {codes.min():g} to {codes.max():g}. Quantize again."
        )
    return codes
