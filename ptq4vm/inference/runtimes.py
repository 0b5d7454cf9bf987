"""Exported networks in their own runtimes, behind the contract that the rest knows a network by."""

import importlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import create_model
from ptq4vm.models.base import Block, MattingModel
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

Array = NDArray[np.float32 | np.int8]
Session = Callable[[dict[str, Array]], list[Array]]
"""A graph in its runtime: inputs by name -> outputs in order."""


class ExportedNetwork(MattingModel):
    """An exported graph, run frame by frame on the CPU; frames come one at a time, of the size it was exported for.

    Args:
        path: as :func:`ptq4vm.export.export_onnx` writes it.
        runtime: onnxruntime or openvino; None for the one that it was exported for, ONNX Runtime for TensorRT's.
        threads: at most so many; None for all cores.

    Raises:
        PTQ4VMError: not a graph of ours, a runtime that isn't installed, or one that can't load the graph.
    """

    def __init__(self, path: Path, runtime: str | None = None, threads: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self.description = read_description(self.path)
        """What the file says of itself: network, bits, target, size, ..."""
        self.name = str(self.description["network"])
        target = str(self.description["target"])
        self.runtime = runtime or (target if target in RUNTIMES else "onnxruntime")
        self._ratio = float(self.description["downsample_ratio"])
        self.threads = threads or len(os.sched_getaffinity(0))
        self._session, self._shapes, self.layers = _open(
            self.path, self.runtime, self.threads, bool(self.description.get("exact_sums"))
        )
        """Convolutions and linear layers by the arithmetic they execute in, e.g. ``{"int8": 77, "float32": 1}``."""
        self._shaper: MattingModel | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of its frames; None if any will do."""
        size = self.description["size"]
        return None if size is None else (int(size[0]), int(size[1]))

    @property
    def state_scale(self) -> float | None:
        """What a code of its int8 states is worth; None where they are float."""
        return self.description.get("state_scale")

    @property
    def downsample_ratio(self) -> float:
        """Baked into the graph."""
        return self._ratio

    @downsample_ratio.setter
    def downsample_ratio(self, ratio: float) -> None:
        if abs(ratio - self._ratio) > 1e-9:
            raise PTQ4VMError(
                f"Expected the downsample ratio {self._ratio:g} that {self.path} was exported with, got {ratio:g}. "
                "Leave it out, or export again with --downsample_ratio."
            )

    def blocks(self) -> tuple[Block, ...]:
        """None are known: raises PTQ4VMError."""
        raise PTQ4VMError(
            f"Expected a network that can be taken apart, got the exported {self.path}. Give its weights."
        )

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Zeros, shaped for frames like src (1, 3, H, W); int8 where the graph has them so."""
        self._require_size(src)
        kind = torch.float32 if self.state_scale is None else torch.int8
        if self.size is not None:
            return tuple(torch.zeros(shape, dtype=kind) for name, shape in self._shapes.items() if name != "src")
        if self._shaper is None:
            arguments = {**self.description["arguments"], "downsample_ratio": self._ratio}
            self._shaper = create_model(self.name, **arguments)
        return tuple(state.to(kind) for state in self._shaper.initial_state(src))

    def forward_frame(self, src: Tensor, state: RecurrentState) -> MattingOutput:
        """One frame (1, 3, H, W), RGB in [0, 1], and the state before it."""
        self._require_size(src)
        arrays = [np.ascontiguousarray(value.numpy(force=True)) for value in (src, *state)]
        fgr, pha, *after = self._session(dict(zip(self._shapes, arrays, strict=True)))
        return MattingOutput(_tensor(fgr), _tensor(pha), tuple(_tensor(value) for value in after))

    def _require_size(self, src: Tensor) -> None:
        got, wanted = tuple(src.shape), self.size
        if len(src) != 1 or (wanted is not None and got[2:] != wanted):
            frames = "frames" if wanted is None else f"frames of {wanted[0]} x {wanted[1]} (height x width)"
            raise PTQ4VMError(
                f"Expected {frames}, one at a time, for {self.path}, got {got}. Export for this size, or with "
                "--dynamic_size true."
            )


def is_exported(path: Path) -> bool:
    """Whether this is an ONNX file that :func:`ptq4vm.export.export_onnx` wrote."""
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    try:
        read_description(path)
    except PTQ4VMError:
        return False
    return True


def read_description(path: Path) -> dict[str, Any]:
    """What an exported graph says of itself.

    Raises:
        PTQ4VMError: no ONNX file, or none of ours.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise PTQ4VMError(f"Expected an ONNX file, got {path} ({error}). Make one with `ptq4vm export`.") from error
    found = {entry.key: entry.value for entry in model.metadata_props}.get(_METADATA)
    try:
        description: dict[str, Any] = json.loads(found or "")
        version = description["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PTQ4VMError(
            f"Expected an ONNX file that ptq4vm wrote, got {path}, which doesn't say how its states are shaped. "
            "Make one with `ptq4vm export`."
        ) from error
    if version != _FORMAT_VERSION:
        raise PTQ4VMError(f"Expected an export of format {_FORMAT_VERSION}, got {version} in {path}. Export it again.")
    return description


class _Opened(NamedTuple):
    session: Session
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs; empty where sizes are open."""
    layers: dict[str, int]


def _open(path: Path, runtime: str, threads: int, exact_sums: bool) -> _Opened:
    if runtime not in RUNTIMES:
        raise PTQ4VMError(f"Expected a runtime of {', '.join(RUNTIMES)}, got {runtime!r}. Choose one of those.")
    try:
        package = importlib.import_module(runtime)
    except ImportError as error:
        raise PTQ4VMError(
            f"Expected the package {runtime} to run {path}, got none. "
            f'Install it with pip install "ptq4vm[{_EXTRAS[runtime]}]".'
        ) from error
    try:
        if runtime == "onnxruntime":
            return _onnx_runtime(package, path, threads, exact_sums)
        return _openvino(package, path, threads)
    except Exception as error:  # each runtime has exceptions of its own
        raise PTQ4VMError(f"Expected a graph that {runtime} loads, got {path}: {error}") from error


def _onnx_runtime(package: Any, path: Path, threads: int, exact_sums: bool) -> _Opened:
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    if exact_sums:
        # Without VNNI its fastest kernels add two products in 16 bits, where they may saturate; slower ones don't.
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # it warns of initializers that its own optimizer left over
    with TemporaryDirectory() as folder:
        # What it made of the graph is told only in a file.
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        executed = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    layers = {kind: sum(executed[name] for name in names) for kind, names in _ONNX_RUNTIME_LAYERS.items()}
    shapes = {node.name: tuple(node.shape) for node in session.get_inputs()}
    return _Opened(lambda feed: session.run(None, feed), shapes, layers)


def _openvino(package: Any, path: Path, threads: int) -> _Opened:
    # What isn't quantized stays float32, also where the CPU has bfloat16: parity is with that.
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = package.Core().compile_model(str(path), "CPU", options)
    request = model.create_infer_request()
    ports = request.model_inputs
    shapes = {port.get_any_name(): tuple(port.shape) if port.partial_shape.is_static else () for port in ports}
    executed = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    precisions = [
        info["runtimePrecision"].astype(str) for info in executed if info["layerType"].astype(str) in _OPENVINO_LAYERS
    ]
    integer = sum(precision.lower() in ("i8", "u8") for precision in precisions)

    def run(feed: dict[str, Array]) -> list[Array]:
        # Inputs are read in place; outputs are copies, as the next frame overwrites the runtime's own.
        results = request.infer(feed, share_inputs=True, share_outputs=False)
        return [results[port] for port in request.model_outputs]

    return _Opened(run, shapes, {"int8": integer, "float32": len(precisions) - integer})


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array)
