"""ONNX Runtime and OpenVINO: graphs as functions, and the layers that they execute."""

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from ptq4vm.deploy.description import REMEDY
from ptq4vm.errors import PTQ4VMError

Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_ONNX_RUNTIME_LAYERS = {
    "int8": ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"),
    "float32": ("Conv", "FusedConv", "Gemm", "FusedGemm"),
}
_OPENVINO_LAYERS = ("Convolution", "FullyConnected")

Array = NDArray[np.float32 | np.int8]
Session = Callable[[dict[str, Array]], list[Array]]
"""Graph in a runtime: maps inputs by name to outputs in order."""


class OpenedGraph(NamedTuple):
    """Exported graph in a runtime."""

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


def open_graph(path: Path, runtime: str, threads: int, exact_sums: bool) -> OpenedGraph:
    """Load a graph into a runtime.

    Args:
        path: ONNX file.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: maximum number of threads.
        exact_sums: exclude ONNX Runtime kernels whose sums may saturate.

    Raises:
        PTQ4VMError: the runtime isn't installed, or it can't load the graph.
    """
    package = import_runtime(runtime)
    try:
        if runtime == "onnxruntime":
            opened = _onnx_runtime(package, path, threads, exact_sums)
        else:
            opened = _openvino(package, path, threads)
    except Exception as error:  # each runtime has its own exception types
        raise PTQ4VMError(
            f"Expected a graph that {runtime} loads, got {path}: {error}. {REMEDY}"
        ) from error

    def run(feed: dict[str, Array]) -> list[Array]:
        try:
            return opened.session(feed)
        except Exception as error:  # each runtime has its own exception types
            raise PTQ4VMError(
                f"Expected a graph that {runtime} runs, got {path}: {error}. {REMEDY}"
            ) from error

    return opened._replace(session=run)


def _onnx_runtime(package: Any, path: Path, threads: int, exact_sums: bool) -> OpenedGraph:
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
    return OpenedGraph(lambda feed: session.run(None, feed), shapes, layers)


def _openvino(package: Any, path: Path, threads: int) -> OpenedGraph:
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

    return OpenedGraph(run, shapes, {"int8": integer, "float32": len(precisions) - integer})
