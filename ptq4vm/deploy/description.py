"""Metadata of exported graphs, checked against their inputs and outputs."""

from pathlib import Path
from typing import Any, TypedDict

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from ptq4vm.deploy.states import state_names
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.described import require_own
from ptq4vm.reading import parse_json, typed

METADATA = "ptq4vm"
"""Metadata key of the JSON description of an exported graph."""
FORMAT_VERSION = 1
REMEDY = "Export it again."


class _OptionalDescription(TypedDict, total=False):
    state_scale: float | None
    exact_sums: bool
    effective_flops: float


class Description(_OptionalDescription):
    """Metadata of an exported graph, as written by :func:`ptq4vm.deploy.export_onnx`."""

    network: str
    arguments: dict[str, Any]
    downsample_ratio: float
    target: str
    size: tuple[int, int] | None
    """[height, width], as a list in JSON; None if both are dynamic."""
    bits: str
    placement: str
    bit_operations: float


def is_exported(path: Path) -> bool:
    """Return whether the path is an ONNX file with ptq4vm's metadata, which may be invalid.

    ONNX files of float weights have no such metadata.
    """
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    try:
        return METADATA in _metadata(_load(path))
    except PTQ4VMError:
        return False


def read_description(path: Path) -> Description:
    """Read the metadata of an exported graph and check inputs and outputs against it.

    Raises:
        PTQ4VMError: not an ONNX file, not an export of ptq4vm, or metadata or a signature that
            :func:`ptq4vm.deploy.export_onnx` doesn't write.
    """
    model = _load(path)
    try:
        content = parse_json(_metadata(model)[METADATA])
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise PTQ4VMError(
            f"Expected an ONNX file that ptq4vm wrote, got {path}, which doesn't say how its "
            "states are shaped. Make one with `ptq4vm export`."
        ) from error
    if type(version) is not int or version != FORMAT_VERSION:
        raise PTQ4VMError(
            f"Expected an export of format {FORMAT_VERSION}, got {version!r} in {path}. {REMEDY}"
        )
    description: Description = typed(
        content, Description, "the description of an exported graph", path, REMEDY
    )
    size, scale = description["size"], description.get("state_scale")
    operations = "a number of operations"
    for key, fits, wanted in (
        ("downsample_ratio", 0 < description["downsample_ratio"] <= 1, "a number in (0, 1]"),
        ("size", size is None or min(size) > 0, "positive sizes"),
        ("state_scale", scale is None or 0 < scale < float("inf"), "a positive number or null"),
        ("bit_operations", 0 <= description["bit_operations"] < float("inf"), operations),
        ("effective_flops", 0 <= description.get("effective_flops", 0) < float("inf"), operations),
    ):
        if not fits:
            raise PTQ4VMError(
                f"Expected {wanted} for {key} in {path}, got {description[key]!r}. {REMEDY}"  # type: ignore[literal-required]
            )
    require_own(description["arguments"], path)
    _require_signature(model.graph, description, path)
    return description


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise PTQ4VMError(
            f"Expected an ONNX file, got {path} ({error}). Make one with `ptq4vm export`."
        ) from error


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _require_signature(graph: onnx.GraphProto, description: Description, path: Path) -> None:
    """Check the graph's inputs and outputs against its metadata; no external data is allowed."""
    inputs, outputs = list(graph.input), list(graph.output)
    before, after = state_names(len(inputs) - 1)
    names = (["src", *before], ["fgr", "pha", *after])
    for kind, found, wanted in (("inputs", inputs, names[0]), ("outputs", outputs, names[1])):
        got = [value.name for value in found]
        if got != wanted:
            raise PTQ4VMError(
                f"Expected {kind} {', '.join(wanted)} of the graph {path}, "
                f"got {', '.join(got) or 'none'}. {REMEDY}"
            )
    size, scale = description["size"], description.get("state_scale")
    sides = (None, None) if size is None else tuple(size)
    state_type = onnx.TensorProto.FLOAT if scale is None else onnx.TensorProto.INT8
    for value in (*inputs, *outputs):
        tensor = value.type.tensor_type
        shape = [
            side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim
        ]
        fits = tensor.elem_type == (
            state_type if value.name.startswith("r") else onnx.TensorProto.FLOAT
        )
        if value.name == "src":
            fits = fits and shape == [1, 3, *sides]
        elif value in inputs and size is not None:
            fits = fits and None not in shape
        if not fits:
            raise PTQ4VMError(
                f"Expected {value.name} of the graph {path} as its size {size} and state_scale "
                f"{scale} say, got shape {shape} of ONNX's type {tensor.elem_type}. {REMEDY}"
            )
    if any(uses_external_data(tensor) for tensor in graph.initializer):
        raise PTQ4VMError(f"Expected all weights inside {path}, got some in other files. {REMEDY}")
