"""Comparison with the W8A8 post-training quantization of ONNX Runtime and NNCF.

The float network is exported once and quantized by each tool, on the calibration frames that
``ptq4vm quantize`` uses with the same data settings. The recurrent state of each calibration frame
is the float network's. Every quantized graph then runs frame by frame in its own runtime over the
evaluation clips, with its own state fed back, and is scored with the metrics of ptq4vm.

    python benchmarks/peers.py --data.root ROOT
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from ptq4vm.calibration import make_teacher
from ptq4vm.cli.common import parse_settings
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import ExportOptions, export_onnx, state_names
from ptq4vm.errors import PTQ4VMError
from ptq4vm.former_names import refuse_former_names
from ptq4vm.metrics import fidelity_metrics, matting_metrics
from ptq4vm.models import create_model
from ptq4vm.models.base import MattingModel
from ptq4vm.reporting import Cost, ResultRow, render_table, write_metrics
from ptq4vm.reporting.results import fidelity_of, truth_metrics
from ptq4vm.types import FlowEstimator, MattingClip, RecurrentState

Array = NDArray[np.float32]
Feed = dict[str, Array]
"""Graph inputs by name."""
Run = Callable[[Feed], list[Array]]
"""Inference function of a graph: inputs by name -> outputs in graph order."""
Advance = Callable[[], None]
PeerName = Literal["minmax", "percentile", "nncf"]
Scoring = Literal["float", "png8"]
States = Literal["settled", "fresh"]

PEERS: dict[str, tuple[str, str]] = {
    "minmax": ("ONNX Runtime, min-max", "ONNX Runtime QDQ"),
    "percentile": ("ONNX Runtime, percentile", "ONNX Runtime QDQ"),
    "nncf": ("NNCF, full bias correction", "NNCF mixed"),
}
"""Row title and quantizer placement by tool."""
_PACKAGES = {"minmax": ["onnxruntime"], "percentile": ["onnxruntime"], "nncf": ["nncf", "openvino"]}
_DATA = {"source": "Composites", "evaluation": "evaluation", "height": 288, "width": 512}
_HELP = """\
Quantize a float matting network to W8A8 with ONNX Runtime (static QDQ, int8 weights per channel,
uint8 activations; min-max and percentile ranges) and with NNCF (mixed preset, full bias
correction). Score each quantized network and the float network on the evaluation clips, in the
tool's own runtime.

  python benchmarks/peers.py --data.root ROOT
  python benchmarks/peers.py --data.root ROOT --peers [nncf] --data.num_sequences 40

ROOT contains videomatte240k_layout/, backgrounds/ and evaluation/, as for the recipes in
lightning_configs/quantize. Equal data settings select the same frames as the recipes; the default
is 16 sequences of 4 frames, composites only, at data.height x data.width. If this is the size of
the evaluation clips (512x288 by default), the graphs are static, which suits these tools best.
Otherwise, e.g. with the recipes' 256x144, height and width are dynamic.

