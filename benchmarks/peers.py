"""What others' tools make of the same network: W8A8 by ONNX Runtime and by NNCF, scored as ptq4vm scores its own.

The float network is exported once and quantized by each peer's own package, on the calibration frames that
``ptq4vm quantize`` takes with the same data settings. Each frame comes with the recurrent state that the float network
has there. Every result then runs frame by frame in its own runtime over the evaluation clips, its own state fed back.

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
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import export_onnx, state_names
from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics import fidelity_metrics, matting_metrics
from ptq4vm.models import create_model
from ptq4vm.models.base import MattingModel
from ptq4vm.reporting import ResultRow, render_table, write_metrics
from ptq4vm.types import FlowEstimator, MattingClip, RecurrentState

Array = NDArray[np.float32]
Feed = dict[str, Array]
"""A graph's inputs by name."""
Run = Callable[[Feed], list[Array]]
"""A graph in its runtime: inputs by name -> outputs in order."""
Advance = Callable[[], None]
PeerName = Literal["minmax", "percentile", "nncf"]
Scoring = Literal["float", "png8"]
States = Literal["settled", "fresh"]

PEERS: dict[str, tuple[str, str]] = {
    "minmax": ("ONNX Runtime, min-max", "ONNX Runtime QDQ"),
    "percentile": ("ONNX Runtime, percentile", "ONNX Runtime QDQ"),
    "nncf": ("NNCF, full bias correction", "NNCF mixed"),
}
"""Name and placement of each peer's row."""
_PACKAGES = {"minmax": ["onnxruntime"], "percentile": ["onnxruntime"], "nncf": ["nncf", "openvino"]}
_DATA = {"source": "videomatte", "evaluation": "evaluation", "height": 288, "width": 512}
_HELP = """\
Quantize a float matting network to W8A8 with ONNX Runtime (static QDQ, weights int8 per channel, activations uint8;
min-max and percentile ranges) and with NNCF (mixed preset, full bias correction), and score each on the evaluation
clips in its own runtime, beside the float network.

  python benchmarks/peers.py --data.root ROOT
  python benchmarks/peers.py --data.root ROOT --peers [nncf] --data.num_sequences 40

ROOT holds videomatte240k_layout/, backgrounds/ and evaluation/, as for the recipes in lightning_configs/quantize. The
same data settings choose the same frames as there; by default 16 sequences of 4 frames of the composites alone. They
are composed at data.height x data.width: where that is the size of the evaluation clips (512x288 by default), graphs
are static, as peers like them best; with another size, such as the recipes' 256x144, graphs are left open in height and
width.

All frames and states lie in memory during calibration: 5 MB a frame at 512x288. Needs the extra `peers`:
pip install -e ".[peers]". What ran is left in the folder --output: the graphs, and peers.json.
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
    """Quantize with each peer, score, and write ``peers.json``.

    Args:
        data: calibration and evaluation clips.
        output: folder for the graphs and for peers.json.
        network: the registry's name of the network.
        weights: `official`, or a file of float weights.
        downsample_ratio: the network's body works at this fraction of the frame's size.
        peers: which of minmax, percentile and nncf.
        states: `settled` plays each calibration sequence backward before it is used, so that its first frame has a
            state too; `fresh` begins each with zeros, as the recipes do.
        percentile: of the values on both sides that ONNX Runtime's percentile ranges keep, in %.
        scoring: `float`, or `png8` to score mattes truncated to 8 bits.
        threads: of each runtime while it is scored. The peers' own calibration takes what the machine gives it.
        exact_sums: score as a CPU with VNNI would: without it the runtimes' fastest integer kernels may saturate. ONNX
            Runtime then takes slower kernels, OpenVINO computes on the grids' values in float32.

    Raises:
        PTQ4VMError: a package is missing, data is, or the folder can't be written.
    """
    require_packages([package for peer in peers for package in _PACKAGES[peer]] + ["onnxruntime"])
    torch.set_num_threads(threads)
    teacher = create_model(
        network, weights=weights, downsample_ratio=downsample_ratio
    ).requires_grad_(False)
    data.setup("fit")
    size, static = data.size, evaluation_sizes(data) == {data.size}
    graph = export_onnx(teacher, *size, Path(output) / "float.onnx", dynamic_size=not static)
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
        "network": network, "weights": weights, "downsample_ratio": downsample_ratio, "scoring": scoring,
        "threads": threads, "exact_sums": exact_sums, "seed": data.seed, "calibration_frames": len(feeds),
        "states": states, "calibration_size": list(size), "graphs": "static" if static else "open height and width",
        "evaluation_frames": data.evaluation_set.num_frames, "percentile": percentile, "versions": versions(),
    }  # fmt: skip
    write_metrics(Path(output) / "peers.json", rows, meta)
    return rows


def require_packages(names: Sequence[str]) -> None:
    """See that all packages are there before any work is done.

    Raises:
        PTQ4VMError: one is not installed.
    """
    missing = [name for name in dict.fromkeys(names) if importlib.util.find_spec(name) is None]
    if missing:
        raise PTQ4VMError(
            f"Expected the packages of the extra `peers`, got no {', '.join(missing)}. "
            'Install them with pip install -e ".[peers]", or name other --peers.'
        )


def evaluation_sizes(data: VideoMattingDataModule) -> set[tuple[int, int]]:
    """Every (height, width) among the evaluation clips."""
    chunks = data.evaluation_set
    sizes = set()
    for clip in {chunk.clip for chunk in chunks.chunks}:
        height, width = chunks.source.read(clip, 0, 1).src.shape[-2:]
        sizes.add((height, width))
    return sizes


def calibration_clips(
    data: VideoMattingDataModule, network: MattingModel, advance: Advance
) -> Iterator[Tensor]:
    """The frames (T, 3, H, W) of each calibration sequence, the same that a recipe with these settings takes."""

    def no_flow(src: Tensor) -> tuple[Tensor, Tensor]:
        count, _, height, width = src.shape
        return src.new_zeros(count - 1, 2, height, width), src.new_zeros(
            count - 1, 1, height, width
        )

    # Under a key of its own, so that the recipes' flows in the cache stay theirs.
    data.attach(make_teacher(network), FlowEstimator(no_flow, "no flow"), lambda *_: advance())
    for number in range(len(data.calibration_set)):
        yield data.calibration_set[number].src


def make_feeds(
    run: Run, network: MattingModel, clips: Iterator[Tensor], states: States
) -> list[Feed]:
    """Inputs of the graph for every calibration frame, with the float network's state before that frame.

    Args:
        run: the float graph.
        network: the same network; shapes the states.
        clips: sequences of frames, (T, 3, H, W).
        states: ``settled``: a sequence is played backward first; ``fresh``: it begins with zeros.
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
    """A graph over one frame, played frame by frame with its own state fed back.

    Args:
        run: the graph in its runtime.
        initial_state: zeros for frames (1, 3, H, W).
    """

    def __init__(self, run: Run, initial_state: Callable[[Tensor], RecurrentState]) -> None:
        self._run, self._initial_state = run, initial_state
        self._state: list[Array] | None = None
        self.feed: Feed = {}
        """What the graph was given last."""

    def reset(self) -> None:
        """The next frame begins a clip."""
        self._state = None

    def __call__(self, frame: Tensor) -> Tensor:
        """One frame (3, H, W) -> its alpha (1, H, W) in [0, 1]."""
        src = frame[None]
        if self._state is None:
            self._state = [tensor.numpy() for tensor in self._initial_state(src)]
        names, _ = state_names(len(self._state))
        self.feed = {
            "src": np.ascontiguousarray(src.numpy()),
            **dict(zip(names, self._state, strict=True)),
        }
        _, pha, *self._state = self._run(self.feed)
        # A scale that isn't a divisor of 1 lets quantized alpha end a little beyond it.
        return torch.from_numpy(pha)[0].clamp(0, 1)


