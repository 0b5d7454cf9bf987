"""Time and peak memory of a piece of work."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure time and peak memory of the context's body.

    Peak memory is the GPU's if there is one, else the process's resident memory: within the context
    on Linux, since the process started elsewhere.

    Yields:
        A dictionary that holds ``minutes`` and ``peak_gb`` (10⁹ bytes) after the context.
    """
    usage: dict[str, float] = {}
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak()
    start = time.monotonic()
    yield usage
    usage["minutes"] = (time.monotonic() - start) / 60
    usage["peak_gb"] = (torch.cuda.max_memory_allocated() if gpu else _peak()) / 1e9


def _reset_peak() -> None:
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # resets the peak reported as VmHWM, see proc(5)


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return 1024.0 * int(lines["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
