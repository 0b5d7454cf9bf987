import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import MattingModel, create_model, list_models, register_model, registry


def test_list_and_create():
    assert {"rvm_mobilenetv3", "rvm_resnet50"} <= set(list_models())
    network = create_model("rvm_mobilenetv3", refiner="fast_guided_filter", downsample_ratio=0.25)
    assert isinstance(network, MattingModel)
    assert network.name == "rvm_mobilenetv3"
    assert network.downsample_ratio == 0.25
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_unknown_name():
    with pytest.raises(
        PTQ4VMError, match=r"rvm_mobilenetv3, rvm_resnet50.*Did you mean rvm_mobilenetv3\?"
    ):
        create_model("rvm_mobilnetv3")


def test_unknown_argument():
    with pytest.raises(PTQ4VMError, match="rvm_mobilenetv3 takes, got ratio"):
        create_model("rvm_mobilenetv3", ratio=0.5)


def test_register(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    factory = register_model("mine")(lambda: create_model("rvm_mobilenetv3"))
    assert "mine" in list_models()
    assert factory().name == create_model("mine").name
    with pytest.raises(PTQ4VMError, match="taken"):
        register_model("mine")
    with pytest.raises(PTQ4VMError, match="published weights"):
        create_model("mine", "official")
