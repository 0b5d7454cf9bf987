"""Settings of a quantization job."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from ptq4vm.calibration.sensitivity import BASE_BITS
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import TargetName, find_target
from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.phases.gac import require_truth
from ptq4vm.phases.scoring import Scoring
from ptq4vm.pipeline.rows import DEFAULT_ROWS, Method, check_rows
from ptq4vm.quantizers import QConfig

AUTO = "auto"
"""Bits of a W4A4 network with more bits in the most sensitive layers."""
DEFAULT_BUDGET = 0.1


@dataclass(frozen=True)
class QuantizeSettings:
    """Settings of :func:`quantize` that decide its result, beside the network and the data.

    Args:
        bits: one or more of W8A8, W4A8, W4A4, ..., or ``auto``: W4A4, with W4A8 or W8A8 in the
            layers that gain most, selected by quantizing each layer alone on calibration sequences.
        budget: for ``auto`` only: maximum share of all bit operations in layers above W4A4, the
            first and last layers included; 0.1 if not given.
        rows: rows of the table by name, the last of which is the run's result; by default the
            steps of the paper.
        qconfig: all other quantization settings; its ``bits`` are replaced by each of ``bits``.
        target: runtime of the result; sets the options in ``qconfig`` that it needs to execute
            integers, unless they are given: placement, depthwise_granularity and, for TensorRT,
            activation_grid. By default ``qconfig`` is unchanged.
        block_reconstruction: settings of :class:`BlockReconstructionModule`; rows may override
            them.
        gac: settings of :class:`GACModule`; rows may override them.
        block_steps: optimization steps per block.
        block_batch_size: sequences per step of block reconstruction.
        gac_epochs: passes over the calibration set in global calibration.
        gac_batch_size: sequences per step of global calibration.
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
    scoring: Scoring = "float"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(self.bits))
        for name in ("block_steps", "block_batch_size", "gac_epochs", "gac_batch_size"):
            if (count := getattr(self, name)) < 1:
                raise PTQ4VMError(f"Expected {name} of at least 1, got {count}. Raise it.")
        if not self.bits:
            raise PTQ4VMError(
                "Expected at least one of bits, e.g. W8A8, got none. Leave bits out for W8A8."
            )
        if self.budget is not None and AUTO not in self.bits:
            raise PTQ4VMError(
                f"Expected a budget only with bits {AUTO}, got {self.budget:g} with "
                f"{', '.join(self.bits)}. Leave it out."
            )
        check_rows(self.methods)
        for method in self.methods.values():
            self.options(method)
            for plan in self.plans().values():
                replace(plan, **method.qconfig)

    @property
    def methods(self) -> dict[str, Method]:
        """Rows of the table by key."""
        return DEFAULT_ROWS if self.rows is None else self.rows

    def plain(self) -> dict[str, Any]:
        """Return all settings as dictionaries and plain values, with the rows of the table."""
        return {**asdict(self), "rows": {key: asdict(one) for key, one in self.methods.items()}}

    def plans(self) -> dict[str, QConfig]:
        """Return the quantization configuration of each of ``bits``; W4A4's for ``auto``."""
        target = None if self.target is None else find_target(self.target)
        qconfig = self.qconfig if target is None else target.fit(self.qconfig)
        plans = {one: replace(qconfig, bits=BASE_BITS if one == AUTO else one) for one in self.bits}
        if not any(plan.uses_weight_grid for plan in plans.values()):
            next(iter(plans.values())).require_used()
        return {one: plan.used() for one, plan in plans.items()}

    def options(self, method: Method) -> BlockReconstructionSettings | GACSettings:
        """Return the settings of a method's phase.

        Raises:
            PTQ4VMError: The method has an option that its phase lacks.
        """
        common = self.block_reconstruction if method.start is None else self.gac
        try:
            return replace(common, **method.options)
        except TypeError as error:
            raise PTQ4VMError(
                f"Expected options of {type(common).__name__} in the row {method.title!r}, got "
                f"{', '.join(method.options)}: {error}. Correct the row."
            ) from error

    def require_data(self, data: VideoMattingDataModule) -> None:
        """Check that the data has the labels that global calibration is set to learn from.

        Raises:
            PTQ4VMError: It has none by its settings.
        """
        for method in self.methods.values():
            if isinstance(own := self.options(method), GACSettings):
                require_truth(own, data)
