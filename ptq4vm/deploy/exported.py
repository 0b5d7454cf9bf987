"""Exported graphs as matting networks that run frame by frame."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptq4vm.deploy.description import REMEDY, read_description
from ptq4vm.deploy.runtimes import checking_runtime, open_graph
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.described import create_described
from ptq4vm.models.base import MattingModel, unroll_frames
from ptq4vm.types import MattingOutput, NetworkFacts, RecurrentState


class ExportedNetwork:
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
        self.path = Path(path)
        self.description = read_description(self.path)
        """Metadata of the file: network, bits, target, size, ..."""
        self.name = self.description["network"]
        self.runtime = runtime or checking_runtime(self.description["target"])
        self.fixed_ratio = float(self.description["downsample_ratio"])
        if threads is not None and threads < 1:
            raise PTQ4VMError(
                f"Expected at least one thread, got {threads}. Leave it out for all cores."
            )
        self.threads = threads or len(os.sched_getaffinity(0))
        self._session, self._shapes, self.layers = open_graph(
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
        return self.fixed_ratio

    @downsample_ratio.setter
    def downsample_ratio(self, ratio: float) -> None:
        if abs(ratio - self.fixed_ratio) > 1e-9:
            raise PTQ4VMError(
                f"Expected the downsample ratio {self.fixed_ratio:g} that {self.path} was exported "
                f"with, got {ratio:g}. Leave it out, or export again with --downsample_ratio."
            )

    @property
    def runs_on(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def facts(self) -> NetworkFacts:
        """Bits, runtime, size and compute, from the file and its metadata."""
        return NetworkFacts(
            self.description["bits"],
            self.description["placement"],
            self.runtime,
            ", ".join(f"{count} {kind}" for kind, count in self.layers.items() if count),
            self.path.stat().st_size / 1e6,
            self.description["bit_operations"],
            self.description.get("effective_flops"),
        )

    def to(self, device: torch.device) -> None:
        """Do nothing: a graph runs on the CPU, with frames from any device."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: a graph is always in evaluation mode."""
        return nullcontext()

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return zero states for frames like src (1, 3, H, W), int8 if the graph's states are."""
        self._require_size(src)
        kind = torch.float32 if self.state_scale is None else torch.int8
        if self.size is not None:
            return tuple(
                torch.zeros(shape, dtype=kind, device=src.device)
                for name, shape in self._shapes.items()
                if name != "src"
            )
        if self._shaper is None:
            arguments = {**self.description["arguments"], "downsample_ratio": self.fixed_ratio}
            self._shaper = create_described(self.name, arguments, self.path)
        return tuple(state.to(kind) for state in self._shaper.initial_state(src))

    def forward_frame(self, src: Tensor, state: RecurrentState) -> MattingOutput:
        """Run one frame (1, 3, H, W), RGB in [0, 1], with the preceding recurrent state."""
        self._require_size(src)
        arrays = [np.ascontiguousarray(value.numpy(force=True)) for value in (src, *state)]
        if len(arrays) != len(self._shapes):
            raise PTQ4VMError(
                f"Expected the {len(self._shapes) - 1} states of the graph {self.path}, "
                f"got {len(state)} of {self.name}. {REMEDY}"
            )
        fgr, pha, *after = self._session(dict(zip(self._shapes, arrays, strict=True)))
        wanted = [src.shape, (1, 1, *src.shape[2:]), *(value.shape for value in state)]
        got = [value.shape for value in (fgr, pha, *after)]
        if list(map(tuple, wanted)) != got:
            raise PTQ4VMError(
                f"Expected outputs of {', '.join(str(tuple(shape)) for shape in wanted)} "
                f"from {self.path}, got {', '.join(map(str, got))}. {REMEDY}"
            )
        tensors = [torch.from_numpy(value).to(src.device) for value in (fgr, pha, *after)]
        return MattingOutput(tensors[0], tensors[1], tuple(tensors[2:]))

    def unroll(self, src: Tensor, state: RecurrentState | None = None) -> MattingOutput:
        """Run a sequence (1, T, 3, H, W) and return the state after its last frame."""
        return unroll_frames(self, src, state)

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