All frames and states are kept in memory during calibration: 5 MB per frame at 512x288. Requires the
extra `peers`: pip install -e ".[peers]". The graphs and peers.json are written to --output.
"""


def peers(
    data: VideoMattingDataModule,
    output: Path = Path("runs/peers"),
    network: str = "rvm_mobilenetv3",
    weights: str = "official",
    downsample_ratio: float = 1.0,
    peers: Sequence[PeerName] = ("minmax", "percentile", "nncf"),
    states: States = "settled",
    percentile: float = 99.999,
    scoring: Scoring = "float",
    threads: int = 1,
    exact_sums: bool = False,
) -> list[ResultRow]:
    """Quantize the network with each tool, score the results, and write ``peers.json``.

    Args:
        data: calibration and evaluation clips.
        output: folder for the graphs and peers.json.
        network: registered name of the network.
        weights: `official`, or a file of float weights.
        downsample_ratio: scale of the network's internal resolution relative to the frame.
        peers: tools to compare: minmax, percentile, nncf.
        states: recurrent state at the start of a calibration sequence. `settled` runs the sequence
            backward once as a warm-up; `fresh` starts from zeros, like the recipes.
        percentile: percentage of values that ONNX Runtime's percentile ranges keep on each side.
        scoring: `float`, or `png8` to score mattes truncated to 8 bits.
        threads: number of threads of each runtime during scoring. Calibration uses the tools'
            defaults.
        exact_sums: avoid saturating integer kernels on CPUs without VNNI. ONNX Runtime uses slower
            kernels, OpenVINO computes on the quantized values in float32.

    Raises:
        PTQ4VMError: a package or data is missing, or the folder is not writable.
    """
    require_packages([package for peer in peers for package in _PACKAGES[peer]] + ["onnxruntime"])
    torch.set_num_threads(threads)
    teacher = create_model(
        network, weights=weights, downsample_ratio=downsample_ratio
    ).requires_grad_(False)
    data.setup("fit")
    size, static = data.size, evaluation_sizes(data) == {data.size}
    options = ExportOptions(dynamic_size=not static)
    graph = export_onnx(teacher, *size, Path(output) / "float.onnx", options)
    runs, minutes, files = (
        {"float": open_onnx_runtime(graph, threads)},
        {"float": 0.0},
        {"float": [graph]},
    )
    with make_progress() as bar:
        clips = calibration_clips(
            data, teacher, task(bar, "calibration frames", data.num_sequences)
        )
        feeds = make_feeds(runs["float"], teacher, clips, states)
        for peer in peers:
            step = bar.add_task(f"{PEERS[peer][0]}: calibrating", total=1)
            start = time.perf_counter()
            files[peer] = quantize(peer, graph, feeds, percentile)
            minutes[peer] = (time.perf_counter() - start) / 60
            bar.advance(step)
            opened = open_openvino if peer == "nncf" else open_onnx_runtime
            runs[peer] = opened(files[peer][0], threads, exact_sums)
        frames = data.evaluation_set.num_frames * len(runs)
        scores = score(runs, teacher, data, scoring, task(bar, "scoring frames", frames))
    rows = [_row(name, scores[name], files[name], minutes[name]) for name in runs]
    meta = {
        "network": network, "weights": weights, "downsample_ratio": downsample_ratio,
        "scoring": scoring, "threads": threads, "exact_sums": exact_sums, "seed": data.seed,
        "calibration_frames": len(feeds), "states": states, "calibration_size": list(size),
        "graphs": "static" if static else "open height and width",
        "evaluation_frames": data.evaluation_set.num_frames, "percentile": percentile,
        "versions": versions(),
    }  # fmt: skip
    write_metrics(Path(output) / "peers.json", rows, meta)
    return rows


def require_packages(names: Sequence[str]) -> None:
    """Check that all packages are installed.

    Raises:
        PTQ4VMError: a package is not installed.
    """
    missing = [name for name in dict.fromkeys(names) if importlib.util.find_spec(name) is None]
    if missing:
        raise PTQ4VMError(
            f"Expected the packages of the extra `peers`, got no {', '.join(missing)}. "
            'Install them with pip install -e ".[peers]", or name other --peers.'
        )


def evaluation_sizes(data: VideoMattingDataModule) -> set[tuple[int, int]]:
    """Return the set of (height, width) of the evaluation clips."""
    chunks = data.evaluation_set
    sizes = set()
    for clip in {chunk.clip for chunk in chunks.chunks}:
        height, width = chunks.source.read(clip, 0, 1).src.shape[-2:]
        sizes.add((height, width))
    return sizes


def calibration_clips(
    data: VideoMattingDataModule, network: MattingModel, advance: Advance
) -> Iterator[Tensor]:
    """Yield the frames (T, 3, H, W) of each calibration sequence of a recipe with these settings.

    Args:
        data: data module with the calibration settings.
        network: teacher for the built-in and cut-out clips.
        advance: called after each prepared sequence.
    """

    def no_flow(src: Tensor) -> tuple[Tensor, Tensor]:
        count, _, height, width = src.shape
        return src.new_zeros(count - 1, 2, height, width), src.new_zeros(
            count - 1, 1, height, width
        )

    # A separate key, so that cached flows of the recipes are neither used nor replaced.
    data.attach(make_teacher(network), FlowEstimator(no_flow, "no flow"), lambda *_: advance())
    for number in range(len(data.calibration_set)):
        yield data.calibration_set[number].src


def make_feeds(
    run: Run, network: MattingModel, clips: Iterator[Tensor], states: States
) -> list[Feed]:
    """Compute the graph inputs of every calibration frame, including the recurrent state.

    Args:
        run: inference function of the float graph.
        network: the same network in PyTorch; provides the initial states.
        clips: sequences of frames, (T, 3, H, W).
        states: ``settled`` runs each sequence backward first, ``fresh`` starts from zeros.

    Returns:
        One feed per frame; its state is the float network's before that frame.
    """
    feeds: list[Feed] = []
    for clip in clips:
        player = Player(run, network.initial_state)
        if states == "settled":
            for frame in clip.flip(0):
                player(frame)
        for frame in clip:
            player(frame)
            feeds.append(player.feed)
    return feeds


class Player:
    """Single-frame graph run over a clip with its recurrent state fed back.

    Args:
        run: inference function of the graph.
        initial_state: function from a frame (1, 3, H, W) to the zero state.
    """

    def __init__(self, run: Run, initial_state: Callable[[Tensor], RecurrentState]) -> None:
        self._run, self._initial_state = run, initial_state
        self._state: list[Array] | None = None
        self.feed: Feed = {}
        """Inputs of the latest call."""

    def reset(self) -> None:
        """Reset the recurrent state before a new clip."""
        self._state = None

    def __call__(self, frame: Tensor) -> Tensor:
        """Compute the alpha matte (1, H, W) in [0, 1] of a frame (3, H, W)."""
        src = frame[None]
        if self._state is None:
            self._state = [tensor.numpy() for tensor in self._initial_state(src)]
        names, _ = state_names(len(self._state))
        self.feed = {
            "src": np.ascontiguousarray(src.numpy()),
            **dict(zip(names, self._state, strict=True)),
        }
        _, pha, *self._state = self._run(self.feed)
        # Quantized alpha may slightly exceed 1 if 1 is not a multiple of the scale.
        return torch.from_numpy(pha)[0].clamp(0, 1)


def open_onnx_runtime(path: Path, threads: int = 1, exact_sums: bool = False) -> Run:
    """Load a graph in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if exact_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def open_openvino(path: Path, threads: int = 1, exact_sums: bool = False) -> Run:
    """Load a graph in OpenVINO on the CPU, with float32 (never bfloat16) for float operations."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    if exact_sums:
        options["LP_TRANSFORMS_MODE"] = "NO"  # run layers in float32 on fake-quantized values
    model = openvino.Core().compile_model(str(path), "CPU", options)

    def run(feed: Feed) -> list[Array]:
        results = model(feed)
        return [results[port] for port in model.outputs]

    return run


def quantize(
    peer: str, graph: Path, feeds: Sequence[Feed], percentile: float = 99.999
) -> list[Path]:
    """Quantize the float graph to W8A8 with one of the tools.

    Args:
        peer: minmax, percentile or nncf.
        graph: float ONNX graph; the result is written to the same folder.
        feeds: graph inputs of the calibration frames.
        percentile: percentage of values inside the range, for the percentile method.

    Returns:
        Files written, the quantized graph first.
    """
    # Both tools print to standard output, which is reserved for the table.
    with contextlib.redirect_stdout(io.StringIO()):
        if peer == "nncf":
            return _quantize_nncf(graph, graph.with_name("nncf.xml"), feeds)
        return _quantize_onnx_runtime(
            graph, graph.with_name(f"onnxruntime_{peer}.onnx"), feeds, peer, percentile
        )


class _Reader:
    """Calibration data reader for ONNX Runtime with range access."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds, self._range = feeds, iter(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(self._feeds[start_index:end_index])

    def get_next(self) -> Feed | None:
        return next(self._range, None)


