"""Random mutations of JSON trees, text, bytes, safetensors and ONNX graphs for test_fuzz.py."""

import copy
import json
import random
import signal
import warnings
from collections import Counter
from contextlib import contextmanager

import torch
from onnx import TensorProto

from ptq4vm.errors import PTQ4VMError

VALUES = [
    None, True, -1, 0, 1, 3, 2**70, 1e308, 5e-324, -0.5, float("nan"), float("inf"), "",
    "../../../etc/passwd", "W9A9", "é\0", "[/b]", "/etc/passwd", "x" * 10_000, [], {}, [1],
    {"a": 1}, [[[[]]]], "official", "mse", "F64", "F4", "cuda",
]  # fmt: skip
RAW = [
    "[" * 10_000 + "]" * 10_000,
    "[" * 500 + "]" * 500,
    "1" * 400,
    "1" * 5000,
    '"\\ud800"',
    "1e999",
    "{",
    "",
]
"""JSON text that `json.dumps` cannot produce from Python values."""


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
    """Yield every (container, key) of nested dictionaries and lists."""
    keys = (
        list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    )
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def mutate_tree(tree, draw):
    """Replace, remove or rename random values of a JSON tree."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 2)):
        container, key = draw.choice(list(places(tree)) or [({}, None)])
        kind = draw.randrange(4)
        if kind == 0 and key is not None:
            del container[key]
        elif kind == 1 and isinstance(container, dict) and key is not None:
            container[draw.choice(["", "../x", "weights", "report", "a.b", f"{key}x"])] = (
                container.pop(key)
            )
        elif key is not None:
            container[key] = draw.choice(VALUES)
    return tree


def mutate_text(tree, draw, dump=json.dumps):
    """Mutate a JSON tree and serialize it, or replace a value by an entry of `RAW`."""
    if draw.random() < 0.75:
        return dump(mutate_tree(tree, draw))
    tree = copy.deepcopy(tree)
    container, key = draw.choice(list(places(tree)))
    container[key] = "RAW"
    return dump(tree).replace('"RAW"', "RAW").replace("RAW", draw.choice(RAW))


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
            data[draw.randrange(min(len(data), draw.choice([100, 4000, len(data)])))] = (
                draw.randrange(256)
            )
    return bytes(data)


def mutate_safetensors(data, draw):
    """Mutate the bytes, the safetensors header, or the ptq4vm header inside it."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "ptq4vm" in header.get("__metadata__", {}) and draw.random() < 0.5:
        header["__metadata__"]["ptq4vm"] = mutate_text(
            json.loads(header["__metadata__"]["ptq4vm"]), draw
        )
    else:
        header = mutate_tree(header, draw)
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


def mutate_proto(model, draw):
    """Mutate nodes, tensors, inputs and outputs of an ONNX graph, or its bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(model.SerializeToString(), draw)
    model = copy.deepcopy(model)
    graph = model.graph
    for _ in range(draw.randint(1, 2)):
        kind = draw.randrange(6)
        part = draw.choice([graph.node, graph.initializer, graph.input, graph.output])
        if kind == 0 and len(part):
            del part[draw.randrange(len(part))]
        elif kind == 1 and len(graph.node):
            draw.choice(graph.node).op_type = draw.choice(
                ["Add", "Relu", "Concat", "Conv", "Nothing", ""]
            )
        elif kind == 2 and len(graph.node):
            node = draw.choice(graph.node)
            names = draw.choice([node.input, node.output])
            names[:] = [draw.choice(["x", "", "src", *names]) for _ in range(draw.randint(0, 4))]
        elif kind == 3 and len(part):
            draw.choice(part).name = draw.choice(["", "src", "pha", "x"])
        elif len(graph.initializer):
            mutate_tensor(draw.choice(graph.initializer), draw)
    return model.SerializeToString()


def mutate_tensor(tensor, draw):
    kind = draw.randrange(5)
    if kind == 0:
        tensor.data_type = draw.choice([0, 1, 7, 8, 16, 22, 99])
    elif kind == 1:
        tensor.dims[:] = draw.choice([[], [0], [-1], [2**40, 2**40], [3]])
    elif kind == 2:
        tensor.raw_data = draw.randbytes(draw.choice([0, 3, len(tensor.raw_data)]))
    elif kind == 3:
        tensor.data_location = TensorProto.EXTERNAL
        where = draw.choice(["/etc/passwd", "../../etc/passwd", "none", ""])
        tensor.external_data.add(key="location", value=where)
    else:
        tensor.ClearField("raw_data")
        tensor.string_data.append(b"text")


def fuzz(count, mutate, attempt):
    """Run `attempt` on random mutations; fail on any exception other than `PTQ4VMError`.

    Args:
        count: number of mutations.
        mutate: function from a random generator to a mutated file.
        attempt: function that uses the file and returns True on success.

    Returns:
        Number of accepted mutations.
    """
    draw, worked, failures = random.Random(0), 0, []
    for number in range(count):
        changed = mutate(draw)
        try:
            with at_most(20), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                worked += attempt(changed)
        except PTQ4VMError:
            continue
        except (Exception, SystemExit) as error:
            failures.append(f"mutation {number}: {type(error).__name__}: {str(error)[:200]}")
    kinds = Counter(failure.split(": ")[1] for failure in failures)
    assert not failures, (
        f"{len(failures)} of {count} ended in a traceback: {dict(kinds)}\n"
        + "\n".join(failures[:20])
    )
    assert 0 < worked < count
    return worked
