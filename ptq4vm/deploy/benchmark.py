"""Speed and memory benchmark of networks, each in a subprocess."""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ptq4vm.deploy.description import is_exported
from ptq4vm.deploy.exported import ExportedNetwork
from ptq4vm.deploy.ratio import Ratio, choose_downsample_ratio
from ptq4vm.deploy.runtimes import RUNTIMES
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_model, network_facts
from ptq4vm.programs import python_program
from ptq4vm.types import FrameModel, NetworkFacts
from ptq4vm.video import require_size


@dataclass(frozen=True)
class Speed:
    """Benchmark results of one network."""

    model: str
    bits: str
    runtime: str
    """``torch``, ``onnxruntime`` or ``openvino``."""
    layers: str
    """Convolutions and linear layers by arithmetic, e.g. ``77 int8``; empty for torch."""
    size_mb: float
    """File size in 10^6 bytes; for torch, size of the weights at their bit widths."""
    median_ms: float
    """Median time per frame, in milliseconds."""
    p90_ms: float
    """90th percentile of the time per frame, in milliseconds."""
    fps: float
    """Frames per second, 1000 / ``median_ms``."""
    memory_mb: float
    """Peak resident memory in 10^6 bytes, less the process's peak before loading the network."""


class _Plan(NamedTuple):
    """Parameters of one benchmark process."""

    model: str
    network: str
    height: int
    width: int
    ratio: Ratio
    threads: int


def open_network(
    model: str,
    network: str = "rvm_mobilenetv3",
    runtime: str | None = None,
    threads: int | None = None,
) -> FrameModel:
    """Load a float network, a quantized network or an exported graph.

    Args:
        model: network name, weights file, quantized checkpoint, run folder or exported graph.
        network: network name of a file of float weights.
        runtime: for exported graphs, ``onnxruntime`` or ``openvino``; None for the export target's.
        threads: number of threads for exported graphs; None for all cores.

    Raises:
        PTQ4VMError: the model can't be loaded, or the runtime isn't installed.
    """
    if is_exported(Path(model)):
        return ExportedNetwork(Path(model), runtime, threads)
    if runtime is not None:
        raise PTQ4VMError(
            f"Expected an exported graph for {runtime}, got {model}. Make one with `ptq4vm export`."
        )
    return load_model(model, network)


def measure_speed(
    models: Sequence[str],
    height: int,
    width: int,
    downsample_ratio: Ratio = "auto",
    rounds: int = 30,
    threads: int | None = None,
    network: str = "rvm_mobilenetv3",
    progress: Callable[[int, int], None] | None = None,
) -> list[Speed]:
    """Measure speed and memory of networks in alternation, each in its own process.

    The networks take turns in every round, so that speed ratios hold on a noisy machine too. In its
    turn a network computes two frames, with its recurrent state carried over, and only the second
    is timed: the first wakes the threads that slept in the meantime.

    Args:
        models: models as for :func:`open_network`; ``graph.onnx@openvino`` selects the runtime.
        height: frame height in pixels.
        width: frame width in pixels.
        downsample_ratio: ratio for networks in torch. The ratio of an exported graph is fixed; a
            number given here must equal it.
        rounds: number of timed frames per network.
        threads: number of threads per network; None for all cores.
        network: network name of files of float weights.
        progress: callback, called with (rounds done, total rounds) after each round.

    Returns:
        One :class:`Speed` per model, in the order of ``models``.

    Raises:
        PTQ4VMError: a model can't be loaded or doesn't support the frame size, a value is out of
            range, or a benchmark process ended early.
    """
    if rounds < 1 or (threads is not None and threads < 1):
        raise PTQ4VMError(
            f"Expected at least one round and one thread, got {rounds} rounds on {threads} threads."
        )
    require_size(height, width)
    threads = threads or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        plans = [
            _Plan(model, network, height, width, downsample_ratio, threads) for model in models
        ]
        # Workers load one after the other: concurrent loading might exceed the memory.
        workers = [stack.enter_context(_worker(plan)) for plan in plans]
        times: list[list[float]] = [[] for _ in workers]
        for done in range(1, rounds + 1):
            for taken, worker in zip(times, workers, strict=True):
                taken.append(worker.ask("frame"))
            if progress is not None:
                progress(done, rounds)
        memory = [worker.ask("memory") for worker in workers]
    return [
        _speed(worker.plan.model, worker.facts, taken, peak)
        for worker, taken, peak in zip(workers, times, memory, strict=True)
    ]