def _quantize_onnx_runtime(
    graph: Path, output: Path, feeds: Sequence[Feed], method: str, percentile: float
) -> list[Path]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = graph.with_name(f".{output.stem}.prepared.onnx")
    try:
        quant_pre_process(graph, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            output,
            _Reader(feeds),  # type: ignore[arg-type]
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax
            if method == "minmax"
            else CalibrationMethod.Percentile,
            # Stride 1: the percentile method would otherwise keep every tensor of every frame in
            # memory. Asymmetric: its default derives both bounds from |x|, unlike min-max.
            extra_options={
                "CalibStridedMinMax": 1,
                "CalibTensorRangeSymmetric": False,
                "CalibPercentile": percentile,
            },
        )
    finally:
        prepared.unlink(missing_ok=True)
    return [output]


def _quantize_nncf(graph: Path, output: Path, feeds: Sequence[Feed]) -> list[Path]:
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    quantized = nncf.quantize(
        openvino.Core().read_model(str(graph)),
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
        fast_bias_correction=False,
    )
    openvino.save_model(quantized, str(output), compress_to_fp16=False)
    return [output, output.with_suffix(".bin")]


class _Score:
    """Metrics of one network against the true alpha and against the float network's alpha."""

    def __init__(self, scoring: Scoring) -> None:
        self._truth = matting_metrics(scoring)
        self._distance = fidelity_metrics(scoring)
        self._previous: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, clip: MattingClip, preds: Tensor, reference: Tensor) -> None:
        if clip.pha is None:
            raise PTQ4VMError(
                f"Expected true alpha to score {clip.name}, found none. Give an evaluation tree."
            )
        last = None if clip.start == 0 else self._previous
        self._truth.update(preds, clip.pha, previous=last and (last[0], last[1]))
        self._distance.update(preds, reference, previous=last and (last[0], last[2]))
        self._previous = (preds[-1], clip.pha[-1], reference[-1])

    def compute(self) -> dict[str, float]:
        return {
            name: float(value)
            for name, value in {**self._truth.compute(), **self._distance.compute()}.items()
        }


