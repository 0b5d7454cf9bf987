"""Encoders of Robust Video Matting, torchvision's MobileNetV3 and ResNet-50, and their blocks.

Parameter names are those of the authors' checkpoints.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_large, resnet50
from torchvision.models.resnet import Bottleneck

from ptq4vm.models.base import Block, chained_blocks, never_in_place

Normalize = Callable[[Tensor], Tensor]
"""Function from RGB in [0, 1] to the encoder's input, (B, 3, h, w) each."""
_MOBILENET_TAPS = {1: "f1", 3: "f2", 6: "f3", 16: "f4"}
"""Indices of the MobileNetV3 feature layers that the decoder reads."""
_RESNET_STAGES = (("f2", 3), ("f3", 4), ("layer3", 6), ("f4", 3))
"""Name of the output, and number of bottlenecks, of layer1 to layer4."""


class MobileNetFeatures(nn.Module):
    """MobileNetV3-Large without its classifier; the last stage is dilated."""

    def __init__(self) -> None:
        super().__init__()
        # Dilated, the last stage keeps stride 16.
        self.features = mobilenet_v3_large(weights=None, dilated=True).features
        never_in_place(self)


def resnet_features() -> nn.Module:
    """Return ResNet-50 without its classifier; the last stage is dilated."""
    backbone = resnet50(weights=None, replace_stride_with_dilation=[False, False, True])
    # The pooling behind the stem is done in _bottleneck: f1 is read before it.
    del backbone.fc, backbone.avgpool, backbone.maxpool
    for block in backbone.modules():
        if isinstance(block, Bottleneck):
            # One ReLU module per use, so that quantization can move each separately.
            block.relu1, block.relu2 = nn.ReLU(), nn.ReLU()
    never_in_place(backbone)
    return backbone


def mobilenet_blocks(backbone: nn.Module, image: str, normalize: Normalize) -> list[Block]:
    """Return one block for each feature layer of :class:`MobileNetFeatures`.

    Args:
        backbone: The encoder, ``backbone`` of the network.
        image: Name of the value that the first block reads.
        normalize: Applied to the image.
    """

    def run(index: int, x: Tensor) -> tuple[Tensor]:
        layer = backbone.get_submodule(f"features.{index}")
        if index == 0:
            return (layer(normalize(x)),)
        # torchvision adds the shortcut in place. Once batch norm is folded, that would overwrite
        # the convolution's output.
        if getattr(layer, "use_res_connect", False):
            return (layer.get_submodule("block")(x) + x,)
        return (layer(x),)

    return chained_blocks(image, "backbone.features", 17, _MOBILENET_TAPS, run)


def resnet_blocks(backbone: nn.Module, image: str, normalize: Normalize) -> list[Block]:
    """Return the stem, and one block for each bottleneck, of :func:`resnet_features`.

    Arguments are those of :func:`mobilenet_blocks`.
    """

    def stem(x: Tensor) -> tuple[Tensor]:
        return (backbone.relu(backbone.bn1(backbone.conv1(normalize(x)))),)  # type: ignore[operator]

    modules = ("backbone.conv1", "backbone.bn1", "backbone.relu")
    blocks, last = [Block("backbone.stem", (image,), ("f1",), stem, modules)], "f1"
    for stage, (tap, count) in enumerate(_RESNET_STAGES, start=1):
        for index in range(count):
            name = f"layer{stage}.{index}"
            value = tap if index == count - 1 else f"layer{stage}_{index}"
            # partial, since a closure would see the loop's last name.
            run = partial(_bottleneck, backbone, name)
            blocks.append(Block(f"backbone.{name}", (last,), (value,), run, (f"backbone.{name}",)))
            last = value
    return blocks


def _bottleneck(backbone: nn.Module, name: str, x: Tensor) -> tuple[Tensor]:
    """Run torchvision's bottleneck, but add the shortcut out of place."""
    if name == "layer1.0":
        # ResNet's pooling from stride 2 to 4, which precedes layer1.
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    layer: nn.Module = backbone.get_submodule(name)
    y = layer.relu1(layer.bn1(layer.conv1(x)))  # type: ignore[operator]
    y = layer.relu2(layer.bn2(layer.conv2(y)))  # type: ignore[operator]
    y = layer.bn3(layer.conv3(y))  # type: ignore[operator]
    shortcut = x if layer.downsample is None else layer.downsample(x)  # type: ignore[operator]
    return (layer.relu(y + shortcut),)  # type: ignore[operator]
