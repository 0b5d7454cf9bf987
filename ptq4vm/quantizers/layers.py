"""Layers that compute on quantized tensors."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers.affine import AffineCalibration
from ptq4vm.quantizers.convolution import ConvGeometry, affine_conv2d, conv2d, pad_and_shift
from ptq4vm.quantizers.fake_quantize import LearnedScaleFakeQuantize
from ptq4vm.quantizers.qconfig import Grid, QuantSpec
from ptq4vm.quantizers.weight_quantizer import WeightQuantizer


class QuantizedLayer(nn.Module, ABC):
    """A layer with fake-quantized weight and input, (activated) output, or both.

    Args:
        layer: what is quantized.
        weight_spec: grid of the weight.
        activation_spec: grid of its activations.
        quantize_input: quantize the input here; otherwise ``source`` may have done so.
        quantize_output: quantize the output; behind ReLU without codes below zero.
        activation: the function that follows, which the layer takes over so that its output can be
            quantized.
        source: the quantizer of another layer on whose grid the input lies.

    With a fixed weight, and without gradients, the layer adds integer codes, as the runtimes do:
    such sums are the same in any order. If its output is quantized too, its bias is rounded to the
    step of those sums, the 32-bit bias of integer kernels (arXiv 1712.05877).
    """

    input_shift: Tensor | None
    """Subtracted from the channels of the input, (C, 1, 1); None where each has its own grid."""
    input_scale: Tensor | None
    """Divides the channels of the input then, (C, 1, 1)."""

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_spec: QuantSpec,
        activation_spec: QuantSpec,
        quantize_input: bool = True,
        quantize_output: bool = False,
        activation: nn.Module | None = None,
        source: LearnedScaleFakeQuantize | None = None,
    ) -> None:
        super().__init__()
        # A channels_last kernel makes the convolution compute in that format, on CPU the faster.
        layout = torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format
        self.weight = nn.Parameter(
            layer.weight.detach().clone(memory_format=layout), requires_grad=False
        )
        # Always there: β ends up in it.
        bias = (
            self.weight.new_zeros(len(self.weight))
            if layer.bias is None
            else layer.bias.detach().clone()
        )
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.weight_quantizer = WeightQuantizer(self.weight, weight_spec)
        self.activation_spec = activation_spec
        self.input_quantizer: LearnedScaleFakeQuantize | None = None
        if quantize_input:
            channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            self.input_quantizer = LearnedScaleFakeQuantize(activation_spec, channels)
        self.output_quantizer: LearnedScaleFakeQuantize | None = None
        if quantize_output:
            # Behind ReLU an affine grid would spend codes below zero on nothing.
            rectified = isinstance(activation, nn.ReLU) and activation_spec.grid == "affine"
            grid: Grid = "unsigned" if rectified else activation_spec.grid
            self.output_quantizer = LearnedScaleFakeQuantize(replace(activation_spec, grid=grid))
        # Only dense layers with one grid for all channels gain from a scale for each.
        shape = self._input_scale_shape(layer)
        self.register_buffer("input_shift", None if shape is None else torch.zeros(shape))
        self.register_buffer("input_scale", None if shape is None else torch.ones(shape))
        self.input_padding = (0, 0, 0, 0)
        """Left, right, above and below, of an input that is shifted."""
        self.scales_input = self.shifts_input = False
        """True if ``input_scale`` isn't 1, ``input_shift`` isn't 0 throughout."""
        self.register_load_state_dict_post_hook(_find_scaling)
        self.activation = activation
        self._source = (source,)  # in a tuple: it belongs to another layer
        self.affine: AffineCalibration | None = None
        self._prepared: Tensor | None = None
        self._prepared_codes: Tensor | None = None

    @property
    def activation_quantizers(self) -> list[LearnedScaleFakeQuantize]:
        """The quantizers of input and output, where present."""
        return [one for one in (self.input_quantizer, self.output_quantizer) if one is not None]

    def _input_scale_shape(self, layer: nn.Conv2d | nn.Linear) -> tuple[int, ...] | None:
        own = self.input_quantizer
        if isinstance(layer, nn.Linear) or layer.groups > 1 or own is None:
            return None
        return (layer.in_channels, 1, 1) if own.log_scale.numel() == 1 else None

    @torch.no_grad()
    def scale_input_(self, scale: Tensor, shift: Tensor) -> None:
        """Read (x - shift) / scale in place of x; weight and bias take up the difference, in place.

        The layer's float output stays the same: exactly where the shift is 0 and the scale a power
        of two, else up to rounding.

        Args:
            scale: positive, shaped as ``input_scale``.
            shift: likewise.

        Raises:
            RuntimeError: the layer has no ``input_scale``, or its weight is fixed.
        """
        if self.input_scale is None or self.input_shift is None or self.weight_quantizer.fixed:
            raise RuntimeError("only the input of a dense layer with a float weight can be scaled")
        self.weight.div_(self.input_scale)
        self.bias.add_((self.weight * (shift - self.input_shift)).flatten(1).sum(1))
        self.weight.mul_(scale)
        self.input_scale.copy_(scale)
        self.input_shift.copy_(shift)
        _find_scaling(self)
        self.weight_quantizer.restart_(self.weight)

    def scaled_like(self, weight: Tensor) -> Tensor:
        """Return a weight of the float layer as this layer has it, times the input's scale."""
        return weight if self.input_scale is None else weight * self.input_scale

    @property
    def input_grid(self) -> LearnedScaleFakeQuantize | None:
        """The quantizer on whose grid the layer's input lies; None where that is not known."""
        return self._source[0] if self.input_quantizer is None else self.input_quantizer

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.shifts_input:
            x = pad_and_shift(x, self.input_shift, self.input_padding)  # type: ignore[arg-type]
        if self.scales_input:
            x = x / self.input_scale  # type: ignore[operator]
        x = self._add_codes(x) if self._adds_codes() else self._add_values(x)
        if self.activation is not None:
            x = self.activation(x)
        return x if self.output_quantizer is None else self.output_quantizer(x)

    def _add_values(self, x: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight_quantizer(self.weight) if self._prepared is None else self._prepared
        if self.affine is None:
            return self.multiply(x, weight, self.bias)
        return self._multiply_affine(x, weight, self.affine)

    @abstractmethod
    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for this weight and bias."""

    def _multiply_affine(self, x: Tensor, weight: Tensor, affine: AffineCalibration) -> Tensor:
        """Return the output for this weight, the layer's bias, and γ and β."""
        return self.multiply(x, *affine(weight, self.bias))

    @abstractmethod
    def _for_each_output(self, values: Tensor) -> Tensor:
        """Reshape (out channels,) to broadcast against the output."""

    def _adds_codes(self) -> bool:
        grid = self.input_grid
        fixed = self.weight_quantizer.fixed and self.affine is None
        return fixed and grid is not None and grid.on_grid and not torch.is_grad_enabled()

    def _add_codes(self, x: Tensor) -> Tensor:
        # Both factors are integers of magnitude below 2^8; their float32 sums are exact up to 2^24.
        codes = self._weight_codes() if self._prepared_codes is None else self._prepared_codes
        own = self.input_quantizer
        # The input lies on the grid of source, scale (code - zero point): rounding removes the
        # error of the division.
        x = (x / self.input_grid.scale).round_() if own is None else own.codes(x)  # type: ignore[union-attr]
        x = self.multiply(x, codes, None)
        step, bias = (
            self._for_each_output(self.accumulator_scale()),
            self._for_each_output(self.bias),
        )
        if self.output_quantizer is None:
            return x.mul_(step).add_(bias)
        # The bias in units of the sums, as kernels add it in 32-bit integers.
        return x.add_((bias / step).round_()).mul_(step)

    def _weight_codes(self) -> Tensor:
        """Return the weight's codes less their zero points."""
        return self.weight_quantizer.codes(self.weight) - self.weight_quantizer.zero_point

    def accumulator_scale(self) -> Tensor:
        """Return the value of one unit of a sum of products of codes, (out channels,).

        Raises:
            RuntimeError: the grid of the input is not known.
        """
        if self.input_grid is None:
            raise RuntimeError("the grid of the input is not known")
        return self.weight_quantizer.scale.flatten() * self.input_grid.scale.flatten()

    def start_affine(self, *, per_channel: bool, scale_bias: bool = False) -> None:
        """Add γ = 1 and β = 0, one for each output channel or for the layer.

        Args:
            per_channel: one for each output channel.
            scale_bias: γ scales the bias too.
        """
        channels = self.weight.shape[0] if per_channel else 1
        affine = AffineCalibration(channels, scale_bias=scale_bias)
        self.affine = affine.to(self.weight.device)

    @torch.no_grad()
    def fix_(self) -> None:
        """Put the weight on its grid, and bound the zero points, for good, in place."""
        self.weight_quantizer.fix_(self.weight)
        for quantizer in self.activation_quantizers:
            quantizer.bound_()

    @torch.no_grad()
    def absorb_affine_(self) -> None:
        """Fold γ into weight and weight scale, β into the bias; the output stays the same.

        Raises:
            RuntimeError: the weight is not fixed.
        """
        if self.affine is None:
            return
        if not self.weight_quantizer.fixed:
            raise RuntimeError("fix_ must come before absorb_affine_")
        # γ scales codes and grid alike, so the codes stay; only their scale changes.
        self.weight_quantizer.absorb_(self.affine.scale_like(self.weight))
        weight, bias = self.affine(self.weight, self.bias)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.affine = None

    @torch.no_grad()
    def to_float(self) -> nn.Module:
        """Return a plain layer with this one's rounded weight and its bias."""
        weight, bias = self.weight_quantizer(self.weight), self.bias
        if self.affine is not None:
            weight, bias = self.affine(weight, bias)
        if self.input_scale is not None and self.input_shift is not None:
            weight = weight / self.input_scale
            bias = bias - (weight * self.input_shift).flatten(1).sum(1)
        layer = self._plain()
        layer.load_state_dict({"weight": weight, "bias": bias})
        return layer

    @abstractmethod
    def _plain(self) -> nn.Module:
        """Return a plain layer of the same shape, of any values."""


def _find_scaling(layer: QuantizedLayer, *_: object) -> None:
    scale, shift = layer.input_scale, layer.input_shift
    layer.scales_input = scale is not None and bool((scale != 1).any())
    layer.shifts_input = shift is not None and bool(shift.any())


class QuantizedConv2d(QuantizedLayer):
    """A quantized convolution; arguments as in :class:`QuantizedLayer`."""

    def __init__(self, conv: nn.Conv2d, *args: Any, **kwargs: Any) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise PTQ4VMError(
                "Expected a convolution padded with a number of zeros, got "
                f"padding={conv.padding!r} ({conv.padding_mode}). Add its name to ignored_modules, "
                "or pad before the convolution."
            )
        super().__init__(conv, *args, **kwargs)
        self.geometry = ConvGeometry(conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        vertical, horizontal = self.geometry.padding
        self.input_padding = (horizontal, horizontal, vertical, vertical)

    @property
    def inner_geometry(self) -> ConvGeometry:
        """Geometry of the convolution of the quantized input, padded before if it is shifted."""
        return self.geometry._replace(padding=(0, 0)) if self.shifts_input else self.geometry

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return conv2d(x, weight, bias, self.inner_geometry)

    def _multiply_affine(self, x: Tensor, weight: Tensor, affine: AffineCalibration) -> Tensor:
        if weight.requires_grad:
            return super()._multiply_affine(x, weight, affine)
        return affine_conv2d(
            x, weight, self.bias, affine.log_scale, affine.shift, self.inner_geometry,
            scale_bias=affine.scale_bias,
        )  # fmt: skip

    def _for_each_output(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)

    def _plain(self) -> nn.Conv2d:
        outputs, inputs, *kernel = self.weight.shape
        return nn.Conv2d(inputs * self.geometry.groups, outputs, kernel, *self.geometry)  # type: ignore[arg-type]


class QuantizedLinear(QuantizedLayer):
    """A quantized linear layer over the last dimension; arguments as in :class:`QuantizedLayer`."""

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.linear(x, weight, bias)

    def _for_each_output(self, values: Tensor) -> Tensor:
        return values

    def _plain(self) -> nn.Linear:
        return nn.Linear(self.weight.shape[1], self.weight.shape[0])
