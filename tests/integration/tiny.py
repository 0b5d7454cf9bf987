"""Small matting network for tests; as a script, the ptq4vm command line with it registered."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

from ptq4vm.models import register_model
from ptq4vm.models.base import Block, MattingModel


@register_model("tiny")
class TinyMatting(MattingModel):
    """Matting network of an encoder, a recurrent block and a head at half resolution."""

    name = "tiny"

    def __init__(self, downsample_ratio=1.0):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.gate = nn.Sequential(nn.Conv2d(16, 8, 3, 1, 1), nn.Sigmoid())
        self.candidate = nn.Sequential(nn.Conv2d(16, 8, 3, 1, 1), nn.Tanh())
        self.head = nn.Conv2d(8, 4, 3, 1, 1)
        nn.init.constant_(self.head.bias, 0.4)  # avoid an all-zero alpha
        self.downsample_ratio = downsample_ratio

    def initial_state(self, src):
        return (src.new_zeros(len(src), 8, (src.shape[2] + 1) // 2, (src.shape[3] + 1) // 2),)

    def blocks(self):
        def recur(f1, h):
            both = torch.cat([f1, h], 1)
            z = self.gate(both)
            h = (1 - z) * h + z * self.candidate(both)
            return h, h

        def matte(f2, src):
            y = self.head(
                F.interpolate(f2, size=src.shape[-2:], mode="bilinear", align_corners=False)
            )
            return (src + y[:, :3]).clamp(0.0, 1.0), y[:, 3:].clamp(0.0, 1.0), y[:, 3:]

        return (
            Block("encoder", ("src",), ("f1",), lambda src: (self.encoder(src),), ("encoder",)),
            Block("recurrent", ("f1",), ("f2",), recur, ("gate", "candidate"), state=0),
            Block("head", ("f2", "src"), ("fgr", "pha", "pha_unclamped"), matte, ("head",)),
        )


if __name__ == "__main__":
    from ptq4vm.cli import main

    torch.set_num_threads(1)
    sys.exit(main())