def _speed(model: str, facts: NetworkFacts, seconds: list[float], memory: float) -> Speed:
    median, p90 = (1e3 * float(np.percentile(seconds, share)) for share in (50, 90))
    about = facts.bits, facts.runtime, facts.layers, facts.size_mb
    return Speed(model, *about, median, p90, 1e3 / median, memory)


class _Worker:
    """Client of a benchmark process."""

    def __init__(self, plan: _Plan, connection: "Connection[object, object]") -> None:
        self.plan, self._connection = plan, connection
        self.facts: NetworkFacts = self._answer()  # type: ignore[assignment]

    def ask(self, what: str) -> float:
        """Send ``frame`` or ``memory`` and return the answer in seconds or 10^6 bytes."""
        with suppress(BrokenPipeError):  # the process ended; _answer reports it
            self._connection.send(what)
        return float(self._answer())  # type: ignore[arg-type]

    def _answer(self) -> object:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise PTQ4VMError(
                f"Expected an answer from the process that runs {self.plan.model}, but it ended; "
                "memory may have run out. Try fewer models or smaller frames."
            ) from error
        if isinstance(answer, PTQ4VMError):
            raise answer
        return answer


_SERVE = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ptq4vm.deploy.benchmark import serve
serve(int(sys.argv[2]), json.loads(sys.argv[3]))
"""


@contextmanager
def _worker(plan: _Plan) -> Iterator[_Worker]:
    ours, theirs = multiprocessing.Pipe()
    # multiprocessing's own spawn would put the current directory first in the module search path;
    # this interpreter gets exactly the parent's sys.path.
    path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
    command = python_program("-c", _SERVE, path, str(theirs.fileno()), json.dumps(plan))
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    try:
        yield _Worker(plan, ours)
    finally:
        ours.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(descriptor: int, plan: list[Any]) -> None:
    """Run a benchmark process: load a network and answer requests until the pipe is closed.

    Args:
        descriptor: file descriptor of the worker's end of the pipe.
        plan: fields of a :class:`_Plan`, as parsed from JSON.
    """
    with Connection(descriptor) as connection:
        try:
            _measure(_Plan(*plan), connection)
        except PTQ4VMError as error:
            connection.send(error)
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            pass  # the parent closed the pipe


def _measure(plan: _Plan, connection: "Connection[object, object]") -> None:
    """Send :class:`NetworkFacts`, then seconds per frame or peak memory per request, until EOF."""
    with torch.inference_mode():
        torch.set_num_threads(plan.threads)
        before = _peak_memory()
        runtime = next((name for name in RUNTIMES if plan.model.endswith(f"@{name}")), None)
        model = plan.model.removesuffix(f"@{runtime}")
        network = open_network(model, plan.network, runtime, plan.threads)
        network.downsample_ratio = choose_downsample_ratio(
            network, plan.ratio, plan.height, plan.width
        )
        src = torch.rand(1, 3, plan.height, plan.width)
        state = network.initial_state(src)
        connection.send(network_facts(network, plan.height, plan.width))
        while True:
            if connection.recv() == "memory":
                connection.send(_peak_memory() - before)
                continue
            state = network.forward_frame(src, state).state
            start = time.perf_counter()
            state = network.forward_frame(src, state).state
            connection.send(time.perf_counter() - start)


def _peak_memory() -> float:
    """Return the peak resident memory of this process in 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, ru_maxrss is inherited from the parent process; VmHWM isn't.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
