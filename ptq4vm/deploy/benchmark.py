"""How fast networks are, and what they need, side by side."""

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

from ptq4vm.deploy.runner import Ratio, choose_downsample_ratio
from ptq4vm.deploy.runtimes import RUNTIMES, ExportedNetwork, is_exported
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import bits_label, load_model, network_cost
from ptq4vm.models.base import MattingModel
from ptq4vm.programs import python_program
from ptq4vm.video import require_size


@dataclass(frozen=True)
class Speed:
    """One network's figures."""

    model: str
    bits: str
    runtime: str
    """torch, onnxruntime or openvino."""
    layers: str
    """How many convolutions and linear layers it executes in which arithmetic, as far as the runtime tells."""
    size_mb: float
    """Of the file, in 10^6 bytes; of a network in torch, its weights at their own bits."""
    median_ms: float
    """For a frame."""
    p90_ms: float
    """Nine of ten frames take no longer."""
    fps: float
    """Frames per second, from the median."""
    memory_mb: float
    """Peak of the resident memory, in 10^6 bytes, above that of the process before it loaded the network."""


class _Plan(NamedTuple):
    """All that a process of its own must know."""

    model: str
    network: str
    height: int
    width: int
    ratio: Ratio
    threads: int


class _Facts(NamedTuple):
    """What it says once the network is loaded."""

    bits: str
    runtime: str
    layers: str
    size_mb: float


def open_network(
    model: str,
    network: str = "rvm_mobilenetv3",
    runtime: str | None = None,
    threads: int | None = None,
) -> MattingModel:
    """A float or quantized network, or an exported graph in its runtime.

    Args:
        model: a network's name, a weights file, a quantized checkpoint, a run folder or an exported graph.
        network: what a file of float weights is of.
        runtime: of an exported graph: onnxruntime or openvino; None for the one it is for.
        threads: of an exported graph; None for all cores.

    Raises:
        PTQ4VMError: nothing of that kind, or a runtime that isn't installed.
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
    """Time networks in alternation, each in a process of its own, so that ratios hold also on a machine that is noisy.

    In every round each network in turn computes two frames, with its state fed back, and the second is timed: threads
    that have slept between need the first to wake.

    Args:
        models: each as :func:`open_network` takes it; ``graph.onnx@openvino`` names the runtime.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        downsample_ratio: of networks in torch; a graph has its own, which must be this one if it is a number.
        rounds: how often each is timed.
        threads: of each; None for all cores.
        network: what a file of float weights is of.
        progress: told the rounds done, and their number.

    Raises:
        PTQ4VMError: a model can't be loaded, doesn't take such frames, or its process ended.
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
        # One loads after the other: together they might not fit.
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


def _speed(model: str, facts: _Facts, seconds: list[float], memory: float) -> Speed:
    median, p90 = (1e3 * float(np.percentile(seconds, share)) for share in (50, 90))
    return Speed(model, *facts, median, p90, 1e3 / median, memory)


class _Worker:
    """The other end of a process that holds one network."""

    def __init__(self, plan: _Plan, connection: "Connection[object, object]") -> None:
        self.plan, self._connection = plan, connection
        self.facts: _Facts = self._answer()  # type: ignore[assignment]

    def ask(self, what: str) -> float:
        """Have it do something, and wait for the answer."""
        with suppress(BrokenPipeError):  # of a process that ended, which the missing answer tells
            self._connection.send(what)
        return float(self._answer())  # type: ignore[arg-type]

    def _answer(self) -> object:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise PTQ4VMError(
                f"Expected an answer from the process that runs {self.plan.model}, but it ended; memory may have run "
                "out. Try fewer models or smaller frames."
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
    # Not multiprocessing's own start: its new interpreter looks for modules in the current directory first. This one
    # imports from where the one at hand does, and from nowhere else.
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
    """Hold a network, in a process of its own, and answer what the one that measures asks.

    Args:
        descriptor: of this end of the pipe to it.
        plan: what to load, and how.
    """
    with Connection(descriptor) as connection:
        try:
            _measure(_Plan(*plan), connection)
        except PTQ4VMError as error:
            connection.send(error)
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            pass  # nobody asks any more


def _measure(plan: _Plan, connection: "Connection[object, object]") -> None:
    """Facts first, then the seconds of a frame or the memory, until the other end is closed."""
    with torch.inference_mode():
        torch.set_num_threads(plan.threads)
        before = _peak_memory()
        runtime = next((name for name in RUNTIMES if plan.model.endswith(f"@{name}")), None)
        model = plan.model.removesuffix(f"@{runtime}")
        network = open_network(model, plan.network, runtime, plan.threads).eval()
        network.downsample_ratio = choose_downsample_ratio(
            network, plan.ratio, plan.height, plan.width
        )
        src = torch.rand(1, 3, plan.height, plan.width)
        state = network.initial_state(src)
        connection.send(_describe(network, plan))
        while True:
            if connection.recv() == "memory":
                connection.send(_peak_memory() - before)
                continue
            state = network.forward_frame(src, state).state
            start = time.perf_counter()
            state = network.forward_frame(src, state).state
            connection.send(time.perf_counter() - start)


def _describe(network: MattingModel, plan: _Plan) -> _Facts:
    if isinstance(network, ExportedNetwork):
        counts = ", ".join(f"{count} {kind}" for kind, count in network.layers.items() if count)
        return _Facts(
            network.description["bits"], network.runtime, counts, network.path.stat().st_size / 1e6
        )
    cost, qconfig = (
        network_cost(network, plan.height, plan.width),
        getattr(network, "qconfig", None),
    )
    return _Facts(
        "W32A32" if qconfig is None else bits_label(qconfig, cost), "torch", "", cost.size_mb
    )


def _peak_memory() -> float:
    """Of this process, in 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage tells on Linux, a process inherits from the one that started it.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
