"""Benchmark of reading sequences at random places of one long video.

Encodes a moving picture with noise in H.264, x264's default distance of keyframes (250), and
compares the time of one decode of the whole video with that of reading short sequences from it:
with `VideoReader.read`, which seeks, and from the beginning each time. The latter is timed for a
few of the sequences and extrapolated by the number of frames before each. Their frames are compared
bit for bit. The video is encoded once and kept in the output folder. `VideoSource`, which
calibration reads, also converts and resizes frames, and decodes a clip once to look for cuts
(cached).

    python benchmarks/video_access.py --minutes 10
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from rich.console import Console
from rich.progress import track

from ptq4vm.atomic_io import written_whole
from ptq4vm.video.frames import Frame
from ptq4vm.video.pictures import to_rgb
from ptq4vm.video.reader import VideoReader

HEIGHT, WIDTH, RATE = 1080, 1920, 25
SEQUENCES, LENGTH = 96, 6
T = TypeVar("T")
Place = tuple[int, int]
"""First frame, and the one after the last."""
Seconds = tuple[float, float]
"""Elapsed, and of all threads on the CPU."""


def main() -> None:
    """Encode the video, time the ways to read it, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="length of the video")
    parser.add_argument(
        "--from_beginning", type=int, default=2, help="sequences read from the beginning"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the places")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/video_access"), help="folder for the video"
    )
    args = parser.parse_args()
    count = round(args.minutes * 60 * RATE)
    path = args.output / f"{count}.mp4"
    if not path.exists():
        args.output.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            encode(part, count)
    draw = random.Random(args.seed)
    starts = [draw.randrange(count - LENGTH + 1) for _ in range(SEQUENCES)]
    places = [(start, start + LENGTH) for start in starts]
    for line in report(path, count, places, args.from_beginning):
        Console(highlight=False).print(line, soft_wrap=True)


def encode(path: Path, count: int) -> None:
    """Encode a picture that scrolls under noise, which changes in every frame."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(32, 200, (HEIGHT * 3 // 2 // 20, 3 * WIDTH // 20), dtype=np.uint8)
    picture = coarse.repeat(20, 0).repeat(20, 1)
    noise = draw.integers(0, 6, (HEIGHT * 3 // 2, 2 * WIDTH), dtype=np.uint8)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "superfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in track(range(count), "encoding"):
            at, under = 4 * number % (2 * WIDTH), 977 * number % WIDTH
            data = picture[:, at : at + WIDTH] + noise[:, under : under + WIDTH]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(data, format="yuv420p")))
        container.mux(stream.encode(None))


def decode(path: Path, start: int, stop: int | None = None) -> list[Frame]:
    """Decode up to frame `stop`, and convert those from `start` on to RGB."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = itertools.islice(container.decode(stream), stop)
        return [to_rgb(frame) for number, frame in enumerate(frames) if number >= start]


def report(path: Path, count: int, places: list[Place], few: int) -> Iterator[str]:
    """Time the ways to read the sequences; yield the lines of a Markdown table."""
    yield "| reading | s | CPU s | decodes |"
    yield "| --- | ---: | ---: | ---: |"
    whole, _ = timed(lambda: decode(path, count))
    yield to_row(f"one decode of {count} frames", whole, whole)
    reader = VideoReader(path)
    first, _ = timed(lambda: reader.read(count - 1, count, count))
    yield to_row("first read: index of the packets and one sequence", first, whole)
    sought, found = timed(lambda: [reader.read(*place, count) for place in places])
    yield to_row(f"{len(places)} sequences of {LENGTH} frames", sought, whole)
    old, expected = timed(lambda: [decode(path, *place) for place in places[:few]])
    if not np.array_equal(np.array(expected), np.array(found[:few])):
        raise SystemExit("Expected the same frames in both ways.")
    longer = sum(stop for _, stop in places) / max(1, sum(stop for _, stop in places[:few]))
    extrapolated = (old[0] * longer, old[1] * longer)
    yield to_row(f"the same from frame 0, extrapolated from {few}", extrapolated, whole)


def to_row(name: str, seconds: Seconds, whole: Seconds) -> str:
    """Build a row of the table; the ratio is of CPU times, which other work disturbs less."""
    return f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[1] / whole[1]:.2f} |"


def timed(work: Callable[[], T]) -> tuple[Seconds, T]:
    """Return the time that a call takes, elapsed and of all threads on the CPU, and its result."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - start, time.process_time() - used), result


if __name__ == "__main__":
    main()
