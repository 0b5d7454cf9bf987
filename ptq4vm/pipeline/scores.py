"""Scores of a network in a run folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from ptq4vm.atomic_io import write_json
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import read_json
from ptq4vm.reporting import Fidelity
from ptq4vm.reporting.results import FidelityValues


class Scores(NamedTuple):
    """Scores of one network."""

    metrics: Mapping[str, float]
    """Metrics against the true alpha by name."""
    fidelity: Fidelity | None
    """Distance to the float network on the evaluation clips."""
    held_out: Fidelity | None
    """Distance to the float network on held-out people."""

    def logged(self) -> Iterator[tuple[str, float]]:
        """Yield the name and the value of each number, for loggers."""
        yield from self.metrics.items()
        for form, found in (("{}_to_float", self.fidelity), ("held_out_{}", self.held_out)):
            if found is not None:
                yield from ((form.format(name), one) for name, one in found._asdict().items())


class _File(TypedDict):
    network: str
    metrics: dict[str, float]
    fidelity: FidelityValues | None
    held_out: FidelityValues | None


def write_scores(path: Path, scores: Scores, network: str) -> None:
    """Write scores with the checksum of the network.

    Raises:
        PTQ4VMError: The file can't be written.
    """
    pairs = {"fidelity": scores.fidelity, "held_out": scores.held_out}
    values = {name: one and one._asdict() for name, one in pairs.items()}
    write_json(path, {"network": network, "metrics": scores.metrics, **values}, sort_keys=True)


def read_scores(path: Path, network: str) -> Scores:
    """Read scores.

    Args:
        path: File of :func:`write_scores`.
        network: Checksum of the network.

    Raises:
        PTQ4VMError: The file is damaged, or the scores belong to another network.
    """
    found = read_json(path, _File, "the scores of a network", "Remove it: it is measured again.")
    if found["network"] != network:
        raise PTQ4VMError(
            f"Expected in {path} the scores of the network that this run has now, got those of "
            f"another: a file was replaced. Put it back, or remove {path} to score it again."
        )
    pairs = (found[name] and Fidelity(**found[name]) for name in ("fidelity", "held_out"))
    return Scores(found["metrics"], *pairs)
