"""Exported graphs in ONNX Runtime and OpenVINO, as matting networks."""

import importlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.described import create_described, require_own
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.reading import parse_json, typed
from ptq4vm.types import MattingOutput, RecurrentState

Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_METADATA, _FORMAT_VERSION = "ptq4vm", 1
_ONNX_RUNTIME_LAYERS = {
    "int8": ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"),
    "float32": ("Conv", "FusedConv", "Gemm", "FusedGemm"),
}
_OPENVINO_LAYERS = ("Convolution", "FullyConnected")
_REMEDY = "Export it again."


class _OptionalDescription(TypedDict, total=False):
    state_scale: float | None
    exact_sums: bool


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


Array = NDArray[np.float32 | np.int8]
Session = Callable[[dict[str, Array]], list[Array]]
"""Graph in a runtime: maps inputs by name to outputs in order."""


class ExportedNetwork(MattingModel):
    """Exported graph, run on the CPU frame by frame with batch size 1 at its exported size.

    Args:
        path: file written by :func:`ptq4vm.deploy.export_onnx`.
        runtime: ``onnxruntime`` or ``openvino``; None for the export target's runtime, which is
            ONNX Runtime for TensorRT.
        threads: maximum number of threads; None for all cores.

    Raises:
        PTQ4VMError: the file isn't an export of ptq4vm, the runtime isn't installed, or the runtime
            can't load the graph.
    """

    def __init__(self, path: Path, runtime: str | None = None, threads: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self.description = read_description(self.path)
        """Metadata of the file: network, bits, target, size, ..."""
        self.name = self.description["network"]
        self.runtime = runtime or checking_runtime(self.description["target"])
        self._ratio = float(self.description["downsample_ratio"])
        if threads is not None and threads < 1:
            raise PTQ4VMError(
                f"Expected at least one thread, got {threads}. Leave it out for all cores."
            )
        self.threads = threads or len(os.sched_getaffinity(0))
        self._session, self._shapes, self.layers = _open(
            self.path, self.runtime, self.threads, bool(self.description.get("exact_sums"))
        )
        """Convolutions and linear layers by arithmetic, e.g. ``{"int8": 77, "float32": 1}``."""
        self._shaper: MattingModel | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the frames; None if dynamic."""
        size = self.description["size"]
        return None if size is None else (int(size[0]), int(size[1]))

    @property
    def state_scale(self) -> float | None:
        """Scale of the int8 recurrent states; None if the states are float."""
        return self.description.get("state_scale")

    @property
    def downsample_ratio(self) -> float:
        """Downsample ratio, a constant of the graph; setting another value raises PTQ4VMError."""
        return self._ratio

    @downsample_ratio.setter
    def downsample_ratio(self, ratio: float) -> None:
        if abs(ratio - self._ratio) > 1e-9:
            raise PTQ4VMError(
                f"Expected the downsample ratio {self._ratio:g} that {self.path} was exported "
                f"with, got {ratio:g}. Leave it out, or export again with --downsample_ratio."
            )

    def blocks(self) -> tuple[Block, ...]:
        """Raise PTQ4VMError: an exported graph has no blocks."""
        raise PTQ4VMError(
            f"Expected a network that can be taken apart, got the exported {self.path}. "
            "Give its weights."
        )

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return zero states for frames like src (1, 3, H, W), int8 if the graph's states are."""
        self._require_size(src)
        kind = torch.float32 if self.state_scale is None else torch.int8
        if self.size is not None:
            return tuple(
                torch.zeros(shape, dtype=kind)
                for name, shape in self._shapes.items()
                if name != "src"
            )
        if self._shaper is None:
            arguments = {**self.description["arguments"], "downsample_ratio": self._ratio}
            self._shaper = create_described(self.name, arguments, self.path)
        return tuple(state.to(kind) for state in self._shaper.initial_state(src))

    def forward_frame(self, src: Tensor, state: RecurrentState) -> MattingOutput:
        """Run one frame (1, 3, H, W), RGB in [0, 1], with the preceding recurrent state."""
        self._require_size(src)
        arrays = [np.ascontiguousarray(value.numpy(force=True)) for value in (src, *state)]
        if len(arrays) != len(self._shapes):
            raise PTQ4VMError(
                f"Expected the {len(self._shapes) - 1} states of the graph {self.path}, "
                f"got {len(state)} of {self.name}. {_REMEDY}"
            )
        fgr, pha, *after = self._session(dict(zip(self._shapes, arrays, strict=True)))
        wanted = [src.shape, (1, 1, *src.shape[2:]), *(value.shape for value in state)]
        got = [value.shape for value in (fgr, pha, *after)]
        if list(map(tuple, wanted)) != got:
            raise PTQ4VMError(
                f"Expected outputs of {', '.join(str(tuple(shape)) for shape in wanted)} "
                f"from {self.path}, got {', '.join(map(str, got))}. {_REMEDY}"
            )
        return MattingOutput(_tensor(fgr), _tensor(pha), tuple(_tensor(value) for value in after))

    def _require_size(self, src: Tensor) -> None:
        got, wanted = tuple(src.shape), self.size
        if len(src) != 1 or (wanted is not None and got[2:] != wanted):
            frames = (
                "frames"
                if wanted is None
                else f"frames of {wanted[0]} x {wanted[1]} (height x width)"
            )
            raise PTQ4VMError(
                f"Expected {frames}, one at a time, for {self.path}, got {got}. "
                "Export for this size, or with --dynamic_size true."
            )


def is_exported(path: Path) -> bool:
    """Return whether the path is an ONNX file with ptq4vm's metadata, which may be invalid.

    ONNX files of float weights have no such metadata.
    """
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    try:
        return _METADATA in _metadata(_load(path))
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
        content = parse_json(_metadata(model)[_METADATA])
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise PTQ4VMError(
            f"Expected an ONNX file that ptq4vm wrote, got {path}, which doesn't say how its "
            "states are shaped. Make one with `ptq4vm export`."
        ) from error
    if type(version) is not int or version != _FORMAT_VERSION:
        raise PTQ4VMError(
            f"Expected an export of format {_FORMAT_VERSION}, got {version!r} in {path}. {_REMEDY}"
        )
    description: Description = typed(
        content, Description, "the description of an exported graph", path, _REMEDY
    )
    size, scale = description["size"], description.get("state_scale")
    for key, fits, wanted in (
        ("downsample_ratio", 0 < description["downsample_ratio"] <= 1, "a number in (0, 1]"),
        ("size", size is None or min(size) > 0, "positive sizes"),
        ("state_scale", scale is None or 0 < scale < float("inf"), "a positive number or null"),
        (
            "bit_operations",
            0 <= description["bit_operations"] < float("inf"),
            "a number of operations",
        ),
    ):
        if not fits:
            raise PTQ4VMError(
                f"Expected {wanted} for {key} in {path}, got {description[key]!r}. {_REMEDY}"  # type: ignore[literal-required]
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
    states = len(inputs) - 1
    names = (
        ["src", *(f"r{i}i" for i in range(1, states + 1))],
        ["fgr", "pha", *(f"r{i}o" for i in range(1, states + 1))],
    )
    for kind, found, wanted in (("inputs", inputs, names[0]), ("outputs", outputs, names[1])):
        got = [value.name for value in found]
        if got != wanted:
            raise PTQ4VMError(
                f"Expected {kind} {', '.join(wanted)} of the graph {path}, "
                f"got {', '.join(got) or 'none'}. {_REMEDY}"
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
                f"{scale} say, got shape {shape} of ONNX's type {tensor.elem_type}. {_REMEDY}"
            )
    if any(uses_external_data(tensor) for tensor in graph.initializer):
        raise PTQ4VMError(f"Expected all weights inside {path}, got some in other files. {_REMEDY}")


class _Opened(NamedTuple):
    session: Session
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the inputs by name; () for dynamic shapes."""
    layers: dict[str, int]


def import_runtime(runtime: str) -> Any:
    """Import a runtime's package.

    Raises:
        PTQ4VMError: the runtime is unknown or isn't installed.
    """
    if runtime not in RUNTIMES:
        raise PTQ4VMError(
            f"Expected a runtime of {', '.join(RUNTIMES)}, got {runtime!r}. Choose one of those."
        )
    try:
        return importlib.import_module(runtime)
    except ImportError as error:
        raise PTQ4VMError(
            f"Expected the package {runtime} to run an exported graph, got none. "
            f'Install it with pip install "ptq4vm[{_EXTRAS[runtime]}]".'
        ) from error


def checking_runtime(target: str) -> str:
    """Return the runtime for parity checks of a target: its own, or ONNX Runtime for TensorRT."""
    return target if target in RUNTIMES else "onnxruntime"


def _open(path: Path, runtime: str, threads: int, exact_sums: bool) -> _Opened:
    package = import_runtime(runtime)
    try:
        if runtime == "onnxruntime":
            opened = _onnx_runtime(package, path, threads, exact_sums)
        else:
            opened = _openvino(package, path, threads)
    except Exception as error:  # each runtime has its own exception types
        raise PTQ4VMError(
            f"Expected a graph that {runtime} loads, got {path}: {error}. {_REMEDY}"
        ) from error

    def run(feed: dict[str, Array]) -> list[Array]:
        try:
            return opened.session(feed)
        except Exception as error:  # each runtime has its own exception types
            raise PTQ4VMError(
                f"Expected a graph that {runtime} runs, got {path}: {error}. {_REMEDY}"
            ) from error

    return opened._replace(session=run)


def _onnx_runtime(package: Any, path: Path, threads: int, exact_sums: bool) -> _Opened:
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    if exact_sums:
        # Without VNNI, the default kernels add pairs of products in int16, which may saturate.
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # hides warnings of initializers left by its own optimizer
    with TemporaryDirectory() as folder:
        # The executed operators are available only from the optimized model's file.
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        executed = Counter(
            node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node
        )
    layers = {
        kind: sum(executed[name] for name in names) for kind, names in _ONNX_RUNTIME_LAYERS.items()
    }
    shapes = {node.name: tuple(node.shape) for node in session.get_inputs()}
    return _Opened(lambda feed: session.run(None, feed), shapes, layers)


def _openvino(package: Any, path: Path, threads: int) -> _Opened:
    # No bfloat16 for float layers, even if the CPU supports it: parity is measured in float32.
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = package.Core().compile_model(str(path), "CPU", options)
    request = model.create_infer_request()
    ports = request.model_inputs
    shapes = {
        port.get_any_name(): tuple(port.shape) if port.partial_shape.is_static else ()
        for port in ports
    }
    executed = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    precisions = [
        info["runtimePrecision"].astype(str)
        for info in executed
        if info["layerType"].astype(str) in _OPENVINO_LAYERS
    ]
    integer = sum(precision.lower() in ("i8", "u8") for precision in precisions)

    def run(feed: dict[str, Array]) -> list[Array]:
        # Inputs are shared; outputs are copied, since the next inference overwrites them.
        results = request.infer(feed, share_inputs=True, share_outputs=False)
        return [results[port] for port in request.model_outputs]

    return _Opened(run, shapes, {"int8": integer, "float32": len(precisions) - integer})


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array)
