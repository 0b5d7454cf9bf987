"""Tests of equal networks from a .pth with BatchNorm and from an ONNX file with it folded."""

import copy
import dataclasses

import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from ptq4vm.deploy import TARGETS
from ptq4vm.graph import fold_batch_norm_, quantize_network, quantized_layers
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig, activation_quantizers, observing
from ptq4vm.recipes import read_recipe, recipes_folder

NAME = "rvm_mobilenetv3"


def write_official_layout(network, path):
    """Write an ONNX file in the layout of RVM's official export.

    It contains the convolutions in order with BatchNorm folded; the loader reads nothing else.
    """
    folded = fold_batch_norm_(copy.deepcopy(network))
    nodes, stored = [], []
    for name, conv in folded.named_modules():
        if isinstance(conv, torch.nn.Conv2d) and not name.startswith("project_seg"):
            parts = {"weight": conv.weight, "bias": conv.bias}
            names = [f"{len(nodes)}_{part}" for part, value in parts.items() if value is not None]
            values = [value.detach().numpy() for value in parts.values() if value is not None]
            stored += [numpy_helper.from_array(*pair) for pair in zip(values, names, strict=True)]
            nodes.append(helper.make_node("Conv", ["src", *names], [f"{len(nodes)}"]))
    onnx.save(helper.make_model(helper.make_graph(nodes, "rvm", [], [], stored)), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    network = create_model(NAME)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.05, 2.0)
            module.bias.data.uniform_(-0.1, 1.0)
    folder = tmp_path_factory.mktemp("weights")
    torch.save(network.state_dict(), folder / "rvm.pth")
    write_official_layout(network, folder / "rvm.onnx")
    return folder / "rvm.pth", folder / "rvm.onnx"


def recipe_qconfigs():
    """Return the distinct quantization configurations of all recipes."""
    found = {}
    for path in sorted(recipes_folder().glob("*.yaml")):
        recipe = read_recipe(path)
        for bits in recipe["bits"]:
            settings = {**recipe.get("qconfig", {}), "bits": "W4A4" if bits == "auto" else bits}
            qconfig = QConfig(**settings).used()
            if "target" in recipe:
                qconfig = TARGETS[recipe["target"]].fit(qconfig)
            found.setdefault(str(qconfig), pytest.param(qconfig, id=f"{path.stem}-{bits}"))
    return list(found.values())


@pytest.mark.parametrize("range_method", ["minmax", pytest.param("mse", marks=pytest.mark.slow)])
@pytest.mark.parametrize("qconfig", recipe_qconfigs())
def test_both_give_the_same_quantized_network(files, qconfig, range_method):
    qconfig = dataclasses.replace(qconfig, range_method=range_method)
    src = torch.rand(1, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    networks = [quantize_network(create_model(NAME, weights=file), qconfig) for file in files]
    for network in networks:
        with torch.no_grad(), observing(activation_quantizers(network)):
            network.unroll(src)
    layers = [quantized_layers(network) for network in networks]
    assert list(layers[0]) == list(layers[1])
    for name, one in layers[0].items():
        other = layers[1][name]
        assert torch.equal(*(x.weight_quantizer.codes(x.weight) for x in (one, other)))
        grids = [
            torch.cat(
                [
                    quantizer.scale.flatten()
                    for quantizer in (x.weight_quantizer, *x.activation_quantizers)
                ]
            )
            for x in (one, other)
        ]
        # The ONNX weights are folded again, into an identity BatchNorm of variance 1 - eps. In
        # float32 its factor is within half an ulp of 1: codes are equal, scales within 1e-7.
        torch.testing.assert_close(*grids, rtol=1e-6, atol=0)
