import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import network_cost, partition, quantize_network, quantized_layers, trace
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.quantizers import QConfig


class Tokens(MattingModel):
    """Network of a patch embedding, an inner module on tokens, and a head."""

    name = "tokens"

    def __init__(self, inner, flat=False):
        super().__init__()
        self.embed, self.inner, self.head = (
            torch.nn.Conv2d(3, 8, 8, stride=8),
            inner,
            torch.nn.Conv2d(8, 1, 1),
        )
        self.flat = flat

    def initial_state(self, src):
        return ()

    def blocks(self):
        embed = Block("embed", ("src",), ("x",), self._embed, ("embed",))
        return embed, Block("mix", ("x", "src"), ("fgr", "pha"), self._mix, ("inner", "head"))

    def _embed(self, src):
        x = self.embed(src)
        return (x.flatten(2) if self.flat else x,)

    def _mix(self, x, src):
        tokens = self.inner(x.flatten(2).transpose(1, 2))
        x = self.head(
            tokens.transpose(1, 2).unflatten(2, [side // 8 for side in src.shape[2:]])
        ).sigmoid()
        return src, torch.nn.functional.interpolate(x, src.shape[2:])


class SelfAttention(torch.nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


def test_linear_layers_are_quantized_and_counted():
    network = Tokens(
        torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    ).eval()
    quantized = quantize_network(network, QConfig("W4A8", range_method="minmax"))
    bits = {
        name: layer.weight_quantizer.spec.bits
        for name, layer in quantized_layers(quantized).items()
    }
    assert bits == {"embed": 8, "inner.0": 4, "inner.2": 4, "head": 8}
    macs = {layer.name: layer.macs for layer in trace(network, torch.rand(1, 3, 64, 96))}
    assert macs == {
        "embed": 96 * 8 * 192,
        "inner.0": 96 * 8 * 16,
        "inner.2": 96 * 8 * 16,
        "head": 96 * 8,
    }
    traced = {layer.name: layer for layer in trace(network, torch.rand(1, 3, 64, 96))}
    assert traced["inner.0"].activation == "inner.1"
    assert traced["inner.2"].source == "inner.0"
    assert not any(layer.pooled for layer in traced.values())
    cost = network_cost(quantized, 64, 96)
    assert cost.bit_operations == pytest.approx(
        1e-9 * (8 * 8 * (96 * 8 * 193) + 4 * 8 * 2 * 96 * 8 * 16)
    )
    # A quarter of the MACs at W8A8, a sixth at W4A8.
    assert cost.effective_flops == pytest.approx(1e-9 * (96 * 8 * 193 / 4 + 2 * 96 * 8 * 16 / 6))
    assert len(partition(quantized)) == 2


def test_what_cannot_be_seen_or_stored_is_refused():
    network = Tokens(SelfAttention(8, 2, batch_first=True)).eval()
    with pytest.raises(PTQ4VMError, match=r"nn.MultiheadAttention in 'inner'"):
        quantize_network(network, QConfig())
    quantized = quantize_network(
        network, QConfig(range_method="minmax", ignored_modules=("inner",))
    )
    assert set(quantized_layers(quantized)) == {"embed", "head"}
    with pytest.raises(PTQ4VMError, match=r"Expected maps .* got x \(1, 8, 64\)"):
        partition(Tokens(torch.nn.Linear(8, 8), flat=True).eval())