def open_onnx_runtime(path: Path, threads: int = 1, exact_sums: bool = False) -> Run:
    """A graph in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if exact_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def open_openvino(path: Path, threads: int = 1, exact_sums: bool = False) -> Run:
    """A graph in OpenVINO on the CPU; what isn't quantized stays float32 there, also where the CPU has bfloat16."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    if exact_sums:
        options["LP_TRANSFORMS_MODE"] = (
            "NO"  # keeps quantization apart from the layers, which stay float32
        )
    model = openvino.Core().compile_model(str(path), "CPU", options)

    def run(feed: Feed) -> list[Array]:
        results = model(feed)
        return [results[port] for port in model.outputs]

    return run


def quantize(
    peer: str, graph: Path, feeds: Sequence[Feed], percentile: float = 99.999
) -> list[Path]:
    """Let a peer quantize the float graph to W8A8; the files it wrote, the graph first, beside ``graph``."""
    # Both tools talk on standard output, which is the table's.
    with contextlib.redirect_stdout(io.StringIO()):
        if peer == "nncf":
            return _quantize_nncf(graph, graph.with_name("nncf.xml"), feeds)
        return _quantize_onnx_runtime(
            graph, graph.with_name(f"onnxruntime_{peer}.onnx"), feeds, peer, percentile
        )


