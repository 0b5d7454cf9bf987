import copy
import json
import pickle
import resource
import warnings
import zipfile

import onnx
import pytest
import torch
from weight_files import save

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import load_weights


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors", "onnx"])
@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", bytes(range(256)) * 8, b"<html>404</html>", b"PK\x03\x04zip", b"\x80\x02"],
)
def test_garbage(blank, tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(PTQ4VMError, match=r"weights\."):
        load_weights(blank, path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated(network, blank, tmp_path, suffix):
    path = save(network.state_dict(), tmp_path / f"weights.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PTQ4VMError, match="anew"):
        load_weights(blank, path)


def test_truncated_onnx(official_weights, blank, tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(official_weights.read_bytes()[:1_000_000])
    with pytest.raises(PTQ4VMError, match="ONNX"):
        load_weights(blank, path)


def test_changed_onnx(official_weights, blank, tmp_path):
    model = onnx.load(official_weights)
    for tensor in model.graph.initializer:
        if tensor.name == "project_mat.conv.weight":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:3], tensor.name)
            )
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(PTQ4VMError, match=r"1 differ, the first: project_mat\.conv"):
        load_weights(blank, tmp_path / "other.onnx")


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_pickled_code_is_not_run(blank, tmp_path, dump):
    path = tmp_path / "weights.pth"
    if dump is torch.save:
        dump({"weight": Harmful(tmp_path / "ran")}, path)
    else:
        with path.open("wb") as file:
            dump(Harmful(tmp_path / "ran"), file, protocol=2)
    with pytest.raises(PTQ4VMError, match="more than tensors"):
        load_weights(blank, path)
    assert not (tmp_path / "ran").exists()


def save_module(path):
    torch.save(torch.nn.Conv2d(1, 1, 1), path)
    return "carries more than tensors: a pickled torch.nn.modules.conv.Conv2d"


def save_program(path):
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(path)
    return "is a TorchScript program"


def save_plain_pickle(path):
    path.write_bytes(pickle.dumps({"a": [1]}))
    return "is damaged, or not what torch.save writes of tensors"


@pytest.mark.parametrize("save_it", [save_module, save_program, save_plain_pickle])
def test_a_refusal_is_one_sentence_and_the_remedy(blank, tmp_path, save_it):
    path = tmp_path / "weights.pth"
    reason = save_it(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PTQ4VMError) as caught:
            load_weights(blank, path)
    assert str(caught.value) == (
        f"Expected a PyTorch state dict, got {path}, which {reason}. Save the weights alone with "
        "`torch.save(model.state_dict(), path)`, or download the file anew."
    )


def rezip(path, compression, change=lambda name, content: content):
    """Rewrite a `torch.save` archive with another compression or changed entries."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, change(name, content))
    return path


def compressed(path):
    torch.save({"a": torch.zeros(1 << 22)}, path)
    return rezip(path, zipfile.ZIP_DEFLATED)


def shared(path):
    """Write an archive with eight directory entries that share the same data."""
    torch.save({"a": torch.zeros(1 << 18)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        for number in range(1, 8):
            again = copy.copy(entry)
            again.filename = f"{entry.filename}{number}"
            archive.filelist.append(again)
        archive._didModify = True
    return path


def allocating(path):
    """Write an archive whose short pickle allocates 1 GB."""
    torch.save({"a": torch.zeros(1)}, path)
    pickled = b"\x80\x02cbuiltins\nbytearray\nJ" + (1 << 30).to_bytes(4, "little") + b"\x85R."
    return rezip(
        path,
        zipfile.ZIP_STORED,
        lambda name, content: pickled if name.endswith("data.pkl") else content,
    )


def allocating_legacy(path):
    path.write_bytes(
        b"\x80\x02cbuiltins\nbytearray\nJ" + (1 << 30).to_bytes(4, "little") + b"\x85R."
    )
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (compressed, "is compressed"),
        (shared, "holds more than its"),
        (allocating, "a pickled bytearray"),
        (allocating_legacy, "a pickled bytearray"),
    ],
)
def test_a_file_costs_no_more_than_its_size(blank, tmp_path, make, message, monkeypatch):
    path = make(tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(PTQ4VMError, match=message):
        load_weights(blank, path)


def test_a_legacy_file_that_claims_more_than_it_holds(blank, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x03") == 2  # sizes of the storage and of the tensor
    path.write_bytes(content.replace(b"K\x03", b"J" + (1 << 29).to_bytes(4, "little")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PTQ4VMError, match="is damaged"):
        load_weights(blank, path)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18
    )  # in KiB; the file claims 8 times as much


@pytest.mark.parametrize("dtype", ["F32", "F8_E8M0", "F4", "F6_E2M3", "C64", "X9"])
def test_safetensors_with_a_header_of_its_own_mind(blank, tmp_path, dtype):
    header = json.dumps(
        {"a": {"dtype": dtype, "shape": [1 << 30], "data_offsets": [0, 8]}}
    ).encode()
    (tmp_path / "weights.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(8)
    )
    with pytest.raises(PTQ4VMError, match="Expected a safetensors file"):
        load_weights(blank, tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("dtype", "width"), [("F8_E8M0", 8), ("F4", 4), ("F8_E5M2", 8), ("U16", 16), ("C64", 64)]
)
def test_safetensors_of_other_types(blank, tmp_path, dtype, width):
    header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, width]}}).encode()
    (tmp_path / "weights.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(width)
    )
    with pytest.raises(PTQ4VMError, match=r"weights\.safetensors"):
        load_weights(blank, tmp_path / "weights.safetensors")