@torch.no_grad()
def score(
    runs: Mapping[str, Run],
    network: MattingModel,
    data: VideoMattingDataModule,
    scoring: Scoring = "float",
    advance: Advance = lambda: None,
) -> dict[str, dict[str, float]]:
    """Score every graph on the evaluation clips.

    All graphs run on a chunk before the next one is read, so that mattes are not kept.

    Args:
        runs: inference functions by name.
        network: float reference network.
        data: data module with the evaluation clips; each clip starts from the zero state.
        scoring: ``float`` or ``png8``.
        advance: called after each frame of each graph.

    Returns:
        Metrics by name: ``mad``, ``mse``, ``grad``, ``conn``, ``dtssd`` against the true alpha,
        ``mad_to_float`` and ``dtssd_to_float`` against the float network's.

    Raises:
        PTQ4VMError: a clip has no true alpha.
    """
    players = {name: Player(run, network.initial_state) for name, run in runs.items()}
    scores = {name: _Score(scoring) for name in runs}
    state: RecurrentState | None = None
    for number in range(len(data.evaluation_set)):
        clip = data.evaluation_set[number]
        if clip.start == 0:
            state = None
            for player in players.values():
                player.reset()
        reference = network.unroll(clip.src[None], state)
        state = reference.state
        for name, player in players.items():
            mattes = []
            for frame in clip.src:
                mattes.append(player(frame))
                advance()
            scores[name].update(clip, torch.stack(mattes), reference.pha[0])
    return {name: one.compute() for name, one in scores.items()}


def _row(peer: str, metrics: dict[str, float], files: Sequence[Path], minutes: float) -> ResultRow:
    name, placement = PEERS.get(peer, (peer, ""))
    size = sum(file.stat().st_size for file in files) / 1e6
    cost = Cost(size, minutes=minutes if placement else None)
    bits = "W8A8" if placement else "W32A32"
    truth, fidelity = truth_metrics(metrics), fidelity_of(metrics)
    return ResultRow(name, bits, placement, truth, cost, fidelity, method=peer)


def versions() -> dict[str, str]:
    """Return the versions of the packages involved, as far as they are installed."""
    found = {}
    for name in ("torch", "onnx", "onnxruntime", "nncf", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def make_progress() -> Progress:
    """Create a progress display on standard error; standard output is reserved for the table."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )


def task(bar: Progress, what: str, total: int) -> Advance:
    """Add a progress bar and return the function that advances it by one."""
    number = bar.add_task(what, total=total)
    return lambda: bar.advance(number)


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help formatter that keeps the line breaks of the description."""


def main(args: list[str] | None = None) -> int:
    """Run the comparison and return the exit status.

    A `PTQ4VMError` is printed in one line without a traceback; the status is then 2.
    """
    parser = ArgumentParser(
        prog="benchmarks/peers.py", description=_HELP, formatter_class=_HelpFormatter
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with these options; options after it override it.",
    )
    skipped = {"batch_size", "steps_per_epoch", "num_workers"}
    parser.add_class_arguments(VideoMattingDataModule, "data", skip=skipped, instantiate=False)
    parser.add_function_arguments(peers, skip={"data"})
    parser.set_defaults({f"data.{name}": value for name, value in _DATA.items()})
    args = sys.argv[1:] if args is None else args
    try:
        refuse_former_names(args)
        options: dict[str, Any] = dict(vars(parse_settings(parser, args)))
        options.pop("config")
        rows = peers(VideoMattingDataModule(**vars(options.pop("data"))), **options)
    except PTQ4VMError as error:
        Console(stderr=True).print(
            f"peers: {error}", style="bold red", highlight=False, markup=False
        )
        return 2
    console = Console()
    # The table needs more than the usual 80 columns.
    render_table(rows, Console(width=max(console.width, 130)))
    console.print(
        f"metrics     {Path(options['output']) / 'peers.json'}", highlight=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
