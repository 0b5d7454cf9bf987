"""A changed file either works or is refused in words: no traceback, no hang."""

import copy
import json
import random
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from ptq4vm import cli
from ptq4vm.cli import quantize as quantize_command
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_quantized, quantize_network, quantized_layers, save_quantized
from ptq4vm.quantizers import QConfig, activation_quantizers, observing

CHECKPOINTS, CONFIGS = 1000, 1000
RECIPES = Path(__file__).parents[2] / "lightning_configs" / "quantize"
VALUES = [
    None, True, -1, 0, 1, 3, 2**70, 1e308, -0.5, float("nan"), float("inf"), "", "../../../etc/passwd", "W9A9", "é\0",
    "x" * 10_000, [], {}, [1], {"a": 1}, [[[[]]]], "official", "mse", "F64", "cuda",
]  # fmt: skip


@contextmanager
def at_most(seconds):
    def late(*_):
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def places(tree):
    """Every (container, key) of nested dictionaries and lists."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def mutate_tree(tree, draw):
    """Values replaced, removed, renamed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 2)):
        container, key = draw.choice(list(places(tree)) or [({}, None)])
        kind = draw.randrange(4)
        if kind == 0 and key is not None:
            del container[key]
        elif kind == 1 and isinstance(container, dict) and key is not None:
            container[draw.choice(["", "../x", "weights", "report", "a.b", f"{key}x"])] = container.pop(key)
        elif key is not None:
            container[key] = draw.choice(VALUES)
    return tree


def mutate_bytes(data, draw):
    data, at = bytearray(data), draw.randrange(len(data))
    kind = draw.randrange(4)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at:at] = draw.randbytes(draw.randint(1, 20))
    elif kind == 2:
        data[:8] = draw.choice([2**63 - 1, 2**40, 10**8, 0, len(data)]).to_bytes(8, "little")
    else:
        for _ in range(draw.choice([1, 1, 8, 64])):
            data[draw.randrange(min(len(data), draw.choice([100, 4000, len(data)])))] = draw.randrange(256)
    return bytes(data)


def mutate_checkpoint(data, draw):
    """Bytes changed anywhere, or the header's tree, or that of ours inside it."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if draw.random() < 0.5:
        ours = mutate_tree(json.loads(header["__metadata__"]["ptq4vm"]), draw)
        header["__metadata__"]["ptq4vm"] = json.dumps(ours)
    else:
        header = mutate_tree(header, draw)
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    qconfig = QConfig("W4A8", range_method="minmax")
    network = quantize_network(tiny.TinyMatting().eval(), qconfig)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(torch.rand(1, 2, 3, 32, 32))
    for layer in quantized_layers(network).values():
        layer.fix_()
    path = tmp_path_factory.mktemp("fuzz") / "tiny.safetensors"
    save_quantized(network, qconfig, path, {})
    return path.read_bytes()


def try_checkpoint(path):
    """Whether it works; refused otherwise."""
    with at_most(20):
        try:
            network, _ = load_quantized(path)
        except PTQ4VMError:
            return False
        with torch.no_grad():
            network.unroll(torch.rand(1, 2, 3, 32, 32))
        return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_changed_checkpoints_work_or_are_refused(checkpoint, tmp_path):
    draw, path, worked = random.Random(0), tmp_path / "changed.safetensors", 0
    for number in range(CHECKPOINTS):
        path.write_bytes(mutate_checkpoint(checkpoint, draw))
        try:
            worked += try_checkpoint(path)
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {error!r}") from error
    assert 0 < worked < CHECKPOINTS / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_changed_configurations_work_or_are_refused(tmp_path, monkeypatch, capsys):
    class Reached(Exception):
        pass

    def stop(**options):
        raise Reached

    real = quantize_command.quantize
    stop.__doc__, stop.__signature__ = real.__doc__, __import__("inspect").signature(real)
    monkeypatch.setattr(quantize_command, "quantize", stop)
    draw, path, recipes = random.Random(0), tmp_path / "changed.yaml", sorted(RECIPES.glob("*.yaml"))
    for number in range(CONFIGS):
        text = draw.choice(recipes).read_text()
        if draw.random() < 0.6:
            text = yaml.safe_dump(mutate_tree(yaml.safe_load(text), draw), allow_unicode=True)
        else:
            text = mutate_bytes(text.encode(), draw).decode("latin-1")
        path.write_text(text)
        try:
            with at_most(20):
                assert cli.main(["quantize", "--config", str(path)]) == 2
        except Reached:
            pass
        except SystemExit as end:
            if end.code != 2:
                raise
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {error!r}\n{text}") from error
        assert "Traceback" not in capsys.readouterr().err