class _Reader:
    """Hands calibration frames to ONNX Runtime, which asks for them a range at a time."""

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
            # Frame by frame: percentile ranges would otherwise hold every tensor of every frame in memory. And each
            # side with a bound of its own, as min-max has it; percentile's default takes one from |x| for both.
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
    """All metrics of one network: against true alpha, and against the float network's."""

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
    """Play every graph over the evaluation clips, side by side, so that mattes needn't be kept.

    Args:
        runs: graphs by name.
        network: the float network that their alpha is compared with as well.
        data: its evaluation clips, each from a fresh state.
        scoring: ``float`` or ``png8``.
        advance: called after each frame of each graph.

    Returns:
        For each name ``mad``, ``mse``, ``grad``, ``conn``, ``dtssd``, and ``mad_to_float``, ``dtssd_to_float``.

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
    extra = {key: metrics.pop(key) for key in ("mad_to_float", "dtssd_to_float")}
    if placement:
        extra["calibration_minutes"] = minutes
    size = sum(file.stat().st_size for file in files) / 1e6
    return ResultRow(name, "W8A8" if placement else "W32A32", placement, metrics, size, extra=extra)


def versions() -> dict[str, str]:
    """Of the packages that had a part in it, as far as they are installed."""
    found = {}
    for name in ("torch", "onnx", "onnxruntime", "nncf", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def make_progress() -> Progress:
    """Bars on standard error; standard output is the table's."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )


def task(bar: Progress, what: str, total: int) -> Advance:
    """A new line of the display; call what is returned for each thing done."""
    number = bar.add_task(what, total=total)
    return lambda: bar.advance(number)


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description as they are."""


def main(args: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status. A user's mistake is told in a line, without a traceback."""
    parser = ArgumentParser(
        prog="benchmarks/peers.py", description=_HELP, formatter_class=_HelpFormatter
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with these options; later ones win."
    )
    skipped = {"batch_size", "steps_per_epoch", "num_workers"}
    parser.add_class_arguments(VideoMattingDataModule, "data", skip=skipped, instantiate=False)
    parser.add_function_arguments(peers, skip={"data"})
    parser.set_defaults({f"data.{name}": value for name, value in _DATA.items()})
    options: dict[str, Any] = dict(vars(parser.parse_args(args)))
    options.pop("config")
    try:
        rows = peers(VideoMattingDataModule(**vars(options.pop("data"))), **options)
    except PTQ4VMError as error:
        Console(stderr=True).print(
            f"peers: {error}", style="bold red", highlight=False, markup=False
        )
        return 2
    console = Console()
    # On 80 columns the names would have to give way to so many numbers.
    render_table(rows, Console(width=max(console.width, 130)))
    console.print(
        f"metrics     {Path(options['output']) / 'peers.json'}", highlight=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
