"""Quantization configuration as frozen, self-validating dataclasses."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from typing_extensions import Self

from ptq4vm.errors import PTQ4VMError

Grid = Literal["affine", "unsigned", "symmetric"]
Granularity = Literal["per_tensor", "per_channel"]
RangeMethod = Literal["minmax", "percentile", "mse"]
Placement = Literal["deploy", "full", "paper"]


@dataclass(frozen=True)
class QuantSpec:
    """Quantization grid of one tensor."""

    bits: int
    grid: Grid = "affine"
    granularity: Granularity = "per_tensor"
    range_method: RangeMethod = "mse"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise PTQ4VMError(
                f"Expected 2 to 8 bits, got {self.bits}. Choose e.g. W8A8, W4A8 or W4A4."
            )
        choices = {"grid": Grid, "granularity": Granularity, "range_method": RangeMethod}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise PTQ4VMError(
                    f"Expected {name} to be of {', '.join(get_args(known))}, got "
                    f"{getattr(self, name)!r}."
                )

    @property
    def quant_min(self) -> int:
        """Lowest code."""
        return -(2 ** (self.bits - 1)) if self.grid == "symmetric" else 0

    @property
    def quant_max(self) -> int:
        """Highest code."""
        return 2 ** (self.bits - 1) - 1 if self.grid == "symmetric" else 2**self.bits - 1


@dataclass(frozen=True)
class QConfig:
    """Quantization configuration of a network.

    Args:
        bits: ``W<weight bits>A<activation bits>``, e.g. W8A8, W4A8, W4A4.
        placement: Positions of the activation quantizers. ``deploy`` quantizes inputs and weights
            of convolutions and linear layers, as OpenVINO and TensorRT need. ``full`` also
            quantizes each layer's output, or that of the ReLU after it, as ONNX Runtime needs.
            ``paper`` quantizes weights and the output of each layer's activation function, like the
            published code.
        first_last_bits: Bits of weights and activations of the first and the last executed layer.
        weight_grid: Grid of weights of fewer than 8 bits, and an error without such weights.
            ``affine`` fits them best, and its codes minus the zero point still fit the 8-bit
            integers that runtimes multiply. Weights of 8 bits are always symmetric, as runtimes
            require.
        weight_granularity: One weight scale for each output channel, or one for all.
        activation_grid: Grid of the activations. ``affine`` fits every tensor, and becomes unsigned
            for non-negative data.
        depthwise_granularity: One grid for the whole input of a depthwise convolution, or one for
            each channel. Each channel is multiplied by its own weights only, so its scale folds
            into theirs. OpenVINO supports this; ONNX Runtime's integer kernels need one grid for
            all channels.
        range_method: Calibration method of ranges: minmax, percentile or mse.
        ignored_modules: Dotted names of submodules that stay float. The refiner computes variances
            of the full-size frame, for which 8 bits are too few, and runs only at downsample_ratio
            < 1.
        layer_bits: Bits by layer name, ``{"aspp.aspp1.0": "W8A8"}``; they override ``bits`` and
            ``first_last_bits``.

    Raises:
        PTQ4VMError: A value is invalid, or the combination of placement and granularity is.

    Example:
        >>> from ptq4vm import QConfig
        >>> qconfig = QConfig("W4A8", weight_grid="affine", layer_bits={"project_mat.conv": "W8A8"})
        >>> qconfig.bits, qconfig.first_last_bits
        ('W4A8', 8)
    """

    bits: str = "W8A8"
    placement: Placement = "deploy"
    first_last_bits: int = 8
    weight_grid: Grid = "symmetric"
    weight_granularity: Granularity = "per_channel"
    activation_grid: Grid = "affine"
    depthwise_granularity: Granularity = "per_tensor"
    range_method: RangeMethod = "mse"
    ignored_modules: tuple[str, ...] = ("refiner",)
    layer_bits: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.placement not in get_args(Placement):
            raise PTQ4VMError(
                f"Expected a placement of deploy, full or paper, got {self.placement!r}."
            )
        if self.placement != "deploy" and self.depthwise_granularity == "per_channel":
            raise PTQ4VMError(
                f"Expected depthwise_granularity per_tensor with placement {self.placement}, which "
                "quantizes what layers hand on, got per_channel. Choose placement deploy."
            )
        if isinstance(self.ignored_modules, str) or not isinstance(self.layer_bits, Mapping):
            raise PTQ4VMError(
                "Expected ignored_modules as a list and layer_bits as bits by name, got "
                f"{self.ignored_modules!r} and {self.layer_bits!r}. Correct them."
            )
        # A YAML file gives a list; the dataclass is frozen.
        object.__setattr__(self, "ignored_modules", tuple(self.ignored_modules))
        # Building the grids is the check of their bits.
        for bits in self._all_bits():
            self._specs(bits)

    def _all_bits(self) -> tuple[str, ...]:
        edge = f"W{self.first_last_bits}A{self.first_last_bits}"
        return (self.bits, edge, *self.layer_bits.values())

    @property
    def uses_weight_grid(self) -> bool:
        """True if any weights have fewer than 8 bits."""
        return any(parse_bits(bits)[0] < 8 for bits in self._all_bits())

    @property
    def fewest_activation_bits(self) -> int:
        """Fewest bits of any activation."""
        return min(parse_bits(bits)[1] for bits in self._all_bits())

    def require_used(self) -> None:
        """Check that every setting applies to something.

        Raises:
            PTQ4VMError: ``weight_grid`` is given, and all weights have 8 bits.
        """
        if self.weight_grid != "symmetric" and not self.uses_weight_grid:
            raise PTQ4VMError(
                f"Expected weight_grid symmetric with weights of 8 bits, which runtimes require, "
                f"got {self.weight_grid}. Leave weight_grid out, or choose bits such as W4A8."
            )

    def used(self) -> Self:
        """Return the configuration without a ``weight_grid`` that applies to nothing."""
        return self if self.uses_weight_grid else replace(self, weight_grid="symmetric")

    def _specs(self, bits: str, *, depthwise: bool = False) -> tuple[QuantSpec, QuantSpec]:
        weight_bits, activation_bits = parse_bits(bits)
        granularity = self.depthwise_granularity if depthwise else "per_tensor"
        # Runtimes multiply 8-bit weights as signed integers: no room for a zero point.
        weight_grid = self.weight_grid if weight_bits < 8 else "symmetric"
        return (
            QuantSpec(weight_bits, weight_grid, self.weight_granularity, self.range_method),
            QuantSpec(activation_bits, self.activation_grid, granularity, self.range_method),
        )

    def specs(
        self, layer: str, *, edge: bool, depthwise: bool = False
    ) -> tuple[QuantSpec, QuantSpec]:
        """Return weight and activation grid of a layer.

        Args:
            layer: Dotted name of the layer.
            edge: True for the first and the last executed layer.
            depthwise: True for a depthwise convolution.
        """
        default = f"W{self.first_last_bits}A{self.first_last_bits}" if edge else self.bits
        return self._specs(self.layer_bits.get(layer, default), depthwise=depthwise)

    def is_float(self, layer: str) -> bool:
        """Return whether the layer is in one of the ``ignored_modules``."""
        return any(layer == name or layer.startswith(f"{name}.") for name in self.ignored_modules)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, from which ``QConfig(**d)`` rebuilds the configuration."""
        return asdict(self)


def parse_bits(bits: str) -> tuple[int, int]:
    """Parse bits: ``W4A8`` -> (4, 8).

    Raises:
        PTQ4VMError: The text has another form.
    """
    match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", str(bits))
    if match is None:
        raise PTQ4VMError(
            f"Expected bits as W<weights>A<activations>, got {bits!r}. Choose e.g. W8A8, W4A8 or "
            "W4A4."
        )
    return int(match[1]), int(match[2])


def canonical_bits(bits: str) -> str:
    """Return bits in upper case: ``w4a8`` -> ``W4A8``.

    Raises:
        PTQ4VMError: See :func:`parse_bits`.
    """
    weight_bits, activation_bits = parse_bits(bits)
    return f"W{weight_bits}A{activation_bits}"
