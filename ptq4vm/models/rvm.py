"""Robust Video Matting (Lin et al., arXiv 2108.11515), written from the paper.

It loads the authors' checkpoints.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.models.guided_filter import DeepGuidedFilter, FastGuidedFilter
from ptq4vm.models.registry import register_model
from ptq4vm.models.rvm_encoders import (
    MobileNetFeatures,
    mobilenet_blocks,
    resnet_blocks,
    resnet_features,
)
from ptq4vm.models.rvm_modules import LRASPP, Decoder, Projection
from ptq4vm.types import RecurrentState

Variant = Literal["mobilenetv3", "resnet50"]
RefinerName = Literal["deep_guided_filter", "fast_guided_filter"]


class _Widths(NamedTuple):
    """Channels of a variant."""

    features: tuple[int, int, int, int]
    """Encoder features at strides 2, 4, 8 and 16."""
    bottleneck: int
    decoder: tuple[int, int, int, int]
    """Decoder steps decode3 to decode0."""


_WIDTHS = {
    "mobilenetv3": _Widths((16, 24, 40, 960), 128, (80, 40, 32, 16)),
    "resnet50": _Widths((64, 256, 512, 2048), 256, (128, 64, 32, 16)),
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class RobustVideoMatting(MattingModel):
    """Recurrent video matting network.

    Its state is four tensors (r1, r2, r3, r4), at 1/2, 1/4, 1/8 and 1/16 of the downsampled frame.

    Args:
        variant: Encoder, ``mobilenetv3`` (3.7 M parameters) or ``resnet50`` (26.9 M).
        refiner: Guided filter that upsamples the matte to the frame size; used only if
            ``downsample_ratio`` is below 1.
        downsample_ratio: Scale of the network's body relative to the frame size, in (0, 1].

    Raises:
        PTQ4VMError: The variant or refiner is unknown, or the ratio is outside (0, 1].
    """

    state_bound = 1.0  # each state is a convex combination of tanh outputs

    def __init__(
        self,
        variant: Variant = "mobilenetv3",
        refiner: RefinerName = "deep_guided_filter",
        downsample_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        _check_choice("variant", variant, get_args(Variant))
        _check_choice("refiner", refiner, get_args(RefinerName))
        self.name = f"rvm_{variant}"
        self.variant = variant
        self.arguments = {"refiner": refiner}
        self.downsample_ratio = downsample_ratio
        self._widths = widths = _WIDTHS[variant]
        self.backbone = MobileNetFeatures() if variant == "mobilenetv3" else resnet_features()
        self.aspp = LRASPP(widths.features[3], widths.bottleneck)
        self.decoder = Decoder(widths.features[:3], widths.bottleneck, widths.decoder)
        self.project_mat = Projection(widths.decoder[3], 4)
        # Used in training on segmentation data only; kept so that the authors' checkpoints load
        # strictly.
        self.project_seg = Projection(widths.decoder[3], 1)
        self.refiner = (
            DeepGuidedFilter(widths.decoder[3])
            if refiner == "deep_guided_filter"
            else FastGuidedFilter()
        )
        # Not persistent: the authors' checkpoints don't hold them.
        self.register_buffer(
            "_mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("_std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def blocks(self) -> tuple[Block, ...]:
        """Return the network's blocks in order.

        These are the encoder layers, LR-ASPP, the recurrent decoder steps, the projection and the
        refiner.
        """
        # At the frame's own size project_mat already emits the result: no downsampling, no refiner.
        refines = self.downsample_ratio < 1
        small = "src_small" if refines else "src"
        residual, pha = (
            ("residual_small", "pha_small") if refines else ("residual", "pha_unclamped")
        )
        encoder = mobilenet_blocks if self.variant == "mobilenetv3" else resnet_blocks
        body = (
            *encoder(self.backbone, small, self._normalize),
            Block("aspp", ("f4",), ("pooled",), self._aspp, ("aspp",)),
            Block(
                "decode4",
                ("pooled",),
                ("hidden4",),
                partial(self._decode, 4),
                ("decoder.decode4",),
                3,
            ),
            self._decode_block(3, small),
            self._decode_block(2, small),
            self._decode_block(1, small),
            Block("decode0", ("hidden1", small), ("hidden0",), self._decode0, ("decoder.decode0",)),
            Block("project_mat", ("hidden0",), (residual, pha), self._project, ("project_mat",)),
        )
        compose = Block("compose", ("src", "residual", "pha_unclamped"), ("fgr", "pha"), _compose)
        if not refines:
            return (*body, compose)
        refiner_inputs = ("src", "src_small", "residual_small", "pha_small", "hidden0")
        return (
            Block("downsample", ("src",), ("src_small",), self._downsample),
            *body,
            Block(
                "refiner", refiner_inputs, ("residual", "pha_unclamped"), self._refine, ("refiner",)
            ),
            compose,
        )

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return zero states r1 to r4, (B, c, h, w) each, for frames like ``src`` (B, 3, H, W)."""
        height, width = self._small_size(src)
        # Half of a step's channels are recurrent. The decoder's widths are listed from decode3 on,
        # the states from r1 on, hence reversed; decode0 has no state.
        channels = (*(c // 2 for c in self._widths.decoder[2::-1]), self._widths.bottleneck // 2)
        state = []
        for count in channels:
            # Convolutions of stride 2 round odd sizes up.
            height, width = (height + 1) // 2, (width + 1) // 2
            state.append(src.new_zeros(src.shape[0], count, height, width))
        return tuple(state)

    def _small_size(self, src: Tensor) -> tuple[int, int]:
        # Rounded down, as interpolate does for a scale_factor.
        height, width = (int(side * self.downsample_ratio) for side in src.shape[-2:])
        if height < 1 or width < 1:
            raise PTQ4VMError(
                f"Expected frames of at least one pixel after downsampling, got {tuple(src.shape)} "
                f"at downsample_ratio {self.downsample_ratio}. Raise the ratio."
            )
        return height, width

    def _decode_block(self, level: int, image: str) -> Block:
        # Blocks count from the deepest step, decode4; the states r1 to r4 have the indices 0 to 3.
        inputs = (f"hidden{level + 1}", f"f{level}", image)
        name = f"decode{level}"
        return Block(
            name,
            inputs,
            (f"hidden{level}",),
            partial(self._decode, level),
            (f"decoder.{name}",),
            level - 1,
        )

    def _decode(self, level: int, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder.get_submodule(f"decode{level}")(*arguments)

    def _decode0(self, hidden: Tensor, image: Tensor) -> tuple[Tensor]:
        return (self.decoder.decode0(hidden, image),)

    def _aspp(self, x: Tensor) -> tuple[Tensor]:
        return (self.aspp(x),)

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        matte = self.project_mat(hidden)
        # Three channels of the foreground's residual, one of alpha.
        return matte[:, :3], matte[:, 3:]

    def _refine(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        return self.refiner(*arguments)

    def _normalize(self, src: Tensor) -> Tensor:
        # The encoder alone reads normalised frames; decoder and refiner read RGB in [0, 1].
        return (src - self.get_buffer("_mean")) / self.get_buffer("_std")

    def _downsample(self, src: Tensor) -> tuple[Tensor]:
        # As in the authors' ONNX export, the scale is not recomputed from the rounded size.
        ratio = self.downsample_ratio
        small = F.interpolate(
            src,
            scale_factor=ratio,
            mode="bilinear",
            align_corners=False,
            recompute_scale_factor=False,
        )
        return (small,)


def _compose(src: Tensor, residual: Tensor, pha: Tensor) -> tuple[Tensor, Tensor]:
    # The network predicts the foreground less the frame, as in arXiv 2012.07810: 0 where they
    # agree.
    return (residual + src).clamp(0, 1), pha.clamp(0, 1)


def _check_choice(what: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise PTQ4VMError(
            f"Expected {what} to be one of {', '.join(choices)}, got {got!r}. Choose one of those."
        )


@register_model("rvm_mobilenetv3")
def rvm_mobilenetv3(
    refiner: RefinerName = "deep_guided_filter", downsample_ratio: float = 1.0
) -> RobustVideoMatting:
    """Return the network with a MobileNetV3-Large encoder.

    See :class:`RobustVideoMatting` for the arguments.
    """
    return RobustVideoMatting("mobilenetv3", refiner, downsample_ratio)


@register_model("rvm_resnet50")
def rvm_resnet50(
    refiner: RefinerName = "deep_guided_filter", downsample_ratio: float = 1.0
) -> RobustVideoMatting:
    """Return the network with a ResNet-50 encoder.

    See :class:`RobustVideoMatting` for the arguments.
    """
    return RobustVideoMatting("resnet50", refiner, downsample_ratio)
