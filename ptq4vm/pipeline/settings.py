"""Settings of a quantization job."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any, TypeVar

from ptq4vm.calibration.bit_allocation import require_budget
from ptq4vm.calibration.sensitivity import BASE_BITS
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import TargetName, find_target
from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.phases.gac import require_truth
from ptq4vm.phases.scoring import Scoring
from ptq4vm.pipeline.rows import DEFAULT_ROWS, Method, check_rows
from ptq4vm.quantizers import QConfig, canonical_bits
from ptq4vm.reading import check_fields

Settings = TypeVar("Settings")
AUTO = "auto"
"""Bits of a network that costs as much as W4A4, with more bits in the most sensitive layers."""
DEFAULT_BUDGET = 0.0
_NO_CHANGES = Method("")


@dataclass(frozen=True)
class QuantizeSettings:
    """Settings of :func:`quantize` that decide its result, beside the network and the data.

    Args:
        bits: one or more of W8A8, W4A8, W4A4, ..., or ``auto``: W4A4, with W4A8 or W8A8 in the
            layers that gain most and W3A4 in those that lose least, selected by quantizing each
            layer alone on calibration sequences.
        budget: for ``auto`` only: bit operations above those of W4A4, as a share of them; by
            default 0: layers of fewer bits pay for those of more.
        rows: rows of the table by name, the last of which is the run's result; by default the
            steps of the paper.
        qconfig: all other quantization settings; its ``bits`` are replaced by each of ``bits``.
        target: runtime of the result; sets the options in ``qconfig`` that it needs to execute
            integers, where they are at their defaults: placement, depthwise_granularity and, for
            TensorRT, activation_grid. Rows may choose otherwise, except for the last. By
            default ``qconfig`` is unchanged.
        block_reconstruction: settings of :class:`BlockReconstructionModule`; rows may override
            them.
        gac: settings of :class:`GACModule`; rows may override them.
        block_steps: optimization steps per block.
        block_batch_size: sequences per step of block reconstruction.
        gac_epochs: passes over the calibration set in global calibration.
        gac_batch_size: sequences per step of global calibration.
        scale: share of the last four counts that is run, each at least 1, such as ``1/100``, to try
            the published lengths where they take too long.
        scoring: ``float``, or ``png8`` to truncate mattes to 8 bits.

    Raises:
        PTQ4VMError: a setting is out of range, or contradicts another.

    Example:
        >>> from ptq4vm import QuantizeSettings
        >>> settings = QuantizeSettings(bits=["W4A8"], target="openvino", gac_epochs=4)
        >>> settings.plans()["W4A8"].depthwise_granularity
        'per_channel'
    """

    bits: tuple[str, ...] = ("W8A8",)
    budget: float | None = None
    rows: dict[str, Method] | None = None
    qconfig: QConfig = QConfig()  # noqa: RUF009  (frozen, as the two below)
    target: TargetName | None = None
    block_reconstruction: BlockReconstructionSettings = BlockReconstructionSettings()  # noqa: RUF009
    gac: GACSettings = GACSettings()  # noqa: RUF009
    block_steps: int = 100
    block_batch_size: int = 1
    gac_epochs: int = 10
    gac_batch_size: int = 1
    scale: float | str = 1.0
    scoring: Scoring = "float"

    def __post_init__(self) -> None:
        kinds = {"qconfig": QConfig, "block_reconstruction": BlockReconstructionSettings}
        for name, kind in (*kinds.items(), ("gac", GACSettings)):
            if not isinstance(value := getattr(self, name), kind):
                raise PTQ4VMError(f"Expected {name} to be {kind.__name__}, got {value!r}.")
        if isinstance(self.bits, str) or not all(isinstance(one, str) for one in self.bits or ()):
            raise PTQ4VMError(f"Expected a list of bits, e.g. [W8A8], got {self.bits!r}.")
        bits = [one if one == AUTO else canonical_bits(one) for one in self.bits or ()]
        object.__setattr__(self, "bits", tuple(bits))
        check_fields(self)
        for name in ("block_steps", "block_batch_size", "gac_epochs", "gac_batch_size"):
            if (count := getattr(self, name)) < 1:
                raise PTQ4VMError(f"Expected {name} of at least 1, got {count}. Raise it.")
        self.scaled(1)
        if not bits or len(set(bits)) < len(bits):
            raise PTQ4VMError(
                f"Expected at least one of bits, each once, got {', '.join(bits) or 'none'}. Leave "
                "bits out for W8A8."
            )
        require_budget(self.share)
        if self.budget is not None and AUTO not in bits:
            raise PTQ4VMError(
                f"Expected a budget only with bits {AUTO}, got {self.budget:g} with "
                f"{', '.join(bits)}. Leave it out, or set it to null."
            )
        if self.qconfig.bits != QConfig().bits:
            raise PTQ4VMError(
                f"Expected the bits of a run in bits, got qconfig.bits {self.qconfig.bits}. Write "
                f"--bits [{self.qconfig.bits}]."
            )
        check_rows(self.methods)
        runs = self.run_plans()
        plans = [with_changes(plan, one) for one in self.methods.values() for plan in runs.values()]
        if not any(plan.uses_weight_grid for plan in plans):
            plans[0].require_used()
        for method in self.methods.values():
            self._check_method(method)
        if self.target is not None:
            for one, plan in self.final_plans().items():
                find_target(self.target).require(plan, f"the result for {one}")

    def _check_method(self, method: Method) -> None:
        own = self.options(method)
        for plan in self.plans(method).values():
            if isinstance(own, BlockReconstructionSettings):
                own.require_placement(plan)
            if "weight_grid" in method.qconfig:
                replace(plan, weight_grid=method.qconfig["weight_grid"]).require_used()

    def scaled(self, count: int) -> int:
        """Return ``scale`` times a count, rounded, at least 1.

        Raises:
            PTQ4VMError: ``scale`` is not a share.
        """
        try:
            scale = Fraction(self.scale)
        except (ValueError, ZeroDivisionError, OverflowError):
            scale = Fraction(0)
        if not 0 < scale <= 1:
            raise PTQ4VMError(
                f"Expected a scale above 0 and up to 1, such as 1/100, got {self.scale!r}. Correct "
                "it."
            )
        return max(1, round(count * scale))

    @property
    def methods(self) -> dict[str, Method]:
        """Rows of the table by key."""
        return DEFAULT_ROWS if self.rows is None else self.rows

    @property
    def share(self) -> float:
        """Budget of ``auto``."""
        return DEFAULT_BUDGET if self.budget is None else self.budget

    def plain(self) -> dict[str, Any]:
        """Return all settings as dictionaries and plain values, with the rows of the table."""
        budget = self.share if AUTO in self.bits else None
        rows = {key: asdict(one) for key, one in self.methods.items()}
        return {**asdict(self), "budget": budget, "rows": rows}

    def run_plans(self) -> dict[str, QConfig]:
        """Return the configuration of each of ``bits`` before a row's changes; W4A4's for ``auto``.

        A ``weight_grid`` is kept at 8 bits too, since a row may lower them; see :func:`row_plan`.
        """
        target = None if self.target is None else find_target(self.target)
        qconfig = self.qconfig if target is None else target.fit(self.qconfig)
        return {one: replace(qconfig, bits=BASE_BITS if one == AUTO else one) for one in self.bits}

    def plans(self, method: Method = _NO_CHANGES) -> dict[str, QConfig]:
        """Return the configuration of a row for each of ``bits``; by default of one like the run.

        Args:
            method: method of the row.
        """
        return {bits: row_plan(plan, method) for bits, plan in self.run_plans().items()}

    def final_plans(self) -> dict[str, QConfig]:
        """Return the quantization configuration of the last row for each of ``bits``."""
        *_, method = self.methods.values()
        while method.start is not None:
            method = self.methods[method.start]
        return self.plans(method)

    def options(self, method: Method) -> BlockReconstructionSettings | GACSettings:
        """Return the settings of a method's phase.

        Raises:
            PTQ4VMError: The method has an option that its phase lacks.
        """
        common = self.block_reconstruction if method.start is None else self.gac
        return _replaced(common, method.options, f"options of the row {method.title!r}")

    def require_data(self, data: VideoMattingDataModule) -> None:
        """Check that the data has the labels that global calibration is set to learn from.

        Raises:
            PTQ4VMError: It has none by its settings.
        """
        for method in self.methods.values():
            if isinstance(own := self.options(method), GACSettings):
                require_truth(own, data)


def with_changes(plan: QConfig, method: Method) -> QConfig:
    """Return a quantization configuration with the changes of a method.

    Raises:
        PTQ4VMError: The method changes a setting that doesn't exist.
    """
    return _replaced(plan, method.qconfig, f"qconfig of the row {method.title!r}")


def row_plan(plan: QConfig, method: Method) -> QConfig:
    """Return the configuration of a row, from one of :meth:`QuantizeSettings.run_plans`."""
    return with_changes(plan, method).used()


def _replaced(settings: Settings, changes: Mapping[str, Any], where: str) -> Settings:
    known = {one.name for one in fields(settings)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, changes.keys() - known)):
        raise PTQ4VMError(
            f"Expected {where} to be settings of {type(settings).__name__}, got "
            f"{', '.join(unknown)}. Correct them."
        )
    return replace(settings, **changes)  # type: ignore[type-var]
