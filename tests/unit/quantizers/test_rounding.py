import copy

import pytest
import torch

from ptq4vm.quantizers import (
    FixedRounding,
    LatentRounding,
    LearnedRounding,
    NearestRounding,
    NoRounding,
    QuantizedConv2d,
    QuantSpec,
    WeightQuantizer,
    temporary_rounding,
)

SPEC = QuantSpec(4, "symmetric", "per_channel")


def fixed():
    torch.manual_seed(0)
    floats = torch.randn(3, 4, 3, 3)
    quantizer, weight = WeightQuantizer(floats, SPEC), floats.clone()
    quantizer.fix_(weight)
    return quantizer, weight, floats


def test_the_rounding_is_replaced_as_quantization_proceeds():
    floats = torch.randn(3, 4, 3, 3)
    quantizer, weight = WeightQuantizer(floats, SPEC), floats.clone()
    kinds = [type(quantizer.rounding)]
    quantizer.start_rounding(weight)
    kinds.append(type(quantizer.rounding))
    quantizer.fix_(weight)
    kinds.append(type(quantizer.rounding))
    quantizer.start_latent(weight, floats)
    kinds.append(type(quantizer.rounding))
    quantizer.fix_(weight)
    assert quantizer.fixed
    assert kinds == [NearestRounding, LearnedRounding, FixedRounding, LatentRounding]
    assert set(quantizer.state_dict()) == {"scale", "zero_point", "absorbed"}


@pytest.mark.parametrize(
    ("start", "names"), [("rounding", {"rounding"}), ("latent", {"latent", "home"})]
)
def test_checkpoints_keep_their_names_for_what_is_learned(start, names):
    """Those of the versions in which the quantizer itself held these tensors."""
    quantizer, weight, floats = fixed()
    arguments = (floats,) if start == "rounding" else (weight, floats)
    getattr(quantizer, f"start_{start}")(*arguments)
    other = copy.deepcopy(quantizer)
    with torch.no_grad():
        next(quantizer.rounding.parameters()).add_(0.3)
    holder, other_holder = (torch.nn.ModuleDict({"q": one}) for one in (quantizer, other))
    state = holder.state_dict()
    assert set(state) == {f"q.{name}" for name in {"scale", "zero_point", "absorbed", *names}}
    other_holder.load_state_dict(state)
    pairs = zip(quantizer.rounding.parameters(), other.rounding.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert set(state) == set(holder.state_dict())  # loading left it alone
    missing = {name: value for name, value in state.items() if not name.endswith(f".{start}")}
    with pytest.raises(RuntimeError, match="Missing key"):
        other_holder.load_state_dict(missing)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        torch.nn.ModuleDict({"q": fixed()[0]}).load_state_dict(state)


def test_impossible_roundings_are_refused():
    floats = torch.randn(3, 4, 3, 3)
    quantizer = WeightQuantizer(floats, SPEC)
    with pytest.raises(RuntimeError, match="fix_ must come before"):
        quantizer.start_latent(floats, floats)
    with pytest.raises(RuntimeError, match="no codes"):
        NoRounding().codes(floats, quantizer.grid)


def test_a_temporary_rounding_leaves_the_old_one_behind():
    layer = QuantizedConv2d(torch.nn.Conv2d(3, 4, 3), SPEC, QuantSpec(8))
    nearest = layer.weight_quantizer(layer.weight)
    layer.weight_quantizer.start_rounding(layer.weight)
    with torch.no_grad():
        layer.weight_quantizer.rounding.v += 1.0
    before, learned = layer.weight_quantizer.rounding, layer.weight_quantizer(layer.weight)
    with temporary_rounding([layer], NearestRounding):
        assert torch.equal(layer.weight_quantizer(layer.weight), nearest)
    assert layer.weight_quantizer.rounding is before
    assert torch.equal(layer.weight_quantizer(layer.weight), learned)
    layer.fix_()
    with pytest.raises(RuntimeError, match="gone"), temporary_rounding([layer], NearestRounding):
        pass
