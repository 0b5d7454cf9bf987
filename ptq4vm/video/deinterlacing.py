"""Deinterlacing of decoded frames."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av


def deinterlace(frames: Iterable[tuple[Any, int | None]]) -> Iterator[tuple[Any, int | None]]:
    """Deinterlace interlaced frames one for one; progressive ones pass unchanged.

    FFmpeg's filter is set up at the first interlaced frame. It delays output by one frame, since it
    also reads the next one.

    Args:
        frames: (``av.VideoFrame``, presentation timestamp).
    """
    graph: Any = None
    times: deque[int | None] = deque()
    for frame, pts in frames:
        if graph is None:
            if not frame.interlaced_frame:
                yield frame, pts
                continue
            graph = _bwdif(frame)
        times.append(pts)
        graph.push(frame)
        for done in _pull(graph):
            yield done, times.popleft()
    if graph is not None:
        graph.push(None)
        for done in _pull(graph):
            yield done, times.popleft()


def _bwdif(frame: Any) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    )
    graph.configure()
    return graph


def _pull(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
